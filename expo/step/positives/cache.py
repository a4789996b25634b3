"""Cache of explanations: each is used again for some steps, and dropped when the policy has moved away from it."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from expo.step.experience import Batch, Candidate, Candidates
from expo.step.positives.properties import Scorer


@dataclass
class ExplanationCache:
    """Explanations by problem, each with the step that made it. `steps=0` caches nothing; `max_drop` is in nats per
    token."""

    steps: int
    max_drop: float
    # Step and log π(c|q) of the making, and the explanation; several per problem where the selection keeps several.
    entries: dict[str, list[tuple[int, float, Candidate]]] = field(default_factory=dict)

    def find(self, batch: Batch, scorer: Scorer) -> Candidates:
        """Return the cached explanations of the batch's problems; drop those too old, or too unlikely by now."""
        self.entries = {
            key: entries for key, entries in self.entries.items() if batch.step - entries[0][0] <= self.steps
        }
        recent = [(i, entry) for i, p in enumerate(batch.problems) for entry in self.entries.get(p.id, ())]
        if not recent:
            return {}
        now = scorer.mean_logp([batch.prompts[i] for i, _ in recent], [c.ids for _, (_, _, c) in recent]).tolist()
        good: Candidates = {}
        for (i, entry), logp in zip(recent, now, strict=True):
            _, then, candidate = entry
            if then - logp <= self.max_drop:
                good.setdefault(i, []).append(candidate)
            else:
                left = [e for e in self.entries.get(batch.problems[i].id, []) if e is not entry]
                self.entries[batch.problems[i].id] = left
        self.entries = {key: entries for key, entries in self.entries.items() if entries}
        return good

    def keep(self, positives: Candidates, batch: Batch, scorer: Scorer) -> None:
        if not self.steps or not positives:
            return
        rows = [(batch.prompts[i], c.ids) for i, explanations in positives.items() for c in explanations]
        logps = iter(scorer.mean_logp([q for q, _ in rows], [ids for _, ids in rows]).tolist())
        entries: dict[str, list[tuple[int, float, Candidate]]] = {}
        for i, explanations in positives.items():  # of a problem that stands twice in a step, the later ones
            entries[batch.problems[i].id] = [(batch.step, next(logps), c.unmeasured()) for c in explanations]
        self.entries |= entries

    def state_dict(self) -> dict[str, Any]:
        return {
            key: [(step, logp, asdict(candidate)) for step, logp, candidate in entries]
            for key, entries in self.entries.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        names = {f.name for f in fields(Candidate)}  # of a checkpoint of 0.3, which also had a problem's index
        self.entries = {
            key: [(step, logp, Candidate(**{k: v for k, v in c.items() if k in names})) for step, logp, c in entries]
            for key, entries in state.items()
        }

"""Explanations that are used again: made once, kept for some steps, dropped when the policy has moved away from them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from expo.step.experience import Batch, Candidate
from expo.step.positives.properties import Scorer


@dataclass
class ExplanationCache:
    """Explanations by problem, each with the step that made it: the version of the policy. `steps=0` keeps nothing.

    `max_drop` is in nats per token.
    """

    steps: int
    max_drop: float
    # Step and log π(c|q) of the making, and the explanation; several per problem where the selection keeps several.
    entries: dict[str, list[tuple[int, float, Candidate]]] = field(default_factory=dict)

    def find(self, batch: Batch, scorer: Scorer) -> list[Candidate]:
        """Return what is still good for the batch's problems; drop what is too old, or too unlikely by now."""
        self.entries = {key: found for key, found in self.entries.items() if batch.step - found[0][0] <= self.steps}
        kept = [(i, entry) for i, p in enumerate(batch.problems) for entry in self.entries.get(p.id, ())]
        if not kept:
            return []
        now = scorer.mean_logp([batch.prompts[i] for i, _ in kept], [c.ids for _, (_, _, c) in kept]).tolist()
        good = []
        for (i, entry), logp in zip(kept, now, strict=True):
            _, then, candidate = entry
            if then - logp <= self.max_drop:
                good.append(replace(candidate, problem=i))
            else:
                left = [e for e in self.entries.get(batch.problems[i].id, []) if e is not entry]
                self.entries[batch.problems[i].id] = left
        self.entries = {key: found for key, found in self.entries.items() if found}
        return good

    def keep(self, positives: Sequence[Candidate], batch: Batch, scorer: Scorer) -> None:
        """Remember the explanations made at this step, without what was measured of them."""
        if not self.steps or not positives:
            return
        logps = scorer.mean_logp([batch.prompts[c.problem] for c in positives], [c.ids for c in positives]).tolist()
        made: dict[str, list[tuple[int, float, Candidate]]] = {}
        for candidate, logp in zip(positives, logps, strict=True):
            bare = replace(candidate, logp_given_q=None, logp_given_qa=None, answer_lift=None)
            made.setdefault(batch.problems[candidate.problem].id, []).append((batch.step, logp, bare))
        self.entries |= made

    def state_dict(self) -> dict[str, Any]:
        """Return the entries as plain data, for a checkpoint."""
        return {
            key: [(step, logp, asdict(candidate)) for step, logp, candidate in found]
            for key, found in self.entries.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the entries of a checkpoint."""
        self.entries = {
            key: [(step, logp, Candidate(**candidate)) for step, logp, candidate in found]
            for key, found in state.items()
        }

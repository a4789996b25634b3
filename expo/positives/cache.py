"""Explanations that are used again: made once, kept for some steps, dropped when the policy has moved away from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from expo.data.problem import Problem
from expo.experience import Candidate
from expo.positives.properties import Scorer


@dataclass
class ExplanationCache:
    """Explanations by problem, each with the step that made it: the version of the policy. `steps=0` keeps nothing.

    `max_drop` is in nats per token.
    """

    steps: int
    max_drop: float
    # Step and log π(c|q) of the making, and the explanation; several per problem where the selection keeps several.
    entries: dict[str, list[tuple[int, float, Candidate]]] = field(default_factory=dict)

    def find(
        self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], step: int, scorer: Scorer
    ) -> list[Candidate]:
        """What is still good for these problems; what is too old, or too unlikely by now, is dropped."""
        self.entries = {key: found for key, found in self.entries.items() if step - found[0][0] <= self.steps}
        held = [(i, entry) for i, p in enumerate(problems) for entry in self.entries.get(p.id, ())]
        if not held:
            return []
        now = scorer.mean_logp([prompts[i] for i, _ in held], [c.ids for _, (_, _, c) in held]).tolist()
        good = []
        for (i, entry), logp in zip(held, now, strict=True):
            _, then, candidate = entry
            if then - logp <= self.max_drop:
                good.append(replace(candidate, problem=i))
            else:
                left = [e for e in self.entries.get(problems[i].id, []) if e is not entry]
                self.entries[problems[i].id] = left
        self.entries = {key: found for key, found in self.entries.items() if found}
        return good

    def keep(
        self,
        positives: Sequence[Candidate],
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int]],
        step: int,
        scorer: Scorer,
    ) -> None:
        """Remember the explanations made at this step, without what was measured of them."""
        if not self.steps or not positives:
            return
        logps = scorer.mean_logp([prompts[c.problem] for c in positives], [c.ids for c in positives]).tolist()
        made: dict[str, list[tuple[int, float, Candidate]]] = {}
        for candidate, logp in zip(positives, logps, strict=True):
            bare = replace(candidate, logp_given_q=None, logp_given_asked=None, answer_lift=None)
            made.setdefault(problems[candidate.problem].id, []).append((step, logp, bare))
        self.entries |= made

    def state_dict(self) -> dict[str, Any]:
        return dict(self.entries)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = dict(state)

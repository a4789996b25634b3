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
    entries: dict[str, tuple[int, float, Candidate]] = field(default_factory=dict)  # step, log π(c|q) then, explanation

    def find(
        self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]], step: int, scorer: Scorer
    ) -> list[Candidate]:
        """What is still good for these problems; what is too old, or too unlikely by now, is dropped."""
        self.entries = {key: entry for key, entry in self.entries.items() if step - entry[0] <= self.steps}
        held = [i for i, p in enumerate(problems) if p.id in self.entries]
        if not held:
            return []
        found = [self.entries[problems[i].id] for i in held]
        now = scorer.mean_logp([prompts[i] for i in held], [candidate.ids for _, _, candidate in found]).tolist()
        good = []
        for i, (_, then, candidate), logp in zip(held, found, now, strict=True):
            if then - logp > self.max_drop:
                self.entries.pop(problems[i].id, None)
            else:
                good.append(replace(candidate, problem=i))
        return good

    def keep(
        self,
        positives: Sequence[Candidate],
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int]],
        step: int,
        scorer: Scorer,
    ) -> None:
        """Remember the explanations made at this step."""
        if not self.steps or not positives:
            return
        logps = scorer.mean_logp([prompts[c.problem] for c in positives], [c.ids for c in positives]).tolist()
        for candidate, logp in zip(positives, logps, strict=True):
            self.entries[problems[candidate.problem].id] = (step, logp, candidate)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.entries)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = dict(state)

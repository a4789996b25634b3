"""Where positives come from: nothing, the expert's solution, or the policy's explanation of the known answer.

A positive is always trained on under the solve prompt q alone. What the sampler thought of an explanation belongs to
π(·|q, a*) and never reaches a ratio or a weight.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expo.data.problem import Problem
from expo.positives.filters import rejection
from expo.positives.schedules import GATES, SCHEDULES
from expo.prompts import Prompts
from expo.randomness import EXPLAIN, Key
from expo.rollout.engine import Completion, Request
from expo.schema import Aggregation, Explainer, Filter, Gate, Schedule, Selection
from expo.verifier import Verifier

# (completion token ids of candidates, indices of their problems) -> mean log π(c|q) per token [N]
Scorer = Callable[[list[list[int]], list[int]], Tensor]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible positive for one problem of the step; `rejected` says why it is not used, if it is not."""

    problem: int
    ids: list[int]
    text: str
    rejected: str | None
    logp_given_qa: float | None  # mean per token, under the prompt that shows the answer


@dataclass(frozen=True)
class PositiveSource:
    """What every source shares: the weight of its stream, and the gate that decides which problems get a positive."""

    weight: float = 0.0
    schedule: Schedule = Schedule.constant
    aggregation: Aggregation = Aggregation.token_mean
    gate: Gate = Gate.always
    filters: Sequence[Filter] = tuple(Filter)

    @property
    def writer(self) -> Explainer | None:
        """Which policy writes; None for a source that generates nothing."""
        return None

    def refreshes_snapshot(self, step: int) -> bool:
        """Whether the explaining snapshot becomes the current policy before this step."""
        return False

    def weight_at(self, done: float, all_wrong: float) -> float:
        """β for a step; see `SCHEDULES`."""
        return self.weight * SCHEDULES[self.schedule.name](done, all_wrong)

    def wanted(self, all_wrong: Sequence[bool]) -> list[int]:
        """Indices of the problems that get a positive, given which groups are all wrong."""
        return [i for i, wrong in enumerate(all_wrong) if GATES[self.gate.name](wrong)]

    @property
    def joins_rollouts(self) -> bool:
        """Whether explanations are known to be wanted before the rollouts, by the same weights: one generation call."""
        return self.writer is Explainer.current and self.gate is Gate.always

    def requests(
        self,
        problems: Sequence[Problem],
        wanted: Sequence[int],
        prompts: Prompts,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        step: int,
    ) -> list[Request]:
        """What to generate for the wanted problems."""
        return []

    def candidates(
        self,
        problems: Sequence[Problem],
        wanted: Sequence[int],
        explanations: Sequence[Completion],
        tokenizer: PreTrainedTokenizerBase,
        verifier: Verifier,
        max_tokens: int,
    ) -> list[Candidate]:
        """Candidates for the wanted problems, filtered."""
        return []

    def choose(self, candidates: Sequence[Candidate], scorer: Scorer) -> list[Candidate]:
        """At most one usable candidate per problem."""
        return _first([c for c in candidates if c.rejected is None], scorer)


class NoPositives(PositiveSource):
    """Plain GRPO."""

    def wanted(self, all_wrong: Sequence[bool]) -> list[int]:
        return []


@dataclass(frozen=True)
class ExpertSolution(PositiveSource):
    """The data set's worked solution: correct, and unlikely under the policy."""

    def candidates(self, problems, wanted, explanations, tokenizer, verifier, max_tokens) -> list[Candidate]:
        solutions = [(i, text) for i in wanted if (text := problems[i].solution) is not None]
        verdicts = verifier.verify([text for _, text in solutions], [problems[i].answer for i, _ in solutions])
        found = []
        for (i, text), verdict in zip(solutions, verdicts, strict=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            found.append(
                Candidate(i, ids, text, rejection(text, len(ids) > max_tokens, verdict, (), self.filters), None)
            )
        return found


@dataclass(frozen=True)
class SelfExplanation(PositiveSource):
    """c̃ ~ π(·|q, a*): the prompt shows the answer and asks for a derivation of it (ExPO)."""

    explainer: Explainer = Explainer.reference
    snapshot_every: int = 20
    samples: int = 1
    selection: Selection = Selection.first
    leak_phrases: Sequence[str] = ()

    @property
    def writer(self) -> Explainer:
        return self.explainer

    def refreshes_snapshot(self, step: int) -> bool:
        return step % self.snapshot_every == 0

    def requests(self, problems, wanted, prompts, tokenizer, seed, step) -> list[Request]:
        ids = prompts.explain_ids(tokenizer, [problems[i] for i in wanted])
        return [
            Request(tuple(prompt), Key(seed, EXPLAIN, step, i * self.samples + s))
            for i, prompt in zip(wanted, ids, strict=True)
            for s in range(self.samples)
        ]

    def candidates(self, problems, wanted, explanations, tokenizer, verifier, max_tokens) -> list[Candidate]:
        if not explanations:
            return []
        owners = [i for i in wanted for _ in range(self.samples)]
        texts = tokenizer.batch_decode([e.ids for e in explanations], skip_special_tokens=True)
        verdicts = verifier.verify(texts, [problems[i].answer for i in owners])
        return [
            Candidate(
                i,
                e.ids,
                text,
                rejection(text, e.truncated, verdict, self.leak_phrases, self.filters),
                sum(e.logp) / len(e.logp),
            )
            for i, e, text, verdict in zip(owners, explanations, texts, verdicts, strict=True)
        ]

    def choose(self, candidates: Sequence[Candidate], scorer: Scorer) -> list[Candidate]:
        usable = [c for c in candidates if c.rejected is None]
        return SELECTIONS[self.selection.name](usable, scorer)


def _first(usable: list[Candidate], scorer: Scorer) -> list[Candidate]:
    """The first candidate of each problem."""
    return list({c.problem: c for c in reversed(usable)}.values())[::-1]


def _most_likely(usable: list[Candidate], scorer: Scorer) -> list[Candidate]:
    """The candidate most in-distribution: largest mean log π(c̃|q) per token."""
    if not usable:
        return []
    scores = scorer([c.ids for c in usable], [c.problem for c in usable])
    order = torch.argsort(scores, stable=True).tolist()  # ascending, so that the best of each problem is written last
    best = {usable[i].problem: usable[i] for i in order}
    return [best[problem] for problem in sorted(best)]


SELECTIONS: dict[str, Callable[[list[Candidate], Scorer], list[Candidate]]] = {
    "first": _first,
    "most_likely": _most_likely,
}

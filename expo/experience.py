"""What one step has to learn from: plain data, no behaviour."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expo.data.problem import Problem
from expo.prompts import Prompts
from expo.rollout.engine import Completion, Sampling
from expo.verifier import Verdict, Verifier


class Timer:
    """Seconds spent per part of a step."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Tools:
    """What it takes to write and check completions."""

    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    verifier: Verifier
    sampling: Sampling
    seed: int
    longest_prompt: int  # tokens of a prompt that shows a solution or a hint; an engine has room for no more

    def texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Completions for the verifier and for people; never encoded again."""
        return self.tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True) if len(ids) else []


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible positive for one problem of the step; `rejected` says why it is not used, if it is not."""

    problem: int
    ids: list[int]
    text: str
    rejected: str | None = None
    asked: tuple[int, ...] | None = (
        None  # the prompt that it was written for, which shows the answer; None: not written
    )
    # Measured under the policy before its update, where measured at all; means are per token, lifts in nats.
    logp_given_q: float | None = None
    logp_given_asked: float | None = None
    answer_lift: float | None = None  # log π(a*|q, c) - log π(a*|q, own completion)


@dataclass
class Experience:
    """One step's data. P problems, G rollouts each; row p * G + g is rollout g of problem p."""

    problems: list[Problem]
    prompts: list[tuple[int, ...]]  # [P] solve prompts q
    step: int = 0
    first: int = 0  # problems that the step has sampled before these
    completions: list[Completion] = field(default_factory=list)  # [P * G]
    texts: list[str] = field(default_factory=list)  # [P * G]
    verdicts: list[Verdict] = field(default_factory=list)  # [P * G]
    correct: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # [P, G], 1 right; without any hint
    rewards: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # [P, G], of `completions`, hinted or not
    hinted: list[int] = field(default_factory=list)  # problems whose rollouts were made again with a hint
    candidates: list[Candidate] = field(default_factory=list)  # every explanation or expert solution considered
    positives: list[Candidate] = field(default_factory=list)  # what is learned from
    reused: int = 0  # of them, from the cache
    generated_tokens: int = 0  # by the step itself
    timer: Timer = field(default_factory=Timer)

    @property
    def group_size(self) -> int:
        return len(self.completions) // len(self.prompts)

    @property
    def all_wrong(self) -> Tensor:
        """[P], True where no rollout is right."""
        return ~self.correct.bool().any(dim=1)

    def select(self, chosen: Sequence[int]) -> "Experience":
        """The given problems, in that order, as a step of their own, with a new timer."""
        g, places = self.group_size, list(enumerate(chosen))
        rows = [p * g + j for p in chosen for j in range(g)]
        candidates, positives = (
            [replace(c, problem=i) for i, p in places for c in found if c.problem == p]
            for found in (self.candidates, self.positives)
        )
        return Experience(
            [self.problems[p] for p in chosen], [self.prompts[p] for p in chosen], self.step, self.first,
            [self.completions[r] for r in rows], [self.texts[r] for r in rows], [self.verdicts[r] for r in rows],
            self.correct[list(chosen)], self.rewards[list(chosen)], [i for i, p in places if p in self.hinted],
            candidates, positives,
        )  # fmt: skip

    def join(self, other: "Experience") -> "Experience":
        """Both, as one step; the other's problems come after these."""
        shift = len(self.problems)
        moved, positives = (
            [replace(c, problem=c.problem + shift) for c in found] for found in (other.candidates, other.positives)
        )
        timer = Timer()
        for seconds in (self.timer.seconds, other.timer.seconds):
            for part, spent in seconds.items():
                timer.seconds[part] = timer.seconds.get(part, 0.0) + spent
        return Experience(
            self.problems + other.problems, self.prompts + other.prompts, self.step, self.first,
            self.completions + other.completions, self.texts + other.texts, self.verdicts + other.verdicts,
            torch.cat([self.correct, other.correct]), torch.cat([self.rewards, other.rewards]),
            self.hinted + [p + shift for p in other.hinted], self.candidates + moved, self.positives + positives,
            self.reused + other.reused, self.generated_tokens + other.generated_tokens, timer,
        )  # fmt: skip

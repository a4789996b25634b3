"""What one step has to learn from: plain data, made once by the stages of `expo.step.pipeline`."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expo.ground.problem import Problem
from expo.ground.ranks import ALONE, Ranks
from expo.model.prompts import Prompts
from expo.rollout.engine import Completion, Sampling
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier

log = logging.getLogger(__name__)
T = TypeVar("T")


class Timer:
    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add({stage: time.perf_counter() - started})

    def add(self, seconds: Mapping[str, float]) -> None:
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


@dataclass(frozen=True)
class Tools:
    """Tokenizer, prompts, verifier and sampling: what it takes to write and check completions."""

    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    verifier: Verifier
    sampling: Sampling
    seed: int
    longest_prompt: int  # tokens of a prompt that shows a solution or a hint; an engine has room for no more
    ranks: Ranks = ALONE

    def texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Decode completions for the verifier and for people; they are never encoded again."""
        return self.tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True) if len(ids) else []

    def wrong_answer(self, group: "Group") -> str | None:
        """Return the final answer of a group's first rollout that states a wrong one; None where none does."""
        judged = zip(group.texts, group.verdicts, strict=True)
        wrong = (self.verifier.extraction.of(text) for text, verdict in judged if verdict is Verdict.INCORRECT)
        return next((answer for answer in wrong if answer is not None), None)

    def fitting(self, prompts: Mapping[T, Sequence[int]], step: int, left_out: str) -> dict[T, tuple[int, ...]]:
        """Return the prompts of at most `longest_prompt` tokens; warn how many others there are. Args: left_out, words
        for those."""
        fitting = {key: tuple(ids) for key, ids in prompts.items() if len(ids) <= self.longest_prompt}
        if left := len(prompts) - len(fitting):
            log.warning("step %d: %d %s: over %d tokens", step, left, left_out, self.longest_prompt)
        return fitting


@dataclass(frozen=True, slots=True)
class Candidate:
    """Possible positive of one problem; `rejected` names the filter that rejects it, if one does."""

    ids: list[int]
    text: str
    rejected: str | None = None
    prompt: tuple[int, ...] | None = None  # the one it was written for, which shows the answer; None: not written
    # Measured under the policy before its update, where measured at all; means are per token, lifts in nats.
    logp_given_q: float | None = None
    logp_given_qa: float | None = None
    answer_lift: float | None = None  # log π(a*|q, c) less the median of log π(a*|q, own completion)

    def unmeasured(self) -> "Candidate":
        return replace(self, logp_given_q=None, logp_given_qa=None, answer_lift=None)


Candidates = dict[int, list[Candidate]]  # by index of the problem in its step


@dataclass(frozen=True)
class Batch:
    """The problems of a step before anything is generated."""

    problems: list[Problem]
    prompts: list[tuple[int, ...]]  # [P] solve prompts q
    step: int = 0
    offset: int = 0  # problems that the step has sampled before these

    @classmethod
    def of(cls, problems: list[Problem], tools: Tools, step: int, offset: int = 0) -> "Batch":
        prompts = tools.prompts.solve_ids(tools.tokenizer, problems)
        return cls(problems, [tuple(ids) for ids in prompts], step, offset)


@dataclass(frozen=True)
class Group:
    """One problem of a step with its G judged rollouts, candidates and positives. After a hint, `before_hint` is the
    group without; the first `kept` rollouts are the same in both."""

    problem: Problem
    prompt: tuple[int, ...]  # the solve prompt q
    completions: list[Completion]  # [G]
    texts: list[str]  # [G]
    verdicts: list[Verdict]  # [G]
    rewards: list[float]  # [G]
    before_hint: "Group | None" = None
    kept: int = 0
    candidates: list[Candidate] = field(default_factory=list)  # every explanation or expert solution considered
    positives: list[Candidate] = field(default_factory=list)  # those of them that are learned from

    @property
    def unaided(self) -> "Group":
        """Return the group as it was before any hint."""
        return self.before_hint or self

    @property
    def hinted(self) -> list[bool]:
        """Return which rollouts were made with a hint: `[G]`."""
        return [self.before_hint is not None and row >= self.kept for row in range(len(self.completions))]

    @property
    def correct(self) -> list[bool]:
        """Return which rollouts are right without a hint: `[G]`."""
        return [verdict is Verdict.CORRECT for verdict in self.unaided.verdicts]

    @property
    def all_wrong(self) -> bool:
        """Return whether no rollout is right without a hint; true of an empty group, too."""
        return not any(self.correct)


Groups = Mapping[int, Group]  # judged groups by index of the problem in its step


@dataclass
class Experience:
    """What one step learns from: P groups of G rollouts. `training_step` sets `positive_weight` before the update."""

    groups: list[Group]
    step: int = 0
    positive_weight: float = 0.0  # β, annealed: of the positives, where they are an auxiliary term of the loss
    gives_hints: bool = False
    reused: int = 0  # positives from the cache
    generated_tokens: int = 0  # of rollouts, hints and explanations
    banked_tokens: int = 0  # of them, explanations from the bank, whichever run wrote them
    timer: Timer = field(default_factory=Timer)
    hint_reliance: float | None = None  # see `Pipeline.reliance`; None where it was not measured
    shared_s: float = 0.0  # correction of the run's seconds for explanations from the bank: `BankedEngine.shared_s`
    hidden_s: float | None = None  # of its collection, while the step before was trained on; None where never ahead
    writer: str = ""  # who wrote the rollouts, where that is not the policy as it is now: `pairs`, `snapshot`

    @property
    def problems(self) -> list[Problem]:
        """Return the problem of each group: `[P]`."""
        return [group.problem for group in self.groups]

    @property
    def positives(self) -> list[tuple[Group, Candidate]]:
        return [(group, candidate) for group in self.groups for candidate in group.positives]

    @property
    def rewards(self) -> Tensor:
        """Return the rewards of the rollouts, with hints where there are any: `[P, G]`."""
        return torch.tensor([group.rewards for group in self.groups])

    @property
    def all_wrong(self) -> Tensor:
        """Return `[P]`, True where no rollout is right without a hint."""
        return torch.tensor([group.all_wrong for group in self.groups])

    def select(self, chosen: Sequence[int]) -> "Experience":
        """Return the groups of the given indices, in that order. Timer, token counts and β begin at 0: no cost counts
        twice."""
        groups = [self.groups[i] for i in chosen]
        return Experience(groups, self.step, gives_hints=self.gives_hints, writer=self.writer)

    def __add__(self, other: "Experience") -> "Experience":
        """Join two experiences into one step; the groups of `other` come last."""
        timer = Timer(self.timer.seconds)
        timer.add(other.timer.seconds)
        return replace(
            self,
            groups=self.groups + other.groups,
            reused=self.reused + other.reused,
            generated_tokens=self.generated_tokens + other.generated_tokens,
            banked_tokens=self.banked_tokens + other.banked_tokens,
            timer=timer,
            hint_reliance=other.hint_reliance if self.hint_reliance is None else self.hint_reliance,
            shared_s=self.shared_s + other.shared_s,
        )

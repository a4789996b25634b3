"""What one step has to learn from: plain data, made once by the stages of `expo.step.pipeline`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expo.data.problem import Problem
from expo.devices.ranks import ALONE, Ranks
from expo.model.prompts import Prompts
from expo.rollout.engine import Completion, Sampling
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier


class Timer:
    """Seconds spent in each stage of a step."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add({stage: time.perf_counter() - started})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by stage."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


@dataclass(frozen=True)
class Tools:
    """What it takes to write and check completions."""

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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible positive for one problem of the step; `rejected` says why it is not used, if it is not."""

    problem: int  # its index in the step
    ids: list[int]
    text: str
    rejected: str | None = None
    prompt: tuple[int, ...] | None = None  # the one it was written for, which shows the answer; None: not written
    # Measured under the policy before its update, where measured at all; means are per token, lifts in nats.
    logp_given_q: float | None = None
    logp_given_qa: float | None = None
    answer_lift: float | None = None  # log π(a*|q, c) - log π(a*|q, own completion)


@dataclass(frozen=True)
class Batch:
    """The problems of a step before anything is generated."""

    problems: list[Problem]
    prompts: list[tuple[int, ...]]  # [P] solve prompts q
    step: int = 0
    offset: int = 0  # problems that the step has sampled before these

    @classmethod
    def of(cls, problems: list[Problem], tools: Tools, step: int, offset: int = 0) -> "Batch":
        """Return the problems of a step with their prompts."""
        prompts = tools.prompts.solve_ids(tools.tokenizer, problems)
        return cls(problems, [tuple(ids) for ids in prompts], step, offset)


@dataclass(frozen=True)
class Group:
    """One problem's rollouts, judged; four lists of G. After a hint, `before_hint` is what it was without."""

    completions: list[Completion]
    texts: list[str]
    verdicts: list[Verdict]
    rewards: list[float]
    before_hint: "Group | None" = None

    @property
    def unaided(self) -> "Group":
        """Return the group as it was before any hint."""
        return self.before_hint or self

    @property
    def correct(self) -> list[bool]:
        """Return which rollouts are right without a hint."""
        return [verdict is Verdict.CORRECT for verdict in self.unaided.verdicts]

    @property
    def all_wrong(self) -> bool:
        """Return whether no rollout is right without a hint; true of an empty group, too."""
        return not any(self.correct)


@dataclass
class Experience:
    """One step's data. P problems, G rollouts each; row p * G + g is rollout g of problem p.

    `correct` and `unaided` are those of the rollouts before any hint, `rewards` those of `completions`, hinted or not.
    """

    problems: list[Problem]
    prompts: list[tuple[int, ...]]  # [P] solve prompts q
    step: int = 0
    offset: int = 0  # problems that the step has sampled before these
    completions: list[Completion] = field(default_factory=list)  # [P * G]
    texts: list[str] = field(default_factory=list)  # [P * G]
    verdicts: list[Verdict] = field(default_factory=list)  # [P * G]
    correct: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # [P, G], 1 right
    unaided: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # [P, G], rewards
    rewards: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # [P, G]
    hinted: list[int] = field(default_factory=list)  # problems whose rollouts were made again with a hint
    keep: int | None = None  # of each of them, how many rollouts stayed as they were; None where nothing gives hints
    candidates: list[Candidate] = field(default_factory=list)  # every explanation or expert solution considered
    positives: list[Candidate] = field(default_factory=list)  # what is learned from
    reused: int = 0  # of them, from the cache
    generated_tokens: int = 0  # of rollouts, hints and explanations
    banked_tokens: int = 0  # of them, written before the run
    timer: Timer = field(default_factory=Timer)
    hint_reliance: float | None = None  # see `Pipeline.reliance`; None where it was not measured
    # Seconds that other runs spent on what this one learns from, less what it spent for others: tokens are counted so, too.
    shared_s: float = 0.0
    # Rollouts before any hint, and their verdicts, `[P * G]`; None where there are no hints: then they are `completions`.
    before_hints: list[tuple[Completion, Verdict]] | None = None
    writer: str = ""  # who wrote the rollouts, where that is not the policy as it is now: `pairs`, `snapshot`

    @property
    def sampled(self) -> list[tuple[Completion, Verdict]]:
        """Return the rollouts as they are without a hint, with their verdicts: `[P * G]`."""
        if self.before_hints is not None:
            return self.before_hints
        return list(zip(self.completions, self.verdicts, strict=True))

    @classmethod
    def of(cls, batch: Batch, groups: Mapping[int, Group]) -> "Experience":
        """Put the judged groups of a batch in order."""
        found = [groups[i] for i in range(len(batch.problems))]
        return cls(
            batch.problems, batch.prompts, batch.step, batch.offset,
            completions=[c for g in found for c in g.completions],
            texts=[t for g in found for t in g.texts],
            verdicts=[v for g in found for v in g.verdicts],
            correct=torch.tensor([[float(right) for right in g.correct] for g in found]),
            unaided=torch.tensor([g.unaided.rewards for g in found]),
            rewards=torch.tensor([g.rewards for g in found]),
            hinted=[i for i, g in enumerate(found) if g.before_hint],
            before_hints=[
                pair for g in found for pair in zip(g.unaided.completions, g.unaided.verdicts, strict=True)
            ] if any(g.before_hint for g in found) else None,
        )  # fmt: skip

    @property
    def group_size(self) -> int:
        return len(self.completions) // len(self.prompts)

    def made_with_hint(self, problem: int, rollout: int) -> bool:
        """Return whether a rollout of a problem was made with a hint."""
        return problem in self.hinted and rollout >= (self.keep or 0)

    @property
    def all_wrong(self) -> Tensor:
        """Return `[P]`, True where no rollout is right."""
        return ~self.correct.bool().any(dim=1)

    def select(self, chosen: Sequence[int]) -> "Experience":
        """Return the given problems, in that order, as a step of their own, with a new timer."""
        g, places = self.group_size, list(enumerate(chosen))
        rows = [p * g + j for p in chosen for j in range(g)]
        candidates, positives = (
            [replace(c, problem=i) for i, p in places for c in found if c.problem == p]
            for found in (self.candidates, self.positives)
        )
        correct, unaided, rewards = (t[list(chosen)] for t in (self.correct, self.unaided, self.rewards))
        return Experience(
            [self.problems[p] for p in chosen], [self.prompts[p] for p in chosen], self.step, self.offset,
            [self.completions[r] for r in rows], [self.texts[r] for r in rows], [self.verdicts[r] for r in rows],
            correct, unaided, rewards, [i for i, p in places if p in self.hinted], self.keep, candidates, positives,
            before_hints=None if self.before_hints is None else [self.before_hints[r] for r in rows], writer=self.writer,
        )  # fmt: skip

    def join(self, other: "Experience") -> "Experience":
        """Return both as one step; the other's problems come after these."""
        shift, timer = len(self.problems), Timer(self.timer.seconds)
        timer.add(other.timer.seconds)
        candidates, positives = (
            [replace(c, problem=c.problem + shift) for c in found] for found in (other.candidates, other.positives)
        )
        correct, unaided, rewards = (
            torch.cat(both)
            for both in (
                (self.correct, other.correct),
                (self.unaided, other.unaided),
                (self.rewards, other.rewards),
            )
        )
        return Experience(
            self.problems + other.problems, self.prompts + other.prompts, self.step, self.offset,
            self.completions + other.completions, self.texts + other.texts, self.verdicts + other.verdicts,
            correct, unaided, rewards, self.hinted + [p + shift for p in other.hinted], self.keep,
            self.candidates + candidates, self.positives + positives,
            self.reused + other.reused, self.generated_tokens + other.generated_tokens,
            self.banked_tokens + other.banked_tokens, timer,
            other.hint_reliance if self.hint_reliance is None else self.hint_reliance,
            self.shared_s + other.shared_s,
            [*self.sampled, *other.sampled] if self.before_hints or other.before_hints else None, self.writer,
        )  # fmt: skip

"""From problems to what the losses need: rollouts, verdicts, rewards and positives of one step."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expo.config import UserError
from expo.data.problem import Problem
from expo.positives.sources import Candidate, PositiveSource
from expo.prompts import Prompts
from expo.randomness import PROBLEMS, SOLVE, Key
from expo.rollout.engine import Completion, Engine, Request, Sampling
from expo.verifier import Verdict, Verifier

log = logging.getLogger(__name__)

# (prompts, completions), both as token ids -> mean log-probability per completion token [N]
MeanLogp = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Tensor]


class Timer:
    """Seconds spent per part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


@dataclass
class Experience:
    """One step's data. P problems, G rollouts each; row p * G + g is rollout g of problem p."""

    problems: list[Problem]
    prompts: list[tuple[int, ...]]  # [P] solve prompts q
    completions: list[Completion]  # [P * G]
    texts: list[str]  # [P * G]
    verdicts: list[Verdict]  # [P * G]
    rewards: Tensor  # [P, G], 1 correct, 0 not
    candidates: list[Candidate]  # every explanation or expert solution considered
    positives: list[Candidate]  # at most one per problem
    explanation_tokens: int
    timer: Timer = field(default_factory=Timer)

    @property
    def all_wrong(self) -> Tensor:
        """[P], True where no rollout is right."""
        return self.rewards.amax(dim=1) == 0


class ProblemSampler:
    """Which problems step t trains on: consecutive slices of one permutation per epoch, a function of (seed, t) alone."""

    def __init__(self, problems: Sequence[Problem], per_step: int, seed: int):
        self.problems, self.per_step, self.seed = problems, per_step, seed

    def batch(self, step: int) -> list[Problem]:
        """The `per_step` problems of `step`."""
        count = len(self.problems)
        positions = range(step * self.per_step, (step + 1) * self.per_step)
        orders = {
            e: Key(self.seed, PROBLEMS, e).generator().permutation(count) for e in {p // count for p in positions}
        }
        return [self.problems[orders[p // count][p % count]] for p in positions]


@dataclass
class Collector:
    """Runs the generating half of a step. `engine` has the policy's weights, `explainer` those that explain.

    `explainer` is the very same object as `engine` where the current policy explains.
    """

    engine: Engine
    explainer: Engine
    verifier: Verifier
    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    source: PositiveSource
    sampling: Sampling
    seed: int

    def collect(self, step: int, problems: list[Problem], group_size: int, mean_logp: MeanLogp) -> Experience:
        """Generate, verify and choose positives for one step. `mean_logp` scores under the policy."""
        timer = Timer()
        prompts = [tuple(ids) for ids in self.prompts.solve_ids(self.tokenizer, problems)]
        rows = len(problems) * group_size
        solve = [Request(prompts[i // group_size], Key(self.seed, SOLVE, step, i)) for i in range(rows)]
        joined = range(len(problems)) if self.source.joins_rollouts else ()
        with timer("rollout"):
            generated = self.engine.generate([*solve, *self._explain(problems, joined, step)], self.sampling)
        completions, explanations = generated[:rows], generated[rows:]
        with timer("verify"):
            texts = self.tokenizer.batch_decode([c.ids for c in completions], skip_special_tokens=True)
            verdicts = self.verifier.verify(texts, [problems[i // group_size].answer for i in range(rows)])
        rewards = torch.tensor([float(v is Verdict.CORRECT) for v in verdicts]).view(len(problems), group_size)
        wanted = self.source.wanted((rewards.amax(dim=1) == 0).tolist())
        with timer("explain"):
            if not joined:
                late = self._explain(problems, wanted, step)
                explanations = self.explainer.generate(late, self.sampling) if late else []
            candidates = self.source.candidates(
                problems, wanted, explanations, self.tokenizer, self.verifier, self.sampling.max_tokens
            )
            positives = self.source.choose(candidates, lambda ids, owners: mean_logp([prompts[i] for i in owners], ids))
        return Experience(
            problems, prompts, completions, texts, verdicts, rewards, candidates, positives,
            explanation_tokens=sum(len(e.ids) for e in explanations), timer=timer,
        )  # fmt: skip

    def _explain(self, problems: list[Problem], wanted: Sequence[int], step: int) -> list[Request]:
        return self.source.requests(problems, wanted, self.prompts, self.tokenizer, self.seed, step)


def within_length(
    problems: list[Problem], prompts: Sequence[Callable[..., list[list[int]]]], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Problem]:  # fmt: skip
    """The problems all of whose prompts (made by the given functions) fit `max_tokens`; how many do not is logged.

    Raises UserError where none does.
    """
    lengths = zip(*(map(len, make_ids(tokenizer, problems)) for make_ids in prompts), strict=True)
    kept = [p for p, length in zip(problems, lengths, strict=True) if max(length) <= max_tokens]
    if not kept:
        raise UserError(
            f"rollout.max_prompt_tokens={max_tokens}: every prompt is longer; raise it, and look at prompts"
        )
    if len(kept) < len(problems):
        dropped = len(problems) - len(kept)
        log.warning("skipped %d problems: prompt longer than rollout.max_prompt_tokens=%d", dropped, max_tokens)
    return kept

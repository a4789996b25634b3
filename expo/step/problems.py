"""Which problems a step trains on."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from expo.config import UserError
from expo.data.account import Part, extremes
from expo.ground.problem import Problem
from expo.rollout.noise import PROBLEMS, REFILL, RETRY, NoiseKey

log = logging.getLogger(__name__)
AT_ONCE = 4096  # prompts that are made before the next are


class ProblemSampler:
    """Deals problems to steps: consecutive slices of one permutation per epoch, a function of (seed, step) alone."""

    def __init__(self, problems: Sequence[Problem], per_step: int, seed: int):
        self.problems, self.per_step, self.seed = problems, per_step, seed

    def batch(self, step: int) -> list[Problem]:
        return self.at(range(step * self.per_step, (step + 1) * self.per_step))

    def at(self, positions: Sequence[int]) -> list[Problem]:
        """Return the problems at some positions of the endless row of epochs."""
        count = len(self.problems)
        orders = {e: _order(self.seed, e, count) for e in {p // count for p in positions}}
        return [self.problems[orders[p // count][p % count]] for p in positions]

    def refill(self, step: int, number: int) -> list[Problem]:
        """Return another batch of problems for `step`, drawn at random; `number` counts the batches from 1."""
        rng = NoiseKey(self.seed, REFILL, step, number).generator()
        chosen = rng.choice(len(self.problems), self.per_step, replace=len(self.problems) < self.per_step)
        return [self.problems[i] for i in chosen]


class Retries:
    """Deals a sampler's problems in their order, but one whose last n groups gave no gradient with probability retry^n
    (GRESO, 2506.02177). Who deals has to `learn` after each step. Where a whole epoch was passed over in one step, the
    next problems are dealt as they come."""

    def __init__(self, sampler: ProblemSampler, retry: float):
        self.sampler, self.retry = sampler, retry
        self.place = 0  # in the sampler's row of epochs
        self.idle: dict[str, int] = {}  # by problem id: its groups in a row without a gradient
        self.passed = 0  # over, by the last deal

    def deal(self) -> list[Problem]:
        sampler, dealt = self.sampler, list[Problem]()
        self.passed = 0
        while missing := sampler.per_step - len(dealt):
            for problem in sampler.at(range(self.place, self.place + missing)):
                drawn = NoiseKey(sampler.seed, RETRY, 0, self.place).generator().random()
                self.place += 1
                if drawn < self.retry ** self.idle.get(problem.id, 0) or self.passed >= len(sampler.problems):
                    dealt.append(problem)
                else:
                    self.passed += 1
        return dealt

    def learn(self, problems: Sequence[Problem], with_gradient: Collection[int]) -> None:
        """Note which problems of a step gave a gradient. Args: with_gradient, their indices."""
        for i, problem in enumerate(problems):
            self.idle[problem.id] = 0 if i in with_gradient else self.idle.get(problem.id, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "idle": dict(self.idle)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the position in the problems, and each one's count of groups without a gradient. The position never
        moves back: after a rollback to an earlier policy, the next problems follow."""
        self.place, self.idle = max(self.place, state["place"]), dict(state["idle"])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return NoiseKey(seed, PROBLEMS, epoch).generator().permutation(count)


def within_length(
    problems: list[Problem],
    prompts: Sequence[Callable[[PreTrainedTokenizerBase, Sequence[Problem]], list[list[int]]]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> tuple[list[Problem], Part]:
    """Return the problems all of whose prompts, by these functions, fit `max_tokens`, and the account of all; log how
    many do not. Raises UserError where none does."""
    lengths = [
        max(map(len, each))
        for start in range(0, len(problems), AT_ONCE)  # the ids of a large file's prompts are many times its size
        for each in zip(*(make(tokenizer, problems[start : start + AT_ONCE]) for make in prompts), strict=True)
    ]
    fitting = [p for p, length in zip(problems, lengths, strict=True) if length <= max_tokens]
    if not fitting:
        raise UserError(
            f"rollout.max_prompt_tokens={max_tokens}: every prompt is longer; raise it as far as the model has room, "
            "and look at prompts"
        )
    if len(fitting) < len(problems):
        dropped = len(problems) - len(fitting)
        log.warning(
            "skipped %d problems: prompt longer than %d tokens (rollout.max_prompt_tokens, and the room that the "
            "model has)",
            dropped,
            max_tokens,
        )
    return fitting, Part(len(fitting), len(problems) - len(fitting), extremes(lengths))

"""Which problems a step trains on."""

import logging
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from expo.config import UserError
from expo.data.account import Part, spread
from expo.data.problem import Problem
from expo.rollout.noise import PROBLEMS, REFILL, Key

log = logging.getLogger(__name__)


class ProblemSampler:
    """Deals problems to steps: consecutive slices of one permutation per epoch, a function of (seed, step) alone."""

    def __init__(self, problems: Sequence[Problem], per_step: int, seed: int):
        self.problems, self.per_step, self.seed = problems, per_step, seed

    def batch(self, step: int) -> list[Problem]:
        """Return the `per_step` problems of `step`."""
        count = len(self.problems)
        positions = range(step * self.per_step, (step + 1) * self.per_step)
        orders = {
            e: Key(self.seed, PROBLEMS, e).generator().permutation(count) for e in {p // count for p in positions}
        }
        return [self.problems[orders[p // count][p % count]] for p in positions]

    def refill(self, step: int, number: int) -> list[Problem]:
        """Return as many further problems for `step`, drawn at random; `number` counts from 1."""
        rng = Key(self.seed, REFILL, step, number).generator()
        chosen = rng.choice(len(self.problems), self.per_step, replace=len(self.problems) < self.per_step)
        return [self.problems[i] for i in chosen]


def within_length(
    problems: list[Problem],
    prompts: Sequence[Callable[[PreTrainedTokenizerBase, Sequence[Problem]], list[list[int]]]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> tuple[list[Problem], Part]:
    """Return the problems all of whose prompts (made by the given functions) fit `max_tokens`, and the account of all.

    Logs how many do not fit. Raises UserError where none does.
    """
    lengths = [max(each) for each in zip(*(map(len, make(tokenizer, problems)) for make in prompts), strict=True)]
    kept = [p for p, length in zip(problems, lengths, strict=True) if length <= max_tokens]
    if not kept:
        raise UserError(
            f"rollout.max_prompt_tokens={max_tokens}: every prompt is longer; raise it, and look at prompts"
        )
    if len(kept) < len(problems):
        dropped = len(problems) - len(kept)
        log.warning("skipped %d problems: prompt longer than rollout.max_prompt_tokens=%d", dropped, max_tokens)
    return kept, Part(len(kept), len(problems) - len(kept), spread(lengths))

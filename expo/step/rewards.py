"""What a judged rollout is worth: `reward=`. A reward of one's own is a class with this constructor and this call."""

import math
from collections.abc import Sequence
from typing import Protocol

from expo.config import RewardConf, UserError
from expo.data.problem import Problem
from expo.verifier.answers import Verdict


class Reward(Protocol):
    """One number per rollout, from which advantages are made. pass@k, gates and `reward/all_wrong_frac` go by verdicts."""

    def __call__(
        self, problems: Sequence[Problem], texts: Sequence[str], verdicts: Sequence[Verdict]
    ) -> Sequence[float]:
        """Return the reward of each of N rollouts. Args: three sequences of N; the problem of each rollout, its text, its verdict."""


class Correct:
    """1 for a right answer, 0 for any other."""

    def __init__(self, conf: RewardConf):
        self.conf = conf

    def __call__(
        self, problems: Sequence[Problem], texts: Sequence[str], verdicts: Sequence[Verdict]
    ) -> Sequence[float]:
        return [float(verdict is Verdict.CORRECT) for verdict in verdicts]


def rewards_of(
    reward: Reward, problems: Sequence[Problem], texts: Sequence[str], verdicts: Sequence[Verdict]
) -> list[float]:
    """Return finite rewards, one per rollout. Raises UserError where a reward of the user's own gives anything else."""
    if not texts:
        return []  # nothing to judge: a reward need not know of it
    values = [float(value) for value in reward(problems, texts, verdicts)]
    if len(values) != len(texts):
        raise UserError(
            f"reward={type(reward).__name__}: {len(values)} rewards for {len(texts)} rollouts; return one each"
        )
    bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is not None:
        raise UserError(
            f"reward={type(reward).__name__}: {values[bad]} for a rollout of problem {problems[bad].id}; return finite numbers"
        )
    return values

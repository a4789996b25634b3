"""Rewards: what a judged rollout is worth, `reward=`. A reward of your own is a class with this constructor and this
call."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from expo.config import RewardConf, UserError
from expo.ground.problem import Problem
from expo.verifier.answers import Verdict


@dataclass(frozen=True, slots=True)
class Rollout:
    """Judged completion as a reward sees it; `problem.columns` are the columns of its data row."""

    problem: Problem
    text: str
    verdict: Verdict
    tokens: int
    truncated: bool
    step: int
    score: float  # 1 for a right answer, else the judge's partial score, mostly 0


class Reward(Protocol):
    """One number per rollout, from which advantages are made; pass@k, gates and `all_wrong_frac` go by verdicts."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float]:
        """Return the reward of each of N rollouts: whole groups, one after the other. How many come in one call depends
        on the engine and on the number of devices."""


class Correct:
    """1 for a right answer, 0 for any other, and with `reward.truncated=zero` for one that was cut off."""

    def __init__(self, conf: RewardConf):
        self.conf = conf

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float]:
        spared = self.conf.truncated == "count"
        return [float(r.verdict is Verdict.CORRECT and (spared or not r.truncated)) for r in rollouts]


class Partial(Correct):
    """1 for a right answer, else its judge's score; with `reward.truncated=zero` 0 for one that was cut off."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float]:
        spared = self.conf.truncated == "count"
        return [r.score if spared or not r.truncated else 0.0 for r in rollouts]


def rewards_of(reward: Reward, rollouts: Sequence[Rollout]) -> list[float]:
    """Return finite rewards, one per rollout. Raises UserError where a reward of the user's own gives anything else."""
    if not rollouts:
        return []  # nothing to judge: a reward need not know of it
    values = [float(value) for value in reward(rollouts)]
    if len(values) != len(rollouts):
        raise UserError(
            f"reward={type(reward).__name__}: {len(values)} rewards for {len(rollouts)} rollouts; return one each"
        )
    bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is not None:
        raise UserError(
            f"reward={type(reward).__name__}: {values[bad]} for a rollout of problem {rollouts[bad].problem.id}; "
            "return finite numbers"
        )
    return values


def check_reward(reward: Reward) -> Reward:
    """Return a reward. Raises UserError for one that does not take the rollouts alone, as before version 0.4."""
    try:
        inspect.signature(reward).bind([])
    except TypeError as error:
        raise UserError(
            f"reward={type(reward).__name__}: cannot be called with the rollouts alone ({error}); "
            "write __call__(self, rollouts), each of which has problem, text, verdict, tokens, truncated and step"
        ) from error
    return reward

"""Anneal the positives' weight β (`positives.weight`) and the learning rate over a run. KL's coefficient and DPO's
temperature (`algorithm.kl_coef`, `algorithm.beta`) stay constant."""

import math
from collections.abc import Callable

from expo.config import OptimizerConf, PositiveLossConf, functions_of

# share of the run's steps done in [0, 1] -> what is left of the learning rate; `Updates.take_step` applies it, after a
# warm-up that counts optimizer steps
DECAY: dict[str, Callable[[float], float]] = functions_of(
    OptimizerConf,
    "schedule",
    {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1.0 - done,
        "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    },
)


# share of the run done, or of all-wrong groups in this step, in [0, 1] -> factor on positives.weight
SCHEDULES: dict[str, Callable[[float], float]] = functions_of(
    PositiveLossConf, "schedule", {**DECAY, "all_wrong_fraction": lambda share: share}
)


def weight_at(learning: PositiveLossConf, done: float, all_wrong: float) -> float:
    """Return β by its schedule. Args: done, share of the run; all_wrong, share of the groups; both in [0, 1]."""
    share = all_wrong if learning.schedule == "all_wrong_fraction" else done
    return learning.weight * SCHEDULES[learning.schedule](share)

"""When a step asks for explanations."""

from enum import Enum

from expo.config.algorithm import AlgorithmConf
from expo.config.positives import PositivesConf


class When(Enum):
    """The three moments at which a step can ask for explanations."""

    WITH_ROLLOUTS = "in the same call as the rollouts, from its start"
    AS_GROUPS_END = "in the same call, for each problem when its last rollout has ended and is judged"
    AFTERWARDS = "in a call of its own, after all rollouts are judged and hints are given"


def when_explained(positives: PositivesConf, algorithm: AlgorithmConf) -> When:
    """Decide when explanations are asked for; the later, the less of a decoding batch they share with the rollouts.

    One call needs one set of weights: that of the policy that makes the rollouts. From the start, it also has to be known
    that every problem gets an explanation, and what is shown for it.
    """
    makes_rollouts = "snapshot" if algorithm.uses_snapshot else "current"
    if positives.writer != makes_rollouts or positives.asks_after == "hints":
        return When.AFTERWARDS
    if positives.asks_after == "nothing" and positives.explains_all and not algorithm.uses_snapshot:
        return When.WITH_ROLLOUTS
    return When.AS_GROUPS_END if algorithm.group_size else When.AFTERWARDS

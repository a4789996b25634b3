"""Decide when a step asks for explanations, and which weights it needs beside the policy's."""

from enum import Enum

from expo.config.algorithm import AlgorithmConf
from expo.config.positives import PositivesConf
from expo.config.run import Config


class When(Enum):
    """The three moments at which a step can ask for explanations."""

    WITH_ROLLOUTS = "in the same call as the rollouts, from its start"
    AS_GROUPS_END = "in the same call, for each problem when its last rollout has ended and is judged"
    AFTERWARDS = "in a call of its own, after all rollouts are judged and hints are given"


def explanation_timing(positives: PositivesConf, algorithm: AlgorithmConf) -> When:
    """Decide when a step asks for explanations. Asked for later, they share less of a decoding batch with the rollouts.

    One call needs one set of weights: that of the policy that makes the rollouts. From the start, it also has to be
    known that every problem gets an explanation, and what is shown for it.
    """
    makes_rollouts = "snapshot" if algorithm.uses_snapshot else "current"
    if positives.writer != makes_rollouts or positives.waits_for == "hints":
        return When.AFTERWARDS
    if positives.waits_for == "nothing" and positives.explains_all and not algorithm.uses_snapshot:
        return When.WITH_ROLLOUTS
    return When.AS_GROUPS_END if algorithm.group_size else When.AFTERWARDS


def frozen_copies(cfg: Config) -> tuple[bool, bool]:
    """Return whether copies of the initial policy and of an earlier policy stay in memory."""
    algorithm, writers = cfg.algorithm, {cfg.hints.writer}
    if not cfg.positives.from_bank(algorithm):  # where the policy itself writes them, before its first step
        writers.add(cfg.positives.writer)
    # A LoRA policy without its adapter is the initial one. An engine of its own has a copy, and so has who begins
    # again.
    lora, rounds = cfg.model.lora_rank > 0, algorithm.uses_snapshot
    writes = "reference" in writers and not (lora and cfg.rollout.in_place)
    initial = (algorithm.uses_reference and not lora) or writes
    return rounds or initial, rounds or "snapshot" in writers

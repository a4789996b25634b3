"""Gates: which groups may get a positive.

The whole rule of who is explained stands at `expo.step.pipeline.Pipeline`. With gate=always, explanations may be
generated beside the rollouts, before any verdict (`expo.config.explaining`).
"""

from collections.abc import Callable

from expo.config import SourceConf, functions_of

# whether all rollouts of a problem were wrong -> whether it may get a positive
GATES: dict[str, Callable[[bool], bool]] = functions_of(
    SourceConf, "gate", {"always": lambda all_wrong: True, "all_wrong": lambda all_wrong: all_wrong}
)

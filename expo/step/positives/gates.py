"""Gates: which groups may get a positive.

Of those, a source's `to_explain` names the ones that are explained (STaR: only those without a right rollout), and a
problem whose explanation is in the cache is not asked again. With gate=always, explanations may be generated beside
the rollouts, before any verdict (`expo.config.explaining`).
"""

from collections.abc import Callable

from expo.config import SourceConf, functions_of

# whether all rollouts of a problem were wrong -> whether it may get a positive
GATES: dict[str, Callable[[bool], bool]] = functions_of(
    SourceConf, "gate", {"always": lambda all_wrong: True, "all_wrong": lambda all_wrong: all_wrong}
)

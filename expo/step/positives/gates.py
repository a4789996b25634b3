"""Gates: which groups get a positive, and so are explained."""

from collections.abc import Callable

from expo.config import SourceConf, functions_of

# whether all rollouts of a problem were wrong -> whether it gets a positive
GATES: dict[str, Callable[[bool], bool]] = functions_of(
    SourceConf, "gate", {"always": lambda all_wrong: True, "all_wrong": lambda all_wrong: all_wrong}
)

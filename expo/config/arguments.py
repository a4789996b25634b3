"""What is read of a command line before Hydra reads it."""

import difflib
import importlib.util
import shutil
from collections.abc import Sequence

from expo.config.errors import UserError


def take_options(arguments: Sequence[str], **options: str) -> tuple[dict[str, str], list[str]]:
    """Return the key=value options of a command, over their defaults, and the other arguments.

    Raises UserError for a key that is nearly one of them, and for numbers of seeds or jobs that are none.
    """
    rest = []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if sign and key in options:
            options[key] = value
        elif sign and (meant := difflib.get_close_matches(key, options, 1, 0.8)):
            raise UserError(f"{argument}: no such option; did you mean {meant[0]}=…?")
        else:
            rest.append(argument)
    for key in {"seeds", "jobs"} & options.keys():
        if options[key] and not (options[key].isdigit() and int(options[key]) >= 1):
            raise UserError(f"{key}={options[key]}: not a number of {key}; use {key}=1 or more")
    return options, rest


def check_launcher(arguments: Sequence[str]) -> None:
    """Raise UserError for a launcher that cannot start anything here."""
    for argument in arguments:
        if argument == "hydra/launcher=slurm" and shutil.which("srun") is None:
            raise UserError(f"{argument}: this machine has no srun; start it on a login node of the cluster")
        if argument == "hydra/launcher=ray" and importlib.util.find_spec("ray") is None:
            raise UserError(f"{argument}: Ray is not installed; install it with make setup EXTRA=ray")

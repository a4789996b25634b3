"""`expo wandb`: what people click together in W&B by hand, and offline runs sent in order."""

from collections.abc import Callable, Sequence
from pathlib import Path

from expo.config import UserError, take_options

USAGE = """\
usage: expo wandb sync      [FOLDER]                                        send offline runs that are not sent yet, oldest first
"""


def main(arguments: list[str]) -> int:
    """Run one of the subcommands. Returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE, end="")
        return 0
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        raise UserError(f"wandb {name}: no such command; use one of {', '.join(SUBCOMMANDS)}")
    return SUBCOMMANDS[name](rest)


def sync(arguments: Sequence[str]) -> int:
    """Send the offline runs under a folder."""
    from expo.runs.sync import sync as send

    _, folders = take_options(arguments)
    if len(folders) > 1:
        raise UserError(f"{folders[1]}: one folder at a time; give the one that all runs are under")
    return send(Path(folders[0] if folders else "outputs"))


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"sync": sync}

"""Arguments of a command line that are read before Hydra reads the rest."""

import difflib
import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from expo.config.errors import UserError
from expo.config.foreign import UNREADABLE, content, why, yaml_text
from expo.config.key import flat, shown


def take_options(arguments: Sequence[str], **options: str) -> tuple[dict[str, str], list[str]]:
    """Return the key=value options of a command, over their defaults, and the other arguments.

    Raises UserError for a key that is nearly one of them, for numbers of seeds or jobs that are none, and for another
    answer than true or false.
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
        if options[key] and not (options[key].isdecimal() and int(options[key]) >= 1):
            raise UserError(f"{key}={options[key]}: not a number of {key}; use {key}=1 or more")
    for key in {"yes", "finals", "dry_run", "kept"} & options.keys():
        if options[key] not in ("true", "false"):
            raise UserError(f"{key}={options[key]}: neither true nor false; use {key}=true")
    return options, rest


def from_files(arguments: Sequence[str]) -> list[str]:
    """Expand `key=@FILE` in a command line: a text file stands for its text, a YAML file for its keys.

    Raises UserError for a file that cannot be read.
    """
    return [one for argument in arguments for one in _from_file(argument)]


def _from_file(argument: str) -> Iterator[str]:
    match = re.fullmatch(r"([\w.]+)=@(.+)", argument)
    if match is None:
        yield argument
        return
    key, path = match[1], Path(match[2])
    try:
        keys = path.suffix in (".yaml", ".yml")
        tree = yaml.safe_load(yaml_text(path)) if keys else content(path).decode().removesuffix("\n")
    except UNREADABLE as error:
        raise UserError(f"{argument}: the file cannot be read ({why(error)}); give another, or the value") from error
    if not isinstance(tree, str) and not (isinstance(tree, dict) and tree):
        raise UserError(f"{argument}: has no keys; write lines such as solve: … in it, or give a file of text")
    for name, value in flat(tree, key).items():
        yield f"{name}={_written(value)}"


def _written(value: Any) -> str:
    """Return a value so that Hydra reads it unchanged."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return quoted(value) if isinstance(value, str) else shown(value)


def no_reference(text: str) -> str:
    """Escape `${`, so that OmegaConf reads it as text."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)


def quoted(text: str) -> str:
    """Quote a text so that Hydra reads exactly that text as the value."""
    text = no_reference(text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def check_launcher(arguments: Sequence[str]) -> None:
    """Raise UserError for a launcher that cannot start anything here."""
    for argument in arguments:
        if argument == "hydra/launcher=slurm" and shutil.which("srun") is None:
            raise UserError(f"{argument}: this machine has no srun; start it on a login node of the cluster")
        if argument == "hydra/launcher=ray" and importlib.util.find_spec("ray") is None:
            raise UserError(f"{argument}: Ray is not installed; install it with make setup EXTRA=ray")

"""Read small files that others may have written: plain files of a bounded size, parsed to plain data of the shape that
a run writes.

Opening a fifo would wait for ever, YAML's aliases can make gigabytes of a few bytes, and a value of another kind would
end in a stack trace wherever it is used. Imports nothing heavy.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from expo.config.errors import UserError, first_line
from expo.config.key import flat, shown

LARGEST = 2**24  # bytes; a config or a summary has some thousand
DEEPEST = 32  # levels of a config
LONGEST = 19  # digits of a whole number, which is below LIMIT: tables hold no larger one, and a seed may be as large
LIMIT = 2**63
# What reading a file that is not as it should be raises.
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)

Check = Callable[[Any], bool]


def content(path: Path) -> bytes:
    """Read a file of anyone. Raises ValueError where it is large or no plain file, OSError where it is missing."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no plain file")
        if status.st_size > LARGEST:
            raise ValueError(f"it has {status.st_size / 2**20:.0f} MiB, and {LARGEST / 2**20:.0f} are read")
        return file.read()


def from_json(text: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for other text, and for a whole number of many digits."""
    parsed = json.loads(text, parse_int=_whole)
    if not isinstance(parsed, dict):
        raise ValueError("it is no JSON object")
    return parsed


def _whole(digits: str) -> int:
    if len(digits) > LONGEST or int(digits) >= LIMIT:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def yaml_text(path: Path) -> str:
    """Return a YAML file as text. Raises UNREADABLE where it is not safe to load: it has aliases, or nests deeply."""
    text, depth = content(path).decode(), 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias (*{event.anchor}), which no config of expo has")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it nests deeper than {DEEPEST} levels")
    return text


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LIMIT


def or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def named(check: Check) -> Check:
    """Return a check of JSON objects, all of whose values must pass `check`."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def is_metric(name: str, value: Any) -> bool:
    """Return whether a value is a number or None; the interval of an unknown value may reach infinitely far."""
    endless = name.endswith(("_lo", "_hi")) and value in (math.inf, -math.inf)
    return value is None or is_number(value) or endless


def is_metrics(value: Any) -> bool:
    """Return whether a value is the metrics of an evaluation: a lower end of an interval comes with an upper one."""
    ends = ("", "_lo", "_hi")
    return (isinstance(value, dict) and all(is_metric(*item) for item in value.items())) and all(
        value.get(name.removesuffix("_lo") + end) is not None for name in value if name.endswith("_lo") for end in ends
    )


def is_setting(value: Any) -> bool:
    """Return whether a key may have a value: not YAML's dates, bytes and sets. {} is a group without keys."""
    if isinstance(value, list):
        return all(map(is_setting, value))
    return value is None or value == {} or isinstance(value, bool | str | float) or is_whole(value)


SUMMARY: dict[str, Check] = {
    **dict.fromkeys(("status", "identity", "id", "arm", "name", "device"), is_text),
    **dict.fromkeys(("model_commit", "final", "reason", "part"), is_text),
    **dict.fromkeys(("seed", "step", "problems"), is_whole),
    "git": or_none(is_text),
    "versions": named(is_text),
    "wall_s": is_number,
    "metrics": is_metrics,
    "data": named(is_text),
    "collapses": lambda value: isinstance(value, list),
    "peak_memory_mb": named(or_none(is_number)),
}
CONFIG: dict[str, Check] = {
    **dict.fromkeys(("dataset.name", "model.path"), is_text),
    **dict.fromkeys(("dataset.path", "dataset.eval_path", "differs", "logger.wandb.project"), or_none(is_text)),
    "trainer.max_steps": is_whole,
}


def summary_of(directory: Path) -> dict[str, Any]:
    """Return a run's summary. Raises UNREADABLE where it is missing or malformed."""
    summary = from_json(content(directory / "summary.json"))
    _check(summary, SUMMARY)
    return summary


def read_summary(directory: str | Path) -> dict[str, Any]:
    """Return a run's summary; {} where it is missing or damaged, and so does not say that the run is done."""
    try:
        return summary_of(Path(directory))
    except UNREADABLE:
        return {}


def summary_with(directory: Path, *names: str) -> dict[str, Any]:
    """Return a run's summary. Raises UserError where it is missing, or lacks a name."""
    try:
        summary = summary_of(directory)
        if lacking := set(names) - summary.keys():
            raise ValueError(f"it has no {min(lacking)}")
    except UNREADABLE as error:
        problem = f"{directory / 'summary.json'}: cannot be read ({why(error)})"
        raise UserError(f"{problem}; expo train run={directory} writes it again") from error
    return summary


def config_of(directory: Path) -> dict[str, Any]:
    """Return a run's config, flat and not resolved. Raises UNREADABLE where it is missing or malformed."""
    return flat_config(yaml.load(yaml_text(directory / "config.yaml"), Loader=yaml.CSafeLoader))


def flat_config(tree: Any) -> dict[str, Any]:
    """Flatten a config's keys. Raises ValueError where it is no config."""
    if not isinstance(tree, dict) or not all(map(is_text, _names(tree))):
        raise ValueError("it is no config")
    keys = flat(tree)
    _check(keys, dict.fromkeys(keys, is_setting) | CONFIG)
    return keys


def _names(tree: dict[Any, Any]) -> Iterator[Any]:
    for name, value in tree.items():
        yield name
        if isinstance(value, dict):
            yield from _names(value)


def _check(mapping: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    for name, passes in checks.items():
        if name in mapping and not passes(mapping[name]):
            raise ValueError(f"{name} is not what a run leaves: {shown(repr(mapping[name]), 40)}")


def why(error: Exception) -> str:
    """Say in one line what is wrong with a file."""
    return error.strerror or first_line(error) if isinstance(error, OSError) else first_line(error)

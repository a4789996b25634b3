"""All run directories of an output folder, as plain rows that can be filtered and sorted. Imports nothing heavy."""

import operator
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from expo.config.dataset import MEASURING
from expo.config.errors import UserError
from expo.config.foreign import UNREADABLE, config_of, summary_of, why
from expo.config.from_run import run_directory
from expo.config.identity import changing
from expo.config.key import shown
from expo.ground.files import LOCK, is_held
from expo.runs.health import marks_of
from expo.runs.reading import last_evaluation_of, read_lines, read_summary

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A run directory as its files tell it. Nothing in them is resolved or executed."""

    dir: Path
    summary: Mapping[str, Any] = field(repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return every key of config.yaml, flat; {} where it cannot be read."""
        try:
            return config_of(self.dir)
        except UNREADABLE:
            return {}

    @property
    def unreadable(self) -> str:
        """Return why a file of it cannot be read; "" where all can."""
        for name, read in (("summary.json", summary_of), ("config.yaml", config_of)):
            try:
                read(self.dir)
            except UNREADABLE as error:
                return f"{name}: {why(error)}"
        return ""

    @property
    def settings(self) -> dict[str, Any]:
        """Return the keys that change the result, with the seed."""
        return changing(self.config)

    @property
    def command(self) -> str:
        above = self.dir.parent.name  # which may be a link
        return above if above in MEASURING else "train"

    @property
    def status(self) -> str:
        """Return done, stopped, failed, running where a process works on it, or why it cannot be read."""
        if why := self.unreadable:
            return f"cannot be read: {why}"
        status = str(self.summary.get("status", "unknown"))
        return "running" if status != "done" and self.in_use else status

    @property
    def in_use(self) -> bool:
        """Return whether a process holds the run's lock (`Run.alone`)."""
        return is_held(self.dir / LOCK)

    @property
    def row(self) -> Row:
        """Return the run's row for tables, filters and `--json`, in this order: columns, all metrics, all settings by
        key."""
        summary = self.summary
        lines = read_lines(self.dir) if self.command == "train" else []
        # One that has not ended has its last evaluation so far.
        metrics = summary.get("metrics") or last_evaluation_of(lines)
        largest = max((int(m[1]) for name in metrics if (m := re.fullmatch(r"pass@([0-9]{1,9})", name))), default=None)
        path, eval_path = self.config.get("dataset.path"), self.config.get("dataset.eval_path")
        of_other = self.command in MEASURING and self.config.get("dataset.part") != "train"
        file = (eval_path or path) if of_other else (path or eval_path)
        status, told = self.status, _written(self.dir / "summary.json")
        last = max(told, _written(self.dir / "metrics.jsonl"))
        # The summary of a running one is of when it began, or went on.
        since = last - told if status == "running" else 0.0
        columns = {
            "run": str(self.dir),
            "command": self.command,
            "name": summary.get("name"),
            "seed": summary.get("seed"),
            "identity": summary.get("identity"),
            "differs": self.config.get("differs") or "",
            "data": "/".join(filter(None, (str(self.config.get("dataset.name")), Path(file).name if file else ""))),
            "model": self.model,
            "step": max((line["step"] for line in lines), default=None),
            "max_steps": self.config.get("trainer.max_steps") if self.command == "train" else None,
            "status": status,
            "marks": ", ".join(marks_of(summary, lines)),
            "k": largest,
            "pass@k": metrics.get(f"pass@{largest}"),
            "seconds": None if (wall_s := summary.get("wall_s")) is None else round(wall_s + since, 1),
            "size": size_of(self.dir),
            "age": round(time.time() - last),
        }
        # Of two of one name, the column's value counts, then the metric's.
        return {**columns, **metrics, **self.config, **metrics, **columns}

    @property
    def model(self) -> str:
        """Return the model's path; of a run's final model, the run."""
        path = Path(str(self.config.get("model.path")))
        return path.parents[1].name if path.parent.name == "checkpoints" else str(path)


def _written(file: Path) -> float:
    """Return when a file was last written; 0 where there is none."""
    with suppress(OSError):
        return file.stat().st_mtime
    return 0.0


def size_of(directory: Path) -> int:
    """Return the bytes of a run directory's files, without those behind a link, and those that vanish meanwhile."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += Path(folder, name).lstat().st_size
    return total


def find_runs(output_dir: Path) -> list[RunFolder]:
    """Return every run directory in an output folder, of any command. Raises UserError where there is no folder."""
    if not output_dir.is_dir():
        raise UserError(f"output_dir={output_dir}: no such folder; give the one that runs were made in")
    folders = [file.parent for file in sorted(output_dir.glob("*/*/summary.json"))]
    return [RunFolder(folder, read_summary(folder)) for folder in folders if (folder / "config.yaml").is_file()]


def run_folder(text: str) -> RunFolder:
    """Find one run directory by path, pattern or identity. Raises UserError where none or several fit."""
    path = run_directory(text)
    if not all(Path(path, name).is_file() for name in ("config.yaml", "summary.json")):
        problem = "no run directory (it needs config.yaml and summary.json)"
        raise UserError(f"{path}: {problem}; expo runs lists those there are")
    # A relative one that is too short to tell the folders above it.
    return RunFolder(path if len(path.parts) > 2 else path.resolve(), read_summary(path))


FILTER = re.compile(r"([\w.@/]+?)(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def kept(
    rows: Sequence[Row],
    filters: Sequence[str],
    what: str = "run",
    keys: str = "a column, a metric such as pass@4, or a key of the config",
) -> list[Row]:
    """Return the rows that pass every filter: `key=value` with * and ? in the value, `!=`, or `key>=number`.

    Args: what, what a row is of; keys, what a key may be. Raises UserError for a filter that is none, or a key that no
    row has.
    """
    for text in filters:
        match = FILTER.fullmatch(text)
        if match is None:
            raise UserError(f"{text}: no filter; use for example status=done, name=exp_*, trainer.max_steps>=100")
        key, sign, value = match.groups()
        if rows and not any(key in row for row in rows):
            raise UserError(f"{text}: no {what} has {key}; use {keys}")
        rows = [row for row in rows if key in row and _passes(row[key], sign, value)]
    return list(rows)


def _passes(have: Any, sign: str, value: str) -> bool:
    if sign in ("=", "!="):
        return _equals(have, value) is (sign == "=")
    try:
        return isinstance(have, int | float) and COMPARE[sign](have, float(value))
    except ValueError:
        raise UserError(f"{sign}{value}: not a number; compare with = or !=, or with a number") from None


def _equals(have: Any, value: str) -> bool:
    """Return whether a value matches a filter's text: as a number where both are; `*` and `?` stand for any text."""
    try:
        if isinstance(have, int | float) and not isinstance(have, bool):
            return float(have) == float(value)
    except ValueError:
        return False
    pattern = re.escape(value).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, shown(have), re.DOTALL) is not None


def in_order(rows: Sequence[Row], by: str) -> list[Row]:
    """Return the rows sorted by a key, descending behind `-`; rows without it last. Raises UserError as `kept`."""
    key = by.removeprefix("-")
    if rows and not any(key in row for row in rows):
        raise UserError(f"sort={by}: no run has {key}; use a column, a metric such as pass@4, or a key of the config")
    having = [row for row in rows if row.get(key) is not None]
    numbers = all(isinstance(row[key], int | float) for row in having)
    ordered = sorted(having, key=lambda row: row[key] if numbers else shown(row[key]), reverse=by.startswith("-"))
    return ordered + [row for row in rows if row.get(key) is None]

"""Read run directories back, given as strings or paths. Imports nothing heavy."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from expo.config.errors import UserError, first_line
from expo.config.foreign import from_json
from expo.config.foreign import read_summary as read_summary

LONGEST_LINE = 2**20  # bytes; the scalars of a step have some thousand
# Columns that the completions of every step and evaluation have.
COMPLETIONS = {"problem", "question", "answer", "completion", "verdict", "level"}
SCALARS = {int, float, type(None)}


def read_lines(directory: str | Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl, without lines that are no whole record of scalars: damaged, or being written."""
    path = Path(directory, "metrics.jsonl")
    if not path.is_file():
        return []
    with path.open("rb") as file:
        records = [_record(line) for line in iter(lambda: file.readline(LONGEST_LINE), b"")]
    return [r for r in records if type(r.get("step")) is int and set(map(type, r.values())) <= SCALARS]


def _record(text: bytes) -> dict[str, Any]:
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return {}


def read_points(directory: str | Path, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of one scalar, where it is defined."""
    return points_in(read_lines(directory), name)


def points_in(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return (step, value) of one scalar in lines of metrics.jsonl, where it is defined."""
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def last_evaluation(directory: str | Path, step: int | None = None) -> dict[str, Any]:
    """Return the scalars of the last evaluation, or of the one at a step, as in metrics.jsonl; {} where it has none."""
    return last_evaluation_of([line for line in read_lines(directory) if step in (None, line["step"])])


def last_evaluation_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scalars of the last evaluation in lines of metrics.jsonl; {} where there is none."""
    evaluated = [line for line in lines if "loss/total" not in line]
    return {name: value for name, value in evaluated[-1].items() if name != "step"} if evaluated else {}


def percent_of(metrics: Mapping[str, Any], name: str) -> str:
    """Return a rate of summary.json with its interval, in percent; "" where it has none."""
    if f"{name}_lo" not in metrics:
        return ""
    return f"{100 * metrics[name]:.1f} [{100 * metrics[name + '_lo']:.1f}, {100 * metrics[name + '_hi']:.1f}]"


def commit_of(summary: Mapping[str, Any]) -> str:
    """Return the commit that made a run; an installed wheel has none, but a version."""
    return str(summary["git"] or f"none (expo {summary.get('versions', {}).get('expo', 'without a version')})")


def by_step(runs: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[list[float]]]:
    """Return the steps at which all runs that have points have one, and the values: a mean over some would be of
    another set at each step. Args: (step, value) points of each run."""
    of_runs = [dict(run) for run in runs if run]
    steps = sorted(set.intersection(*map(set, of_runs))) if of_runs else []
    return steps, [[values[step] for values in of_runs] for step in steps]


def read_rows(
    path: str | Path, columns: Sequence[str] | None = None, filters: Sequence[tuple[str, str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return a parquet file's rows, or some columns. Args: filters that rows pass, as (column, sign, value).

    Raises UserError for a file that cannot be read.
    """
    try:
        if not Path(path).is_file():  # a fifo would be waited for
            raise ValueError("it is no plain file")
        table = pyarrow.parquet.read_table(path, columns=columns, filters=filters, page_checksum_verification=True)
        if missing := set(columns or ()) - set(table.column_names):
            raise ValueError(f"no column {min(missing)}")
        for field in table.schema:
            if not _is_kind(field.name, field.type):
                raise ValueError(f"its column {field.name} is of {field.type}")
        rows: list[dict[str, Any]] = table.to_pylist()
    except MemoryError:  # of Arrow, too: not the file's fault
        raise
    except (OSError, ValueError, pyarrow.lib.ArrowException) as error:
        why = f"cannot be read ({first_line(error)})"
        raise UserError(f"{path}: {why}; remove the run's directory and make it again") from error
    return rows


def _is_kind(name: str, kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    if name in ("question", "answer", "completion", "verdict", "subject", "positive"):
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind))
    if name == "level":  # a number or a word
        return bool(types.is_integer(kind) or types.is_string(kind) or types.is_null(kind))
    return name != "problem" or not types.is_nested(kind)


def first_rows(path: str | Path, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a parquet file; the others are not read into memory."""
    batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=count)
    return next((batch.to_pylist() for batch in batches), [])


def final_rows(directory: str | Path) -> list[dict[str, Any]]:
    """Return every completion of the last evaluation. Raises UserError where there is none, or it cannot be read."""
    files = sorted(Path(directory, "completions").glob("eval*.parquet"), key=step_in)
    if not files:
        raise UserError(f"{directory}: has no completions of an evaluation; make the run again with fresh=true")
    return completions_in(files[-1])


def completions_in(file: Path, **which: Any) -> list[dict[str, Any]]:
    """Return the rows of a file of completions. Args: see `read_rows`. Raises UserError where one lacks a column."""
    rows = read_rows(file, **which)
    if missing := COMPLETIONS - (rows[0].keys() if rows else COMPLETIONS):
        why = f"cannot be read (no column {min(missing)})"
        raise UserError(f"{file}: {why}; remove the run's directory and make it again")
    return rows


def completions_file(directory: Path, kind: str, step: int | None = None) -> Path:
    """Return a file of completions. Args: kind, train or eval; step; None: the last. Raises UserError for none."""
    candidates = sorted((directory / "completions").glob(f"{kind}*.parquet"), key=step_in)
    files = [file for file in candidates if step in (None, step_in(file))]
    if not files:
        steps = [step_in(file) for file in candidates if step_in(file) >= 0]
        asked = f"{kind} completions" if step is None else f"{kind} completions of step {step}"
        raise UserError(f"{directory}: no {asked}; there are {f'those of steps {steps}' if steps else 'none'}")
    return files[-1]


def step_in(file: Path) -> int:
    """Return the step in the name of a file, such as eval-step000040.parquet; -1 where there is none."""
    match = re.search(r"-step(\d+)$", file.stem)
    return int(match[1]) if match else -1


SAMPLES = 6  # problems of a training step that are kept beside a table


def samples_of(directory: str | Path) -> list[dict[str, Any]]:
    """Return the hardest problems of the last logged training step: positive, first rollout, how many are right."""
    files = sorted(Path(directory, "completions").glob("train-*.parquet"), key=step_in)
    problems: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in completions_in(files[-1]) if files else []:
        problems[row["problem"]].append(row)
    samples = []
    for rows in problems.values():
        verdicts = [row["verdict"] for row in rows if row["verdict"] is not None]
        samples.append(rows[0] | {"right": verdicts.count("correct"), "rollouts": len(verdicts)})
    # Of levels that are words, none is known to be the hardest.
    return sorted(samples, key=lambda r: (r["right"], -r["level"] if isinstance(r["level"], int) else 0))[:SAMPLES]

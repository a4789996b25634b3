"""A table as rows of text, and as Markdown."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from expo.tables.plan import MEASURED, Plan, is_rate

FEW = 3  # a cell made of fewer runs says so
APART = 0.3  # between seeds' rates: as far as seeds lie that take off or do not, and a cell names them
# Of experiments/bench_intervals, over worlds with three seeds or more and rates from 10 to 90 %: least and most.
HELD = (
    "In simulation 92 to 99 % of such intervals of rates, of three seeds or more, hold the truth where seeds vary "
    "around a mean, and 24 to 100 % where a seed takes off or does not, least where all seeds happen to agree: a cell "
    "whose seeds lie more than 30 points apart names them, and warns of those beside it. "
)


def wide_console() -> Console:
    """Return a console of the terminal's width; a wide one where there is none, so that a log has every digit."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=160)


def count_told(count: float) -> str:
    """Return a number of tokens in three digits or more, as a person says it: 840, 4.21 k, 0.143 M, 1.23 M."""
    if count < 99_995:
        return f"{count:.0f}" if count < 1e3 else f"{count / 1e3:.2f} k"
    return f"{count / 1e6:.{2 if count >= 999_500 else 3}f} M"


def cells_of(plan: Plan, record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and the cells of each arm: means with 95 % intervals, pass@k in percent; the paper's
    numbers, where there are any, in columns of their own that say so."""
    scalars = record.get("scalars", plan.scalars)
    if other := next((heading for heading, name in plan.scalars.items() if scalars.get(heading) != name), None):
        raise KeyError(other)
    papers = list(dict.fromkeys(column for numbers in plan.paper.values() for column in numbers or ()))
    differs = any("difference" in arm for arm in record["arms"].values())
    last = (plan.headings or plan.columns)[-1]
    heads = [
        "arm",
        *(plan.headings or plan.columns),
        *(f"paper: {c}" for c in papers),
        *([f"difference in {last}"] if differs else []),
        *plan.scalars,
        "generated tokens",
        "trained tokens",
        "seconds",
        "runs",
    ]
    rows = []
    for key, arm in record["arms"].items():
        marks = ["few"] if arm["runs"] < FEW else []
        marks += [f"{count} {mark}" for mark, count in arm.get("marks", {}).items()]
        runs = f"{arm['runs']}" + (f" ({', '.join(marks)})" if marks else "")
        if not arm["runs"]:
            rows.append([arm["label"], *["–"] * (len(heads) - 2), runs])
            continue
        cells = [_cell(c, arm["columns"][c]) + _some_runs(arm["columns"][c], arm["runs"]) for c in plan.columns]
        cells += [_paper(plan, key, c) for c in papers]
        if differs:
            label = record["arms"][arm["against"]]["label"] if "difference" in arm else ""
            difference = arm["difference"][plan.columns[-1]] if label else None
            few = " (few)" if difference and len(difference["seeds"]) < FEW else ""
            of = _some_runs(difference, arm["runs"])
            cells.append(f"{_cell(plan.columns[-1], difference)} against {label}{of}{few}" if difference else "")
        cells += ["–" if (v := arm["scalars"][heading]) is None else f"{v:.3g}" for heading in plan.scalars]
        *tokens, seconds = (arm["cost"][name] for name in ("generated tokens", "trained tokens", "seconds"))
        cells += ["–" if number is None else count_told(number) for number in tokens]
        rows.append([arm["label"], *cells, f"{seconds:.0f}", runs])
    return heads, rows


def made_by(record: Mapping[str, Any]) -> str:
    """Return the caption: what the numbers are, and the command, commits, machine and date that made them."""
    seconds = "with its part of what runs share"
    if any(arm.get("seconds_alone") for arm in record["arms"].values()):
        seconds = "without the pairs and explanations that another run has made for it"
    again = f"; {record['rendered']}" if record.get("rendered") else ""
    commits = sorted({commit for arm in record["arms"].values() for commit in arm.get("commits", [])})
    return (
        "Means with 95 % intervals over problems and seeds (of a single run over problems alone; docs/tables.md), "
        "pass@k in percent; differences on the same problems and seeds; tokens and seconds per run, seconds "
        f"{seconds}. {HELD}Made by `{record['command']}`, commit {', '.join(commits)}, runs on {record['device']}, "
        f"rendered on {record['rendered_on']}, {record['date']}{again}."
    )


def unlike_problems(record: Mapping[str, Any]) -> str:
    """Return a sentence about arms that were evaluated on unlike numbers of problems; "" where all have the same."""
    counts: dict[str, dict[str, int]] = {}
    for arm in record["arms"].values():
        for column, cell in arm.get("columns", {}).items():
            if cell is not None and is_rate(column):
                counts.setdefault(column, {})[arm["label"]] = cell["problems"]
    unlike = {column: by_arm for column, by_arm in counts.items() if len(set(by_arm.values())) > 1}
    if not unlike:
        return ""
    column, by_arm = next(iter(unlike.items()))
    listed = ", ".join(f"{label} {n}" for label, n in by_arm.items())
    return f"Not all arms are evaluated on as many problems. {column}: {listed}."


def measured_unlike(record: Mapping[str, Any]) -> str:
    """Return a sentence about each difference of two arms that were evaluated otherwise; "" where there is none."""
    told = [
        f"{arm['label']} was evaluated otherwise than {record['arms'][arm['against']]['label']}: "
        + ", ".join(f"{key} is {ours} and {theirs}" for key, (ours, theirs) in arm["measured_otherwise"].items())
        for arm in record["arms"].values()
        if "measured_otherwise" in arm
    ]
    return " ".join(f"{sentence}." for sentence in told)


def markdown(plan: Plan, record: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with how it was made."""
    heads, rows = cells_of(plan, record)
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in (heads, *rows)]
    lines = [f"## {plan.title}", "", lines[0], "|" + "---|" * len(heads), *lines[1:]]
    notes = [made_by(record), unlike_problems(record), measured_unlike(record)]
    return "\n".join([*lines, "", " ".join(filter(None, notes))]) + "\n"


def _some_runs(cell: Mapping[str, Any] | None, runs: int) -> str:
    """Say that some runs have no value for a cell."""
    return f" ({len(cell['seeds'])} of {runs} runs)" if cell and len(cell["seeds"]) < runs else ""


def _cell(column: str, cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    if not is_rate(column):
        places = MEASURED[column.partition("/level")[0]]
        return f"{cell['mean']:.{places}f} [{cell['lo']:.{places}f}, {cell['hi']:.{places}f}]"
    return percent(cell)


def far_apart(seeds: Sequence[float]) -> bool:
    """Return whether the seeds' rates, or differences, lie as far apart as where some take off and some do not."""
    return max(seeds) - min(seeds) > APART


def percent(cell: Mapping[str, Any], sign: str = "") -> str:
    """Return a rate or a difference of rates with its interval, in percent. Where seeds lie far apart, list each seed's
    rate, which tells more than an interval. Args: sign, `+` to show one."""
    mean, low, high = (100 * cell[name] for name in ("mean", "lo", "hi"))
    seeds = ", ".join(f"{round(100 * seed):{sign}d}" for seed in cell["seeds"])
    named = f" (seeds {seeds})" if far_apart(cell["seeds"]) else ""
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]{named}"


def _paper(plan: Plan, arm: str, column: str) -> str:
    if arm not in plan.paper:
        return "–"
    said = (plan.paper[arm] or {}).get(column)
    return "not known" if said is None else str(said)

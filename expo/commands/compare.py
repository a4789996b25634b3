"""`expo compare A B`: two runs, arms or tables on the same problems."""

import glob
from dataclasses import replace
from pathlib import Path

from rich.columns import Columns
from rich.panel import Panel
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from expo.config import UserError, take_options
from expo.config.from_run import run_directory
from expo.report.comparison import Comparison, Side
from expo.report.page import RunData, Table
from expo.tables.render import wide_console

USAGE = """\
usage: expo compare A B [reach=0.5] [show=3]
  A, B: a run directory or its identity; a pattern, whose runs differ in nothing but the seed; TABLE:ARM; TABLE or its results folder
  reach: the pass@4 for which it says how many tokens each took; show: problems gained and lost, with their completions"""  # noqa: E501


def main(arguments: list[str]) -> int:
    options, sides = take_options(arguments, reach="0.5", show="3")
    if len(sides) != 2:
        raise UserError(f"compare: {len(sides)} given, and two are compared; {USAGE.splitlines()[0]}")
    try:
        reach, show = float(options["reach"]), int(options["show"])
    except ValueError as error:
        raise UserError(f"reach, show: {error}; give numbers, such as reach=0.5 show=3") from error
    if not 0 < reach <= 1 or show < 0:
        raise UserError(f"reach={reach:g}, show={show}: reach is a rate above 0 and up to 1, show a number of problems")
    first, second = (arms_of(side) for side in sides)
    pairs = [(first[name], second[name]) for name in first if name in second]
    if len(first) == len(second) == 1:
        pairs = [(next(iter(first.values())), next(iter(second.values())))]
    if not pairs:
        arms = f"{sides[0]} has the arms {', '.join(first)}, {sides[1]} {', '.join(second)}"
        raise UserError(f"{arms}: none in common; name one by TABLE:ARM")
    for a, b in pairs:
        if a.name == b.name:
            a, b = replace(a, name=f"{a.name} ({sides[0]})"), replace(b, name=f"{b.name} ({sides[1]})")
        print_comparison(Comparison(a, b), reach, show)
    return 0


def arms_of(spec: str) -> dict[str, Side]:
    """Return the arms that a user names, by name. Raises UserError for an unknown name."""
    from expo.report.reading import read_runs, read_table, table_request  # a second of imports

    subject, _, wanted = spec.partition(":")
    if (request := table_request(subject, [])) is not None:
        _, runs = read_table(request)
        labels = {arm.label: key for key, arm in request.plan.arms.items()}
        by_arm: dict[str, list[RunData]] = {}
        for run in runs:
            by_arm.setdefault(labels.get(run.arm, run.arm), []).append(run)
        if wanted in request.plan.arms and wanted not in by_arm:  # it may share its runs with another arm
            marks = {run.arm: (run.command, run.mark) for run in request.runs()}
            if sharing := next((arm for arm in by_arm if marks.get(arm) == marks[wanted]), None):
                by_arm[wanted] = by_arm[sharing]
        if by_arm and wanted and wanted not in by_arm:
            raise UserError(f"{spec}: {subject} has no runs of that arm here; use one of {', '.join(by_arm)}")
        chosen = [wanted] if wanted else [key for key, sides in by_arm.items() if any(r.completions for r in sides)]
        if not by_arm or not chosen:
            why = "no completions are kept beside it"
            raise UserError(f"{spec}: {why}; name the table whose runs it shows, or run directories")
        return {key: Side.of(key, by_arm[key]) for key in chosen}
    folders = sorted(glob.glob(spec)) if any(c in spec for c in "*?[") else [str(run_directory(spec))]
    _, runs = read_runs([Path(f) for f in folders if Path(f, "config.yaml").is_file()] or [Path(spec)])
    names = sorted({run.arm for run in runs})
    if len(names) > 1:
        raise UserError(f"{spec}: runs of {len(names)} arms ({'; '.join(names[:3])}); name those of one")
    return {names[0]: Side.of(names[0], runs)}


def print_comparison(comparison: Comparison, reach: float, show: int) -> None:
    console = wide_console()
    one, other = comparison.first.name, comparison.second.name
    metric = comparison.metric
    console.print(f"{one} (first) and {other} (second), {comparison.paired}", style="bold", markup=False)
    if comparison.otherwise:
        console.print(comparison.otherwise, style="bold red", markup=False)
    for mark in (*comparison.first.marks, *comparison.second.marks):
        console.print(mark, style="bold red", markup=False)
    for title, table in (
        ("in percent; the difference is second less first, on the same problems", comparison.differences()),
        (f"{metric} over the steps, in percent", comparison.curve(metric)),
        ("until then (>: where runs never reach it, all of theirs is in the mean)", comparison.costs(metric, reach)),
    ):
        if table[1]:
            console.print(_grid(title, table))
    console.print(f"gained, lost: {comparison.solved} by one of them alone", markup=False)
    for title, side, problems in (("gained", "second", comparison.gained()), ("lost", "first", comparison.lost())):
        named = f": {', '.join(problems[:10])}{', …' if len(problems) > 10 else ''}" if problems else ""
        console.print(f"{title}: {len(problems)} problems that only the {side} solves{named}", markup=False)
        for problem in problems[:show]:
            rows = comparison.beside(problem)
            console.print(Text(f"{title} {problem}   answer {rows[0]['answer']}\n{rows[0]['question']}"))
            panels = [
                Panel(Text(row["completion"]), title=Text(f"{name}: {row['verdict']}"), width=76)
                for name, row in zip((one, other), rows, strict=True)
            ]
            console.print(Columns(panels, equal=True))


def _grid(title: str, table: Table) -> Grid:
    heads, rows = table
    columns = (Column(Text(head), overflow="fold") for head in heads)
    grid = Grid(*columns, title=Text(title), title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid

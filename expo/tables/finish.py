"""From finished runs to the files of a table: numbers, Markdown, figures, kept runs."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from hydra.utils import instantiate
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from expo.config import UserError
from expo.runs.directory import device_name
from expo.runs.reading import read_summary
from expo.tables.aggregate import aggregate, keep_runs
from expo.tables.figures import Curves
from expo.tables.plan import Plan, PlannedRun, table_name
from expo.tables.render import cells_of, markdown, wide_console
from expo.tables.sweep import distinct


def read_record(folder: Path) -> dict[str, Any]:
    """Return table.json of a table that was made. Raises UserError where there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / "table.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'table.json'}: cannot be read ({error}); make the table first") from error
    return record


def finish(
    name: str,
    plan: Plan,
    runs: Sequence[PlannedRun],
    folder: Path,
    command: str,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write table.json, table.md, the figures and the kept runs into `folder`, print the table, return the record.

    Args: earlier, the record of the same table that was made earlier, where it is only rendered again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    today, arms = time.strftime("%Y-%m-%d"), aggregate(plan, runs)
    record = {
        "name": table_name(name),
        "plan": name,
        "title": plan.title,
        "command": earlier["command"] if earlier else command,
        "device": ", ".join(sorted({str(read_summary(run.dir)["device"]) for run in runs if run.done})),
        "rendered_on": device_name(),
        "date": earlier["date"] if earlier else today,
        "rendered": f"rendered again by `{command}`, {today}" if earlier else "",
        "arms": arms,
    }
    for heading, scalar in plan.scalars.items():
        if all(arm["scalars"][heading] is None for arm in arms.values() if "scalars" in arm):
            print(f"scalars: no run has logged {scalar} ({heading}); metrics.jsonl has the names", file=sys.stderr)
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(plan, record))
    if plan.extends is None and earlier is None:  # else they are kept beside the table whose runs they are
        keep_runs([run for run in distinct(runs) if run.done], plan.prepare, folder)
    draw(name, plan, record, runs, folder)
    print_means(plan, record)
    print(f"table and figures: {folder}")
    return record


def draw(name: str, plan: Plan, record: dict[str, Any], runs: Sequence[PlannedRun], folder: Path) -> None:
    """Draw the plan's figures, or a curve of its last column, as PNG and SVG."""
    drawers = {key: instantiate(conf, _convert_="all") for key, conf in plan.figures.items() if conf}
    drawers = drawers or {"curves": Curves()}
    for old in (path for end in ("png", "svg") for path in folder.glob(f"*.{end}") if path.stem not in drawers):
        old.unlink()  # of an earlier plan
    for figure_name, drawer in drawers.items():
        figure = drawer.draw(plan, record, runs)
        figure.savefig(folder / f"{figure_name}.png", dpi=130)
        with plt.rc_context({"svg.hashsalt": table_name(name)}):  # the same picture is the same file
            figure.savefig(folder / f"{figure_name}.svg", metadata={"Date": None})
        plt.close(figure)


def print_means(plan: Plan, record: dict[str, Any]) -> None:
    """Print the arms' own numbers; table.md also has the paper's numbers, differences and cost."""
    heads, rows = cells_of(plan, record)
    width = 1 + len(plan.columns)
    columns = (Column(heading, overflow="fold") for heading in (*heads[:width], heads[-1]))
    shown = Table(*columns, title=plan.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        shown.add_row(*(cell.replace(" [", "\n[") for cell in (*row[:width], row[-1])))
    wide_console().print(shown, markup=False)

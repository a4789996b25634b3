"""From finished runs to the files of a table: numbers, Markdown, figures, kept runs."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from expo.config import UserError
from expo.ground.files import beside
from expo.runs.directory import device_name
from expo.runs.reading import read_summary
from expo.tables.aggregate import aggregate, keep_runs
from expo.tables.figures import drawers_of
from expo.tables.plan import Plan, table_name
from expo.tables.planned import PlannedRun
from expo.tables.render import cells_of, markdown, measured_unlike, wide_console
from expo.tables.request import read_record
from expo.tables.sweep import distinct


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
    drawers = drawers_of(plan)
    with suppress(UserError):  # there is none, or it is damaged: its pictures stay
        for old in set(read_record(folder).get("figures", [])) - drawers.keys():
            for end in ("png", "svg"):
                Path(folder, f"{old}.{end}").unlink(missing_ok=True)
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
        "figures": list(drawers),
        "scalars": plan.scalars,
        "arms": arms,
    }
    for heading, scalar in plan.scalars.items():
        if all(arm["scalars"][heading] is None for arm in arms.values() if "scalars" in arm):
            print(f"scalars: no run has logged {scalar} ({heading}); metrics.jsonl has the names", file=sys.stderr)
    for file, text in {"table.json": json.dumps(record, indent=1) + "\n", "table.md": markdown(plan, record)}.items():
        with beside(folder / file) as partial:
            partial.write_text(text)
    if plan.extends is None and earlier is None:  # else they are kept beside the table whose runs they are
        keep_runs([run for run in distinct(runs) if run.done], plan.prepare, folder)
    for figure_name, drawer in drawers.items():
        figure = drawer.draw(plan, record, runs)
        with beside(folder / f"{figure_name}.png") as partial:
            figure.savefig(partial, dpi=130, format="png")
        # The same picture is the same file.
        with beside(folder / f"{figure_name}.svg") as partial, plt.rc_context({"svg.hashsalt": table_name(name)}):
            figure.savefig(partial, metadata={"Date": None}, format="svg")
        plt.close(figure)
    print_means(plan, record)
    if unlike := measured_unlike(record):
        print(f"expo: {unlike}", file=sys.stderr)
    print(f"table and figures: {folder}")
    return record


def print_means(plan: Plan, record: dict[str, Any]) -> None:
    """Print the arms' own numbers, differences and scalars; table.md also has the paper's numbers and the cost."""
    heads, rows = cells_of(plan, record)
    elsewhere = ("paper: ", "generated tokens", "trained tokens", "seconds")
    chosen = [i for i, heading in enumerate(heads) if i <= len(plan.columns) or not heading.startswith(elsewhere)]
    columns = (Column(heads[i], overflow="fold") for i in chosen)
    shown = Table(*columns, title=Text(plan.title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        shown.add_row(*(row[i].replace(" [", "\n[") for i in chosen))
    wide_console().print(shown, markup=False)

"""`expo diagnose`: the two properties of a good positive (paper Table 1, Figure 2), of each kind of sample."""

from rich.table import Column, Table
from rich.text import Text

from expo.config import Config
from expo.evaluation.kinds import COLUMNS, KINDS, Samples, by_problem, cell, in_words, levels_of
from expo.runs.directory import Run
from expo.runs.processes import importing
from expo.runs.reading import read_rows
from expo.tables.render import wide_console


def diagnose(cfg: Config) -> int:
    """Sample, measure, print the table; parquet, summary and picture go to the run directory."""
    with Run.find(cfg, "diagnose").alone():
        run = Run.find(cfg, "diagnose")
        if run.finished:
            print(run.finished_line)
        else:
            with importing():  # here, since torch and its friends take seconds
                from expo.jobs.measure import measure_samples

            measure_samples(cfg, run)
    print_properties(cfg, read_rows(run.dir / "samples.parquet"), run.summary()["problems"])
    print(f"samples, summary and picture: {run.dir}")
    return 0


def print_properties(cfg: Config, rows: Samples, problems: int) -> None:
    console = wide_console()
    measured = f"{problems} problems, means [95 % interval over problems]"
    console.print(f"{cfg.model.path} on {cfg.dataset.name}: {measured}", markup=False)
    levels = levels_of(rows)
    for level in (levels if len(levels) > 1 else []) + [None]:
        columns = (Column(heading, overflow="fold") for heading in ("problems", *COLUMNS.values()))
        title = "all" if level is None else f"level {level}"
        table = Table(Column("", no_wrap=True), *columns, title=Text(title), title_justify="left")
        for kind, name in KINDS.items():
            if kind not in {row["kind"] for row in rows}:
                continue
            cells = [cell(rows, kind, level, column) for column in COLUMNS]
            shown = ("–" if c is None else f"{c[0]:.3g} [{c[1]:.3g}, {c[2]:.3g}]" for c in cells)
            table.add_row(name, str(len(by_problem(rows, kind, level, "nll"))), *shown)
        console.print(table, markup=False)
    for sentence in in_words(rows):
        console.print(sentence, markup=False, soft_wrap=True)

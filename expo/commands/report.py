"""`expo report`: a page about runs, or about a table of experiments/."""

import json
from pathlib import Path
from typing import Any

from expo.config import UserError, make_folder, take_options
from expo.report.page import Page, RunData, write
from expo.runs.arms import arm_names, settings_of
from expo.runs.reading import final_rows, read_lines, read_rows, read_summary, samples_of
from expo.tables.plan import known_tables, load_plan, plan_file, results_folder, table_name
from expo.tables.render import made_by, rows_of

USAGE = (
    "usage: expo report RUN_DIRECTORY... | TABLE | RESULTS_FOLDER  [scale=cpu] [output=report.html]; "
    "a table is a name in experiments/ with results, as expo table leaves them"
)


def main(arguments: list[str]) -> int:
    """Write the page and say where it is."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    options, subjects = take_options(arguments, scale="cpu", output="")
    if unknown := [s for s in subjects if "=" in s]:
        raise UserError(f"{unknown[0]}: no such option; use scale=… or output=…")
    if not subjects:
        raise UserError(f"report: nothing to report on; {USAGE}")
    output = Path(options["output"] or default_output(subjects, options["scale"]))
    if (folder := table_folder(subjects[0], options["scale"])) is not None:
        if len(subjects) > 1:
            raise UserError(f"{subjects[1]}: one table per page; leave it out, or give run directories only")
        page, runs = read_table(folder)
    else:
        page, runs = read_runs([Path(s) for s in subjects])
    make_folder(output.parent, "output")
    write(page, runs, output)
    print(f"report: {output} ({output.stat().st_size / 1024:.0f} KiB, {len(runs)} runs)")
    return 0


def table_folder(subject: str, scale: str) -> Path | None:
    """Return the results that a subject names; None where it is no table. Raises UserError for a table that has none."""
    if Path(subject, "table.json").is_file():
        return Path(subject)
    if not plan_file(subject).is_file() or Path(subject, "summary.json").is_file():
        return None
    folder = results_folder(subject, scale)
    if not (folder / "table.json").is_file():
        raise UserError(f"{subject}: no results at scale={scale}; make them with expo table {subject} scale={scale}")
    return folder


def plan_of(folder: Path, record: dict[str, Any]) -> str:
    """Return the plan of a table's results: the one beside them, or else what the command named."""
    beside = folder.resolve().parents[1] / "plan.yaml"
    return str(beside) if beside.is_file() else str(record.get("plan") or record["name"])


def default_output(subjects: list[str], scale: str) -> str:
    first = Path(subjects[0])
    return str(
        first / "report.html"
        if first.is_dir() and not (first / "plan.yaml").is_file()
        else Path("outputs", "reports", f"{table_name(subjects[0])}-{scale}.html")
    )


def read_table(folder: Path) -> tuple[Page, list[RunData]]:
    """Return a table's results, as `expo table` has kept them."""
    record = json.loads((folder / "table.json").read_text())
    name = plan_of(folder, record)
    plan = load_plan(name)
    try:
        heads, rows = rows_of(plan, record)
    except KeyError as error:
        raise UserError(
            f"{folder}: made by another plan (no {error} in it); render it again with expo table {name}"
        ) from error
    tables = {
        part: read_rows(path) if (path := folder / f"{part}.parquet").is_file() else []
        for part in ("metrics", "completions", "samples")
    }
    runs = []
    kept_runs = folder / "runs.json"  # not there beside a figure that shows another table's runs
    for kept in json.loads(kept_runs.read_text()) if kept_runs.is_file() else []:
        own = {
            part: [row for row in rows if (row["arm"], row["seed"]) == (kept["arm"], kept["seed"])]
            for part, rows in tables.items()
        }
        lines = [json.loads(row["line"]) for row in own["metrics"]]
        label = record["arms"][kept["arm"]]["label"]
        runs.append(RunData(label, kept["seed"], kept["summary"], lines, own["completions"], own["samples"]))
    notes = (
        []
        if kept_runs.is_file()
        else [f"Its runs are those of {plan.extends}: expo report {plan.extends} shows their curves and samples."]
    )
    return Page(plan.title, made_by(record), heads, rows, notes, sorted(folder.glob("*.png"))), runs


def read_runs(directories: list[Path]) -> tuple[Page, list[RunData]]:
    """Return the page and data of run directories. Those that differ in nothing but the seed are runs of one arm."""
    runs: list[RunData] = []
    known = ", ".join(known_tables())
    directories = list(dict.fromkeys(path.resolve() for path in directories))  # a run given twice is one run
    summaries = [read_summary(directory) for directory in directories]
    for directory, summary in zip(directories, summaries, strict=True):
        if not summary or not (directory / "config.yaml").is_file():
            raise UserError(
                f"{directory}: no run directory and no table; give one that has a summary.json, or one of {known}"
            )
    settings = [settings_of(directory) for directory in directories]
    names = arm_names(summaries, settings)
    for directory, summary, name in zip(directories, summaries, names, strict=True):
        evaluated = any((directory / "completions").glob("eval*.parquet"))
        rows = final_rows(directory) if evaluated else []
        runs.append(RunData(name, summary["seed"], summary, read_lines(directory), rows, samples_of(directory)))
    metrics = [n for n in runs[0].summary["metrics"] if n.startswith("pass@") and not n.endswith(("_lo", "_hi"))]
    shown: list[list[str]] = []
    for directory, run in zip(directories, runs, strict=True):
        m = run.summary["metrics"]
        cells = (
            f"{100 * m[n]:.1f} [{100 * m[n + '_lo']:.1f}, {100 * m[n + '_hi']:.1f}]" if n in m else "–" for n in metrics
        )
        shown.append([run.arm, str(run.seed), run.summary["status"], *cells, directory.name])
    data = [str(own["dataset.name"]) for own in settings]
    commits = ", ".join(sorted({str(run.summary["git"]) for run in runs}))
    made = f"pass@k of the last evaluation in percent, with 95 % intervals over problems. Commit {commits}, {runs[0].summary['device']}."
    title = f"{', '.join(dict.fromkeys(run.arm for run in runs))} on {', '.join(dict.fromkeys(data))}"
    return Page(title, made, ["arm", "seed", "status", *metrics, "run"], shown), runs

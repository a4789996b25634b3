"""Read the subject of a report, run directories or a table's saved results, into a page."""

import json
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from expo.config import UserError
from expo.config.foreign import summary_with
from expo.config.naming import NO_RUNS
from expo.report.page import Page, RunData, Table
from expo.report.settings import data_sentences, differing
from expo.report.solving import read_solving
from expo.runs.arms import arm_names, settings_in, settings_of
from expo.runs.health import collapses_of, marks_of
from expo.runs.listing import RunFolder
from expo.runs.reading import commit_of, final_rows, percent_of, read_lines, read_summary, samples_of
from expo.tables.kept import by_run
from expo.tables.plan import known_tables, load_plan, plan_file
from expo.tables.planned import PlannedRun
from expo.tables.render import cells_of, made_by
from expo.tables.request import Request, kept_records, read_record

log = logging.getLogger(__name__)


def table_request(subject: str, options: Sequence[str]) -> Request | None:
    """Return the request that `expo table` would make of a table's name and options; None for no table.

    A folder with results is the table that they are of, made by the command that is kept with them.
    """
    if Path(subject, "table.json").is_file():
        record = read_record(Path(subject))
        beside = Path(subject).resolve().parents[1] / "plan.yaml"
        plan = str(beside) if beside.is_file() else str(record.get("plan") or record["name"])  # what the command named
        return replace(Request.parse([plan, *_options_of(record), *options]), results=Path(subject))
    if not plan_file(subject).is_file() or Path(subject, "summary.json").is_file():
        return None
    if any(o.startswith("dry_run=") for o in options):
        raise UserError("dry_run: a report makes no runs; leave it out")
    return Request.parse([subject, *options])


def _options_of(record: Mapping[str, Any]) -> list[str]:
    """Return the options of the command that made a table, without those that only say how."""
    command = str(record.get("command", ""))
    try:
        words = shlex.split(command)[3:]
    except ValueError:  # of before 0.3, without quotes
        words = command.split()[3:]
    return [w for w in words if "=" in w and not w.startswith(("dry_run=", "results="))]


def read_table(request: Request, options: Sequence[str] = ()) -> tuple[Page, list[RunData]]:
    """Return a table's results, as `expo table` has kept them, with its runs' completions where those are at hand.

    Args: options, as the user typed them. Raises UserError for a table that has no results.
    """
    folder = request.folder(request.output_dir)
    if not (folder / "table.json").is_file():
        line = shlex.join(["expo", "table", request.name, *options])
        raise UserError(f"{request.name}: no results in {folder}; make them with {line}")
    record = read_record(folder)
    plan = load_plan(request.name)  # with every arm: whether the record has those of its scale is looked at next
    try:
        heads, rows = cells_of(plan, record)
    except KeyError as error:
        raise UserError(
            f"{folder}: made by another plan (no {error} in it); render it again with expo table {request.name}"
        ) from error
    tables = [by_run(folder / f"{part}.parquet") for part in ("metrics", "completions", "samples")]
    labels = {arm: arm_record["label"] for arm, arm_record in record["arms"].items()}
    runs = []
    path = folder / "runs.json"  # not there beside a figure that shows another table's runs
    kept_runs = kept_records(folder) if path.is_file() else []
    # What is kept may have arms that the table was rendered without since.
    for kept_run in (run for run in kept_runs if run["arm"] in labels and run["arm"] in plan.arms):
        arm, seed = kept_run["arm"], kept_run["seed"]
        metrics, completions, samples = (rows_by_run.get((arm, seed), []) for rows_by_run in tables)
        config = yaml.load(kept_run["config"], Loader=yaml.CSafeLoader)
        settings = {"command": f"expo {plan.arms[arm].command.name}", **settings_in(config)}
        lines = [json.loads(row["line"]) for row in metrics]
        runs.append(RunData(labels[arm], seed, kept_run["summary"], lines, completions, samples, settings))
    notes = []
    if not path.is_file() and plan.extends:
        notes = [f"Its runs are those of {plan.extends}: expo report {plan.extends} shows their curves and samples."]
    of_first = {run.arm: run.settings for run in reversed(runs)}
    settings_of_arms = {label: of_first[label] for label in labels.values() if label in of_first}
    page = Page(
        plan.title,
        made_by(record),
        heads,
        rows,
        notes,
        sorted(folder.glob("*.png")),
        list(labels.values()),
        data_sentences(settings_of_arms),
        differing(settings_of_arms) if settings_of_arms else _settings_by_plan(request, labels),
        read_solving({labels[arm]: directory for arm, directory in _directories(request, record, kept_runs).items()}),
    )
    return page, runs


def _settings_by_plan(request: Request, labels: Mapping[str, str]) -> Table | None:
    """Return each arm's settings by the plan, for runs whose configs are not here."""
    arms = {arm: request.plan.arms[arm] for arm in labels if arm in request.plan.arms}
    overrides = {arm: [*conf.overrides, *request.scale.arms.get(arm, [])] for arm, conf in arms.items()}
    rows = [[labels[arm], f"expo {conf.command.name}", " ".join(overrides[arm])] for arm, conf in arms.items()]
    return (["arm", "command", "overrides"], rows) if rows else None


def _directories(
    request: Request, record: Mapping[str, Any], kept_runs: Sequence[Mapping[str, Any]]
) -> dict[str, Path]:
    """Return the directory of the first finished run of each arm; {} where the runs are not here. Of a run that is
    kept, it is no other: the plan may have changed since."""
    directories: dict[str, Path] = {}
    kept = {(run["arm"], run["seed"]): run["summary"].get("identity") for run in kept_runs}
    planned: list[PlannedRun] = []
    options = _options_of(record)
    given = {o.partition("=")[0] for o in request.overrides}
    more = [o for o in options if o.startswith("output_dir=") and "output_dir" not in given]
    # A page about kept results needs nothing that its runs would need to be made.
    with suppress(UserError, HydraException, OmegaConfBaseException):
        planned = replace(request, overrides=[*request.overrides, *more]).runs()
    for run in planned:
        summary = read_summary(run.dir)
        same = kept.get((run.arm, run.seed)) in (None, summary.get("identity"))
        if run.command == "train" and run.arm in record["arms"] and summary.get("status") == "done" and same:
            directories.setdefault(run.arm, run.dir)
    if not directories and "output_dir" in given and any(run.command == "train" for run in planned):
        where = [o for o in request.overrides if o.startswith("output_dir=")][-1]
        told = f"{where}: no finished run of {request.name} there; the page goes without its steps"
        print(f"expo: {told}", file=sys.stderr)
    return directories


def _read_run(directory: Path) -> RunData:
    """Read a run directory into a RunData without an arm name. Raises UserError where it cannot be read."""
    if not (directory / "config.yaml").is_file():
        raise UserError(
            f"{directory}: no run directory and no table; give one that has a config.yaml and a summary.json, or one "
            f"of {', '.join(known_tables())}"
        )
    if directory.parent.name == "diagnose":
        raise UserError(f"{directory}: a diagnosis; expo runs show {directory} has its numbers")
    summary = summary_with(directory, "name", "seed", "status", "metrics", "git", "device")
    evaluated = any((directory / "completions").glob("eval*.parquet"))
    rows = final_rows(directory) if evaluated else []
    # Which part of its data an evaluation took is no part of its identity: the directory's name tells.
    settings = settings_of(directory) | ({"dataset.part": summary["part"]} if "part" in summary else {})
    lines, samples = read_lines(directory), samples_of(directory)
    return RunData("", summary["seed"], summary, lines, rows, samples, settings)


def read_runs(directories: list[Path]) -> tuple[Page, list[RunData]]:
    """Return the page and data of run directories. Those that differ in nothing but the seed are runs of one arm."""
    directories = list(dict.fromkeys(path.resolve() for path in directories))  # a run given twice is one run
    # outputs/NAME/* holds banks, too; a run may have the name of such a folder
    some = [path for path in directories if path.name not in NO_RUNS or (path / "config.yaml").is_file()]
    directories = some or directories
    read: dict[Path, RunData] = {}
    notes = []
    for directory in directories:
        try:
            read[directory] = _read_run(directory)
        except UserError as error:  # the others are shown
            notes.append(f"Left out: {error}.")
    if not read:
        raise UserError(notes[0].removeprefix("Left out: ").removesuffix("."))
    for note in notes:
        log.warning("%s", note)
    names = arm_names([run.summary for run in read.values()], [run.settings for run in read.values()])
    runs = [replace(run, arm=name) for run, name in zip(read.values(), names, strict=True)]
    notes += [f"{run.arm}, seed {run.seed}: {collapse}." for run in runs for collapse in collapses_of(run.summary)]
    notes += [f"{run.arm}, seed {run.seed}: {mark}." for run in runs for mark in marks_of(run.summary, run.lines)]
    seeds = Counter((run.arm, run.seed) for run in runs)
    twice = "runs of one seed, counted as so many seeds: intervals are too narrow. Give one of them."
    notes += [f"{arm}, seed {seed}: {count} {twice}" for (arm, seed), count in seeds.items() if count > 1]
    left_out = "The bars leave it out where other runs of its arm are done."
    notes += [f"{run.arm}, seed {run.seed}: {run.summary['status']}. {left_out}" for run in runs if not run.finished]
    measured = dict.fromkeys(n for run in runs for n in run.summary["metrics"])
    metrics = [n for n in measured if n.startswith("pass@") and not n.endswith(("_lo", "_hi"))]
    shown: list[list[str]] = []
    for directory, run in zip(read, runs, strict=True):
        m = run.summary["metrics"]
        cells = (percent_of(m, n) or "–" for n in metrics)
        shown.append([run.arm, str(run.seed), run.summary["status"], *cells, directory.name])
    data = [str(run.settings.get("dataset.name")) for run in runs]
    commits, devices = (
        ", ".join(sorted({str(of(run.summary)) for run in runs})) for of in (commit_of, itemgetter("device"))
    )
    caption = "pass@k of the last evaluation in percent, with 95 % intervals over problems. "
    caption += f"Commit {commits}, {devices}."
    title = f"{', '.join(dict.fromkeys(run.arm for run in runs))} on {', '.join(dict.fromkeys(data))}"
    firsts: dict[str, tuple[Path, RunData]] = {}  # of each arm
    for directory, run in zip(read, runs, strict=True):
        firsts.setdefault(run.arm, (directory, run))
    arms = {
        name: {"command": f"expo {RunFolder(at, {}).command}", **run.settings} for name, (at, run) in firsts.items()
    }
    page = Page(
        title,
        caption,
        ["arm", "seed", "status", *metrics, "run"],
        shown,
        notes,
        data=data_sentences(arms),
        differs=differing(arms),
        solving=read_solving({name: directory for name, (directory, _) in firsts.items()}),
    )
    return page, runs

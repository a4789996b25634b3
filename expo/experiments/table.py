"""`expo table`: plan the arms and seeds of a table, make what is missing, aggregate, and render beside the paper's numbers."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from hydra.utils import instantiate
from rich.box import SIMPLE_HEAD
from rich.table import Table

from expo.config import UserError, take_options
from expo.experiments.aggregate import aggregate, cost_of, keep_runs
from expo.experiments.figures import Curves
from expo.experiments.plan import EXPERIMENTS, Plan, PlannedRun, Scale, load_plan, plan_runs, read_summary
from expo.experiments.render import markdown, rows_of, wide_console
from expo.experiments.sweep import distinct, make, prepare, to_prepare, why
from expo.run import device_name
from expo.schema import WandbLoggerConf

if TYPE_CHECKING:
    from expo.experiments.cost import Cost

USAGE = (
    "usage: expo table NAME [scale=cpu] [seeds=N] [jobs=N] [dry_run=true] [output_dir=outputs] [results=FOLDER] "
    "[hydra/launcher=…] [HYDRA OVERRIDES...]; runs that are finished are not made again"
)

AT_A_TIME = {"local": "n_jobs", "slurm": "array_parallelism"}  # what launchers call the number of runs at a time


def main(arguments: list[str]) -> int:
    """Make what is missing of a table, and render it into experiments/NAME/results/SCALE."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    name, *rest = arguments
    options, overrides = take_options(rest, scale="cpu", seeds="", jobs="", dry_run="false", results="")
    if options["dry_run"] not in ("true", "false"):
        raise UserError(f"dry_run={options['dry_run']}: neither true nor false; use dry_run=true")
    if any(o.lstrip("+").startswith("fresh=") for o in overrides):
        raise UserError(
            "fresh: a table never makes a finished run again; remove the run's directory, or use expo train fresh=true"
        )
    plan = load_plan(name, options["scale"])
    hydra = [o for o in overrides if o.startswith(("hydra.", "hydra/"))]
    ours = [o for o in overrides if o not in hydra]
    seeds = list(range(int(options["seeds"]))) if options["seeds"] else None
    runs = plan_runs(name, plan, options["scale"], seeds, ours)
    todo = distinct([run for run in runs if not run.done])
    scale = plan.scales[options["scale"]]
    jobs = int(options["jobs"] or scale.jobs)
    committed = EXPERIMENTS / name / "results" / options["scale"]
    as_planned = all(o.startswith("output_dir=") for o in ours)
    if options["dry_run"] == "true":
        dry_run(plan, scale, runs, todo, jobs, committed if as_planned else None)
        return 0
    missing = to_prepare(plan, todo)
    code = prepare(missing)
    if code:
        remedy = "the same command goes on" if code > 128 else "see above"
        print(f"expo: a model that the runs begin from was not made; {remedy}", file=sys.stderr)
        return code
    if missing:  # what the models hold is part of their runs' identity
        runs = plan_runs(name, plan, options["scale"], seeds, ours)
        todo = distinct([run for run in runs if not run.done])
    own = Path(runs[0].cfg.output_dir, "sweeps", f"{name}-{options['scale']}")
    sweep = own / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    changed = seeds is not None or not as_planned  # then it is not the plan's own table
    variant = hashlib.sha256(json.dumps([seeds, ours]).encode()).hexdigest()[:8] if changed else ""
    folder = Path(options["results"] or (own / variant if changed else committed))
    chosen = next((o.partition("=")[2] for o in hydra if o.startswith("hydra/launcher=")), "local")
    limited = chosen in AT_A_TIME and (chosen == "local" or options["jobs"])  # Slurm has a queue of its own
    launcher = [f"hydra.launcher.{AT_A_TIME[chosen]}={jobs}"] if limited else []
    code = make(todo, sweep, [f"output_dir={runs[0].cfg.output_dir}", *launcher, *hydra])
    if code > 128:
        print("expo: stopped, with checkpoints; the same command goes on", file=sys.stderr)
        return code
    if code and not any(read_summary(run.dir) for run in runs):
        print(f"expo: no run was made; see {sweep / 'launch.log'}", file=sys.stderr)
        return code
    failed = [run for run in todo if not run.done]
    if failed and not options["results"]:  # a whole table is not overwritten by one with holes
        folder = sweep / "results"
    finish(name, plan, runs, folder, " ".join(["expo table", *arguments]))
    logger = runs[0].cfg.logger
    if isinstance(logger, WandbLoggerConf) and not failed:
        from expo.tracking import log_finished_table  # seconds of imports that only W&B needs

        record = json.loads((folder / "table.json").read_text())
        scale_name = "-".join(filter(None, (options["scale"], variant)))
        log_finished_table(logger.wandb, name, scale_name, rows_of(plan, record), folder, sweep)
    for run in failed:
        print(f"expo: {run.arm} seed {run.seed}: {why(run, sweep)}", file=sys.stderr)
    return 1 if failed else 0


def dry_run(
    plan: Plan,
    scale: Scale,
    runs: Sequence[PlannedRun],
    todo: Sequence[PlannedRun],
    jobs: int,
    results: Path | None,
) -> None:
    """What would be done; what it would cost by runs that are finished, here or in `results`, and by an estimate."""
    for command in to_prepare(plan, todo).values():
        print(f"first, not counted below: expo {' '.join(command)}")
    missing, shown = {run.dir for run in todo}, dict[Path, str]()
    costs = estimates(runs, scale.device) if scale.device else {}
    for key, arm in plan.arms.items():
        own = [run for run in runs if run.arm == key]
        left = [run for run in own if run.dir in missing]
        print(f"{arm.label}: {len(own) - len(left)} of {len(own)} runs done")
        if own[0].dir in shown:
            print(f"    the same run as of {shown[own[0].dir]}")
            continue
        shown[own[0].dir] = arm.label
        print(f"    expo {own[0].command} {' '.join((left or own)[0].overrides)}")
        if scale.device is not None and own[0].dir not in costs:
            print(f"    {own[0].cfg.model.path}: its config cannot be read here, no estimate")
        elif scale.device is not None:
            print(f"    {costs[own[0].dir]}")
    told = [f"{len(distinct(runs))} runs, {len(todo)} to do, {jobs} at a time"]
    if todo and (measured := by_finished_runs(runs, todo, jobs, results)):
        told.append(measured)
    elif todo and scale.device is None:
        told.append("time unknown: none is done")
    print(", ".join(told))
    if costs:
        known = [costs[run.dir] for run in todo if run.dir in costs]
        hours = sum(cost.hours for cost in known)
        longest = max((cost.hours for cost in known), default=0.0)
        print(
            f"estimated, not measured: {sum(c.tokens for c in known) / 1e9:.2f} G tokens generated at most, "
            f"{hours:.0f} {scale.device} hours, at least {max(longest, hours / jobs):.0f} hours with {jobs} at a time"
        )


def by_finished_runs(
    runs: Sequence[PlannedRun], todo: Sequence[PlannedRun], jobs: int, results: Path | None
) -> str | None:
    """Time and tokens of the missing runs as their arms took them here, or else in the results of an earlier table."""
    known: dict[str, Any] = {}
    sources = []
    if results is not None and (results / "table.json").is_file():
        record = json.loads((results / "table.json").read_text())
        known = {arm: made["cost"] for arm, made in record["arms"].items() if made["runs"]}
        sources = [f"{results.relative_to(EXPERIMENTS.parent)} of {record['date']} ({record['device']})"]
    done = distinct([run for run in runs if run.done])
    here = {arm: cost_of([run.dir for run in done if run.arm == arm]) for arm in {run.arm for run in done}}
    known |= here
    if not known.keys() >= {run.arm for run in todo}:
        return None
    left = [known[run.arm] for run in todo]
    if here.keys() >= {run.arm for run in todo}:
        sources = []
    if here:
        sources.insert(0, f"the {len(done)} that are done")
    minutes = sum(cost["seconds"] for cost in left) / jobs / 60
    tokens = sum(cost["generated tokens"] or 0 for cost in left) / 1e6
    return f"about {minutes:.0f} min and {tokens:.1f} M tokens generated in training, by {' and '.join(sources)}"


def estimates(runs: Sequence[PlannedRun], device: str) -> "dict[Path, Cost]":
    """By run directory; without the runs whose model's config cannot be read."""
    from expo.experiments.cost import estimate  # seconds of imports that only a plan for another device needs

    found = {}
    for run in runs:
        with suppress(OSError):
            found[run.dir] = estimate(run, device)
    return found


def finish(name: str, plan: Plan, runs: Sequence[PlannedRun], folder: Path, command: str) -> None:
    """Aggregate and render."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "title": plan.title,
        "command": command,
        "device": ", ".join(sorted({str(read_summary(run.dir)["device"]) for run in runs if run.done})),
        "rendered_on": device_name(),
        "date": time.strftime("%Y-%m-%d"),
        "arms": aggregate(plan, runs),
    }
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(plan, record))
    if plan.extends is None:  # else they are kept beside the table whose runs they are
        keep_runs([(run.arm, run.seed, run.dir) for run in distinct(runs) if run.done], folder)
    drawers = {key: instantiate(conf, _convert_="all") for key, conf in plan.figures.items() if conf}
    for figure_name, drawer in (drawers or {"curves": Curves()}).items():
        figure = drawer.draw(plan, record, runs)
        figure.savefig(folder / f"{figure_name}.png", dpi=130)
        with plt.rc_context({"svg.hashsalt": name}):  # the same picture is the same file
            figure.savefig(folder / f"{figure_name}.svg", metadata={"Date": None})
        plt.close(figure)
    show(plan, record)
    print(f"table and figures: {folder}")


def show(plan: Plan, record: dict[str, Any]) -> None:
    """The arms' own numbers; table.md has the paper's beside them, differences and cost."""
    heads, rows = rows_of(plan, record)
    width = 1 + len(plan.columns)
    shown = Table(title=plan.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (*heads[:width], heads[-1]):
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(*(cell.replace(" [", "\n[") for cell in (*row[:width], row[-1])))
    wide_console().print(shown, markup=False)

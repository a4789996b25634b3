"""`expo table`: plan the arms and seeds of a table, make what is missing, aggregate, and render beside the paper's numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from expo.config import UserError
from expo.experiments.aggregate import aggregate, keep_runs, read_curve, read_points, read_summary
from expo.experiments.plan import EXPERIMENTS, Plan, PlannedRun, load_plan, plan_runs
from expo.experiments.render import markdown, save_figure
from expo.run import device_name

POLL_S = 3
USAGE = (
    "usage: expo table NAME [scale=cpu] [seeds=N] [jobs=N] [dry_run=true] [output_dir=outputs] [results=FOLDER] "
    "[hydra/launcher=…] [HYDRA OVERRIDES...]; runs that are finished are not made again"
)


def main(arguments: list[str]) -> int:
    """Make what is missing of a table, and render it into experiments/NAME/results/SCALE."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    name, *rest = arguments
    options = {"scale": "cpu", "seeds": "", "jobs": "", "dry_run": "false", "results": ""}
    overrides = []
    for argument in rest:
        key, _, value = argument.partition("=")
        if key in options:
            options[key] = value
        else:
            overrides.append(argument)
    for key in ("seeds", "jobs"):
        if options[key] and not (options[key].isdigit() and int(options[key]) >= 1):
            raise UserError(f"{key}={options[key]}: not a number of {key}; use {key}=1 or more")
    if options["dry_run"] not in ("true", "false"):
        raise UserError(f"dry_run={options['dry_run']}: neither true nor false; use dry_run=true")
    plan = load_plan(name)
    hydra = [o for o in overrides if o.startswith(("hydra.", "hydra/"))]
    ours = [o for o in overrides if o not in hydra]
    seeds = list(range(int(options["seeds"]))) if options["seeds"] else None
    runs = plan_runs(name, plan, options["scale"], seeds, ours)
    todo = [run for run in runs if read_summary(run.dir).get("status") != "done"]
    jobs = int(options["jobs"] or plan.scales[options["scale"]].jobs)
    if options["dry_run"] == "true":
        dry_run(plan, runs, todo)
        return 0
    sweep = Path(runs[0].cfg.output_dir, "sweeps", f"{name}-{options['scale']}")
    changed = seeds is not None or any(
        not o.startswith("output_dir=") for o in ours
    )  # then it is not the plan's own table
    folder = Path(options["results"] or (sweep if changed else EXPERIMENTS / name / "results" / options["scale"]))
    local = not any(o.startswith("hydra/launcher=") for o in hydra)
    code = prepare(plan) or make(todo, sweep, [*([f"hydra.launcher.n_jobs={jobs}"] if local else []), *hydra])
    if code > 128:
        print("expo: stopped, with checkpoints; the same command goes on", file=sys.stderr)
        return code
    if code and not any(read_summary(run.dir) for run in runs):
        print(f"expo: no run was made; see {sweep / 'launch.log'}", file=sys.stderr)
        return code
    failed = [run for run in todo if read_summary(run.dir).get("status") != "done"]
    finish(plan, runs, folder, " ".join(["expo table", *arguments]))
    for run in failed:
        summary = read_summary(run.dir)
        reason = " ".join(str(summary.get("reason", f"see {sweep / 'logs'} and {sweep / 'launch.log'}")).split())
        print(f"expo: {run.arm} seed {run.seed}: {summary.get('status', 'not started')}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def dry_run(plan: Plan, runs: list[PlannedRun], todo: list[PlannedRun]) -> None:
    """What would be done, and about how long it would take by the runs of the same arms that are done."""
    for model, command in plan.prepare.items():
        print(f"first, where {model} is missing: expo {' '.join(command)}")
    for key, arm in plan.arms.items():
        own = [run for run in runs if run.arm == key]
        left = [run for run in own if run in todo]
        print(f"{arm.label}: {len(own) - len(left)} of {len(own)} runs done")
        print(f"    expo train {' '.join(left[0].overrides if left else own[0].overrides)}")
    seconds = [s["wall_s"] for run in runs if (s := read_summary(run.dir)).get("status") == "done"]
    estimate = (
        f"about {len(todo) * sum(seconds) / len(seconds) / 60:.0f} min of runs"
        if seconds
        else "time unknown: none is done"
    )
    print(f"{len(runs)} runs, {len(todo)} to do, {estimate}")


def prepare(plan: Plan) -> int:
    """Make the models that the arms begin from, where they are not there yet. Returns an exit code."""
    for folder, command in plan.prepare.items():
        if not Path(folder, "config.json").is_file():
            Console(stderr=True).print(f"making {folder}: expo {' '.join(command)}", markup=False)
            done = subprocess.run([sys.executable, "-m", "expo", *command], check=False)
            if done.returncode:
                return done.returncode
    return 0


def make(todo: list[PlannedRun], sweep: Path, hydra: list[str]) -> int:
    """Launch the missing runs in a process of its own and follow them. Returns its exit code."""
    if not todo:
        return 0
    sweep.mkdir(parents=True, exist_ok=True)
    path = sweep / "jobs.json"
    path.write_text(json.dumps([run.overrides for run in todo]))
    command = [sys.executable, "-m", "expo.experiments.launch", str(path), *hydra]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True), disable=not sys.stderr.isatty()
    )
    with bar, (sweep / "launch.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        for number in (signal.SIGTERM, signal.SIGINT):  # its runs stop with checkpoints
            signal.signal(number, lambda number, frame: process.send_signal(signal.SIGTERM))
        whole = bar.add_task("runs", total=len(todo), state="")
        tasks: dict[PlannedRun, Any] = {}
        while process.poll() is None:
            follow(bar, whole, tasks, todo)
            time.sleep(POLL_S)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def follow(bar: Progress, whole: Any, tasks: dict[Any, Any], todo: list[PlannedRun]) -> None:
    """One line for each run under way."""
    ended = 0
    for run in todo:
        over = read_summary(run.dir).get("status") in ("done", "failed")
        ended += over
        key = (run.arm, run.seed)
        if over:
            if key in tasks:
                bar.remove_task(tasks.pop(key))
            continue
        steps, evaluations = read_curve(run.dir)
        if evaluations:
            if key not in tasks:
                tasks[key] = bar.add_task(f"{run.arm} seed {run.seed}", total=run.cfg.trainer.max_steps, state="")
            reward = f"reward {steps[-1][1]:.3f}  " if steps else ""
            bar.update(
                tasks[key],
                completed=steps[-1][0] if steps else evaluations[-1][0],
                state=f"{reward}pass@4 {evaluations[-1][1]:.3f}",
            )
    bar.update(whole, completed=ended)


def finish(plan: Plan, runs: list[PlannedRun], folder: Path, command: str) -> None:
    """Aggregate and render."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "title": plan.title,
        "command": command,
        "device": device_name(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "arms": aggregate(plan, runs),
    }
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    text = markdown(plan, record)
    (folder / "table.md").write_text(text)
    done = [run for run in runs if read_summary(run.dir).get("status") == "done"]
    keep_runs([(run.arm, run.seed, run.dir) for run in done], folder)
    shown = [*([plan.beside] if plan.beside else []), plan.columns[-1]]
    arms = plan.curves or list(plan.arms)
    panels = {
        name: {arm: [read_points(run.dir, name) for run in done if run.arm == arm] for arm in arms} for name in shown
    }
    save_figure(plan, panels, folder / "curves")
    Console().print(text, markup=False)
    Console().print(f"table and curves: {folder}")

"""Preview of a table: what it would do and cost, `dry_run=true`."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo.config import UserError
from expo.tables.aggregate import cost_of
from expo.tables.plan import Plan
from expo.tables.planned import PlannedRun
from expo.tables.render import count_told
from expo.tables.request import Request, missing, read_record
from expo.tables.sweep import distinct, to_prepare

if TYPE_CHECKING:
    from expo.cost.estimate import Cost


def preview(request: Request, runs: Sequence[PlannedRun]) -> None:
    """Print the runs to make, and their cost by finished runs and by an estimate."""
    plan, device, todo = request.plan, request.scale.device, missing(runs)
    for command in to_prepare(plan, runs, todo).values():
        print(f"first, not counted below: expo {shlex.join(command)}")
    costs = estimates(runs, device) if device else {}
    show_arms(plan, runs, {run.dir for run in todo}, costs if device else None)
    sentences = [f"{len(distinct(runs))} runs, {len(todo)} to do, {request.at_a_time} at a time"]
    results = request.kept(runs[0].cfg.output_dir) if request.as_planned else None
    if todo and (measured := by_finished_runs(runs, todo, request.at_a_time, results)):
        sentences.append(measured)
    elif todo and device is None:
        sentences.append("time unknown" + (": none is done" if len(todo) == len(distinct(runs)) else ""))
    print(", ".join(sentences))
    if device and costs:
        known = [costs[run.dir] for run in todo if run.dir in costs]
        hours, longest = sum(cost.hours for cost in known), max((cost.hours for cost in known), default=0.0)
        at_least = max(longest, hours / request.at_a_time)
        print(
            f"estimated, not measured: {sum(c.tokens for c in known) / 1e9:.2f} G tokens generated at most, "
            f"{hours:.0f} {device} hours, at least {at_least:.0f} hours with {request.at_a_time} at a time"
        )


def show_arms(plan: Plan, runs: Sequence[PlannedRun], todo: set[Path], costs: "dict[Path, Cost] | None") -> None:
    """Print each arm: how many runs are finished, its command, its estimate. Args: todo, folders of runs to make."""
    shown: dict[Path, str] = {}
    for key, arm in plan.arms.items():
        runs_of_arm = [run for run in runs if run.arm == key]
        left = [run for run in runs_of_arm if run.dir in todo]
        print(f"{arm.label}: {len(runs_of_arm) - len(left)} of {len(runs_of_arm)} runs done")
        if runs_of_arm[0].dir in shown:
            print(f"    the same run as of {shown[runs_of_arm[0].dir]}")
            continue
        shown[runs_of_arm[0].dir] = arm.label
        print(f"    expo {runs_of_arm[0].command} {shlex.join((left or runs_of_arm)[0].line)}")
        if costs is not None and runs_of_arm[0].dir not in costs:
            print(f"    {runs_of_arm[0].cfg.model.path}: its config cannot be read here, no estimate")
        elif costs is not None:
            print(f"    {costs[runs_of_arm[0].dir]}")


def by_finished_runs(
    runs: Sequence[PlannedRun], todo: Sequence[PlannedRun], jobs: int, results: Path | None
) -> str | None:
    """Return time and tokens of the missing runs, by runs of their arms here, or in an earlier table's results."""
    known: dict[str, Any] = {}
    sources = []
    if results is not None and (results / "table.json").is_file():
        record = read_record(results)
        known = {arm: arm_record["cost"] for arm, arm_record in record["arms"].items() if arm_record["runs"]}
        sources = [f"{'/'.join(results.parts[-4:])} of {record['date']} ({record['device']})"]
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
    tokens = count_told(sum(cost["generated tokens"] or 0 for cost in left))
    return f"about {minutes:.0f} min and {tokens} tokens generated in training, by {' and '.join(sources)}"


def estimates(runs: Sequence[PlannedRun], device: str) -> "dict[Path, Cost]":
    """Return the estimated cost by run directory; a run whose model's config cannot be read has none."""
    from expo.cost.estimate import estimate  # seconds of imports that only a plan for another device needs
    from expo.cost.machine import DEVICES

    if device not in DEVICES:
        raise UserError(f"scales: device={device}: no device whose speed is known; use one of {', '.join(DEVICES)}")
    costs = {}
    for run in runs:
        with suppress(OSError):
            costs[run.dir] = estimate(run.cfg, run.command, device)
    return costs

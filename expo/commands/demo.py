"""`expo demo`: the table of experiments/demo, with a summary, the curves and a report in outputs/demo."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from expo.config import LadderConf, make_folder, take_options
from expo.config.world import CLEAR
from expo.report import page as report
from expo.report.settings import data_sentences, differing
from expo.report.solving import read_solving
from expo.runs.arms import settings_of
from expo.runs.directory import device_name
from expo.runs.reading import final_rows, read_curve, read_lines, read_summary, samples_of
from expo.tables.aggregate import aggregate
from expo.tables.finish import draw
from expo.tables.plan import Plan, PlannedRun
from expo.tables.render import percent
from expo.tables.request import Request, missing
from expo.tables.sweep import make

USAGE = "usage: expo demo [seeds=N] [output=FOLDER] [HYDRA OVERRIDES...]; runs that are finished are not made again"


def main(arguments: list[str]) -> int:
    """Run what is missing, then print the table and write summary.json, curves.png and report.html."""
    if any(a in ("-h", "--help") for a in arguments):
        print(USAGE)
        return 0
    options, more = take_options(arguments, seeds="1", output="outputs/demo")
    output, started = Path(options["output"]), time.monotonic()
    output_dir = str(output / "runs")
    seeds = range(int(options["seeds"]))
    request = Request("demo", "cpu", seeds=seeds, overrides=[*more, f"output_dir={output_dir}"])
    runs = request.runs()
    request = replace(request, jobs=min(len(runs), os.cpu_count() or 1))
    make_folder(output, "output")
    sweep = request.new_sweep(output_dir)
    code = make(missing(runs), sweep, request.launcher(output_dir), GrowingPicture(request.plan, runs, output))
    runs = [replace(run, cfg=replace(run.cfg, fresh=False)) for run in runs]  # with it, no run ever counts as done
    if code or missing(runs):
        print(f"expo: {_why(code)} {sweep / 'logs'}", file=sys.stderr)
        return code or 1
    record = {"arms": aggregate(request.plan, runs)}
    summary = summarize(request.plan, record, runs) | {
        "seeds": len(seeds),
        "wall_s": round(time.monotonic() - started, 1),
        "command": f"expo demo {' '.join(arguments)}".strip(),
        "device": device_name(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=1))
    draw("demo", request.plan, record, runs, output)
    report.write(page(request.plan, summary, runs), run_data(request.plan, runs), output / "report.html")
    show(request.plan, summary, output)
    return 0


class GrowingPicture:
    """The demo's curves while the runs are under way: drawn again whenever an evaluation has come."""

    def __init__(self, plan: Plan, runs: Sequence[PlannedRun], output: Path):
        self.plan, self.runs, self.output, self.seen = plan, runs, output, 0

    def __call__(self) -> None:
        evaluations = sum(len(read_curve(run.dir)[1]) for run in self.runs)
        if evaluations > self.seen:
            if not self.seen:
                print(f"the picture grows: {self.output / 'curves.png'}", file=sys.stderr)
            self.seen = evaluations
            draw("demo", growing(self.plan), {}, self.runs, self.output)


def growing(plan: Plan) -> Plan:
    """Return a plan whose curves show runs under way as well."""
    return replace(plan, figures={name: dict(conf) | {"unfinished": True} for name, conf in plan.figures.items()})


def _why(code: int) -> str:
    stopped = "stopped, with checkpoints; the same command goes on. Its output is in"
    return stopped if code > 128 else "a run failed; its output is in"


def summarize(plan: Plan, record: Mapping[str, Any], runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Return the arms' means over seeds with 95 % intervals over problems and seeds, and what their runs say."""
    cfg = runs[0].cfg
    dirs = {arm: [run.dir for run in runs if run.arm == arm] for arm in plan.arms}
    rollouts = cfg.trainer.max_steps * cfg.trainer.problems_per_step * cfg.algorithm.group_size
    world = cfg.dataset.world if isinstance(cfg.dataset, LadderConf) else CLEAR
    return {
        "arms": {arm: record["arms"][arm]["columns"] for arm in reversed(plan.arms)},
        "base_pass@4": float(np.mean([read_curve(own[0])[1][0][1] for own in dirs.values()])),
        # Why GRPO cannot start: the right rollouts to expect in a whole run by the base policy's familiarity.
        "expected_lucky_rollouts": world.familiarity[-1] ** world.parts[-1] * rollouts,
        # Of the runs themselves, which may have been made earlier and by other code than this call.
        "training_s": {arm: [read_summary(d)["wall_s"] for d in own] for arm, own in dirs.items()},
        "commits": sorted({str(read_summary(d)["git"]) for own in dirs.values() for d in own}),
    }


def page(plan: Plan, summary: dict[str, Any], runs: Sequence[PlannedRun]) -> report.Page:
    """Return the head of the demo's report."""
    made = (
        f"{summary['command']} · commit {', '.join(summary['commits'])} · {summary['device']} · {summary['date']} · "
        f"{summary['wall_s']:.0f} s. Percent, with 95 % intervals over problems and seeds."
    )
    note = (
        f"{plan.title}, {summary['seeds']} seed(s) each. The base policy solves none of these problems: "
        f"{summary['expected_lucky_rollouts']:.2f} right rollouts are to be expected from it in a whole run, so GRPO "
        "has "
        "nothing to learn from. ExP-GRPO adds the policy's own explanation of the known answer. The ladder is a "
        "small model "
        "of the situation, not evidence about large models."
    )
    labels = [arm.label for arm in plan.arms.values()]
    firsts = {plan.arms[arm].label: next(run.dir for run in runs if run.arm == arm) for arm in reversed(plan.arms)}
    settings = {label: settings_of(directory) for label, directory in firsts.items()}
    return report.Page(
        "Learning what cannot be solved",
        made,
        ["arm", *plan.columns],
        rows_of(plan, summary),
        [note],
        arms=labels,
        data=data_sentences(settings),
        differs=differing(settings),
        solving=read_solving(firsts),
    )


def run_data(plan: Plan, runs: Sequence[PlannedRun]) -> list[report.RunData]:
    """Return the runs as the report shows them, in its order."""
    ordered = [run for arm in reversed(plan.arms) for run in runs if run.arm == arm]
    return [
        report.RunData(
            plan.arms[run.arm].label, run.seed, read_summary(run.dir), read_lines(run.dir), final_rows(run.dir),
            samples_of(run.dir),
        )
        for run in ordered
    ]  # fmt: skip


def rows_of(plan: Plan, summary: dict[str, Any]) -> list[list[str]]:
    """Return the cells of each arm."""
    return [[plan.arms[arm].label, *map(percent, columns.values())] for arm, columns in summary["arms"].items()]


def show(plan: Plan, summary: dict[str, Any], output: Path) -> None:
    """Print the table and where the rest is."""
    table = Table(title=f"Ladder level 5, {summary['seeds']} seed(s) per arm, pass@k in % with 95 % intervals")
    for heading in ("arm", *plan.columns):
        table.add_column(heading)
    for row in rows_of(plan, summary):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"base policy pass@4 {100 * summary['base_pass@4']:.1f} %; right rollouts to expect from it in a whole run: "
        f"{summary['expected_lucky_rollouts']:.2f}; {summary['wall_s']:.0f} s"
    )
    print(f"curves: {output / 'curves.png'}   report: {output / 'report.html'}")

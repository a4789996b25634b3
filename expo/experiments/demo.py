"""`expo demo`: GRPO, GRPO SFT-GT-CoT and ExP-GRPO on ladder level 5 from the shipped base policy, side by side."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from expo import config, schema
from expo.checks import check
from expo.cli import conf_dir
from expo.data.ladder import FAMILIARITY
from expo.experiments.aggregate import (
    Curve,
    final_rows,
    pass_values,
    read_curve,
    read_lines,
    samples_of,
    stack,
    statistic,
)
from expo.experiments.plan import read_summary
from expo.experiments.sweep import until_over
from expo.report import page as report
from expo.run import device_name

# The longest first, so that two cores stay busy to the end.
ARMS = {"exp_grpo": "ExP-GRPO", "grpo_sft_gt_cot": "GRPO SFT-GT-CoT", "grpo": "GRPO"}
OVERRIDES = ["dataset=ladder_level5", "dataset.eval_limit=200"]
K = (1, 4)
METRICS = [f"pass@{k}/level5" for k in K]
USAGE = "usage: expo demo [seeds=N] [output=FOLDER] [HYDRA OVERRIDES...]; runs that are finished are not made again"

COLOURS = {"exp_grpo": "#0b7a75", "grpo_sft_gt_cot": "#d1781a", "grpo": "#5b6472"}


def main(arguments: list[str]) -> int:
    """Run what is missing, then print the table and write summary.json, curves.png and report.html."""
    if any(a in ("-h", "--help") for a in arguments):
        print(USAGE)
        return 0
    options, more = config.take_options(arguments, seeds="1", output="outputs/demo")
    seeds, output, overrides = int(options["seeds"]), Path(options["output"]), [*OVERRIDES, *more]
    started = time.monotonic()
    overrides.append(f"output_dir={output / 'runs'}")
    configs = {arm: [compose_run(arm, seed, overrides) for seed in range(seeds)] for arm in ARMS}
    runs = {arm: [config.run_dir(cfg) for cfg in cfgs] for arm, cfgs in configs.items()}
    cfg = configs["grpo"][0]
    code = launch(runs, seeds, overrides, cfg.trainer.max_steps)
    if code:
        return code
    summary = summarize(runs)
    # Why GRPO cannot start: the right rollouts to expect in a whole run by the base policy's familiarity.
    rollouts = cfg.trainer.max_steps * cfg.trainer.problems_per_step * cfg.algorithm.group_size
    summary["expected_lucky_rollouts"] = FAMILIARITY[5] ** 5 * rollouts
    summary |= {
        "seeds": seeds,
        "wall_s": round(time.monotonic() - started, 1),
        # Of the runs themselves, which may have been made earlier and by other code than this call.
        "training_s": {arm: [read_summary(d)["wall_s"] for d in dirs] for arm, dirs in runs.items()},
        "commits": sorted({str(read_summary(d)["git"]) for dirs in runs.values() for d in dirs}),
        "command": f"expo demo {' '.join(arguments)}".strip(),
        "device": device_name(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=1))
    curves = {arm: [read_curve(d) for d in dirs] for arm, dirs in runs.items()}
    save_curves(curves, ARMS, output / "curves.png")
    report.write(page(summary), run_data(runs), output / "report.html")
    show(summary, output)
    return 0


def compose_run(arm: str, seed: int, overrides: list[str]) -> schema.Config:
    """The config of one run, checked."""
    config.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = config.typed(compose("config", [f"algorithm={arm}", f"seed={seed}", *overrides]))
    check(cfg)
    return cfg


def launch(runs: dict[str, list[Path]], seeds: int, overrides: list[str], max_steps: int) -> int:
    """One `expo train -m` sweep, with a bar per run that follows its metrics.jsonl."""
    jobs = min(len(runs) * seeds, os.cpu_count() or 1)
    sweep = [f"algorithm={','.join(runs)}", f"seed={','.join(map(str, range(seeds)))}", f"hydra.launcher.n_jobs={jobs}"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    log = next(iter(runs.values()))[0].parent.parent / "sweep.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    bar = Progress(*columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True))
    with bar, log.open("w") as out:
        command = [sys.executable, "-m", "expo", "train", "-m", *sweep, *overrides]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        tasks = {
            directory: bar.add_task(f"{ARMS[arm]} seed {i}", total=max_steps, state="")
            for arm, directories in runs.items()
            for i, directory in enumerate(directories)
        }
        code = until_over(process, lambda: follow(bar, tasks))
        follow(bar, tasks)
    if code:
        told = (
            "stopped, with checkpoints; the same command goes on"
            if code > 128
            else f"a run failed; its output is in {log}"
        )
        print(f"expo: {told}", file=sys.stderr)
    return code


def follow(bar: Progress, tasks: dict[Path, Any]) -> None:
    for directory, task in tasks.items():
        steps, evaluations = read_curve(directory)
        if evaluations:
            reward = f"reward {steps[-1][1]:.3f}  " if steps else ""
            done = steps[-1][0] if steps else 0
            state = f"{reward}pass@4 {evaluations[-1][1]:.3f}"
            earlier = bar.tasks[task].finished
            bar.update(task, completed=done, state=state)
            if bar.tasks[task].finished and not earlier and not bar.console.is_terminal:  # a log shows no bars
                bar.console.print(f"{bar.tasks[task].description} done: {state}", markup=False, highlight=False)


def summarize(runs: dict[str, list[Path]]) -> dict[str, Any]:
    """Mean over seeds with 95 % intervals over problems and seeds, from the completions themselves."""
    rows = {arm: {d.name: final_rows(d) for d in directories} for arm, directories in runs.items()}
    arms = {
        arm: {m: statistic(stack({name: pass_values(r, m) for name, r in own.items()})) for m in METRICS}
        for arm, own in rows.items()
    }
    base = [read_curve(directories[0])[1][0][1] for directories in runs.values()]
    return {"arms": {arm: arms[arm] for arm in reversed(arms)}, "base_pass@4": float(np.mean(base))}


def page(summary: dict[str, Any]) -> report.Page:
    """The head of the demo's report."""
    rows = [[ARMS[arm], *(cell(metrics[m]) for m in METRICS)] for arm, metrics in summary["arms"].items()]
    made = (
        f"{summary['command']} · commit {', '.join(summary['commits'])} · {summary['device']} · {summary['date']} · {summary['wall_s']:.0f} s. "
        "Percent, with 95 % bootstrap intervals over problems and seeds."
    )
    note = (
        f"Three algorithms on ladder level 5, from the same base policy, {summary['seeds']} seed(s) each. The base policy solves none of these "
        f"problems: {summary['expected_lucky_rollouts']:.2f} right rollouts are to be expected from it in a whole run, so GRPO has nothing to "
        "learn from. ExP-GRPO adds the policy's own explanation of the known answer. The ladder is a small model of the situation, not "
        "evidence about large models."
    )
    return report.Page("Learning what cannot be solved", made, ["arm", *METRICS], rows, [note])


def run_data(runs: dict[str, list[Path]]) -> list[report.RunData]:
    found = [(arm, d, read_summary(d)) for arm in reversed(runs) for d in runs[arm]]
    return [report.RunData(ARMS[arm], s["seed"], s, read_lines(d), final_rows(d), samples_of(d)) for arm, d, s in found]


def save_curves(curves: Mapping[str, Sequence[Curve]], names: Mapping[str, str], path: Path) -> None:
    """Mean reward of training and pass@4 of evaluations against the step; the band spans the seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    titles = ("mean reward of the step's rollouts", "held-out pass@4 (temperature 0.7)")
    for i, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for arm, runs in curves.items():
            steps = [step for step, _ in runs[0][i]]
            values = [[value for _, value in run[i]] for run in runs]
            mean = [sum(column) / len(column) for column in zip(*values, strict=True)]
            axis.plot(steps, mean, color=COLOURS[arm], label=names[arm], linewidth=2)
            low, high = ([f(column) for column in zip(*values, strict=True)] for f in (min, max))
            axis.fill_between(steps, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel="step", ylim=(-0.02, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(summary: dict[str, Any], output: Path) -> None:
    table = Table(title=f"Ladder level 5, {summary['seeds']} seed(s) per arm, pass@k in % with 95 % intervals")
    for heading in ("arm", *METRICS):
        table.add_column(heading)
    for arm, metrics in summary["arms"].items():
        table.add_row(ARMS[arm], *(cell(metrics[m]) for m in METRICS))
    console = Console()
    console.print(table)
    console.print(
        f"base policy pass@4 {100 * summary['base_pass@4']:.1f} %; right rollouts to expect from it in a whole run: "
        f"{summary['expected_lucky_rollouts']:.2f}; {summary['wall_s']:.0f} s"
    )
    print(f"curves: {output / 'curves.png'}   report: {output / 'report.html'}")


def cell(metric: dict[str, float]) -> str:
    return f"{100 * metric['mean']:.1f} [{100 * metric['lo']:.1f}, {100 * metric['hi']:.1f}]"

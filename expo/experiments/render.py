"""A table as Markdown and its curves as PNG and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from expo.experiments.plan import Plan

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# (step, value) of one run
Points = Sequence[tuple[int, float]]
FEW = 3  # a cell made of fewer runs says so


def markdown(plan: Plan, record: Mapping[str, Any]) -> str:
    """Percent with 95 % intervals; the paper's numbers, where there are any, in columns of their own that say so."""
    papers = list(dict.fromkeys(column for numbers in plan.paper.values() for column in numbers))
    differs = any("difference" in arm for arm in record["arms"].values())
    heads = [
        "arm", *plan.columns, *(f"paper: {c}" for c in papers), *([f"difference in {plan.columns[-1]}"] if differs else []),
        *plan.scalars, "generated tokens", "trained tokens", "seconds", "runs",
    ]  # fmt: skip
    lines = [f"## {plan.title}", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for key, arm in record["arms"].items():
        runs = f"{arm['runs']}" + (" (few)" if arm["runs"] < FEW else "")
        if not arm["runs"]:
            lines.append(f"| {arm['label']} | " + " | ".join(["–"] * (len(heads) - 2)) + f" | {runs} |")
            continue
        cells = [_percent(arm["columns"][c]) for c in plan.columns]
        cells += [_paper(plan, key, c) for c in papers]
        if differs:
            label = record["arms"][arm["against"]]["label"] if "difference" in arm else ""
            cells.append(f"{_percent(arm['difference'][plan.columns[-1]])} against {label}" if label else "")
        cells += ["–" if v is None else f"{v:.3g}" for v in arm["scalars"].values()]
        cost = arm["cost"]
        cells += [
            f"{cost['generated tokens'] / 1e6:.2f} M",
            f"{cost['trained tokens'] / 1e6:.2f} M",
            f"{cost['seconds']:.0f}",
        ]
        lines.append(f"| {arm['label']} | " + " | ".join([*cells, runs]) + " |")
    commits = sorted({commit for arm in record["arms"].values() for commit in arm.get("commits", [])})
    lines += [
        "",
        "Percent, with 95 % bootstrap intervals over problems and seeds; differences on the same problems and seeds; tokens and "
        "seconds per run. "
        + f"Made by `{record['command']}`, commit {', '.join(commits)}, {record['cores']} cores, {record['device']}, {record['date']}.",
    ]
    return "\n".join(lines) + "\n"


def _percent(cell: Mapping[str, float]) -> str:
    return f"{100 * cell['mean']:.1f} [{100 * cell['lo']:.1f}, {100 * cell['hi']:.1f}]"


def _paper(plan: Plan, arm: str, column: str) -> str:
    number = plan.paper.get(arm, {}).get(column)
    return "not known" if number is None else f"{number:g}"


def save_figure(plan: Plan, panels: Mapping[str, Mapping[str, Sequence[Points]]], path: Path) -> None:
    """One panel per scalar, each arm's mean over its runs against the step; the band spans the seeds."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.5 + 4 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for axis, (name, arms) in zip(axes[0], panels.items(), strict=True):
        for i, (arm, runs) in enumerate(arms.items()):
            points = [run for run in runs if run]
            if not points:
                continue
            shared = min(map(len, points))
            steps = [step for step, _ in points[0][:shared]]
            columns = [[run[j][1] for run in points] for j in range(shared)]
            colour = colours[i % len(colours)]
            axis.plot(
                steps, [sum(c) / len(c) for c in columns], color=colour, label=plan.arms[arm].label, linewidth=1.8
            )
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set(xlabel="step", ylabel=name)
        if name.startswith("pass@"):
            axis.set_ylim(-0.02, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle(plan.title, fontsize=10)
    axes[0][-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=130)
    plt.close(figure)

"""The demo's picture and its self-contained HTML page."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"exp_grpo": "#0b7a75", "grpo_sft_gt_cot": "#d1781a", "grpo": "#5b6472"}
Curve = tuple[list[tuple[int, float]], list[tuple[int, float]]]


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


def save_report(
    summary: dict[str, Any],
    names: Mapping[str, str],
    curves: Path,
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
) -> None:
    """One page without outside resources: table, curves, samples, how it was made."""
    picture = base64.b64encode(curves.read_bytes()).decode()
    rows = "".join(
        f"<tr><td>{html.escape(names[arm])}</td>"
        + "".join(f"<td>{_percent(m)}</td>" for m in metrics.values())
        + "</tr>"
        for arm, metrics in summary["arms"].items()
    )
    metrics = next(iter(summary["arms"].values()))
    heads = "".join(f"<th>{html.escape(m)}</th>" for m in metrics)
    blocks = "".join(_sample(names[arm], row) for arm in summary["arms"] for row in samples[arm])
    path.write_text(
        PAGE.format(
            heads=heads,
            rows=rows,
            picture=picture,
            samples=blocks,
            seeds=summary["seeds"],
            lucky=f"{summary['expected_lucky_rollouts']:.2f}",
            made=html.escape(
                f"{summary['command']} · commit {', '.join(summary['commits'])} · {summary['device']} · {summary['date']} · {summary['wall_s']:.0f} s"
            ),
        )
    )


def _percent(metric: dict[str, float]) -> str:
    return f"{100 * metric['mean']:.1f} <small>[{100 * metric['lo']:.1f}, {100 * metric['hi']:.1f}]</small>"


def _sample(arm: str, row: Mapping[str, Any]) -> str:
    positive = f"<p><b>positive</b></p><pre>{html.escape(row['positive'])}</pre>" if row["positive"] else ""
    return (
        f"<details><summary>{html.escape(arm)} · {html.escape(row['verdict'])}</summary>"
        f"<p><b>question</b></p><pre>{html.escape(row['question'])}</pre><p><b>answer</b> {html.escape(row['answer'])}</p>"
        f"<p><b>rollout</b></p><pre>{html.escape(row['completion'])}</pre>{positive}</details>"
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>expo demo</title><style>
:root {{ color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent) }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .4rem .9rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line) }}
img {{ width: 100%; background: #fff; border-radius: 8px }} pre {{ white-space: pre-wrap; background: var(--line); padding: .6rem; border-radius: 6px }}
details {{ border-bottom: 1px solid var(--line); padding: .5rem 0 }} summary {{ cursor: pointer }} small {{ opacity: .7 }}
</style></head><body>
<h1>Learning what cannot be solved</h1>
<p>Three algorithms on ladder level 5, from the same base policy, {seeds} seed(s) each. The base policy solves none of these
problems: {lucky} right rollouts are to be expected from it in a whole run, so GRPO has nothing to learn from. ExP-GRPO adds
the policy's own explanation of the known answer. The ladder is a small model of the situation, not evidence about large models.</p>
<table><tr><th>arm</th>{heads}</tr>{rows}</table><p><small>percent, with 95 % bootstrap intervals over problems and seeds</small></p>
<img alt="training reward and held-out pass@4 against the step" src="data:image/png;base64,{picture}">
<h2>Samples of the last training step</h2>{samples}
<p><small>{made}</small></p></body></html>
"""

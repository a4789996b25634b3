"""Charts of a report as inline SVG, which takes the page's colours and needs no script."""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any

import matplotlib.pyplot as plt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expo.tables.figures import bar, curve, places, plain
from expo.tables.styles import Style

SIZE = (3.6, 2.3)  # inches, of 72 units of the SVG
MOST_POINTS = 1000  # of a curve
STYLE: Any = {"svg.fonttype": "none", "font.size": 7, "axes.linewidth": 0.5}  # text as text: the page's own font

Run = Sequence[tuple[float, float]]  # (step, value)


def swatch(style: Style) -> Markup:
    """Return how an arm looks in bars and in curves, as small as a letter."""
    dashes = f' stroke-dasharray="{" ".join(f"{2 * d:g}" for d in style.dash)}"' if style.dash else ""
    line = f'<line x1="16" x2="38" y1="6" y2="6" stroke="{style.colour}" stroke-width="2"{dashes}/>'
    box = f'<rect width="12" height="12" rx="2" fill="{style.colour}"/>'
    return Markup(f'<svg class="swatch" viewBox="0 0 38 12" aria-hidden="true">{box}{line}</svg>')


def lines(
    title: str, y: str, arms: Mapping[str, Sequence[Run]], styles: Mapping[str, Style], share: bool
) -> Markup | None:
    """Return each arm's mean over its runs against the step; the band spans the runs. None where no run has a point.

    Of long runs, each point is the mean of some steps, and the axis says of how many.

    Args: y, the axis's name; share, whether the values are percent of a whole: then the axis goes from 0 to 100.
    """
    shown = {arm: [run for run in runs if run] for arm, runs in arms.items() if any(runs)}
    if not shown:
        return None
    steps = [step for runs in shown.values() for run in runs for step, _ in run]
    width = math.ceil((max(steps) - min(steps) + 1) / MOST_POINTS)
    if max(len(run) for runs in shown.values() for run in runs) <= MOST_POINTS:
        width = 1
    figure, axis = _panel("step" if width == 1 else f"step (means of {width} steps)", y)
    for arm, runs in shown.items():
        curve(axis, [_means(run, width) for run in runs], arm, styles[arm])
    if share:
        axis.set_ylim(0, 100)
    return _inline(figure, f"{title} against the step")


def bars(
    title: str,
    x: str,
    y: str,
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]],
    styles: Mapping[str, Style],
) -> Markup | None:
    """Return a group of bars per entry, a bar per arm, with intervals. None where there is none.

    Args: x and y, the axes' names; groups, (mean, low, high) by arm, in percent.
    """
    if not any(groups.values()):
        return None
    figure, axis = _panel(x, y)
    for i, cells in enumerate(groups.values()):
        for arm, place in places(list(cells)):
            bar(axis, i + place, len(cells), cells[arm], styles[arm])
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_ylim(0, 100)
    return _inline(figure, title)


def _means(run: Run, width: int) -> Run:
    """Return the mean of each `width` steps, at the last of them."""
    values: dict[float, list[float]] = {}
    for step, value in run:
        values.setdefault(math.ceil(step / width) * width if width > 1 else step, []).append(value)
    return [(step, sum(some) / len(some)) for step, some in values.items()]


def _panel(x: str, y: str) -> tuple[Figure, Axes]:
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=SIZE, layout="constrained")
        axis.set(xlabel=x, ylabel=y)
        plain(axis)
    return figure, axis


def _inline(figure: Figure, title: str) -> Markup:
    file = StringIO()
    with plt.rc_context(STYLE | {"svg.hashsalt": title}):  # no two charts of a page have a pattern of one name
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = file.getvalue()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg.replace("#000000", "currentColor"), count=2)
    named = f'<svg role="img" aria-label="{escape(title)}" '
    return Markup(svg.replace("<svg ", named, 1))

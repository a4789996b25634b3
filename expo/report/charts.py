"""Charts as inline SVG, which take the page's colours and need no script."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from expo.runs.reading import by_step
from expo.tables.styles import Style

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 40
STROKE = 2
MOST_POINTS = 1000  # of a curve

Run = Sequence[tuple[float, float]]  # (step, value)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers from low to high."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    magnitude = 10 ** np.floor(np.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [float(i * step) + 0.0 for i in np.arange(first, last + 1)]  # + 0.0: no -0


class Frame:
    """Axes of a chart: maps data to positions in the picture."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]):
        self.x0, self.x1 = x
        self.y0, self.y1 = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)

    def at(self, x: float, y: float) -> str:
        return f"{self.across(x):.1f},{self.down(y):.1f}"

    def across(self, x: float) -> float:
        return LEFT + (x - self.x0) / ((self.x1 - self.x0) or 1) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        return TOP + (self.y1 - y) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> list[str]:
        parts = []
        for tick in nice_ticks(self.y0, self.y1):
            y = self.down(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
        return parts

    def below(self, x: float, text: str) -> str:
        return f'<text x="{self.across(x):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{escape(text)}</text>'

    def named(self, x: str, y: str) -> list[str]:
        """Draw the names of the axes."""
        middle = (TOP + HEIGHT - BOTTOM) / 2
        return [
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>',
            f'<text transform="translate(11 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
        ]


def _svg(title: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def fill(style: Style) -> str:
    """Return the fill of an arm's bars: its colour, hatched where its lines are dashed. `hatches` has the patterns."""
    return f"url(#hatch{style.colour[1:]})" if style.dash else style.colour


def hatches(arms: Iterable[Style]) -> Markup:
    """Draw the patterns that `fill` names, once for the whole page."""
    patterns = [
        f'<pattern id="hatch{colour[1:]}" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)">'
        f'<rect width="5" height="5" fill="{colour}"/><rect width="1.6" height="5" fill="#fff"/></pattern>'
        for colour in sorted({style.colour for style in arms if style.dash})
    ]
    return Markup(f'<svg width="0" height="0" style="position:absolute"><defs>{"".join(patterns)}</defs></svg>')


def swatch(style: Style) -> Markup:
    """Draw an arm's style in bars and in curves, as small as a letter."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 38 12" aria-hidden="true"><rect width="12" height="12" rx="2" '
        f'fill="{fill(style)}"/>'
        f'<line x1="16" x2="38" y1="6" y2="6" {_stroke(style)}/></svg>'
    )


def _stroke(style: Style) -> str:
    dashes = f' stroke-dasharray="{" ".join(f"{STROKE * d:g}" for d in style.dash)}"' if style.dash else ""
    return f'stroke="{style.colour}" stroke-width="{STROKE}"{dashes}'


def lines(
    title: str, y: str, arms: Mapping[str, Sequence[Run]], styles: Mapping[str, Style], share: bool
) -> Markup | None:
    """Draw each arm's mean over its runs against the step; the band spans the runs. None where no run has a point.

    Of long runs, each point is the mean of some steps, and the axis says of how many.

    Args: y, the axis's name; share, whether the values are percent of a whole: then the axis goes from 0 to 100.
    """
    shown = {arm: [run for run in runs if run] for arm, runs in arms.items()}
    shown = {arm: runs for arm, runs in shown.items() if runs}
    if not shown:
        return None
    every = [point for runs in shown.values() for run in runs for point in run]
    width = math.ceil((max(s for s, _ in every) - min(s for s, _ in every) + 1) / MOST_POINTS)
    if width > 1 and max(len(run) for runs in shown.values() for run in runs) > MOST_POINTS:
        shown = {arm: [_means(run, width) for run in runs] for arm, runs in shown.items()}
        every = [point for runs in shown.values() for run in runs for point in run]
    else:
        width = 1
    values = [value for _, value in every]
    frame = Frame(
        (min(s for s, _ in every), max(s for s, _ in every)), (0, 100) if share else (min(values), max(values))
    )
    parts = [*frame.grid(), *(frame.below(tick, f"{tick:g}") for tick in nice_ticks(frame.x0, frame.x1))]
    parts += frame.named("step" if width == 1 else f"step (means of {width} steps)", y)
    for arm, runs in shown.items():
        steps, values_by_step = by_step(runs)
        arrays = [np.array(v) for v in values_by_step]
        low, high, mean = (
            [float(v.min()) for v in arrays],
            [float(v.max()) for v in arrays],
            [float(v.mean()) for v in arrays],
        )
        band = [frame.at(s, v) for s, v in zip(steps, high, strict=True)]
        band += [frame.at(s, v) for s, v in reversed(list(zip(steps, low, strict=True)))]
        line = " ".join(frame.at(s, v) for s, v in zip(steps, mean, strict=True))
        if len(runs) > 1:
            parts.append(f'<polygon points="{" ".join(band)}" fill="{styles[arm].colour}" opacity=".18"/>')
        parts.append(f'<polyline points="{line}" fill="none" {_stroke(styles[arm])}/>')
        if len(steps) == 1:  # a line of one point is not seen
            x, y_of = line.split(",")
            parts.append(f'<circle cx="{x}" cy="{y_of}" r="{STROKE}" fill="{styles[arm].colour}"/>')
    return _svg(f"{title} against the step", parts)


def _means(run: Run, width: int) -> Run:
    """Return the mean of each `width` steps, at the last of them."""
    by_window: dict[float, list[float]] = {}
    for step, value in run:
        by_window.setdefault(math.ceil(step / width) * width, []).append(value)
    return [(step, sum(values) / len(values)) for step, values in by_window.items()]


def bars(
    title: str,
    x: str,
    y: str,
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]],
    styles: Mapping[str, Style],
) -> Markup | None:
    """Draw a group of bars per entry, a bar per arm, with intervals. None where there is none.

    Args: x and y, the axes' names; groups, (mean, low, high) by arm, in percent.
    """
    if not any(groups.values()):
        return None
    frame = Frame((-0.5, len(groups) - 0.5), (0, 100))
    parts = [*frame.grid(), *frame.named(x, y)]
    for i, (name, cells) in enumerate(groups.items()):
        parts.append(frame.below(i, name))
        width = 0.8 / max(len(cells), 1)
        for j, (arm, (mean, low, high)) in enumerate(cells.items()):
            left, right = (frame.across(i - 0.4 + width * place) for place in (j + 0.08, j + 0.92))
            top, bottom = sorted((frame.down(mean), frame.down(0)))
            middle = (left + right) / 2
            parts.append(
                f'<rect x="{left:.1f}" width="{right - left:.1f}" y="{top:.1f}" height="{bottom - top:.1f}" '
                f'fill="{fill(styles[arm])}">'
                f"<title>{escape(arm)}: {mean:.1f} [{low:.1f}, {high:.1f}]</title></rect>"
                f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" y1="{frame.down(low):.1f}" '
                f'y2="{frame.down(high):.1f}"/>'
            )
    return _svg(title, parts)

"""Pictures of a table, chosen in its plan by `_target_`: curves against the step, and bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from hydra.errors import HydraException
from hydra.utils import instantiate
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from expo.config import UserError
from expo.config.errors import first_line
from expo.runs.reading import by_step, read_points
from expo.tables.plan import MEASURED, Plan, is_rate
from expo.tables.planned import PlannedRun
from expo.tables.styles import Style, styles


@dataclass
class Curves:
    """One panel per entry of `panels`: `{metric, title, arms}`, of which only metric must be given.

    Each arm's mean over its runs against the step, where all of them have a value; the band spans the runs. `across`
    panels stand side by side.
    """

    panels: list[dict[str, Any]] = field(default_factory=list)
    across: int = 4

    def named(self) -> dict[str, list[str]]:
        if any("metric" not in panel for panel in self.panels):
            raise TypeError("a panel has no metric")
        return {"arms": [arm for panel in self.panels for arm in panel.get("arms") or ()]}

    def draw(self, plan: Plan, record: Mapping[str, Any], runs: Sequence[PlannedRun]) -> Figure:
        panels = self.panels or [{"metric": plan.columns[-1]}]
        figure, axes = _grid(len(panels), self.across, (4.5, 4.2), (1.5, 0))
        for axis, panel in zip(axes, panels, strict=True):
            lacking = []
            for arm in panel.get("arms") or plan.arms:
                own = [run for run in runs if run.arm == arm and run.done]
                points = [read_points(run.dir, panel["metric"]) for run in own]
                has = [p for p in points if p]
                label = plan.arms[arm].label
                lacking += [f"{label}: {len(has)} of {len(own)} runs"] if len(has) < len(own) else []
                curve(axis, has, label, styles(plan.arms)[arm])
            axis.set(xlabel="step", ylabel=panel["metric"], title="\n".join([panel.get("title", ""), *lacking]))
            if is_rate(panel["metric"]):
                axis.set_ylim(-0.02, 1.02)
        return _finish(figure, plan)


@dataclass
class Bars:
    """One panel per list of columns in `panels`: a group of bars per column, a bar per arm, with 95 % intervals.

    With `paper`, a further panel of that title shows the paper's numbers of the same arms.
    """

    panels: list[list[str]] = field(default_factory=list)
    paper: str = ""

    def named(self) -> dict[str, list[str]]:
        return {"columns": [column for panel in self.panels for column in panel]}

    def draw(self, plan: Plan, record: Mapping[str, Any], runs: Sequence[PlannedRun]) -> Figure:
        panels = self.panels or [plan.columns]
        count = len(panels) + bool(self.paper)
        figure, axes = _grid(count, count, (4.5, 4.2), (1.5, 0))
        headings = dict(zip(plan.columns, plan.headings or plan.columns, strict=True))
        arms = [arm for arm in plan.arms if record["arms"][arm]["runs"]]
        for axis, columns in zip(axes, panels, strict=False):
            scale = 100 if is_rate(columns[0]) else 1
            cells = {arm: [record["arms"][arm]["columns"][c] for c in columns] for arm in arms}
            for arm, place in places(arms):
                label = plan.arms[arm].label
                for i, cell in enumerate(cells[arm]):
                    if cell is not None:
                        of = [scale * cell[name] for name in ("mean", "lo", "hi")]
                        bar(axis, i + place, len(arms), of, styles(plan.arms)[arm], label)
                        label = ""  # told once
            axis.set_xticks(range(len(columns)), [headings[c] for c in columns])
            axis.set(ylabel="percent" if scale == 100 else "", title="measured here" if self.paper else "")
            if scale == 100:
                axis.set_ylim(0, 105)
        if self.paper:
            numbers = {arm: plan.paper[arm] for arm in arms if plan.paper.get(arm)}
            columns = list(dict.fromkeys(c for row in numbers.values() for c in row))
            for arm, place in places(list(numbers)):
                for i, column in enumerate(columns):
                    if (number := numbers[arm].get(column)) is not None:
                        bar(axes[-1], i + place, len(numbers), [number], styles(plan.arms)[arm])
            axes[-1].set_xticks(range(len(columns)), columns)
            axes[-1].set(ylabel="percent", title=self.paper, ylim=(0, 105))
        return _finish(figure, plan)


FRAMES = {1: ("tab:green", "-"), -1: ("tab:red", "--")}


@dataclass
class Heat:
    """One panel per entry of `panels`: the mean of `column` by the arms `<panel>_<row>_<column of the map>`.

    Args: panels, rows, columns: parts of arms' names, each with what it is called; rows may be left out of the names.
    frames: whether a cell is framed whose difference to the arm it is held against is settled: green where it is
    better, red and dashed where it is worse.
    """

    column: str
    panels: dict[str, str]
    columns: dict[str, str]
    rows: dict[str, str] = field(default_factory=lambda: {"": ""})
    across: int = 4
    x: str = ""
    y: str = ""
    frames: bool = False

    def named(self) -> dict[str, list[str]]:
        return {"columns": [self.column]}

    def draw(self, plan: Plan, record: Mapping[str, Any], runs: Sequence[PlannedRun]) -> Figure:
        size = (0.9 + 0.75 * len(self.columns), 0.9 + 0.5 * len(self.rows))
        figure, axes = _grid(len(self.panels), self.across, size, (1, 0.8))
        scale = 100 if is_rate(self.column) else 1
        places = 0 if is_rate(self.column) else MEASURED[self.column.partition("/level")[0]]
        for axis, (panel, title) in zip(axes, self.panels.items(), strict=True):
            names = [["_".join(filter(None, (panel, row, column))) for column in self.columns] for row in self.rows]
            shown = np.array([[self._mean(record, name) for name in row] for row in names]) * scale
            axis.imshow(shown, cmap="YlGnBu", vmin=0, vmax=scale if scale == 100 else None, aspect="auto")
            for (i, j), value in np.ndenumerate(shown):
                if not np.isnan(value):
                    dark = value > 0.6 * (scale if scale == 100 else np.nanmax(shown))
                    axis.text(j, i, f"{value:.{places}f}", ha="center", va="center", color="white" if dark else "black")
                if self.frames and (sign := self._settled(record, names[i][j])):
                    edge, style = FRAMES[sign]
                    axis.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec=edge, ls=style, lw=2.5))
            axis.set_xticks(range(len(self.columns)), list(self.columns.values()), fontsize=7)
            axis.set_yticks(range(len(self.rows)), list(self.rows.values()), fontsize=7)
            axis.set_title(title, fontsize=9)
        figure.supxlabel(self.x, fontsize=8)
        figure.supylabel(self.y, fontsize=8)
        figure.suptitle(plan.title, fontsize=10, wrap=True)
        return figure

    def _mean(self, record: Mapping[str, Any], arm: str) -> float:
        cell = record["arms"].get(arm, {}).get("columns", {}).get(self.column)
        return cell["mean"] if cell else np.nan

    def _settled(self, record: Mapping[str, Any], arm: str) -> int:
        """Return 1 or -1 where an arm is better or worse than the one it is held against, in 95 %; else 0."""
        cell = record["arms"].get(arm, {}).get("difference", {}).get(self.column)
        less_is_better = self.column.startswith("nll")
        return 0 if cell is None else (-1 if less_is_better else 1) * (int(cell["lo"] > 0) - int(cell["hi"] < 0))


def drawers_of(plan: Plan) -> dict[str, Any]:
    """Return the plan's figures by file name, or a curve of its last column. Raises UserError for one that cannot be
    made, or that names an arm or a column that the plan lacks."""
    drawers: dict[str, Any] = {}
    for key, conf in plan.figures.items():
        try:
            if conf:
                drawers[key] = instantiate(conf, _convert_="all")
                if not hasattr(drawers[key], "draw"):
                    raise TypeError("its _target_ draws nothing")
                for part, names in getattr(drawers[key], "named", dict)().items():
                    if unknown := next((name for name in names if name not in getattr(plan, part)), None):
                        known = ", ".join(getattr(plan, part))
                        raise UserError(f"figures.{key}: {unknown}: none of the table's {part}; use some of {known}")
        except (HydraException, AttributeError, TypeError) as error:
            raise UserError(f"figures.{key}: {first_line(error)}; docs/tables.md has its keys") from error
    return drawers or {"curves": Curves()}


def _grid(count: int, across: int, size: tuple[float, float], margin: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels, at most `across` side by side. Args: size of each, and margin, in inches."""
    across = min(across, count)
    down = -(-count // across)
    figsize = (margin[0] + across * size[0], margin[1] + down * size[1])
    figure, axes = plt.subplots(down, across, figsize=figsize, layout="constrained", squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def curve(axis: Axes, runs: Sequence[Sequence[tuple[float, float]]], label: str, style: Style) -> None:
    """Draw the mean over some runs against the step; a band spans the runs."""
    if not runs:
        return
    steps, values = by_step(runs)
    drawn: dict[str, Any] = {"linestyle": (0, style.dash) if style.dash else "solid", "linewidth": 1.8}
    drawn |= {"marker": "o"} if len(steps) == 1 else {}  # a line of one point is not seen
    axis.plot(steps, [np.mean(v) for v in values], color=style.colour, label=label, **drawn)
    if len(runs) > 1:
        low, high = [min(v) for v in values], [max(v) for v in values]
        axis.fill_between(steps, low, high, color=style.colour, alpha=0.15, linewidth=0)


def places(arms: Sequence[str]) -> list[tuple[str, float]]:
    """Return where the bar of each arm stands in its group, which is 0.8 wide."""
    return [(arm, (j - (len(arms) - 1) / 2) * 0.8 / len(arms)) for j, arm in enumerate(arms)]


def bar(axis: Axes, place: float, arms: int, of: Sequence[float], style: Style, label: str = "") -> None:
    """Draw one of `arms` bars of a group. Args: of, the mean; or the mean, and the ends of its interval."""
    hatched: dict[str, Any] = {"hatch": "///", "edgecolor": "white", "linewidth": 0} if style.dash else {}
    mean, *ends = of
    axis.bar(place, mean, width=0.8 / arms, color=style.colour, label=label or None, **hatched)
    if ends:
        reach = [[mean - ends[0]], [ends[1] - mean]]
        axis.errorbar(place, mean, reach, color="black", capsize=2, linewidth=1)


def plain(axis: Axes) -> None:
    """Leave an axis without a box, with pale lines to read heights by."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)


def _finish(figure: Figure, plan: Plan) -> Figure:
    labels: dict[str, Any] = {}
    for axis in figure.axes:
        plain(axis)
        labels |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.suptitle(plan.title, fontsize=10)
    figure.legend(labels.values(), labels.keys(), frameon=False, fontsize=7, loc="outside right center")
    return figure

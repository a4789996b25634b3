"""One self-contained HTML page about some runs: table, bars by level, curves with bands, samples, counts and cost."""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from expo.ground.files import beside
from expo.report import charts
from expo.report.solving import Solving, verdict_of
from expo.runs.reading import points_in
from expo.tables.aggregate import pass_values, stack, statistic
from expo.tables.styles import Style, styles

# Scalars of metrics.jsonl: the unit on the axis; SHARE of shares, which are shown as the tables show them; "" where
# there is none.
SHARE = "percent"
CURVES = {
    "pass@4": SHARE,
    "reward/mean": SHARE,
    "reward/all_wrong_frac": SHARE,
    "reward/unparseable_frac": SHARE,
    "completion/truncated_frac": SHARE,
    "positive/used_frac": SHARE,
    "positive/logp_given_q": "nats per token",
    "positive/answer_lift": "nats",
    "loss/total": "",
    "loss/preference": "",
    "pair/chosen_gain": "nats",
    "policy/entropy": "nats per token",
    "completion/length_mean": "tokens",
}
COUNTS = (
    "positive/used_frac",
    "positive/filtered_frac",
    "pair/used_frac",
    "reward/unparseable_frac",
    "completion/truncated_frac",
    "reward/all_wrong_frac",
    "reward/all_right_frac",
)
STAGES = ("time/rollout_s", "time/explain_s", "time/verify_s", "time/update_s", "time/sync_s")
TOKENS = ("throughput/tokens_generated", "throughput/tokens_trained")
BINS = (0.05, 0.5, 1.0, 2.0, 4.0)  # nats below which a token is of the next brighter colour


Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headings and rows


@dataclass(frozen=True)
class RunData:
    """A run for a report: metrics.jsonl, completions of the last evaluation, samples of the last logged step."""

    arm: str
    seed: int
    summary: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    completions: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)  # by whole keys

    @property
    def finished(self) -> bool:
        """Return whether the run went to its end; a stopped one may hold only the evaluation before training."""
        return bool(self.summary.get("status", "done") == "done")


@dataclass(frozen=True)
class Compared:
    """Two arms on the same problems: differences by level, a sentence, and some problems' completions side by side."""

    differences: Table
    told: str
    # Of each problem: a heading, the question, the answer, and of each arm its name, its verdict and its completion.
    beside: Sequence[tuple[str, str, str, Sequence[tuple[str, str, str]]]]


@dataclass(frozen=True)
class Page:
    """Head of a page: title, how it was made, a table, and pictures where there are no curves to draw."""

    title: str
    made: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    images: Sequence[Path] = field(default_factory=list)
    arms: Sequence[str] = ()  # all of them, in the order of the figures, for the same colours; (): as the runs come
    data: Sequence[str] = ()  # which data and model, in sentences
    differs: Table | None = None  # headings and rows of the settings that differ between arms
    solving: Solving | None = None  # problems' completions over training
    compared: Compared | None = None  # of a page about two arms


def write(page: Page, runs: Sequence[RunData], path: Path) -> None:
    """Write the page, with no outside resources."""
    arms: dict[str, list[RunData]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    shown = styles([*page.arms, *arms])
    shown = {arm: shown[arm] for arm in arms}
    trained = {arm: its for arm, its in arms.items() if any(run.lines for run in its)}
    names = {**_hardest(trained), **CURVES}
    if not any(line.get("loss/preference") for its in trained.values() for run in its for line in run.lines):
        del names["loss/preference"]  # no DPO here
    curves = [(name, chart) for name, unit in names.items() if (chart := _chart(name, unit, trained, shown))]
    levels = _levels(arms, shown)
    samples = [(arm, [_sample(s) for s in its[0].samples]) for arm, its in arms.items() if its[0].samples]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters["breakable"] = lambda key: re.findall(r"[^/_.]+[/_.]?|[/_.]", key)  # where long names may break
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    text = template.render(
        page=page,
        styles=shown,
        swatch=charts.swatch,
        levels=levels,
        by_level=any(" by level" in chart for _, chart in levels),
        intervals=_intervals({arm: _finished_or_all(its) for arm, its in arms.items()}),
        curves=curves,
        images=[] if curves else [(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in page.images],
        samples=samples,
        # JSON that cannot end its script element.
        solving=page.solving and Markup(json.dumps(page.solving.data, ensure_ascii=False).replace("<", "\\u003c")),
        bins=[f"≥ -{BINS[0]:g}", *(f"≥ -{b:g}" for b in BINS[1:]), f"< -{BINS[-1]:g}"],
        counts=_table(trained, dict.fromkeys(_counted(trained), (_percent, ".1f"))) if trained else None,
        cost=_cost(trained) if trained else None,
    )
    with beside(path) as partial:
        partial.write_text(text)


def _counted(arms: Mapping[str, Sequence[RunData]]) -> tuple[str, ...]:
    """Return COUNTS, with each filter that has rejected any candidate."""
    lines = [line for runs in arms.values() for run in runs for line in run.lines]
    names = {name for name in set().union(*lines) if re.fullmatch(r"positive/filtered_\w+_frac", name)}
    filters = {name for name in names if any(line.get(name) for line in lines)}
    after = COUNTS.index("positive/filtered_frac") + 1
    return (*COUNTS[:after], *sorted(filters), *COUNTS[after:])


def _hardest(arms: Mapping[str, Sequence[RunData]]) -> dict[str, str]:
    """Return pass@4 of the highest level, where there are several."""
    names = set().union(*(line for runs in arms.values() for line in runs[0].lines))
    levels = {name for name in names if re.fullmatch(r"pass@4/level(?!.*_(?:lo|hi)$).+", name)}
    hardest = max(levels, key=lambda name: [int(n) for n in re.findall(r"level(\d+)", name)], default="")
    return {hardest: SHARE} if len(levels) > 1 else {}


def _chart(name: str, unit: str, arms: Mapping[str, Sequence[RunData]], shown: Mapping[str, Style]) -> Markup | None:
    """Draw the curves of a scalar, of an arm's finished runs where it has any; shares in percent: a user's own reward
    may be none."""
    of_arms = {arm: _finished_or_all(runs) for arm, runs in arms.items()}
    curves = {arm: [points_in(run.lines, name) for run in runs] for arm, runs in of_arms.items()}
    share = unit is SHARE and all(0 <= value <= 1 for runs in curves.values() for run in runs for _, value in run)
    if share:
        curves = {arm: [[(step, 100 * value) for step, value in run] for run in runs] for arm, runs in curves.items()}
    named = f"{name} ({unit})" if unit and (share or unit is not SHARE) else name
    return charts.lines(name, named, curves, shown, share)


def _finished_or_all(runs: Sequence[RunData]) -> Sequence[RunData]:
    return [run for run in runs if run.finished] or runs


def _intervals(arms: Mapping[str, Sequence[RunData]]) -> str:
    alone = [arm for arm, runs in arms.items() if len(runs) == 1]
    if not alone:
        return "over problems and seeds"
    seeds = "one run cannot tell how other seeds would have ended"
    if len(alone) == len(arms):
        return f"over problems alone: {seeds}"
    return f"over problems and seeds; of {', '.join(alone)} over problems alone: {seeds}"


def _levels(arms: Mapping[str, Sequence[RunData]], styles: Mapping[str, Style]) -> list[tuple[str, Any]]:
    """Return pass@1 and pass@4 (less of few samples), by level, of an arm's finished runs where it has any."""
    of_arms = {arm: _finished_or_all(runs) for arm, runs in arms.items()}
    with_rows = {arm: [run.completions for run in runs if run.completions] for arm, runs in of_arms.items()}
    with_rows = {arm: rows for arm, rows in with_rows.items() if rows}
    if not with_rows:
        return []
    samples = min(max(row["sample"] for row in rows) + 1 for runs in with_rows.values() for rows in runs)
    levels = sorted({row["level"] for runs in with_rows.values() for row in runs[0] if row["level"] is not None})
    groups = [("all", ""), *((f"L{level}", f"/level{level}") for level in levels if len(levels) > 1)]
    charted = []
    for k in sorted({1, min(4, samples)}):
        cells: dict[str, dict[str, tuple[float, float, float]]] = {}
        for name, suffix in groups:
            cells[name] = {}
            for arm, runs in with_rows.items():
                values = [pass_values(rows, f"pass@{k}{suffix}") for rows in runs]
                if all(values):
                    s = statistic(stack({str(i): v for i, v in enumerate(values)}, partly=True), f"pass@{k}")
                    cells[name][arm] = (100 * s["mean"], 100 * s["lo"], 100 * s["hi"])
        by = ("level", f"pass@{k} by level") if len(groups) > 1 else ("", f"pass@{k}")
        if chart := charts.bars(by[1], by[0], f"pass@{k} (percent)", cells, styles):
            charted.append((f"pass@{k}", chart))
    return charted


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    texts, logps = row.get("positive_tokens") or [], row.get("positive_token_logp") or []
    # A word-level tokenizer's pieces have no spaces of their own.
    spaced = not "".join(texts).startswith(row["positive"] or "")
    verdict = verdict_of(row) if row.get("verdict") else None
    tokens = [
        (text + " " if spaced else text, sum(-logp > limit for limit in BINS), logp)
        for text, logp in zip(texts, logps, strict=True)
    ]
    return dict(row) | {"tokens": tokens, "verdict": verdict}


def _percent(run: RunData, name: str) -> float | None:
    values = [value for _, value in points_in(run.lines, name)]
    return 100 * float(np.mean(values)) if values else None


def _sum(run: RunData, name: str) -> float | None:
    values = [value for _, value in points_in(run.lines, name)]
    return float(sum(values)) if values else None


Column = tuple[Callable[[RunData, str], float | None], str]


def _table(arms: Mapping[str, Sequence[RunData]], columns: Mapping[str, Column]) -> Table:
    """Return the headings and rows: the mean over an arm's runs of each column that any of them has."""
    cells: dict[str, list[str]] = {}
    for name, (of, form) in columns.items():
        values = [[v for run in runs if (v := of(run, name)) is not None] for runs in arms.values()]
        if any(values):
            cells[name] = [format(np.mean(of_arm), form) if of_arm else "–" for of_arm in values]
    return ["arm", *cells], [[arm, *row] for arm, *row in zip(arms, *cells.values(), strict=True)]


def _cost(arms: Mapping[str, Sequence[RunData]]) -> Table:
    columns: dict[str, Column] = {"seconds": (lambda run, name: run.summary.get("wall_s"), ".0f")}
    columns |= dict.fromkeys(TOKENS, (_sum, ",.0f")) | dict.fromkeys(STAGES, (_sum, ".1f"))
    columns["peak memory (MiB)"] = (lambda run, _: (run.summary.get("peak_memory_mb") or {}).get("process"), ".0f")
    return _table(arms, columns)

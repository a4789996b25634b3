"""How often intervals hold the truth: simulated runs whose true rate is known (experiments/bench_intervals).

The rate of a problem under a training seed is σ(μ + a_s + b_p): seeds and problems are normal on the scale of logits, and so are fewer
apart near rates of 0 and 1. Each is sampled a few times. The truth is the mean over all problems and seeds that there could be.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from expo.evaluation import intervals
from expo.tables.plan import EXPERIMENTS

SAMPLES = 4  # of each problem
PROBLEMS_SD = 2.0  # of problems, in logits
APART = 1.0  # logits between two arms that are not equal
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)


@dataclass(frozen=True)
class World:
    """What is simulated: `sd` is the standard deviation of a seed's rate where the rate of all is a half."""

    problems: int
    seeds: int
    rate: float
    sd: float


@dataclass(frozen=True)
class Coverage:
    """The share of intervals that hold the truth: of a rate, and of the difference of two arms that are equal, and that are not."""

    share: float
    equal: float
    apart: float
    width: float  # mean, of the interval of the rate


def coverage(world: World, repetitions: int, seed: int = 0) -> Coverage:
    """Simulate a world many times: an arm, another like it, and one whose problems are all easier by a logit."""
    rng = np.random.default_rng(seed)
    center = _center(world)
    better = _rate(world, center + APART)
    share, equal, apart, widths = 0, 0, 0, 0.0
    for _ in range(repetitions):
        hard = PROBLEMS_SD * rng.standard_normal((1, world.problems))
        one, like, easier = (_passes(world, c, hard, rng) for c in (center, center, center + APART))
        low, high = intervals.of_share(one)
        share += low <= world.rate <= high
        widths += high - low
        low, high = intervals.of_difference(like - one)
        equal += low <= 0 <= high
        low, high = intervals.of_difference(easier - one)
        apart += low <= better - world.rate <= high
    return Coverage(*(float(held) / repetitions for held in (share, equal, apart, widths)))


def _passes(world: World, center: float, hard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return pass@1 of each problem under each seed: `[S, P]`."""
    rates = expit(center + 4 * world.sd * rng.standard_normal((world.seeds, 1)) + hard)
    right: np.ndarray = rng.binomial(SAMPLES, rates)
    return right / SAMPLES


def _rate(world: World, center: float) -> float:
    """Return the mean rate over all problems and seeds; the slope of σ at a half is 1/4."""
    spread = np.hypot(4 * world.sd, PROBLEMS_SD)
    return float(WEIGHTS @ expit(center + spread * NODES) / WEIGHTS.sum())


def _center(world: World) -> float:
    if world.rate in (0, 1):
        return np.inf if world.rate else -np.inf
    return float(brentq(lambda center: _rate(world, center) - world.rate, -50, 50))


GRID = [
    World(problems, seeds, rate, sd)
    for problems in (50, 200, 1000)
    for seeds in (1, 2, 3, 5, 10)
    for sd in (0.0, 0.05, 0.15)
    for rate in (0.0, 0.005, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
]


def write_grid(folder: Path, repetitions: int) -> None:
    """Simulate the whole grid into coverage.json and coverage.md."""
    found = [(world, coverage(world, repetitions)) for world in GRID]
    rows = [vars(world) | vars(c) for world, c in found]
    (folder / "coverage.json").write_text(json.dumps({"repetitions": repetitions, "worlds": rows}, indent=0) + "\n")
    rates = sorted({world.rate for world in GRID})
    lines = []
    for title, name in (
        ("Rates", "share"),
        ("Differences of two arms that are equal", "equal"),
        ("Differences of two arms that are not", "apart"),
    ):
        lines += [f"## {title}", "", "| problems | seeds | SD of seeds | " + " | ".join(f"{r:g}" for r in rates) + " |"]
        lines.append("|" + "---|" * (3 + len(rates)))
        by_row: dict[tuple[int, int, float], dict[float, float]] = {}
        for world, c in found:
            by_row.setdefault((world.problems, world.seeds, world.sd), {})[world.rate] = getattr(c, name)
        for (problems, seeds, sd), cells in by_row.items():
            shown = " | ".join(f"{100 * cells[r]:.1f}" for r in rates)
            lines.append(f"| {problems} | {seeds} | {sd:g} | {shown} |")
        lines.append("")
    (folder / "coverage.md").write_text("\n".join(lines))


if __name__ == "__main__":
    write_grid(EXPERIMENTS / "bench_intervals", 1000)

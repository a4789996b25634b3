"""How often intervals hold the truth: simulated runs whose true rate is known (experiments/bench_intervals).

The rate of a problem under a training seed is σ(μ + a_s + b_p): seeds and problems are normal on the scale of logits,
and so are fewer apart near rates of 0 and 1; or a seed takes off or does not, and a_s has two values. Each problem is
sampled a few times. The truth is the mean of pass@k over all problems and seeds that there could be.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from expo.evaluation import intervals
from expo.evaluation.pass_at_k import pass_at_k
from expo.tables.plan import EXPERIMENTS
from expo.tables.render import far_apart

SAMPLES = 4  # of each problem
PROBLEMS_SD = 2.0  # of problems, in logits
APART = 1.0  # logits between two arms that are not equal: of a seed's rates, or of its chance to take off
STAYS = 0.01  # the rate under a seed that does not take off
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)


@dataclass(frozen=True)
class World:
    """What is simulated: `sd` is the standard deviation of a seed's rate where the rate of all is a half.

    With `takes_off`, a seed's rate is that, or STAYS: as often the one as the mean `rate` of pass@`k` asks for.
    """

    problems: int
    seeds: int
    rate: float
    sd: float = 0.0
    k: int = 1
    takes_off: float = 0.0

    @property
    def chance(self) -> float:
        """Return how likely a seed is to take off."""
        return (self.rate - STAYS) / (self.takes_off - STAYS)


@dataclass(frozen=True)
class Coverage:
    """The share of intervals that hold the truth: of a rate, and of the difference of two arms that are equal, and that
    are not."""

    share: float
    equal: float
    apart: float
    width: float  # mean, of the interval of the rate
    marked: float  # the share of rates whose seeds lie so far apart that a table says so


def coverage(world: World, repetitions: int, seed: int = 0) -> Coverage:
    """Simulate a world many times: an arm, another like it, and one that is better by a logit."""
    rng = np.random.default_rng(seed)
    draw, drawn_better, apart_by = _arms(world)
    held, width = np.zeros(4), 0.0
    for _ in range(repetitions):
        hard = PROBLEMS_SD * rng.standard_normal((1, world.problems))
        one, like, better = (_passes(world, centers(rng), hard, rng) for centers in (draw, draw, drawn_better))
        low, high = intervals.of_share(one)
        (lo, hi), (lo_apart, hi_apart) = (intervals.of_difference(other - one) for other in (like, better))
        held += [
            low <= world.rate <= high,
            lo <= 0 <= hi,
            lo_apart <= apart_by <= hi_apart,
            far_apart(one.mean(axis=1).tolist()),
        ]
        width += high - low
    share, equal, apart, marked = (float(h) / repetitions for h in held)
    return Coverage(share, equal, apart, width / repetitions, marked)


Centers = Callable[[np.random.Generator], np.ndarray]  # draws the logits of each seed: `[S, 1]`


def _arms(world: World) -> tuple[Centers, Centers, float]:
    """Return how the seeds of an arm are drawn, how those of a better one, and how much better that is."""
    if world.takes_off:
        stays, off = (_center(world, rate, PROBLEMS_SD) for rate in (STAYS, world.takes_off))
        better = float(expit(logit(world.chance) + APART))

        def some_of(chance: float) -> Centers:
            return lambda rng: np.where(rng.random((world.seeds, 1)) < chance, off, stays)

        return some_of(world.chance), some_of(better), (better - world.chance) * (world.takes_off - STAYS)
    spread = float(np.hypot(4 * world.sd, PROBLEMS_SD))  # the slope of σ at a half is 1/4
    center = _center(world, world.rate, spread)

    def around(center: float) -> Centers:
        return lambda rng: center + 4 * world.sd * rng.standard_normal((world.seeds, 1))

    return around(center), around(center + APART), _rate(world, center + APART, spread) - world.rate


def _passes(world: World, centers: np.ndarray, hard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return pass@k of each problem under each seed: `[S, P]`."""
    right = rng.binomial(SAMPLES, expit(centers + hard))
    passes: np.ndarray = pass_at_k(SAMPLES, range(SAMPLES + 1), world.k)[right]
    return passes


def _rate(world: World, center: float, spread: float) -> float:
    """Return the mean pass@k of what is normal around `center` in logits, with the standard deviation `spread`."""
    rates = 1 - (1 - expit(center + spread * NODES)) ** world.k
    return float(WEIGHTS @ rates / WEIGHTS.sum())


def _center(world: World, rate: float, spread: float) -> float:
    if rate in (0, 1):
        return np.inf if rate else -np.inf
    return float(brentq(lambda center: _rate(world, center, spread) - rate, -50, 50))


MIDDLE = (0.1, 0.3, 0.5, 0.7, 0.9)
NORMAL_SEEDS = [
    World(problems, seeds, rate, sd, k)
    for k in (1, 4)
    for problems in (50, 200, 1000)
    for seeds in (1, 2, 3, 5, 10)
    for sd in (0.0, 0.05, 0.15)
    for rate in (0.0, 0.005, 0.02, *MIDDLE, 0.98, 1.0)
]
TAKE_OFF_SEEDS = [
    World(problems, seeds, rate, k=k, takes_off=takes_off)
    for k in (1, 4)
    for problems in (50, 200, 1000)
    for seeds in (1, 2, 3, 5, 10)
    for takes_off in (0.4, 0.7, 0.99)
    for rate in MIDDLE
    if rate < takes_off
]
QUANTITIES = {
    "share": "Rates",
    "equal": "Differences of two arms that are equal",
    "apart": "Differences of two arms that are not",
    "marked": "Rates whose seeds lie so far apart that a table says so",
}


def write_grid(folder: Path, repetitions: int) -> None:
    """Simulate the whole grid into coverage.json and coverage.md."""
    found = {world: coverage(world, repetitions) for world in (*NORMAL_SEEDS, *TAKE_OFF_SEEDS)}
    rows = [asdict(world) | asdict(c) for world, c in found.items()]
    (folder / "coverage.json").write_text(json.dumps({"repetitions": repetitions, "worlds": rows}, indent=0) + "\n")
    lines = []
    for kind, worlds, varied in (
        ("seeds vary around a mean", NORMAL_SEEDS, "sd"),
        ("a seed takes off or does not", TAKE_OFF_SEEDS, "takes_off"),
    ):
        rates = sorted({world.rate for world in worlds})
        heads = [
            "",
            "problems",
            "seeds",
            "SD of seeds" if varied == "sd" else "takes off to",
            *(f"{r:g}" for r in rates),
        ]
        for name, title in QUANTITIES.items():
            lines += [f"## {title}, {kind}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
            by_row: dict[tuple[int, int, int, float], dict[float, float]] = {}
            for w in worlds:
                row = by_row.setdefault((w.k, w.problems, w.seeds, getattr(w, varied)), {})
                row[w.rate] = getattr(found[w], name)
            for (k, problems, seeds, by), cells in by_row.items():
                shown = " | ".join(f"{100 * cells[r]:.1f}" if r in cells else "–" for r in rates)
                lines.append(f"| pass@{k} | {problems} | {seeds} | {by:g} | {shown} |")
            lines.append("")
    (folder / "coverage.md").write_text("\n".join(lines))


if __name__ == "__main__":
    write_grid(EXPERIMENTS / "bench_intervals", 400)

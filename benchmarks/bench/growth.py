"""How the cost of a step grows with its work."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.bench.cases import Case, shape_of

FACTORS = (1, 2, 4, 8)
# Small enough that 8 times any of it fits. What a step costs whatever its size makes the exponents smaller.
BASE = Case(
    "grown", "2.4M parameters, vocabulary 4,096", shape_of(192, 768, 3, 6, 2, 4096), problems=4, group=4, tokens=32
)
GROWN = ("rows", "length", "group", "vocabulary")


def grown(what: str, factor: int) -> Case:
    """Return BASE with `factor` times as much of one thing."""
    if what == "rows":
        return replace(BASE, problems=BASE.problems * factor)
    if what == "length":
        return replace(BASE, tokens=BASE.tokens * factor)
    if what == "group":
        return replace(BASE, group=BASE.group * factor)
    return replace(BASE, shape=BASE.shape | {"vocab_size": BASE.shape["vocab_size"] * factor})


def many(questions: list[str]) -> list[str]:
    """Return enough questions for the largest step."""
    times = -(-BASE.problems * max(FACTORS) // len(questions))
    return [f"{i + 1}. {question}" for i in range(times) for question in questions]


def costs(figures: Mapping[int, Mapping[str, list[float]]]) -> dict[str, dict[int, float]]:
    """Return each cost of a step by factor: seconds as medians, MiB above the peak before the first step."""
    parts = {"seconds": "seconds", "of rollouts": "rollout_s", "of update": "update_s"}
    found = {name: {f: statistics.median(own[key]) for f, own in figures.items()} for name, key in parts.items()}
    return found | {"MiB": {f: max(own["peak_mb"]) - own["idle_mb"][0] for f, own in figures.items()}}


def exponent(by_factor: Mapping[int, float]) -> float:
    """Return the p of cost ~ factor^p, by least squares through the logarithms; NaN where a cost is too small to be
    seen."""
    if min(by_factor.values()) <= 0:
        return math.nan
    logs = [(math.log(factor), math.log(cost)) for factor, cost in by_factor.items()]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope

"""What `expo diagnose` measures of each kind of sample, in numbers and tables. Imports no torch: tables import it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from expo.evaluation import intervals
from expo.ground.problem import Problem

KINDS = {
    "own": "own CoT",
    "expert": "expert CoT",
    "self_explanation": "self-explanation",
    "wrong_answer": "wrong-answer control",
    "shuffled_answer": "other-answer control",
}
# column -> heading
COLUMNS = {
    "nll_per_token": "NLL/token",
    "nll": "NLL",
    "answer_lift": "answer lift",
    "verified": "verified",
    "right_steps": "right steps",
    "tokens": "tokens",
}
Samples = list[dict[str, Any]]


SHARES = ("verified", "right_steps")  # of the columns, those between 0 and 1
SIGNED = ("answer_lift",)  # those that may be negative


def interval_of(column: str, difference: bool) -> Callable[[np.ndarray], tuple[float, float]]:
    """Return the function that gives the interval of the mean of a column, or of a paired difference of two."""
    if column in SHARES:
        return intervals.of_difference if difference else intervals.of_share
    return intervals.of_mean if difference or column in SIGNED else partial(intervals.of_mean, least=0.0)


def first_of_each_level(problems: Sequence[Problem], count: int) -> list[Problem]:
    taken: dict[int | str | None, int] = defaultdict(int)
    chosen = []
    for problem in problems:
        if taken[problem.level] < count:
            taken[problem.level] += 1
            chosen.append(problem)
    return chosen


def by_problem(rows: Samples, kind: str, level: int | str | None, column: str) -> dict[int, float]:
    """Return the mean of each problem that has such samples. `level` None: all levels."""
    values = defaultdict(list)
    for row in rows:
        if row["kind"] == kind and level in (None, row["level"]) and row[column] is not None:
            values[row["problem"]].append(row[column])
    return {problem: float(np.mean(v)) for problem, v in values.items()}


def cell(
    rows: Samples, kind: str, level: int | str | None, column: str, less: str | None = None
) -> tuple[float, float, float] | None:
    """Return mean and 95 % interval over problems of a kind, or of its difference to `less`; None without any."""
    values = by_problem(rows, kind, level, column)
    if less is not None:
        other = by_problem(rows, less, level, column)
        values = {problem: value - other[problem] for problem, value in values.items() if problem in other}
    if not values:
        return None
    means = np.array(list(values.values()))
    return float(means.mean()), *interval_of(column, less is not None)(means)


def levels_of(rows: Samples) -> list[Any]:
    return sorted({row["level"] for row in rows if row["level"] is not None})


def in_words(rows: Samples) -> list[str]:
    """Sum the explanations up, a sentence each: how many are right, and whether they have the two properties."""
    verified = [row for row in rows if row["kind"] == "self_explanation"]
    if not verified:
        return []
    right = sum(row["verified"] for row in verified)
    # The usual filters take none that is cut off.
    used = {row["problem"] for row in verified if row["verified"] and not row.get("truncated")}
    share = len(used) / len({row["problem"] for row in rows})
    unread = [row for row in verified if row.get("verdict") == "unparseable"]  # older samples tell no verdict
    cut = sum(row["truncated"] for row in unread)
    said = f", {len(unread)} without an answer that can be read ({cut} of these cut off)" if unread else ""
    sentences = [
        f"{right:.0f} of {len(verified)} explanations {'is' if right == 1 else 'are'} right{said}: ExP-GRPO would "
        f"learn from at most {100 * share:.0f} % of the problems"
    ]
    for which, column, less, sign, holds, fails in PROPERTIES:
        if (mean := cell(rows, "self_explanation", None, column, less)) is None:
            continue
        low, high = sorted(sign * end for end in mean[1:])
        if low > 0:
            sentences.append(f"{holds}: the paper's {which} property holds for this model")
        elif high < 0:
            sentences.append(f"{fails}: the paper's {which} property does not hold for this model")
        else:
            sentences.append(f"too few problems to tell the paper's {which} property")
    return sentences


# Which, the column, the kind that it is compared with, the sign of what is good, and what is said.
PROPERTIES = (
    (
        "first",
        "nll_per_token",
        "expert",
        -1,
        "the explanations are likelier than the expert here",
        "the expert is likelier than the explanations here",
    ),
    (
        "second",
        "answer_lift",
        None,
        1,
        "explanations make the answer likelier than own completions do",
        "own completions make the answer likelier than explanations do",
    ),
)


def summarize(rows: Samples) -> dict[str, float]:
    """Return `<kind>/<column>` and `<kind>/<column>/level<n>`, with `_lo` and `_hi`; `self_explanation-<kind>/…` is the
    difference on the problems of both: some have no wrong-answer control, say."""
    others = [(f"self_explanation-{kind}", "self_explanation", kind) for kind in KINDS if kind != "self_explanation"]
    metrics: dict[str, float] = {}
    for label, kind, less in [*((kind, kind, None) for kind in KINDS), *others]:
        for column in COLUMNS:
            for level in (None, *levels_of(rows)):
                summary = cell(rows, kind, level, column, less)
                if summary is not None:
                    name = f"{label}/{column}" + (f"/level{level}" if level is not None else "")
                    metrics |= dict(zip((name, f"{name}_lo", f"{name}_hi"), summary, strict=True))
    return metrics

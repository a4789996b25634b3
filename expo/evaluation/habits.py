"""What evaluations report beside pass@k: mean@n, cons@n (majority), greedy accuracy; by level and by subject. Pure
functions of rows."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expo.evaluation import intervals
from expo.evaluation.pass_at_k import pass_at_k
from expo.verifier.answers import Verdict, fast_verdict
from expo.verifier.extraction import last_boxed
from expo.verifier.spelling import bare

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What the samples of a problem come to."""

    level: int | str | None
    subject: str | None
    samples: int
    right: int
    majority: float  # see `majority`


def habits(rows: Sequence[Row], greedy: Sequence[Row], k: Sequence[int]) -> dict[str, float]:
    """Return `mean@n`, `cons@n`, `greedy`, each also with `_lo` and `_hi`, and after `/level5` or `/Algebra` of a part.

    Of subjects it returns pass@k, too; of levels the evaluation itself has it. Args: rows, n samples of each problem;
    greedy, one completion of each, or none; k, of pass@k.
    """
    return habits_of(outcomes(rows), greedy, k)


def outcomes(rows: Sequence[Row]) -> dict[str, Outcome]:
    """Return what the samples of each problem come to."""
    by_problem: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_problem[row["problem"]].append(row)
    return {
        p: Outcome(own[0]["level"], own[0]["subject"], len(own), sum(map(_right, own)), majority(own))
        for p, own in by_problem.items()
    }


def habits_of(by_problem: Mapping[str, Outcome], greedy: Sequence[Row], k: Sequence[int]) -> dict[str, float]:
    """Return the same as `habits`, of what the problems come to."""
    n = max(own.samples for own in by_problem.values())
    values: dict[str, dict[str, float]] = {
        f"mean@{n}": {p: own.right / own.samples for p, own in by_problem.items()},
        f"cons@{n}": {p: own.majority for p, own in by_problem.items()},
    }
    if greedy:
        values["greedy"] = {row["problem"]: float(_right(row)) for row in greedy}
    right = {p: own.right for p, own in by_problem.items()}
    of_subjects = {
        f"pass@{i}": dict(zip(right, pass_at_k(n, list(right.values()), i).tolist(), strict=True)) for i in k
    }
    metrics: dict[str, float] = {}
    for suffix, members in _groups(by_problem):
        named = values | (of_subjects if suffix and not suffix.startswith("/level") else {})
        for name, value in named.items():
            found = np.array([value[p] for p in members])
            metrics[name + suffix] = float(found.mean())
            metrics[f"{name}{suffix}_lo"], metrics[f"{name}{suffix}_hi"] = intervals.of_share(found)
    return metrics


def majority(samples: Sequence[Row]) -> float:
    """Return whether the answer that most samples give is right: 1 or 0, and of tied answers the share that is right.

    Right answers are one answer, however they are written, and so are wrong ones of one value. A sample without an
    answer, or with an empty one, has no vote; where none has one, it is 0. (Wang et al. 2022, arXiv 2203.11171.)
    """
    right, wrong = 0, Counter[str]()
    for row in samples:
        # What was kept before a verifier could look elsewhere stands in a box.
        answer = row["final"] if "final" in row else last_boxed(row["completion"])
        if answer is None or not bare(answer):
            continue
        if _right(row):
            right += 1
        else:
            wrong[next((other for other in wrong if same_answer(answer, other)), answer)] += 1
    most = max([right, *wrong.values()])
    tied = [right, *wrong.values()].count(most)
    return float(right == most) / tied if most else 0.0


def same_answer(one: str, other: str) -> bool:
    """Return whether two answers, neither of which is right, are one, as far as no algebra is needed to see it."""
    return fast_verdict(one, other) is Verdict.CORRECT


def _right(row: Row) -> bool:
    return bool(row["verdict"] == "correct")


def _groups(by_problem: Mapping[str, Outcome]) -> Iterable[tuple[str, list[str]]]:
    """Yield the suffix of each part's metrics, and its problems: all, each level, each subject where there are
    several."""
    yield "", list(by_problem)
    levels: set[Any] = {own.level for own in by_problem.values() if own.level is not None}
    for level in sorted(levels):
        yield f"/level{level}", [p for p, own in by_problem.items() if own.level == level]
    subjects = sorted({own.subject for own in by_problem.values() if own.subject})
    for subject in subjects if len(subjects) > 1 else ():
        yield f"/{subject}", [p for p, own in by_problem.items() if own.subject == subject]

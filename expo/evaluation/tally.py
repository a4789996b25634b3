"""The scalars of an evaluation: pass@k, mean@n, cons@n (majority) and greedy accuracy, by level and by subject."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expo.evaluation import intervals
from expo.evaluation.pass_at_k import pass_at_k
from expo.ladder import problems as ladder
from expo.verifier.answers import Verdict, fast_verdict
from expo.verifier.extraction import last_boxed
from expo.verifier.spelling import bare

Row = Mapping[str, Any]  # a completion with its verdict, as in completions.parquet


@dataclass(frozen=True)
class Outcome:
    level: int | str | None
    subject: str | None
    right: int
    majority: float  # see `majority`


@dataclass
class Tally:
    """Counts of the rows seen so far: by problem, and over all completions."""

    samples: int  # n, of each problem
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by problem, in the order of the problems
    tokens: list[int] = field(default_factory=list)  # by completion, as all below
    truncated: list[bool] = field(default_factory=list)
    unparseable: int = 0
    earlier_s: float = 0.0  # seconds that earlier sessions took for parts of these
    rewards: list[float] = field(default_factory=list)  # of a reward of one's own
    sound: list[bool] = field(default_factory=list)  # of the right ones, where the data set has an oracle

    def add(self, rows: Sequence[Row]) -> None:
        by_problem: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_problem[row["problem"]].append(row)
        self.outcomes |= {
            p: Outcome(outcomes[0]["level"], outcomes[0]["subject"], sum(map(_right, outcomes)), majority(outcomes))
            for p, outcomes in by_problem.items()
        }
        self.tokens += [row["tokens"] for row in rows]
        self.truncated += [row["truncated"] for row in rows]
        self.rewards += [row["reward"] for row in rows if "reward" in row]
        self.unparseable += sum(row["verdict"] == "unparseable" for row in rows)
        self.sound += [sound for row in rows if _right(row) and (sound := is_sound(row)) is not None]

    def metrics(self, k: Sequence[int]) -> dict[str, float]:
        """Return an evaluation's scalars: `pass@4/level5`, with `_lo` and `_hi`; means over completions, `eval/*`."""
        metrics: dict[str, float] = {}
        for suffix, problems in self._groups():
            if not suffix or suffix.startswith("/level"):
                metrics |= self._pass_at(k, suffix, problems)
        metrics["eval/length_mean"] = float(np.mean(self.tokens))
        metrics["eval/truncated_frac"] = float(np.mean(self.truncated))
        metrics["eval/unparseable_frac"] = self.unparseable / len(self.tokens)
        if self.rewards:
            metrics["eval/reward_mean"] = float(np.mean(self.rewards))
        if self.sound:  # of no right answer at all, it is not defined
            # A right answer by wrong steps counts as correct, as it does on MATH; an oracle can tell, and says so.
            metrics["eval/correct_with_sound_steps_frac"] = float(np.mean(self.sound))
        return metrics

    def sampling_metrics(self, greedy: Sequence[Row], k: Sequence[int]) -> dict[str, float]:
        """Return the further metrics of `expo evaluate`: `mean@n`, `cons@n`, `greedy`, in all, by level and by subject,
        each with `_lo` and `_hi`; and pass@k by subject. Args: greedy, one completion of each problem, or none."""
        right = {row["problem"]: float(_right(row)) for row in greedy}
        metrics: dict[str, float] = {}
        for suffix, problems in self._groups():
            outcomes = [self.outcomes[p] for p in problems]
            metrics |= _named(f"mean@{self.samples}{suffix}", [o.right / self.samples for o in outcomes])
            metrics |= _named(f"cons@{self.samples}{suffix}", [o.majority for o in outcomes])
            if greedy:
                metrics |= _named(f"greedy{suffix}", [right[p] for p in problems])
            if suffix and not suffix.startswith("/level"):
                metrics |= self._pass_at(k, suffix, problems)
        return metrics

    def _pass_at(self, k: Sequence[int], suffix: str, problems: Sequence[str]) -> dict[str, float]:
        right = [self.outcomes[p].right for p in problems]
        named = [_named(f"pass@{count}{suffix}", pass_at_k(self.samples, right, count)) for count in k]
        return {name: value for metrics in named for name, value in metrics.items()}

    def _groups(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each group's suffix of metrics, and its problems: all, each level, each subject of several."""
        yield "", list(self.outcomes)
        levels: set[Any] = {o.level for o in self.outcomes.values()} - {None}
        for level in sorted(levels):
            yield f"/level{level}", [p for p, o in self.outcomes.items() if o.level == level]
        subjects = sorted({o.subject for o in self.outcomes.values() if o.subject})
        for subject in subjects if len(subjects) > 1 else ():
            apart = "subject " if subject.startswith("level") else ""  # from the levels
            yield f"/{apart}{subject}", [p for p, o in self.outcomes.items() if o.subject == subject]


def _named(name: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
    shares = np.asarray(values, dtype=float)
    low, high = intervals.of_share(shares)
    return {name: float(shares.mean()), f"{name}_lo": low, f"{name}_hi": high}


def majority(samples: Sequence[Row]) -> float:
    """Return whether the answer that most samples give is right: 1 or 0, and of tied answers the share that is right.

    Right answers are one answer, however they are written, and so are wrong ones of one value. A sample without an
    answer, or with one that the verifier cannot read, has no vote; where none has one, it is 0.
    (Wang et al. 2022, arXiv 2203.11171.)
    """
    right, wrong = 0, Counter[str]()
    for row in samples:
        # What was kept before a verifier could look elsewhere stands in a box.
        answer = row["final"] if "final" in row else last_boxed(row["completion"])
        if answer is None or not bare(answer) or row["verdict"] == Verdict.UNPARSEABLE.value:
            continue
        if _right(row):
            right += 1
        else:
            # As far as can be seen without algebra.
            same = (other for other in wrong if fast_verdict(answer, other) is Verdict.CORRECT)
            wrong[next(same, answer)] += 1
    most = max([right, *wrong.values()])
    tied = [right, *wrong.values()].count(most)
    return float(right == most) / tied if most else 0.0


def is_sound(row: Row) -> bool | None:
    """Return whether a completion is right by right steps; None where its data set has no oracle."""
    if row.get("sound") is None and row["subject"] == "ladder":  # of before an evaluation kept it
        return _right(row) and ladder.oracle(row["question"], row["completion"]).sound
    return row.get("sound")


def _right(row: Row) -> bool:
    return bool(row["verdict"] == "correct")

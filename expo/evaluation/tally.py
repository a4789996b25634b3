"""What the scalars of an evaluation are made of: a few numbers of each problem and completion, counted part by part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expo.data import ladder
from expo.evaluation import intervals
from expo.evaluation.habits import Outcome, outcomes
from expo.evaluation.pass_at_k import pass_at_k


@dataclass
class Tally:
    """Counts of the rows seen so far, in the order of the problems."""

    samples: int
    correct: list[int] = field(default_factory=list)  # by problem
    levels: list[Any] = field(default_factory=list)  # by problem; None where it has none
    tokens: list[int] = field(default_factory=list)  # by completion, as all below
    truncated: list[bool] = field(default_factory=list)
    unparseable: int = 0
    rewards: list[float] = field(default_factory=list)  # of a reward of one's own
    sound: list[bool] = field(default_factory=list)  # of the right ones on the ladder, which can tell
    ladder: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count the rows of some problems: `samples` of each, side by side."""
        right = np.array([row["verdict"] == "correct" for row in rows]).reshape(-1, self.samples)
        self.correct += right.sum(axis=1).tolist()
        self.levels += [row["level"] for row in rows[:: self.samples]]
        self.tokens += [row["tokens"] for row in rows]
        self.truncated += [row["truncated"] for row in rows]
        self.rewards += [row["reward"] for row in rows if "reward" in row]
        self.unparseable += sum(row["verdict"] == "unparseable" for row in rows)
        self.ladder = self.ladder or rows[0]["subject"] == "ladder"
        if self.ladder:
            self.sound += [
                ladder.check_steps(r["question"], r["completion"]).sound for r in rows if r["verdict"] == "correct"
            ]
        self.outcomes |= outcomes(rows)

    def metrics(self, k: Sequence[int]) -> dict[str, float]:
        """Return the scalars (`pass@4`, `pass@4/level5`, each also with `_lo` and `_hi`)."""
        correct, known = np.array(self.correct), sorted(set(self.levels) - {None})
        groups = {"": np.ones(len(correct), dtype=bool)}
        groups |= {f"/level{g}": np.array([level == g for level in self.levels]) for g in known}
        metrics: dict[str, float] = {}
        for group, members in groups.items():
            for count in k:
                values = pass_at_k(self.samples, correct[members].tolist(), count)
                metrics[f"pass@{count}{group}"] = float(values.mean())
                metrics[f"pass@{count}{group}_lo"], metrics[f"pass@{count}{group}_hi"] = intervals.of_share(values)
        metrics["eval/length_mean"] = float(np.mean(self.tokens))
        metrics["eval/truncated_frac"] = float(np.mean(self.truncated))
        metrics["eval/unparseable_frac"] = self.unparseable / len(self.tokens)
        if self.rewards:
            metrics["eval/reward_mean"] = float(np.mean(self.rewards))
        if self.ladder and self.sound:  # of no right answer at all, it is not defined
            # A right answer by wrong steps counts as correct, as it does on MATH; the ladder can tell, and says so.
            metrics["eval/correct_with_sound_steps_frac"] = float(np.mean(self.sound))
        return metrics

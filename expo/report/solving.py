"""Completions at the steps of training, which show how problems got solved, small enough to stand in a page."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo.config import UserError
from expo.runs.reading import completions_in, read_rows, step_in

log = logging.getLogger(__name__)

HELD_OUT, TRAINED_ON, STEPS, SHOWN = 10, 3, 12, 3  # problems held out and trained on, steps, completions at each
CLIPPED = 1600  # characters of a completion; of a longer one, the middle is left out
# Problems in this order: what training did to them, in the arm that it did most to.
DONE = ("solved", "changed", "never right", "always right")

Problem = tuple[str, str]  # id and question: other data may have the same ids
Files = dict[int, Path]  # by step


@dataclass(frozen=True)
class Solving:
    """Content of the page's slider: `data`, for the script; `told`, a sentence on what is shown and left out.

    data: `texts`, every text once; and `problems`, of which each has label, question, answer and `arms`: by arm, its
    points (step, right, completions, places of the shown ones in `texts`, their verdicts, the place of the positive or
    null).
    """

    data: Mapping[str, Any]
    told: str


def read_solving(directories: Mapping[str, Path]) -> Solving | None:
    """Return problems over training, from one run directory of each arm; None where nothing was looked at twice.

    Held-out problems come from evaluations, which take the same ones each time; problems of training only where a run
    met them, and kept them, at several steps.
    """
    parts = {
        "held out": _Problems("eval-step", directories, HELD_OUT),
        "trained on": _Problems("train-step", directories, TRAINED_ON),
    }
    texts: dict[str, int] = {}
    problems = [part.entry(problem, name, texts) for name, part in parts.items() for problem in part.chosen]
    if not problems:
        return None
    shown = [f"{len(part.chosen)} of {len(part.known)} problems {name}" for name, part in parts.items() if part.chosen]
    order = "first those that were never right and then were, the hardest first"
    sentences = [
        f"Shown: {' and '.join(shown)} ({order}); one run of each arm; {SHOWN} completions at a step at most, a right "
        "one and a wrong one where there are both.",
        f"At most {STEPS} steps, evenly spread." if any(part.thinned for part in parts.values()) else "",
        f"Of a text of over {CLIPPED} characters, the middle is left out."
        if any("\n[…]\n" in t for t in texts)
        else "",
        "All completions are in the run directories.",
    ]
    return Solving({"texts": list(texts), "problems": problems}, " ".join(filter(None, sentences)))


class _Problems:
    """The problems of one kind of file: what evaluations held out, or what training logged."""

    def __init__(self, kind: str, directories: Mapping[str, Path], count: int):
        files = {arm: _files(directory, kind) for arm, directory in directories.items()}
        everywhere = sorted({step for by_step in files.values() for step in by_step})
        # Evaluations take the same problems each time: some are enough. Training seldom meets one again.
        steps_kept = set(_spread(everywhere, STEPS)) if kind == "eval-step" else set(everywhere)
        self.thinned = len(steps_kept) < len(everywhere)
        self.files = {
            arm: {step: by_step[step] for step in sorted(steps_kept & by_step.keys())} for arm, by_step in files.items()
        }
        self.levels: dict[Problem, Any] = {}
        self.counts = {arm: self._counts(by_step) for arm, by_step in self.files.items()}
        self.known = {problem for counts in self.counts.values() for problem in counts}
        again = {problem for counts in self.counts.values() for problem, steps in counts.items() if len(steps) > 1}
        self.chosen = sorted(again, key=self._sort_key)[:count]
        self.rows = {arm: self._rows(files) for arm, files in self.files.items()}

    def _counts(self, files: Files) -> dict[Problem, dict[int, tuple[int, int]]]:
        """Return (right, completions) by problem and step."""
        counts: dict[Problem, dict[int, tuple[int, int]]] = defaultdict(dict)
        for step, path in files.items():
            for row in _readable(read_rows, path, columns=["problem", "question", "level", "verdict"]):
                if row["verdict"] is not None:  # a problem that nothing was sampled for
                    problem = row["problem"], row["question"]
                    right, total = counts[problem].get(step, (0, 0))
                    counts[problem][step] = right + (row["verdict"] == "correct"), total + 1
                    self.levels[problem] = row["level"]
        return counts

    def _sort_key(self, problem: Problem) -> tuple[int, int, float, Problem]:
        done = DONE.index(self.done(problem)[0])
        shares = [[r / n for r, n in c[problem].values()] for c in self.counts.values() if problem in c]
        gained = max(curve[-1] - curve[0] for curve in shares)
        return done, -level if isinstance(level := self.levels[problem], int) else 0, -gained, problem

    def done(self, problem: Problem) -> tuple[str, str]:
        """Return what training changed about a problem, and the arm that did it."""
        changes = []
        for arm, counts in self.counts.items():
            shares = [right / total for _, (right, total) in sorted(counts.get(problem, {}).items())]
            if len(shares) > 1:
                solved = shares[0] == 0 < shares[-1]
                same = "never right" if not any(shares) else "always right" if min(shares) == 1 else "changed"
                changes.append(("solved" if solved else same, arm))
        return min(changes, key=lambda one: DONE.index(one[0]))

    def _rows(self, files: Files) -> dict[Problem, dict[int, list[dict[str, Any]]]]:
        rows: dict[Problem, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        if not self.chosen:
            return rows
        ids = [("problem", "in", [identifier for identifier, _ in self.chosen])]
        for step, path in files.items():
            for row in _readable(completions_in, path, filters=ids):
                if (row["problem"], row["question"]) in self.chosen:
                    rows[row["problem"], row["question"]][step].append(row)
        return rows

    def entry(self, problem: Problem, part: str, texts: dict[str, int]) -> dict[str, Any]:
        """Return a problem as the script wants it. Args: texts, which grows."""
        arms: dict[str, list[Any]] = {}
        answer = ""
        for arm, rows in self.rows.items():
            counts = self.counts[arm].get(problem, {})
            for step in _spread(sorted(counts), STEPS):
                right, total = counts[step]
                judged = [row for row in rows[problem][step] if row["verdict"] is not None]
                answer = judged[0]["answer"]
                positive = judged[0].get("positive")
                shown = _some(judged)
                places = [texts.setdefault(_clip(row["completion"]), len(texts)) for row in shown]
                verdicts = [verdict_of(row) + (" with a hint" if row.get("hinted") else "") for row in shown]
                positive_place = None if positive is None else texts.setdefault(_clip(positive), len(texts))
                arms.setdefault(arm, []).append([step, right, total, places, verdicts, positive_place])
        done, by = self.done(problem)
        level = self.levels[problem]
        by = f" ({by})" if done in ("solved", "changed") and len(self.files) > 1 else ""
        label = f"{f'level {level}, ' if level is not None else ''}{part}, {done}{by}"
        return {"label": label, "question": problem[1], "answer": answer, "arms": arms}


def _readable(read: Callable[..., list[dict[str, Any]]], path: Path, **which: Any) -> list[dict[str, Any]]:
    """Read the rows of a file; none, with a warning, of a damaged one."""
    try:
        return read(path, **which)
    except UserError as error:
        log.warning("%s", error)
        return []


def _files(directory: Path, kind: str) -> Files:
    paths = sorted((directory / "completions").glob(f"{kind}*.parquet"))
    return {step: path for path in paths if (step := step_in(path)) >= 0}  # no copy of one


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """Return `count` of the steps, evenly spread, with the first and the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _some(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose a few completions in order, among them a right and a wrong one where both exist."""
    right = [i for i, row in enumerate(rows) if row["verdict"] == "correct"][:1]
    wrong = [i for i, row in enumerate(rows) if row["verdict"] != "correct"][:1]
    chosen = list(dict.fromkeys([*right, *wrong, *range(len(rows))]))[:SHOWN]
    return [rows[i] for i in sorted(chosen)]


def verdict_of(row: Mapping[str, Any]) -> str:
    """Return a completion's verdict, and whether it was cut off: then it may have had no room for an answer."""
    return f"{row['verdict']}{' (cut off)' if row.get('truncated') else ''}"


def _clip(text: str) -> str:
    half = CLIPPED // 2
    return text if len(text) <= CLIPPED else f"{text[:half]}\n[…]\n{text[-half:]}"

"""Two arms on the same problems: differences by level, problems gained and lost, cost of reaching a rate."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from expo.config import UserError
from expo.report.page import Compared, RunData, Table
from expo.report.solving import verdict_of
from expo.runs.arms import measured_otherwise
from expo.runs.health import marks_of
from expo.runs.reading import by_step, points_in
from expo.tables.aggregate import pass_values, stack, statistic
from expo.tables.render import count_told, percent

ALIKE = 2  # problems that both arms solve, and that neither does, whose completions a page shows
SHOWN = 5  # problems gained, and as many lost, whose completions a page shows
FEW = 3  # pairs of runs: a comparison of fewer says so
Share = tuple[float, float]  # of a problem's samples that are right: in the first arm, in the second


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an arm's finished runs, one for each seed, and the seeds of unfinished ones."""

    name: str
    runs: Mapping[int, RunData]
    unfinished: Sequence[int] = ()

    @classmethod
    def of(cls, name: str, runs: Sequence[RunData]) -> "Side":
        """Return an arm of runs. Raises UserError where none is finished, or two have one seed."""
        done = [run for run in runs if run.completions and run.finished]
        by_seed = {run.seed: run for run in done}
        if not by_seed:
            raise UserError(f"{name}: no finished run with completions; give others, or make them")
        if len(by_seed) < len(done):
            raise UserError(f"{name}: two of its runs have one seed, so that they are no arm; name one of them")
        return cls(name, by_seed, sorted({run.seed for run in runs if not run.finished} - by_seed.keys()))

    @property
    def model(self) -> Path | None:
        """Return the model of which it is one evaluation; None where it is anything else."""
        [one, *others] = self.runs.values()
        evaluated = not others and str(one.summary.get("id")).startswith("evaluate-")
        return Path(str(one.settings.get("model.path", ""))) if evaluated else None

    @property
    def once(self) -> bool:
        """Return whether it is one evaluation, of a policy that is no run's and so has no training seed."""
        return self.model is not None and "checkpoints" not in self.model.parts

    @property
    def marks(self) -> list[str]:
        """Return warnings about its runs: that some learned nothing, or are of other code than now."""
        counts = Counter(mark for run in self.runs.values() for mark in marks_of(run.summary, run.lines))
        return [f"{self.name}: {count} of {len(self.runs)} runs {mark}" for mark, count in counts.items()]


@dataclass(frozen=True)
class Comparison:
    """Two arms and the pairs of runs that are compared: runs of the same seed, or the only run of each; an evaluation
    that an arm is made of, with each run of the other."""

    first: Side
    second: Side

    @property
    def pairs(self) -> list[tuple[RunData, RunData]]:
        """Return the runs by pair. Raises UserError where they cannot be paired."""
        first, second = (dict(sorted(arm.runs.items())) for arm in (self.first, self.second))
        once = self.first.once or self.second.once
        pairs = [(first[a], second[b]) for a in first for b in second if a == b or once]
        if pairs:
            return pairs
        if len(self.first.runs) == len(self.second.runs) == 1:
            return [(next(iter(self.first.runs.values())), next(iter(self.second.runs.values())))]
        raise UserError(
            f"{self.first.name} has the seeds {sorted(self.first.runs)}, {self.second.name} "
            f"{sorted(self.second.runs)}: none in common to pair; give one run of each"
        )

    @property
    def paired(self) -> str:
        """Say which runs are paired, and which are left out."""
        arms = (self.first, self.second)
        if None not in (models := [arm.model for arm in arms]) and models[0] != models[1]:  # seeds are of no training
            return "one evaluation of each (few): paired by problem alone"
        once = next((arm for arm in arms if arm.once and len(self.pairs) > 1), None)
        shared = sorted(set.intersection(*(set(arm.runs) for arm in arms if arm is not once)))
        if not shared:
            seeds = [next(iter(arm.runs)) for arm in arms]
            return f"one run of each (few), of unlike seeds, {seeds[0]} and {seeds[1]}: paired by problem alone"
        sentence = f"{len(shared)} pairs of runs{' (few)' if len(shared) < FEW else ''}, seeds {_listed(shared)}"
        sentence += f", each with the one evaluation of {once.name}" if once else ""
        for arm in arms:
            if (alone := sorted(arm.runs.keys() - set(shared))) and arm is not once:
                sentence += f"; without seeds {_listed(alone)} of {arm.name}, which the other has not"
            if arm.unfinished:
                sentence += f"; without seeds {_listed(arm.unfinished)} of {arm.name}, which are not finished"
        return sentence

    @cached_property
    def samples(self) -> int:
        """Return how many samples every problem has in all runs."""
        return min(max(int(row["sample"]) for row in run.completions) + 1 for pair in self.pairs for run in pair)

    @property
    def solved(self) -> str:
        """Say how many right samples count as solved: as many of either arm, since more samples solve more."""
        most = max(int(row["sample"]) for pair in self.pairs for run in pair for row in run.completions) + 1
        cut = f", the first ones where a run has more: one has {most}" if most > self.samples else ""
        return f"solved in any of {self.samples} samples{cut}"

    @property
    def metric(self) -> str:
        """Return the pass@k that is followed over the steps: the highest to 4 that both arms' evaluations have."""
        logged = [
            {name for line in arm.runs[s].lines for name in line} for arm in (self.first, self.second) for s in arm.runs
        ]
        return next((f"pass@{k}" for k in (4, 3, 2, 1) if all(f"pass@{k}" in names for names in logged)), "pass@1")

    @property
    def otherwise(self) -> str:
        """Say where evaluations were not sampled alike; "" where they were."""
        differences = [
            f"{key} is {first} in the first, {second} in the second"
            for key, (first, second) in measured_otherwise(
                *([run.settings for run in runs] for runs in zip(*self.pairs, strict=True))
            ).items()
        ]
        sentence = "Evaluated otherwise, so that the difference is not the policies' alone: "
        return f"{sentence}{'; '.join(differences)}." if differences else ""

    def differences(self) -> Table:
        """Return pass@k of both arms and the paired difference, second less first, by level where all runs have the
        same ones. Raises UserError where no problem is in both, or one has another question or answer."""
        shared = set.intersection(*({row["problem"] for row in run.completions} for pair in self.pairs for run in pair))
        if not shared:
            raise UserError(
                f"{self.first.name}, {self.second.name}: evaluated on no problem in common; compare runs of the same "
                "data"
            )
        for name, differs in (("question", "asks something else"), ("answer", "has another answer")):
            said = [{row["problem"]: row[name] for row in run.completions} for pair in self.pairs for run in pair]
            if unlike := [p for p in shared if len({of_problem[p] for of_problem in said}) > 1]:
                raise UserError(
                    f"{self.first.name}, {self.second.name}: {min(unlike)} {differs} in each; compare runs of the "
                    "same data"
                )
        levelled = [
            {row["problem"]: row["level"] for row in run.completions if row["problem"] in shared}
            for pair in self.pairs
            for run in pair
        ]
        alike = all(levels == levelled[0] for levels in levelled)  # else a row would be of other problems in each run
        levels = sorted({level for level in levelled[0].values() if level is not None}) if alike else []
        suffixes = ["", *(f"/level{level}" for level in levels if len(levels) > 1)]
        rows = []
        for suffix in suffixes:
            for k in sorted({1, min(4, self.samples)}):
                cells = self._difference(f"pass@{k}{suffix}")
                rows.append([suffix.removeprefix("/level") or "all", f"pass@{k}", *cells])
        return ["level", "", self.first.name, self.second.name, "difference [95 %]", "problems"], rows

    def _difference(self, metric: str) -> list[str]:
        values = [(pass_values(a.completions, metric), pass_values(b.completions, metric)) for a, b in self.pairs]
        shared = set.intersection(*(set(v) for pair in values for v in pair))
        problems = [p for p in values[0][0] if p in shared]
        tables = [
            stack({str(i): {p: by_problem[p] for p in problems} for i, by_problem in enumerate(side)})
            for side in zip(*values, strict=True)
        ]
        sides = [percent(statistic(table, metric)) for table in tables]
        return [*sides, percent(statistic(tables[1] - tables[0], metric, difference=True), "+"), str(len(problems))]

    def shares(self) -> dict[str, Share]:
        """Return, by problem that both have, the share of right samples over all paired runs in either arm."""
        counts: tuple[dict[str, list[bool]], ...] = (defaultdict(list), defaultdict(list))
        for pair in self.pairs:
            for side, run in zip(counts, pair, strict=True):
                for row in self._compared(run):
                    side[row["problem"]].append(row["verdict"] == "correct")
        return {p: (float(np.mean(counts[0][p])), float(np.mean(counts[1][p]))) for p in counts[0] if p in counts[1]}

    def _compared(self, run: RunData) -> list[Mapping[str, Any]]:
        """Return a run's completions, as many of each problem as all runs have."""
        return [row for row in run.completions if row["sample"] < self.samples]

    def gained(self) -> list[str]:
        """Return the problems that only the second arm solves in any sample, those that it solves most often first."""
        gains = {p: b for p, (a, b) in self.shares().items() if a == 0 < b}
        return sorted(gains, key=lambda p: -gains[p])

    def lost(self) -> list[str]:
        """Return the problems that only the first arm solves in any sample."""
        return Comparison(self.second, self.first).gained()

    def beside(self, problem: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return one completion of each arm on a problem, a right one where the first pair that has any has one."""
        best = []
        for side in range(2):
            rows = [row for pair in self.pairs for row in self._compared(pair[side]) if row["problem"] == problem]
            best.append(next((row for row in rows if row["verdict"] == "correct"), rows[0]))
        return best[0], best[1]

    def costs(self, metric: str, reach: float) -> Table:
        """Return what each arm spent until an evaluation found at least `reach`: means over all paired runs of either.

        All of a run that never did is counted, and the mean is a lower bound: those that did are the lucky ones.
        """
        rows = []
        for arm, runs in zip((self.first, self.second), zip(*self.pairs, strict=True), strict=True):
            costs = [_first_reaching(run, metric, reach) for run in runs]
            reached = sum(did for did, *_ in costs)
            bound = "> " if reached < len(runs) else ""
            step, *tokens = np.mean([taken for _, *taken in costs], axis=0)
            cells = [f"{bound}{step:.0f}", *(f"{bound}{count_told(t)}" for t in tokens)]
            if not any(run.lines for run in runs):  # evaluations
                cells = ["–"] * 3
            rows.append([arm.name, f"{reached} of {len(runs)}", *cells])
        reached_what = f"runs that reach {metric} of {100 * reach:g} %"
        return ["", reached_what, "step", "tokens generated", "tokens trained"], rows

    def curve(self, metric: str) -> Table:
        """Return the mean of a metric over the paired runs at each step that either arm was evaluated at."""
        sides = [
            dict(zip(*by_step([points_in(run.lines, metric) for run in runs]), strict=True))
            for runs in zip(*self.pairs, strict=True)
        ]
        rows = [
            [str(step), *(f"{100 * np.mean(values[step]):.1f}" if step in values else "–" for values in sides)]
            for step in sorted(set().union(*sides))
        ]
        return ["step", self.first.name, self.second.name], rows


def _first_reaching(run: RunData, metric: str, reach: float) -> tuple[bool, float, float, float]:
    """Return whether an evaluation found at least `reach`; the step of the first that did, and the tokens generated and
    trained until then; or else the last step, and all tokens."""
    generated = trained = step = 0.0
    for line in run.lines:
        step = line["step"]
        generated += line.get("throughput/tokens_generated") or 0
        trained += line.get("throughput/tokens_trained") or 0
        if line.get(metric) is not None and line[metric] >= reach:
            return True, step, generated, trained
    return False, step, generated, trained


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def compared(runs: Sequence[RunData]) -> Compared | None:
    """Return the comparison of a page about two arms; None for other pages, and where the arms cannot be compared."""
    names = list(dict.fromkeys(run.arm for run in runs))
    if len(names) != 2:
        return None
    try:
        arms = [Side.of(name, [run for run in runs if run.arm == name]) for name in names]
        comparison = Comparison(arms[0], arms[1])
        differences = comparison.differences()
    except UserError:
        return None
    beside = []
    shares = comparison.shares()
    alike = {
        "solved by both": [problem for problem, (a, b) in shares.items() if a > 0 < b][:ALIKE],
        "solved by neither": [problem for problem, (a, b) in shares.items() if a == 0 == b][:ALIKE],
    }
    for title, problems in {"gained": comparison.gained(), "lost": comparison.lost(), **alike}.items():
        for problem in problems[:SHOWN]:
            rows = comparison.beside(problem)
            texts = [(name, verdict_of(row), str(row["completion"])) for name, row in zip(names, rows, strict=True)]
            beside.append((f"{title}: {problem}", str(rows[0]["question"]), str(rows[0]["answer"]), texts))
    paired = f"{comparison.paired[0].upper()}{comparison.paired[1:]}."
    counts = (
        f"{len(comparison.gained())} problems gained, {len(comparison.lost())} lost: {comparison.solved} by the second "
        "arm alone, by the first alone."
    )
    counts = " ".join(filter(None, (paired, comparison.otherwise, counts)))
    return Compared(differences, counts, beside)

"""From run directories to a table's numbers: means over seeds, intervals over problems and seeds, differences."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from expo.config import DPOConf, UserError, data_content
from expo.evaluation import intervals
from expo.evaluation.kinds import interval_of
from expo.evaluation.pass_at_k import pass_at_k
from expo.evaluation.tally import is_sound
from expo.ground.files import beside
from expo.runs.arms import measured_otherwise, settings_in
from expo.runs.health import marks_of
from expo.runs.reading import commit_of, final_rows, read_lines, read_points, read_rows, read_summary, samples_of
from expo.tables.plan import MEASURED, Command, Plan, columns_of, is_rate
from expo.tables.planned import PlannedRun

# What a table needs of the samples of `expo diagnose`.
SAMPLED = ["kind", "id", "level", "question", "true_answer", *MEASURED]
# Scalars that a run measures every `measure_every` steps, or at every step where something asks for them.
NOT_EVERY_STEP = (
    "positive/logp_given_q",
    "positive/logp_given_qa",
    "positive/leak_gap",
    "positive/answer_lift",
    "hint/reliance",
)

SHARED = "time/shared_s"

Asked = tuple[str, str | None, str | None]  # id, question and answer: one id may be of other problems in other data
Values = dict[Asked, float]  # by problem
SampleRows = Sequence[Mapping[str, Any]]


def pass_values(rows: SampleRows, metric: str) -> Values:
    """Return pass@k of each problem from completions. Args: metric, `pass@K` or `pass@K/levelN`; or, where the data set
    has an oracle, `sound@K`, for which a right answer counts only with right steps before it. Raises UserError where
    problems have unlike numbers of samples, or no steps were checked.
    """
    name, _, level = metric.partition("/level")
    kind, _, k = name.partition("@")
    right = defaultdict(list)
    for row in rows:
        if not level or str(row["level"]) == level:
            correct = row["verdict"] == "correct" if kind == "pass" else is_sound(row)
            if correct is None:
                raise UserError(
                    f"{metric}: no steps were checked in an evaluation; its data set has no oracle, or had "
                    "none then: remove the run, and it is made again"
                )
            right[row["problem"], row.get("question"), row.get("answer")].append(correct)
    if not right:  # a run on other levels
        return {}
    counts = [sum(verdicts) for verdicts in right.values()]
    samples, *others = sorted({len(verdicts) for verdicts in right.values()})
    if others:
        raise UserError(f"{metric}: some problems have {samples} samples, some {others[-1]}; evaluate them alike")
    return dict(zip(right, pass_at_k(samples, counts, int(k)).tolist(), strict=True))


def measured_values(rows: SampleRows, metric: str, kind: str | None) -> Values:
    """Return the mean of each problem that has samples of the kind, from `expo diagnose`. Args: metric, `nll` or
    `nll/levelN`."""
    name, _, level = metric.partition("/level")
    by_problem = defaultdict(list)
    for row in rows:
        if row["kind"] == kind and (not level or str(row["level"]) == level) and row[name] is not None:
            by_problem[row["id"], row["question"], row["true_answer"]].append(row[name])
    return {problem: float(np.mean(values)) for problem, values in by_problem.items()}


def values_of(plan: Plan, run: PlannedRun) -> dict[str, Values]:
    """Return every column of one finished run, by problem."""
    arm = plan.arms[run.arm]
    metrics = zip(plan.columns, columns_of(plan, arm), strict=True)
    if arm.command is Command.diagnose:
        rows = read_rows(run.dir / "samples.parquet", SAMPLED)
        return {column: measured_values(rows, metric, arm.kind) for column, metric in metrics}
    rows = final_rows(run.dir)
    return {column: pass_values(rows, metric) for column, metric in metrics}


def stack(runs: Mapping[str, Values], partly: bool = False) -> np.ndarray:
    """Return one row per named run, one column per problem: `[S, P]`.

    With `partly`, NaN where a run has no value for a problem; else raises UserError where runs have unlike problems.
    """
    first = next(iter(runs.values()))
    problems = list(dict.fromkeys(p for values in runs.values() for p in values))
    for name, values in runs.items():
        if not partly and set(values) != set(first):
            raise UserError(
                f"{name}: evaluated on other problems than {next(iter(runs))}; their rows cannot be compared"
            )
    return np.array([[values.get(p, np.nan) for p in problems] for values in runs.values()])


def statistic(values: np.ndarray, metric: str, difference: bool = False) -> dict[str, Any]:
    """Return the mean, 95 % interval over problems and seeds, the mean of each seed, and P.

    Args: values `[S, P]`, NaN where there is none; metric, `pass@K` or what `expo diagnose` measures, of one arm or,
    with `difference`, of two on the same problems and seeds.
    """
    values = values[~np.isnan(values).all(axis=1)]  # a seed without any value is none
    name = metric.partition("/level")[0]
    of_pass = intervals.of_difference if difference else intervals.of_share
    low, high = (of_pass if is_rate(name) else interval_of(name, difference))(values)
    return {
        "mean": float(np.nanmean(values)),
        "lo": low,
        "hi": high,
        "seeds": [round(v, 4) for v in np.nanmean(values, axis=1).tolist()],
        "problems": values.shape[1],
    }


def _statistic_or_none(values: np.ndarray, metric: str, difference: bool = False) -> dict[str, Any] | None:
    return statistic(values, metric, difference) if values.size else None


def aggregate(plan: Plan, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Return each arm's columns, differences, scalars and cost, over the runs that are done."""
    done = [run for run in runs if run.done]
    values = {(run.arm, run.seed): values_of(plan, run) for run in done}
    steps = {name: common_steps([run.dir for run in done], name) for name in plan.scalars.values()}
    arms: dict[str, Any] = {}
    for key, arm in plan.arms.items():
        directories = {run.seed: run.dir for run in done if run.arm == key}
        arms[key] = {"label": arm.label, "runs": len(directories)}
        if not directories:
            continue
        measured = arm.command is Command.diagnose  # not every problem has samples of every kind
        arms[key]["columns"] = {
            c: _statistic_or_none(stack({f"{key} seed {s}": values[key, s][c] for s in directories}, measured), c)
            for c in plan.columns
        }
        arms[key]["scalars"] = {
            heading: _mean_over_runs(directories.values(), name, steps[name]) for heading, name in plan.scalars.items()
        }
        arms[key]["cost"] = cost_of(directories.values())
        if any(_lacks_shared_seconds(run) for run in done if run.arm == key):
            arms[key]["seconds_alone"] = True
        marks = Counter(mark for d in directories.values() for mark in marks_of(read_summary(d), read_lines(d)))
        arms[key] |= {"marks": dict(marks)} if marks else {}
        arms[key]["commits"] = sorted({commit_of(read_summary(d)) for d in directories.values()})
        if arm.against is not None:
            ours, theirs = sorted(directories), sorted(run.seed for run in done if run.arm == arm.against)
            if Command.evaluate not in (arm.command, plan.arms[arm.against].command):
                ours = theirs = [seed for seed in ours if seed in theirs]
            if ours and theirs:
                arms[key]["against"] = arm.against
                of = [[settings_in(asdict(run.cfg)) for run in done if run.arm == a][:1] for a in (key, arm.against)]
                if otherwise := measured_otherwise(*of):
                    arms[key]["measured_otherwise"] = {name: list(values) for name, values in otherwise.items()}
                arms[key]["difference"] = {}
                sides = [(key, seed) for seed in ours] + [(arm.against, seed) for seed in theirs]
                for c in plan.columns:
                    try:
                        both = stack({f"{a} seed {s}": values[a, s][c] for a, s in sides}, measured)
                    except UserError as error:  # each arm's own numbers stand
                        print(f"{plan.title}: no difference of {key} in {c}: {error}", file=sys.stderr)
                        arms[key]["difference"][c] = None
                        continue
                    apart = both[: len(ours)] - both[len(ours) :]  # every seed less the one run of an evaluated arm
                    both_have = ~np.isnan(apart).all(axis=0)
                    arms[key]["difference"][c] = _statistic_or_none(apart[:, both_have], c, difference=True)
    return arms


def cost_of(directories: Collection[Path]) -> dict[str, Any]:
    """Return the means over finished runs: tokens (None where nothing was trained) and seconds, both with the run's
    part of what it shares with others, whoever has made it."""
    shared = [sum(line.get(SHARED) or 0 for line in read_lines(d)) for d in directories]
    return {
        "generated tokens": _sum(directories, "throughput/tokens_generated"),
        "trained tokens": _sum(directories, "throughput/tokens_trained"),
        "seconds": float(np.mean([read_summary(d)["wall_s"] + s for d, s in zip(directories, shared, strict=True)])),
    }


def _lacks_shared_seconds(run: PlannedRun) -> bool:
    """Return whether a run reads explanations or pairs that another run may have written, and does not record the
    seconds that those took, as runs of before 2026-11-29."""
    reads = run.cfg.positives.from_bank(run.cfg.algorithm) or isinstance(run.cfg.algorithm, DPOConf)
    return run.command == "train" and reads and not any(SHARED in line for line in read_lines(run.dir))


def _sum(directories: Iterable[Path], name: str) -> float | None:
    """Return the mean over runs of the sum over steps; None where there were no steps."""
    sums = [sum(line.get(name) or 0 for line in lines) for d in directories if (lines := read_lines(d))]
    return float(np.mean(sums)) if sums else None


def common_steps(directories: Iterable[Path], name: str) -> set[int] | None:
    """Return the steps to average a scalar over: of NOT_EVERY_STEP those at which every run that logs it has it; of
    others None, all steps.

    A scalar changes over a run: a mean over every step is not to be held against one over every tenth.
    """
    if name not in NOT_EVERY_STEP:
        return None
    by_run = [{step for step, _ in read_points(d, name)} for d in directories]
    return set.intersection(*filter(None, by_run)) if any(by_run) else set()


def _mean_over_runs(directories: Iterable[Path], name: str, steps: Collection[int] | None) -> float | None:
    """Return the mean over runs of a scalar's mean over steps; of a scalar of evaluations, of the last one's."""
    means = []
    for directory in directories:
        lines = [line for line in read_lines(directory) if line.get(name) is not None]
        of_evaluations = any("loss/total" not in line for line in lines)
        values = [line[name] for line in lines if steps is None or line["step"] in steps]
        means += [np.mean(values[-1:] if of_evaluations else values)] if values else []
    return float(np.mean(means)) if means else None


def keep_runs(runs: Sequence[PlannedRun], made_by: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Save all of the given runs but their checkpoints, small enough to stand beside a table.

    Args: made_by, the plan's `prepare`. runs.json, which is written last, has configs and summaries, what made their
    models, and hashes of their data files; metrics.parquet every line of metrics.jsonl, completions.parquet those of
    the last evaluation, samples.parquet a few problems of the last logged step, measured.parquet what `expo diagnose`
    has measured.
    """
    records: list[dict[str, Any]] = []
    kept: dict[str, list[dict[str, Any]]] = {"metrics": [], "completions": [], "samples": [], "measured": []}
    for run in runs:
        directory, own = run.dir, {"arm": run.arm, "seed": run.seed}
        config = (directory / "config.yaml").read_text()
        origin = {"prepare": made_by.get(run.cfg.model.path.removeprefix("./")), "data": data_content(run.cfg)}
        records.append(own | {"config": config, "summary": read_summary(directory), **origin})
        kept["metrics"] += [own | {"line": json.dumps(line)} for line in read_lines(directory)]
        if (directory / "completions").is_dir():
            kept["completions"] += [own | row for row in final_rows(directory)]
        kept["samples"] += [own | row for row in samples_of(directory)]
        if (directory / "samples.parquet").is_file():
            rows = read_rows(directory / "samples.parquet", [*SAMPLED, "completion"])
            kept["measured"] += [own | row for row in rows]
    with ExitStack() as files:
        files.enter_context(beside(folder / "runs.json")).write_text(json.dumps(records, indent=1) + "\n")
        for name, rows in kept.items():
            if rows:
                part = files.enter_context(beside(folder / f"{name}.parquet"))
                pa.parquet.write_table(as_table(rows), part, compression="zstd")
            else:
                (folder / f"{name}.parquet").unlink(missing_ok=True)
        (folder / "runs.json").unlink(missing_ok=True)  # whoever reads in between finds none, and no mixture


def as_table(rows: SampleRows) -> pa.Table:
    """Return rows with the columns that any of them has. Values of several types are text, such as levels that are
    numbers in one arm's data and words in another's."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if str in kinds and len(kinds) > 1:
            columns[name] = [None if value is None else str(value) for value in values]
    return pa.table(columns)

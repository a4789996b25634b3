"""From run directories to the numbers of a table: means over seeds, intervals over problems and seeds, paired differences."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from expo.config import UserError
from expo.evaluation.pass_at_k import interval, pass_at_k
from expo.experiments.plan import Plan, PlannedRun

Curve = tuple[list[tuple[int, float]], list[tuple[int, float]]]


def read_summary(directory: Path) -> dict[str, Any]:
    """The run's summary, {} where there is none."""
    path = directory / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, without a line that is being written."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.is_file() else []


def read_curve(directory: Path, metric: str = "pass@4") -> Curve:
    """(step, mean reward) of training and (step, metric) of evaluations."""
    return read_points(directory, "reward/mean"), read_points(directory, metric)


def read_points(directory: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of one scalar, where it is defined."""
    return [(line["step"], line[name]) for line in read_lines(directory) if line.get(name) is not None]


def final_rows(directory: Path) -> list[dict[str, Any]]:
    """Every completion of the last evaluation."""
    return pyarrow.parquet.read_table(max((directory / "completions").glob("eval-*.parquet"))).to_pylist()


def problem_values(directories: Sequence[Path], metric: str) -> np.ndarray:
    """pass@k of each problem, from the completions themselves: `[S, P]`, a row per run.

    Args: metric, `pass@K` or `pass@K/levelN`. Raises UserError where the runs were evaluated on different problems.
    """
    name, _, level = metric.partition("/level")
    k, values, met = int(name.removeprefix("pass@")), [], set()
    for directory in directories:
        rows = [row for row in final_rows(directory) if not level or row["level"] == int(level)]
        problems = list(dict.fromkeys(row["problem"] for row in rows))
        met.add(tuple(problems))
        if len(met) > 1:
            raise UserError(
                f"{directory}: evaluated on other problems than {directories[0]}; their rows cannot be compared"
            )
        right = np.array([row["verdict"] == "correct" for row in rows]).reshape(len(problems), -1)
        values.append(pass_at_k(right.shape[1], right.sum(axis=1).tolist(), k))
    return np.stack(values)


def statistic(values: np.ndarray) -> dict[str, Any]:
    """Mean, 95 % interval over problems and seeds, and the mean of each seed. Args: values `[S, P]`."""
    low, high = interval(values)
    return {
        "mean": float(values.mean()),
        "lo": low,
        "hi": high,
        "seeds": [round(v, 4) for v in values.mean(axis=1).tolist()],
    }


def aggregate(plan: Plan, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Of each arm: its columns, its differences, its scalars and its cost, over the runs that are done."""
    done = [run for run in runs if read_summary(run.dir).get("status") == "done"]
    arms: dict[str, Any] = {}
    for key, arm in plan.arms.items():
        own = {run.seed: run.dir for run in done if run.arm == key}
        arms[key] = {"label": arm.label, "runs": len(own), "planned": sum(run.arm == key for run in runs)}
        if not own:
            continue
        arms[key]["columns"] = {c: statistic(problem_values(list(own.values()), c)) for c in plan.columns}
        arms[key]["scalars"] = {heading: _mean_over_runs(own.values(), name) for heading, name in plan.scalars.items()}
        arms[key]["cost"] = {
            "generated tokens": _sum(own.values(), "throughput/tokens_generated"),
            "trained tokens": _sum(own.values(), "throughput/tokens_trained"),
            "seconds": float(np.mean([read_summary(d)["wall_s"] for d in own.values()])),
        }
        arms[key]["commits"] = sorted({str(read_summary(d)["git"]) for d in own.values()})
        if arm.against is not None:
            base = {run.seed: run.dir for run in done if run.arm == arm.against}
            shared = sorted(own.keys() & base.keys())
            if shared:
                arms[key]["against"] = arm.against
                pairs = [own[s] for s in shared] + [base[s] for s in shared]
                both = {c: problem_values(pairs, c) for c in plan.columns}
                arms[key]["difference"] = {c: statistic(v[: len(shared)] - v[len(shared) :]) for c, v in both.items()}
    return arms


def _sum(directories, name: str) -> float:
    """Mean over runs of the sum over steps."""
    return float(np.mean([sum(line.get(name) or 0 for line in read_lines(d)) for d in directories]))


def _mean_over_runs(directories, name: str) -> float | None:
    values = [line[name] for d in directories for line in read_lines(d) if line.get(name) is not None]
    return float(np.mean(values)) if values else None


def keep_runs(runs: Sequence[tuple[str, int, Path]], folder: Path) -> None:
    """All of the given runs (arm, seed, directory) but their checkpoints, small enough to be kept beside a table.

    runs.json has configs and summaries, metrics.parquet every line of metrics.jsonl, completions.parquet those of the last
    evaluation.
    """
    records, lines, completions = [], [], []
    for arm, seed, directory in runs:
        config = (directory / "config.yaml").read_text()
        records.append({"arm": arm, "seed": seed, "config": config, "summary": read_summary(directory)})
        lines += [{"arm": arm, "seed": seed, "line": json.dumps(line)} for line in read_lines(directory)]
        completions += [{"arm": arm, "seed": seed} | row for row in final_rows(directory)]
    (folder / "runs.json").write_text(json.dumps(records, indent=1) + "\n")
    for name, rows in (("metrics", lines), ("completions", completions)):
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", compression="zstd")

"""Render a table again from the runs that are saved beside it, without making any: `expo table NAME kept=true`."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from expo.config import Config, UserError, data_content, identity, restore
from expo.config.key import shown
from expo.runs.arms import settings_in
from expo.runs.reading import read_rows
from expo.tables.plan import Plan, results_folder
from expo.tables.planned import PlannedRun
from expo.tables.request import kept_records
from expo.tables.sweep import distinct


@dataclass(frozen=True)
class KeptRun(PlannedRun):
    """A run of a table as saved beside it."""

    folder: Path = Path()

    @property
    def dir(self) -> Path:
        return self.folder

    @property
    def done(self) -> bool:
        return True


def kept_folder(name: str, plan: Plan, scale: str) -> Path:
    """Return the folder of a table's saved runs: beside the table, or beside the one that it extends."""
    return results_folder(plan.extends or name, scale)


def unpack(
    folder: Path,
    runs: Sequence[PlannedRun],
    all_runs: Sequence[PlannedRun],
    made_by: Mapping[str, Sequence[str]],
    into: Path,
) -> list[KeptRun]:
    """Write the saved runs of a table as run directories under `into`; return the table's runs, now with directories.

    Args: all_runs, the runs of the table beside which they are kept; made_by, the plan's `prepare`. Raises UserError
    where a run is not kept, or was made with other settings than the plan has by now.
    """
    if not (folder / "runs.json").is_file():
        raise UserError(f"kept=true: no runs are kept in {folder}; leave kept out, and they are made")
    records = {(r["arm"], r["seed"]): r for r in kept_records(folder)}
    rows = {name: by_run(folder / f"{name}.parquet") for name in ("metrics", "completions", "samples", "measured")}
    # Arms may share a run, which is kept once, under an arm that the table that extends this one may not have.
    names = {(run.command, run.mark): (run.arm, run.seed) for run in distinct(all_runs)}
    kept_runs, untold, configs = [], set[str](), dict[str, Config]()
    for run in runs:
        key = run.arm, run.seed
        key = key if key in records else names.get((run.command, run.mark), key)
        if key not in records:
            raise UserError(f"kept=true: {run.arm} seed {run.seed} is not kept in {folder}; leave kept out")
        if run.command == "diagnose" and key not in rows["measured"]:
            what = f"what expo diagnose measured for {run.arm}"
            raise UserError(f"kept=true: {what} is not kept in {folder}; leave kept out, and it is from now on")
        target = into / f"{key[0]}-s{key[1]}"
        if not target.is_dir():
            _write(target, records[key], {name: of_runs.get(key, []) for name, of_runs in rows.items()})
        untold |= _check_made(run, records[key], made_by, folder)
        _check(run, _restored(target, records[key], configs), folder)
        kept_runs.append(KeptRun(run.arm, run.seed, run.overrides, run.cfg, run.command, folder=target))
    for unknown in sorted(untold):
        print(f"{folder}: its runs do not say their {unknown}; taken as the plan's", file=sys.stderr)
    return kept_runs


def _check_made(
    run: PlannedRun, record: Mapping[str, Any], made_by: Mapping[str, Sequence[str]], folder: Path
) -> set[str]:
    """Raise UserError where a kept run was made by another command, from another model, or on other data files.

    Returns which of these a run that was kept by an earlier expo does not tell.
    """
    if named := record["summary"].get("id"):  # what 0.1 kept has none
        first = str(named).partition("-")[0]
        _same(run, "command", first if first in ("evaluate", "diagnose") else "train", run.command, folder)
    plans = {"prepare": made_by.get(run.cfg.model.path.removeprefix("./")), "data": data_content(run.cfg)}
    for key in plans.keys() & record.keys():
        _same(run, key, record[key], plans[key], folder)
    return {key for key, value in plans.items() if value and key not in record}


def _restored(directory: Path, record: Mapping[str, Any], configs: dict[str, Config]) -> Config:
    """Return the config of a saved run. Args: configs, cache of configs: an arm's runs differ in their seed alone."""
    text, seed = record["config"], f"\nseed: {record['seed']}\n"
    of_arm = text.replace(seed, "\n", 1)
    if of_arm == text:  # it names no seed, or another one
        return restore(directory)
    if of_arm not in configs:
        configs[of_arm] = restore(directory)
    return replace(configs[of_arm], seed=record["seed"])


def _check(run: PlannedRun, kept_config: Config, folder: Path) -> None:
    """Raise UserError where a saved run is not the planned one. Models are compared by path, so need not exist."""
    before, now = (replace(cfg, model=replace(cfg.model, path="ladder")) for cfg in (kept_config, run.cfg))
    moved = [
        key
        for key, file in vars(kept_config.dataset).items()
        if key.endswith("path") and file and not Path(file).is_file()
    ]
    for key in [*_ALSO_COMPARED[run.command], *(f"dataset.{key}" for key in moved)]:
        _same(run, key, _value(kept_config, key), _value(run.cfg, key), folder)
    if identity(before) == identity(now):
        return
    old, new = settings_in(dataclasses.asdict(before)), settings_in(dataclasses.asdict(now))
    key = next((key for key in sorted({*old, *new}) if old.get(key) != new.get(key)), "a data file")
    _same(run, key, old.get(key), new.get(key), folder)
    raise UserError(f"kept=true: {run.arm} seed {run.seed} was made with another {key} ({folder}); leave kept out")


# Keys to compare beside the identity, by command: it does not hash them, or `_check` has replaced them (model.path).
_ALSO_COMPARED = {
    "train": ["model.path"],
    "evaluate": ["model.path", "dataset.part"],
    "diagnose": [
        "model.path",
        "dataset.part",
        "diagnose.problems",
        "diagnose.samples",
        "diagnose.shuffled",
        "diagnose.judge.base_url",
        "diagnose.judge.model",
        "prompts.judge",
    ],
}


def _value(cfg: Config, key: str) -> Any:
    value: Any = reduce(getattr, key.split("."), cfg)
    return value.removeprefix("./") if key == "model.path" else value


def _same(run: PlannedRun, key: str, before: Any, now: Any, folder: Path) -> None:
    if before != now:
        raise UserError(
            f"kept=true: {run.arm} seed {run.seed} was made with {key}={shown(before)} ({folder}), and the plan has "
            f"{shown(now)} by now; leave kept out, and it is made again"
        )


def by_run(path: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the rows of a kept file by the arm and the seed of their run; {} where there is no file."""
    rows_by_run: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in read_rows(path) if path.is_file() else []:
        rows_by_run.setdefault((row.pop("arm"), row.pop("seed")), []).append(row)
    return rows_by_run


def _write(directory: Path, record: Mapping[str, Any], rows: Mapping[str, list[dict[str, Any]]]) -> None:
    (directory / "completions").mkdir(parents=True)
    (directory / "config.yaml").write_text(record["config"])
    (directory / "summary.json").write_text(json.dumps(record["summary"]))
    (directory / "metrics.jsonl").write_text("".join(row["line"] + "\n" for row in rows["metrics"]))
    # What was kept by an earlier expo has no questions.
    measured = [{"question": None, "true_answer": None} | row for row in rows["measured"]]
    files = {"completions/eval-kept.parquet": rows["completions"], "samples.parquet": measured}
    for file, of_file in files.items():
        if of_file:
            pa.parquet.write_table(pa.Table.from_pylist(of_file), directory / file)

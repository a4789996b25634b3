"""The request of `expo table NAME …`: which runs, where their results go, and how they are launched."""

import hashlib
import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from expo.config import UserError, take_options
from expo.config.foreign import SUMMARY, UNREADABLE, Check, is_text, is_whole, named, or_none, why
from expo.tables import plan as plans
from expo.tables.plan import Plan, Scale, load_plan, plan_file, results_folder, table_name
from expo.tables.planned import PlannedRun, plan_runs
from expo.tables.sweep import distinct

SORTED_BY = (
    "logger.wandb.group",
    "logger.wandb.job_type",
    "logger.wandb.tags",
    "logger.mlflow.group",
    "logger.mlflow.job_type",
)
AT_A_TIME = {"local": "n_jobs", "slurm": "array_parallelism"}  # what launchers call the number of runs at a time


@dataclass(frozen=True)
class Request:
    """A table at one of its scales, with the user's changes: `overrides` of the runs, `hydra` ones of the launcher."""

    name: str
    scale_name: str
    seeds: Sequence[int] | None = None  # None: the plan's
    overrides: Sequence[str] = ()
    hydra: Sequence[str] = ()
    jobs: int | None = None  # runs at a time; None: the plan's
    results: Path | None = None  # where the table goes; None: beside its plan, or under outputs/ where it is changed
    dry_run: bool = False
    from_kept: bool = False  # render what is kept beside the table again; make nothing

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Request":
        """Read the arguments of `expo table`. Raises UserError for what is none of them."""
        name, *rest = arguments
        options, overrides = take_options(
            rest, scale="cpu", seeds="", jobs="", dry_run="false", results="", kept="false"
        )
        refused = {
            "fresh": "a table never makes a finished run again; remove the run's directory, or use expo train",
            "run": "a table's runs have settings of their own; use expo train run=…, or model.path in a plan's arm",
            **dict.fromkeys(SORTED_BY, "a table sorts its runs by it itself; leave it out"),
        }
        for o in overrides:
            if (key := o.lstrip("+").partition("=")[0]) in refused:
                raise UserError(f"{key}: {refused[key]}")
        hydra = [o for o in overrides if o.startswith(("hydra.", "hydra/"))]
        results = Path(options["results"]) if options["results"] else None
        if results and results.exists() and not results.is_dir():
            raise UserError(f"results={results}: is no folder; give another place")
        if results and results.exists() and not (results / "table.json").is_file() and any(results.glob("[!.]*")):
            raise UserError(f"results={results}: holds other files than a table's; give an empty folder, or a new one")
        return cls(
            name,
            options["scale"],
            seeds=range(int(options["seeds"])) if options["seeds"] else None,
            overrides=[o for o in overrides if o not in hydra],
            hydra=hydra,
            jobs=int(options["jobs"]) if options["jobs"] else None,
            results=results,
            dry_run=options["dry_run"] == "true",
            from_kept=options["kept"] == "true",
        )

    @cached_property
    def plan(self) -> Plan:
        """Return the plan, with the arms of this scale. Raises UserError for an unknown table or scale."""
        return load_plan(self.name, self.scale_name)

    @property
    def scale(self) -> Scale:
        return self.plan.scales[self.scale_name]

    def runs(self) -> list[PlannedRun]:
        """Compose and check every run. Raises UserError for one that cannot be made."""
        return plan_runs(self.name, self.plan, self.scale_name, self.seeds, self.overrides)

    @property
    def at_a_time(self) -> int:
        return self.jobs or self.scale.jobs

    @property
    def as_planned(self) -> bool:
        """Return whether the runs' settings are the plan's own."""
        return all(o.startswith("output_dir=") for o in self.overrides)

    @property
    def variant(self) -> str:
        """Return a name for the user's changes; "" for the plan's own table."""
        if self.seeds is None and self.as_planned:
            return ""
        seeds = None if self.seeds is None else list(self.seeds)
        path = plan_file(self.name).resolve()  # two plans of a user's own may have folders of one name
        own = [] if path.is_relative_to(plans.EXPERIMENTS.resolve()) else [os.path.relpath(path)]
        return hashlib.sha256(json.dumps([seeds, list(self.overrides), *own]).encode()).hexdigest()[:8]

    @property
    def output_dir(self) -> str:
        given = [o.partition("=")[2] for o in self.overrides if o.startswith("output_dir=")]
        return given[-1] if given else "outputs"

    @property
    def title(self) -> str:
        return f"{table_name(self.name)}-{self.scale_name}"

    def kept(self, output_dir: str) -> Path:
        return results_folder(self.name, self.scale_name, output_dir)

    def folder(self, output_dir: str) -> Path:
        changed = Path(output_dir, "sweeps", self.title, self.variant)
        return self.results or (changed if self.variant else self.kept(output_dir))

    @property
    def report_command(self) -> str:
        """Return the line that makes a page about this table."""
        options = [f"scale={self.scale_name}"] if self.scale_name != "cpu" else []
        options += [f"seeds={len(self.seeds)}"] if self.seeds is not None else []
        options += [f"results={self.results}"] if self.results else []
        return shlex.join(["expo", "report", self.name, *options, *self.overrides])

    def new_sweep(self, output_dir: str) -> Path:
        started = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        return Path(output_dir, "sweeps", self.title, started)

    def launcher(self, output_dir: str) -> list[str]:
        chosen = next((o.partition("=")[2] for o in self.hydra if o.startswith("hydra/launcher=")), "local")
        limited = chosen in AT_A_TIME and (chosen == "local" or self.jobs)  # Slurm has a queue of its own
        limit = [f"hydra.launcher.{AT_A_TIME[chosen]}={self.at_a_time}"] if limited else []
        return [f"output_dir={output_dir}", *limit, *self.hydra]


def missing(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs that are not done, each once."""
    return distinct([run for run in runs if not run.done])


def _has(*needed: str, **checks: Check) -> Check:
    """Return a check of objects that have what is needed, and whose parts pass the checks of their names."""
    return lambda value: (
        isinstance(value, dict)
        and set(needed) <= value.keys()
        and all(checks[name](value[name]) for name in checks.keys() & value.keys())
    )


def _is_any_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


_cell = _has("mean", "lo", "hi", "seeds", **dict.fromkeys(("mean", "lo", "hi"), _is_any_number), seeds=_is_list)
_cells, _numbers = named(or_none(_cell)), named(or_none(_is_any_number))
_of_runs = _has("columns", "scalars", "cost", columns=_cells, difference=_cells, scalars=_numbers, cost=_numbers)
_arm = _has("label", "runs", label=is_text, runs=is_whole, marks=named(is_whole), commits=_is_list)
_run = _has("arm", "seed", "config", "summary", arm=is_text, seed=is_whole, config=is_text, summary=_has(**SUMMARY))


def read_record(folder: Path) -> dict[str, Any]:
    """Return table.json of a table that was made. Raises UserError where there is none, or a damaged one."""
    arms = named(lambda arm: _arm(arm) and (not arm["runs"] or _of_runs(arm)))
    is_record = _has("name", "arms", "command", "device", "date", arms=arms, figures=_is_list)
    record: dict[str, Any] = _read(folder / "table.json", is_record)
    return record


def kept_records(folder: Path) -> list[dict[str, Any]]:
    """Return runs.json, what is kept of a table's runs. Raises UserError where there is none, or a damaged one."""
    records: list[dict[str, Any]] = _read(folder / "runs.json", lambda value: _is_list(value) and all(map(_run, value)))
    return records


def _read(path: Path, is_ours: Check) -> Any:
    try:
        value = json.loads(path.read_bytes())
        if not is_ours(value):
            raise ValueError("not what a table leaves")
    except UNREADABLE as error:
        remedy = "render the table again with expo table, without kept=true"
        raise UserError(f"{path}: cannot be read ({why(error)}); {remedy}") from error
    return value

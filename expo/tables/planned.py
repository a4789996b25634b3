"""The runs that follow from a table's plan, composed and checked."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from expo.config import Config, UserError, check_anywhere, compose_config, run_dir, run_mark
from expo.config.compose import for_command
from expo.config.dataset import DatasetConf
from expo.config.identity import runtime_keys
from expo.config.key import shown, with_groups
from expo.config.naming import plain
from expo.config.wording import explain
from expo.evaluation.kinds import KINDS
from expo.runs.arms import settings_in
from expo.tables.plan import MEASURED, Arm, Command, Plan, Scale, columns_of, plan_file, table_name


@dataclass(frozen=True)
class PlannedRun:
    arm: str
    seed: int
    overrides: list[str]
    cfg: Config
    command: str = "train"

    @property
    def line(self) -> list[str]:
        """Return the arguments of the command that makes the run; its directory is called by name, arm and seed."""
        return [*self.overrides, f"differs='{self.cfg.differs}'"]

    @property
    def dir(self) -> Path:
        """Find the run's directory: anew each time, since another process may make it meanwhile by another name."""
        return run_dir(self.cfg, self.command, self.mark)

    @cached_property
    def mark(self) -> str:
        """Return the end of the directory's name. Cached: a followed table asks for it every few seconds."""
        return run_mark(self.cfg, self.command)

    @property
    def done(self) -> bool:
        from expo.runs.directory import Run  # seconds of imports that a report does not need

        return Run(self.cfg, self.dir).finished


def plan_runs(
    name: str, plan: Plan, scale_name: str, seeds: Sequence[int] | None, overrides: Sequence[str]
) -> list[PlannedRun]:
    """Return every run of a table at one of its scales, composed, and checked but for what this machine lacks.

    A logger with groups has the table's name as a run's group. Raises UserError.
    """
    scale = plan.scales[scale_name]
    try:
        _check_arms_stay_apart(name, plan, scale, overrides)
        arms = _composed(name, plan, scale_name, overrides)
    except (HydraException, OmegaConfBaseException):
        for where, own in _own_overrides(plan, scale_name).items():
            try:
                compose_config(own)
            except (HydraException, OmegaConfBaseException) as error:
                raise UserError(f"{plan_file(name)}: {where}: {explain(error)}") from error
            except UserError:  # a key that the user gives
                continue
        raise  # the mistake is the user's, on the command line
    _check_evaluated_alike(name, plan, {key: cfg for key, command, _, cfg in arms if command is Command.train})
    first, *others = scale.seeds if seeds is None else seeds
    return [
        PlannedRun(key, seed, [*run_overrides, f"seed={seed}"], replace(cfg, seed=seed), command.name)
        for seed in (first, *others)  # all arms of a seed before the next
        for key, command, run_overrides, cfg in arms
        if command is not Command.evaluate or seed == first
    ]


def _own_overrides(plan: Plan, scale_name: str) -> dict[str, list[str]]:
    """Return the overrides of a scale, and of each arm at it, by their place in the plan."""
    scale = plan.scales[scale_name]
    arms = {f"arms.{k}": [*scale.overrides, *a.overrides, *scale.arms.get(k, [])] for k, a in plan.arms.items()}
    return {f"scales.{scale_name}": [*scale.overrides]} | arms


def _composed(
    name: str, plan: Plan, scale_name: str, overrides: Sequence[str]
) -> list[tuple[str, Command, list[str], Config]]:
    """Return each arm with its command, overrides and config."""
    own = _own_overrides(plan, scale_name)
    runtime = runtime_keys()
    changes = [o for o in overrides if not with_groups(o.lstrip("+").partition("=")[0]) & runtime]
    # The plan's own runs have the scale itself as a tag, by which a view of W&B takes them.
    tag = "-".join([scale_name, *([hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:8]] if changes else [])])
    rows = dict[tuple[Any, ...], str]()
    arms, called = [], dict[tuple[Command, str], str]()  # arms may share runs, which have the first one's name then
    for key, arm in plan.arms.items():
        run_overrides = [*own[f"arms.{key}"], *overrides]
        try:
            cfg = compose_config(run_overrides)
            run_overrides += cfg.logger.of_table(table_name(name), key, [tag, cfg.dataset.name, cfg.model.path])
            prepared = cfg.model.path.removeprefix("./") in plan.prepare
            # Each run is asked for by its own command line.
            for_command(replace(cfg), arm.command.name, run_overrides, of_table=True)
            check_anywhere(replace(cfg, model=replace(cfg.model, path="ladder")) if prepared else cfg)
            for column in columns_of(plan, arm):
                _check_column(column, arm, cfg)
        except UserError as error:
            if overrides:
                raise
            raise UserError(f"{plan_file(name)}: arms.{key}: {error}") from error
        name_of_run = "" if plain(key) == cfg.name else plain(key)
        mark = run_mark(cfg, arm.command.name)
        if (other := rows.setdefault((arm.command, mark, arm.k, arm.kind, arm.against), key)) != key:
            raise UserError(f"{plan_file(name)}: arms.{key}: the same run as {other}; leave one out, or change one")
        named = called.setdefault((arm.command, mark), name_of_run)
        arms.append((key, arm.command, run_overrides, replace(cfg, differs=named)))
    return arms


OF_TRAINING = ("algorithm.", "positives.", "hints.", "optimizer.", "trainer.")  # of no effect on an evaluated policy


def _check_arms_stay_apart(name: str, plan: Plan, scale: Scale, overrides: Sequence[str]) -> None:
    """Check that a user's overrides, keys or groups, change no key that an arm names and no class in which arms differ,
    and make no two arms one: labels would say what is not so. Raises UserError."""
    given, chosen = " ".join(overrides), {key: [*a.overrides, *scale.arms.get(key, [])] for key, a in plan.arms.items()}
    remedy = "leave it out, or use expo train"
    named = {_key(o): arm for arm, of_arm in chosen.items() for o in of_arm}
    for o in overrides:
        if arm := named.get(_key(o)):
            raise UserError(f"{o}: the arms of {name} differ in it ({arm} and others); {remedy}")
    if all(_key(o) == "output_dir" for o in overrides):
        return
    before, after = (
        {arm: settings_in(asdict(compose_config([*scale.overrides, *own, *more]))) for arm, own in chosen.items()}
        for more in ((), overrides)
    )
    first: dict[str, str] = {}
    for arm, new in after.items():
        for key, old in before[arm].items():
            apart = len({repr(other[key]) for other in before.values() if key in other}) > 1
            counts = plan.arms[arm].command is Command.train or not key.startswith(OF_TRAINING)
            if new.get(key) != old and counts and apart and (key in named or key.endswith("_target_")):
                raise UserError(f"{given}: changes {key} of {arm}, and the arms of {name} differ in it; {remedy}")
        if before[other := first.setdefault(f"{plan.arms[arm].command} {sorted(new.items())}", arm)] != before[arm]:
            raise UserError(f"{given}: makes {other} and {arm} of {name} one run; {remedy}")


def _check_evaluated_alike(name: str, plan: Plan, trained: Mapping[str, Config]) -> None:
    """Check that a trained arm and the one that it is held against are evaluated on the same problems. Raises
    UserError."""
    for key, cfg in trained.items():
        if (against := plan.arms[key].against) and against in trained:
            ours, theirs = (_evaluated_on(c.dataset) for c in (cfg, trained[against]))
            if unlike := next((k for k in ours if k in theirs and ours[k] != theirs[k]), ""):
                why = f"{unlike}={shown(ours[unlike])}, and {shown(theirs[unlike])} of {against}"
                where = f"{plan_file(name)}: arms.{key}.against={against}: evaluated on other problems"
                raise UserError(f"{where}: dataset.{why}; give both one, or leave against out")


def _evaluated_on(data: DatasetConf) -> dict[str, object]:
    """Return the settings that decide which problems a run is evaluated on, as far as the config tells."""
    path = data.path if data.shares_file else data.eval_path
    return {
        "eval_path": path and os.path.realpath(path),
        **({} if path else {"hub_id": data.hub_id, "eval_split": data.eval_split}),
        "eval_levels": data.levels if data.eval_levels is None else data.eval_levels,
        **({"eval_limit": data.eval_limit} if data.eval_limit else {}),
    }


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".")


def _check_column(column: str, arm: Arm, cfg: Config) -> None:
    """Check that a run of the arm can give the column: `pass@K`, `sound@K`, either with `/levelN`, or what
    `expo diagnose` measures. Raises UserError."""
    if arm.command is Command.diagnose:
        if arm.kind not in (kinds := [k for k in KINDS if k != "shuffled_answer" or cfg.diagnose.shuffled]):
            remedy = "; set diagnose.shuffled=true" if arm.kind in KINDS else f"; use one of {', '.join(kinds)}"
            raise UserError(f"kind={arm.kind}: {arm.label}: expo diagnose has no such samples{remedy}")
        if column.partition("/level")[0] not in MEASURED:
            raise UserError(f"columns={column}: expo diagnose does not measure it; use one of {', '.join(MEASURED)}")
        return
    match = re.fullmatch(r"(?:pass|sound)@(\d+)(?:/level([^/]+))?", column)
    if match is None:
        raise UserError(f"columns={column}: not a column; use pass@K pass@K/levelN, or sound@K of an oracle")
    if column.startswith("sound@") and not cfg.dataset.has_oracle:
        raise UserError(f"columns={column}: {cfg.dataset.name} cannot check steps; use pass@{match[1]}")
    samples = cfg.evaluation.samples or max(cfg.k)
    if int(match[1]) > samples:
        raise UserError(
            f"columns={column}: only {samples} samples per problem; set evaluation.samples={match[1]} or more"
        )
    given = cfg.dataset.levels if cfg.dataset.eval_levels is None else cfg.dataset.eval_levels
    levels = given or cfg.dataset.known_levels
    if match[2] and levels and match[2] not in map(str, levels):
        raise UserError(
            f"columns={column}: {cfg.dataset.name} is evaluated on levels {levels}; set dataset.eval_levels"
        )

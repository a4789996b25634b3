"""What a table is made of: `experiments/<name>/plan.yaml`, and the runs that follow from it."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expo import config
from expo.checks import check
from expo.cli import conf_dir
from expo.config import UserError
from expo.schema import Config, WandbLoggerConf

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@dataclass
class Arm:
    # What the arm is called in the table.
    label: str
    # Hydra overrides of `expo train`.
    overrides: list[str]
    # Key of the arm that differences are taken from, on the same problems and seeds.
    against: str | None = None


@dataclass
class Scale:
    # Overrides of every run at this scale.
    overrides: list[str]
    # Training seeds; each arm is run with each.
    seeds: list[int]
    # Runs at a time.
    jobs: int = 1
    # Overrides of single arms at this scale, after all others.
    arms: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Plan:
    title: str
    arms: dict[str, Arm]
    scales: dict[str, Scale]
    # Metrics of the final evaluation, as summary.json names them: the table's columns.
    columns: list[str]
    # Means over the whole run of scalars of metrics.jsonl, by heading.
    scalars: dict[str, str] = field(default_factory=dict)
    # expo commands, by the model folder that each makes, run first where the folder is not there.
    prepare: dict[str, list[str]] = field(default_factory=dict)
    # A scalar of metrics.jsonl to show beside the curves of the last column, such as a loss.
    beside: str | None = None
    # Arms in the curves; []: all.
    curves: list[str] = field(default_factory=list)
    # The paper's numbers (paper.yaml) by arm and by the paper's own column, null where they are not known.
    paper: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    arm: str
    seed: int
    overrides: list[str]
    cfg: Config

    @property
    def dir(self) -> Path:
        return config.run_dir(self.cfg)


def load_plan(name: str) -> Plan:
    """Raises UserError for an unknown table and for a plan that is not one."""
    path = EXPERIMENTS / name / "plan.yaml"
    if not path.is_file():
        known = sorted(p.parent.name for p in EXPERIMENTS.glob("*/plan.yaml"))
        raise UserError(f"table={name}: no such table; use one of {', '.join(known)}")
    try:
        paper = path.with_name("paper.yaml")
        merged = OmegaConf.merge(
            OmegaConf.structured(Plan),
            OmegaConf.load(path),
            {"paper": OmegaConf.load(paper)} if paper.is_file() else {},
        )
        plan: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}; see expo/experiments/plan.py for its keys") from error
    assert isinstance(plan, Plan)
    for key, arm in plan.arms.items():
        if arm.against is not None and arm.against not in plan.arms:
            raise UserError(f"{path}: arms.{key}.against={arm.against}: no such arm; use one of {', '.join(plan.arms)}")
    return plan


def plan_runs(
    name: str, plan: Plan, scale_name: str, seeds: list[int] | None, overrides: list[str]
) -> list[PlannedRun]:
    """Every run of a table at a scale, composed and checked. With logger=wandb, a run's group is the table. Raises UserError."""
    if scale_name not in plan.scales:
        raise UserError(f"scale={scale_name}: this table has none such; use one of {', '.join(plan.scales)}")
    scale = plan.scales[scale_name]
    config.register()
    runs = []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for seed in scale.seeds if seeds is None else seeds:  # all arms of a seed before the next
            for key, arm in plan.arms.items():
                own = [*scale.overrides, *arm.overrides, *scale.arms.get(key, []), *overrides, f"seed={seed}"]
                cfg = config.typed(compose("config", own))
                if isinstance(cfg.logger, WandbLoggerConf):
                    tags = f"[{scale_name},{cfg.dataset.name},'{cfg.model.path}']"
                    own += [f"logger.wandb.group={name}", f"logger.wandb.job_type={key}", f"logger.wandb.tags={tags}"]
                made = cfg.model.path.removeprefix("./") in plan.prepare
                check(replace(cfg, model=replace(cfg.model, path="ladder")) if made else cfg)
                for column in plan.columns:
                    _check_column(column, cfg)
                runs.append(PlannedRun(key, seed, own, cfg))
    return runs


def _check_column(column: str, cfg: Config) -> None:
    """Whether the final evaluation can give `pass@K` or `pass@K/levelN`. Raises UserError."""
    found = re.fullmatch(r"pass@(\d+)(?:/level(\d+))?", column)
    if found is None:
        raise UserError(f"columns={column}: not a column; use pass@K or pass@K/levelN")
    samples = cfg.evaluation.samples or max(cfg.k)
    if int(found[1]) > samples:
        raise UserError(
            f"columns={column}: only {samples} samples per problem; set evaluation.samples={found[1]} or more"
        )
    levels = cfg.dataset.eval_levels or cfg.dataset.levels or cfg.dataset.known_levels
    if found[2] and levels and int(found[2]) not in levels:
        raise UserError(
            f"columns={column}: {cfg.dataset.name} is evaluated on levels {levels}; set dataset.eval_levels"
        )

"""The whole config of a run: one field per group, and the keys that stand in none."""

import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from expo.config.algorithm import AlgorithmConf
from expo.config.commands import DiagnoseConf, PlanConf, PretrainConf
from expo.config.dataset import DatasetConf
from expo.config.hints import HintsConf
from expo.config.key import Rules, key, shown
from expo.config.loggers import LoggerConf
from expo.config.model import ModelConf
from expo.config.naming import NO_RUNS
from expo.config.optimizer import OptimizerConf
from expo.config.positives import PositivesConf
from expo.config.prompts import PromptsConf
from expo.config.rollout import RolloutConf
from expo.config.training import EvaluationConf, RewardConf, TrainerConf, VerifierConf

USUAL_SAMPLES = 1024  # of a problem in an evaluation


@dataclass
class Config:
    """Every key of `expo train`, `evaluate`, `diagnose` and `pretrain`."""

    algorithm: AlgorithmConf = key(MISSING, help="how the policy learns from a step's data")
    positives: PositivesConf = key(MISSING, help="where positive samples come from and how they enter the loss")
    hints: HintsConf = key(MISSING, help="what all-wrong groups are helped with")
    dataset: DatasetConf = key(MISSING, help="problems to train on and to evaluate on")
    model: ModelConf = key(MISSING, help="the policy")
    rollout: RolloutConf = key(MISSING, help="the engine that generates")
    reward: RewardConf = key(RewardConf, absent={"_target_": "expo.step.rewards.Correct"})
    """what a judged rollout is worth"""
    trainer: TrainerConf = key(TrainerConf, help="the size of a run, and what it runs on")
    optimizer: OptimizerConf = key(OptimizerConf, pairs=False, help="how the weights follow the gradient")
    evaluation: EvaluationConf = key(EvaluationConf, pairs=False, help="sampling of evaluations")
    verifier: VerifierConf = key(VerifierConf, help="judging of answers")
    logger: LoggerConf = key(LoggerConf, identity=False, help="where scalars go beside metrics.jsonl")
    prompts: PromptsConf = key(MISSING, help="templates of the prompts")
    pretrain: PretrainConf = key(PretrainConf, identity=False, help="`expo pretrain`")
    diagnose: DiagnoseConf = key(DiagnoseConf, identity=False, help="`expo diagnose`")
    plan: PlanConf = key(PlanConf, identity=False, help="`expo plan`")
    k: list[int] = key([1, 4], pairs=False, help="the k of pass@k")
    seed: int = key(0, low=0, high=2**63 - 1, help="seed of everything random but evaluations")
    name: str = key(MISSING, identity=False)
    """name of the arm in run directories, W&B and tables; the algorithm's YAML sets it"""
    needs: str = key("nothing", choices=("nothing", "positives", "hints"), identity=False)
    """that without which it would be another algorithm under this name; the algorithm's YAML sets it"""
    output_dir: str = key("outputs", identity=False, help="where run directories are made")
    differs: str | None = key(None, identity=False)
    """what a new run directory's name says between `name` and the seed; null: the keys that the command line gives"""
    run: str | None = key(None, identity=False)
    """run directory whose settings are taken, before all other keys; `expo evaluate` and `diagnose` take its finished
    model and its held-out problems, `expo train` goes on with it"""
    fresh: bool = key(False, identity=False)
    """run again from nothing even where this very run is finished or has a checkpoint"""

    def is_evaluated(self, step: int) -> bool:
        """Return whether a training run has an evaluation after so many steps."""
        every = self.evaluation.every
        return step == self.trainer.max_steps or bool(every and step % every == 0)

    def doubts(self, cfg: "Config") -> Rules:
        if (most := max(self.evaluation.samples or 0, *self.k)) > USUAL_SAMPLES:
            yield f"k={shown(self.k)}: an evaluation writes {most} completions of each problem"

    def rules(self, cfg: "Config") -> Rules:
        names = {"name": self.name, "dataset.name": self.dataset.name, "differs": self.differs or "x"}
        for where, value in names.items():
            if re.fullmatch("\\w[\\w.+ -]*", value) is None:
                yield f"{where}={value}: no name; use letters, digits and _ . + - (it is part of a folder's name)"
        if self.dataset.name in NO_RUNS:
            yield f"dataset.name={self.dataset.name}: is the name of another folder of output_dir; give another name"
        if not self.k or min(self.k) < 1:
            yield f"k={self.k}: pass@k needs k of at least 1; set for example k=[1,4]"
        if not Path(self.output_dir).is_dir() and Path(self.output_dir).exists():
            yield f"output_dir={self.output_dir}: a file, not a folder; give a folder, which need not exist yet"

"""expo's side of `make bench`: the trainer of `expo train`, a step at a time. `python -m benchmarks.bench.ours CASE
FOLDER`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.bench.cases import Case
from benchmarks.bench.turns import Turns
from expo.algorithms.base import Algorithm
from expo.config import RewardConf, compose_config
from expo.jobs.fit import make_trainer
from expo.jobs.process import set_up_process
from expo.jobs.wiring import build_run
from expo.runs.directory import Run
from expo.step.rewards import Rollout
from expo.training.callbacks import Stop
from expo.verifier.pool import Verifier


class RandomReward:
    """A random number for each rollout, so that every group trains."""

    def __init__(self, conf: RewardConf):
        self.generator = np.random.default_rng(0)

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float]:
        return [float(x) for x in self.generator.random(len(rollouts))]


class StepByStep(Callback):
    """Waits for its turn before each step."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.turns = Turns(lambda: self.parts)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.turns()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        metrics, experience = pl_module.last_metrics, pl_module.last_experience
        assert experience is not None
        self.parts = {k.removeprefix("time/"): v or 0.0 for k, v in metrics.items() if k.startswith("time/")}
        groups = experience.groups
        self.parts["prompt_tokens"] = sum(map(len, {group.prompt for group in groups}))
        self.parts["tokens"] = sum(len(c.ids) for group in groups for c in group.completions)
        self.parts["positive_tokens"] = sum(len(c.ids) for _, c in experience.positives)
        # The update reads the prompts of mixed groups without positives, too.
        self.parts["positive_prompt_tokens"] = sum(
            len(group.prompt) for group in groups if group.positives and max(group.rewards) == min(group.rewards)
        )


def main(case: Case, folder: Path) -> None:
    """Train until stdin ends."""
    cfg = compose_config(
        [
            *case.overrides,
            "trainer.checkpoint_every=100000",
            "trainer.accelerator=cpu",
            "evaluation.every=0",
            f"trainer.threads={case.threads}",
            f"output_dir={folder / 'outputs'}",
            *(_rows(case, folder) if case.shape else LADDER),
        ]
    )
    if case.shape:
        cfg.reward = RewardConf(_target_="benchmarks.bench.ours.RandomReward")
    set_up_process(cfg)
    with Verifier(cfg.verifier) as verifier:
        module, evaluator, _ = build_run(cfg, verifier)
        run = Run.find(cfg)
        run.begin()
        trainer = make_trainer(cfg, run, evaluator, Stop(None), None)
        cast(Any, trainer).callbacks.append(StepByStep())
        trainer.fit(module)


# So small a rate leaves the policy as it is: both sides of a comparison roll out the same, step by step.
LADDER = ["dataset=ladder", "dataset.eval_limit=4", "trainer.max_steps=200", "optimizer.learning_rate=1e-12"]


def _rows(case: Case, folder: Path) -> list[str]:
    return [
        "algorithm=grpo", "dataset=custom", f"dataset.path={folder / 'rows.jsonl'}",
        f"dataset.eval_path={folder / 'held_out.jsonl'}",
        "dataset.columns.question=question", "dataset.columns.answer=answer", "k=[1]",
        f"model.path={folder / 'model'}", f"model.lora_rank={case.lora_rank}", f"algorithm.kl_coef={case.kl}",
        f"algorithm.group_size={case.group}", f"trainer.problems_per_step={case.problems}",
        f"trainer.micro_batch_size={case.micro}", f"rollout.max_completion_tokens={case.tokens}",
        "rollout.max_prompt_tokens=2048", "trainer.max_steps=10000",
    ]  # fmt: skip


if __name__ == "__main__":
    main(Case.of(sys.argv[1]), Path(sys.argv[2]))

"""P4: whole steps of GRPO and ExP-GRPO by part, beside what `expo plan` says; P5 watches their memory."""

import importlib.util
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu.place import Check, Place
from expo.algorithms.base import Algorithm
from expo.config import Config
from expo.cost.machine import this_machine
from expo.cost.run import Work
from expo.cost.seconds import seconds
from expo.cost.shape import Shape, shape_of
from expo.jobs.fit import make_trainer
from expo.jobs.wiring import build_run
from expo.model.modes import causal_lm
from expo.runs.directory import Run
from expo.training.callbacks import Stop
from expo.verifier.pool import Verifier

STEPS = 3


class Note(Callback):
    """Keeps the seconds and tokens of each step, and tells them at once."""

    def __init__(self, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self.steps: list[dict[str, float]] = []
        self.tell = tell

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Algorithm)
        metrics, experience = pl_module.last_metrics, pl_module.last_experience
        assert experience is not None
        parts = {name: metrics.get(f"time/{name}_s") or 0.0 for name in ("rollout", "explain", "update", "sync")}
        self.steps.append({
            **parts, "generated": experience.generated_tokens, "trained": metrics["throughput/tokens_trained"] or 0.0,
            "whole": sum(experience.timer.seconds.values()),
        })  # fmt: skip
        self.tell({"step": len(self.steps), **self.steps[-1]})


def setting(place: Place, algorithm: str, shape: str, engine: str, steps: int = STEPS, *overrides: str) -> Config:
    """Return the config of a run of a few steps of 64 rollouts of 192 tokens."""
    large = (
        "rollout.max_completion_tokens=192", "rollout.max_prompt_tokens=256", "trainer.problems_per_step=8",
        "algorithm.group_size=8", "trainer.precision=bf16-mixed", "trainer.micro_batch_size=16",
    )  # fmt: skip
    tiny = ("rollout.max_completion_tokens=16", "trainer.problems_per_step=2", "algorithm.group_size=2")
    return place.config(
        f"algorithm={algorithm}", f"rollout={engine}", f"model.path={shape}", f"trainer.max_steps={steps}",
        *(large if place.gpu else tiny), *overrides,
    )  # fmt: skip


def train(cfg: Config, *watching: Callback) -> Shape:
    """Make the run of a config without its first evaluation, and return the shape of its model."""
    with Verifier(cfg.verifier) as verifier:
        module, evaluator, _ = build_run(cfg, verifier)
        run = Run.find(cfg)
        run.begin()
        trainer: Any = make_trainer(cfg, run, evaluator, Stop(None), None)
        trainer.callbacks[:0] = watching
        trainer.fit(module)
        module.pipeline.engines.close()
    return shape_of(causal_lm(module.policy).config)


def of_run(algorithm: str, name: str, engine: str) -> Check:
    """Return the check that makes whole steps of an algorithm with a shape."""

    def steps(place: Place) -> Mapping[str, Any]:
        written = ("positives.filters=[]", "positives.bank=false") if algorithm == "exp_grpo" else ()
        cfg = setting(place, algorithm, name, engine, STEPS, *written)
        note = Note(place.tell)
        place.peak_gb()
        shape = train(cfg, note)
        machine, took = this_machine(cfg.trainer.threads), {
            part: median(step[part] for step in note.steps[1:]) for part in note.steps[0]
        }  # fmt: skip
        return {
            "predicted": seconds(Work(cfg, shape, 1), machine),
            **took,
            "generated tok/s": took["generated"] / max(took["rollout"] + took["explain"], 1e-9),
            "trained tok/s": took["trained"] / max(took["update"], 1e-9),
            "peak GB": place.peak_gb(),
        }

    return steps


def checks(place: Place) -> dict[str, Check]:
    """Return a check for each algorithm and engine."""
    engines = ["hf", *(["vllm"] if importlib.util.find_spec("vllm") else [])]
    shape = place.shapes[1]
    return {
        f"{algorithm}, {shape}, {engine}": of_run(algorithm, shape, engine)
        for engine in engines for algorithm in ("exp_grpo", "grpo")
    }  # fmt: skip

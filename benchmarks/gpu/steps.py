"""Part D: five whole steps of ExP-GRPO for each shape, in one line each."""

import importlib.util
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu.place import Check, Place
from expo.algorithms.base import Algorithm
from expo.cost.machine import this_machine
from expo.cost.run import Work
from expo.cost.seconds import seconds
from expo.cost.shape import shape_of
from expo.jobs.fit import make_trainer
from expo.jobs.wiring import build_run
from expo.model.policy import causal_lm
from expo.runs.directory import Run, device_name, git_commit
from expo.training.callbacks import Stop
from expo.verifier.pool import Verifier

STEPS = 5


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


def of_shape(name: str, engine: str) -> Check:
    """Return the check that makes whole steps of a shape."""

    def steps(place: Place) -> Mapping[str, Any]:
        large = (
            "rollout.max_completion_tokens=512",
            "trainer.problems_per_step=8",
            "trainer.precision=bf16-mixed",
            "trainer.micro_batch_size=8",
        )
        tiny = ("rollout.max_completion_tokens=16", "trainer.problems_per_step=2", "algorithm.group_size=2")
        cfg = place.config(
            "algorithm=exp_grpo",
            f"rollout={engine}",
            f"model.path={name}",
            f"trainer.max_steps={STEPS}",
            "positives.filters=[]",
            "positives.bank=false",
            *(large if place.gpu else tiny),
            *(("rollout.dtype=bfloat16",) if engine != "hf" else ()),
            *(("model.gradient_checkpointing=true",) if name == "3B" else ()),
        )
        note = Note(place.tell)
        place.peak_gb()
        with Verifier(cfg.verifier) as verifier:
            module, evaluator, _ = build_run(cfg, verifier)
            run = Run.find(cfg)
            run.begin()
            trainer: Any = make_trainer(cfg, run, evaluator, Stop(None), None)
            trainer.callbacks.append(note)
            trainer.fit(module)
            module.pipeline.engines.close()
        shape = shape_of(causal_lm(module.policy).config)
        machine = this_machine(cfg.trainer.threads)
        took = {part: median(step[part] for step in note.steps[1:]) for part in note.steps[0]}
        products = 6 * took["trained"] * (shape.in_layers + shape.head)
        rate = machine.rate("bfloat16" if place.gpu else "float32")
        use = products / took["update"] / rate if took["update"] else 0.0
        peak = place.peak_gb()
        work = Work(cfg, shape, 1)
        generating = took["rollout"] + took["explain"]
        line = (
            f"{device_name()} {name} {engine}: step {took['whole']:.2f} s "
            f"({took['rollout']:.2f}/{took['explain']:.2f}/{took['update']:.2f}/{took['sync']:.2f}), "
            f"{took['generated'] / max(generating, 1e-9):.0f} generated tok/s, "
            f"{took['trained'] / max(took['update'], 1e-9):.0f} trained tok/s, "
            f"{use:.0%} of the measured FLOP/s, {peak:.1f} GB, {git_commit('benchmarks')}"
        )
        return {"line": line, "measured": took, "estimated": seconds(work, machine), "peak GB": peak}

    return steps


def checks(place: Place) -> dict[str, Check]:
    """Return a check for each shape and engine, the largest first."""
    engines = ["hf", *(["vllm"] if importlib.util.find_spec("vllm") else [])]
    return {
        f"steps of {name}, {engine}": of_shape(name, engine) for name in reversed(place.shapes) for engine in engines
    }

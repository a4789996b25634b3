"""Reactions to a policy that collapses: `trainer.on_collapse`, and the best checkpoint."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from expo.algorithms.base import Algorithm
from expo.config import label
from expo.loggers.tracking import log_summary, trackers
from expo.runs.directory import Run
from expo.runs.health import ACTED_ON, Collapse, Health
from expo.runs.reading import read_points
from expo.training.checkpoints import BEST, checkpoint_problem

log = logging.getLogger(__name__)


class Collapsed(Exception):
    """The policy has collapsed, and the run stops: `trainer.on_collapse` says so, or no way back is left."""


class WatchHealth(Callback):
    """Callback that reports a collapse in the terminal, the summary and the loggers; then goes on, stops, or rolls
    back.

    With stop and rollback, checkpoints/best.ckpt is the checkpoint of the highest mean reward over the last steps,
    looked at every `evaluation.every` steps; before there is one, the initial policy. A rollback takes the policy and
    the optimizer from it; the steps go on counting, so that other problems and other noise follow. It is done once for
    each best checkpoint: a collapse after it, without a better one in between, stops the run.
    """

    def __init__(self, run: Run, action: str, every: int, lineage: str):
        self.run, self.action, self.every, self.lineage = run, action, every, lineage
        self.path = run.dir / "checkpoints" / BEST
        self.health = Health()
        self.best_step, self.best_reward = -1, float("-inf")  # of the best checkpoint; -1: there is none
        self.seen: Mapping[str, float | None] = {}  # scalars of the evaluation that was looked at last
        self.rolled_back_to, self.since = -1, 0  # the step rolled back to last, and the step at which that was done
        self.before_end: dict[str, Any] | None = None  # state without an evaluation that the run's end alone asks for

    def state_dict(self) -> dict[str, Any]:
        return self.before_end or {
            "health": self.health.state(), "best_step": self.best_step, "best_reward": self.best_reward,
            "rolled_back_to": self.rolled_back_to, "since": self.since, "collapses": self.run.collapses,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.health = Health.of(state_dict["health"])
        self.best_step, self.best_reward = state_dict["best_step"], state_dict["best_reward"]
        self.rolled_back_to, self.since = state_dict["rolled_back_to"], state_dict["since"]
        self.run.collapses = state_dict["collapses"]

    def on_train_start(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        if trainer.current_epoch == 0 and self.keeps(pl_module):
            self.keep(trainer, 0, float("-inf"))
        signs = [c for c in reversed(self.run.collapses) if c["metric"] in ACTED_ON]
        collapse = next((c for c in signs if self.health.watches[c["metric"]].on), None)
        if self.action == "stop" and collapse:  # noticed in an earlier session, with on_collapse=warn
            since = f"from step {collapse['began']} on{self.about_best}"
            raise Collapsed(f"stopped: {collapse['metric']} collapses {since}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        step = trainer.current_epoch + 1
        self.see_evaluation(trainer)
        if still := self.health.see_dead(pl_module.last_metrics, step):
            self.tell(trainer, [Collapse(s.metric, s.meaning, s.worst, s.worst, 1, step) for s in still])
        if collapses := self.collapses_in(pl_module.last_metrics, step):
            self.tell(trainer, collapses)
        if acted_on := [c for c in collapses if c.metric in ACTED_ON]:
            self.act(trainer, pl_module, acted_on[0])
            return
        if step == 1 and (first := pl_module.last_metrics["reward/mean"]) is not None:
            self.best_reward = first  # of the initial policy, which has made the rollouts of this step
        reward = self.health.reward
        better = reward is not None and reward >= self.best_reward and not self.health.collapsing
        if self.keeps(pl_module) and better and self.every and step % self.every == 0:
            assert reward is not None
            self.keep(trainer, step, reward)

    def on_train_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        if not self.every or trainer.current_epoch % self.every:  # a longer run that takes this one over has none here
            self.before_end = self.state_dict()
        self.see_evaluation(trainer)

    def keeps(self, module: Algorithm) -> bool:
        """Return whether a best checkpoint is kept: only where the current policy makes the rollouts that choose it."""
        return self.action != "warn" and module.conf.acts_every_step

    def collapses_in(self, metrics: Mapping[str, float | None], step: int) -> list[Collapse]:
        """Return the collapses that a step's or an evaluation's scalars show from this step on."""
        collapses = []
        for watch, now in self.health.see(metrics):
            metric, best = watch.sign.metric, watch.best or 0.0
            points = [p for p in read_points(self.run.dir, metric) if p[0] > self.since]
            collapses.append(Collapse(metric, watch.sign.meaning, best, now, watch.began(points, now), step))
        return collapses

    def see_evaluation(self, trainer: Trainer) -> None:
        """Watch a new evaluation: where rollouts are not the policy's own, nothing else shows a collapse."""
        if self.run.metrics is not self.seen:
            self.seen = self.run.metrics
            if collapses := self.collapses_in(self.seen, trainer.current_epoch):
                self.tell(trainer, collapses)

    @property
    def about_best(self) -> str:
        return f"; {self.path} is of step {self.best_step}" if self.best_step >= 0 else ""

    def tell(self, trainer: Trainer, collapses: list[Collapse]) -> None:
        self.run.collapses = [*self.run.collapses, *map(asdict, collapses)]
        self.run.write_summary("stopped")  # what a SIGKILL from here on leaves behind
        log_summary(trainer.loggers, self.run.summary())
        for collapse in collapses:
            log.warning("%s", collapse)
            for logger in trackers(trainer.loggers):
                logger.alert(f"{label(self.run.cfg)}: {collapse.metric}", str(collapse))

    def act(self, trainer: Trainer, module: Algorithm, collapse: Collapse) -> None:
        """Do what `trainer.on_collapse` says. Raises Collapsed where the run is to end."""
        if self.action == "stop":
            since = f"from step {collapse.began} on{self.about_best}"
            raise Collapsed(f"stopped at step {collapse.noticed}: {collapse.metric} collapses {since}")
        if self.action == "rollback":
            self.roll_back(trainer, module, collapse)

    def keep(self, trainer: Trainer, step: int, reward: float) -> None:
        """Write the best checkpoint, to which a rollback returns; no run resumes from it."""
        self.best_step, self.best_reward = step, reward
        trainer.save_checkpoint(self.path)

    def roll_back(self, trainer: Trainer, module: Algorithm, collapse: Collapse) -> None:
        """Take policy, optimizer and history from the best checkpoint. Raises Collapsed where there is none to
        load, or the run has come back to it before."""
        stopped = f"stopped at step {collapse.noticed}"
        if self.rolled_back_to == self.best_step:
            again = f"{collapse.metric} collapses once more after the return to step {self.best_step}, the best so far"
            raise Collapsed(f"{stopped}: {again}")
        wrong = checkpoint_problem(self.path, self.lineage) if self.path.is_file() else "is not there"
        if wrong:
            raise Collapsed(f"{stopped}: there is no way back, {self.path} {wrong}")
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        saved_state = saved["callbacks"][self.state_key]
        if saved_state["best_step"] != self.best_step:
            other = f"{self.path} is of step {saved_state['best_step']}, the best one is {self.best_step}"
            raise Collapsed(f"{stopped}: {other}")
        module.load_state_dict(saved["state_dict"], strict=False)
        trainer.strategy.load_optimizer_state_dict(saved)
        for schedule, state in zip(trainer.lr_scheduler_configs, saved["lr_schedulers"], strict=True):
            schedule.scheduler.load_state_dict(state)
        module.on_load_checkpoint(saved)
        module.pipeline.engines.sync()
        self.health = Health.of(saved_state["health"])
        for watch in self.health.watches.values():
            watch.recent = []  # it must not mix steps before and after the rollback
        self.rolled_back_to, self.since = self.best_step, collapse.noticed
        log.warning("step %d: back to the policy of step %d", collapse.noticed, self.best_step)

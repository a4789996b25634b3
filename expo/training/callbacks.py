"""Callbacks around a step: logging, evaluation, checkpoints, progress, stopping."""

import logging
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expo.algorithms.base import Algorithm
from expo.config import Config, EngineError, label
from expo.evaluation.evaluate import Evaluator
from expo.evaluation.files import save_rows
from expo.ground.ranks import is_rank, is_watched
from expo.loggers.tracking import log_step, log_table
from expo.runs.directory import Run
from expo.runs.health import why_none_is_right
from expo.runs.reading import last_evaluation
from expo.step.experience import Experience, Group
from expo.step.pipeline import Pipeline
from expo.training.checkpoints import LINEAGE, save_checkpoint, save_model

SAY_EVERY_S = 10  # between lines of progress where nobody watches a terminal
log = logging.getLogger(__name__)


class LogSteps(Callback):
    """Logs each step's scalars to every logger, under the number of steps done; gives each warning once."""

    warned, warned_of_filters = False, False

    def __init__(self, cfg: Config):
        self.cfg = cfg

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        step, gain = trainer.current_epoch + 1, pl_module.last_metrics.get("pair/chosen_gain") or 0.0
        if gain < 0 and not self.warned:
            self.warned = True
            unlikely = f"less likely than under the reference (pair/chosen_gain {gain:.3g} nats)"
            remedy = "see pair/chosen_logp, and try positives.weight=1 (RPO)"
            why = f"the chosen completions are {unlikely}: the loss can fall on without the policy learning them"
            log.warning("step %d: %s; %s", step, why, remedy)
        e = pl_module.last_experience
        if e and step == 1:
            rows = [row for g in e.groups for row in rollout_rows(g.unaided) if row["verdict"]]
            for line in why_none_is_right(rows, rows, self.cfg):
                log.warning("step 1: %s", line)
        candidates = [c for group in e.groups for c in group.candidates] if e else []
        if candidates and all(c.rejected for c in candidates) and not self.warned_of_filters:
            self.warned_of_filters = True
            counts = Counter(c.rejected for c in candidates).most_common(3)
            reasons = ", ".join(f"{reason} {count}" for reason, count in counts)
            told = "step %d: none of the %d possible positives passed the filters (%s): nothing is learned from them; "
            told += "see positive/filtered_*_frac, the column `rejected` in completions/, and positives.filters"
            log.warning(told, step, len(candidates), reasons)
        log_step(trainer.loggers, pl_module.last_metrics, step)


class Evaluate(Callback):
    """Evaluates before the first step, every `evaluation.every` steps, and after the last; keeps all completions, and
    the policy that is best on the problems to choose by in checkpoints/best, see `dataset.validation`."""

    def __init__(self, evaluator: Evaluator, run: Run, stop: "Stop"):
        self.evaluator, self.run, self.stop, self.told = evaluator, run, stop, False
        self.best, self.best_step, self.idle = -1.0, -1, 0  # idle: evaluations since the best one
        self.counted = -1  # step of the last evaluation that was held against the best

    def state_dict(self) -> dict[str, Any]:
        state = {"best": self.best, "best_step": self.best_step, "idle": self.idle, "counted": self.counted}
        return state if self.evaluator.validation else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({"counted": sys.maxsize} | state_dict)  # checkpoints of before have counted theirs

    def on_train_start(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        self.end_early(trainer)  # of a session that was killed before it could end
        step, first = trainer.current_epoch, self.run.cfg.evaluation.first
        # Metrics are lost with summary.json and metrics.jsonl, or their evaluation was stopped.
        if first if step == 0 else not self.run.metrics and (first or self.run.cfg.is_evaluated(step)):
            self.evaluate(trainer, pl_module, step)
        elif self.evaluator.validation and self.counted < step:
            score = last_evaluation(self.run.dir, step).get(self.score)
            if score is not None:  # evaluated by a session that left no checkpoint after it
                self.is_best(score, step)
                self.end_early(trainer)

    @property
    def score(self) -> str:
        """Return the scalar by which the best policy is chosen."""
        return f"validation/pass@{max(self.run.cfg.k)}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        step = trainer.current_epoch + 1
        if self.run.cfg.is_evaluated(step):
            try:
                self.evaluate(trainer, pl_module, step)
            except (Interrupted, EngineError):  # of vLLM, which raises what is its own
                if self.stop.signal:  # the same command goes on with this evaluation
                    self.run.metrics = {}
                    save_checkpoint(trainer, self.run.dir / "checkpoints", step)
                raise

    def evaluate(self, trainer: Trainer, module: Algorithm, step: int) -> None:
        completions = self.run.dir / "completions"
        engine = module.collector.current_engine()  # first of all: no two threads may use the tokenizer
        if module.last_experience is not None:
            rows = experience_rows(module.last_experience, module.pipeline)
            if self.run.writes:
                save_rows(rows, completions / f"train-step{step:06d}.parquet")
            log_table(trainer.loggers, "completions/train", rows, step)
        with self.stop.at_once():
            evaluation = self.evaluator.evaluate(engine)
            metrics = self.run.metrics = evaluation.metrics | self.evaluator.validate(engine)
        if self.evaluator.validation:
            metrics["validation/best_step"] = self.choose(module, metrics[self.score], step)
            self.end_early(trainer)
        for line in () if self.told else why_none_is_right(evaluation.rows, evaluation.rows, self.run.cfg):
            log.warning("the evaluation of step %d: %s", step, line)
        self.told = True
        self.run.write_summary("stopped")  # what a SIGKILL from here on leaves behind: a stopped run with these metrics
        if self.run.writes:
            save_rows(evaluation.rows, completions / f"eval-step{step:06d}.parquet")
        log_step(trainer.loggers, metrics, step)
        log_table(trainer.loggers, "completions/eval", evaluation.rows, step)

    def choose(self, module: Algorithm, score: float, step: int) -> int:
        """Save the policy where it is the best so far on the validation problems. Returns the best policy's step."""
        if self.is_best(score, step):
            cfg, tokenizer = self.run.cfg, module.pipeline.tools.tokenizer
            policy = module.whole_policy() if cfg.trainer.save_final else None
            if policy is not None and self.run.writes:
                record = self.run.record("stopped", step=step)
                save_model(policy, tokenizer, self.run.dir / "checkpoints" / "best", cfg, record, goes_on=True)
        return self.best_step

    def is_best(self, score: float, step: int) -> bool:
        """Count an evaluation. Returns whether it is the best so far."""
        self.counted, better = step, score > self.best
        self.idle += 1
        if better:
            self.best, self.best_step, self.idle = score, step, 0
        return better

    def end_early(self, trainer: Trainer) -> None:
        if self.idle >= (self.run.cfg.evaluation.patience or math.inf):
            self.stop.enough = trainer.should_stop = True


def experience_rows(e: Experience, pipeline: Pipeline) -> list[dict[str, Any]]:
    """Return one row per rollout of a step, or one of a problem without any, with its positive and why candidates were
    rejected. A problem's first row has the positive by tokens, with log π(c_t|q, c_<t) under the policy after the
    step."""
    logps = iter(pipeline.scorer.token_logp([g.prompt for g, _ in e.positives], [c.ids for _, c in e.positives]))
    decode = pipeline.tools.tokenizer.batch_decode
    rows: list[dict[str, Any]] = []
    for group in e.groups:
        scored = [(c, next(logps)) for c in group.positives]
        for place, row in enumerate(rollout_rows(group)):
            first = scored[-1:] if place == 0 else []
            of_positive = {
                "positive": scored[-1][0].text if scored else None,
                "positive_tokens": decode([[i] for i in first[0][0].ids]) if first else None,
                "positive_token_logp": first[0][1] if first else None,
                "rejected": next((c.rejected for c in reversed(group.candidates) if c.rejected), None),
            }
            rows.append(row | of_positive)
    return rows


def rollout_rows(group: Group) -> list[dict[str, Any]]:
    """Return one row per rollout of a problem; without any, one that names the problem."""
    judged = zip(group.texts, group.verdicts, group.rewards, group.completions, group.hinted, strict=True)
    rows: list[tuple[Any, ...]] = [
        (text, verdict.value, reward, len(c.ids), c.truncated, hinted) for text, verdict, reward, c, hinted in judged
    ]
    problem = {name: getattr(group.problem, name) for name in ("level", "question", "answer")}
    names = ("completion", "verdict", "reward", "tokens", "truncated", "hinted")
    return [
        {"problem": group.problem.id, **problem, **dict(zip(names, row, strict=True))}
        for row in rows or [(None,) * 5 + (False,)]
    ]


class KeepCheckpoint(Checkpoint):
    """Writes a checkpoint every `trainer.checkpoint_every` steps and keeps the newest. Lightning's own callback skips a
    step without an update, as GRPO's all-wrong ones are."""

    def __init__(self, run: Run, lineage: str):
        self.run, self.lineage = run, lineage

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[LINEAGE] = self.lineage

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        if (trainer.current_epoch + 1) % self.run.cfg.trainer.checkpoint_every == 0:
            self.run.write_summary("stopped")  # what a SIGKILL leaves behind knows the seconds until here
            save_checkpoint(trainer, self.run.dir / "checkpoints", trainer.current_epoch + 1)


class Interrupted(Exception):
    """A signal came during an evaluation, which is skipped now and made when the run goes on."""


class Stop(Callback):
    """Ends training after the current step on SIGTERM or SIGINT, or when `stop_after` steps are done; within an
    evaluation, at once. A second signal ends the process the ordinary way, but not on several devices: a cluster tells
    each process, and who watches over them tells them again."""

    def __init__(self, stop_after: int | None):
        self.stop_after, self.signal, self.evaluates = stop_after, 0, False
        self.enough = False  # the run is over before its last step, see `evaluation.patience`

    def on_train_start(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        # Here and not earlier: Lightning installs a SIGTERM handler of its own, which exits with 0 and no checkpoint.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_IGN if is_watched() else signal.SIG_DFL)
        when = "in the midst of this evaluation" if self.evaluates else "after this step, with a checkpoint"
        print(f"{signal.Signals(number).name}: stopping {when}; the same command goes on", file=sys.stderr)
        if self.evaluates:
            raise Interrupted(when)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the context's code at once. Of several devices, none leaves the others waiting."""
        self.evaluates = not is_rank()
        try:
            if self.evaluates and self.signal:  # it came in the step that was just made
                raise Interrupted("before this evaluation")
            yield
        finally:
            self.evaluates = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        over = trainer.current_epoch + 1 >= (self.stop_after or math.inf)
        # A signal reaches the devices of a run at different moments: all stop after the same step.
        trainer.should_stop |= trainer.strategy.reduce_boolean_decision(bool(self.signal) or over, all=False)


def passed(metrics: Mapping[str, float], k: int) -> str:
    return f"pass@{k} {metrics[f'pass@{k}']:.3f}" if metrics else ""


class ShowProgress(Callback):
    def __init__(self, run: Run, max_steps: int, bar: bool):
        self.run, self.max_steps, self.bar = run, max_steps, bar
        self.said, self.name = 0.0, label(run.cfg)

    def on_train_start(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        # What a narrow terminal cuts off stands last.
        columns = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}"), BarColumn(24))
        self.progress = Progress(*columns, TextColumn("{task.description}"), disable=not self.bar)
        self.task = self.progress.add_task(self.name, total=self.max_steps, completed=trainer.current_epoch, state="")
        self.progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Algorithm) -> None:  # type: ignore[override]
        step, k = trainer.current_epoch + 1, max(self.run.cfg.k)
        reward, loss = pl_module.last_metrics["reward/mean"], pl_module.last_metrics["loss/total"]
        shown = f"loss {loss:.3f}" if reward is None else f"reward {reward:.3f}"
        epochs = step * pl_module.sampler.per_step / len(pl_module.sampler.problems)
        state = " ".join(filter(None, (shown, passed(self.run.metrics, k), f"epoch {epochs:.3g}")))
        self.progress.update(self.task, completed=step, state=state)
        if not self.bar and (time.monotonic() - self.said >= SAY_EVERY_S or step == self.max_steps):
            self.said = time.monotonic()
            print(f"step {step}/{self.max_steps} {state} {self.name}", flush=True)

    def teardown(self, trainer: Trainer, pl_module: Algorithm, stage: str) -> None:  # type: ignore[override]
        if hasattr(self, "progress"):
            self.progress.stop()

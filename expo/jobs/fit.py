"""Train one run to its end, with Lightning's trainer."""

import gc
import math
import os
import resource
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch
from lightning import Trainer

from expo.algorithms.base import Algorithm
from expo.algorithms.updates import NonFiniteGradient
from expo.config import DISK, Config, EngineError, UserError, lineage, model_content
from expo.config.own_code import changed_code
from expo.data.account import Account
from expo.evaluation.evaluate import Evaluator
from expo.ground.files import remove
from expo.ground.ranks import LOST, Apart, is_rank, is_watched, joined, lost_another
from expo.jobs.process import set_up_process
from expo.jobs.wiring import build_run
from expo.loggers.tracking import Session, log_summary, make_loggers
from expo.model.modes import causal_lm
from expo.runs.directory import Run
from expo.runs.health import nothing_learned
from expo.runs.reading import last_evaluation_of, read_lines, step_in
from expo.training.callbacks import Evaluate, Interrupted, KeepCheckpoint, LogSteps, ShowProgress, Stop, passed
from expo.training.checkpoints import WholeFiles, newest_checkpoint, save_checkpoint, save_model, step_of
from expo.training.collapse import Collapsed, WatchHealth
from expo.training.shorter import check_problems, inherit, replay
from expo.training.space import check_space
from expo.training.strategy import strategy_options
from expo.verifier.pool import Verifier

# What ends a run with one line, and what to do about it.
REMEDIES: dict[type[Exception], str] = {
    torch.OutOfMemoryError: "lower trainer.micro_batch_size or rollout.batch_size, or set "
    "model.gradient_checkpointing=true",
    NonFiniteGradient: "lower optimizer.learning_rate, or set trainer.on_nonfinite=skip where it is a gradient",
    Apart: "the same command goes on from the last of them; please report it, with your GPUs and versions",
    Collapsed: "lower optimizer.learning_rate, or set trainer.on_collapse=warn to go on all the same",
    EngineError: "the same command goes on from the last of them",
}


def make_run(cfg: Config) -> int:
    """Train a run, or wait for the process that does; on several devices, this device's part. Returns the exit code."""
    set_up_process(cfg)
    gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    check_devices(cfg, gpu)
    try:
        return _make_run(cfg, gpu)
    except RuntimeError as error:  # before the first step, or after the last one
        if lost_another(error):
            return tell_lost(error)
        raise
    finally:
        if is_rank():  # a sharded model holds connections, and Python aborts where it ends with one open
            gc.collect()


def tell_lost(error: Exception) -> int:
    """Report that another device of the run is gone, unless who watches over them does. Returns the exit code."""
    if not is_watched() or os.environ["RANK"] != "0":  # the others have a log of their own
        message = f"another device of this run has ended ({' '.join(str(error).split())})"
        print(f"expo: {message}; the same command goes on from the last checkpoint", file=sys.stderr)
    return LOST


def _make_run(cfg: Config, gpu: bool) -> int:
    with joined(gpu) as ranks, Verifier(cfg.verifier, ranks, cfg.prompts.final) as verifier:
        # What the hub has may change; a run that goes on keeps what it began with.
        found = Run.find(cfg)
        earlier = {} if cfg.fresh else found.summary()
        module, evaluator, account = build_run(cfg, verifier, earlier.get("model_commit"))
        with found.alone() if ranks.first and not is_watched() else nullcontext():
            begin = ranks.by_first(lambda: prepare(found, module, evaluator, account))
            if begin is None:
                return 0
            run, checkpoint = replace(begin[0], writes=ranks.first), begin[1]
            module.pairs = replace(module.pairs, own=run.dir / "pairs")
            return fit(cfg, run, module, evaluator, checkpoint)


def check_devices(cfg: Config, gpu: bool) -> None:
    """Raise UserError for devices that this machine lacks. Args: gpu, whether it has GPUs."""
    wanted, available = cfg.trainer.devices * cfg.trainer.num_nodes, int(os.environ["WORLD_SIZE"]) if is_rank() else 1
    if wanted != available:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}, trainer.num_nodes={cfg.trainer.num_nodes}: {available} processes "
            "were started; start as many as there are devices on all nodes, or unset RANK and WORLD_SIZE"
        )
    if gpu and cfg.trainer.devices > (available := torch.cuda.device_count()):
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: torch sees {available} GPUs; set trainer.devices={available} or "
            "less"
        )


def prepare(found: Run, module: Algorithm, evaluator: Evaluator, account: Account) -> tuple[Run, Path | None] | None:
    """Make the run directory, or resume the run in it. The first process does it for all.

    Returns the run as its earlier sessions have left it, and its newest checkpoint; None where the run is finished.
    Raises UserError where the run cannot go on, or has no room. Args: found, the run before its data were read.
    """
    cfg = found.cfg
    run = Run.find(cfg)
    if run.identity != found.identity:
        raise UserError(
            f"{found.dir}: a file behind dataset.path, dataset.eval_path or model.path has changed since it was read; "
            "the same command reads it again"
        )
    if run.finished:  # by the process that we have waited for
        print(run.finished_line)
        return None
    run.model_commit = getattr(causal_lm(module.policy), "hub_commit", None)
    run.begin()
    run.keep_account(account)
    check_problems(run, evaluator)
    check_space(cfg, run.dir, module)
    inherit(run, evaluator)
    checkpoint = newest_checkpoint(run.dir, lineage(cfg))
    reached = step_of(checkpoint) if checkpoint else 0
    for file in run.dir.glob("completions/*-step*.parquet"):
        if step_in(file) > reached:  # of a session that was killed: this one may end before
            file.unlink()
    if checkpoint is not None and (began_with := run.summary().get("own_code")):
        run.code = began_with
        if files := changed_code(began_with):
            print(f"{run.dir}: goes on with another {', '.join(files)} than it began with; fresh=true begins it again")
    # Not those of summary.json, which may be lost, or of an evaluation after this checkpoint. After a step that is
    # evaluated, its own evaluation alone will do.
    least = reached if cfg.is_evaluated(reached) else 0
    lines = [line for line in read_lines(run.dir) if least <= line["step"] <= reached] if checkpoint else []
    last_metrics = last_evaluation_of(lines)
    run.metrics = last_metrics if f"pass@{max(cfg.k)}" in last_metrics else {}
    return run, checkpoint


def fit(cfg: Config, run: Run, module: Algorithm, evaluator: Evaluator, checkpoint: Path | None) -> int:
    """Train from a checkpoint, or from the start, and leave the summary. Returns the exit code."""
    reached = step_of(checkpoint) if checkpoint else 0
    if (cfg.trainer.stop_after or math.inf) <= reached < cfg.trainer.max_steps:
        print(
            f"{run.dir}: has {reached} steps, and trainer.stop_after={cfg.trainer.stop_after}; set it higher to go on"
        )
        run.write_summary("stopped", step=reached)  # which may be lost
        return 0
    stop = Stop(cfg.trainer.stop_after)
    trainer = make_trainer(cfg, run, evaluator, stop, checkpoint)
    replay(run, trainer.loggers)
    run.write_summary("stopped")  # until it is done: what a SIGKILL leaves behind is a stopped run
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        # Lost, and there was no step left to make.
        if not run.metrics and trainer.current_epoch >= cfg.trainer.max_steps:
            evaluate = next(c for c in trainer.callbacks if isinstance(c, Evaluate))  # type: ignore[attr-defined]
            evaluate.evaluate(trainer, module, trainer.current_epoch)
    except Exception as error:  # whatever it is, the summary has to name it; what has no remedy is raised again
        code = explain_failure(error, run, trainer, stop)
        if code is None:
            raise
        return code
    finally:
        module.collector.close()
    return finish(cfg, run, trainer, module, evaluator, stop)


def make_trainer(cfg: Config, run: Run, evaluator: Evaluator, stop: Stop, checkpoint: Path | None) -> Trainer:
    """Return Lightning's trainer, one epoch of which is one step."""
    max_steps = cfg.trainer.max_steps
    return Trainer(
        max_epochs=max_steps,
        accelerator=cfg.trainer.accelerator,
        **strategy_options(cfg.trainer, WholeFiles()),
        logger=make_loggers(Session(cfg, run.dir, step_of(checkpoint) if checkpoint else 0)) if run.writes else False,
        callbacks=[
            stop,
            LogSteps(cfg),
            # Before what keeps the policy: it may go back to an earlier one.
            WatchHealth(run, cfg.trainer.on_collapse, cfg.evaluation.every, lineage(cfg)),
            Evaluate(evaluator, run, stop),
            ShowProgress(run, max_steps, bar=sys.stderr.isatty() and "EXPO_SWEEP" not in os.environ),
            KeepCheckpoint(run, lineage(cfg)),
        ],
        reload_dataloaders_every_n_epochs=1,  # its loader knows which step it is
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def explain_failure(error: Exception, run: Run, trainer: Trainer, stop: Stop) -> int | None:
    """Note an error in summary and loggers. Returns the exit code where one line on stderr says it all, else None."""
    if lost_another(error):
        run.write_summary("stopped", step=trainer.current_epoch)
        return tell_lost(error)
    # A Ctrl-C reaches an engine in a process of its own, too.
    interrupted = isinstance(error, EngineError | Interrupted) and stop.signal
    full = DISK.get(error.errno or 0) if isinstance(error, OSError) else None
    with suppress(*((OSError,) if full else ())):  # of a full disk, the summary says `stopped`, as it stands
        if interrupted:
            run.write_summary("stopped", step=trainer.current_epoch)
        else:
            run.write_summary("failed", reason=f"{type(error).__name__}: {error}", step=trainer.current_epoch)
        log_summary(trainer.loggers, run.summary())
    if interrupted:
        return 128 + stop.signal
    remedy = REMEDIES.get(type(error))
    if full:
        remedy = f"{full}, and the same command goes on from the last of them"
    if remedy is None:
        return None
    print(f"expo: {' '.join(str(error).split())}; earlier checkpoints are in {run.dir}; {remedy}", file=sys.stderr)
    return 1


def finish(cfg: Config, run: Run, trainer: Trainer, module: Algorithm, evaluator: Evaluator, stop: Stop) -> int:
    """Write the last checkpoint, the model of a run that is done, and the summary. Returns the exit code."""
    step, checkpoints = trainer.current_epoch, run.dir / "checkpoints"
    done = step >= cfg.trainer.max_steps or stop.enough
    keeps_model = cfg.trainer.save_final or not done
    if keeps_model:
        save_checkpoint(trainer, checkpoints, step, keep_earlier=not done)
    code = 128 + stop.signal if stop.signal and not done else 0
    policy = module.whole_policy()
    if not run.writes:
        return code
    if done and keeps_model:
        save_model(policy, module.pipeline.tools.tokenizer, checkpoints / "final", cfg, run.record("done", step=step))
    peak = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        "verifier_worker": evaluator.verifier.peak_mb,  # of the largest one; 0 where no answer needed a worker
        **({"gpu": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}),
    }
    status, k = "done" if done else "stopped", max(cfg.k)
    final = {"final": model_content(checkpoints / "final")} if done and keeps_model else {}
    if done and (reason := nothing_learned(read_lines(run.dir))):
        final["learned_nothing"] = reason
    said = f"{run.dir}: {', '.join(filter(None, (f'{status} at step {step}', passed(run.metrics, k))))}"
    record = run.record(status, step=step, peak_memory_mb=peak, **final)
    log_summary(trainer.loggers, record)
    for logger in trainer.loggers:
        logger.finalize("success")
    run.write(record)
    if not keeps_model:
        remove(checkpoints)
    print(said)
    if "learned_nothing" in final:
        print(f"expo: this run says nothing of {cfg.name}: {final['learned_nothing']}", file=sys.stderr)
    return code

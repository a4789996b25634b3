"""`expo train`: wire one run together from its config, and see it through."""

import logging
import os
import re
import resource
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import get_class, instantiate
from lightning import Trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expo.algorithms.base import Algorithm, NonFiniteGradient
from expo.algorithms.parts import Parts
from expo.callbacks import Evaluate, KeepCheckpoint, LogSteps, ShowProgress, Stop
from expo.collector import Collector, ProblemSampler, within_length
from expo.config import EngineError, UserError, pairs_identity, run_dir
from expo.data.problem import Problem
from expo.data.readers import Reader
from expo.evaluation.evaluate import Evaluator
from expo.experience import Tools
from expo.pairs import PairStore
from expo.policy import frozen_copy
from expo.positives.properties import Scorer
from expo.prompts import Prompts
from expo.rollout.engine import Engine, Sampling
from expo.run import Run
from expo.schema import Config
from expo.schema_learning import Explainer
from expo.tracking import log_summary, make_loggers
from expo.verifier import Verifier


def train(cfg: Config) -> int:
    """One run. Returns the exit code. A finished run is not made again, an unfinished one goes on from its checkpoint."""
    quiet_libraries()
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: torch sees no GPU; use trainer.accelerator=auto or cpu")
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    run = Run.find(cfg)
    if run.finished:
        return _finished(run)
    with instantiate_verifier(cfg) as verifier:
        module, evaluator = build(cfg, verifier)
        with run.alone():
            run = Run.find(cfg)
            if run.finished:  # by the process that we have waited for
                return _finished(run)
            run.begin()
            return fit(cfg, run, module, evaluator)


def _finished(run: Run) -> int:
    print(f"{run.dir} is finished already; fresh=true makes it again")
    return 0


def build(cfg: Config, verifier: Verifier) -> tuple[Algorithm, Evaluator]:
    """Data, models and engines of a run, wired together. Raises UserError for what cannot be loaded."""
    torch.manual_seed(cfg.seed)
    reader = read(cfg)
    problems, held_out = reader.train(), reader.evaluation()  # before the model: quicker to fail
    policy, tokenizer = load_model(cfg)
    prompts, source = instantiate(cfg.prompts), instantiate(cfg.positives, _convert_="object")
    hints = instantiate(cfg.hints, _convert_="object")
    limit = cfg.rollout.max_prompt_tokens
    asked = [prompts.solve_ids, prompts.explain_ids, *([prompts.hint_ids] if hints.writer else [])]
    problems = within_length(problems, asked, tokenizer, limit)
    held_out = within_length(held_out, [prompts.solve_ids], tokenizer, limit)

    writers = {source.writer, hints.writer}
    reference = None
    # A LoRA policy has its reference in it, unless another has to write, or be begun again from, the initial weights.
    copied = Explainer.reference in writers or cfg.algorithm.uses_snapshot
    if copied or (cfg.algorithm.uses_reference and not cfg.model.lora_rank):
        reference = frozen_copy(policy)
    snapshot = frozen_copy(policy) if Explainer.snapshot in writers or cfg.algorithm.uses_snapshot else None
    engine = make_engine(cfg, policy, tokenizer)
    engines = {Explainer.current: engine, None: engine}
    if reference is not None:
        engines[Explainer.reference] = make_engine(cfg, reference, tokenizer)
    if snapshot is not None:
        engines[Explainer.snapshot] = make_engine(cfg, snapshot, tokenizer)
    r = cfg.rollout
    sampling = Sampling(r.temperature, r.top_p, r.top_k, r.max_completion_tokens)
    collector = Collector(
        engine=engine,
        solver=engines[Explainer.snapshot] if cfg.algorithm.uses_snapshot else engine,
        explainer=engines[source.writer],
        hinter=engines[hints.writer],
        source=source,
        hints=hints,
        scorer=Scorer(policy, tokenizer, prompts, cfg.trainer.micro_batch_size),
        tools=Tools(prompts, tokenizer, verifier, sampling, cfg.seed, longest_prompt(cfg, policy)),
    )
    sampler = ProblemSampler(problems, cfg.trainer.problems_per_step, cfg.seed)
    own = run_dir(cfg) / "pairs"
    pairs = PairStore(Path(cfg.output_dir, cfg.dataset.name, "pairs", pairs_identity(cfg)), own, cfg.fresh)
    parts = Parts(policy, reference, snapshot, collector, sampler, cfg.optimizer, cfg.trainer, pairs)
    module = instantiate(cfg.algorithm, _convert_="object", _partial_=True)(parts)
    return module, make_evaluator(cfg, held_out, verifier, prompts, tokenizer)


def fit(cfg: Config, run: Run, module: Algorithm, evaluator: Evaluator) -> int:
    """Train from the newest checkpoint, or from the start, and leave the summary. Returns the exit code."""
    max_steps, checkpoint = cfg.trainer.max_steps, newest_checkpoint(run.dir)
    stop = Stop(cfg.trainer.stop_after)
    trainer = Trainer(
        max_epochs=max_steps,
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cast(Any, cfg.trainer.precision),
        logger=make_loggers(cfg, run.dir, step_of(checkpoint) if checkpoint else 0),
        callbacks=[
            stop,
            LogSteps(),
            Evaluate(evaluator, run, cfg.evaluation.every, max_steps),
            ShowProgress(run, max_steps, bar=sys.stderr.isatty() and "EXPO_SWEEP" not in os.environ),
            KeepCheckpoint(run.dir / "checkpoints", cfg.trainer.checkpoint_every),
        ],
        reload_dataloaders_every_n_epochs=1,  # one epoch is one step, and its loader knows which
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.finish("stopped")  # until it is done: what a SIGKILL leaves behind is a stopped run
    try:
        trainer.fit(module, ckpt_path=checkpoint, weights_only=False)
    except Exception as error:
        run.finish("failed", reason=f"{type(error).__name__}: {error}", step=trainer.current_epoch)
        # A Ctrl-C reaches an engine in a process of its own, too.
        interrupted = isinstance(error, EngineError) and stop.signal
        if interrupted:
            run.finish("stopped", step=trainer.current_epoch)
        log_summary(trainer.loggers, run)
        if interrupted:
            return 128 + stop.signal
        if not isinstance(error, (NonFiniteGradient, EngineError)):
            raise
        remedy = "lower optimizer.learning_rate or set trainer.on_nonfinite=skip"
        if isinstance(error, EngineError):
            remedy = "the same command goes on from the last of them"
        print(f"expo: {' '.join(str(error).split())}; earlier checkpoints are in {run.dir}; {remedy}", file=sys.stderr)
        return 1
    finally:
        module.collector.close()
    step, checkpoints = trainer.current_epoch, run.dir / "checkpoints"
    done = step >= max_steps
    trainer.save_checkpoint(checkpoints / f"step{step - 1:06d}.ckpt")
    if done:
        module.policy.save_pretrained(checkpoints / "final")
        module.collector.tools.tokenizer.save_pretrained(checkpoints / "final")
    peak = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "verifier_worker": evaluator.verifier.peak_mb,  # of the largest one; 0 where no answer needed a worker
    }
    status, k = "done" if done else "stopped", max(cfg.k)
    run.finish(status, step=step, peak_memory_mb=peak)
    log_summary(trainer.loggers, run)
    for logger in trainer.loggers:
        logger.finalize("success")
    print(f"{run.dir}: {status} at step {step}, pass@{k} {run.metrics[f'pass@{k}']:.3f}")
    return 128 + stop.signal if stop.signal and not done else 0


def quiet_libraries() -> None:
    """Leave only expo's own lines on the terminal."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def instantiate_verifier(cfg: Config) -> Verifier:
    return Verifier(cfg.verifier.workers, cfg.verifier.timeout_s, cfg.verifier.memory_mb, cfg.verifier.max_answer_chars)


def read(cfg: Config) -> Reader:
    """The data set's reader."""
    return instantiate(cfg.dataset, _convert_="object")


def load_model(cfg: Config) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model where it will work: an engine is made for the device that it finds the model on."""
    model, tokenizer = instantiate(cfg.model)
    if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu":
        model.to("cuda")
    return model, tokenizer


def longest_prompt(cfg: Config, model: PreTrainedModel) -> int:
    """Tokens of the longest prompt that may show a solution or a hint, as far as the model has room for a completion after it."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = [limit - cfg.rollout.max_completion_tokens] if limit else []
    return min([cfg.rollout.longest_prompt, *room])


def make_engine(cfg: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """An engine on a model in memory, as `rollout` says."""
    engine: Any = get_class(cfg.rollout._target_)
    return engine.from_conf(model, tokenizer, cfg.rollout)


def make_evaluator(
    cfg: Config, problems: list[Problem], verifier: Verifier, prompts: Prompts, tokenizer: PreTrainedTokenizerBase
) -> Evaluator:
    """The evaluation that `evaluation` and `k` describe."""
    e = cfg.evaluation
    sampling = Sampling(e.temperature, e.top_p, e.top_k, cfg.rollout.max_completion_tokens)
    return Evaluator(problems, verifier, prompts, tokenizer, sampling, e.samples or max(cfg.k), cfg.k, e.seed)


def newest_checkpoint(directory: Path) -> Path | None:
    """The last checkpoint that is whole; one that a full disk or a crash has cut short is passed over, with a warning."""
    for path in sorted(directory.glob("checkpoints/step*.ckpt"), key=step_of, reverse=True):
        if zipfile.is_zipfile(path):  # torch's format; its directory is at the end of the file
            return path
        logging.getLogger(__name__).warning("%s is damaged; going on from an earlier checkpoint, if there is one", path)
    return None


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint; Lightning names it by the epoch just ended."""
    match = re.fullmatch(r"step(\d+)", checkpoint.stem)
    assert match is not None, checkpoint
    return int(match[1]) + 1

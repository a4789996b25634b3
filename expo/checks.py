"""Every check that spans fields or looks at the machine, before anything is loaded. Imports nothing heavy."""

import importlib.util
from pathlib import Path

from expo.config import UserError
from expo.schema import (
    AuxiliaryConf,
    Config,
    DatasetConf,
    ExpertConf,
    LadderConf,
    RandomTinyConf,
    SelfExplanationConf,
    TableConf,
    WandbLoggerConf,
)


def check(cfg: Config) -> None:
    """Raises UserError for the first rule that a config breaks."""
    algorithm, trainer, dataset = cfg.algorithm, cfg.trainer, cfg.dataset
    rows = trainer.problems_per_step * algorithm.group_size
    rules: list[tuple[bool, str]] = [
        (
            algorithm.group_size >= 2,
            f"algorithm.group_size={algorithm.group_size}: a group advantage needs at least 2 rollouts; set algorithm.group_size=2 or more",
        ),
        *_positive("algorithm.updates_per_rollout", algorithm.updates_per_rollout),
        *_positive("trainer.max_steps", trainer.max_steps),
        *_positive("trainer.problems_per_step", trainer.problems_per_step),
        *_positive("trainer.micro_batch_size", trainer.micro_batch_size),
        *_positive("trainer.checkpoint_every", trainer.checkpoint_every),
        *_positive("rollout.batch_size", cfg.rollout.batch_size),
        *_positive("rollout.max_completion_tokens", cfg.rollout.max_completion_tokens),
        *_positive("rollout.temperature", cfg.rollout.temperature),
        *_positive("evaluation.temperature", cfg.evaluation.temperature),
        *_positive("verifier.workers", cfg.verifier.workers),
        *_positive("verifier.timeout_s", cfg.verifier.timeout_s),
        *_positive("verifier.memory_mb", cfg.verifier.memory_mb),
        *_positive("verifier.max_answer_chars", cfg.verifier.max_answer_chars),
        *_positive("rollout.max_prompt_tokens", cfg.rollout.max_prompt_tokens),
        *_positive("optimizer.learning_rate", cfg.optimizer.learning_rate),
        *_positive("optimizer.max_grad_norm", cfg.optimizer.max_grad_norm),
        *_positive("dataset.limit", 1 if dataset.limit is None else dataset.limit),
        *_positive("dataset.eval_limit", 1 if dataset.eval_limit is None else dataset.eval_limit),
        *_positive("trainer.stop_after", 1 if trainer.stop_after is None else trainer.stop_after),
        (cfg.seed >= 0, f"seed={cfg.seed}: a seed is not negative; set seed=0 or more"),
        (cfg.evaluation.seed >= 0, f"evaluation.seed={cfg.evaluation.seed}: a seed is not negative; set 0 or more"),
        *_range("algorithm.kl_coef", algorithm.kl_coef, 0, 1e6),
        *_range("algorithm.clip_low", algorithm.clip_low, 0, 1),
        *_range("algorithm.clip_high", algorithm.clip_high, 0, 1e6),
        *_range("optimizer.weight_decay", cfg.optimizer.weight_decay, 0, 1e6),
        *_range("optimizer.warmup_steps", cfg.optimizer.warmup_steps, 0, 1e9),
        *_range("evaluation.every", cfg.evaluation.every, 0, 1e9),
        *_range("evaluation.top_p", cfg.evaluation.top_p, 1e-6, 1),
        *_range("evaluation.top_k", cfg.evaluation.top_k, 0, 1e9),
        *_range("trainer.threads", trainer.threads, 0, 1024),
        *_range("model.lora_rank", cfg.model.lora_rank, 0, 1024),
        *_choice("trainer.accelerator", trainer.accelerator, ("auto", "cpu", "gpu")),
        *_choice("trainer.precision", trainer.precision, ("32-true", "bf16-mixed")),
        *_choice("model.dtype", cfg.model.dtype, ("float32", "bfloat16", "float16", "auto")),
        (
            len(cfg.optimizer.betas) == 2 and all(0 <= beta < 1 for beta in cfg.optimizer.betas),
            f"optimizer.betas={cfg.optimizer.betas}: AdamW takes two numbers in [0, 1); set optimizer.betas=[0.9,0.999]",
        ),
        (
            cfg.rollout.top_p == 1 and cfg.rollout.top_k == 0,
            f"rollout.top_p={cfg.rollout.top_p}, rollout.top_k={cfg.rollout.top_k}: the policy is scored on its full distribution, "
            "so that truncated rollouts would be off-policy; set rollout.top_p=1.0 rollout.top_k=0",
        ),
        (
            any((dataset.path, dataset.eval_path, dataset.hub_id)) or isinstance(dataset, LadderConf),
            "dataset.path=null: this data set has no hub id either; set dataset.path or dataset.hub_id",
        ),
        (
            not (
                isinstance(cfg.positives, ExpertConf)
                and isinstance(dataset, TableConf)
                and not dataset.columns.solution
            ),
            f"positives: {cfg.name} learns from expert solutions, and dataset.columns.solution is empty; set it to the column that has them",
        ),
        (
            not isinstance(cfg.model, RandomTinyConf) or (cfg.model.lora_rank == 0 and cfg.model.dtype == "float32"),
            "model=random_tiny: takes neither model.lora_rank nor model.dtype; remove them, or use model=hf",
        ),
        (
            rows % trainer.micro_batch_size == 0,
            f"trainer.micro_batch_size={trainer.micro_batch_size}: does not divide the {rows} rows of a step "
            f"(trainer.problems_per_step={trainer.problems_per_step} x algorithm.group_size={algorithm.group_size}); "
            f"set one of {[d for d in range(1, rows + 1) if rows % d == 0]}",
        ),
        (
            bool(cfg.k) and min(cfg.k) >= 1,
            f"k={cfg.k}: pass@k needs k of at least 1; set for example k=[1,4]",
        ),
        (
            cfg.evaluation.samples is None or cfg.evaluation.samples >= max(cfg.k, default=1),
            f"evaluation.samples={cfg.evaluation.samples}: pass@{max(cfg.k, default=1)} needs at least as many samples; "
            f"set evaluation.samples={max(cfg.k, default=1)} or smaller k",
        ),
        (
            not cfg.rollout.requires or importlib.util.find_spec(cfg.rollout.requires) is not None,
            f"rollout._target_={cfg.rollout._target_}: the package {cfg.rollout.requires} is not installed; "
            f"install it with make setup EXTRA={cfg.rollout.extra}, or use rollout=hf",
        ),
        (
            importlib.util.find_spec(cfg.rollout._target_.rpartition(".")[0]) is not None,
            f"rollout._target_={cfg.rollout._target_}: this version of expo has no such engine; use rollout=hf",
        ),
        (
            "{question}" in cfg.prompts.solve,
            "prompts.solve: has no {question}; put {question} where the question goes",
        ),
        (
            "{question}" in cfg.prompts.explain and "{answer}" in cfg.prompts.explain,
            "prompts.explain: needs both {question} and {answer}; put them where question and answer go",
        ),
        *_levels("dataset.levels", dataset.levels, dataset),
        *_levels("dataset.eval_levels", dataset.eval_levels or [], dataset),
        *_file("dataset.path", dataset.path),
        *_file("dataset.eval_path", dataset.eval_path),
        (
            not _looks_local(cfg.model.path)
            or any(Path(cfg.model.path, name).is_file() for name in ("config.json", "adapter_config.json")),
            f"model.path={cfg.model.path}: no folder with a saved model there; give a saved model's folder or a hub id such as Qwen/Qwen2.5-0.5B-Instruct",
        ),
    ]
    if isinstance(cfg.positives, AuxiliaryConf):
        rules.append(
            (
                cfg.positives.weight >= 0,
                f"positives.weight={cfg.positives.weight}: a negative weight would push positives away; set 0 or more",
            )
        )
    if isinstance(cfg.positives, SelfExplanationConf):
        rules += _positive("positives.samples", cfg.positives.samples)
        rules += _positive("positives.snapshot_every", cfg.positives.snapshot_every)
    if isinstance(cfg.logger, WandbLoggerConf):
        rules += _choice("logger.wandb.mode", cfg.logger.wandb.mode, ("offline", "online", "disabled"))
    for ok, message in rules:
        if not ok:
            raise UserError(message)


def _positive(key: str, value: float) -> list[tuple[bool, str]]:
    return [(value > 0, f"{key}={value}: must be greater than 0; set {key}=1 or more")]


def _range(key: str, value: float, low: float, high: float) -> list[tuple[bool, str]]:
    return [
        (low <= value <= high, f"{key}={value}: not between {low:g} and {high:g}; set {key} to a value in that range")
    ]


def _choice(key: str, value: str | None, choices: tuple[str, ...]) -> list[tuple[bool, str]]:
    return [(value in choices, f"{key}={value}: not one of the choices; set one of {', '.join(choices)}")]


def _levels(key: str, levels: list[int], dataset: DatasetConf) -> list[tuple[bool, str]]:
    known = dataset.known_levels
    if isinstance(dataset, TableConf) and dataset.columns.level and not known:
        return []  # whatever the column holds
    remedy = (
        f"choose from {known}"
        if known
        else f"remove {key}: the data set {dataset.name} has no levels (or none named: dataset.columns.level)"
    )
    return [(set(levels) <= set(known), f"{key}={levels}: not all are levels of {dataset.name}; {remedy}")]


def _file(key: str, path: str | None) -> list[tuple[bool, str]]:
    if path is None:
        return []
    return [
        (Path(path).is_file(), f"{key}={path}: no such file; give the path of a .jsonl or .parquet file"),
        (Path(path).suffix in (".jsonl", ".parquet"), f"{key}={path}: not a .jsonl or .parquet file; convert it first"),
    ]


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1

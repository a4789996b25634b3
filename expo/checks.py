"""Every check that spans fields or looks at the machine, before anything is loaded. Imports nothing heavy."""

import importlib.util
from pathlib import Path

from expo.config import AuxiliaryConf, Config, DatasetConf, SelfExplanationConf, UserError


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
        *_positive("trainer.devices", trainer.devices),
        *_positive("trainer.checkpoint_every", trainer.checkpoint_every),
        *_positive("rollout.batch_size", cfg.rollout.batch_size),
        *_positive("rollout.max_completion_tokens", cfg.rollout.max_completion_tokens),
        *_positive("rollout.temperature", cfg.rollout.temperature),
        *_positive("evaluation.temperature", cfg.evaluation.temperature),
        *_positive("verifier.workers", cfg.verifier.workers),
        *_positive("verifier.timeout_s", cfg.verifier.timeout_s),
        (
            trainer.problems_per_step % trainer.devices == 0,
            f"trainer.problems_per_step={trainer.problems_per_step}: not a multiple of trainer.devices={trainer.devices}; "
            f"set trainer.problems_per_step={_round_up(trainer.problems_per_step, trainer.devices)}",
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
    for ok, message in rules:
        if not ok:
            raise UserError(message)


def _positive(key: str, value: float) -> list[tuple[bool, str]]:
    return [(value > 0, f"{key}={value}: must be greater than 0; set {key}=1 or more")]


def _levels(key: str, levels: list[int], dataset: DatasetConf) -> list[tuple[bool, str]]:
    known = dataset.known_levels
    remedy = f"choose from {known}" if known else f"remove {key}: the data set {dataset.name} has no levels"
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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple

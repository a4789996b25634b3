"""From a composed config to a checked one, and the identity of a run (`expo.schema` has the keys). Imports nothing heavy."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from expo.schema import (
    Config,
    Gsm8kConf,
    LadderConf,
    LoggerConf,
    MathConf,
    ModelConf,
    PromptsConf,
    RandomTinyConf,
    RolloutConf,
    TableConf,
    TrainerConf,
    VLLMConf,
    WandbLoggerConf,
)
from expo.schema_learning import (
    DPOConf,
    ExpertConf,
    GRPOConf,
    NoHintsConf,
    NoPositivesConf,
    ParaphraseConf,
    PrefixConf,
    SelfExplanationConf,
    SelfHintConf,
    SFTConf,
    StarConf,
)

# The base policy shipped with expo.
LADDER = Path(__file__).parent / "assets" / "ladder"


class UserError(Exception):
    """The user's mistake: one line that names the key, the value and the remedy. The CLI exits with code 2."""


class EngineError(Exception):
    """The engine has stopped, or its weights are not the policy's: the run cannot go on, and its checkpoints are good."""


def take_options(arguments: Sequence[str], **options: str) -> tuple[dict[str, str], list[str]]:
    """The key=value options of a command, over their defaults, and the other arguments.

    Raises UserError for a key that is nearly one of them, and for numbers of seeds or jobs that are none.
    """
    rest = []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if sign and key in options:
            options[key] = value
        elif sign and (meant := difflib.get_close_matches(key, options, 1, 0.8)):
            raise UserError(f"{argument}: no such option; did you mean {meant[0]}=…?")
        else:
            rest.append(argument)
    for key in {"seeds", "jobs"} & options.keys():
        if options[key] and not (options[key].isdigit() and int(options[key]) >= 1):
            raise UserError(f"{key}={options[key]}: not a number of {key}; use {key}=1 or more")
    return options, rest


def register() -> None:
    """Make the schema known to Hydra under the names that the YAML files use in their defaults lists."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    nodes: dict[tuple[str, str], type] = {
        ("schema/algorithm", "sft"): SFTConf,
        ("schema/algorithm", "dpo"): DPOConf,
        ("schema/algorithm", "grpo"): GRPOConf,
        ("schema/hints", "none"): NoHintsConf,
        ("schema/hints", "self_made"): SelfHintConf,
        ("schema/hints", "expert_prefix"): PrefixConf,
        ("schema/positives", "none"): NoPositivesConf,
        ("schema/positives", "expert"): ExpertConf,
        ("schema/positives", "self_explanation"): SelfExplanationConf,
        ("schema/positives", "star"): StarConf,
        ("schema/positives", "expert_paraphrase"): ParaphraseConf,
        ("schema/dataset", "math"): MathConf,
        ("schema/dataset", "gsm8k"): Gsm8kConf,
        ("schema/dataset", "columns"): TableConf,
        ("schema/dataset", "ladder"): LadderConf,
        ("schema/model", "hf"): ModelConf,
        ("schema/model", "random_tiny"): RandomTinyConf,
        ("schema/rollout", "engine"): RolloutConf,
        ("schema/rollout", "vllm"): VLLMConf,
        ("schema/trainer", "trainer"): TrainerConf,
        ("schema/logger", "none"): LoggerConf,
        ("schema/logger", "wandb"): WandbLoggerConf,
        ("schema/prompts", "prompts"): PromptsConf,
    }
    for (group, name), node in nodes.items():
        store.store(group=group, name=name, node=node)


# What does not change a run's numbers (micro-batching and merging LoRA change them by rounding only) and so is not part of its identity.
NOT_IDENTITY = {
    "": ("output_dir", "fresh", "logger", "pretrain", "diagnose", "hydra", "name", "needs"),
    "trainer": ("checkpoint_every", "stop_after", "micro_batch_size", "accelerator", "threads", "packing"),
    "verifier": ("workers",),
    "rollout": (
        "batch_size",
        "requires",
        "extra",
        "separate",
        "memory_share",
        "eager",
        "probe_every",
        "probe_tolerance",
        "device",
        "transfer",
        "merge_lora",
    ),
    "prompts": ("judge",),
}


# What, besides, does not change the pairs that the initial policy makes for DPO.
NOT_PAIRS = {
    "": ("optimizer", "evaluation", "k"),
    "algorithm": ("preference", "beta", "label_smoothing", "rejected"),
    "positives": ("weight", "schedule", "aggregation"),
    "trainer": ("on_nonfinite",),
}


def identity(cfg: Config) -> str:
    """Hash of everything in the config that changes a run's result, local data files by content."""
    return _hash(cfg, NOT_IDENTITY)


def pairs_identity(cfg: Config) -> str:
    """Hash of everything that changes the pairs which DPO's initial policy makes."""
    return _hash(cfg, NOT_IDENTITY, NOT_PAIRS)


def _hash(cfg: Config, *left_out: dict[str, tuple[str, ...]]) -> str:
    tree = json.loads(json.dumps(dataclasses.asdict(cfg), default=lambda choice: choice.name))
    for group, keys in [item for table in left_out for item in table.items()]:
        node = tree[group] if group else tree
        for key in keys:
            node.pop(key, None)
    for key in ("path", "eval_path"):
        if tree["dataset"][key]:
            tree["dataset"][key] = hashlib.sha256(Path(tree["dataset"][key]).read_bytes()).hexdigest()
    folder = LADDER if cfg.model.path == "ladder" else Path(cfg.model.path)
    tree["model"]["content"] = _content(folder) if folder.is_dir() else None
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:10]


def _content(folder: Path) -> str:
    """Hash of a model folder: names, sizes and the first MiB of each file, which any training changes."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors", ".bin", ".jinja")):
        with file.open("rb") as start:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + start.read(2**20))
    return digest.hexdigest()


def make_folder(path: Path, key: str) -> None:
    """Raises UserError, which names the option that asks for it, where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be made ({error.strerror}); give another folder") from error


def run_dir(cfg: Config, command: str = "train") -> Path:
    """Where `expo <command>` puts what it makes of this config."""
    run, root = identity(cfg), Path(cfg.output_dir)
    if command == "evaluate":
        return root / "evaluate" / f"{cfg.dataset.name}-{run}"
    if command == "diagnose":
        return root / "diagnose" / f"{cfg.dataset.name}-{run}-{cfg.diagnose.problems}x{cfg.diagnose.samples}"
    return root / cfg.dataset.name / f"{cfg.name}-s{cfg.seed}-{run}"


def typed(cfg: DictConfig) -> Config:
    """The composed config as the dataclasses above, resolved. Raises UserError for a key that nothing has set."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise UserError(f"{min(missing)}=???: not set; give it on the command line")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    _refuse_unknown("", config)
    return config


def _refuse_unknown(prefix: str, node: Any) -> None:
    """`+key=value` gets past Hydra's own check."""
    known = {f.name for f in dataclasses.fields(node)}
    for name, value in vars(node).items():
        if name not in known:
            raise UserError(f"{prefix}{name}={value}: no such key; --cfg job shows every key that exists")
        if dataclasses.is_dataclass(value):
            _refuse_unknown(f"{prefix}{name}.", value)

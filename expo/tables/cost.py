"""What a run would cost on a device that is not at hand: an estimate of memory, time and tokens from first principles.

Every constant that is a guess is named here; nothing in this module is measured. Runs that are finished give better times.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from expo.config import LADDER, Config
from expo.config.explaining import frozen_copies
from expo.model.policy import LOGITS
from expo.tables.plan import PlannedRun

# bytes of memory, bf16 FLOP/s without sparsity, bytes/s of memory; from the makers' data sheets
DEVICES = {"a100": (80e9, 312e12, 2.0e12), "h100": (80e9, 989e12, 3.35e12), "h200": (141e9, 989e12, 4.8e12)}
UTILIZATION = 0.35  # guess: share of the peak FLOP/s that training reaches
BANDWIDTH_USED = 0.6  # guess: share of the peak bandwidth that decoding reaches
LAYER_S = (
    5e-4  # guess: seconds that transformers' generate spends on one layer of one decoding step, whatever the batch
)
RESERVED = 4e9  # guess: bytes for the CUDA context, workspaces and fragmentation
EVALUATED = {"math": 5000, "math_level5": 1324, "gsm8k": 1319}  # problems of the test splits
# Shapes of models whose configs cannot be downloaded everywhere, as their config.json has them.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What memory and time follow from."""

    parameters: int
    linear_sides: int  # sum of inputs and outputs of all linear layers but the head: LoRA trains rank times as many
    layers: int
    hidden: int
    kv_width: int  # key-value heads times their width
    vocabulary: int


@dataclass(frozen=True)
class Cost:
    """Of one run on one device: bytes, hours, generated tokens (at most: every completion at its longest)."""

    device: str
    memory: float
    hours: float
    tokens: float

    def __str__(self) -> str:
        there = DEVICES[self.device][0]
        fits = (
            ""
            if self.memory <= there
            else ", which has less: lower rollout.batch_size or trainer.micro_batch_size, or use LoRA"
        )
        return (
            f"estimated: {self.memory / 1e9:.0f} of {there / 1e9:.0f} GB of one {self.device}{fits}; "
            f"{self.hours:.1f} h; {self.tokens / 1e6:.0f} M tokens generated at most"
        )


@cache
def shape(path: str) -> Shape:
    """Return the shape of a model by hub id or local folder. Raises OSError where its config cannot be read."""
    kind, options = SHAPES.get(path, ("", {}))
    config = (
        AutoConfig.for_model(kind, **options)
        if kind
        else AutoConfig.from_pretrained(LADDER if path == "ladder" else path)
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        model.num_parameters(),
        sum(m.in_features + m.out_features for m in linear),
        config.num_hidden_layers,
        config.hidden_size,
        config.num_key_value_heads * width,
        config.vocab_size,
    )


def estimate(run: PlannedRun, device: str) -> Cost:
    """Estimate a run's memory and time. Raises OSError where the model's config cannot be read."""
    cfg, s = run.cfg, shape(run.cfg.model.path)
    memory = weights_memory(cfg, s) if run.command == "train" else s.parameters * 4
    memory += kv_memory(cfg, s) + activations_memory(cfg, s) + RESERVED
    evaluations, steps = 1, 0
    if run.command == "train":
        steps = cfg.trainer.max_steps
        evaluations = 2 + (steps - 1) // cfg.evaluation.every if cfg.evaluation.every else 2
    rows = cfg.trainer.problems_per_step * (cfg.algorithm.group_size + cfg.positives.written_per_problem)
    limit = cfg.dataset.eval_limit if run.command == "train" else cfg.dataset.limit
    evaluated = limit or EVALUATED.get(cfg.dataset.name, 1000)
    sampled = evaluated * (cfg.evaluation.samples or max(cfg.k))
    if run.command == "diagnose":  # own, self-explained, and of a wrong answer
        sampled = 3 * cfg.diagnose.samples * cfg.diagnose.problems * max(1, len(cfg.dataset.known_levels))
    longest = cfg.rollout.max_completion_tokens
    seconds = steps * (decode_seconds(cfg, s, rows, device) + update_seconds(cfg, s, rows, device))
    seconds += evaluations * decode_seconds(cfg, s, sampled, device)
    return Cost(device, memory, seconds / 3600, longest * (steps * rows + evaluations * sampled))


def weights_memory(cfg: Config, s: Shape) -> float:
    """Estimate the memory of the policy, its gradients and Adam's two moments, the copies that are frozen, and autocast's casts."""
    number = 2 if cfg.model.dtype in ("bfloat16", "float16") else 4
    trained = cfg.model.lora_rank * s.linear_sides if cfg.model.lora_rank else s.parameters
    copies = sum(frozen_copies(cfg))
    each = 16 if cfg.model.lora_rank else 3 * number  # adapters are float32, and their own weights count here
    casts = 2 * s.parameters if cfg.trainer.precision == "bf16-mixed" and number == 4 else 0
    return number * s.parameters * (1 + copies) + trained * each + casts


def kv_memory(cfg: Config, s: Shape) -> float:
    number = 2 if cfg.model.dtype in ("bfloat16", "float16") else 4
    positions = cfg.rollout.batch_size * (cfg.rollout.max_prompt_tokens + cfg.rollout.max_completion_tokens)
    return positions * s.layers * 2 * s.kv_width * number


def activations_memory(cfg: Config, s: Shape) -> float:
    """Estimate 34 bytes per token, layer and hidden unit in 16 bit (arXiv 2205.05198, without attention scores); one layer's, and each
    layer's input, with gradient checkpointing. And the logits of a chunk, with their gradient, in float32."""
    positions = cfg.trainer.micro_batch_size * (cfg.rollout.max_prompt_tokens + cfg.rollout.max_completion_tokens)
    size = 1 if cfg.trainer.precision == "bf16-mixed" else 2
    layers = 34 + 2 * s.layers if cfg.model.gradient_checkpointing else 34 * s.layers
    return size * positions * s.hidden * layers + 3 * 4 * LOGITS


def decode_seconds(cfg: Config, s: Shape, rows: int, device: str) -> float:
    """Estimate the time of decoding: every step reads all weights and the cache once, and takes at least LAYER_S per layer."""
    bandwidth = DEVICES[device][2] * BANDWIDTH_USED
    one = max(s.layers * LAYER_S, (s.parameters * 4 + kv_memory(cfg, s) / 2) / bandwidth)
    return math.ceil(rows / cfg.rollout.batch_size) * cfg.rollout.max_completion_tokens * one


def update_seconds(cfg: Config, s: Shape, rows: int, device: str) -> float:
    """Estimate 6 FLOP per parameter and token, 8 with gradient checkpointing, over whole rows at their longest."""
    tokens = rows * (cfg.rollout.max_prompt_tokens + cfg.rollout.max_completion_tokens)
    per_token = (8 if cfg.model.gradient_checkpointing else 6) * s.parameters
    updates = getattr(cfg.algorithm, "updates_per_rollout", 1)
    return updates * tokens * per_token / (DEVICES[device][1] * UTILIZATION)

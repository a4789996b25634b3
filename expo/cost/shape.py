"""The shape of a model, from its config alone."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from expo.config import LADDER

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
    in_layers: int  # parameters that every token goes through: all but the embedding and the head
    head: int  # parameters of the head
    linear_sides: int  # sum of inputs and outputs of all linear layers but the head: LoRA trains rank times as many
    layers: int
    hidden: int
    inner: int  # width of a layer's MLP
    heads_width: int  # attention heads times their width
    kv_width: int  # key-value heads times their width


@cache
def shape(path: str) -> Shape:
    """Return the shape of a model by hub id or local folder. Raises OSError where its config cannot be read."""
    kind, options = SHAPES.get(path, ("", {}))
    config = (
        AutoConfig.for_model(kind, **options)
        if kind
        else AutoConfig.from_pretrained(LADDER if path == "ladder" else path)
    )
    return shape_of(config)


def shape_of(config: Any) -> Shape:
    """Return the shape of a model of this config."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    config = config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    outside = {id(p): p.numel() for m in (head, embedding) for p in m.parameters()}
    return Shape(
        model.num_parameters(),
        model.num_parameters() - sum(outside.values()),
        head.weight.numel(),
        sum(m.in_features + m.out_features for m in linear),
        config.num_hidden_layers,
        config.hidden_size,
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        config.num_attention_heads * width,
        (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * width,
    )

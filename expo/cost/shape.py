"""The shape of a model, from its config alone."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from expo.config.model import located
from expo.model import gguf_file, small
from expo.model.policy import NO_CODE, not_loaded
from expo.model.shapes import config_of


@dataclass(frozen=True)
class Shape:
    """Shape of a model, from which memory and time follow."""

    parameters: int
    in_layers: int  # parameters that every token goes through: all but the embedding and the head
    head: int  # parameters of the head
    linear_sides: int  # sum of inputs and outputs of all linear layers but the head: LoRA trains rank times as many
    layers: int
    hidden: int
    inner: int  # width of a layer's MLP
    heads_width: int  # attention heads times their width
    kv_width: int  # key-value heads times their width
    tied: bool  # whether embedding and head are one weight


@cache
def shape(path: str) -> Shape:
    """Return the shape of a model by hub id, folder, or name of a shape. Raises UserError for an unreadable config."""
    config = small.random_tiny()[0].config if path == "random_tiny" else config_of(path)
    try:
        return shape_of(config or AutoConfig.from_pretrained(**gguf_file.where(located(path)), **NO_CODE))
    except Exception as error:  # whatever stands in it
        raise not_loaded(path, error) from error


def shape_of(config: Any) -> Shape:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **NO_CODE)
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
        len(outside) == 1,
    )

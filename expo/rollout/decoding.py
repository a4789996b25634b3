"""Quick decoding with transformers: keys and values are written in place, and attention repeats none of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

WEIGHTS_FIRST = torch.backends.cpu.get_cpu_capability() != "AVX512"
ROOM = 256  # tokens, at most, that a layer has room for before it makes more: rows end, and most end early


class RoomyLayer(DynamicLayer):
    """Layer of the cache with room for `room` more tokens, made after the prompts, and again when it is full. They are
    written in place: no step copies the tokens before."""

    def __init__(self, room: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.buffers: tuple[Tensor, Tensor] | None = None  # each [B, H, L + room, D]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before, after = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        if not before:
            return super().update(key_states, value_states)
        if self.buffers is None or after > self.buffers[0].shape[-2]:
            assert self.keys is not None
            assert self.values is not None
            self.buffers = self._roomy(self.keys), self._roomy(self.values)
        keys, values = self.buffers
        keys[..., before:after, :], values[..., before:after, :] = key_states, value_states
        self.keys, self.values = keys[..., :after, :], values[..., :after, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.buffers is None:
            super().batch_select_indices(indices)
            return
        length = self.get_seq_length()
        self.buffers = self.buffers[0][indices], self.buffers[1][indices]
        self.keys, self.values = (buffer[..., :length, :] for buffer in self.buffers)

    def _roomy(self, states: Tensor) -> Tensor:
        batch, heads, length, size = states.shape
        buffer = states.new_empty(batch, heads, length + self.room, size)
        buffer[..., :length, :] = states
        return buffer


class OneFormatCache(DynamicCache):
    """A cache that holds keys in the format of their values. Under autocast, rotary embeddings give float32 keys to
    16-bit values: a layer would hold both in float32, and attention casts them again for each token."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(key_states.to(value_states.dtype), value_states, *args, **kwargs)


def roomy_cache(config: PreTrainedConfig, room: int) -> DynamicCache:
    """Return an empty cache of RoomyLayers; layers with a sliding window are transformers' own."""
    cache = OneFormatCache(config=config)
    cache.layers = [RoomyLayer(min(room, ROOM)) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention as transformers' `sdpa`; with one query per row, group query heads by key head instead of
    repeating keys. Args: query `[B, H, Q, D]`; key, value `[B, K, L, D]`; attention_mask `[B, 1, Q, L]`. Returns `[B,
    Q, H, D]`."""
    batch, heads, queries, size = query.shape
    alone = queries == 1 and key.shape[1] < heads and kwargs.get("position_bias") is None and not kwargs.get("dropout")
    if not alone or (attention_mask is not None and attention_mask.shape[1] != 1):
        attended_by_sdpa: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return attended_by_sdpa
    by_key = query.reshape(batch, key.shape[1], -1, size)  # [B, K, H / K, D]
    attended = scaled_dot_product_attention(by_key, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return attended.reshape(batch, 1, heads, size), None


def head_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Return the logits of B rows, `[B, V]`, from their last hidden states `[B, H]`.

    On a CPU without AVX-512 the weights stand first in the product. With few rows and a large vocabulary, MKL takes two
    to four times as long for it the other way round on AMD's; on Intel's, the other way round is the quicker one
    (experiments/bench).
    """
    if WEIGHTS_FIRST and type(head) is nn.Linear and head.bias is None and hidden.device.type == "cpu":
        return (head.weight @ hidden.t()).t().contiguous()
    logits: Tensor = head(hidden)
    return logits


@contextmanager
def decoding() -> Iterator[None]:
    """Let models that compute attention with `sdpa` use `attention` within the context, under that name: some choose
    their mask by it, or compute without transformers' functions where it is another."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register("sdpa", attention)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", before)

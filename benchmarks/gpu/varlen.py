"""Attention behind shared prompts without a dense mask: each row's queries are its completion, its keys its prompt and
its completion, end to end. No part of expo until a GPU has measured that it pays (P2)."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.gpu.place import NotRun

# Of queries `[rows Q, H, D]`, keys and values `[all keys, K, D]`, where each row's begin (`[rows + 1]` each), the most
# queries and keys of a row, and a scale. Causal: a row's last query sees its last key.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float | None], Tensor]


def row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    most: int,
    keys: int,
    scale: float | None,
) -> Tensor:
    """Compute what the kernel does, for any device and format: one row after the other, each with its mask."""
    rows = []
    for q, q_end, k, k_end in zip(
        starts[:-1].tolist(), starts[1:].tolist(), key_starts[:-1].tolist(), key_starts[1:].tolist(), strict=True
    ):
        own, its, theirs = (t.transpose(0, 1) for t in (query[q:q_end], key[k:k_end], value[k:k_end]))
        seen = torch.ones(q_end - q, k_end - k, dtype=torch.bool, device=query.device).tril(k_end - k - q_end + q)
        rows.append(scaled_dot_product_attention(own, its, theirs, seen, scale=scale, enable_gqa=True).transpose(0, 1))
    return torch.cat(rows)


def varlen_kernel(gpu: bool) -> Kernel:
    """Return torch's kernel on a GPU, else `row_by_row`. Raises NotRun where torch has none."""
    if not gpu:
        return row_by_row
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise NotRun("no torch.nn.attention.varlen") from error
    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}

    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        starts: Tensor,
        key_starts: Tensor,
        most: int,
        keys: int,
        scale: float | None,
    ) -> Tensor:
        how = causal | ({"scale": scale} if "scale" in known else {})
        if "enable_gqa" in known:
            how["enable_gqa"] = True
        else:
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
        return cast(Tensor, varlen_attn(query, key, value, starts, key_starts, most, keys, **how))

    return kernel


@contextmanager
def varlen(kernel: Kernel) -> Iterator[None]:
    """Let models that compute attention with `sdpa` use a kernel instead wherever completions stand behind shared
    prompts."""
    known: dict[str, Any] = {}  # of the mask that all layers of a pass have

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is None or query.shape[2] in (1, key.shape[2]):
            whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
            return whole
        batch, heads, queries, size = query.shape
        if known.get("mask") is not attention_mask:
            there = attention_mask[:, 0, -1]  # [B, L]: what a row's last query sees is all that the row has
            ends = pad(there.sum(dim=1).cumsum(0), (1, 0)).int()
            starts = torch.arange(0, (batch + 1) * queries, queries, dtype=torch.int32, device=query.device)
            known.update(mask=attention_mask, chosen=there.flatten().nonzero().squeeze(1), ends=ends, starts=starts)
        keys, values = (t.transpose(1, 2).flatten(0, 1)[known["chosen"]].to(value.dtype) for t in (key, value))
        flat = query.transpose(1, 2).flatten(0, 1).to(value.dtype)
        found = kernel(flat, keys, values, known["starts"], known["ends"], queries, key.shape[2], kwargs.get("scaling"))
        return found.view(batch, queries, heads, size), None

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register("sdpa", attention)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", before)

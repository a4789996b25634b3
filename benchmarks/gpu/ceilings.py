"""P0: what the device does at most: products, copies, launches, attention with and without a mask."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from benchmarks.gpu.place import Check, Place, least
from expo.cost.machine import GPU_LAYER_S


def products(place: Place) -> Mapping[str, Any]:
    """Multiply square matrices."""
    size, found = 8192 if place.gpu else 256, {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.rand(size, size, device=place.device, dtype=dtype)
        square_by_itself = partial(torch.matmul, square, square)
        name = f"{str(dtype).removeprefix('torch.')}, TFLOP/s"
        found[name] = 2 * size**3 / least(place, square_by_itself) / 1e12
    return {"predicted": {"bfloat16, TFLOP/s": 790}, **found}


def copies(place: Place) -> Mapping[str, Any]:
    """Copy a tensor on the device, and one from the host."""
    numbers = 2**30 if place.gpu else 2**20
    here, there = (torch.empty(numbers, dtype=torch.uint8, device=place.device) for _ in range(2))
    host = torch.empty(numbers // 4, dtype=torch.uint8, pin_memory=place.gpu)
    return {
        "predicted": {"on the device, TB/s": 4.3},
        "on the device, TB/s": 2 * numbers / least(place, lambda: there.copy_(here)) / 1e12,
        "from the host, GB/s": numbers / 4 / least(place, lambda: there[: numbers // 4].copy_(host)) / 1e9,
    }


def launches(place: Place) -> Mapping[str, Any]:
    """Launch small kernels: what decoding by transformers waits for."""
    one = torch.zeros(16, device=place.device)

    def many() -> None:
        for _ in range(1000):
            one.add_(1)

    return {"predicted": {"a layer of decoding, µs": 1e6 * GPU_LAYER_S["transformers"]}, "one kernel, µs": 1e3 * least(place, many, 3)}  # fmt: skip  # noqa: E501


def attention(place: Place) -> Mapping[str, Any]:
    """Attend forward and backward over 4,096 tokens, causally by a kernel of its own, and by a dense mask of the
    same."""
    rows, heads, length, width = (4, 16, 4096, 128) if place.gpu else (1, 2, 64, 16)
    states = torch.randn(rows, heads, length, width, device=place.device, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(length, length, dtype=torch.bool, device=place.device).tril().expand(rows, 1, -1, -1)

    def both(**how: Any) -> Callable[[], None]:
        return lambda: attend(states, states, states, **how).sum().backward()

    causal, masked = least(place, both(is_causal=True), 3), least(place, both(attn_mask=mask), 3)
    return {"predicted": {"times as long": "3 to 6"}, "causal, ms": 1e3 * causal, "by a mask, ms": 1e3 * masked, "times as long": masked / causal}  # fmt: skip  # noqa: E501


def checks(place: Place) -> dict[str, Check]:
    """Return the checks of this part."""
    return {"products": products, "copies": copies, "attention by a mask": attention, "launches": launches}

"""Number formats of single parts of a model: a head in float32, weights in 4 bits."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Float32Head(nn.Linear):
    """An output head that computes logits in float32, whatever the format of its weights and of its input."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return linear(input.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def with_float32_head(model: Any) -> Any:
    """Make a model's head compute in float32, as another class where it stands: weights, ties and names stay, in copies
    too. Raises TypeError for a head that is no plain linear layer."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise TypeError(f"its head is a {type(head).__name__}, no linear layer")
    head.__class__ = Float32Head
    return model


def four_bits(dtype: torch.dtype) -> Any:
    """Return transformers' settings of NF4 with doubly rounded scales (QLoRA, 2305.14314). Args: dtype, of products."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return cast(Any, BitsAndBytesConfig)(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **options)


def steady(model: Any) -> Any:
    """Keep bitsandbytes from packing weights again in evaluation on a CPU: it rounds their scales."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def in_4bit(model: Any) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False))


def as_numbers(weight: Tensor) -> Tensor:
    """Return a weight, or, for a weight in 4 bits, the numbers that it stands for."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    numbers: Tensor = dequantize_4bit(weight.detach(), state)
    return numbers


def error_in_4bit(shape: torch.Size, device: torch.device) -> float:
    """Measure the error of 4 bits on normal numbers of a shape: the root of the mean square, relative to 1."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    held, state = quantize_4bit(numbers, quant_type="nf4", compress_statistics=True)
    return (dequantize_4bit(held, state) - numbers).square().mean().sqrt().item()

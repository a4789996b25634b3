"""What expo adds to vLLM's worker (`worker_extension_cls`): it runs where vLLM's model is, in this process or
another."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# What vLLM joins into one matrix. Sums of a joined matrix are the sums of its parts.
JOINED = ((r"\.(q|k|v)_proj\.", ".qkv_proj."), (r"\.(gate|up)_proj\.", ".gate_up_proj."))
Sums = dict[str, tuple[float, float]]  # by parameter: of its entries, and of their squares


class WeightSync:
    """Methods for `LLM.collective_rpc`; `self` is vLLM's worker."""

    def expo_load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take new weights under their Hugging Face names, one after the other."""
        worker: Any = self
        worker.reload_weights(weights_iterator=iter(weights))
        _repack_tied_head(worker.model_runner.get_model())

    def expo_load_file(self, path: str) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            self.expo_load((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def expo_runner(self) -> str:
        """Name vLLM's model runner: by default a GPU has the second kind, a CPU the first."""
        worker: Any = self
        runner = type(worker.model_runner)
        return f"{runner.__module__}.{runner.__name__}"

    def expo_sums(self) -> Sums:
        """Return the sums of every parameter that can be read, and of an adapter; a CPU packs most matrices away."""
        worker: Any = self
        model = worker.model_runner.get_model()
        return sums(
            [*((n.replace(".base_layer", ""), p) for n, p in model.named_parameters() if p.numel()), *_adapter(model)]
        )


def sums(named: Iterable[tuple[str, Tensor]]) -> Sums:
    """Return (Σ entries, Σ squares) of each parameter in float64; q, k, v and gate, up add up under the name of vLLM's
    joined matrix, so that trainer and vLLM can be compared. Args: named, by Hugging Face's or vLLM's names."""
    by_name: Sums = {}
    for name, tensor in named:
        for pattern, joined in JOINED:
            name = re.sub(pattern, joined, name)
        values = tensor.detach()  # summed in float64, without a copy of it in float64
        first, second = by_name.get(name, (0.0, 0.0))
        squares = torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2
        by_name[name] = (first + values.sum(dtype=torch.float64).item(), second + squares)
    return by_name


def _adapter(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of vLLM's only adapter as layers compute with it: joined, and padded with zeros."""
    for name, layer in model.named_modules():
        for part, stacked in (("A", "lora_a_stacked"), ("B", "lora_b_stacked")):
            for tensor in getattr(layer, stacked, ()):
                yield f"{name}.lora_{part}", tensor


def _repack_tied_head(model: nn.Module) -> None:
    """Pack lm_head again: the CPU backend multiplies by a packed copy, which a reload of tied embeddings leaves."""
    head: Any = getattr(model, "lm_head", None)
    if head is None or head.weight.device.type != "cpu" or not getattr(model.config, "tie_word_embeddings", False):
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(head, remove_weight=False)

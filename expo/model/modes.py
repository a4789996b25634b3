"""How a loaded model computes: its number format, dropout and adapter; copies, and initial weights put back."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from expo.config import UserError
from expo.model.shares import from_first, like, own_share

DROPOUT_RATES = "dropout_rates"  # of a module: those that `without_dropout` has switched off


def causal_lm(model: Any) -> Any:
    """Return the causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_sharded(causal: Any) -> bool:
    """Return whether this device holds a share of the weights: `expo.rollout.sharded` gave the model `score_tokens`."""
    return hasattr(causal, "score_tokens")


def compute_in(model: nn.Module, precision: str) -> None:
    """Set the format in which a model and its later copies compute, by `trainer.precision`. The weights keep theirs."""
    causal_lm(model).compute_dtype = torch.bfloat16 if precision == "bf16-mixed" else None


@contextmanager
def computing(model: nn.Module) -> Iterator[None]:
    """Compute within the context in the number format that `compute_in` has set: one for rollouts, scores, evaluations.
    Autocast keeps its casts of the weights no longer than the context: an update in between is seen."""
    causal = causal_lm(model)
    dtype, device = getattr(causal, "compute_dtype", None), next(model.parameters()).device.type
    # Casts of sharded weights would keep all layers in memory, where one is gathered at a time.
    with torch.autocast(device, dtype, cache_enabled=not is_sharded(causal)) if dtype else nullcontext():
        yield


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Compute in the format of the weights within the context; not for a frozen model with weights in two formats."""
    causal = causal_lm(model)
    dtype = getattr(causal, "compute_dtype", None)
    if len({p.dtype for p in causal.parameters()}) == 1:
        causal.compute_dtype = None
    try:
        yield
    finally:
        causal.compute_dtype = dtype


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Return the model without its dropout within the context."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


@contextmanager
def as_initial(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a LoRA policy as the initial policy: its adapter and dropout are off within the context."""
    with in_evaluation(model), cast(Any, model).disable_adapter():
        yield model


def without_dropout(model: nn.Module) -> None:
    """Switch every dropout of a model off, in modules and in the numbers that attention layers hold, but not training
    mode: gradient checkpointing needs it. With dropout, a policy not yet updated has another ratio than 1, and a KL to
    itself."""
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else [n for n in vars(module) if "dropout" in n or "pdrop" in n]
        rates = {n: rate for n in names if isinstance(rate := getattr(module, n), float) and rate}
        vars(module).update(dict.fromkeys(rates, 0.0) | ({DROPOUT_RATES: rates} if rates else {}))


@contextmanager
def with_dropout(model: nn.Module) -> Iterator[None]:
    """Switch the dropout on, in the context, that `without_dropout` has switched off. Raises UserError without any."""
    rates = [(vars(module), vars(module)[DROPOUT_RATES]) for module in model.modules() if DROPOUT_RATES in vars(module)]
    if not rates:
        raise UserError(
            "trainer.dropout=true: the model has no dropout; set it in the model's config, or trainer.dropout=false"
        )
    for module, by_name in rates:
        module.update(by_name)
    try:
        yield
    finally:
        for module, by_name in rates:
            module.update(dict.fromkeys(by_name, 0.0))


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in evaluation mode that takes no gradients: the reference policy."""
    frozen: PreTrainedModel = copy.deepcopy(model).eval().requires_grad_(False)
    return frozen


def cast_frozen_linears(model: PreTrainedModel) -> PreTrainedModel:
    """Cast a model's frozen `nn.Linear` weights, in place, to the format of autocast, which would cast them for each
    token. Return the model: its outputs stay the same to the bit, but do not train from it, nor save it. A head tied to
    the embedding, and norms, keep their format."""
    causal = causal_lm(model)
    if dtype := getattr(causal, "compute_dtype", None):
        for module in causal.modules():
            holds_matrix = type(module) is nn.Linear and module.weight is not causal.get_input_embeddings().weight
            if holds_matrix and not module.weight.requires_grad:
                module.to(dtype)
    return model


@torch.no_grad()
def take_weights(model: nn.Module, other: nn.Module) -> None:
    """Give a model the weights of another of its kind. Weights in 4 bits never change, and are the same in both."""
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        if weight.is_floating_point():
            weight.copy_(like(new, weight))
    for buffer, new_buffer in zip(model.buffers(), other.buffers(), strict=True):
        buffer.copy_(new_buffer)


@contextmanager
def as_it_began(policy: nn.Module, initial_model: nn.Module | None) -> Iterator[None]:
    """Give a policy the initial weights within the context; its own come back to the bit. Args: initial_model, the same
    model loaded anew; of several devices the first has it, the others None."""
    weights = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    trained = {name: own_share(p.detach()).to("cpu", copy=True) for name, p in weights.items()}
    initial = dict(initial_model.named_parameters()) if initial_model else {}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(like(from_first(initial.get(name), weight), weight))
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                own_share(weight).copy_(trained[name])

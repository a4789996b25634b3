"""Sharded tensors, of which each device holds a share (`trainer.strategy=fsdp`), beside tensors that each device holds
in full."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def own_share(weight: Tensor) -> Tensor:
    """Return this device's share of a weight (all of it, unless it is sharded) as a view of the same memory."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def like(whole: Tensor, weight: Tensor) -> Tensor:
    """Return this device's share of a tensor that all devices have in full, where `weight` is sharded; else the
    tensor."""
    if not isinstance(weight, DTensor) or isinstance(whole, DTensor) or whole.shape != weight.shape:
        return whole
    return distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


def from_first(whole: Tensor | None, weight: Tensor) -> Tensor:
    """Send the first device's tensor to all devices; it has the shape and format of `weight`. Call it on all
    devices."""
    if whole is not None and not (dist.is_initialized() and dist.get_world_size() > 1):
        return whole
    there = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    if whole is not None:
        there.copy_(whole)
    dist.broadcast(there, src=0)
    return there


def gathered(weight: Tensor) -> Tensor:
    """Return a weight in full. Call it on all devices."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def whole_state(state: Mapping[Any, Any], keep: bool) -> dict[Any, Any]:
    """Return a (nested) state dict with full tensors. Call it on all devices.

    What was sharded comes to the CPU; a weight under two names stays one. Args: keep, False on a device that only takes
    part.
    """
    found: dict[Any, Any] = {}
    names: dict[int, Any] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            found[name] = whole_state(value, keep)
        elif not isinstance(value, DTensor):
            found[name] = value.detach() if isinstance(value, Tensor) else value
        elif id(value) in names:
            found[name] = found[names[id(value)]]
        else:
            names[id(value)] = name
            whole = gathered(value.detach())
            found[name] = whole.cpu() if keep else None
    return found


def sums_of(weights: Iterable[Tensor]) -> Tensor:
    """Return the sum of the entries of each weight over all devices, in float32: `[weights]`. Call it on all devices.

    It is NaN or inf where a weight is, and takes a third of the time of looking at each.
    """
    each = list(weights)
    sums = torch.stack([own_share(weight).sum(dtype=torch.float32) for weight in each])
    if any(isinstance(weight, DTensor) for weight in each):
        dist.all_reduce(sums)
    return sums

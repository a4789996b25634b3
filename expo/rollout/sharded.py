"""A model of whose weights each device holds a share (FSDP2): `trainer.strategy=fsdp`.

A layer's weights are gathered while it computes, forward and backward. Its gradients are added up over the devices;
each keeps its share of the sum, and of the optimizer's state.
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

import copy
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from expo.config import UserError
from expo.model.modes import causal_lm
from expo.model.scoring import beside_tokens, hidden_before, score_tokens
from expo.model.shares import gathered, like
from expo.rollout.engine import Engine, EngineAround


def shard(model: PreTrainedModel) -> None:
    """Leave this device its share of every weight of a model, at the first device's values: to be scored and trained
    alone, by all devices equally often, forward and backward. Raises UserError for a model that cannot be sharded."""
    causal = causal_lm(model)
    formats = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    if len(formats) > 1:
        raise UserError(
            f"trainer.strategy=fsdp: takes weights of one number format, and these are {' and '.join(formats)}; "
            "set model.dtype=float32 or trainer.strategy=ddp"
        )
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    layers = [m for m in causal.modules() if type(m).__name__ in (causal._no_split_modules or ())]
    if not layers:
        raise UserError(
            f"trainer.strategy=fsdp: {type(causal).__name__} does not say which of its modules are layers; use "
            "trainer.strategy=ddp"
        )
    half = getattr(causal, "compute_dtype", None)
    for module in (*layers, causal):
        # Weights are gathered anew for each use: those that were loaded meanwhile are seen.
        policy = in_16_bit(module, half) if half and module is not causal else MixedPrecisionPolicy()
        sharded: Any = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        # The sum of gradients, and not their mean: weights of tokens are those of the whole batch.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    # FSDP2 gathers for methods that it knows of, and what trains a policy is its scores.
    for method in (score_tokens, hidden_before, beside_tokens):
        setattr(causal, method.__name__, MethodType(method, causal))
        register_fsdp_forward_method(causal, method.__name__)
    model.register_load_state_dict_pre_hook(_take_shares)


def in_16_bit(layer: nn.Module, dtype: torch.dtype) -> MixedPrecisionPolicy:
    """Return the policy that gathers a layer's weights in 16 bits where autocast would cast them after that: half of
    what float32 takes.

    Gradients are summed in float32. What goes from layer to layer stays what autocast makes it; embedding and head,
    which are no layers', stay float32. A CPU's LayerNorm takes no weights of another format than its input's.
    """
    mixes = next(layer.parameters()).is_cuda or not any(isinstance(m, nn.LayerNorm) for m in layer.modules())
    return MixedPrecisionPolicy(dtype if mixes else None, torch.float32, cast_forward_inputs=False)


def _take_shares(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace each whole tensor in `state` by this device's share of it, before `load_state_dict` reads it."""
    for name, weight in model.state_dict().items():
        if prefix + name in state:
            state[prefix + name] = like(state[prefix + name], weight)


def shared_out(policy: PreTrainedModel) -> "WholeCopy":
    """Shard a policy, and return a whole copy of it. At no time does a device hold both policies with all weights."""
    # A copy with no weights as yet: each weight that copying meets is replaced by an empty one.
    empty: dict[int, Any] = {}
    for weight in policy.parameters():
        none = nn.Parameter(torch.empty_like(weight), requires_grad=weight.requires_grad)
        none.untyped_storage().resize_(0)
        empty[id(weight)] = none
    model = copy.deepcopy(policy, empty)
    shard(policy)
    whole_copy = WholeCopy(policy, model)
    whole_copy.gather()
    return whole_copy


class WholeCopy:
    """Copy with all weights of a sharded model, for engines and scorers. While it is free it holds no weights."""

    def __init__(self, sharded: nn.Module, model: PreTrainedModel):
        self.sharded, self.model = sharded, model

    @torch.no_grad()
    def gather(self) -> None:
        """Give the copy the sharded model's current weights. Call it on all devices."""
        shares = dict(self.sharded.named_parameters())
        for name, weight in self.model.named_parameters():
            weight.untyped_storage().resize_(weight.numel() * weight.element_size())
            weight.copy_(gathered(shares[name]))

    def free(self) -> None:
        for weight in self.model.parameters():
            weight.untyped_storage().resize_(0)


class CopyEngine(EngineAround):
    """Engine on the whole copy of a sharded policy; the copy holds no weights while the engine sleeps."""

    def __init__(self, engine: Engine, copy: WholeCopy):
        super().__init__(engine)
        self.copy = copy

    def sync(self) -> None:
        self.copy.gather()
        self.engine.sync()

    def sleep(self) -> None:
        self.engine.sleep()
        self.copy.free()

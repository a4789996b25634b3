"""Lightning strategies of a run on several devices."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from expo.config import TrainerConf
from expo.model.shares import like, whole_state


class WholeReplicas(DDPStrategy):
    """Data parallel with all weights on each device. `Updates.take_step` sums gradients over devices once per update;
    DistributedDataParallel would in every backward pass, of which a step has many, and would average."""

    def configure_ddp(self) -> None:
        """Begin with the first device's weights everywhere, and wrap nothing."""
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, src=0)


class ShardedWeights(WholeReplicas):
    """Data parallel with a share of the weights on each device; `expo.rollout.sharded` shards them when the run is
    wired. Checkpoints hold whole tensors: any number of devices goes on from them."""

    def configure_ddp(self) -> None:
        """Do nothing: the shares are those of one model."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return full tensors on the first device, which writes them."""
        assert self.lightning_module is not None
        return whole_state(self.lightning_module.state_dict(keep_vars=True), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole_state(super().optimizer_state(optimizer), self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                i: {name: like(part, weights[i]) if isinstance(part, Tensor) else part for name, part in whole.items()}
                for i, whole in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def teardown(self) -> None:
        """Leave the shares where they are: the last checkpoint still has to be gathered from them."""
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()


STRATEGIES: dict[str, type[WholeReplicas]] = {"ddp": WholeReplicas, "fsdp": ShardedWeights}


def strategy_options(conf: TrainerConf, files: CheckpointIO) -> dict[str, Any]:
    """Return the arguments of Lightning's trainer about devices, and about who writes checkpoints."""
    if conf.devices * conf.num_nodes == 1:
        return {"devices": 1, "plugins": [files]}
    # The processes are there already: expo has started them, or torchrun has. Slurm, in which either may run, has not.
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    return {
        "devices": conf.devices,
        "num_nodes": conf.num_nodes,
        "strategy": STRATEGIES[conf.strategy](),
        "plugins": [files, environment],
        "use_distributed_sampler": False,
    }

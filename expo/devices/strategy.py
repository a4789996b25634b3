"""How Lightning runs one run on several devices."""

from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from expo.config import TrainerConf


class WholeReplicas(DDPStrategy):
    """Data parallel with a whole model on each device, whose gradients the algorithm adds up itself, once per optimizer step.

    DistributedDataParallel would do so in every backward pass, of which a step has many, and would average.
    """

    def configure_ddp(self) -> None:
        """Begin with the first device's weights everywhere, and wrap nothing."""
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, src=0)


def strategy_options(conf: TrainerConf, files: CheckpointIO) -> dict[str, Any]:
    """Return what Lightning's trainer is told of devices, and of who writes checkpoints."""
    if conf.devices * conf.num_nodes == 1:
        return {"devices": 1, "plugins": [files]}
    # The processes are there already: expo has started them, or torchrun has. Slurm, in which either may run, has not.
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
    return {
        "devices": conf.devices,
        "num_nodes": conf.num_nodes,
        "strategy": WholeReplicas(),
        "plugins": [files, environment],
        "use_distributed_sampler": False,
    }

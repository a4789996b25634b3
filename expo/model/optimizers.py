"""The optimizers of `optimizer=`. Each is made of its keys and of the weights that are trained."""

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from expo.config import OptimizerConf


def adamw(conf: OptimizerConf, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    low, high = conf.betas
    return torch.optim.AdamW(weights, conf.learning_rate, (low, high), conf.eps, conf.weight_decay, fused=True)


def adamw_8bit(conf: OptimizerConf, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW, which keeps its moments in 8 bits, by blocks of 256 (arXiv 2110.02861), but those of
    a weight with fewer than 4,096 entries in float32."""
    library: Any = importlib.import_module("bitsandbytes.optim")
    optimizer: torch.optim.Optimizer = library.AdamW8bit(
        weights, conf.learning_rate, tuple(conf.betas), conf.eps, conf.weight_decay
    )
    return optimizer

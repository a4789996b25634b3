"""Where a vLLM engine stands, and what it needs there: its GPU, its environment, room for files and for its cache, a
model that it can run."""

import gc
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel

from expo.config import UserError

log = logging.getLogger(__name__)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can make room for
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # sizes that vLLM's attention on a CPU is built for


def place_for(size: int) -> str | None:
    """Return the folder in memory that has room for `size` bytes of each device of the run; else None, the disk."""
    memory, count = Path("/dev/shm"), int(os.environ.get("WORLD_SIZE", "1"))
    if not memory.is_dir():
        return None
    if (free := shutil.disk_usage(memory).free) > 1.2 * count * size:
        return str(memory)
    message = "vLLM's weights go through %s, which takes longer: /dev/shm has %.1f GB free, and %.1f GB are needed"
    log.warning(message, tempfile.gettempdir(), free / 1e9, 1.2 * count * size / 1e9)
    return None


@contextmanager
def visible(devices: Sequence[int]) -> Iterator[None]:
    """Show `devices` alone, counted as this process sees them, to processes that start within the context; where none
    are given, change nothing. Raises UserError for a GPU that is not there."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices:
        if max(devices) >= (count := torch.cuda.device_count()):
            setting = f" rollout.tensor_parallel={len(devices)}" if len(devices) > 1 else ""
            raise UserError(
                f"rollout.device={devices[0]}{setting}: there are {count} GPUs here; give numbers of theirs, from 0"
            )
        seen = before.split(",") if before else [str(n) for n in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen[n] for n in devices)
    try:
        yield
    finally:
        if devices:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            os.environ |= {"CUDA_VISIBLE_DEVICES": before} if before is not None else {}


@contextmanager
def alone() -> Iterator[None]:
    """Hide the other devices of the run from processes that start within the context: an engine has no part in them."""
    of_group = "RANK LOCAL_RANK WORLD_SIZE NODE_RANK GROUP_ ROLE_ LOCAL_WORLD_SIZE MASTER_ TORCHELASTIC_"
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith((*of_group.split(),))}
    try:
        yield
    finally:
        os.environ |= before


@contextmanager
def trainers_group() -> Iterator[None]:
    """Keep vLLM from destroying the trainer's process group, which it takes for its own, within the context."""
    end = dist.destroy_process_group
    dist.destroy_process_group = lambda group=None: end(group) if group is not None else None
    try:
        yield
    finally:
        dist.destroy_process_group = end


@contextmanager
def unmoved() -> Iterator[None]:
    """Restore, after the context, what vLLM changes in the process in which it starts: torch's threads, which it sets
    to 1, garbage collection, which it freezes, and the state of every generator, which it seeds."""
    threads, omp_threads, cuda = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), torch.cuda.is_initialized()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if cuda else []
    os.environ["OMP_NUM_THREADS"] = str(threads)  # where it is set, vLLM leaves the threads alone
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        os.environ |= {"OMP_NUM_THREADS": omp_threads} if omp_threads is not None else {}
        torch.set_num_threads(threads)
        gc.unfreeze()
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(on_gpus)


def kv_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values per token."""
    layers: int = model.config.get_text_config().num_hidden_layers
    return 2 * layers * key_heads(model) * head_size(model) * dtype.itemsize


def key_heads(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_size(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def memory_share(weights: int, cached: int, total: int) -> float:
    """Return vLLM's share of a GPU's memory, at most 0.9: weights, the cache of a full batch, and a tenth for
    activations. Args: bytes."""
    return min(0.9, round((weights + cached) / total + 0.1, 3))


def adapter_rank(model: PreTrainedModel) -> int:
    """Return the rank of adapters for which vLLM makes room, so that it holds the model's LoRA adapter beside its
    weights; 0 where it cannot, or the model has none."""
    adapter = model.peft_config["default"] if isinstance(model, PeftModel) else None
    return next((rank for rank in LORA_RANKS if adapter and rank >= adapter.r), 0)


def check_heads(model: PreTrainedModel, device: torch.device) -> None:
    """Check that vLLM can run the model here. Raises UserError where it cannot."""
    if device.type == "cpu" and head_size(model) not in CPU_HEADS:
        raise UserError(
            f"rollout=vllm: attention heads of size {head_size(model)}, and vLLM on a CPU knows "
            f"{', '.join(map(str, CPU_HEADS))} only; "
            "use rollout=hf, or another model (for the ladder: expo pretrain pretrain.heads=3)"
        )

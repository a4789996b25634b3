"""Where a vLLM engine stands, and what it needs there: its GPU, its environment, room for files and for its cache, a model that it can run."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from expo.config import UserError

log = logging.getLogger(__name__)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can make room for
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # sizes that vLLM's attention on a CPU is built for


def place_for(size: int) -> str | None:
    """Return where files of so many bytes go: into memory, where there is room for those of all devices of the run; else None, the disk."""
    memory, count = Path("/dev/shm"), int(os.environ.get("WORLD_SIZE", "1"))
    if not memory.is_dir():
        return None
    if (free := shutil.disk_usage(memory).free) > 1.2 * count * size:
        return str(memory)
    told = "vLLM's weights go through %s, which takes longer: /dev/shm has %.1f GB free, and %.1f GB are needed"
    log.warning(told, tempfile.gettempdir(), free / 1e9, 1.2 * count * size / 1e9)
    return None


@contextmanager
def visible(device: int | None) -> Iterator[None]:
    """Show processes that start meanwhile this GPU alone; `device` counts those that this process sees. Raises UserError for none of them."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device is not None:
        if device >= (count := torch.cuda.device_count()):
            raise UserError(f"rollout.device={device}: there are {count} GPUs here; give one of their numbers, from 0")
        os.environ["CUDA_VISIBLE_DEVICES"] = before.split(",")[device] if before else str(device)
    try:
        yield
    finally:
        if device is not None:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            os.environ |= {"CUDA_VISIBLE_DEVICES": before} if before is not None else {}


@contextmanager
def alone() -> Iterator[None]:
    """Let processes that start meanwhile not know of the other devices of the run: an engine has no part in them."""
    of_group = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "NODE_RANK",
        "GROUP_",
        "ROLE_",
        "LOCAL_WORLD_SIZE",
        "MASTER_",
        "TORCHELASTIC_",
    )
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(of_group)}
    try:
        yield
    finally:
        os.environ |= before


def kv_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values per token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    layers: int = config.num_hidden_layers
    return 2 * layers * int(heads) * head_size(model) * dtype.itemsize


def head_size(model: PreTrainedModel) -> int:
    """Return the width of an attention head."""
    config = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def memory_share(weights: int, cached: int, total: int) -> float:
    """Return the share of a GPU's memory for vLLM: its weights, the cache of a full batch, and a tenth for its activations; at most 0.9.

    Args: bytes. The rest is the trainer's.
    """
    return min(0.9, round((weights + cached) / total + 0.1, 3))


def adapter_rank(model: PreTrainedModel) -> int:
    """Return the rank that vLLM has to make room for, to hold the model's LoRA adapter beside its weights; 0 where it cannot, or there is none."""
    adapter = model.peft_config["default"] if isinstance(model, PeftModel) else None
    return next((rank for rank in LORA_RANKS if adapter and rank >= adapter.r), 0)


def check_heads(model: PreTrainedModel, device: torch.device) -> None:
    """Check that vLLM can run the model here. Raises UserError where it cannot."""
    if device.type == "cpu" and head_size(model) not in CPU_HEADS:
        raise UserError(
            f"rollout=vllm: attention heads of size {head_size(model)}, and vLLM on a CPU knows {', '.join(map(str, CPU_HEADS))} only; "
            "use rollout=hf, or another model (for the ladder: expo pretrain pretrain.heads=3)"
        )

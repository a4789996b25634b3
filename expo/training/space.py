"""Room on the disk for what a run writes."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from expo.algorithms.base import Algorithm
from expo.config import Config, UserError


def check_space(cfg: Config, directory: Path, module: Algorithm) -> None:
    """Raise UserError where a run's disk has no room for its checkpoints: each is written beside the one before it."""
    weights = size_of(module.without_base(module.state_dict()))
    checkpoint = weights + 2 * size_of([p for p in module.policy.parameters() if p.requires_grad])  # Adam's two moments
    final = size_of(list(module.policy.parameters()))
    best = (checkpoint if cfg.trainer.on_collapse != "warn" else 0) + (final if cfg.dataset.validation else 0)
    on_disk = sum(f.stat().st_size for f in directory.glob("checkpoints/**/*") if f.is_file())
    needed, free = max(2 * checkpoint, checkpoint + final) + best - on_disk, shutil.disk_usage(directory).free
    if free < needed:
        why = f"{gib(free)} free, and the checkpoints of this run ({gib(checkpoint)} each) need {gib(needed)}"
        raise UserError(f"output_dir={cfg.output_dir}: {why}; free some space, or give another output_dir")


def check_room(path: Path, content: Any) -> None:
    """Raise OSError, as a full disk does, where a file of this content would not fit, before it is written."""
    size, free = size_of(content), shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(errno.ENOSPC, f"no room for {gib(size)}, {gib(free)} free", str(path))


def size_of(content: Any) -> int:
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(size_of, content.values()))
    if isinstance(content, Iterable) and not isinstance(content, str | bytes):
        return sum(map(size_of, content))
    return 0


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise OSError, as Python does, where safetensors cannot write to the disk: it has an error of its own."""
    try:
        yield
    except SafetensorError as error:
        if match := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error
        raise

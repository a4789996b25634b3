"""Checkpoints of a run directory: `checkpoints/step<N>.ckpt`."""

import logging
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from expo.config import UserError

if TYPE_CHECKING:
    from lightning import Trainer

log = logging.getLogger(__name__)


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the last checkpoint that is whole; pass over, with a warning, what a full disk or a crash has cut short."""
    for path in sorted(directory.glob("checkpoints/step*.ckpt"), key=step_of, reverse=True):
        if zipfile.is_zipfile(path):  # torch's format; its directory is at the end of the file
            if _holds_classes_of_0_1(path):
                raise UserError(
                    f"{path}: holds an explanation cache of expo 0.1, which this version cannot read; "
                    "finish the run with 0.1, or start it over with fresh=true"
                )
            return path
        log.warning("%s is damaged; going on from an earlier checkpoint, if there is one", path)
    return None


def save_checkpoint(trainer: "Trainer", folder: Path, step: int, keep_earlier: bool = False) -> None:
    """Save the run as it is after `step` steps, and remove the checkpoints before."""
    earlier = [] if keep_earlier else list(folder.glob("step*.ckpt"))
    path = folder / f"step{step - 1:06d}.ckpt"
    trainer.save_checkpoint(path)
    for old in earlier:
        if old != path:
            old.unlink()


def _holds_classes_of_0_1(path: Path) -> bool:
    with zipfile.ZipFile(path) as parts:
        return any(b"expo.experience" in parts.read(name) for name in parts.namelist() if name.endswith("data.pkl"))


def step_of(checkpoint: Path) -> int:
    """Return the steps done at a checkpoint; Lightning names it by the epoch just ended."""
    match = re.fullmatch(r"step(\d+)", checkpoint.stem)
    assert match is not None, checkpoint
    return int(match[1]) + 1

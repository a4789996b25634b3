"""Checkpoints of a run directory: `checkpoints/step<N>.ckpt`."""

import logging
import re
import zipfile
from pathlib import Path

log = logging.getLogger(__name__)


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the last checkpoint that is whole; pass over, with a warning, what a full disk or a crash has cut short."""
    for path in sorted(directory.glob("checkpoints/step*.ckpt"), key=step_of, reverse=True):
        if zipfile.is_zipfile(path):  # torch's format; its directory is at the end of the file
            return path
        log.warning("%s is damaged; going on from an earlier checkpoint, if there is one", path)
    return None


def step_of(checkpoint: Path) -> int:
    """Return the steps done at a checkpoint; Lightning names it by the epoch just ended."""
    match = re.fullmatch(r"step(\d+)", checkpoint.stem)
    assert match is not None, checkpoint
    return int(match[1]) + 1

"""Checkpoints of a run directory: `checkpoints/step<N>.ckpt`, written after N + 1 steps. They hold tensors and plain
data, and nothing in them is executed.

A checkpoint has Lightning's parts (weights of the policy, of its snapshot and its average, the optimizer, the step;
not what the config names: the reference, the frozen weights under a LoRA adapter) and ours: `base` (a hash of these
frozen weights), `explanations` (the cache), `ahead` (completions of the next step), `retries` (place in the problems,
and each one's count without a gradient), the best evaluation, the health of the run, `expo.lineage`: from
`on_save_checkpoint` and the callbacks' `state_dict`. No state of a random generator: noise follows from seed and step.
Banks and pairs have folders of their own. `best.ckpt` is of the highest reward, for a rollback; the folder `best` is
the model of the best validation.
"""

import errno
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expo.config import Config, UserError
from expo.config.errors import first_line
from expo.ground.files import beside, remove
from expo.model.modes import causal_lm
from expo.model.policy import save_policy
from expo.runs.card import model_card
from expo.training.space import check_room, disk_errors

log = logging.getLogger(__name__)

BEST = "best.ckpt"  # of the highest reward, see `expo.training.collapse`
LINEAGE = "expo.lineage"  # key of a checkpoint: the identity of its run, but for the number of steps


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it: a kill or a full disk leaves the previous one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint's file. Raises OSError where the disk is full."""
        target = Path(path)
        with beside(target) as partial:
            check_room(target, checkpoint)
            try:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
            except RuntimeError as error:  # torch's own word on a write that fails
                raise OSError(errno.ENOSPC, f"cannot be written ({first_line(error)})", str(target)) from error


def newest_checkpoint(directory: Path, lineage: str | None = None) -> Path | None:
    """Return the last checkpoint that a run can resume from; skip, with a warning, those that are damaged or of another
    run. A longer run may have taken over that of a shorter one (`expo.training.shorter`).

    Args: lineage, of the run that asks, see `expo.config.lineage`; None: whatever run it is of. Raises UserError for a
    file that would execute code when it is loaded.
    """
    checkpoints = [path for path in directory.glob("checkpoints/*") if re.fullmatch(r"step\d+\.ckpt", path.name)]
    for path in sorted(checkpoints, key=step_of, reverse=True):
        problem = checkpoint_problem(path, lineage)
        if problem is None:
            return path
        log.warning("%s %s; going on from an earlier checkpoint, if there is one", path, problem)
    return None


def checkpoint_problem(path: Path, lineage: str | None) -> str | None:
    """Return why a run cannot resume from a checkpoint, such as `is damaged`; None where it can. One that names no
    lineage is taken for any. Raises UserError where it would execute code, or holds a cache of expo 0.1."""
    try:
        with zipfile.ZipFile(path) as parts:  # torch's format
            if parts.testzip() is not None:
                return "is damaged"
            if any(b"expo.experience" in parts.read(name) for name in parts.namelist() if name.endswith("data.pkl")):
                why = "holds an explanation cache of expo 0.1, which this version cannot read"
                raise UserError(f"{path}: {why}; finish the run with 0.1, or start it over with fresh=true")
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        why = "holds more than tensors and plain data, and could execute code: it is not loaded"
        raise UserError(f"{path}: {why}; remove it, or start the run over with fresh=true") from error
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, KeyError, EOFError):
        return "is damaged"
    if not isinstance(state, dict) or "state_dict" not in state:
        return "is no checkpoint of expo"
    return None if lineage is None or state.get(LINEAGE, lineage) == lineage else "is of another run"


def save_model(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    cfg: Config,
    summary: dict[str, Any],
    goes_on: bool = False,
) -> None:
    """Save a policy as a Hugging Face folder, first under another name: a full disk leaves no half in its place."""
    partial = folder.with_name(f".{folder.name}.partial")
    remove(partial)
    with disk_errors(partial):
        save_policy(policy, partial, goes_on)
    tokenizer.save_pretrained(partial)
    gguf = getattr(causal_lm(policy).config, "expo_gguf", "")
    (partial / "README.md").write_text(model_card(cfg, summary, (partial / "adapter_config.json").is_file(), gguf))
    remove(folder)
    partial.rename(folder)


def save_checkpoint(trainer: Trainer, folder: Path, step: int, keep_earlier: bool = False) -> None:
    """Write the run's checkpoint after `step` steps; unless `keep_earlier`, remove the earlier ones."""
    earlier = [] if keep_earlier else list(folder.glob("step*.ckpt"))
    path = folder / f"step{step - 1:06d}.ckpt"
    trainer.save_checkpoint(path)
    for old in earlier:
        if old != path:
            old.unlink(missing_ok=True)  # another device of the run may have been quicker


def step_of(checkpoint: Path) -> int:
    """Return the steps done at a checkpoint; Lightning names it by the epoch just ended."""
    match = re.fullmatch(r"step(\d+)", checkpoint.stem)
    assert match is not None, checkpoint
    return int(match[1]) + 1

"""P5: the memory of a run against what `expo plan` says of it, and what happens where there is not enough.

`python -m benchmarks.gpu.memory 0.5B` is the first of these on a CPU, where what is resident is measured.
"""

import ctypes
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.gpu.place import Check, NotRun, Place
from benchmarks.gpu.steps import setting, train
from expo.algorithms.base import Algorithm
from expo.config import compose_config
from expo.cost.machine import DEVICES
from expo.cost.memory import generating, held, updating
from expo.cost.run import Work
from expo.jobs.fit import make_run
from expo.jobs.process import MMAP_THRESHOLD, TRIM_THRESHOLD, set_up_process


class Most(Callback):
    """The most memory that is in use while completions are generated, and in the update, over what there was before:
    on a GPU by torch's own account, on a CPU what is resident."""

    def __init__(self, gpu: bool) -> None:
        self.gpu, self.process, self.done = gpu, psutil.Process(), threading.Event()
        self.most: dict[str, float] = {}
        self.part = "loading"
        if not gpu:
            give_back()
            threading.Thread(target=self._watch, daemon=True).start()
        self.before = self.used()

    def used(self) -> int:
        """Return the bytes in use; on a GPU, the most since this was last asked."""
        if not self.gpu:
            return int(self.process.memory_info().rss)
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most

    def note(self) -> None:
        """Take what is in use into account."""
        self.most[self.part] = max(self.most.get(self.part, 0.0), self.used() - self.before)

    def enter(self, part: str) -> None:
        """Begin another part of the step."""
        self.note()
        self.part = part

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.note()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the parts of a step from each other."""
        assert isinstance(pl_module, Algorithm)
        pipeline: Any = pl_module.pipeline
        run = pipeline.run

        def watched(*arguments: Any, **named: Any) -> Any:
            self.enter("generating")
            try:
                return run(*arguments, **named)
            finally:
                self.enter("updating")

        pipeline.run = watched

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the update; what is kept and evaluated after it is no part of it."""
        self.enter("afterwards")


def give_back() -> None:
    """Let the C library give back at once what is freed, so that what is resident is what is in use."""
    library = ctypes.CDLL(None)
    for parameter, value in ((TRIM_THRESHOLD, 0), (MMAP_THRESHOLD, 2**16)):
        library.mallopt(parameter, value)


def of_shape(shape: str, *overrides: str) -> Check:
    """Return the check of a run in 16 bit with a shape."""

    def memory(place: Place) -> Mapping[str, Any]:
        cfg = setting(
            place,
            "grpo",
            shape,
            "hf",
            2,
            "trainer.precision=bf16-mixed",
            "evaluation.first=false",
            "dataset.eval_limit=1",
            *overrides,
        )
        watching = Most(place.gpu)
        work = Work(cfg, train(cfg, watching), 1)
        watching.enter("afterwards")
        watching.done.set()
        parts = held(work, replace(DEVICES["h200"], reserved=0.0))
        planned = {"generating": generating(work), "updating": updating(work)}
        return {
            "predicted": {f"{name}, GB": sum((parts | own).values()) / 1e9 for name, own in planned.items()},
            **{f"{name}, GB": watching.most[name] / 1e9 for name in planned},
        }

    return memory


def out_of_memory(place: Place) -> Mapping[str, Any]:
    """Let a run need more memory than there is: it has to end with one line."""
    if not place.gpu:
        raise NotRun("needs a GPU")
    cfg = setting(place, "grpo", place.shapes[0], "hf", 1, "trainer.precision=32-true", "trainer.micro_batch_size=64")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(12e9 / total)
    try:
        code = make_run(cfg)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert code == 1, f"exit code {code} where memory was to run out"
    return {}


def checks(place: Place) -> dict[str, Check]:
    """Return the checks of this part."""
    shape = place.shapes[-1]
    return {f"a run of {shape}": of_shape(shape), "out of memory": out_of_memory}


if __name__ == "__main__":
    set_up_process(compose_config(["dataset=ladder", "algorithm=grpo"]))
    with tempfile.TemporaryDirectory(prefix="expo-gpu-") as name:
        print(of_shape(sys.argv[1], *sys.argv[2:])(Place("cpu", Path(name))))

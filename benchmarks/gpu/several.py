"""Part E: two devices against one."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.gpu.engine import LADDER
from benchmarks.gpu.place import Check, NotRun, Place, gap, metrics_of


def run(place: Place, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Make a run with `expo train`. Returns its metrics."""
    folder = place.folder / name
    line = [
        *LADDER,
        "algorithm=exp_grpo",
        "algorithm.kl_coef=0.05",
        f"output_dir={folder}",
        f"trainer.accelerator={'gpu' if place.gpu else 'cpu'}",
        *overrides,
    ]
    told = subprocess.run(
        [sys.executable, "-m", "expo", "train", *line], capture_output=True, text=True, check=False, env=os.environ
    )
    assert told.returncode == 0, told.stderr[-2000:]
    return metrics_of(folder)


def of_strategy(strategy: str) -> Check:
    """Return the check that two devices make the run of one."""

    def two(place: Place) -> Mapping[str, Any]:
        if place.gpu and torch.cuda.device_count() < 2:
            raise NotRun("needs two GPUs")
        one = run(place, f"one-{strategy}")
        worst = gap(one, run(place, strategy, "trainer.devices=2", f"trainer.strategy={strategy}"))
        assert worst < (1e-2 if place.gpu else 1e-5), f"two devices differ from one by {worst:.2g}"
        return {"largest difference": worst}

    return two


CHECKS: dict[str, Check] = {f"two devices, {strategy}": of_strategy(strategy) for strategy in ("ddp", "fsdp")}

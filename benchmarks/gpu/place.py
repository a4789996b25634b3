"""Where the checks run, and what they are given: a device, models with random weights, problems, configs."""

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench.cases import QUESTIONS, write_rows
from expo.config import Config, check, compose_config

TIMED = ("time/", "throughput/tokens_per_s")


class NotRun(Exception):
    """A check cannot be made here; why."""


def needs(package: str) -> None:
    """Raise NotRun where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise NotRun(f"no {package}")


def write_line(file: Path, found: Mapping[str, Any]) -> None:
    """Add a line to results.jsonl, and wait until the disk has it: who is killed has measured what was measured."""
    with file.open("a") as lines:
        lines.write(json.dumps(found) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


@dataclass(frozen=True)
class Place:
    """The device, and a folder for what the checks write. On a CPU all shapes are tiny: the checks themselves are
    checked."""

    device: str  # cuda or cpu
    folder: Path
    # Writes a measurement down, before the next one is made; `predicted` in it is what was to be expected.
    tell: Callable[[Mapping[str, Any]], None] = lambda found: None

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def shapes(self) -> Sequence[str]:
        """Return the shapes of models, the smallest first."""
        return ("0.5B", "1.5B", "3B") if self.gpu else ("tiny", "tiny", "tiny")

    def config(self, *overrides: str) -> Config:
        """Return the config of a run of a random model, on problems of our own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_rows(self.folder / "rows.jsonl", list(QUESTIONS))
        write_rows(self.folder / "held_out.jsonl", ["How many days are there in a week?"])
        cfg = compose_config(
            [
                "dataset=custom",
                f"dataset.path={self.folder / 'rows.jsonl'}",
                f"dataset.eval_path={self.folder / 'held_out.jsonl'}",
                "dataset.columns.question=question",
                "dataset.columns.answer=answer",
                "k=[1]",
                "model=random_shape",
                f"output_dir={self.folder / 'outputs'}",
                f"trainer.accelerator={'gpu' if self.gpu else 'cpu'}",
                "rollout.max_prompt_tokens=512",
                "evaluation.every=0",
                "trainer.checkpoint_every=1000",
                "trainer.on_nonfinite=stop",
                "reward._target_=benchmarks.bench.ours.RandomReward",
                *overrides,
            ]
        )
        check(cfg)
        return cfg

    def wait(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.gpu:
            torch.cuda.synchronize()

    def peak_gb(self) -> float:
        """Return the most memory that was in use since the last call; 0 on a CPU."""
        if not self.gpu:
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return peak


def least(place: Place, action: Callable[[], object], tries: int = 10, warm: bool = True) -> float:
    """Return the seconds of an action on the device: the best of several tries. Args: warm, whether it is done once
    before."""
    if warm:
        action()
    found = []
    for _ in range(tries):
        place.wait()
        started = time.perf_counter()
        action()
        place.wait()
        found.append(time.perf_counter() - started)
    return min(found)


Check = Callable[[Place], Mapping[str, Any]]


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl of the only run below a directory."""
    (file,) = directory.glob("*/*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def gap(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest relative difference of two runs' numbers, but for those that measure time; infinite where one
    lacks a number."""
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        for name in sorted(mine.keys() | other.keys()):
            one, two = mine.get(name), other.get(name)
            if name.startswith(TIMED) or one == two:
                continue
            apart = math.inf if one is None or two is None else abs(one - two) / max(1.0, abs(one))
            worst = max(worst, math.inf if math.isnan(apart) else apart)
    return worst

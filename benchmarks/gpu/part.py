"""One part of the checks: `python -m benchmarks.gpu.part P1 results.jsonl cuda|cpu`, which waits for a line with its
seconds. What it has found is in the file after each measurement."""

import gc
import importlib
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.place import Check, NotRun, Place, write_line
from expo.config import compose_config
from expo.jobs.process import set_up_process
from expo.runs.directory import device_name, git_commit

MODULES = {
    "P0": "ceilings", "P1": "right", "P2": "update", "P3": "decode", "P4": "steps", "P5": "memory", "P6": "group",
    "P7": "vllm",
}  # fmt: skip
LAST = 0.9  # of its seconds, after which a part begins no check: it would be stopped in the middle


def checks_of(part: str, place: Place) -> dict[str, Check]:
    """Return the checks of a part, by name, what tells most first."""
    found: dict[str, Check] = importlib.import_module(f"benchmarks.gpu.{MODULES[part]}").checks(place)
    return found


def main(part: str, file: Path, device: str, limit: float) -> None:
    """Make the checks of a part, one after the other; one that fails keeps none of the others from being made. Args:
    limit, its seconds."""
    began = time.perf_counter()
    set_up_process(compose_config(["dataset=ladder", "algorithm=grpo"]))
    commit = git_commit("benchmarks")
    with tempfile.TemporaryDirectory(prefix="expo-gpu-") as name:
        for number, (check, make) in enumerate(checks_of(part, Place(device, Path(name))).items()):
            about = {"part": part, "what": check, "device": device_name(), "commit": commit}

            def tell(found: Mapping[str, Any], about: Mapping[str, Any] = about) -> None:
                write_line(file, {**about, "state": "measured", **parted(found)})

            started = time.perf_counter()
            try:
                if started - began > LAST * limit:
                    raise NotRun(f"no time left of {limit:.0f} s")
                told = {"state": "ok", **parted(make(Place(device, Path(name, str(number)), tell)))}
            except Exception as error:  # whatever it is: the other checks are still to be made
                told = outcome(error)
            write_line(file, {**about, **told, "seconds": round(time.perf_counter() - started, 1)})
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()


def parted(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured, and beside it what was predicted; None where nobody has."""
    measured = dict(found)
    return {"predicted": measured.pop("predicted", None), "measured": measured}


def outcome(error: Exception) -> dict[str, Any]:
    """Return what to write of a check that was not made, or failed. A package that is not there is no failure, unless
    it is our own."""
    if isinstance(error, NotRun):
        return {"state": "not run", "why": str(error)}
    package = str(getattr(error, "name", None)).partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package not in ("expo", "benchmarks"):
        return {"state": "not run", "why": f"no {package}"}
    traceback.print_exception(error)
    return {"state": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.stdin.readline() or 0))

"""One part of the checks: `python -m benchmarks.gpu.part A results.jsonl cuda|cpu`. What it has found is in the file
after each measurement."""

import gc
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import engine, several, steps, update, vllm
from benchmarks.gpu.place import Check, NotRun, Place, write_line
from expo.config import compose_config
from expo.jobs.wiring import set_up_process
from expo.runs.directory import device_name, git_commit


def checks_of(part: str, place: Place) -> dict[str, Check]:
    """Return the checks of a part, by name."""
    return {
        "A": lambda: engine.CHECKS,
        "B": lambda: update.checks(place),
        "C": lambda: vllm.CHECKS,
        "D": lambda: steps.checks(place),
        "E": lambda: several.CHECKS,
    }[part]()


def main(part: str, file: Path, device: str) -> None:
    """Make the checks of a part, one after the other; one that fails keeps none of the others from being made."""
    set_up_process(compose_config(["dataset=ladder", "algorithm=grpo"]))
    commit = git_commit("benchmarks")
    with tempfile.TemporaryDirectory(prefix="expo-gpu-") as name:
        for number, (check, make) in enumerate(checks_of(part, Place(device, Path(name))).items()):
            about = {"part": part, "check": check, "device": device_name(), "commit": commit}

            def tell(found: Mapping[str, Any], about: Mapping[str, Any] = about) -> None:
                write_line(file, {**about, "state": "measured", "found": found})

            started = time.perf_counter()
            try:
                told = {"state": "ok", "found": dict(make(Place(device, Path(name, str(number)), tell)))}
            except Exception as error:  # whatever it is: the other checks are still to be made
                told = outcome(error)
            write_line(file, {**about, **told, "seconds": round(time.perf_counter() - started, 1)})
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()


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
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

"""One part of the checks: `python -m benchmarks.gpu.part A FILE.json cuda|cpu`. What it has found is in the file after each check."""

import gc
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import engine, several, steps, update, vllm
from benchmarks.gpu.place import Check, NotRun, Place
from expo.commands.wiring import set_up_process
from expo.config import compose_config


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
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="expo-gpu-") as name:
        for number, (check, make) in enumerate(checks_of(part, Place(device, Path(name))).items()):
            started = time.perf_counter()
            try:
                found[check] = {"state": "ok", "found": dict(make(Place(device, Path(name, str(number)))))}
            except NotRun as reason:
                found[check] = {"state": "not run", "why": str(reason)}
            except Exception as error:  # whatever it is: the other checks are still to be made
                traceback.print_exc()
                found[check] = {
                    "state": "failed",
                    "why": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}",
                }
            found[check]["seconds"] = round(time.perf_counter() - started, 1)
            file.write_text(json.dumps(found, indent=1))
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

"""`python -m benchmarks.gpu [parts=A,B,C,D,E] [cpu=true] [output=outputs/gpu-check]`: every part in a process of its own, see `benchmarks.gpu`."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from expo.cli import reporting
from expo.config import UserError
from expo.config.arguments import take_options

LIMIT_S = 480
PARTS = {"A": "the transformers engine", "B": "the update", "C": "vLLM", "D": "whole steps", "E": "two devices"}


def main(arguments: list[str]) -> int:
    """Make all parts and print what they have found. Returns 1 where a check has failed."""
    options, rest = take_options(arguments, parts=",".join(PARTS), cpu="false", output="outputs/gpu-check")
    if rest:
        raise UserError(f"{rest[0]}: not an option of the GPU's checks; they take parts=, cpu= and output=")
    parts, cpu, folder = options["parts"].split(","), options["cpu"] == "true", Path(options["output"])
    if unknown := sorted(set(parts) - PARTS.keys()):
        raise UserError(f"parts={options['parts']}: there is no part {unknown[0]}; the parts are {', '.join(PARTS)}")
    import torch

    if not cpu and not torch.cuda.is_available():
        raise UserError(
            "cpu=false: torch sees no GPU; look at `expo doctor`, or try the checks themselves with cpu=true (make gpu-check CPU=1)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    code = 0
    for part in parts:
        file, log = folder / f"{part}.json", folder / f"{part}.log"
        file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu.part", part, str(file), "cpu" if cpu else "cuda"]
        print(f"{part}: {PARTS[part]}", flush=True)
        with log.open("w") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | hidden, start_new_session=True
            )
            try:
                ended = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                ended = LIMIT_S
            with suppress(ProcessLookupError):  # whatever the part has started: the next one needs the device
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        code |= show(file, log, ended)
    return code


def show(file: Path, log: Path, ended: int) -> int:
    """Print what a part has found. Returns 1 where something has failed."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    for check, told in found.items():
        line = told.get("why") or told["found"].get("line") or json.dumps(told["found"])
        print(f"  {told['state']:8}{check} ({told['seconds']} s): {line}", flush=True)
    if ended:
        how = f"was stopped after {LIMIT_S} s" if ended == LIMIT_S else f"ended with code {ended}"
        print(f"  failed  the part {how}; see {log}", flush=True)
    return int(bool(ended) or any(told["state"] == "failed" for told in found.values()))


if __name__ == "__main__":
    sys.exit(reporting(lambda: main(sys.argv[1:])))

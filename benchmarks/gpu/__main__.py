"""`python -m benchmarks.gpu [parts=P0,…,P7] [cpu=true] [seconds=480] [output=outputs/gpu-check]`: every part in a
process of its own, see `benchmarks.gpu`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from expo.cli import reporting
from expo.config import UserError
from expo.config.arguments import take_options

PARTS = {
    "P0": "ceilings", "P1": "is it right", "P2": "the update", "P3": "decoding", "P4": "whole steps", "P5": "memory",
    "P6": "several devices", "P7": "vLLM",
}  # fmt: skip
# Of the seconds that are left, what a part has beside those that come after it. What it does not need, they have.
SHARES = {"P0": 20, "P1": 60, "P2": 130, "P3": 100, "P4": 100, "P5": 30, "P6": 20, "P7": 20}
# Seconds beyond them, until it is ended: to import torch, and to end what it has begun.
GRACE = {"cuda": 30, "cpu": 120}
LINES = "results.jsonl"


def main(arguments: list[str]) -> int:
    """Make all parts and print what they have found. Returns 1 where a check has failed."""
    options, rest = take_options(
        arguments, parts=",".join(PARTS), cpu="false", seconds="480", output="outputs/gpu-check"
    )
    if rest:
        raise UserError(f"{rest[0]}: not an option of the GPU's checks; they take parts=, cpu=, seconds= and output=")
    parts, cpu, folder = options["parts"].split(","), options["cpu"] == "true", Path(options["output"])
    if unknown := sorted(set(parts) - PARTS.keys()):
        raise UserError(f"parts={options['parts']}: there is no part {unknown[0]}; the parts are {', '.join(PARTS)}")
    if not options["seconds"].isdigit():
        raise UserError(
            f"seconds={options['seconds']}: not a number of seconds, for all parts together; give one, as 480"
        )
    import torch

    if not cpu and not torch.cuda.is_available():
        raise UserError(
            "cpu=false: torch sees no GPU; look at `expo doctor`, or try the checks themselves with cpu=true (make "
            "gpu-check CPU=1)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    code, until, lines = 0, time.monotonic() + int(options["seconds"]), folder / LINES
    lines.unlink(missing_ok=True)
    coming = start(parts[0], lines, cpu)
    for number, part in enumerate(parts):
        process = coming
        left = max(0.0, until - time.monotonic())
        limit = left * SHARES[part] / sum(SHARES[p] for p in parts[number:])
        print(f"{part}: {PARTS[part]} (at most {limit:.0f} s)", flush=True)
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(f"{limit}\n".encode())
            process.stdin.close()
        if number + 1 < len(parts):  # it imports torch and its friends meanwhile, and waits for its turn
            coming = start(parts[number + 1], lines, cpu)
        try:
            how = (
                ""
                if (ended := process.wait(min(limit + GRACE["cpu" if cpu else "cuda"], left))) == 0
                else f"ended with code {ended}"
            )
        except subprocess.TimeoutExpired:
            how = f"was stopped after {min(limit + GRACE['cpu' if cpu else 'cuda'], left):.0f} s"
        with suppress(ProcessLookupError):  # whatever the part has started: the next one needs the device
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code |= show(lines, part, how, folder / f"{part}.log")
    return code


def start(part: str, lines: Path, cpu: bool) -> "subprocess.Popen[bytes]":
    """Start the process of a part, which waits until it is told how many seconds it has."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", part, str(lines), "cpu" if cpu else "cuda"]
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})
    with lines.with_name(f"{part}.log").open("w") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )


def show(lines: Path, part: str, how: str, log: Path) -> int:
    """Print what a part has found, also in a check that it has not ended. Args: how it ended, "" for well. Returns 1
    where something has failed."""
    found = [told for told in _read(lines) if told["part"] == part]
    for told in found:
        measured = told.get("measured") or {}
        line = told.get("why") or measured.get("line") or ", ".join(f"{k}: {_short(v)}" for k, v in measured.items())
        if told.get("predicted"):
            line += f" (predicted: {_short(told['predicted'])})"
        seconds = f" ({told['seconds']} s)" if "seconds" in told else ""
        print(f"  {told['state']:9}{told['what']}{seconds}{': ' if line else ''}{line}", flush=True)
    if how:
        print(f"  failed   the part {how}; see {log}", flush=True)
    return int(bool(how) or any(told["state"] == "failed" for told in found))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(lines: Path) -> Iterator[Mapping[str, Any]]:
    for line in lines.read_text().splitlines() if lines.is_file() else ():
        with suppress(ValueError):  # the last one, of a part that was killed
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(reporting(lambda: main(sys.argv[1:])))

"""`python -m benchmarks.gpu [parts=B,D,A,C,E] [cpu=true] [seconds=480] [output=outputs/gpu-check]`: every part in a
process of its own, see
`benchmarks.gpu`."""

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

PARTS = {"B": "the update", "D": "whole steps", "A": "the transformers engine", "C": "vLLM", "E": "two devices"}
# Of the seconds that are left, what a part has: the more the further it comes before others. What it does not need, the
# next ones have.
SHARES = {"B": 3, "D": 4, "A": 4, "C": 3, "E": 1}
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
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    code, until, lines = 0, time.monotonic() + int(options["seconds"]), folder / LINES
    lines.unlink(missing_ok=True)
    for number, part in enumerate(parts):
        limit = max(0.0, until - time.monotonic()) * SHARES[part] / sum(SHARES[p] for p in parts[number:])
        log = folder / f"{part}.log"
        command = [sys.executable, "-m", "benchmarks.gpu.part", part, str(lines), "cpu" if cpu else "cuda"]
        print(f"{part}: {PARTS[part]} (at most {limit:.0f} s)", flush=True)
        with log.open("w") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | hidden, start_new_session=True
            )
            try:
                how = "" if (ended := process.wait(limit)) == 0 else f"ended with code {ended}"
            except subprocess.TimeoutExpired:
                how = f"was stopped after {limit:.0f} s"
            with suppress(ProcessLookupError):  # whatever the part has started: the next one needs the device
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        code |= show(lines, part, how, log)
    return code


def show(lines: Path, part: str, how: str, log: Path) -> int:
    """Print what a part has found, also in a check that it has not ended. Args: how it ended, "" for well. Returns 1
    where something has failed."""
    found = [told for told in _read(lines) if told["part"] == part]
    ended = {told["check"] for told in found if told["state"] != "measured"}
    for told in found:
        if told["state"] != "measured" or told["check"] not in ended:
            line = told.get("why") or told["found"].get("line") or json.dumps(told["found"])
            seconds = f" ({told['seconds']} s)" if "seconds" in told else ""
            print(f"  {told['state']:9}{told['check']}{seconds}: {line}", flush=True)
    if how:
        print(f"  failed   the part {how}; see {log}", flush=True)
    return int(bool(how) or any(told["state"] == "failed" for told in found))


def _read(lines: Path) -> Iterator[Mapping[str, Any]]:
    for line in lines.read_text().splitlines() if lines.is_file() else ():
        with suppress(ValueError):  # the last one, of a part that was killed
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(reporting(lambda: main(sys.argv[1:])))

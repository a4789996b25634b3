"""A step when told to: both frameworks' trainers wait for a line on stdin before each step, so that they take turns."""

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Turns:
    """Between two calls lies one whole step of a trainer's loop; the first call says that all is ready."""

    def __init__(self, parts: Callable[[], dict[str, float]] = dict):
        self.started: float | None = None
        self.parts = parts

    def __call__(self) -> None:
        """Tell the seconds of the step that has ended, and wait for the next turn. Ends the process where there is
        none."""
        told = {"peak_mb": peak_mb()}
        if self.started is not None:
            told |= {"seconds": time.perf_counter() - self.started, **self.parts()}
        print("bench " + json.dumps(told), flush=True)
        if not sys.stdin.readline():
            sys.exit(0)
        self.started = time.perf_counter()


def peak_mb() -> float:
    """Return the peak memory of this process in MiB.

    Linux's `ru_maxrss` is no less than what the process had that started this one, which may have held a model.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

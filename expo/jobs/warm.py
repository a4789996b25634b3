"""A process that has imported what runs need, and forks itself for each run of a sweep on the CPU (Linux).

`python -m expo.jobs.warm DESCRIPTOR` is started by `run_expo`, and has one run at a time. A GPU's driver does not
outlive a fork, so that runs on GPUs start from nothing.
"""

import gc
import importlib
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import expo
from expo.runs.processes import obey_launcher, run_apart

PRELOADED = ("expo.cli", "expo.jobs.fit", "expo.jobs.score", "expo.algorithms.grpo", "expo.data.formats", "pandas")


def run_expo(arguments: list[str], environment: dict[str, str], log: Path | None = None, warm: bool = False) -> int:
    """Run `expo` in a process of its own, which a Ctrl-C in the terminal does not reach. Returns its exit code.

    Args: log, a file for what it prints, None for this process's own output; warm, fork a warm process for it.
    """
    if warm and sys.platform == "linux":
        obey_launcher()
        try:
            asked = _server(_edited(), tuple(environment.items()))
            asked.send((arguments, log))
            return int(asked.recv())
        except (EOFError, OSError):  # it was killed; where its run goes on, the one started here waits for it
            _server.cache_clear()
    with nullcontext() if log is None else log.open("w") as file:
        return run_apart([sys.executable, "-m", "expo", *arguments], env=environment, stdout=file, stderr=file)


def _edited() -> int:
    """Return when a file of the package was last changed: what is imported is good until then."""
    return max(path.stat().st_mtime_ns for path in Path(expo.__file__).parent.rglob("*.py"))


@lru_cache(maxsize=1)
def _server(edited: int, environment: tuple[tuple[str, str], ...]) -> Connection:
    """Start the warm process of this one; the one before ends when its connection is closed."""
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-m", "expo.jobs.warm", str(theirs.fileno())]
        subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=dict(environment))
    return ours


def main() -> None:
    """Fork for each run that is asked for, one at a time, and send its exit code; end when the one who asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is forwarded to the run
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    with Connection(int(sys.argv[1])) as asking:
        while True:
            try:
                arguments, log = asking.recv()
            except EOFError:
                return
            if not (run := os.fork()):
                break
            asking.send(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]))
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if log is not None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.argv = ["expo", *arguments]
    importlib.import_module("expo.cli").main()


if __name__ == "__main__":
    main()

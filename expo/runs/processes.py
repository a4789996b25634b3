"""Start and stop the processes of runs."""

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil

from expo.ground.ranks import share_of_cores


@contextmanager
def importing() -> Iterator[None]:
    """Switch garbage collection off within the context: imports leave none, and the search takes a sixth of their time.

    What they made is never looked through again, unless another run of this process came before.
    """
    first = "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        gc.enable()


def run_apart(command_line: list[str], **options: Any) -> int:
    """Run a process that a Ctrl-C in the terminal does not reach: this one forwards the signal and waits."""
    if multiprocessing.current_process().name != "MainProcess":  # in a launcher's worker, which has only to wait
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with(os.getppid(), signal.SIGKILL)  # else it would wait for ever for more; the run goes on to its end
    return subprocess.run(command_line, check=False, start_new_session=True, **options).returncode


def end_with(parent: int, number: int) -> None:
    """Let the kernel end this process, by a signal, when the one that has started it ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), number)


def run_environment(jobs: int) -> dict[str, str]:
    """Return the environment of one of `jobs` runs at a time: its share of the cores, if the user sets no threads."""
    return {"OMP_NUM_THREADS": share_of_cores(jobs)} | os.environ | {"EXPO_SWEEP": "1"}


def stop_runs(number: int, frame: FrameType | None) -> None:
    """Start no further run of a sweep, hand the signal to those under way, and wait for their checkpoints."""
    children = psutil.Process().children(recursive=True)
    runs = [child for child in children if "expo" in child.cmdline()]
    launchers = [child for child in children if any("loky" in word for word in child.cmdline())]
    for launcher in launchers:
        launcher.suspend()  # killed now, joblib would kill the runs of all of them
    for run in runs:
        run.send_signal(number)
    while any(_alive(run) for run in runs):
        time.sleep(0.1)
    for launcher in launchers:
        launcher.kill()
    os._exit(128 + number)


def _alive(process: psutil.Process) -> bool:
    """Return whether a process is running. A zombie, whose suspended parent has not yet reaped it, is not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

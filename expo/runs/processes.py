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
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

import expo
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
    obey_launcher()
    return subprocess.run(command_line, check=False, start_new_session=True, **options).returncode


def run_expo(arguments: list[str], environment: dict[str, str], log: Path | None = None, warm: bool = False) -> int:
    """Run `expo` in a process of its own, which a Ctrl-C in the terminal does not reach. Returns its exit code.

    Args: log, a file for what it prints, None for this process's own output; warm, fork a warm process for it.
    """
    if warm and sys.platform == "linux":
        obey_launcher()
        try:
            asked = _server(_edited(), tuple(environment.items()))
            asked.send((arguments, log, os.getcwd()))
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
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        command = [sys.executable, "-m", "expo.jobs.warm", str(theirs.fileno())]
        subprocess.Popen(  # in a group of its own, which a Ctrl-C in the terminal does not reach
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=dict(environment), process_group=0
        )
    return ours


def obey_launcher() -> None:
    """Let a launcher's worker, which has only to wait for its run, end with the launcher, and not by a Ctrl-C."""
    if multiprocessing.current_process().name != "MainProcess":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with(os.getppid(), signal.SIGKILL)  # else it would wait for ever for more; the run goes on to its end


def end_with(parent: int, number: int) -> None:
    """Let the kernel end this process, by a signal, when the one that has started it ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), number)


def run_environment(jobs: int) -> dict[str, str]:
    """Return the environment of one of `jobs` runs at a time: its share of the cores, if the user sets no threads."""
    return {"OMP_NUM_THREADS": share_of_cores(jobs)} | os.environ | {"EXPO_SWEEP": "1"}


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        named.split(",") if named and torch.cuda.is_available() else [str(i) for i in range(torch.cuda.device_count())]
    )


def stop_runs(number: int, frame: FrameType | None) -> None:
    """Start no further run of a sweep, hand the signal to those under way, and wait for their checkpoints."""
    print("expo: the sweep stops; the same command goes on", file=sys.stderr, flush=True)
    children = psutil.Process().children(recursive=True)
    runs = [child for child in children if _is_run(child)]
    launchers = [child for child in children if any("loky" in word for word in _command_line(child))]
    for launcher in launchers:
        _send(launcher, signal.SIGSTOP)  # killed now, joblib would kill the runs of all of them
    for run in runs:
        _send(run, number)
    while any(_alive(run) for run in runs):
        time.sleep(0.1)
    for launcher in launchers:
        _send(launcher, signal.SIGKILL)
    os._exit(128 + number)


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _is_run(process: psutil.Process) -> bool:
    """Return whether a process is a run: a fork of `expo.jobs.warm`, which has its command line, leads a session."""
    line = _command_line(process)
    try:
        return "expo" in line or ("expo.jobs.warm" in line and os.getsid(process.pid) == process.pid)
    except ProcessLookupError:  # it has ended meanwhile
        return False


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    """Return whether a process is running. A zombie, whose suspended parent has not yet reaped it, is not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

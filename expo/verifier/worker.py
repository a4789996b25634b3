"""A process that judges one answer at a time and can be killed. Imports no torch."""

import ctypes
import importlib
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import psutil

from expo.verifier.answers import Verdict
from expo.verifier.judges import function_at, score_of, verdict_of

START_LIMIT_S = 60
BACKSTOP = 5  # wall-clock time per CPU time that a worker may take
LEAST_BACKSTOP_S = 30.0  # of wall-clock time: a machine may be busy for so long
SHORTEST_WAIT_S = 0.02
# prctl and /proc are Linux's. Elsewhere a worker has no limit of memory, and a hung one may outlive a killed trainer.
CONFINES = sys.platform == "linux"


class Worker:
    """A process that judges one answer at a time, replaced when it dies or is killed."""

    # forkserver: a replacement starts in milliseconds from a process that has the imports done and no threads;
    # plain fork would copy the trainer's locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["expo.verifier.worker", "expo.verifier.warm"])

    def __init__(self, memory_mb: int, module: str = "expo.verifier.answers"):
        self.memory_mb, self.module = memory_mb, module
        self._spawn()

    def _spawn(self, again: bool = True) -> None:
        """Start the process. Args: again, whether one that fails is replaced. Raises OSError where none begins."""
        _start_forkserver()
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=work, args=(theirs, self.memory_mb, self.module), daemon=True)
        with _without_main():
            self.process.start()
        theirs.close()
        try:
            if not self.pipe.poll(START_LIMIT_S):  # ready: the imports do not count against an answer's time
                raise TimeoutError(f"a worker was not ready after {START_LIMIT_S} s")
            self.pipe.recv()
        except (EOFError, OSError):  # stopped or killed before it could begin
            self.kill()
            if not again:
                raise
            self._spawn(again=False)

    def _wait(self, timeout_s: float) -> bool:
        """Return whether an answer came in time. Raises TimeoutError where none did, though the
        worker has hardly worked."""
        began, latest = _cpu_s(self.process.pid), time.monotonic() + max(BACKSTOP * timeout_s, LEAST_BACKSTOP_S)
        left = timeout_s
        while not self.pipe.poll(max(left, SHORTEST_WAIT_S)):
            left = timeout_s - (_cpu_s(self.process.pid) - began)
            if left <= 0:
                return False
            if time.monotonic() >= latest:
                raise TimeoutError
        return True

    def kill(self) -> None:
        """End the process and every process that a user's judge has started in it."""
        if self.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # gone, or not ready yet: then it leads no group
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def judge(self, function: str, arguments: tuple[Any, ...], timeout_s: float) -> tuple[Verdict, float, str, float]:
        """Return the verdict of a function, the worker's peak memory in MiB, what the function raised ("": nothing),
        and its score.

        `timeout_s` is the worker's own CPU time, so that a busy machine changes no verdict; of wall-clock time it has
        BACKSTOP times as much, and LEAST_BACKSTOP_S at least, for what hangs without working. What may not be the
        answer's doing is judged once more: a worker that did not get to work, and one that died.
        """
        for last in (False, True):
            if not self.process.is_alive():
                self._spawn()
            again = not last
            try:
                self.pipe.send((function, arguments))
                if self._wait(timeout_s):
                    judged: tuple[Verdict, float, str, float] = self.pipe.recv()
                    return judged
                verdict, again = Verdict.TIMEOUT, False
            except TimeoutError:
                verdict = Verdict.TIMEOUT
            except (EOFError, OSError):  # died over this answer: memory limit below Python, or a crash in C
                verdict = Verdict.UNPARSEABLE
            peak_mb = _peak_mb(self.process.pid)
            self.kill()
            self._spawn()
            if not again:
                break
        return verdict, peak_mb, "", 0.0


_MAIN = threading.Lock()


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from importing the user's script again, which may have no `if __name__ == "__main__"`."""
    with _MAIN:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _cpu_s(pid: int | None) -> float:
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return math.inf
    return float(used.user + used.system)


def _start_forkserver() -> None:
    """Start the process that workers fork from, if it does not run, with a fixed hash seed: sympy's verdicts on odd
    input depend on the order of its sets, and the same run must give the same verdicts."""
    seed = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    forkserver.ensure_running()
    if seed is None:
        del os.environ["PYTHONHASHSEED"]
    else:
        os.environ["PYTHONHASHSEED"] = seed


def _let_go_of_the_forkserver() -> None:
    """Close the worker's copy of the pipe by which its parent sees that the trainer is gone. Else a worker that hangs
    keeps the forkserver, and so itself, alive for ever after a trainer that was killed."""
    server: Any = vars(forkserver)["_forkserver"]
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


def _peak_mb(pid: int | None) -> float:
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")), 0.0)
    except OSError:
        return 0.0


def work(pipe: Connection, memory_mb: int, module: str = "expo.verifier.answers") -> None:
    """Judge answers until the parent is gone: the main loop of a worker. Args: module, of the judge's function."""
    import math_verify  # noqa: F401  (counted in the memory it starts with)

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that its own limits are off
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent's to handle; it ends its workers itself
    os.setpgid(0, 0)  # so that what a judge of one's own starts ends with it
    _let_go_of_the_forkserver()
    with suppress(Exception):  # else the first answer would pay for what it imports; what it raises, each answer tells
        importlib.import_module(module)
    if CONFINES:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not even a hung worker outlives a killed trainer
        with open("/proc/self/statm") as statm:
            started_with = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (started_with + memory_mb * 2**20,) * 2)
    with suppress(EOFError, OSError):  # the parent is gone
        pipe.send("ready")
        while True:
            function, arguments = pipe.recv()
            raised, score = "", 0.0
            try:
                returned = function_at(function)(*arguments)
                verdict, score = verdict_of(returned), score_of(returned)
            except (Exception, RecursionError, MemoryError) as error:
                # Whatever a parser raises on what a model wrote, the answer is one that cannot be read.
                verdict, raised = Verdict.UNPARSEABLE, f"{type(error).__name__}: {error}"[:200]
            pipe.send((verdict, _peak_mb(os.getpid()), raised, score))

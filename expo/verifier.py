"""Is a completion's final answer right? math-verify in worker processes that can be killed.

An answer costs at most `timeout_s` of wall clock and `memory_mb` of memory, whatever it holds, and holds up nothing but
itself. Works from any thread. Imports no torch: the workers import this module.
"""

import ctypes
import logging
import multiprocessing
import os
import queue
import re
import resource
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any


class Verdict(StrEnum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{}` (or `\fbox{}`) that closes, nested braces included; None where there is none.

    One pass with a stack: a megabyte of unbalanced braces costs no more than a megabyte of text.
    """
    found: tuple[int, int] | None = None
    stack: list[tuple[int, bool]] = []  # (start of the content, whether it is a box)
    for token in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        if token[0] == "}" and stack:
            start, box = stack.pop()
            if box and (found is None or start > found[0]):
                found = (start, token.start())
        elif token[0].endswith("{") and token[0] != r"\{":
            stack.append((token.end(), token[0] != "{"))
    return text[slice(*found)].strip() if found else None


def normalized(answer: str) -> str:
    r"""The answer without what never changes its value: white space, math delimiters, `\left`/`\right`, a final period."""
    answer = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\$", "", answer)
    answer = re.sub(r"\\[!,;: ]|\s+", " ", answer)
    # Between two words or numbers a space means something: "1 1/2" is not "11/2".
    answer = re.sub(r"(?<!\w) +| +(?!\w)", "", answer)
    return answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").removesuffix(".")


# Integers, and bracketed integers or tuples of them: of one kind, they are equal exactly where the digits are.
_INTEGER = r"(?:0|-?[1-9][0-9]{0,15})"
_PLAIN = [re.compile(_INTEGER), re.compile(rf"\({_INTEGER}(?:,{_INTEGER})*\)")]


def fast_verdict(answer: str, gold: str) -> Verdict | None:
    """The verdict where comparing strings settles it; None where math-verify has to look."""
    answer, gold = normalized(answer), normalized(gold)
    if answer == gold:
        return Verdict.CORRECT
    if any(kind.fullmatch(answer) and kind.fullmatch(gold) for kind in _PLAIN):
        return Verdict.INCORRECT
    return None


@dataclass
class Verifier:
    """Scores completions against gold answers in worker processes. Close it, or use it as a context.

    One thread per worker hands it one answer at a time and kills it when time is up. (pebble's pool kills a hung
    task too, but by its source it breaks for good when a worker dies idle.)

    Args: workers; timeout_s, wall-clock seconds for one answer; memory_mb, address space of a worker beyond what it
    starts with, MiB; max_answer_chars, a longer final answer is unparseable.
    """

    workers: int = 2
    timeout_s: float = 3.0
    memory_mb: int = 1024
    max_answer_chars: int = 400
    peak_mb: float = field(default=0.0, init=False)  # of the largest worker so far
    _tasks: "queue.SimpleQueue[tuple[str, str, Future[Verdict]] | None]" = field(
        default_factory=queue.SimpleQueue, init=False
    )
    _threads: list[threading.Thread] = field(default_factory=list, init=False)
    _lock: Any = field(default_factory=threading.Lock, init=False)

    def submit(self, completion: str, gold: str) -> "Future[Verdict]":
        """Judge one completion. The future ends in a Verdict, or in VerifierError where no worker can be started."""
        result: Future[Verdict] = Future()
        answer = last_boxed(completion)
        if not answer or len(answer) > self.max_answer_chars:
            result.set_result(Verdict.UNPARSEABLE)
        elif (fast := fast_verdict(answer, gold)) is not None:
            result.set_result(fast)
        else:
            self._start()
            self._tasks.put((answer, gold, result))
        return result

    def verify(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Verdicts in order, all judged at once by the workers."""
        return [future.result() for future in [self.submit(c, g) for c, g in zip(completions, golds, strict=True)]]

    def close(self) -> None:
        """End the workers after what is queued."""
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._tasks.put(None)
        for thread in threads:
            thread.join()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        with self._lock:
            if not self._threads:
                self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.workers)]
                for thread in self._threads:
                    thread.start()

    def _serve(self) -> None:
        worker = None
        while (task := self._tasks.get()) is not None:
            answer, gold, result = task
            try:
                worker = worker or _Worker(self.memory_mb)
                verdict, peak_mb = worker.judge(answer, gold, self.timeout_s)
                self.peak_mb = max(self.peak_mb, peak_mb)
                result.set_result(verdict)
            except (OSError, EOFError) as error:
                # No process could be started (no memory, no file handles): the run must hear of it, not hang.
                worker = None
                result.set_exception(VerifierError(f"no worker process could be started: {error!r}"))
        if worker is not None:
            worker.kill()


class VerifierError(Exception):
    """The verifier itself is broken: no verdict can be had."""


START_LIMIT_S = 60


class _Worker:
    """A process that judges one answer at a time, replaced when it dies or is killed."""

    # forkserver: a replacement starts in milliseconds from a process that has the imports done and no threads;
    # plain fork would copy the trainer's locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["expo.verifier", "math_verify"])

    def __init__(self, memory_mb: int):
        self.memory_mb = memory_mb
        self._spawn()

    def _spawn(self) -> None:
        _start_forkserver()
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_work, args=(theirs, self.memory_mb), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(START_LIMIT_S):  # ready: the imports do not count against an answer's time
            raise OSError(f"a worker was not ready after {START_LIMIT_S} s")
        self.pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def judge(self, answer: str, gold: str, timeout_s: float) -> tuple[Verdict, float]:
        """The verdict and the worker's peak memory in MiB."""
        if not self.process.is_alive():
            self._spawn()
        try:
            self.pipe.send((answer, gold))
            if self.pipe.poll(timeout_s):
                return self.pipe.recv()
            verdict = Verdict.TIMEOUT
        except (EOFError, OSError):  # died over this answer: memory limit below Python, or a crash in C
            verdict = Verdict.UNPARSEABLE
        peak_mb = _peak_mb(self.process.pid)
        self.kill()
        self._spawn()
        return verdict, peak_mb


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


def _peak_mb(pid: int | None) -> float:
    """Peak resident memory of a process in MiB; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")), 0.0)
    except OSError:
        return 0.0


def _work(pipe: Connection, memory_mb: int) -> None:
    """A worker's life: judge until the parent is gone."""
    import math_verify  # noqa: F401  (counted in the memory it starts with)

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that its own limits are off
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent's to handle; it ends its workers itself
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not even a hung worker outlives a killed trainer
    with open("/proc/self/statm") as statm:
        started_with = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (started_with + memory_mb * 2**20,) * 2)
    pipe.send("ready")
    while True:
        try:
            answer, gold = pipe.recv()
        except EOFError:
            return
        try:
            verdict = _judge(answer, gold)
        except (Exception, RecursionError, MemoryError):
            # Whatever a parser raises on what a model wrote, the answer is one that cannot be read.
            verdict = Verdict.UNPARSEABLE
        pipe.send((verdict, _peak_mb(os.getpid())))


@lru_cache(maxsize=4096)
def _judge(answer: str, gold: str) -> Verdict:
    """Runs in a worker. Cached, because a group often gives the same wrong answer many times."""
    from math_verify import parse, verify

    # Without its own alarm-based limits: the kill is the limit, and nothing escapes it.
    answers, golds = (parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (answer, gold))
    if not answers:
        return Verdict.UNPARSEABLE
    if _is_finite_number(golds) and _has_infinity(answers):
        return Verdict.INCORRECT  # sympy's word on 12 == oo**oo depends on the hash seed
    # In this direction only: taken as the gold answer, what a model writes can equal any number.
    return Verdict.CORRECT if verify(golds, answers, timeout_seconds=None) else Verdict.INCORRECT


def _is_finite_number(parsed: list[Any]) -> bool:
    return bool(parsed) and bool(getattr(parsed[0], "is_number", False)) and bool(parsed[0].is_finite)


def _has_infinity(parsed: list[Any]) -> bool:
    from sympy import S

    return hasattr(parsed[0], "has") and parsed[0].has(S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN)

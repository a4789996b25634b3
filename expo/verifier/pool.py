"""Pool of verifiers: is a completion's final answer right? Slow answers are judged in worker processes that can be
killed.

An answer costs at most `verifier.timeout_s` of a worker's CPU time and `verifier.memory_mb` of memory, whatever it
holds, and holds up nothing but itself. Works from any thread.
"""

import atexit
import logging
import queue
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from expo.config import UserError, VerifierConf, build
from expo.ground.problem import Problem
from expo.ground.ranks import ALONE, Ranks, share_of_cores
from expo.verifier.answers import Verdict
from expo.verifier.extraction import Extraction, extraction
from expo.verifier.judges import ByFunction, Judge, Task, score_of, verdict_of
from expo.verifier.worker import CONFINES, Worker

log = logging.getLogger(__name__)
MOST = 32  # workers, where nobody says how many: each takes some 100 MB
TOLD = 5  # messages of what a judge raised: a scorer may put the answer into each


class Judging(Future[Verdict]):
    """A pending verdict and its score: 1 for a right answer, else the judge's partial score, mostly 0."""

    score = 0.0
    raised = ""  # what a judge of one's own raised


@dataclass(eq=False)
class Verifier:
    """Scores completions against gold answers in worker processes. Close it, or use it as a context; Python's end
    closes it, too.

    One thread per worker hands it one answer at a time and kills it when time is up. (pebble's pool kills a hung task
    too, but by its source it breaks for good when a worker dies idle.)

    `conf.memory_mb` is the address space of a worker beyond what it starts with. `ranks` are the processes of the run,
    which judge a share each. `final` is `prompts.final`: how a text states an answer that a pattern looks for.
    """

    conf: VerifierConf = field(default_factory=VerifierConf)
    ranks: Ranks = ALONE
    final: str = "{answer}"
    peak_mb: float = field(default=0.0, init=False)  # of the largest worker so far
    judge: Judge = field(init=False)
    extraction: Extraction = field(init=False)
    _tasks: "queue.SimpleQueue[tuple[Task, Judging] | None]" = field(default_factory=queue.SimpleQueue, init=False)
    _raised: set[str] = field(default_factory=set, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False)
    _lock: Any = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.judge = build(self.conf, of=Judge)
        self.extraction = extraction(self.conf.extract, self.final)

    def submit(self, completion: str, problem: Problem | str) -> Judging:
        """Judge one completion: at once where the judge settles it, else in a worker, where verdicts of math-verify are
        cached. The future ends in a Verdict, or in VerifierError where no worker can be started. Args: problem, or its
        gold answer."""
        if isinstance(problem, str):
            problem = Problem("", "", problem)
        result = Judging()
        answer = self.extraction.of(completion)
        if not answer or len(answer) > self.conf.max_answer_chars:
            result.set_result(Verdict.UNPARSEABLE)
        elif (known := self.judge.settle(answer, problem)) is not None:
            result.set_result(self._settled(known))
            result.score = score_of(known)
        else:
            self._start()
            self._tasks.put((self.judge.task(answer, problem), result))
        return result

    def _settled(self, known: object) -> Verdict:
        try:
            return verdict_of(known)
        except TypeError as error:
            judge = type(self.judge).__name__
            raise UserError(f"verifier._target_: {judge}.settle: {error}; None sends the answer to a worker") from error

    def verify(self, completions: Sequence[str], problems: Sequence[Problem | str]) -> list[Verdict]:
        return [verdict for verdict, _ in self.score(completions, problems)]

    def score(self, completions: Sequence[str], problems: Sequence[Problem | str]) -> list[tuple[Verdict, float]]:
        """Return verdicts and scores in order, as `verify`. Each device judges its share: all call it with the same."""
        pairs = self.ranks.own(list(zip(completions, problems, strict=True)))
        futures = [self.submit(c, p) for c, p in pairs]
        return self.ranks.whole([(future.result(), future.score) for future in futures])

    def drop(self) -> None:
        while not self._tasks.empty():
            self._tasks.get()

    def close(self) -> None:
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
                if not CONFINES:
                    log.warning(
                        "verifier.memory_mb=%d: not kept on %s; an answer's time is limited as ever",
                        self.conf.memory_mb,
                        sys.platform,
                    )
                OPEN.add(self)
                count = self.conf.workers or min(MOST, int(share_of_cores(self.ranks.count)))
                self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
                for thread in self._threads:
                    thread.start()

    def _serve(self) -> None:
        worker = None
        while (task := self._tasks.get()) is not None:
            (function, arguments), result = task
            try:
                worker = worker or Worker(self.conf.memory_mb, function.rpartition(".")[0])
                verdict, peak_mb, raised, result.score = worker.judge(function, arguments, self.conf.timeout_s)
                result.raised = raised
                self.peak_mb = max(self.peak_mb, peak_mb)
                self._tell(function, raised)
                result.set_result(verdict)
            # Whatever it is (no memory or file handles, mostly), who waits must hear of it, not hang.
            except Exception as error:
                if worker is not None:
                    worker.kill()
                worker = None
                result.set_exception(VerifierError(f"no worker process can judge: {error!r}"))
        if worker is not None:
            worker.kill()

    def _tell(self, function: str, raised: str) -> None:
        """Warn once of what a user's judge raised: the answer counts as unparseable. math-verify raises on much."""
        if raised and raised not in self._raised and len(self._raised) < TOLD and isinstance(self.judge, ByFunction):
            self._raised.add(raised)
            log.warning("verifier.function=%s: raised %s; such an answer counts as unparseable", function, raised)


# Verifiers with threads: Python cannot end while a worker process lives, and a worker ignores SIGTERM.
OPEN: "weakref.WeakSet[Verifier]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for verifier in list(OPEN):
        verifier.drop()
        verifier.close()


class VerifierError(Exception):
    """The verifier itself is broken and gives no verdict."""

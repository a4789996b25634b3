import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from expo.config import VerifierConf
from expo.ground.ranks import Ranks
from expo.verifier import pool, worker
from expo.verifier.answers import Verdict, fast_verdict
from expo.verifier.extraction import last_boxed
from expo.verifier.pool import Verifier

JUDGE = "expo.verifier.answers.math_verify_verdict"
HOSTILE = [
    "9^{9^{9^{9^9}}}",
    "2^{2^{2^{2^{2^{2}}}}}",
    "10^{10^{10^{10}}}",
    "(10^{10})!",
    "99999999!",
    "((9!)!)!",
    "7!!!!!!!",
    "(" * 150 + "1" + ")" * 150,
    "(" * 300,
    ")" * 300,
    "{" * 50 + "1" + "}" * 50,
    r"\frac{" * 60 + "1" + "}{2}" * 60,
    r"\sqrt{" * 90 + "2" + "}" * 90,
    r"\left(" * 60,
    r"\begin{pmatrix}" * 20,
    "\x00\x01\x02",
    "\x1b[2J",
    "\u202e12",
    "\ud7ff" * 50,
    r"\sum_{i=1}^{10^{12}} i^i",
    r"\prod_{k=1}^{10^{9}} k",
    r"\int_0^1 x^{x^{x^x}} dx",
    r"\lim_{x \to 0} \frac{\sin^{99}(x)}{x^{99}}",
    "(x+1)^{99999}",
    "(x+y+z)^{500}",
    r"\binom{10^9}{10^8}",
    r"\binom{99999}{49999}",
    "1/0",
    r"\frac{0}{0}",
    r"\infty^\infty",
    "0^{0^0}",
    r"\sin(\cos(\tan(" * 25,
    "x=" * 100,
    "1,2," * 90,
    r"\{1,2,3" * 40,
    "1" * 399,
    "1e999999999",
    "-" * 200 + "1",
    "+-" * 150 + "3",
    r"\log_{\log_{\log_2 3} 4} 5",
    r"5^{5^{5^{5^{5^{5^{5^{5}}}}}}}",
    "x^{1000000}-1",
    r"\text{" * 60,
    "e^{i\\pi" * 30,
    "3^{3^{3^{3^{3}}}} \\mod 7",
    "__import__('os').system('true')",
    "lambda: 1",
    "%s%s%n",
    "$$$$$$",
    r"\\\\\\\\",
]


@pytest.fixture(scope="module")
def verifier():
    with Verifier(VerifierConf(workers=2, timeout_s=1.5, memory_mb=512)) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} then \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{\{1,\{2\}\}}", r"\{1,\{2\}\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"{ \boxed{6}", "6"),
        (r"\boxed {8}", "8"),
        ("no box", None),
        (r"\boxed{}", ""),
        (r"\boxed{" * 100_000, None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("12", " 12. ", Verdict.CORRECT),
        ("( 9 , 14 )", "(9,14)", Verdict.CORRECT),
        ("(14,9)", "(9,14)", Verdict.INCORRECT),
        ("12", "13", Verdict.INCORRECT),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", Verdict.CORRECT),
        ("0.5", r"\frac{1}{2}", Verdict.CORRECT),
        ("1,2", "2,1", Verdict.CORRECT),
        ("007", "7", Verdict.CORRECT),
        ("1 1/2", "11/2", Verdict.INCORRECT),  # a space between numbers means something
        (r"2\,1/2", "21/2", Verdict.INCORRECT),
        ("(5)", "5", Verdict.CORRECT),
        ("-0", "0", Verdict.CORRECT),
        ("x + 1", "x+1", Verdict.CORRECT),
        ("1+x", "x+1", None),  # algebra: math-verify decides
        (r"\sqrt{4}", "2", None),
    ],
)
def test_fast_verdict_only_where_the_kind_settles_it(answer, gold, verdict):
    assert fast_verdict(answer, gold) is verdict


def test_verdicts():
    cases = {
        (r"\boxed{0.5}", r"\frac{1}{2}"): Verdict.CORRECT,
        (r"\boxed{x^2+2x+1}", "(x+1)^2"): Verdict.CORRECT,
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}"): Verdict.INCORRECT,
        ("no answer", "3"): Verdict.UNPARSEABLE,
        (r"\boxed{" + "1+" * 5000 + "1}", "3"): Verdict.UNPARSEABLE,
    }
    completions, golds = zip(*cases, strict=True)
    with Verifier(VerifierConf(workers=1, timeout_s=60)) as patient:  # a busy machine is no reason for another verdict
        assert patient.verify(completions, golds) == list(cases.values())


def test_every_device_has_its_share_of_the_cores(monkeypatch):
    started = []
    monkeypatch.setattr("threading.Thread.start", lambda thread: started.append(thread))
    cases = [(16, 1, None, 16), (16, 3, None, 5), (2, 8, None, 1), (96, 1, None, 32), (16, 1, 3, 3)]
    for cores, ranks, conf, expected in cases:
        started.clear()
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False)
        own = Verifier(VerifierConf(workers=conf), Ranks(0, ranks))
        own._start()
        assert len(started) == expected, (cores, ranks)
        own._threads = []  # none was started


@pytest.mark.slow
def test_hostile_answers_never_raise_and_the_pool_goes_on(verifier):
    megabytes = [r"\boxed{" + c * 1_000_000 + "}" for c in ("1", "(", "{", "\\frac")]
    texts = [rf"\boxed{{{answer}}}" for answer in HOSTILE] + megabytes
    assert len(texts) >= 40
    verdicts = verifier.verify(texts, ["12"] * len(texts))
    assert [text for text, verdict in zip(texts, verdicts, strict=True) if verdict is Verdict.CORRECT] == []
    assert Verdict.TIMEOUT in verdicts
    assert verifier.verify([r"\boxed{0.5}"], [r"\frac{1}{2}"]) == [Verdict.CORRECT]


@pytest.mark.parametrize("seed", ["0", "7"])  # seed 7 made math-verify call this equal
def test_infinity_equals_no_number_whatever_the_hash_seed(seed):
    import os
    import subprocess
    import sys

    script = (
        r"from expo.verifier.answers import math_verify_verdict as judge; print(judge(r'\infty^\infty', '12').value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )
    assert done.stdout.strip() == "incorrect"


@pytest.mark.runs
def test_a_hung_answer_delays_only_itself(verifier):
    hung = verifier.submit(r"\boxed{9^{9^{9^{9^9}}}}", "12")
    others = [verifier.submit(r"\boxed{\sqrt{4}}", "2") for _ in range(20)]
    assert [other.result() for other in others] == [Verdict.CORRECT] * 20
    assert hung.result() is Verdict.TIMEOUT


def test_a_worker_that_dies_idle_is_replaced():
    import os
    import signal

    from expo.verifier.worker import Worker

    worker = Worker(512)
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join()
    assert worker.judge(JUDGE, (r"\sqrt{4}", "2"), 3.0)[0] is Verdict.CORRECT
    worker.kill()


def test_a_pool_that_cannot_start_a_worker_says_so(monkeypatch):
    from expo.verifier.pool import VerifierError
    from expo.verifier.worker import Worker

    def no_process(self):
        raise OSError("no more processes")

    monkeypatch.setattr(Worker, "_spawn", no_process)
    broken = Verifier(VerifierConf(workers=1))
    for _ in range(2):
        with pytest.raises(VerifierError, match="worker"):
            broken.verify([r"\boxed{\sqrt{4}}"], ["2"])
    broken.close()


def test_works_from_any_thread(verifier):
    found = []
    thread = threading.Thread(target=lambda: found.extend(verifier.verify([r"\boxed{\sqrt{4}}"] * 3, ["2"] * 3)))
    thread.start()
    thread.join()
    assert found == [Verdict.CORRECT] * 3


def test_closing_twice_and_using_again(verifier):
    with Verifier(VerifierConf(workers=1)) as other:
        assert other.verify([r"\boxed{\sqrt{4}}"], ["2"]) == [Verdict.CORRECT]
        other.close()
        assert other.verify([r"\boxed{\sqrt{4}}"], ["2"]) == [Verdict.CORRECT]


@pytest.mark.runs
def test_where_linux_is_not_answers_are_judged_and_the_missing_limit_is_said(monkeypatch, caplog):
    """prctl and /proc are absent on macOS: a worker does without them."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(worker, "CONFINES", False)
    monkeypatch.setattr(worker.ctypes, "CDLL", lambda _: pytest.fail("there is no prctl"))
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.work, args=(theirs, 64), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    ours.send((JUDGE, (r"\sqrt{4}", "2")))
    assert ours.recv()[0] is Verdict.CORRECT
    process.kill()
    monkeypatch.setattr(pool, "CONFINES", False)
    with Verifier(VerifierConf(workers=1)) as own:
        assert own.verify([r"\boxed{\sqrt{4}}"], ["2"]) == [Verdict.CORRECT]
    assert "verifier.memory_mb=1024: not kept on" in caplog.text


def test_a_script_that_neither_closes_it_nor_guards_its_main_ends(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from expo.verifier.pool import Verifier\n"
        "verifier = Verifier()\n"
        r"print(verifier.verify([r'\boxed{\sqrt{4}}'], ['2'])[0].value)"
        "\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "correct\n"
    assert done.stderr == ""


def test_a_busy_machine_changes_no_verdict(monkeypatch):
    """A worker that gets no CPU is waited for; the limit is its own time."""
    monkeypatch.setattr(worker, "LEAST_BACKSTOP_S", 0.5)
    one = worker.Worker(512)
    try:
        os.kill(one.process.pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (one.process.pid, signal.SIGCONT)).start()
        assert one.judge(JUDGE, (r"\sqrt{4}", "2"), 0.5)[0] is Verdict.CORRECT
        os.kill(one.process.pid, signal.SIGSTOP)
        assert one.judge(JUDGE, (r"\sqrt{4}", "2"), 0.2)[0] is Verdict.CORRECT  # after the backstop, by another worker
        stopped = threading.Timer(0.3, lambda: os.kill(one.process.pid, signal.SIGKILL))
        os.kill(one.process.pid, signal.SIGSTOP)
        stopped.start()
        assert (
            one.judge(JUDGE, (r"\sqrt{4}", "2"), 5.0)[0] is Verdict.CORRECT
        )  # killed over it by others: judged once more
    finally:
        one.kill()


HANGING = r"""
import sys
from expo.config import VerifierConf
from expo.verifier.pool import Verifier

verifier = Verifier(VerifierConf(workers=1, timeout_s=60))
hanging = verifier.submit(r"\boxed{9^{9^{9^{9}}}+1}", "12")
while not any(thread.is_alive() for thread in verifier._threads):
    pass
print("begun", flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_a_worker_that_hangs_does_not_outlive_a_killed_trainer(tmp_path):
    """The forkserver learns of the trainer's end by a pipe, of which each worker used to hold an end."""
    trainer = subprocess.Popen(
        [sys.executable, "-c", HANGING], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert trainer.stdout.readline() == b"begun\n"
    children = psutil.Process(trainer.pid).children
    end = time.monotonic() + 30
    while not any(p.cpu_times().user > 2 for p in children(recursive=True)):
        assert time.monotonic() < end, "no worker works"
        time.sleep(0.05)
    family = children(recursive=True)
    assert len(family) == 3  # the tracker of resources, the forkserver, the worker
    trainer.kill()
    trainer.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        process.kill()
    assert alive == []

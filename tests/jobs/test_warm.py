"""Runs of a sweep that are forks of a warm process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from expo.runs import processes
from expo.runs.processes import run_environment, run_expo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forks on Linux alone")


def servers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "expo.jobs.warm" in child.cmdline()]


def test_runs_are_forks_of_one_process_until_the_code_is_edited_or_it_is_killed(tmp_path, monkeypatch):
    log, environment = tmp_path / "log", run_environment(1)
    assert run_expo(["--version"], environment, log, warm=True) == 0
    assert log.read_text().startswith("expo ")
    (server,) = servers()
    assert run_expo(["tarin"], environment, log, warm=True) == 2
    assert "did you mean train?" in log.read_text()
    assert servers() == [server]
    monkeypatch.chdir(tmp_path)  # as hydra.job.chdir does for each run
    assert run_expo(["--version"], environment, Path("here"), warm=True) == 0
    assert (tmp_path / "here").is_file()
    monkeypatch.setattr(processes, "_edited", lambda: 1)  # a file of the package was written
    assert run_expo(["--version"], environment, warm=True) == 0
    server.wait()
    (server,) = servers()
    server.kill()
    server.wait()
    assert run_expo(["--version"], environment, log, warm=True) == 0  # from nothing
    assert log.read_text().startswith("expo ")
    assert not servers()


def test_runs_that_end_while_a_sweep_stops_are_none_to_stop(monkeypatch):
    class Gone:
        pid = 2**22 + 1  # beyond the kernel's highest

        def __init__(self, word=""):
            self.word = word

        def children(self, recursive):
            return [Gone("expo"), Gone("loky"), Gone("expo.jobs.warm")]

        def cmdline(self):
            return [self.word]

        def status(self):
            raise psutil.NoSuchProcess(self.pid)

        def send_signal(self, number):
            raise psutil.NoSuchProcess(self.pid)

        suspend = kill = status

    ended = []
    monkeypatch.setattr(psutil, "Process", Gone)
    monkeypatch.setattr("os._exit", ended.append)
    processes.stop_runs(signal.SIGINT, None)
    assert ended == [128 + signal.SIGINT]


SWEEP = """\
import signal, sys
from expo.runs.processes import run_environment, run_expo, stop_runs

signal.signal(signal.SIGTERM, stop_runs)
run_expo(sys.argv[1:], run_environment(1), warm=True)
"""


@pytest.mark.runs
@pytest.mark.long
def test_a_stopped_sweep_stops_the_fork_with_a_checkpoint(tmp_path):
    train = ["train", "debug=tiny", "trainer.max_steps=5000", "evaluation.every=0", f"output_dir={tmp_path}"]
    with subprocess.Popen([sys.executable, "-c", SWEEP, *train], stdout=subprocess.DEVNULL) as sweep:
        while not list(tmp_path.glob("*/*/checkpoints/*.ckpt")):
            assert sweep.poll() is None
            time.sleep(0.1)
        children = psutil.Process(sweep.pid).children(recursive=True)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait() == 128 + signal.SIGTERM
    (summary,) = tmp_path.glob("*/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "stopped"
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)

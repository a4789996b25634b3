"""Hydra's sweepers that go by a score, such as Optuna's: a stand-in, whose runs are made up."""

import json
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
from conftest import compose_config
from hydra.core.plugins import Plugins

from expo import cli
from expo.config import run_dir
from expo.runs import processes


@pytest.fixture
def seen(monkeypatch):
    """What the runs return, as Optuna's sweeper would have it."""
    basic = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"]
    values, sweep = [], basic.sweep

    def kept(self, arguments):
        batches = sweep(self, arguments)
        values.extend(job.return_value for batch in batches for job in batch)
        return batches

    monkeypatch.setattr(basic, "sweep", kept)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield values
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("command", "scores"), [("train", [0.25, 0.5]), ("explain", [None, None])])
def test_a_run_of_a_sweep_returns_pass_at_the_largest_k(seen, tmp_path, monkeypatch, command, scores):
    idle = "algorithm.overlong_penalty=0.5"  # here, and in a sweep that is no mistake
    line = [f"output_dir={tmp_path}", "k=[1,2]", idle]
    for seed in (0, 1):
        (folder := run_dir(compose_config(*line, f"seed={seed}"))).mkdir(parents=True)
        metrics = {"pass@1": 0.1, "pass@2": 0.25 * (seed + 1)}
        if seed:  # what a run is chosen by is not what it is judged by
            metrics = {"pass@2": 0.9, "validation/pass@2": 0.5}
        (folder / "summary.json").write_text(json.dumps({"status": "done", "metrics": metrics}))
    monkeypatch.setattr(processes, "run_expo", lambda arguments, environment, warm: 0)
    monkeypatch.setattr(sys, "argv", ["expo", command, "-m", "hydra/launcher=basic", *line, "seed=0,1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert seen == scores


WORKER = """\
import multiprocessing, sys
from expo.runs.processes import run_apart

run = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
multiprocessing.get_context("fork").Process(target=run_apart, args=(run,)).start()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux alone")
def test_a_launcher_s_worker_ends_with_a_command_that_is_killed_and_its_run_goes_on():
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline() == "begun\n"
        worker, run = psutil.Process(command.pid).children(recursive=True)
        command.kill()
        try:
            worker.wait(timeout=60)
            assert run.status() != psutil.STATUS_ZOMBIE
        finally:
            for process in (run, worker):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


@pytest.mark.parametrize("named", ["-1", "", "0,1"])
def test_no_gpu_is_counted_where_there_is_none_whatever_the_environment_names(monkeypatch, named):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert processes.visible_gpus() == []

"""`make gpu-check`: a check that fails is told, and keeps no other from being made. CI makes the checks themselves on
tiny shapes."""

import json
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import part
from benchmarks.gpu.place import NotRun, Place, needs, write_line
from expo.config import UserError, compose_config
from expo.jobs import wiring


def test_a_check_that_fails_keeps_none_from_being_made(tmp_path, monkeypatch, capsys):
    def fails(place):
        raise AssertionError("it is\nwrong")

    def cannot(place):
        raise NotRun("needs two GPUs")

    def lacks(place):
        import a_package_that_nobody_has  # noqa: F401

    def measures(place):
        place.tell({"step": 1})
        return {"line": "CPU tiny: step 1 s"}

    checks = {"first": fails, "second": cannot, "lacking": lacks, "third": measures}
    monkeypatch.setattr(part, "checks_of", lambda name, place: checks)
    monkeypatch.setattr(part, "set_up_process", lambda cfg: None)
    file = tmp_path / "results.jsonl"
    part.main("A", file, "cpu")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [told["state"] for told in found] == ["failed", "not run", "not run", "measured", "ok"]
    assert all(told["device"] and told["commit"] for told in found)
    capsys.readouterr()
    assert gpu.show(file, "A", "", tmp_path / "A.log") == 1
    out = capsys.readouterr().out
    assert "failed   first" in out
    assert "AssertionError: it is wrong" in out
    assert "needs two GPUs" in out
    assert "no a_package_that_nobody_has" in out
    assert out.rstrip().endswith("CPU tiny: step 1 s")
    assert gpu.show(file, "B", "was stopped after 3 s", tmp_path / "B.log") == 1  # before its first check
    assert "was stopped after 3 s" in capsys.readouterr().out


def test_what_a_killed_part_has_measured_is_there(tmp_path, capsys):
    file, about = tmp_path / "results.jsonl", {"part": "B", "check": "the update of 3B"}
    write_line(file, {**about, "state": "measured", "found": {"rows": 2, "peak GB": 61.5}})
    with file.open("a") as lines:
        lines.write('{"part": "B", "che')  # killed as it wrote
    assert gpu.show(file, "B", "was stopped after 130 s", tmp_path / "B.log") == 1
    out = capsys.readouterr().out
    assert "measured the update of 3B" in out
    assert "61.5" in out


def test_a_package_of_our_own_that_is_missing_is_a_failure():
    assert part.outcome(ModuleNotFoundError("no", name="vllm.lora"))["why"] == "no vllm"
    assert part.outcome(ModuleNotFoundError("no", name="expo.gone"))["state"] == "failed"
    with pytest.raises(NotRun, match="no a_package_that_nobody_has"):
        needs("a_package_that_nobody_has")


def test_the_largest_shape_comes_first(tmp_path):
    """Should the time be too short, it tells most."""
    for name in "BD":
        assert "3B" in next(iter(part.checks_of(name, Place("cuda", tmp_path))))


def test_the_checks_need_no_package_that_a_bare_gpu_machine_lacks(tmp_path):
    """vLLM, wandb, datasets and the like are not on a machine that is lent, and expo is a folder there."""
    code = """
import sys, importlib.metadata
sys.modules.update(dict.fromkeys(("vllm", "wandb", "datasets", "bitsandbytes", "trl", "mlflow", "wandb_workspaces")))
real = importlib.metadata.version
def version(name):
    if name == "expo":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
import benchmarks.gpu.part, benchmarks.gpu.__main__, expo
from expo.config import compose_config
from expo.runs.directory import Run
run = Run.find(compose_config(["dataset=ladder", "output_dir=" + sys.argv[1]]))
print(expo.__version__, "/", run.record("done")["versions"]["expo"], "/", "this is" in run.finished_line)
"""
    made = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert made.stdout.strip() == "not installed / not installed / False", made.stderr


@pytest.mark.parametrize(("gpu", "kind", "where"), [(True, "random_tiny", "cuda"), (True, "hf", "cpu"), (False, "random_tiny", "cpu")])  # fmt: skip  # noqa: E501
def test_random_weights_are_made_on_the_device(gpu, kind, where, monkeypatch):
    """A CPU takes a minute for those of 3B."""
    made = []

    def build(conf, of=None):
        if not made:
            modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
            made.append(str(modes[-1].device) if modes else "cpu")
            return None, None
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(wiring, "build", build)
    with pytest.raises(InterruptedError):
        wiring.load_model(compose_config(["dataset=ladder", "trainer.accelerator=auto", f"model={kind}"]))
    assert made == [where]


@pytest.mark.parametrize("name", "ABCDE")
def test_every_part_has_checks(name, tmp_path):
    for device in ("cpu", "cuda"):
        assert part.checks_of(name, Place(device, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["parts=Z"], "there is no part Z"),
        (["part=A"], "did you mean parts"),
        (["often"], "not an option"),
        (["seconds=long"], "seconds=long: not a number"),
        ([], "torch sees no GPU"),
    ],
)
def test_a_mistake_is_one_line(arguments, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=told):
        gpu.main(arguments)


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path, monkeypatch, capsys):
    pid = tmp_path / "pid"
    child = (
        f"import os, subprocess, sys; p = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, "
        "'w').write(str(p.pid)); p.wait()"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{child}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert gpu.main(["parts=A", "cpu=true", "seconds=3", f"output={tmp_path / 'out'}"]) == 1
    assert "was stopped after 3 s" in capsys.readouterr().out
    with suppress(psutil.NoSuchProcess):
        child_process = psutil.Process(int(pid.read_text()))
        psutil.wait_procs([child_process], timeout=20)
        assert not child_process.is_running() or child_process.status() == psutil.STATUS_ZOMBIE

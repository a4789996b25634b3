"""`make gpu-check`: a check that fails is told, and keeps no other from being made. CI makes the checks themselves on tiny shapes."""

import json
import sys
from contextlib import suppress

import psutil
import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import part
from benchmarks.gpu.place import NotRun, Place
from expo.config import UserError


def test_a_check_that_fails_keeps_none_from_being_made(tmp_path, monkeypatch, capsys):
    def fails(place):
        raise AssertionError("it is\nwrong")

    def cannot(place):
        raise NotRun("needs two GPUs")

    checks = {"first": fails, "second": cannot, "third": lambda place: {"line": "CPU tiny: step 1 s"}}
    monkeypatch.setattr(part, "checks_of", lambda name, place: checks)
    monkeypatch.setattr(part, "set_up_process", lambda cfg: None)
    file = tmp_path / "A.json"
    part.main("A", file, "cpu")
    found = json.loads(file.read_text())
    assert [told["state"] for told in found.values()] == ["failed", "not run", "ok"]
    capsys.readouterr()
    assert gpu.show(file, tmp_path / "A.log", 0) == 1
    out = capsys.readouterr().out
    assert "failed  first" in out
    assert "AssertionError: it is wrong" in out
    assert "needs two GPUs" in out
    assert out.rstrip().endswith("CPU tiny: step 1 s")
    assert (
        gpu.show(tmp_path / "nothing.json", tmp_path / "A.log", 480) == 1
    )  # a part that took too long before its first check
    assert "was stopped after 480 s" in capsys.readouterr().out


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
        ([], "torch sees no GPU"),
    ],
)
def test_a_mistake_is_one_line(arguments, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=told):
        gpu.main(arguments)


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path, monkeypatch, capsys):
    pid = tmp_path / "pid"
    child = f"import os, subprocess, sys; p = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, 'w').write(str(p.pid)); p.wait()"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{child}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(gpu, "LIMIT_S", 3)
    monkeypatch.setattr(sys, "executable", str(python))
    assert gpu.main(["parts=A", "cpu=true", f"output={tmp_path / 'out'}"]) == 1
    assert "was stopped after 3 s" in capsys.readouterr().out
    with suppress(psutil.NoSuchProcess):
        child_process = psutil.Process(int(pid.read_text()))
        psutil.wait_procs([child_process], timeout=20)
        assert not child_process.is_running() or child_process.status() == psutil.STATUS_ZOMBIE

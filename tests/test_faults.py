"""A few of the trials of tests/faults.py, and a short soak; `make soak` makes all of them."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script: str, *options: str) -> str:
    """Return what a script of tests/ prints; it must end with 0."""
    line = [sys.executable, str(HERE / script), *options]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 20])
def test_faults_break_no_promise(tmp_path, first):
    """Other trials than those of the figures in docs/reliability.md, 40 in all."""
    told = run("faults.py", "trials=20", "seed=7", f"first={first}", f"root={tmp_path}")
    assert "| all | 20 | 20 | 0 |" in told


@pytest.mark.slow
def test_a_short_soak_ends_well(tmp_path):
    [line] = run("soak.py", "part=evaluate", "problems=9000", f"root={tmp_path}").splitlines()
    told = json.loads(line)
    assert told["exit code"] == 0
    assert told["parts kept at the kill"] >= 1


def test_a_promise_that_is_broken_is_seen(tmp_path):
    """The harness itself: a file left behind, another result, and a file made again."""
    sys.path.insert(0, str(HERE))
    import faults

    assert faults.difference({"a": [1, 2]}, {"a": [1, 3]}) == "a: 1: 2 instead of 3"
    assert faults.difference({"a": 1}, {"b": 1}) == "keys ['a', 'b']"
    assert all(
        faults.TEMPORARY.search(name)
        for name in ("summary.tmp", ".step000002.ckpt.tmp", "x.123.tmp.sha256", ".final.partial")
    )
    assert not any(faults.TEMPORARY.search(name) for name in ("summary.json", "step000002.ckpt", "best.ckpt", "final"))
    (tmp_path / "outputs" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "outputs" / "checkpoints" / "x"
    path.write_text("1")
    before = faults.snapshot(tmp_path)
    assert before
    os.utime(path, ns=(1, 1))
    assert faults.snapshot(tmp_path) != before
    assert faults.flip_byte(tmp_path, random.Random(0)) == "outputs/checkpoints/x"
    assert path.read_bytes() != b"1"

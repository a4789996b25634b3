"""Small shared pieces: configs, a ladder policy, and a few rows in the formats of MATH and GSM8K."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: two processes of two threads each on two cores run about ten times slower.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from expo import config

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared" / "data"


def compose_config(*overrides: str) -> config.Config:
    return config.compose_config(overrides)


def clipped_at(low: float, high: float, ratio: str, **more: object) -> config.GRPOConf:
    """What `losses.policy_loss` takes."""
    return config.GRPOConf(clip_low=low, clip_high=high, ratio=ratio, **more)


def make_prompts(solve: str, explain: str, **more: str):
    from expo.model.prompts import Prompts

    return Prompts(config.PromptsConf(solve=solve, explain=explain, **more))


@pytest.fixture(autouse=True)
def a_users_environment():
    """Take back what a command sets for its children (`expo.cli.main`), lest the next test's processes have it, too."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory) -> Iterator[str]:
    """A program that does what this Python does, without seconds of imports (`warm.py`)."""
    from warm import write_starter

    folder = tmp_path_factory.mktemp("warm")
    write_starter(folder)
    line = [sys.executable, TESTS / "warm.py", folder]
    # A pipe each: the processes' own streams, which may be pipes or files, take over objects that can do what a pipe
    # can.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, **pipes, start_new_session=True) as server:
        assert any(said.endswith(b"ready\n") for said in server.stdout)
        yield str(folder / "python")
        server.stdin.close()


@pytest.fixture
def warm(warm_python, monkeypatch):
    """Start expo's processes from one that has imported everything: for tests of what they do, and not of how they
    start."""
    monkeypatch.setattr(sys, "executable", warm_python)


@pytest.fixture(scope="session")
def ladder():
    """(model, tokenizer, prompts) of the shipped base policy."""
    from expo.model.policy import load_policy

    model, tokenizer = load_policy(config.ModelConf(path="ladder"))
    return model, tokenizer, make_prompts("{question}", "{question} answer {answer}")


@pytest.fixture(scope="module")
def models():
    """(policy, reference) for `rollouts.module`."""
    import torch

    from expo.model.small import random_tiny

    policy, reference = random_tiny(0)[0], random_tiny(1)[0]
    with torch.no_grad():  # larger weights: ratios that reach the clip after one step
        for p in policy.parameters():
            p *= 1.5
    return policy.requires_grad_(True), reference.requires_grad_(False)


@pytest.fixture
def server():
    """A stand-in for W&B's server, under way."""
    from wandb_server import WandbServer

    made = WandbServer()
    yield made
    if made.http is not None:
        made.stop()


@pytest.fixture
def online(server, monkeypatch, tmp_path):
    """The same, for this very process, which works in tmp_path."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield server
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()  # its service would go on asking for this server


@pytest.fixture
def math_file(tmp_path: Path) -> Path:
    """Rows of our own in the format of MATH; the last two cannot be used."""
    rows = [
        {
            "problem": f"What is ${i} + {i}$?",
            "level": f"Level {1 + i % 5}",
            "type": "Algebra",
            "solution": rf"Adding, ${i} + {i} = \boxed{{{2 * i}}}$.",
        }
        for i in range(40)
    ]
    rows += [{**rows[0], "solution": "No box here."}, {"problem": "No solution at all"}]
    path = tmp_path / "math.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def gsm8k_file(tmp_path: Path) -> Path:
    rows = [
        {
            "question": f"Ann has {i} pens and buys {i}.",
            "answer": f"She has {i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}",
        }
        for i in range(30)
    ]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

"""The README's commands are real: each `expo` line composes, passes the checks or names a known command."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import compose_config

from expo import cli
from expo.config import check

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
LINES = [line.split("#")[0].strip() for line in BLOCKS.splitlines() if line.strip()]


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert named
    assert named <= targets


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("expo ") and "=" in line])
def test_every_expo_line_composes(line, tmp_path, monkeypatch, math_file, gsm8k_file):
    monkeypatch.chdir(tmp_path)
    source = gsm8k_file if "gsm8k" in line else math_file
    for name in ("train.jsonl", "test.jsonl", "mine.jsonl"):
        (tmp_path / name).write_text(source.read_text())
    _, command, *arguments = shlex.split(line)
    if command == "table":
        assert arguments[0] in {p.parent.name for p in ROOT.glob("experiments/*/plan.yaml")}
        return
    assert command in cli.COMMANDS
    overrides = [a for a in arguments if "=" in a and not a.startswith("hydra.")]
    if "-m" in arguments:
        overrides = [re.sub(r"=([^,\[]*),.*", r"=\1", o) for o in overrides]
    cfg = compose_config(*overrides)
    check(replace(cfg, rollout=replace(cfg.rollout, requires="")))  # whether vLLM is installed here or not


def test_paths_in_the_readme_exist():
    linked = re.findall(r"\]\((?!http)([^)#]+)", README)
    named = re.findall(r"^    ?\s*(expo/[\w./]+|conf/)", README, re.MULTILINE)
    assert linked
    assert named
    assert all((ROOT / path).exists() for path in [*linked, *named])

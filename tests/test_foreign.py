"""What others have left about: modules in the working folder, and run directories of any shape."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLAN = """\
title: one arm
columns: [pass@1]
arms: {grpo: {label: GRPO, overrides: [algorithm=grpo]}}
scales: {cpu: {overrides: [dataset=ladder, debug=tiny], seeds: [0], jobs: 1}}
"""
LAB = """\
from dataclasses import dataclass

import lab_tools
from expo.config import option
from expo.config.training import RewardConf


@option("reward", "half")
@dataclass
class HalfConf(RewardConf):
    _target_: str = "lab.Half"


class Half:
    def __init__(self, conf):
        pass

    def __call__(self, problems, texts, verdicts):
        return [lab_tools.HALF for _ in verdicts]
"""


# --- modules of the working folder


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (["train", "-m", "seed=0,1", "dataset=math", "dataset.path=nowhere.jsonl"], 2),
        pytest.param(["train", "debug=tiny", "trainer.devices=2", "reward=half"], 0, marks=pytest.mark.slow),
        pytest.param(["train", "-m", "seed=0", "debug=tiny", "reward=half"], 0, marks=pytest.mark.slow),
        pytest.param(["table", "plan.yaml", "reward=half"], 0, marks=pytest.mark.slow),
    ],
)
def test_no_module_of_the_working_folder_is_imported_but_the_plugin_that_is_named(tmp_path, line, code):
    for name in filter(importlib.util.find_spec, sys.stdlib_module_names - {"__main__"}):
        (tmp_path / f"{name}.py").write_text(f"open('hacked', 'a').write('{name} ')\nraise ImportError('{name}')\n")
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "lab.py").write_text(LAB)
    (tmp_path / "lab_tools.py").write_text("HALF = 0.5\n")
    env = os.environ | {"PYTHONPATH": str(ROOT), "EXPO_PLUGINS": "lab" if "reward=half" in line else ""}
    words = [sys.executable, "-P", "-m", "expo", *line, "logger=none"]  # -P: as the installed `expo` looks for modules
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert not (tmp_path / "hacked").exists(), (tmp_path / "hacked").read_text()
    assert done.returncode == code, done.stderr


def test_python_m_expo_looks_where_its_children_look(tmp_path):
    """Else a checkout that is not installed would start processes that do not find it, or find another one."""
    (tmp_path / "expo.py").write_text("raise SystemExit('another expo')\n")
    line = [sys.executable, "-m", "expo", "train", "-m", "seed=0", "dataset=math", "dataset.path=nowhere.jsonl"]
    done = subprocess.run(
        [*line, f"hydra.sweep.dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "another expo" not in done.stderr

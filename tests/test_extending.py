"""The recipes of docs/extending.md, followed literally in a scratch copy; and what adding a key costs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TESTS
from pages import blocks, run

GUIDE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))


def scratch(tmp_path: Path) -> Path:
    """A copy of what a user has checked out, as far as it is needed."""
    for name in ("expo", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "experiments").mkdir()
    return tmp_path


def follow(folder: Path, *headings: str) -> tuple[list[str], list[str]]:
    """Write the files of some recipes; return their names, and the commands."""
    files, commands = [], []
    for heading in headings:
        for kind, title, text in blocks(SECTIONS[heading]):
            if kind == "bash":
                commands += text.strip().splitlines()
                continue
            name, _, at_the_end = title.partition(", ")
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if at_the_end:
                path.write_text(f"{path.read_text()}\n\n{text}")
            else:
                assert not path.exists()
                path.write_text(text)
            files.append(name)
    return files, commands


def metrics(folder: Path, run: str) -> list[dict]:
    (path,) = folder.glob(f"outputs/{run}-*s0-*/metrics.jsonl")
    return [line for line in map(json.loads, path.read_text().splitlines()) if "loss/total" in line]


@pytest.mark.long
@pytest.mark.long
@pytest.mark.runs
def test_an_algorithm_and_a_table_are_one_file_each(tmp_path):
    folder = scratch(tmp_path)
    files, commands = follow(folder, "An algorithm from existing parts", "A table")
    assert len(files) == 2
    assert "mine-debug_tiny-s0" in run(folder, commands, folder)
    record = json.loads(next(folder.glob("outputs/sweeps/my_table-cpu/*/table.json")).read_text())
    assert [arm["runs"] for arm in record["arms"].values()] == [1, 1]


@pytest.mark.long
@pytest.mark.long
@pytest.mark.runs
def test_an_update_and_a_source_are_two_files_each_and_a_data_set_is_one(tmp_path):
    folder = scratch(tmp_path)
    rows = [{"problem": f"{i} + {i}?", "result": 2 * i} for i in range(20)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    followed = [follow(folder, heading) for heading in ("A new update", "A positive source", "A data set")]
    assert [len(files) for files, _ in followed] == [2, 2, 1]
    run(folder, [command for _, commands in followed for command in commands], folder)
    assert all(line["reinforce/surprise"] > 0 for line in metrics(folder, "ladder_level5/reinforce"))
    assert sum(line["positive/used_frac"] for line in metrics(folder, "ladder/grpo")) > 0


@pytest.mark.long
@pytest.mark.long
@pytest.mark.runs
def test_a_package_outside_the_repository_brings_algorithm_source_and_reward(tmp_path):
    _, commands = follow(tmp_path, "From a package of your own")
    said = run(tmp_path, commands)
    assert "reward.cost=0.001" in said  # --help knows it
    lines = metrics(tmp_path, "ladder/brief_grpo")
    assert all(0 < line["reward/mean"] < 1 for line in lines)
    assert [(line["loss/closeness"], line["lab/moved"]) for line in lines] == [
        (0.0, 0.0)
    ] * 2  # one update a step: none has moved
    (path,) = tmp_path.glob("outputs/ladder/brief_grpo-*/config.yaml")
    assert "cost: 0.002" in path.read_text()
    again = [line for line in commands if "help" not in line]
    assert (
        run(tmp_path, again).strip()
        == f"{path.parent.relative_to(tmp_path)} is finished already; fresh=true makes it again"
    )
    parts = tmp_path / "my_lab" / "parts.py"
    parts.write_text(parts.read_text().replace("0.1, 1 -", "0.2, 1 -"))
    assert "is finished already; it was made before a change of my_lab/parts.py; fresh=true makes it" in run(
        tmp_path, again
    )
    longer = [line + " trainer.max_steps=3" if "train" in line else line for line in again]
    assert "this one begins anew: that one was made before a change of my_lab/parts.py" in run(tmp_path, longer)
    rows = json.loads(run(tmp_path, ["expo runs --json"]))  # without EXPO_PLUGINS
    assert {row["max_steps"]: row["marks"] for row in rows} == {2: "other code", 3: ""}
    line = [sys.executable, "-m", "expo", "evaluate", f"run={path.parent}"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "set EXPO_PLUGINS=my_lab" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward._target_=no_such.Reward"], "reward._target_=no_such.Reward"),
        (["algorithm=decayed_grpo"], "decayed_grpo"),  # without EXPO_PLUGINS
    ],
)
def test_what_is_not_there_is_said_in_one_line(tmp_path, overrides, said):
    line = [sys.executable, "-m", "expo", "train", *overrides]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_plugin_that_cannot_be_imported_is_said_in_one_line(tmp_path):
    environment = os.environ | {"EXPO_PLUGINS": "no_such_lab"}
    line = [sys.executable, "-m", "expo", "train"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "EXPO_PLUGINS=no_such_lab" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.runs
def test_a_hyperparameter_is_two_edits_and_changes_no_identity(tmp_path):
    """Declare it, use it: it is checked, shown, and part of the identity where it differs from what was there
    before."""
    folder = scratch(tmp_path)
    declared = '    tilt: float = key(0.0, low=0, high=1, absent=0.0, help="share of a tilt")\n'
    edits = {
        "expo/config/algorithm.py": ("    ratio: str = key(", declared + "    ratio: str = key("),
        "expo/algorithms/terms.py": ("return torch.where(s.from", "return (1 + self.conf.tilt) * torch.where(s.from"),
    }
    for name, (before, after) in edits.items():
        text = (folder / name).read_text()
        assert text.count(before) == 1
        (folder / name).write_text(text.replace(before, after))
    script = (
        "from expo import config\n"
        "from expo.config.reference import help_of_group\n"
        "def identity(*o): return config.identity(config.compose_config(['algorithm=exp_grpo', *o]))\n"
        "print(identity(), identity('algorithm.tilt=0'), identity('algorithm.tilt=0.5'))\n"
        "print('algorithm.tilt=0.0' in help_of_group('algorithm'))\n"
        "try: config.check(config.compose_config(['algorithm.tilt=2']))\n"
        "except config.UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(folder)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    identities, shown, refused = done.stdout.splitlines()
    golden = json.loads((TESTS / "golden_identities.json").read_text())["options"]["algorithm=exp_grpo"][0]
    plain, same, other = identities.split()
    assert plain == same == golden
    assert other != golden
    assert shown == "True"
    assert "algorithm.tilt=2.0" in refused

"""What others have left about: modules in the working folder, and run directories of any shape."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet
import pytest
from by_hand import leave
from conftest import ROOT

from expo.cli import main, reporting
from expo.config import UserError
from expo.data import rows as data_rows
from expo.runs.listing import find_runs
from expo.runs.reading import final_rows, read_lines, read_rows, read_summary, samples_of
from expo.step.signed import read_signed, write_signed

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

    def __call__(self, rollouts):
        return [lab_tools.HALF for _ in rollouts]
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


def install(folder, plugin):
    """Leave what an installed package has that names a plug-in as an entry point."""
    told = folder / "lab_package-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-package\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(f"[expo.plugins]\nlab = {plugin}\n")
    (folder / "lab.py").write_text(LAB)
    (folder / "lab_tools.py").write_text("HALF = 0.5\n")


@pytest.mark.parametrize(
    ("plugin", "line", "code", "told"),
    [
        ("lab", ["train", "reward=half", "logger=none", "--cfg", "job"], 0, ""),
        pytest.param("lab", ["train", "-m", "seed=0", "debug=tiny", "reward=half", "logger=none"], 0, "", marks=pytest.mark.slow),  # noqa: E501
        ("no_lab", ["train", "--cfg", "job"], 2, "expo: no_lab: cannot be " "imported " "(No " "module " "named " "'no_lab'); " "the " "package "  # noqa: E501
         "lab-package names it as a plug-in; mend it, or uninstall it\n"),
    ],
)  # fmt: skip
def test_an_installed_package_names_its_plugin_as_an_entry_point(tmp_path, plugin, line, code, told):
    install(tmp_path / "site", plugin)
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'site'}"}
    words = [sys.executable, "-P", "-m", "expo", *line]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    said = "" if "debug=tiny" in line else done.stderr  # a run that solves nothing says so
    assert (done.returncode, said) == (code, told)


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


def expo(*arguments, cwd=ROOT, out=subprocess.PIPE, **variables):
    """Run expo in a process of its own. Returns it when it has ended."""
    line = [sys.executable, "-P", "-m", "expo", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(line, cwd=cwd, env=env, stdout=out, stderr=subprocess.PIPE, check=False)


@pytest.mark.parametrize("line", [["--help"], ["train", "--help"], ["runs", "output_dir=out"]])
def test_output_that_cannot_be_written_is_one_line(tmp_path, line):
    (tmp_path / "out").mkdir()
    with open("/dev/full", "w") as full:
        done = expo(*line, cwd=tmp_path, out=full)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(b"expo: [Errno 28] No space left on device")


@pytest.mark.parametrize(
    "forced", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_terminal_that_is_told_to_be_ascii_changes_no_file(tmp_path, forced):
    folder = leave(tmp_path / "out", "name='größe'")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary, ensure_ascii=False))
    listed, told = (expo("runs", *line, cwd=tmp_path, **forced) for line in (["output_dir=out"], ["show", folder]))
    assert (listed.returncode, told.returncode) == (0, 0), listed.stderr + told.stderr
    assert b"done" in listed.stdout
    assert expo("report", folder, "output=page.html", cwd=tmp_path, **forced).returncode == 0
    assert "größe" in (tmp_path / "page.html").read_text(encoding="utf-8")


# --- run directories


def summary(**values):
    return lambda run: (run / "summary.json").write_text(
        json.dumps(json.loads((run / "summary.json").read_text()) | values)
    )


def config(content):
    return lambda run: (run / "config.yaml").write_bytes(content)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghij")
)


def test_a_run_of_the_largest_seed_is_read(tmp_path):
    left = leave(tmp_path, f"seed={2**63 - 1}")  # as of $(date +%s%N)
    assert [(run.dir, run.row["status"]) for run in find_runs(tmp_path)] == [(left, "done")]
    assert read_summary(left)["seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (config(BOMB.encode()), "it has an alias (*a)"),
        (config(b"a: &a [*a]"), "it has an alias (*a)"),
        (config(b"\xff\xfe\x80"), "codec can't decode"),
        (config(b"just text"), "it is no config"),
        (config(b"a: " + b"[" * 100 + b"]" * 100), "it nests deeper than 32 levels"),
        (config(b"name: 2026-01-01"), "name is not what a run leaves"),
        (config(b"{1: 2}"), "it is no config"),
        (config(b"trainer: {max_steps: 1" + b"0" * 400 + b"}"), "trainer.max_steps is not what a run leaves"),
        (lambda run: (run / "config.yaml").write_bytes(b"#" * (2**24 + 1)), "and 16 are read"),
        (summary(metrics=None), "metrics is not what a run leaves: None"),
        (summary(metrics={"pass@4": math.nan}), "metrics is not"),
        (summary(metrics={"pass@4": 0.5, "pass@4_lo": 0.1}), "metrics is not"),
        (summary(wall_s="long"), "wall_s is not"),
        (summary(status=["done"]), "status is not"),
        (summary(versions=[1]), "versions is not"),
        (lambda run: (run / "summary.json").write_text('{"seed": 1' + "0" * 400 + "}"), "a number of 401 digits"),
        (summary(seed=2**63), "a number of 19 digits"),
        (lambda run: (run / "summary.json").write_text("[" * 200_000), "recursion"),
        (lambda run: [(run / "summary.json").unlink(), os.mkfifo(run / "summary.json")], "it is no plain file"),
    ],
)
def test_a_run_that_cannot_be_read_is_a_row_that_says_why(tmp_path, monkeypatch, capsys, change, told):
    good = leave(tmp_path / "out", "seed=1")
    bad = leave(tmp_path / "out", "seed=2", "trainer.max_steps=8")
    change(bad)
    (row,) = (run.row for run in find_runs(tmp_path / "out") if run.dir == bad)
    assert row["status"].startswith("cannot be read: ")
    assert told in row["status"]
    monkeypatch.chdir(tmp_path)
    for line, code in (([], 0), (["--json", "sort=-pass@4", "status=done"], 0), (["gc"], 0), (["diff", good, bad], 2)):
        root = [] if "diff" in line else ["output_dir=out"]
        monkeypatch.setattr("sys.argv", ["expo", "runs", *map(str, line), *root])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == code
        assert said.err.count("\n") == (code == 2)
        assert good.name in said.out or line


def test_a_diagnosis_of_one_problem_whose_intervals_are_endless_is_read(tmp_path):
    run = leave(tmp_path / "out")
    summary(metrics={"own/nll": 0.5, "own/nll_lo": -math.inf, "own/nll_hi": math.inf}, problems=1)(run)
    assert read_summary(run)["problems"] == 1
    summary(metrics={"own/nll": math.inf, "own/nll_lo": 0.0, "own/nll_hi": math.inf})(run)
    assert read_summary(run) == {}


def test_a_run_with_an_empty_mapping_or_a_metric_of_many_digits_is_read(tmp_path):
    run = leave(tmp_path / "out")
    assert "template_options: {}" in (run / "config.yaml").read_text()
    summary(metrics={f"pass@{'9' * 6000}": 0.5, "pass@٣": 0.5, "pass@4": 0.25})(run)
    (row,) = (found.row for found in find_runs(tmp_path / "out"))
    assert (row["status"], row["k"], row["pass@k"]) == ("done", 4, 0.25)


def test_lines_that_are_no_scalars_or_never_end_are_left_out(tmp_path):
    lines = [
        b'{"step": 1, "x": 1.5}',
        b'{"step": 2, "x": "' + b"a" * 3 * 2**20 + b'"}',
        b'{"step": 3, "x": [1]}',
        b'{"step": true}',
        b'{"step": 1' + b"0" * 400 + b"}",
        b"\xff",
        b'{"step": 4, "x": null}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert read_lines(tmp_path) == [{"step": 1, "x": 1.5}, {"step": 4, "x": None}]


@pytest.mark.parametrize("row", [{"problem": ["a"]}, {"verdict": 5}, {"level": [1]}, {"completion": [1]}])
def test_completions_of_other_kinds_are_not_read(tmp_path, row):
    pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"cannot be read \(its column \w+ is of"):
        read_rows(tmp_path / "x.parquet")


def test_completions_that_lack_a_column_are_refused(tmp_path):
    (tmp_path / "completions").mkdir()
    pa.parquet.write_table(pa.Table.from_pylist([{"x": 1}]), tmp_path / "completions" / "eval-step000002.parquet")
    pa.parquet.write_table(pa.Table.from_pylist([{"x": 1}]), tmp_path / "completions" / "train-step000002.parquet")
    for read in (final_rows, samples_of):
        with pytest.raises(UserError, match=r"step000002\.parquet: cannot be read \(no column answer\)"):
            read(tmp_path)


# --- data


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data_rows, "UNPACKED", 2**20)
    rows = pa.table({"problem": pa.array(["x" * 1000] * 4000).dictionary_encode(), "level": ["Level 1"] * 4000})
    pa.parquet.write_table(rows, tmp_path / "bomb.parquet", compression="zstd")
    with pytest.raises(UserError, match=r"dataset\.path=.*and unpacks to over 1048576; give fewer rows"):
        list(data_rows._parquet_rows(tmp_path / "bomb.parquet"))
    monkeypatch.setattr(data_rows, "UNPACKED", 2**30)
    assert len(list(data_rows._parquet_rows(tmp_path / "bomb.parquet"))) == 4000


def test_a_lack_of_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    def lacking(*words, **more):
        raise pa.lib.ArrowMemoryError("malloc of size 64 failed")

    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setattr(pa.parquet, "read_table", lacking)
    with pytest.raises(MemoryError):
        read_rows(tmp_path / "x.parquet")
    assert reporting(lambda: len(read_rows(tmp_path / "x.parquet"))) == 1


def test_a_digest_that_is_not_utf_8_is_one_that_differs(tmp_path):
    write_signed(pa.table({"a": [1]}), tmp_path / "x.parquet")
    (tmp_path / "x.sha256").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="its SHA-256 differs"):
        read_signed(tmp_path / "x.parquet", "bank", len)

"""expo runs: many run directories at a glance. Run directories are made by hand here, as a run leaves them."""

import fcntl
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from by_hand import expo, leave, listed
from conftest import compose_config

from expo.config import UserError, identity
from expo.config.from_run import finished_model, run_directory
from expo.config.own_code import changed_code, own_code
from expo.runs.directory import Run
from expo.runs.listing import find_runs


def test_own_code_is_known_by_its_sources(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    assert own_code(compose_config()) == {}
    (tmp_path / "lone.py").write_text("a = 1")
    (tmp_path / "several" / "deep").mkdir(parents=True)
    (tmp_path / "several" / "deep" / "reward.py").write_text("b = 1")
    cfg = compose_config("reward._target_=lone.Reward")
    before = own_code(cfg) | own_code(compose_config("reward._target_=several.deep.reward.Reward"))
    assert sorted(before) == ["lone.py", "several/deep/reward.py"]
    assert changed_code(before) == []
    (tmp_path / "several" / "deep" / "reward.py").write_text("b = 2")
    (tmp_path / "several" / "helpers.py").write_text("")
    assert changed_code(before) == ["several/deep/reward.py", "several/helpers.py"]
    assert changed_code(before | {"nowhere.py": "0"}) == ["several/deep/reward.py", "several/helpers.py"]
    assert identity(cfg) == identity(compose_config("reward._target_=lone.Reward"))


def test_a_run_of_other_code_and_one_that_learned_nothing_are_marked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lone.py").write_text("a = 2")
    root = tmp_path / "out"
    old, dead = leave(root, "algorithm=grpo"), leave(root, "algorithm=exp_grpo")
    for folder, more in (
        (old, {"own_code": {"lone.py": "0"}}),
        (dead, {"learned_nothing": "no step had a gradient", "step": 1}),
    ):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | more))
    (dead / "metrics.jsonl").write_text(json.dumps({"step": 1, "policy/grad_norm": 0.0, "loss/total": 0.0}))
    _, said = expo(monkeypatch, capsys, f"output_dir={root}", "--json")
    marks = {row["run"]: row["marks"] for row in json.loads(said.out)}
    assert marks == {str(old): "other code", str(dead): "learned nothing"}
    _, said = expo(monkeypatch, capsys, "show", str(old), str(dead))
    assert "done (other code), step 2" in said.out
    assert "done (learned nothing), step 1" in said.out
    assert "lone.py" in said.out
    assert "no step had a gradient" in said.out
    run = Run(compose_config(f"output_dir={root}", "algorithm=grpo"), old)
    assert (
        run.finished_line
        == f"{old} is finished already; it was made before a change of lone.py; fresh=true makes it again"
    )
    summary = json.loads((dead / "summary.json").read_text()) | {"versions": {"expo": "0.1"}}
    (dead / "summary.json").write_text(json.dumps(summary))
    assert "; it was made by expo 0.1, and this is " in Run(compose_config(), dead).finished_line


@pytest.fixture
def runs(tmp_path):
    """Three runs under tmp_path/out, by name."""
    root = tmp_path / "out"
    return {
        "grpo": leave(root, "algorithm=grpo", "trainer.max_steps=2", score=0.1),
        "expo": leave(root, "algorithm=exp_grpo", "trainer.max_steps=2", score=0.9),
        "long": leave(root, "algorithm=exp_grpo", "trainer.max_steps=8", status="stopped", score=0.3),
    }


def test_all_runs_with_their_state(runs, tmp_path, monkeypatch, capsys):
    code, said = expo(monkeypatch, capsys, f"output_dir={tmp_path / 'out'}")
    assert code == 0
    line = next(line for line in said.out.splitlines() if "max_steps_8" in line)
    assert line.split()[1:7] == ["ladder_level5", "ladder", "2/8", "stopped", "30.0", "%"]
    assert "1m 15s" in line
    assert "3 runs" in said.out


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["status=done"], ["expo", "grpo"]),
        (["name=exp_*", "status!=done"], ["long"]),
        (["pass@4>=0.3"], ["expo", "long"]),
        (["trainer.max_steps<8", "sort=-pass@4"], ["expo", "grpo"]),
        (["sort=pass@4"], ["grpo", "long", "expo"]),
        (["optimizer.learning_rate=1"], []),
        (["optimizer.learning_rate=0.0003"], ["expo", "long", "grpo"]),
        (["optimizer.learning_rate!=3e-4"], []),
        (["optimizer.betas=[0.9,0.999]"], ["expo", "long", "grpo"]),
        (["seed=0", "pass@4=0.10", "fresh=false"], ["grpo"]),
    ],
)
def test_filters_and_order(runs, tmp_path, monkeypatch, capsys, filters, expected):
    found = listed(monkeypatch, capsys, tmp_path / "out", *filters)
    ordered = found if any(f.startswith("sort") for f in filters) else sorted(found)
    assert ordered == [str(runs[name]) for name in expected]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "no filter; use for example"),
        (["algorithm.grup_size=3"], "no run has algorithm.grup_size"),
        (["sort=nope"], "no run has nope"),
        (["pass@4>=high"], "not a number"),
        (["output_dir=nowhere"], "no such folder"),
        (["show"], "no run given"),
        (["rm"], "no run given"),
        (["show", "nowhere"], "no run directory"),
        (["diff", "nowhere"], "no run directory"),
        (["rm", "RUN", "yes=maybe"], "neither true nor false"),
        (["--jsn"], "no such option"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, tmp_path, monkeypatch, capsys, arguments, told):
    given = [str(runs["grpo"]) if a == "RUN" else a for a in arguments]
    root = [] if {"rm", "show", "diff", "output_dir=nowhere"} & set(given) else [f"output_dir={tmp_path / 'out'}"]
    code, said = expo(monkeypatch, capsys, *given, *root)
    assert code == 2
    assert told in said.err
    assert said.err.count("\n") == 1


def test_show_and_diff(runs, tmp_path, monkeypatch, capsys):
    _, said = expo(monkeypatch, capsys, "show", runs["long"])
    assert "stopped, step 2 of 8" in said.out
    assert f"expo train run={runs['long']}" in said.out
    _, said = expo(monkeypatch, capsys, "diff", runs["expo"], runs["long"])
    told = {line.split()[0]: line.split()[1:] for line in said.out.splitlines() if line and not line.startswith(" ")}
    assert told["trainer.max_steps"] == ["2", "8"]
    assert told["pass@4"] == ["0.9", "0.3"]
    assert "optimizer.learning_rate" not in told
    assert expo(monkeypatch, capsys, "diff", runs["expo"], runs["expo"])[1].out.startswith("no difference")
    for part, problems in (("train", 5), ("held_out", 20)):
        folder = tmp_path / "out" / "evaluate" / part
        shutil.copytree(runs["expo"], folder)
        summary = json.loads((folder / "summary.json").read_text()) | {"part": part, "problems": problems}
        (folder / "summary.json").write_text(json.dumps(summary))
    _, said = expo(monkeypatch, capsys, "diff", *(tmp_path / "out" / "evaluate" / p for p in ("train", "held_out")))
    told = [line.split() for line in said.out.splitlines()]
    assert told[-2:] == [["part", "train", "held_out"], ["problems", "5", "20"]]


def test_removing_asks_first(runs, monkeypatch, capsys):
    _, said = expo(monkeypatch, capsys, "rm", runs["grpo"])
    assert "would remove" in said.out
    assert "yes=true" in said.out
    assert runs["grpo"].is_dir()
    expo(monkeypatch, capsys, "rm", runs["grpo"], "yes=true")
    assert not runs["grpo"].exists()
    assert runs["expo"].is_dir()


def test_removing_by_filter_says_how_much_goes(runs, tmp_path, monkeypatch, capsys):
    root = f"output_dir={tmp_path / 'out'}"
    (runs["long"] / "checkpoints" / "more").write_bytes(b"x" * 2**21)
    (runs["long"] / "link").symlink_to(runs["expo"] / "checkpoints" / "step000001.ckpt")  # none of it
    assert listed(monkeypatch, capsys, tmp_path / "out", "size>=3000000") == [str(runs["long"])]
    _, said = expo(monkeypatch, capsys, root)
    assert next(line for line in said.out.splitlines() if "max_steps_8" in line).endswith("3 MiB")
    _, said = expo(monkeypatch, capsys, "rm", root, "name=exp_*")
    assert f"would remove {runs['long']} (3 MiB)" in said.out
    assert "2 runs, 4 MiB in all" in said.out
    expo(monkeypatch, capsys, "rm", root, "name=exp_*", "status=stopped", "yes=true")
    assert [name for name, folder in runs.items() if folder.exists()] == ["grpo", "expo"]
    code, said = expo(monkeypatch, capsys, "rm", root, "nmae=exp_*", "yes=true")
    assert (code, "no run has nmae" in said.err) == (2, True)
    expo(monkeypatch, capsys, "rm", root, "name=grpo", runs["expo"], "yes=true")  # both kinds
    assert not any(folder.exists() for folder in runs.values())


def test_the_latest_run_is_the_training_run_that_was_worked_on_last(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "no training run is in outputs/" in expo(monkeypatch, capsys, "show", "latest")[1].err
    (tmp_path / "out").rename("outputs")
    (tmp_path / "outputs" / "evaluate" / "one").mkdir(parents=True)
    for age, folder in enumerate((tmp_path / "outputs" / "evaluate" / "one", *(
        tmp_path / "outputs" / runs[name].relative_to(tmp_path / "out") for name in ("expo", "grpo", "long")
    ))):  # fmt: skip
        (folder / "summary.json").touch()
        os.utime(folder / "summary.json", (10**9, 10**9 - age))
    assert run_directory("latest") == Path("outputs") / runs["expo"].relative_to(tmp_path / "out")
    mark = runs["expo"].name[-10:]
    (tmp_path / "outputs" / "evaluate" / f"base-{mark}").mkdir()
    (tmp_path / "outputs" / "evaluate" / f"base-{mark}" / "config.yaml").touch()
    assert run_directory(mark) == run_directory("latest")  # an evaluation may have the same settings
    with pytest.raises(UserError, match="measures a model, and trains none"):
        finished_model(tmp_path / "outputs" / "evaluate" / "one")
    Path("latest").mkdir()
    assert run_directory("latest") == Path("latest")


def test_gc_takes_checkpoints_of_finished_runs_only(runs, tmp_path, monkeypatch, capsys):
    root = f"output_dir={tmp_path / 'out'}"
    _, said = expo(monkeypatch, capsys, "gc", root)
    assert "2 MiB in all" in said.out
    assert "nothing was removed" in said.out
    expo(monkeypatch, capsys, "gc", root, "name=grpo", "yes=true")
    left = {name for name, folder in runs.items() if (folder / "checkpoints" / "step000001.ckpt").exists()}
    assert left == {"expo", "long"}
    assert all((folder / "checkpoints" / "final").is_dir() for folder in runs.values())


def test_a_run_under_way_has_its_time_and_its_last_evaluation_so_far(runs, tmp_path, monkeypatch, capsys):
    run = runs["long"]
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"metrics": {}}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "pass@1": 0.25, "pass@4": 0.75}) + "\n")
    for name, second in (("summary.json", 1000), ("metrics.jsonl", 1090)):
        os.utime(run / name, (second, second))
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (row,) = (found.row for found in find_runs(tmp_path / "out") if found.dir == run)
    assert (row["status"], row["seconds"], row["pass@k"]) == ("running", 75 + 90, 0.75)
    (row,) = (found.row for found in find_runs(tmp_path / "out") if found.dir == run)
    assert (row["status"], row["seconds"]) == ("stopped", 75)


def test_a_filter_says_which_runs_cannot_be_read(runs, tmp_path, monkeypatch, capsys):
    (runs["expo"] / "summary.json").write_text("{")
    _, said = expo(monkeypatch, capsys, "seed=0", f"output_dir={tmp_path / 'out'}")
    assert f"2 runs; not looked at, since it cannot be read: {runs['expo']}" in " ".join(said.out.split())


def test_a_run_under_way_is_told_and_not_removed(runs, tmp_path, monkeypatch, capsys):
    with (runs["long"] / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listed(monkeypatch, capsys, tmp_path / "out", "status=running") == [str(runs["long"])]
        code, said = expo(monkeypatch, capsys, "rm", runs["long"], "yes=true")
        monkeypatch.chdir(runs["long"])
        assert expo(monkeypatch, capsys, "rm", ".")[0] == 2
    assert code == 2
    assert "a process works on it" in said.err
    assert runs["long"].is_dir()


def test_strange_config_files_are_not_executed(runs, tmp_path, monkeypatch, capsys):
    (runs["grpo"] / "config.yaml").write_text("a: !!python/object/apply:os.system ['touch hacked']")
    assert len(listed(monkeypatch, capsys, tmp_path / "out")) == 3

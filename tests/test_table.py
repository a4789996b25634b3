"""expo table on a small plan: what is made, what is not made again, and what a failed run leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest

from expo import cli
from expo.config import UserError
from expo.experiments import plan as plans
from expo.experiments import table
from expo.experiments.aggregate import problem_values, statistic

PLAN = """
title: Small
columns: [pass@1, pass@4/level5]
scalars: {lift: positive/answer_lift}
arms:
  grpo: {label: GRPO, overrides: [algorithm=grpo]}
  exp: {label: ExP, overrides: [algorithm=exp_grpo], against: grpo}
scales:
  cpu:
    overrides: [debug=tiny, trainer.threads=1]
    seeds: [0, 1]
    jobs: 2
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A plan of two arms and two seeds, in a folder of its own."""
    folder = tmp_path / "experiments" / "small"
    folder.mkdir(parents=True)
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "paper.yaml").write_text("exp: {MATH: 12.5}\ngrpo: {MATH: null}\n")
    monkeypatch.setattr(plans, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(table, "EXPERIMENTS", tmp_path / "experiments")
    return folder


def test_a_table_is_made_once_and_rendered_beside_the_paper(small, tmp_path, capsys):
    arguments = ["small", f"output_dir={tmp_path / 'out'}"]
    assert table.main([*arguments, "dry_run=true"]) == 0
    assert "4 runs, 4 to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert table.main(arguments) == 0
    record = json.loads((small / "results" / "cpu" / "table.json").read_text())
    assert {key: arm["runs"] for key, arm in record["arms"].items()} == {"grpo": 2, "exp": 2}
    assert record["arms"]["exp"]["columns"]["pass@4/level5"]["seeds"] == [0.0, 0.0]
    assert record["arms"]["exp"]["difference"]["pass@1"]["mean"] == 0.0
    assert record["arms"]["exp"]["cost"]["generated tokens"] > record["arms"]["grpo"]["cost"]["generated tokens"] > 0
    text = (small / "results" / "cpu" / "table.md").read_text()
    assert "| arm | pass@1 | pass@4/level5 | paper: MATH |" in text
    assert "2 (few)" in text
    assert "| 12.5 |" in text
    assert "not known" in text
    results = small / "results" / "cpu"
    assert (results / "curves.svg").is_file()
    kept = json.loads((results / "runs.json").read_text())
    assert [(run["arm"], run["seed"]) for run in kept] == [("grpo", 0), ("exp", 0), ("grpo", 1), ("exp", 1)]
    assert {run["summary"]["status"] for run in kept} == {"done"}
    assert "group_size: 4" in kept[0]["config"]
    assert pyarrow.parquet.read_table(results / "metrics.parquet").num_rows == 4 * (
        2 + 3
    )  # two steps, three evaluations
    assert pyarrow.parquet.read_table(results / "completions.parquet").num_rows == 4 * 4 * 4
    written = [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").glob("ladder_level5/*/summary.json"))]
    assert len(written) == 4
    capsys.readouterr()
    assert table.main(arguments) == 0
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").glob("ladder_level5/*/summary.json"))] == written


def test_a_run_that_fails_is_named_and_the_others_go_on(small, tmp_path, capsys):
    (small / "plan.yaml").write_text(PLAN.replace("[algorithm=grpo]", "[algorithm=grpo, trainer.accelerator=gpu]"))
    assert table.main(["small", f"output_dir={tmp_path / 'out'}", "seeds=1"]) == 1
    said = capsys.readouterr()
    assert "grpo seed 0: not started" in said.err
    assert not (small / "results").exists()  # fewer seeds than the plan's: not the plan's own table
    record = json.loads((tmp_path / "out" / "sweeps" / "small-cpu" / "table.json").read_text())
    assert [record["arms"][key]["runs"] for key in ("grpo", "exp")] == [0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAN.replace("title", "tittle"), "tittle"),
        (PLAN.replace("against: grpo", "against: gpro"), "against=gpro"),
        (PLAN.replace("algorithm=exp_grpo", "algorithm.group_size=1"), "algorithm.group_size=1"),
        (PLAN.replace("pass@1, ", "pass@8, "), "pass@8"),
        (PLAN.replace("pass@1, ", "pass@1/level3, "), "level3"),
        (PLAN.replace("pass@1, ", "accuracy, "), "accuracy"),
    ],
)
def test_mistakes_in_a_plan_are_one_line(small, text, said):
    (small / "plan.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        table.main(["small", "dry_run=true"])


def test_mistakes_on_the_command_line_are_one_line(small):
    for arguments, said in (
        (["nope"], "small"),
        (["small", "scale=big"], "cpu"),
        (["small", "seeds=x"], "seeds=x"),
        (["small", "dry_run=1"], "dry_run=1"),
    ):
        with pytest.raises(UserError, match=said):
            table.main(arguments)


@pytest.mark.parametrize("name", sorted(p.parent.name for p in plans.EXPERIMENTS.glob("*/plan.yaml")))
def test_every_plan_of_the_repository_composes_at_every_scale(name, tmp_path, monkeypatch):
    plan = plans.load_plan(name)
    monkeypatch.chdir(tmp_path)  # where nothing that `prepare` makes is there yet
    for scale in plan.scales:
        runs = plans.plan_runs(name, plan, scale, None, [])
        assert len({run.dir for run in runs}) == len(runs) == len(plan.arms) * len(plan.scales[scale].seeds)
    assert set(plan.paper) <= set(plan.arms)


def test_values_by_hand(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [
        {"problem": problem, "level": level, "verdict": "correct" if right else "incorrect"}
        for problem, level, verdicts in (("a", 1, (1, 0)), ("b", 5, (0, 0)))
        for right in verdicts
    ]
    (tmp_path / "completions").mkdir()
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "completions" / "eval-step000001.parquet")
    np.testing.assert_allclose(problem_values([tmp_path], "pass@1"), [[0.5, 0.0]])
    np.testing.assert_allclose(problem_values([tmp_path, tmp_path], "pass@2/level5"), [[0.0], [0.0]])
    other = tmp_path / "other"
    (other / "completions").mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows[2:]), other / "completions" / "eval-step000001.parquet")
    with pytest.raises(UserError, match="other problems"):
        problem_values([tmp_path, other], "pass@1")
    assert statistic(np.array([[1.0, 0.0], [1.0, 1.0]]))["seeds"] == [0.5, 1.0]


def test_the_command_is_known():
    assert "table" in cli.PROGRAMS


def test_ctrl_c_stops_the_runs_of_a_table_with_checkpoints(small, tmp_path):
    """The signal reaches the whole process group, as from a terminal; the same command goes on afterwards."""
    (small / "plan.yaml").write_text(
        PLAN.replace("debug=tiny,", "debug=tiny, trainer.max_steps=5000, evaluation.every=0,")
    )
    script = (
        "import sys, pathlib; from expo.experiments import plan, table\n"
        f"plan.EXPERIMENTS = table.EXPERIMENTS = pathlib.Path({str(tmp_path / 'experiments')!r})\n"
        "sys.exit(table.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "small", f"output_dir={tmp_path / 'out'}"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("out/ladder_level5/*/checkpoints/*.ckpt"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 143
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("out/ladder_level5/*/summary.json")]
    assert [s["status"] for s in summaries] == ["stopped", "stopped"]
    assert all(s.get("step") for s in summaries)  # written at a clean end only


def test_the_runs_of_a_table_are_a_group_in_wandb(small):
    runs = plans.plan_runs("small", plans.load_plan("small"), "cpu", [0], ["logger=wandb"])
    from conftest import compose_config

    cfg = compose_config(*runs[1].overrides)
    assert (cfg.logger.wandb.group, cfg.logger.wandb.job_type) == ("small", "exp")
    assert cfg.logger.wandb.tags == ["cpu", "ladder_level5", "ladder"]
    assert (
        runs[1].dir == plans.plan_runs("small", plans.load_plan("small"), "cpu", [0], [])[1].dir
    )  # not in its identity

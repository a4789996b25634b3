"""What people expect of many runs: names, rooms on the disk, runs sent afterwards, and runs that end by themselves."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import wandb
from conftest import compose_config
from hydra.errors import OverrideParseException
from running import run, scalars

from expo import cli
from expo.commands import export
from expo.commands import wandb as wandb_command
from expo.commands.runs import main as runs
from expo.config import UserError, check_anywhere, label
from expo.config.from_run import config_from_run, restore
from expo.config.naming import what_differs
from expo.data.reader import asked_in, set_apart
from expo.ground.problem import Problem
from expo.loggers.offline import read_offline
from expo.loggers.sync import sync
from expo.model import optimizers
from expo.runs import processes
from expo.tables.plan import load_plan
from expo.tables.planned import plan_runs
from expo.training.callbacks import Evaluate


def test_what_all_siblings_share_stands_last_and_gives_way_first():
    shared = ["trainer.max_steps=4", "dataset.limit=10"]
    told = what_differs(["optimizer.learning_rate=1e-3", *shared, "k=[1]"], set(), shared=shared)
    assert told == "learning_rate_1e-3+k_1+max_steps_4+limit_10"
    many = [f"optimizer.key{i}=123456789" for i in range(5)]
    told = what_differs(["optimizer.learning_rate=1e-3", *many], set(), shared=many)
    assert told.startswith("learning_rate_1e-3+key")
    assert told.endswith("_more")


def test_runs_of_a_sweep_are_called_by_what_tells_them_apart(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(processes, "run_expo", lambda line, environment, warm: lines.append(line) or 0)
    line = [
        "-m",
        "hydra/launcher=basic",
        "logger=wandb",
        f"output_dir={tmp_path}",
        "optimizer.learning_rate=1e-3,1e-4",
        "k=[1,2]",
    ]
    monkeypatch.setattr(sys, "argv", ["expo", "train", *line])
    with pytest.raises(SystemExit):
        cli.main()
    told = [next(a for a in line if a.startswith("differs=")) for line in lines]
    assert told == ["differs='learning_rate_0.001+k_1_2'", "differs='learning_rate_0.0001+k_1_2'"]
    groups = {a for line in lines for a in line if ".group=" in a}
    assert len(groups) == 1
    assert next(iter(groups)).startswith("logger.wandb.group=sweep-")


def test_a_run_of_a_table_has_its_arms_name_and_arms_that_share_one_have_one_directory():
    plan = load_plan("table3_levels", "cpu")
    made = plan_runs("table3_levels", plan, "cpu", [0], [])
    by_mark = {}
    for planned in made:
        by_mark.setdefault((planned.command, planned.mark), []).append(planned)
        assert planned.line[-1] == f"differs='{planned.cfg.differs}'"
    assert max(map(len, by_mark.values())) > 1
    for sharing in by_mark.values():
        first = sharing[0]
        assert {planned.dir for planned in sharing} == {first.dir}
        assert first.cfg.name == first.arm or first.arm in first.dir.name, first.dir
    plan = load_plan("table5_beta", "cpu")
    labels = [label(planned.cfg) for planned in plan_runs("table5_beta", plan, "cpu", [0], [])]
    assert len(set(labels)) == len(labels)


@pytest.mark.runs
def test_a_run_that_keeps_no_model_says_so_where_one_is_asked_for(tmp_path, monkeypatch):
    _, directory = run(tmp_path, "trainer.max_steps=2", "trainer.save_final=false")
    assert json.loads((directory / "summary.json").read_text())["status"] == "done"
    assert not (directory / "checkpoints").exists()
    for ask in (
        lambda: config_from_run("evaluate", [f"run={directory}"]),
        lambda: export.main([str(directory)]),
    ):
        with pytest.raises(UserError, match=r"its model was not kept \(trainer.save_final=false\)"):
            ask()


@pytest.mark.runs
def test_gc_takes_final_models_where_it_is_asked_to(tmp_path, capsys):
    _, directory = run(tmp_path, "trainer.max_steps=2")
    assert runs(["gc", f"output_dir={tmp_path}", "yes=true"]) == 0
    assert (directory / "checkpoints" / "final").is_dir()
    assert runs(["gc", f"output_dir={tmp_path}", "yes=true", "finals=true"]) == 0
    assert list((directory / "checkpoints").iterdir()) == []
    assert "removed 1 checkpoints and models" in capsys.readouterr().out
    with pytest.raises(UserError, match="finals=1: neither true nor false"):
        runs(["gc", f"output_dir={tmp_path}", "finals=1"])


@pytest.mark.long
@pytest.mark.runs
def test_a_finished_run_is_sent_to_wandb_afterwards_and_once(online, tmp_path, capsys):
    _, directory = run(tmp_path / "outputs", "trainer.max_steps=2")
    assert wandb_command.main(["upload", str(directory), "mode=offline", "group=g"]) == 0
    wandb.teardown()  # what is written asynchronously is there now
    made = read_offline(directory)
    assert (made.group, made.name) == ("g", label(restore(directory)))
    assert sync(tmp_path / "outputs") == 0
    (sent,) = online.runs.values()
    assert sent.steps == [0, 1, 2]
    for line in scalars(directory):
        got = next(row for row in sent.history if row["_step"] == line["step"])
        for name, value in line.items():
            if name != "step" and value is not None:
                assert got[name] == pytest.approx(value), name
    assert json.loads(sent.summary)["status"] == "done"
    assert wandb_command.main(["upload", str(directory), "group=g"]) == 0  # online, to a server that has it
    assert sent.steps == [0, 1, 2]
    with pytest.raises(OverrideParseException, match="'arm'"):  # which ends in one line, as a slip in any override
        wandb_command.main(["run", "demo", "arm"])
    with pytest.raises(UserError, match="mode=never"):
        wandb_command.main(["upload", str(directory), "mode=never"])


@pytest.mark.runs
def test_a_run_ends_where_it_gets_no_better_on_problems_of_its_own(tmp_path, capsys):
    line = ["trainer.max_steps=6", "evaluation.every=1", "evaluation.patience=2", "dataset.validation=4"]
    code, directory = run(tmp_path, *line, "trainer.stop_after=1")
    assert code == 0
    later = directory / "completions" / "eval-step000005.parquet"  # of a session that was killed
    later.touch()
    code, directory = run(tmp_path, *line)  # what it has waited for goes on
    assert not later.exists()
    summary = json.loads((directory / "summary.json").read_text())
    assert (code, summary["status"], summary["step"]) == (0, "done", 2)  # nothing is right on this level so early
    assert summary["metrics"]["validation/best_step"] == 0
    assert {"validation/pass@4", "validation/pass@4_lo"} <= summary["metrics"].keys()
    card = (directory / "checkpoints" / "best" / "README.md").read_text()
    assert "trained by exp_grpo for 0 steps" in card  # the best one's own steps, and what was measured then
    assert "| pass@4 | 0.0 |" in card
    account = json.loads((directory / "data.json").read_text())["parts"]
    assert (account["train"]["problems"], account["validation"]["problems"]) == (46, 4)
    run(tmp_path, *line)
    assert "is finished already" in capsys.readouterr().out
    _, longer = run(tmp_path, *line, "trainer.max_steps=8")  # one long run would have ended there, too
    assert json.loads((longer / "summary.json").read_text())["step"] == 2


def test_an_evaluation_of_a_session_that_left_no_checkpoint_counts(tmp_path):
    """It was interrupted, made up for by the next session, and that one was killed before its next checkpoint."""
    cfg = compose_config("dataset.validation=4", "evaluation.patience=2", "evaluation.every=50")
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "pass@4": 0.5, "validation/pass@4": 0.7}\n')
    stop = SimpleNamespace(enough=False)
    found = SimpleNamespace(cfg=cfg, dir=tmp_path, metrics={"pass@4": 0.5})
    for state, expected in (
        ({"best": 0.3, "best_step": 0, "idle": 1, "counted": 0}, (0.7, 50, 0)),
        ({"best": 0.8, "best_step": 0, "idle": 1, "counted": 50}, (0.8, 0, 1)),
        ({"best": 0.8, "best_step": 0, "idle": 1}, (0.8, 0, 1)),  # of before: its checkpoints have counted theirs
    ):
        callback = Evaluate(SimpleNamespace(validation=[1]), found, stop)
        callback.load_state_dict(state)
        callback.on_train_start(SimpleNamespace(current_epoch=50), None)
        assert (callback.best, callback.best_step, callback.idle) == expected


def test_patience_needs_problems_of_its_own():
    with pytest.raises(UserError, match=r"evaluation.patience=2: .*set dataset.validation"):
        check_anywhere(compose_config("evaluation.patience=2"))


def test_what_is_set_apart_asks_nothing_that_is_trained_on():
    def made(id, question):
        return Problem(id=id, question=question, answer="1")

    problems = [made(str(i), f"{i % 10}?") for i in range(20)]  # each is asked twice
    left, apart = set_apart(problems, 3)
    assert (len(left), len(apart)) == (14, 3)
    assert not {p.asked for p in left} & {p.asked for p in apart}
    assert set_apart(problems, 0) == (problems, [])
    with pytest.raises(UserError, match=r"dataset\.validation=10: no problem is left"):
        set_apart(problems, 10)
    told = [replace(p, earlier=(("system", "Be brief."),)) for p in problems]
    assert asked_in(told, apart) == asked_in(problems, apart)  # a usual system message makes no other question
    assert not asked_in([replace(p, answer="2") for p in told], apart)  # but it may set another task
    passages = [replace(made(str(i), "Is it so?"), earlier=(("system", f"Passage {i}"),)) for i in range(20)]
    assert asked_in(passages, passages[:3]) == {"0", "1", "2"}  # one of each row is what is asked


@pytest.mark.runs
@pytest.mark.parametrize(
    ("schedule", "shares"), [("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.85355, 0.5, 0.14645])]
)
def test_the_learning_rate_falls_over_the_run_and_over_its_sessions(tmp_path, monkeypatch, schedule, shares):
    rates, adamw = [], optimizers.adamw

    def noted(conf, weights):
        optimizer = adamw(conf, weights)
        optimizer.register_step_pre_hook(lambda o, *given: rates.append(o.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(optimizers, "adamw", noted)
    line = ["algorithm=sft", "trainer.max_steps=4", f"optimizer.schedule={schedule}", "optimizer.learning_rate=0.001"]
    run(tmp_path, *line, "trainer.stop_after=2")
    run(tmp_path, *line)
    assert rates == pytest.approx([0.001 * share for share in shares], rel=1e-4)
    assert compose_config(*line).optimizer.why_not_extendable  # a longer run is another one from its first step on

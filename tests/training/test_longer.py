"""A longer run goes on from a shorter one, where the result is that of one run."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import torch
from conftest import compose_config
from running import SMALL, run, scalars, weights

from expo.commands import runs
from expo.commands.train import train
from expo.config import UserError, identity, restore, run_dir
from expo.evaluation.evaluate import Evaluator
from expo.ground.files import unused
from expo.runs.directory import Run
from expo.runs.reading import read_rows, read_summary
from expo.training.collapse import WatchHealth
from expo.training.shorter import inherit

BUSY = ["dataset=ladder", "dataset.levels=[2]", "evaluation.every=2"]


def files(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.parametrize(
    ("overrides", "first"),
    [
        (["algorithm.kl_coef=0.05"], 3),
        (["algorithm=exp_dpo_online", "algorithm.pairs_every=2"], 2),
        (["positives.cache_steps=8", "dataset.limit=12"], 3),
    ],
)
def test_a_longer_run_goes_on_from_a_shorter_one_bit_for_bit(tmp_path, capsys, overrides, first):
    _, shorter = run(tmp_path / "a", *BUSY, *overrides, f"trainer.max_steps={first}")
    capsys.readouterr()
    code, longer = run(tmp_path / "a", *BUSY, *overrides, "trainer.max_steps=5")
    assert f"{shorter} is this run but for trainer.max_steps={first}" in capsys.readouterr().out
    _, whole = run(tmp_path / "b", *BUSY, *overrides, "trainer.max_steps=5")
    assert code == 0
    assert scalars(longer) == scalars(whole)
    assert [f for f in files(longer) if "pairs" not in f] == [f for f in files(whole) if "pairs" not in f]
    ours, theirs = weights(longer), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert shorter.is_dir()


@pytest.mark.runs
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["positives.schedule=linear"], "positives.schedule=linear changes with the share of the run done"),
        (["dataset.validation=4"], "that one also chose a policy at its end, step 3"),
        (["algorithm=exp_dpo_offline"], "DPO makes the pairs"),
        (["algorithm=exp_dpo_online", "algorithm.pairs_every=2"], "DPO makes the pairs"),  # 3 is in a round
    ],
)
def test_where_the_length_matters_it_begins_anew_and_says_why(tmp_path, capsys, overrides, reason):
    run(tmp_path, *BUSY, *overrides, "trainer.max_steps=3", "evaluation.every=0")
    cfg = longer_of(tmp_path)
    capsys.readouterr()
    assert inherit(Run.find(cfg), evaluated_on(tmp_path)) == 0
    assert f"this one begins anew: {reason}" in capsys.readouterr().out


def evaluated_on(folder):
    """An evaluator, as far as its problems go."""
    (first,) = folder.glob("*/*/completions/eval-step000000.parquet")
    return SimpleNamespace(problems=[SimpleNamespace(id=row["problem"]) for row in read_rows(first)])


def longer_of(folder):
    (path,) = folder.glob("*/*/config.yaml")
    cfg = restore(path.parent)
    cfg.trainer.max_steps = 9
    return cfg


@pytest.mark.runs
def test_another_seed_or_setting_is_no_shorter_run(tmp_path, capsys):
    run(tmp_path, *BUSY, "trainer.max_steps=1", "evaluation.every=0")
    cfg = longer_of(tmp_path)
    shorter = restore(next(tmp_path.glob("*/*/config.yaml")).parent)
    for changed in ("seed", "group_size"):
        other = longer_of(tmp_path)
        if changed == "seed":
            other.seed = 1
        else:
            other.algorithm.group_size = 6
        assert inherit(Run.find(other), evaluated_on(tmp_path)) == 0
    capsys.readouterr()
    found = Run.find(cfg)
    found.begin()
    with unused(Run.find(shorter).dir) as free:  # a process works on the shorter one
        assert free
        assert inherit(found, evaluated_on(tmp_path)) == 0
    assert "a process works on that one" in capsys.readouterr().out
    assert inherit(found, SimpleNamespace(problems=[])) == 0
    assert "other held-out problems" in capsys.readouterr().out
    assert inherit(found, evaluated_on(tmp_path)) == 1


@pytest.mark.runs
def test_gc_lets_a_checkpoint_be_that_is_being_taken_over(tmp_path, monkeypatch, capsys):
    run(tmp_path, *BUSY, "trainer.max_steps=1", "evaluation.every=0")
    copy = shutil.copyfile

    def copy_meanwhile(*files, **options):
        assert runs.collect([f"output_dir={tmp_path}", "yes=true"]) == 0
        return copy(*files, **options)

    monkeypatch.setattr(shutil, "copyfile", copy_meanwhile)
    found = Run.find(longer_of(tmp_path))
    found.begin()
    assert inherit(found, evaluated_on(tmp_path)) == 1
    assert "a process works on it; its checkpoints stay" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/*/checkpoints/step*.ckpt"))) == 2


OWN = ["model=random_tiny", "dataset=custom", "rollout.max_completion_tokens=8", "evaluation.every=0", "algorithm=grpo"]


def own_data(path, first):
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(first, first + 20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"dataset.path={path}"


@pytest.mark.runs
def test_a_run_on_other_data_of_the_same_path_is_no_shorter_run(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    run(tmp_path / "out", *OWN, own_data(path, 0), "trainer.max_steps=1")
    run(tmp_path / "out", *OWN, own_data(path, 500), "trainer.max_steps=2")
    assert "is this run but for" not in capsys.readouterr().out
    path.unlink()  # a run whose data are gone stops no other one
    other = own_data(tmp_path / "other.jsonl", 0)
    assert run(tmp_path / "out", *OWN, other, "trainer.max_steps=3")[0] == 0


@pytest.mark.runs
def test_a_data_file_that_changes_during_a_run_changes_nothing_of_the_run(tmp_path, monkeypatch):
    path = tmp_path / "mine.jsonl"
    data = own_data(path, 0)
    evaluate = Evaluator.evaluate

    def edit(self, engine):
        path.unlink(missing_ok=True)
        return evaluate(self, engine)

    monkeypatch.setattr(Evaluator, "evaluate", edit)
    cfg = compose_config(f"output_dir={tmp_path / 'out'}", *SMALL, *OWN, data, "trainer.max_steps=1")
    assert train(cfg) == 0
    (directory,) = (tmp_path / "out" / "custom-mine").iterdir()
    summary = read_summary(directory)
    assert (summary["status"], summary["identity"]) == ("done", directory.name[-10:])


@pytest.mark.runs
def test_a_session_with_other_held_out_problems_is_refused(tmp_path):
    small = [*OWN, own_data(tmp_path / "mine.jsonl", 0), "trainer.max_steps=2"]
    _, directory = run(tmp_path / "out", *small, "trainer.stop_after=1")
    first = directory / "completions" / "eval-step000000.parquet"
    rows = [row | {"problem": f"other:{row['problem']}"} for row in read_rows(first)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), first)
    with pytest.raises(UserError, match="other held-out problems"):
        run(tmp_path / "out", *small)


@pytest.mark.runs
def test_two_names_of_one_run_share_its_directory_and_lock(tmp_path):
    small = [f"output_dir={tmp_path}", *SMALL, "trainer.max_steps=1"]
    one, two = (Run.find(compose_config(*small, f"name={name}")) for name in ("one", "two"))
    one.begin()
    with one.alone(), unused(Run.find(two.cfg).dir) as free:
        assert not free
    assert Run.find(two.cfg).dir == one.dir


def test_of_several_directories_the_one_that_is_done_is_the_run(tmp_path):
    cfg = compose_config(f"output_dir={tmp_path}")
    mark = identity(cfg)
    for name, files in (
        ("a", ["pairs/x"]),
        ("b", ["config.yaml"]),
        ("c", ["config.yaml", "checkpoints/step000001.ckpt"]),
    ):
        for file in files:
            path = tmp_path / "ladder_level5" / f"{name}-{mark}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    assert run_dir(cfg).name[0] == "c"
    (tmp_path / "ladder_level5" / f"b-{mark}" / "summary.json").write_text('{\n "status": "done"}')
    assert run_dir(cfg).name[0] == "b"


@pytest.mark.runs
def test_loggers_get_the_steps_that_were_taken_over(tmp_path):
    small = [*OWN, own_data(tmp_path / "mine.jsonl", 0), "logger=csv"]
    run(tmp_path / "out", *small, "trainer.max_steps=1")
    _, longer = run(tmp_path / "out", *small, "trainer.max_steps=2", "logger=tensorboard")
    assert [line["step"] for line in scalars(longer)] == [0, 1, 2, 2]
    if importlib.util.find_spec("tensorboard"):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(longer / "tensorboard"))
        events.Reload()
        assert [e.step for e in events.Scalars("reward/mean")] == [1, 2]


def test_what_an_evaluation_of_the_runs_end_alone_shows_is_no_state_of_a_longer_run():
    collapse = {"metric": "pass@1"}
    for step, kept in ((7, []), (8, [collapse])):
        watch = WatchHealth(SimpleNamespace(dir=Path(), collapses=[], metrics={}), "warn", 4, "")
        watch.see_evaluation = lambda trainer, run=watch.run: setattr(run, "collapses", [collapse])
        watch.on_train_end(SimpleNamespace(current_epoch=step), None)
        assert watch.state_dict()["collapses"] == kept
        assert watch.run.collapses == [collapse]  # the run itself tells it

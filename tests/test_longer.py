"""A longer run goes on from a shorter one, where the result is that of one run."""

import pytest
import torch
from test_train import run, scalars, weights

from expo.config import restore
from expo.runs.directory import Run
from expo.runs.shorter import inherit

BUSY = ["dataset=ladder", "dataset.levels=[2]", "evaluation.every=2"]


def files(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


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
        (["algorithm=exp_dpo_offline"], "DPO makes the pairs"),
        (["algorithm=exp_dpo_online", "algorithm.pairs_every=2"], "DPO makes the pairs"),  # 3 is in a round
    ],
)
def test_where_the_length_matters_it_begins_anew_and_says_why(tmp_path, capsys, overrides, reason):
    run(tmp_path, *BUSY, *overrides, "trainer.max_steps=3", "evaluation.every=0")
    cfg = longer_of(tmp_path)
    capsys.readouterr()
    assert inherit(Run.find(cfg)) == 0
    assert f"this one begins anew: {reason}" in capsys.readouterr().out


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
        assert inherit(Run.find(other)) == 0
    capsys.readouterr()
    found = Run.find(cfg)
    found.begin()
    with Run.find(shorter).unused() as unused:  # a process works on the shorter one
        assert unused
        assert inherit(found) == 0
    assert inherit(found) == 1

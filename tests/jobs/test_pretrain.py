"""`expo pretrain`, small."""

import signal

import pytest
import torch
from conftest import compose_config

from expo.config import ModelConf, UserError
from expo.config.identity import made_as
from expo.jobs import pretrain as base_policy
from expo.jobs.pretrain import pretrain
from expo.model.policy import load_policy


def test_what_pretrain_of_0_1_began_goes_on(tmp_path):
    assert base_policy.unfinished_folder(compose_config("dataset=ladder")).name == "pretrain.partial-4f6045bf"


def crash():
    raise RuntimeError("crash")


@pytest.mark.runs
@pytest.mark.parametrize(
    ("ends", "at", "kept", "error"),
    [
        (lambda: signal.raise_signal(signal.SIGTERM), 2, 3, "143"),  # 0 would let a table go on without its model
        (crash, 3, 2, "crash"),
    ],
)
def test_pretrain_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys, ends, at, kept, error):
    small = ["pretrain.max_steps=4", "pretrain.tokens_per_batch=300", "pretrain.warmup_steps=1"]
    monkeypatch.setattr(base_policy, "SAY_EVERY_S", 0)
    monkeypatch.setattr(base_policy, "CHECKPOINT_EVERY", 2)
    pretrain(compose_config(*small, f"pretrain.output={tmp_path / 'whole'}"))
    assert "pretrain step 4/4 loss" in capsys.readouterr().out
    step, cut = base_policy.Pretrain.training_step, compose_config(*small, f"pretrain.output={tmp_path / 'cut'}")

    def dies(self, batch, batch_idx):
        if self.global_step == at:
            ends()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(base_policy.Pretrain, "training_step", dies)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises((SystemExit, RuntimeError), match=error):
        pretrain(cut)
    assert ("stopped at step 3; the same command goes on" in capsys.readouterr().err) is (error == "143")
    monkeypatch.setattr(base_policy.Pretrain, "training_step", step)
    pretrain(cut)
    for number, handler in before.items():
        signal.signal(number, handler)
    said = capsys.readouterr().out
    assert f"step {kept}/4" not in said
    assert f"step {kept + 1}/4" in said
    (whole, _), (resumed, _) = (load_policy(ModelConf(path=str(tmp_path / name))) for name in ("whole", "cut"))
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_pretrain_refuses_a_file_for_a_folder_before_it_works(tmp_path):
    (tmp_path / "base").write_text("")
    with pytest.raises(UserError, match=r"pretrain.output=.*a file"):
        pretrain(compose_config(f"pretrain.output={tmp_path / 'base'}"))


def test_pretrain_makes_a_model_that_loads(tmp_path):
    cfg = compose_config(
        "pretrain.max_steps=2", "pretrain.tokens_per_batch=300", f"pretrain.output={tmp_path / 'base'}"
    )
    pretrain(cfg)
    model, tokenizer = load_policy(ModelConf(path=str(tmp_path / "base")))
    assert tokenizer.decode(tokenizer("(1) 3 + 4")["input_ids"]) == "(1) 3 + 4"
    assert model.num_parameters() < 500_000
    assert "pretrain.max_steps=2" in (tmp_path / "base" / "README.md").read_text()


@pytest.mark.runs
def test_pretrain_makes_no_model_twice_and_writes_over_no_other(tmp_path, capsys):
    small = ["pretrain.max_steps=2", "pretrain.tokens_per_batch=300", f"pretrain.output={tmp_path / 'base'}"]
    weights = tmp_path / "base" / "model.safetensors"
    pretrain(compose_config(*small))
    made = weights.read_bytes()
    weights.touch()
    before = weights.stat().st_mtime_ns
    capsys.readouterr()
    pretrain(compose_config(*small))
    assert "base is finished already" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"pretrain.output=.*holds another model, or one of an earlier expo; set another folder"
    ):
        pretrain(compose_config(*small, "seed=1"))
    assert (weights.stat().st_mtime_ns, weights.read_bytes()) == (before, made)
    pretrain(compose_config(*small, "seed=1", "fresh=true"))
    assert weights.read_bytes() != made
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter; set another folder"):
        pretrain(compose_config(*small, "seed=2", "fresh=true"))


@pytest.mark.runs
def test_of_two_pretrains_of_one_folder_the_later_writes_over_nothing(tmp_path, monkeypatch):
    small = ["pretrain.max_steps=2", "pretrain.tokens_per_batch=300", f"pretrain.output={tmp_path / 'base'}"]
    card = base_policy.card

    def meanwhile(*args):
        monkeypatch.setattr(base_policy, "card", card)
        pretrain(compose_config(*small))
        return card(*args)

    monkeypatch.setattr(base_policy, "card", meanwhile)
    with pytest.raises(UserError, match="holds another model"):
        pretrain(compose_config(*small, "seed=1"))
    assert made_as(tmp_path / "base", compose_config(*small))


@pytest.mark.parametrize("fresh", [False, True])
def test_fresh_begins_a_base_policy_from_nothing(tmp_path, monkeypatch, fresh):
    cfg = compose_config("pretrain.max_steps=2", f"pretrain.output={tmp_path / 'made'}", f"fresh={str(fresh).lower()}")
    begun = base_policy.unfinished_folder(cfg) / "checkpoints" / "step000001.ckpt"
    begun.parent.mkdir(parents=True)
    begun.touch()

    def look(folder):
        assert begun.exists() != fresh
        raise InterruptedError

    monkeypatch.setattr(base_policy, "newest_checkpoint", look)
    with pytest.raises(InterruptedError):
        pretrain(cfg)

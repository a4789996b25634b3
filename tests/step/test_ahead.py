"""`rollout.ahead=1`: the next step is generated while this one is trained on, with weights one update old."""

import copy
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import compose_config
from running import run, scalars, weights

from expo.algorithms.grpo import GRPO
from expo.config import EngineError, UserError, check_anywhere
from expo.cost.machine import DEVICES
from expo.cost.run import Work
from expo.cost.seconds import seconds
from expo.rollout.engine import Completion, Engine, Request, Sampling
from expo.rollout.noise import SOLVE, NoiseKey
from expo.rollout.transformers_engine import TransformersEngine
from expo.step.collecting import CollectorAhead, KeepingEngine
from expo.step.positives import bank
from expo.step.positives.bank import BankedEngine
from expo.training import callbacks
from expo.training.checkpoints import newest_checkpoint

# An engine beside the trainer, on transformers: of vLLM's, all but the process.
APART = ["dataset=ladder", "rollout=vllm_server", "rollout.requires=''", "rollout.max_completion_tokens=40"]
APART += ["algorithm.sampler_correction=token", "optimizer.learning_rate=1e-3", "trainer.max_steps=5"]
APART += ["dataset.levels=[1,2]"]
EXP_GRPO = ["algorithm=exp_grpo", "positives.measure_every=0"]
CURRENT = [*EXP_GRPO, "positives.explainer=current", "positives.gate=all_wrong"]
AHEAD = [*APART, "rollout._target_=test_ahead.Apart", "rollout.ahead=1"]
SAMPLING = Sampling(1.0, 1.0, 0, 8)


class Apart(TransformersEngine):
    """An engine that has a copy of the weights, and new ones by `sync` alone."""

    def __init__(self, conf, model, tokenizer):
        super().__init__(conf, copy.deepcopy(model), tokenizer)
        self.trained = model

    def sync(self):
        self.model.load_state_dict(self.trained.state_dict())


class Lagging(Apart):
    """An engine that generates in turn, with the weights of the sync before."""

    def __init__(self, conf, model, tokenizer):
        super().__init__(conf, model, tokenizer)
        self.last = copy.deepcopy(model.state_dict())

    def sync(self):
        self.model.load_state_dict(self.last)
        self.last = copy.deepcopy(self.trained.state_dict())


class Own(GRPO):
    """An algorithm of one's own, whose update may correct for nothing."""


def trained(directory):
    return [line for line in scalars(directory) if "loss/total" in line]


@pytest.mark.runs
@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=grpo", "algorithm.kl_coef=0.04"],
        pytest.param([*EXP_GRPO, "positives.bank=false"], marks=pytest.mark.long),
        pytest.param(EXP_GRPO, marks=pytest.mark.long),
        pytest.param(CURRENT, marks=pytest.mark.long),
        pytest.param(["algorithm=grpo", "algorithm.refills=1"], marks=pytest.mark.long),
        pytest.param(["algorithm=pope"], marks=pytest.mark.long),
        pytest.param(["algorithm=nurl", "hints.measure_every=0"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_each_step_learns_from_what_the_weights_one_update_before_generate(overrides, tmp_path):
    """The same run, in turn, with an engine that is one sync late."""
    options = [*overrides, "evaluation.every=0", "evaluation.first=false"]
    code, ahead = run(tmp_path / "ahead", *AHEAD, *options)
    assert code == 0
    code, late = run(tmp_path / "late", *APART, "rollout._target_=test_ahead.Lagging", *options)
    assert code == 0
    assert trained(ahead) == trained(late)
    _, in_turn = run(tmp_path / "turn", *APART, "rollout._target_=test_ahead.Apart", *options)
    assert trained(ahead)[:1] == trained(in_turn)[:1]
    assert trained(ahead)[1:] != trained(in_turn)[1:]


@pytest.mark.runs
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(EXP_GRPO, marks=pytest.mark.long),
        CURRENT,
    ],
    ids=" ".join,
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(overrides, tmp_path):
    options = [*AHEAD, *overrides, "evaluation.every=2"]
    _, whole = run(tmp_path / "whole", *options, "trainer.checkpoint_every=5")
    for stop in (1, 3, 5):
        _, parts = run(tmp_path / "parts", *options, f"trainer.stop_after={stop}", "trainer.checkpoint_every=5")
    assert scalars(parts) == scalars(whole)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(parts)[name]), name


@pytest.mark.runs
def test_the_next_step_is_generated_while_this_one_is_updated(tmp_path, monkeypatch):
    """Each would wait for the other for ever, if it went in turn."""
    generates = {step: threading.Event() for step in range(4)}
    generate, update = Apart.generate, GRPO.update

    def told(self, requests, *args):
        if requests[0].key.stream == SOLVE:
            generates[requests[0].key.step].set()
        return generate(self, requests, *args)

    def waits(self, experience):
        assert experience.step == 3 or generates[experience.step + 1].wait(60)
        return update(self, experience)

    monkeypatch.setattr(Apart, "generate", told)
    monkeypatch.setattr(GRPO, "update", waits)
    code, directory = run(tmp_path, *AHEAD, "algorithm=grpo", "trainer.max_steps=4", "evaluation.first=false")
    assert code == 0
    assert len(trained(directory)) == 4


@pytest.mark.runs
def test_an_engine_that_fails_ahead_ends_the_run_with_its_error(tmp_path, monkeypatch, capsys):
    generate = Apart.generate

    def fails(self, requests, *args):
        if requests[0].key.stream == SOLVE and requests[0].key.step == 2:
            raise EngineError("vLLM stopped working")
        return generate(self, requests, *args)

    monkeypatch.setattr(Apart, "generate", fails)
    options = ["algorithm=grpo", "trainer.max_steps=4", "evaluation.first=false", "trainer.checkpoint_every=1"]
    code, directory = run(tmp_path, *AHEAD, *options)
    assert code == 1
    assert "vLLM stopped working" in capsys.readouterr().err
    # The checkpoint after step 2 would lack what step 3 learns from.
    assert [path.name for path in (directory / "checkpoints").glob("step*")] == ["step000000.ckpt"]
    monkeypatch.undo()
    code, directory = run(tmp_path, *AHEAD, *options)
    _, whole = run(tmp_path / "whole", *AHEAD, *options)
    assert (code, scalars(directory)) == (0, scalars(whole))


@pytest.mark.runs
def test_a_run_does_not_go_on_with_other_rollouts_than_its_checkpoint_has(tmp_path, capsys):
    """Those of its weights as they are now would be of another run, and look as good."""
    options = [*AHEAD, "algorithm=grpo", "evaluation.first=false"]
    _, directory = run(tmp_path, *options, "trainer.stop_after=2")
    path = newest_checkpoint(directory)
    state = torch.load(path, weights_only=True)
    assert state["ahead"]["keys"]
    torch.save(state | {"ahead": {}}, path)
    with pytest.raises(UserError, match="step 3 asks for other completions"):
        run(tmp_path, *options)


@pytest.mark.runs
def test_an_evaluation_waits_before_it_touches_anything(tmp_path, monkeypatch):
    """A tokenizer that two threads use raises "Already borrowed"."""
    seen, waited, rows = [], threading.Event(), callbacks.experience_rows
    generate, current_engine, evaluate = Apart.generate, CollectorAhead.current_engine, callbacks.Evaluate.evaluate

    def generates_once_waited_for(self, *args):
        if threading.current_thread() is not threading.main_thread():
            waited.wait(5)
        return generate(self, *args)

    def waits(self):
        waited.set()
        return current_engine(self)

    def noted(self, trainer, module, step):
        monkeypatch.setattr(
            callbacks,
            "experience_rows",
            lambda *a: seen.append(not module.collector.next or module.collector.next.done()) or rows(*a),
        )
        evaluate(self, trainer, module, step)
        waited.clear()

    monkeypatch.setattr(Apart, "generate", generates_once_waited_for)
    monkeypatch.setattr(CollectorAhead, "current_engine", waits)
    monkeypatch.setattr(callbacks.Evaluate, "evaluate", noted)
    assert run(tmp_path, *AHEAD, "algorithm=grpo", "evaluation.every=1", "trainer.max_steps=3")[0] == 0
    assert seen == [True, True, True]


@pytest.mark.runs
def test_a_bank_that_goes_meanwhile_is_not_written_under_a_policy_in_training(tmp_path, monkeypatch):
    """To write it, the policy gets its first weights back for a while."""
    writes, fill = [], BankedEngine._write

    def noted(self, *args):
        writes.append(threading.current_thread() is threading.main_thread())
        return fill(self, *args)

    submit = ThreadPoolExecutor.submit

    def after_the_loss(self, *args):
        if self._thread_name_prefix == "expo-ahead":
            shutil.rmtree(tmp_path / "banks")
        return submit(self, *args)

    monkeypatch.setattr(bank, "PART", 1)  # each step is a part of its own
    monkeypatch.setattr(BankedEngine, "_write", noted)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", after_the_loss)
    options = ["evaluation.first=false", "trainer.max_steps=2"]
    assert run(tmp_path, *AHEAD, *EXP_GRPO, *options)[0] == 0
    assert writes
    assert all(writes)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rollout=vllm"], "use rollout=vllm_server"),
        (["algorithm=exp_dpo_offline"], "corrects for rollouts of older weights"),
        (["algorithm=grpo", "algorithm._target_=test_ahead.Own"], "corrects for rollouts of older weights"),
        (["algorithm=sdpo"], "corrects for rollouts of older weights"),
        (["algorithm.sampler_correction=none"], "set algorithm.sampler_correction=token"),
        (["algorithm.retry=0.5", "positives.gate=all_wrong"], "set algorithm.retry=1"),
        (["positives.explainer=snapshot"], "set positives.explainer=reference or current"),
        (["positives.measure_every=10"], "set positives.measure_every=0"),
        (["positives.cache_steps=3"], "set positives.cache_steps=0"),
        (["positives.selection=most_likely", "positives.samples=2"], "set positives.selection=first"),
        (["trainer.devices=2"], "set trainer.devices=1"),
        (["trainer.on_collapse=rollback"], "set trainer.on_collapse=stop"),
    ],
)
def test_what_would_look_at_a_policy_in_training_is_refused(overrides, told):
    base = ["dataset=ladder", "rollout=vllm_server", *EXP_GRPO, "rollout.ahead=1"]
    check_anywhere(compose_config(*base))
    given = [*base[:2], *overrides, base[-1]] if overrides[0].startswith("algorithm=") else [*base, *overrides]
    with pytest.raises(UserError, match=told):
        check_anywhere(compose_config(*given))


def test_rollouts_of_older_weights_are_corrected_unless_the_user_says_how():
    base = ["dataset=ladder", "rollout=vllm_server", "algorithm=grpo", "rollout.dtype=float32"]
    assert compose_config(*base).algorithm.sampler_correction == "none"
    assert compose_config(*base, "rollout.ahead=1").algorithm.sampler_correction == "token"


def test_a_plan_counts_what_goes_on_at_the_same_time_once():
    base = ["dataset=math", "model.path=Qwen/Qwen2.5-3B-Instruct", "rollout=vllm_server", "algorithm=grpo"]
    in_turn, ahead = (
        seconds(Work.of(compose_config(*base, f"rollout.ahead={ahead}")), DEVICES["h100"]) for ahead in (0, 1)
    )
    longest = max(in_turn["rollouts"], in_turn["update"])
    assert sum(ahead.values()) == pytest.approx(longest + in_turn["sync"])


class Letters(Engine):
    """Generates the row of each request; asks `follow` once, of all."""

    def generate(self, requests, sampling, follow=None):
        done = [Completion(r.prompt, [r.key.row], [-0.1 * r.key.row], False, r.problem) for r in requests]
        more = follow(dict(enumerate(done))) if follow else []
        return done + (self.generate(more, sampling) if more else [])


def test_completions_are_given_out_again_with_those_that_followed():
    requests = [Request((1, row), NoiseKey(0, SOLVE, 3, row), row) for row in range(3)]
    after = [Request((2,), NoiseKey(0, SOLVE, 3, 9), 1)]
    first, second = KeepingEngine(Letters()), KeepingEngine(Engine())  # Engine generates nothing
    made = first.generate(requests, SAMPLING, lambda ended: after if len(ended) == 3 else [])
    assert len(made) == 4
    second.load_state_dict(first.state_dict())
    assert second.generate(requests, SAMPLING, lambda ended: after if len(ended) == 3 else []) == made
    assert sorted(second.state_dict()["keys"]) == sorted(first.state_dict()["keys"])  # for the next checkpoint


def test_a_checkpoint_that_lacks_a_completion_is_refused():
    engine, lacking = KeepingEngine(Letters()), KeepingEngine(Letters())
    requests = [Request((1, row), NoiseKey(0, SOLVE, 3, row), row) for row in range(3)]
    engine.generate(requests[:2], SAMPLING)
    lacking.load_state_dict(engine.state_dict())
    with pytest.raises(UserError, match="step 4 asks for other completions"):
        lacking.generate(requests, SAMPLING)
    other = KeepingEngine(Letters())
    other.load_state_dict(engine.state_dict())
    with pytest.raises(UserError, match="step 4 asks for other completions"):  # as after another hint
        other.generate([replace(requests[0], prompt=(1, 5))], SAMPLING)
    before = {name: value for name, value in engine.state_dict().items() if name != "prompts"}
    other.load_state_dict(before)  # a checkpoint of before
    with pytest.raises(UserError, match="step 4 asks for other completions"):
        other.generate(requests[:2], SAMPLING)

"""Every algorithm of conf/algorithm runs on real data formats; what differs in their wiring, on the ladder."""

import copy
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import transformers
from conftest import TESTS, compose_config

from expo import config
from expo.commands.train import train
from expo.config import check
from expo.config.explaining import When
from expo.jobs.process import set_up_process
from expo.jobs.wiring import build_run
from expo.step.rewards import rewards_of
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier

ALGORITHMS = sorted(f.stem for f in (config.conf_dir() / "algorithm").glob("*.yaml"))
SMALL = [
    "trainer.problems_per_step=2",
    "trainer.micro_batch_size=4",
    "dataset.limit=50",
    "dataset.eval_limit=2",
    "evaluation.every=0",
]


# Every scalar of two steps of every algorithm, as one machine makes it. GOLDEN=make pytest -n 0
# tests/algorithms/test_algorithms.py -k every_algorithm makes it anew, in a commit that says why a scalar changes.
GOLDEN = TESTS.joinpath("golden_scalars.json")


def machine() -> list[str]:
    """What a scalar's last digit depends on: the CPU's model and what it can do, and the libraries."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = sorted(set(re.findall(r"^(?:model name|cpu family|model|flags)\s*:.*$", told, re.MULTILINE)))
    return [hashlib.sha256("\n".join(cpu).encode()).hexdigest()[:16], torch.__version__, transformers.__version__]


def exact(line: dict) -> dict:
    """A line of metrics.jsonl without what a clock makes."""
    return {k: v for k, v in line.items() if not k.startswith("time/") and k != "throughput/tokens_per_s"}


def run(tmp_path, *overrides):
    cfg = compose_config(f"output_dir={tmp_path}", *SMALL, *overrides)
    check(cfg)
    assert train(cfg) == 0
    lines = [json.loads(line) for line in (config.run_dir(cfg) / "metrics.jsonl").read_text().splitlines()]
    return config.run_dir(cfg), [line for line in lines if "loss/total" in line]


def test_the_matrix_of_the_paper_and_its_rivals_is_there():
    assert {
        "sft",
        "exp_sft",
        "star",
        "exp_dpo_offline",
        "exp_dpo_online",
        "dpo_expert_offline",
        "dpo_expert_online",
        "grpo",
        "grpo_sft_gt_cot",
        "exp_grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "rloo",
        "luffy",
        "nurl",
        "pope",
        "opsd",
        "opsd_answer",
        "op2sd",
        "sdpo",
        "sdpg",
        "rlcsd",
        "exp_grpo_distill",
    } <= set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains_on_math(algorithm, tmp_path, math_file, monkeypatch):
    # A random model is never right: so that every stream is busy, a completion is judged by its length.
    def score(self, texts, answers):
        return [(Verdict.CORRECT, 1.0) if len(text) % 2 else (Verdict.INCORRECT, 0.0) for text in texts]

    monkeypatch.setattr(Verifier, "score", score)
    filters = (
        []
        if compose_config(f"algorithm={algorithm}").positives._target_.endswith("NoPositives")
        else ["positives.filters=[]"]
    )
    directory, lines = run(
        tmp_path, "dataset=math", f"dataset.path={math_file}", "model=random_tiny", "trainer.max_steps=2",
        f"algorithm={algorithm}", "rollout.max_completion_tokens=16", *filters,
    )  # fmt: skip
    assert len(lines) == 2
    assert sum(line["throughput/tokens_trained"] for line in lines) > 0
    assert sum(line["policy/grad_norm"] for line in lines) > 0
    names = {name for line in lines for name in line}
    assert {"reward/mean", "loss/total", "loss/policy", "loss/sft", "policy/ratio_mean", "positive/used_frac"} <= names
    golden, scalars = json.loads(GOLDEN.read_text()), [exact(line) for line in lines]
    if os.environ.get("GOLDEN") == "make":
        golden = {"machine": machine(), "scalars": golden["scalars"] | {algorithm: scalars}}
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    if golden["machine"] == machine():  # elsewhere, rounding is another, and with it a sampled token
        assert scalars == golden["scalars"][algorithm]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "done"
    trained = pyarrow.parquet.read_table(directory / "completions" / "train-step000002.parquet")
    assert trained.num_rows >= 2


@pytest.mark.runs
def test_expert_solutions_train_a_random_model_on_math(tmp_path, math_file):
    _, lines = run(
        tmp_path, "dataset=math", f"dataset.path={math_file}", "model=random_tiny", "trainer.max_steps=8",
        "algorithm=sft", "optimizer.learning_rate=1e-3", "trainer.packing=true",
    )  # fmt: skip
    assert lines[-1]["loss/sft"] < lines[0]["loss/sft"]
    assert lines[0]["reward/mean"] is None  # it makes no rollouts


@pytest.mark.runs
def test_pairs_of_the_initial_policy_are_shared_and_those_of_later_rounds_are_not(tmp_path):
    common = ["trainer.max_steps=4", "algorithm=exp_dpo_online", "algorithm.pairs_every=2"]
    first, lines = run(tmp_path, *common)
    shared = list(tmp_path.glob("ladder_level5/pairs/*/pairs-step000000.parquet"))
    assert len(shared) == 1
    made = shared[0].stat().st_mtime_ns
    assert [p.name for p in (first / "pairs").glob("*.parquet")] == ["pairs-step000002.parquet"]
    assert lines[0]["throughput/tokens_generated"] > 0
    assert lines[1]["throughput/tokens_generated"] == 0
    assert lines[0]["pair/used_frac"] == 1
    _, other = run(tmp_path, *common, "algorithm.beta=0.5")
    assert shared[0].stat().st_mtime_ns == made
    assert len(list(tmp_path.glob("ladder_level5/pairs/*"))) == 1
    # The second run has them too: their cost counts wherever they are used.
    assert other[0]["throughput/tokens_generated"] == lines[0]["throughput/tokens_generated"]
    assert other[0]["pair/chosen_logp"] == lines[0]["pair/chosen_logp"]


@pytest.mark.runs
def test_a_falling_chosen_likelihood_is_said_once(tmp_path, caplog):
    run(
        tmp_path, "trainer.max_steps=6", "algorithm=dpo_expert_offline", "optimizer.learning_rate=3e-2",
        "algorithm.beta=1.0",
    )  # fmt: skip
    said = [r.message for r in caplog.records if "chosen completions are less likely" in r.message]
    assert len(said) == 1


def module(tmp_path, *overrides):
    cfg = compose_config(f"output_dir={tmp_path}", *SMALL, *overrides)
    set_up_process(cfg)
    check(cfg)
    return cfg, build_run(cfg, Verifier(cfg.verifier))[0]


@pytest.mark.runs
def test_a_star_round_begins_from_the_base_weights(tmp_path):
    directory, _ = run(
        tmp_path, "trainer.max_steps=3", "algorithm=star", "algorithm.restart_every=2", "optimizer.learning_rate=1e-2",
        "dataset.levels=[1]", "dataset=ladder",
    )  # fmt: skip
    import torch

    from expo.model.policy import load_policy
    from expo.training.checkpoints import newest_checkpoint

    state = torch.load(newest_checkpoint(directory), weights_only=True)
    base, _ = load_policy(config.ModelConf(path="ladder"))
    steps = {int(s["step"]) for s in state["optimizer_states"][0]["state"].values()}
    assert steps == {1}  # the optimizer of the second round has taken one step
    weight = "model.embed_tokens.weight"
    moved = (state["state_dict"][f"policy.{weight}"] - base.state_dict()[weight]).abs().max()
    acted = (state["state_dict"][f"snapshot.{weight}"] - base.state_dict()[weight]).abs().max()
    assert moved <= 1.1e-2  # one step of Adam
    assert acted > moved  # the round's data come from the policy after two steps


@pytest.mark.runs
def test_the_average_teacher_of_sdpo_follows_the_policy_and_is_in_the_checkpoint(tmp_path):
    directory, _ = run(
        tmp_path,
        "trainer.max_steps=2",
        "algorithm=sdpo",
        "dataset=ladder",
        "dataset.levels=[1]",
        "optimizer.learning_rate=1e-2",
    )
    from expo.model.policy import load_policy
    from expo.training.checkpoints import newest_checkpoint

    state = torch.load(newest_checkpoint(directory), weights_only=True)["state_dict"]
    base = load_policy(config.ModelConf(path="ladder"))[0].state_dict()
    weight = "model.embed_tokens.weight"
    moved, followed = (state[f"{who}.{weight}"] - base[weight] for who in ("policy", "average"))
    assert 0 < followed.abs().max() < 0.2 * moved.abs().max()  # 5 % of each of two steps


def test_dynamic_sampling_refills_and_trains_on_informative_groups_only(tmp_path):
    cfg, dapo = module(tmp_path, "algorithm=dapo", "dataset=ladder", "dataset.levels=[3]", "algorithm.refills=3")
    experience = dapo.collect(0)
    count, informative = len(experience.problems), len(dapo.informative(experience))
    assert count % 2 == 0
    assert informative >= 2 or count == 2 * 4
    assert count > 2  # at this level, the first two problems do not suffice with this seed
    keys = {(c.prompt, tuple(c.ids)) for group in experience.groups for c in group.completions}
    assert len(keys) > 1
    rows = dapo.rows(experience, dapo.chosen(experience))
    assert len(rows.advantages) == min(informative, 2) * cfg.algorithm.group_size
    assert (rows.advantages.view(-1, cfg.algorithm.group_size).abs().sum(dim=1) > 0).all()
    dapo.pipeline.tools.verifier.close()


class Backwards:
    """An engine whose last rows end first."""

    def __init__(self, engine):
        self.engine, self.calls = engine, 0

    def generate(self, requests, sampling, follow=None):
        self.calls += 1
        done = self.engine.generate(requests, sampling)
        rows = [[row] for row in reversed(range(4, len(requests)))] + [[1, 0, 3, 2]]
        more = [r for ended in rows for r in follow({row: done[row] for row in ended})] if follow else []
        return done + self.engine.generate(more, sampling)


@pytest.mark.runs
@pytest.mark.parametrize(
    ("positives", "cache"),
    [
        ("positives=self_explanation", []),
        ("positives=self_explanation", ["positives.cache_steps=9", "positives.cache_max_drop=9"]),
        ("positives=star", []),
        ("positives=shuffled_answer", []),
    ],
)
def test_explanations_that_follow_their_groups_are_those_of_a_second_call(tmp_path, positives, cache):
    """Groups end in any order; the explanations are asked for as they do, and belong to the same problems."""
    _, late = module(
        tmp_path, "dataset=ladder", "dataset.levels=[1,5]", "trainer.problems_per_step=8", positives,
        "positives.gate=all_wrong", "positives.explainer=current", "positives.samples=2", "positives.filters=[wrong]",
        *cache,
    )  # fmt: skip
    pipeline = late.pipeline
    assert pipeline.when is When.AS_GROUPS_END
    pipeline.when = When.AFTERWARDS
    expected = [late.collect(0), late.collect(0)]
    wrong = expected[0].all_wrong.tolist()
    assert 0 < sum(wrong) < len(wrong)
    assert all(group.all_wrong for group in expected[0].groups if any(c.prompt for c in group.candidates))
    assert (expected[1].reused > 0) == bool(cache)
    engine, pipeline.when = Backwards(pipeline.engines.policy), When.AS_GROUPS_END
    pipeline.engines = replace(pipeline.engines, rollouts=engine, explanations=engine)
    pipeline.cache.entries.clear()
    for e in expected:
        got = late.collect(0)
        assert (got.groups, got.reused) == (e.groups, e.reused)
        assert got.generated_tokens == e.generated_tokens
        assert got.timer.seconds["verify"] > 0
    assert engine.calls == 2
    assert sum(len(group.candidates) for group in expected[0].groups) > 1
    pipeline.tools.verifier.close()


@pytest.mark.runs
def test_hinted_groups_keep_what_is_asked_and_are_trained_under_the_hint(tmp_path):
    _, nurl = module(tmp_path, "algorithm=nurl")
    experience = nurl.collect(0)
    for group in experience.groups:
        assert group.before_hint is not None
        prompts = [c.prompt for c in group.completions]
        assert prompts[0] == group.prompt
        assert len(set(prompts[1:])) == 1
        assert prompts[1][: len(prompts[0])] == prompts[0]
        assert len(prompts[1]) > len(prompts[0])
        assert not any(group.correct)  # the reward that is logged is without hints
    nurl.pipeline.tools.verifier.close()


@pytest.mark.runs
def test_cached_explanations_are_used_again(tmp_path):
    _, lines = run(
        tmp_path, "trainer.max_steps=4", "dataset.limit=4", "positives.cache_steps=10", "positives.cache_max_drop=9",
        "algorithm.group_size=2",
    )  # fmt: skip
    assert [line["positive/reused_frac"] for line in lines] == [0, 0, 1, 1]
    assert [line["positive/used_frac"] for line in lines] == [1] * 4


@pytest.mark.runs
def test_lora_takes_its_reference_from_the_adapter_it_can_switch_off(tmp_path):
    _, dpo = module(tmp_path, "algorithm=dpo_expert_offline", "model.lora_rank=2")
    assert dpo.reference is None
    dpo.critic = copy.deepcopy(dpo.policy).requires_grad_(True)
    stored = dpo.without_base(dpo.state_dict())
    assert {f"critic.{name}" for name in dpo.critic.state_dict()} <= set(stored)  # trained, whatever its names
    _, whole = module(tmp_path, "algorithm=dpo_expert_offline")
    assert whole.reference is not None
    for built in (dpo, whole):
        built.pipeline.tools.verifier.close()


@pytest.mark.runs
def test_a_checkpoint_of_lora_holds_the_adapters_and_a_run_goes_on_from_them(tmp_path):
    from expo.training.checkpoints import newest_checkpoint

    settings = (
        "algorithm=exp_grpo", "model.lora_rank=2", "positives.explainer=snapshot", "positives.snapshot_every=1",
        "optimizer.learning_rate=1e-2",
    )  # fmt: skip
    directory, _ = run(tmp_path / "in two", "trainer.max_steps=2", *settings)
    state = torch.load(newest_checkpoint(directory), weights_only=True)["state_dict"]
    assert {key.partition(".")[0] for key in state} == {"policy", "snapshot"}
    assert all("lora_" in key for key in state)
    _, longer = run(tmp_path / "in two", "trainer.max_steps=4", *settings)
    _, unbroken = run(tmp_path / "in one", "trainer.max_steps=4", *settings)
    assert [exact(line) for line in longer] == [exact(line) for line in unbroken]
    _, built = module(tmp_path, "trainer.max_steps=2", *settings)
    checkpoint = torch.load(newest_checkpoint(directory), weights_only=True)
    built.on_load_checkpoint(checkpoint)
    with torch.no_grad():
        next(p for p in built.policy.parameters() if not p.requires_grad).add_(0.01)
    with pytest.raises(config.UserError, match="not those that the checkpoint's adapter was trained on"):
        built.on_load_checkpoint(checkpoint)
    built.whole = object()  # of another strategy, whose devices hold shares: nothing to compare
    built.on_load_checkpoint(checkpoint)
    name = max(key for key in state if key.startswith("policy."))
    checkpoint["state_dict"][f"{name}.renamed"] = checkpoint["state_dict"].pop(name)
    with pytest.raises(config.UserError, match=rf"the checkpoint lacks 1 weights, {re.escape(name)} the first"):
        built.on_load_checkpoint(checkpoint)
    built.pipeline.tools.verifier.close()


@pytest.mark.runs
@pytest.mark.parametrize("positives", ["wrong_answer", "shuffled_answer"])
def test_the_controls_train_on_the_ladder(tmp_path, positives):
    # Without filters: an answer of another problem can hardly be explained.
    _, lines = run(tmp_path, "trainer.max_steps=2", f"positives={positives}", "positives.filters=[]")
    assert lines[0]["positive/used_frac"] > 0
    assert lines[0]["throughput/tokens_trained"] > 0
    assert lines[0]["positive/leak_gap"] > 0  # an answer that is shown makes its explanation likelier


def test_a_paraphrase_trains_on_math(tmp_path, math_file):
    _, lines = run(
        tmp_path, "dataset=math", f"dataset.path={math_file}", "model=random_tiny", "trainer.max_steps=1",
        "positives=expert_paraphrase", "positives.filters=[]", "rollout.max_completion_tokens=16",
    )  # fmt: skip
    assert lines[0]["positive/used_frac"] > 0


def test_a_reward_is_not_asked_about_nothing():
    """As where an algorithm makes no rollouts, or no group has ended yet."""

    def longest(rollouts):
        return [max(len(r.text) for r in rollouts)]

    assert rewards_of(longest, []) == []

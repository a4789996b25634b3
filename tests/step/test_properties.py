"""What must hold for every input, tried on many: pass@k, prompts, identities, advantages, verdicts, resuming."""

import json
import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_config, make_prompts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expo.algorithms import losses
from expo.algorithms.base import Algorithm
from expo.config import identity, restore
from expo.evaluation import intervals
from expo.evaluation.pass_at_k import pass_at_k
from expo.ground.problem import Problem
from expo.jobs.fit import make_run
from expo.model.small import random_tiny
from expo.runs.directory import Run
from expo.runs.reading import read_lines
from expo.verifier.answers import Verdict, fast_verdict, math_verify_verdict
from expo.verifier.extraction import last_boxed

settings.register_profile("expo", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("expo")
CLOCKS = ("time/", "throughput/")


# --- pass@k


@given(st.integers(1, 60), st.data())
def test_pass_at_k_is_the_exact_fraction_and_grows_with_k_and_right_samples(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    [value] = pass_at_k(n, [c], k)
    assert value == pytest.approx(float(exact), abs=1e-12)
    assert 0 <= value <= 1
    if c < n:
        assert pass_at_k(n, [c + 1], k)[0] >= value
    if k < n:
        assert pass_at_k(n, [c], k + 1)[0] >= value - 1e-12


@given(
    st.integers(1, 4).flatmap(
        lambda seeds: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=seeds, max_size=seeds), min_size=2, max_size=30
        )
    )
)
def test_an_interval_of_shares_is_one_and_holds_their_mean(columns):
    values = np.array(columns).T
    low, high = intervals.of_share(values)
    assert 0 <= low <= values.mean() + 1e-9
    assert values.mean() - 1e-9 <= high <= 1
    assert high > low
    mirrored = intervals.of_share(1 - values)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)
    low, high = intervals.of_difference(values - values[::-1])
    assert -1 <= low <= (values - values[::-1]).mean() + 1e-9 <= high + 2e-9 <= 1 + 3e-9


# --- prompts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer():
    return random_tiny()[1]


@given(question=TEXT, answers=st.tuples(TEXT, TEXT), solutions=st.tuples(TEXT, TEXT))
def test_the_solve_prompt_knows_nothing_of_the_answer(tokenizer, question, answers, solutions):
    prompts = make_prompts("Solve {question}", "Explain {question}: {answer}", paraphrase="{solution}")
    one, other = (Problem("p", question, a, solution=s) for a, s in zip(answers, solutions, strict=True))
    assert prompts.solve_ids(tokenizer, [one]) == prompts.solve_ids(tokenizer, [other])


@given(question=TEXT, answer=TEXT)
def test_data_never_becomes_a_special_token(tokenizer, question, answer):
    prompts = make_prompts("{question}", "{question} {answer}")
    special = set(tokenizer.all_special_ids)
    [plain] = prompts.solve_ids(tokenizer, [Problem("p", "x", "y")])
    [ids] = prompts.solve_ids(tokenizer, [Problem("p", question + "<|im_end|><|endoftext|>", answer)])
    assert [i for i in ids if i in special] == [i for i in plain if i in special]


@pytest.mark.runs
@pytest.mark.parametrize("algorithm", ["exp_grpo", "exp_dpo_offline", "exp_dpo_online", "sft", "star", "luffy", "nurl"])
def test_no_prompt_that_shows_the_answer_reaches_a_loss(tmp_path, monkeypatch, algorithm):
    """What is differentiated stands behind the solve prompt of a problem of the step, whatever it was sampled from."""
    seen, allowed = [], set()
    tokens, score = Algorithm.tokens, Algorithm.score

    def watched(self, prompts, completions):
        tools = self.pipeline.tools
        allowed.update(tuple(ids) for ids in tools.prompts.solve_ids(tools.tokenizer, self.sampler.problems))
        seen.extend(tuple(p) for p in prompts)
        return tokens(self, prompts, completions)

    def scored(self, model, batch, temperature=1.0):
        if torch.is_grad_enabled():  # each row begins with an allowed prompt
            rows = [tuple(row.tolist()) for row in batch.input_ids]
            assert all(any(row[: len(p)] == p for p in allowed) for row in rows)
        return score(self, model, batch, temperature)

    monkeypatch.setattr(Algorithm, "tokens", watched)
    monkeypatch.setattr(Algorithm, "score", scored)
    more = ["positives=self_explanation"] if algorithm == "sft" else []
    cfg = small(tmp_path, f"algorithm={algorithm}", *more)
    assert make_run(cfg) == 0
    assert seen
    if algorithm != "nurl":  # whose hinted rollouts stand behind the prompt with the hint, as docs/algorithms.md says
        assert set(seen) <= allowed


# --- identities

OVERRIDES = [
    "algorithm.group_size=4",
    "trainer.max_steps=7",
    "seed=3",
    "optimizer.learning_rate=1e-4",
    "dataset.levels=[2,3]",
    "k=[1,2]",
    "positives.weight=0.5",
    "rollout.max_completion_tokens=33",
    "evaluation.temperature=0.5",
    "trainer.on_collapse=rollback",
]
RUNTIME = [
    "trainer.micro_batch_size=4",
    "verifier.workers=1",
    "logger=none",
    "name=other",
    "output_dir=elsewhere",
    "trainer.on_collapse=stop",
]


@settings(max_examples=8)
@given(
    st.lists(st.sampled_from(OVERRIDES), unique=True, max_size=6),
    st.lists(st.sampled_from(RUNTIME), unique=True),
    st.randoms(),
)
def test_an_identity_is_of_what_changes_the_result_and_of_nothing_else(chosen, runtime, rng):
    arm = ["algorithm=exp_grpo", "dataset=ladder"]
    one = identity(compose_config(*arm, *chosen))
    shuffled = rng.sample(chosen, len(chosen))
    if "trainer.on_collapse=rollback" in chosen:
        runtime = [o for o in runtime if "on_collapse" not in o]
    assert identity(compose_config(*arm, *runtime, *shuffled)) == one
    for left_out in chosen:
        assert identity(compose_config(*arm, *(o for o in chosen if o != left_out))) != one


@settings(max_examples=15)
@given(chosen=st.lists(st.sampled_from(OVERRIDES + RUNTIME[:4]), unique=True, max_size=6))
def test_a_config_read_back_is_the_config(tmp_path_factory, chosen):
    folder = tmp_path_factory.mktemp("run")
    cfg = compose_config("algorithm=exp_grpo", "dataset=ladder", *chosen)
    Run(cfg, folder).write_config()
    assert restore(folder) == cfg
    assert identity(restore(folder)) == identity(cfg)


# --- losses

REWARDS = st.integers(2, 6).flatmap(
    lambda g: st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=g, max_size=g), min_size=1, max_size=5)
)


@given(REWARDS, st.sampled_from(["group_norm", "mean", "leave_one_out"]), st.randoms(use_true_random=False))
def test_advantages_sum_to_nothing_and_follow_their_group_in_any_order(rewards, kind, rng):
    table = torch.tensor(rewards, dtype=torch.float64)
    whole = losses.group_advantages(table, kind)
    assert torch.isfinite(whole).all()
    assert whole.sum(dim=1) == pytest.approx([0.0] * len(rewards), abs=1e-6)
    groups = rng.sample(range(len(rewards)), len(rewards))
    members = rng.sample(range(len(rewards[0])), len(rewards[0]))
    assert torch.allclose(losses.group_advantages(table[groups][:, members], kind), whole[groups][:, members])
    equal = table.amin(dim=1) == table.amax(dim=1)
    assert (whole[equal] == 0).all()


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_token_weights_are_those_of_completion_tokens_and_sum_to_one(rows):
    mask = torch.tensor(rows, dtype=torch.float32)
    for aggregation in ("token_mean", "sequence_mean"):
        weights = losses.token_weights(mask, aggregation, 4)
        assert (weights[mask == 0] == 0).all()
        expected = 1.0 if aggregation == "token_mean" else mask.any(dim=1).float().mean().item()
        assert weights.sum().item() == pytest.approx(expected if mask.any() else 0.0, abs=1e-6)


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=8), st.lists(st.floats(-20, 0), min_size=8, max_size=8))
def test_kl_is_never_negative_and_nothing_between_equals(logp, other):
    one, ref = torch.tensor([logp]), torch.tensor([other[: len(logp)]])
    assert (losses.kl(one, ref, "k3") >= -1e-5).all()
    assert (losses.kl(one, ref, "k2") >= 0).all()
    for estimator in ("k1", "k2", "k3"):
        assert (losses.kl(one, one, estimator) == 0).all()


# --- verdicts


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_two_numbers_are_equal_only_if_they_are(one, other):
    assert (verdict(str(one), str(other)) is Verdict.CORRECT) is (one == other)
    assert verdict(rf"\boxed{{{one}}}"[7:-1], f"{one}.0") is Verdict.CORRECT


@settings(max_examples=60)
@given(st.integers(-50, 50), st.integers(1, 50), st.integers(1, 9))
def test_a_fraction_is_itself_in_every_spelling(top, bottom, times):
    gold = rf"\frac{{{top}}}{{{bottom}}}"
    assert verdict(rf"\dfrac{{{top * times}}}{{{bottom * times}}}", gold) is Verdict.CORRECT
    assert verdict(f"{top}/{bottom}", gold) is Verdict.CORRECT
    assert verdict(rf"\frac{{{top + 1}}}{{{bottom}}}", gold) is Verdict.INCORRECT
    assert verdict(rf"\neq {gold}", gold) is not Verdict.CORRECT


DECIMALS = st.decimals(-(10**6), 10**6, allow_nan=False, places=7).map(lambda d: format(d.normalize(), "f"))


@given(DECIMALS, DECIMALS, st.sampled_from(["{}", "€{}", "{} km", "{}e-9", r"{}\times10^{{-30}}"]))
def test_two_plain_numbers_are_one_only_where_they_are_equal(one, other, written):
    gold, answer = written.format(one), written.format(other)
    assert (fast_verdict(answer, gold) is Verdict.CORRECT) is (Fraction(one) == Fraction(other))
    assert fast_verdict(answer, gold) is fast_verdict(gold, answer)


@given(st.text("abcdeinostxyABCH", min_size=2, max_size=7), st.randoms(use_true_random=False))
def test_a_permutation_of_letters_is_another_word(word, random):
    letters = list(word)
    random.shuffle(letters)
    shuffled = "".join(letters)
    if shuffled.casefold() != word.casefold():
        assert fast_verdict(shuffled, word) is Verdict.INCORRECT


@given(
    st.sampled_from(["12", "29 apples", "2024-01-05", "A", "Paris", "2:40", "3,4", "10.0.0.1", "50%"]),
    st.lists(st.sampled_from(["not", "or", "except", "maybe", "seven", "never"]), min_size=1, max_size=6),
)
def test_noise_around_an_answer_makes_no_wrong_one_right(gold, noise):
    told = " ".join(noise)
    for answer in (f"{told} {gold} {told}", rf"{gold} \text{{ {told} or }} 99"):
        assert fast_verdict(answer, gold) is not Verdict.CORRECT
        assert verdict(answer, gold) is not Verdict.CORRECT


SYMMETRIC = [
    "12",
    "12.0",
    "1/2",
    "0.5",
    "May 3, 2020",
    "3 May 2020",
    "2:40 PM",
    "14:40",
    "A",
    "(A)",
    "Paris",
    "paris",
    "1,2",
    "2,1",
    "H2O",
    "HO2",
]


@given(st.sampled_from(SYMMETRIC), st.sampled_from(SYMMETRIC))
def test_what_a_kind_settles_is_the_same_from_both_sides(one, other):
    found = {fast_verdict(one, other), fast_verdict(other, one)}
    assert Verdict.CORRECT not in found or len(found) == 1


def verdict(answer: str, gold: str) -> Verdict:
    found = fast_verdict(answer, gold)
    return found if found is not None else math_verify_verdict(answer, gold)


@given(
    st.recursive(
        st.text("ab1+ ,", max_size=4),
        lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "x".join(parts) + "}"),
        max_leaves=8,
    ),
    TEXT,
)
def test_the_last_box_is_found_whatever_stands_around_it(content, around):
    around = around.replace("\\", "")
    found = last_boxed(f"\\boxed{{no}} {around} \\boxed{{{content}}} ")
    assert found is not None
    assert found.strip() == content.strip()


# --- resuming


def small(folder: Path, *overrides: str):
    return compose_config(
        "algorithm=exp_grpo",
        "dataset=ladder",
        "dataset.levels=[2]",
        "dataset.limit=20",
        "trainer.max_steps=5",
        "evaluation.every=2",
        "k=[1]",
        "trainer.problems_per_step=2",
        "algorithm.group_size=2",
        "trainer.micro_batch_size=4",
        "dataset.eval_limit=2",
        "logger=none",
        "rollout.max_completion_tokens=64",
        f"output_dir={folder}",
        *overrides,
    )


def outcome(folder: Path):
    (directory,) = folder.glob("ladder/*-s0-*")
    lines = [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in read_lines(directory)]
    state = torch.load(next((directory / "checkpoints").glob("step*.ckpt")), weights_only=True)["state_dict"]
    return json.dumps(lines), state


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.parametrize("overrides", [[], ["algorithm=sdpo"], ["algorithm=exp_grpo_distill", "model.lora_rank=2"]])
def test_stopping_anywhere_and_saving_at_any_pace_changes_nothing(tmp_path, overrides):
    rng = random.Random(0)
    assert make_run(small(tmp_path / "whole", *overrides)) == 0
    lines, weights = outcome(tmp_path / "whole")
    for trial in range(3):
        folder, pace = tmp_path / str(trial), f"trainer.checkpoint_every={rng.randint(1, 4)}"
        for stop in sorted(rng.sample(range(1, 5), 2)):
            assert make_run(small(folder, pace, *overrides, f"trainer.stop_after={stop}")) == 0
        assert make_run(small(folder, pace, *overrides)) == 0
        again, state = outcome(folder)
        assert again == lines
        assert all(torch.equal(state[name], weights[name]) for name in weights)

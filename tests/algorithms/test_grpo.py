"""GRPO's own update against the formula, written out row by row in float64 on unpadded rows."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from rollouts import (
    BETA,
    CLIP,
    KL_COEF,
    POSITIVES,
    PROMPTS,
    REWARDS,
    ROLLOUTS,
    TEMPERATURE,
    experience,
    module,
    row_logp,
)

from expo.algorithms.base import StepSums
from expo.config import SelfExplanationConf
from expo.ground.problem import Problem
from expo.rollout.engine import Completion
from expo.step.experience import Experience, Group
from expo.step.metrics import step_metrics
from expo.step.positives.sources import SelfExplanation
from expo.step.sums import COUNT, SUM
from expo.verifier.answers import Verdict


def formula(policy, reference, old, kl_coef=KL_COEF):
    """The loss of one update as method.md gives it; `old` are the log-probabilities under the policy that acted."""
    total = 0.0
    for i, ids in enumerate(ROLLOUTS):
        group = REWARDS[i // 2]
        mean = sum(group) / 2
        std = math.sqrt(sum((r - mean) ** 2 for r in group)) + 1e-6
        advantage = (group[i % 2] - mean) / std
        logp = row_logp(policy, PROMPTS[i // 2], ids, TEMPERATURE)
        ratio = (logp - old[i]).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        delta = row_logp(reference, PROMPTS[i // 2], ids, TEMPERATURE).detach() - logp
        total = total + (-surrogate + kl_coef * (delta.exp() - 1 - delta)).mean() / len(ROLLOUTS)
    nll = sum(-row_logp(policy, PROMPTS[p], ids, 1.0).sum() for p, ids in POSITIVES.items())
    return total + BETA * nll / sum(map(len, POSITIVES.values()))


@pytest.mark.parametrize("micro_batch_size", [1, 4, 64])
@pytest.mark.parametrize("kl_coef", [0.0, KL_COEF])
def test_two_updates_are_those_of_the_formula(models, micro_batch_size, kl_coef):
    policy, reference = copy.deepcopy(models[0]), models[1]
    double, double_reference = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
    grpo = module(policy, reference, micro_batch_size, updates_per_rollout=2, kl_coef=kl_coef)
    sums = grpo.update(experience())
    old = [row_logp(double, PROMPTS[i // 2], ids, TEMPERATURE).detach() for i, ids in enumerate(ROLLOUTS)]
    expected = []
    for ours in grpo.gradients:
        loss = formula(double, double_reference, old, kl_coef)
        theirs = torch.autograd.grad(loss, list(double.parameters()))
        expected.append(loss.item())
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)
        with torch.no_grad():
            for p, gradient in zip(double.parameters(), theirs, strict=True):
                p -= 0.05 * gradient
    assert sums["loss/total"] == pytest.approx(sum(expected), abs=1e-4)


def test_rows_without_advantage_are_not_scored_without_kl(models):
    grpo = module(copy.deepcopy(models[0]), models[1], 64, kl_coef=0.0)
    assert grpo.update(experience())["policy/ratio_mean" + COUNT] == sum(len(ROLLOUTS[i]) for i in (0, 1, 4, 5))


def test_a_weight_of_zero_is_plain_grpo(models):
    without = experience()
    without.groups = [replace(group, positives=[]) for group in without.groups]
    gradients = []
    for e in (experience(beta=0.0), without):
        grpo = module(copy.deepcopy(models[0]), models[1], 64)
        grpo.update(e)
        gradients.append(grpo.gradients[0])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_positive_in_the_group_is_trained_on_with_its_advantage(models):
    """The policy-gradient stream with members, row by row in float64: no SFT term, ratio p / (p + γ), never clipped."""
    source = SelfExplanation(SelfExplanationConf(weight=BETA, use="group_member", member_shaping=0.1))
    policy = copy.deepcopy(models[0])
    grpo = module(policy, models[1], source=source, kl_coef=0.0, advantage="mean", aggregation="token_mean")
    sums = grpo.update(experience())
    double = copy.deepcopy(models[0]).double()
    rewards = [[1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]  # the positives have joined the last two
    total, tokens = 0.0, sum(map(len, ROLLOUTS)) + sum(map(len, POSITIVES.values()))
    for p, group in enumerate(rewards):
        mean = sum(group) / len(group)
        for ids, reward in zip(ROLLOUTS[2 * p : 2 * p + 2], group, strict=False):
            logp = row_logp(double, PROMPTS[p], ids, TEMPERATURE)
            total = total - ((logp - logp.detach()).exp() * (reward - mean)).sum()
        if p in POSITIVES:
            probability = row_logp(double, PROMPTS[p], POSITIVES[p], TEMPERATURE).exp()
            total = total - (probability / (probability + 0.1) * (1 - mean)).sum()
    total = total / tokens
    assert sums["loss/total"] == pytest.approx(total.item(), abs=1e-5)
    assert sums["loss/sft"] == 0
    for ours, theirs in zip(grpo.gradients[0], torch.autograd.grad(total, list(double.parameters())), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_kl_is_a_mean_over_rollouts_whatever_joins_their_groups(models, aggregation):
    member = SelfExplanation(SelfExplanationConf(weight=BETA, use="group_member"))
    alone, joined = (
        module(copy.deepcopy(models[0]), models[1], source=s, kl_coef=0.1, aggregation=aggregation).update(
            experience(beta=0.0)
        )
        for s in (None, member)
    )
    assert joined["loss/kl"] == pytest.approx(alone["loss/kl"], rel=1e-5) != 0


def test_the_sampler_correction_weighs_tokens(models):
    """The samplers' log-probabilities are all -1: with the correction, each token weighs min(π_old / e^-1, cap)."""
    losses_by_choice = {}
    for correction in ("none", "token", "sequence"):
        grpo = module(copy.deepcopy(models[0]), models[1], kl_coef=0.0, sampler_correction=correction, sampler_cap=1.5)
        losses_by_choice[correction] = grpo.update(experience(beta=0.0))["loss/total"]
    double, expected = copy.deepcopy(models[0]).double(), 0.0
    for i, ids in enumerate(ROLLOUTS):
        advantage = {0: 1, 1: -1, 4: -1, 5: 1}.get(i, 0) * 0.5 / (0.5**0.5 + 1e-6)
        logp = row_logp(double, PROMPTS[i // 2], ids, TEMPERATURE).detach()
        expected -= ((logp + 1).exp().clamp(max=1.5) * advantage).mean().item() / 6
    assert losses_by_choice["token"] == pytest.approx(expected, abs=1e-5)
    assert losses_by_choice["none"] == pytest.approx(0.0, abs=1e-6)
    assert losses_by_choice["sequence"] != losses_by_choice["token"]


def test_an_overlong_rollout_is_worth_less(models):
    grpo = module(*models, advantage="mean", overlong_share=0.75)
    rows = grpo.rows(experience(), experience().groups)
    # 8 tokens are allowed: lengths 2, 4 cost 0, 1/3 in the first group; 1, 3 cost 0, 1/6; 2, 3 cost 0, 1/6.
    rewards = torch.tensor([[1.0, -1 / 3], [0.0, -1 / 6], [0.0, 1 - 1 / 6]])
    torch.testing.assert_close(rows.advantages.view(3, 2), rewards - rewards.mean(dim=1, keepdim=True))


def test_dynamic_sampling_counts_a_group_that_a_positive_has_joined(models):
    """The middle group is all wrong: without its positive it is dropped, with it it is what the positive is there
    for."""
    member = SelfExplanation(SelfExplanationConf(weight=BETA, use="group_member"))
    for source, groups in ((None, 2), (member, 3)):
        grpo = module(*models, source=source, refills=1)
        e = experience()
        rows = grpo.rows(e, grpo.chosen(e))
        assert len(rows.advantages) == 2 * groups + (2 if source else 0)
    assert module(*models, source=member, refills=1).chosen(experience([[1.0, 1.0]] * 3)) == []


def test_the_problems_with_a_gradient_are_those_of_rewards_or_positives(models):
    def taught(rewards, source=None, auxiliary=False, **changes):
        grpo, e = module(*models, source=source, retry=0.5, **changes), experience(rewards)
        return grpo.with_gradient(e.groups, grpo.rows(e, e.groups), e.positives if auxiliary else [])

    assert taught(REWARDS) == {0, 2}  # the middle group has equal rewards
    assert taught(REWARDS, auxiliary=True) == {0, 1, 2}
    assert taught([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]) == set()
    member = SelfExplanation(SelfExplanationConf(use="group_member"))
    assert taught([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]], source=member) == {1}  # 2 has one, but all are right
    assert taught([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], overlong_share=1.0) == {0, 1, 2}  # their lengths differ


def test_the_samplers_probabilities_behind_a_hint_are_not_held_against_the_trainers_without(models):
    made = module(copy.deepcopy(models[0]), models[1])
    made.pipeline.hints.under_question = True
    e = experience()
    e.groups[0] = replace(e.groups[0], before_hint=e.groups[0], kept=1)
    assert made.rows(e, e.groups).as_sampled.squeeze(1).tolist() == [True, False, True, True, True, True]


def test_a_fractional_mask_weighs_each_term_once(models):
    """Weights and membership are two things: KL once weighed by the square of the mask."""
    policy, reference = copy.deepcopy(models[0]), models[1]

    def half(grpo):
        whole = grpo.rows

        def rows(*given):
            made = whole(*given)
            return replace(made, batch=replace(made.batch, mask=0.5 * made.batch.mask))

        grpo.rows = rows
        return grpo

    # With `constant`, weights are the mask over a constant: half the mask is half of everything, once.
    plain = module(copy.deepcopy(policy), reference, aggregation="constant", kl_coef=1.0)
    halved = half(module(copy.deepcopy(policy), reference, aggregation="constant", kl_coef=1.0))
    one, other = plain.update(experience(beta=0.0)), halved.update(experience(beta=0.0))
    for term in ("loss/policy", "loss/kl", "loss/total"):
        assert other[term] == pytest.approx(one[term] / 2, rel=1e-5), term
    for a, b in zip(plain.gradients[0], halved.gradients[0], strict=True):
        assert torch.allclose(b, a / 2, atol=1e-6)
    for name in ("policy/kl" + SUM, "policy/kl" + COUNT, "policy/ratio_mean" + COUNT):
        assert other[name] == pytest.approx(one[name])


@pytest.mark.parametrize("aggregation", ["constant", "token_mean", "sequence_mean"])
def test_kl_is_logged_in_nats_per_token_whatever_the_aggregation(models, aggregation):
    grpo = module(copy.deepcopy(models[0]), models[1], aggregation=aggregation)
    sums = grpo.update(experience(beta=0.0))
    by_token = []
    for i, ids in enumerate(ROLLOUTS):
        delta = row_logp(models[1], PROMPTS[i // 2], ids, TEMPERATURE) - row_logp(
            models[0], PROMPTS[i // 2], ids, TEMPERATURE
        )
        by_token += (delta.exp() - 1 - delta).tolist()
    metrics = step_metrics(timed(experience()), sums, None)
    assert metrics["policy/kl"] == pytest.approx(sum(by_token) / len(by_token), rel=1e-4)


def timed(e: Experience) -> Experience:
    e.timer.add({"rollout": 1.0})
    return e


def test_rollouts_of_another_policy_have_its_name():
    plain, other = timed(experience()), replace(timed(experience()), writer="pairs")
    own, theirs = (step_metrics(e, StepSums(), None) for e in (plain, other))
    assert own["reward/mean"] == pytest.approx(1 / 3)
    for name in (
        "reward/mean",
        "reward/all_wrong_frac",
        "policy/entropy",
        "completion/length_mean",
        "completion/truncated_frac",
    ):
        assert theirs[name] is None
        assert theirs[f"pairs/{name}"] == own[name]
    assert other.select([0]).writer == "pairs"


def test_with_hints_the_scalars_of_rollouts_are_of_those_without():
    short = [Completion((1,), [9], [-2.0], True, 0), Completion((1,), [9], [-2.0], True, 0)]
    long = [replace(c, ids=[9] * 4, logp=[-1.0] * 4, truncated=False) for c in short]
    wrong, right = [Verdict.UNPARSEABLE] * 2, [Verdict.CORRECT] * 2
    a, b = (Problem("a", "", ""), (1,)), (Problem("b", "", ""), (2,))
    before = Group(*a, short, ["", ""], wrong, [0.0, 0.0])
    hinted = Group(*a, long, ["", ""], right, [1.0, 1.0], before_hint=before)
    plain = Group(*b, long, ["", ""], right, [1.0, 1.0])
    e = timed(Experience([hinted, plain], gives_hints=True))
    for chosen, share in ((e, 0.5), (e.select([0, 1]), 0.5), (timed(e.select([0])), 1.0), (e + e, 0.5)):
        metrics = step_metrics(timed(chosen), StepSums(), None)
        assert metrics["completion/truncated_frac"] == metrics["reward/unparseable_frac"] == share
        assert metrics["reward/mean"] == 1 - share
    assert step_metrics(e, StepSums(), None)["completion/length_mean"] == 2.5
    assert step_metrics(e, StepSums(), None)["hint/reward_mean"] == 1.0


def test_what_an_algorithm_of_ones_own_adds_up_is_logged():
    sums = StepSums(updates=2)
    sums.per_update("mine/bonus", 3.0)
    sums.mean("policy/surprise", torch.tensor(4.0), 8)
    sums.mean("mine/never", 0, 0)
    sums.total("mine/seen", 5)
    sums.total("_hidden", 1)
    sums.derived["mine/both"] = lambda s: s["mine/bonus"] + 1
    metrics = step_metrics(timed(experience()), sums, None)
    assert {name: value for name, value in metrics.items() if name.startswith(("mine/", "policy/surprise", "_"))} == {
        "mine/bonus": 1.5, "policy/surprise": 0.5, "mine/never": None, "mine/seen": 5.0, "mine/both": 4.0,
    }  # fmt: skip
    assert step_metrics(timed(experience()), StepSums(), None)["loss/total"] == 0.0


def test_a_name_of_two_kinds_of_metrics_is_refused():
    sums = StepSums()
    sums.per_update("lab/x", 4)
    sums.mean("lab/x", 3, 1)
    with pytest.raises(ValueError, match="lab/x: added up in two ways"):
        sums.metrics()

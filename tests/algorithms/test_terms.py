"""Terms: an entropy bonus has the true gradient, and a critic is one override."""

import copy
import math

import pytest
import torch
from rollouts import PROMPTS, REWARDS, ROLLOUTS, TEMPERATURE, experience, module
from torch import nn

from expo.algorithms.terms import Entropy
from expo.model.scoring import _entropy_chunk, score, token_batch


def test_the_entropys_gradient_is_that_of_a_softmax_by_hand():
    """d H / d z_i = -p_i (log p_i + H), for a head that gives the logits themselves."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, 0.7, -0.2, 1.1]], requires_grad=True)
    logp, entropy = _entropy_chunk(nn.Identity(), logits, torch.tensor([2]), 1.0)
    p = [math.exp(v) / sum(math.exp(w) for w in logits[0].tolist()) for v in logits[0].tolist()]
    by_hand = -sum(x * math.log(x) for x in p)
    assert (logp.item(), entropy.item()) == pytest.approx((math.log(p[2]), by_hand), abs=1e-6)
    entropy.sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([-x * (math.log(x) + by_hand) for x in p], abs=1e-6)


def test_scores_are_the_same_with_entropy_and_by_chunks(models, monkeypatch):
    rows = token_batch(PROMPTS, ROLLOUTS[:3], 0, "cpu")
    plain = score(models[0], rows, 0.8)
    logp, entropy = score(models[0], rows, 0.8, with_entropy=True)
    torch.testing.assert_close(logp, plain)
    assert (entropy[rows.mask.bool()] > 0).all()
    assert (entropy[~rows.mask.bool()] == 0).all()
    monkeypatch.setattr("expo.model.scoring.LOGITS", 2000)  # a few positions at a time
    for whole, chunked in zip((logp, entropy), score(models[0], rows, 0.8, with_entropy=True), strict=True):
        torch.testing.assert_close(whole, chunked)


def test_an_entropy_bonus_is_in_the_loss_and_logged_under_its_name(models):
    with_bonus, without = (
        module(*map(copy.deepcopy, models), kl_coef=0.0, entropy_coef=c, advantage="mean") for c in (0.5, 0.0)
    )
    ours, plain = (m.update(experience(beta=0.0)) for m in (with_bonus, without))
    batch = token_batch([PROMPTS[i // 2] for i in range(6)], ROLLOUTS, 0, "cpu")
    _, entropy = score(models[0], batch, TEMPERATURE, with_entropy=True)
    mean = sum((entropy[i].sum() / len(ids)).item() for i, ids in enumerate(ROLLOUTS)) / len(ROLLOUTS)
    assert ours["loss/entropy"] == pytest.approx(-mean, rel=1e-5)
    assert ours["loss/total"] == pytest.approx(plain["loss/total"] - 0.5 * mean, abs=1e-5)
    assert "loss/entropy" not in plain
    # A step along the negative gradient makes the policy less certain than one without the bonus.
    after = [score(m.policy, batch, TEMPERATURE, with_entropy=True)[1].sum() for m in (with_bonus, without)]
    assert after[0] > after[1]


def test_rows_of_equal_rewards_cost_no_pass_until_a_term_wants_them(models):
    grpo = module(*models, kl_coef=0.0)
    rows = grpo.rows(experience(), experience().groups)
    assert grpo.terms[0].active(rows).tolist() == [a != b for a, b in REWARDS for _ in range(2)]
    assert Entropy(0.1).active(rows).all()

import math

import pytest
import torch

from expo import losses, schema_learning


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    # mean 1/4; unbiased variance (9/16 + 3/16) / 3 = 1/4, so std 1/2
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.group_advantages(rewards), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.group_advantages(rewards, "mean")[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))


def test_group_advantages_do_not_depend_on_the_order_in_the_group():
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]])
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(losses.group_advantages(rewards)[:, order], losses.group_advantages(rewards[:, order]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.5, 2.0, -2.4, 1.0),  # clipped at 1 + 0.2
        (1.5, -2.0, 3.0, 0.0),  # the minimum keeps the worse, unclipped side
        (0.5, 2.0, -1.0, 0.0),
        (0.5, -2.0, 1.8, 1.0),  # clipped at 1 - 0.1
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected, clipped):
    logp = torch.tensor([[math.log(ratio)]])
    loss, rho, clip = losses.policy_loss(
        logp, torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([advantage]), 0.1, 0.2, "token"
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert rho.item() == pytest.approx(ratio, abs=1e-6)
    assert clip.item() == clipped


def test_kl_estimators_by_hand():
    logp, ref = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    delta = math.log(2)
    assert losses.kl(logp, ref, "k1").item() == pytest.approx(delta, abs=1e-6)
    assert losses.kl(logp, ref, "k2").item() == pytest.approx(delta**2 / 2, abs=1e-6)
    assert losses.kl(logp, ref, "k3").item() == pytest.approx(0.5 - 1 + delta, abs=1e-6)


def test_token_weights_by_hand():
    mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    expected = {
        "sequence_mean": [[0.0, 0.25, 0.25], [0.0, 0.0, 0.5]],
        "token_mean": [[0.0, 1 / 3, 1 / 3], [0.0, 0.0, 1 / 3]],
        "constant": [[0.0, 0.05, 0.05], [0.0, 0.0, 0.05]],
    }
    for name, weights in expected.items():
        torch.testing.assert_close(losses.token_weights(mask, name, max_tokens=10), torch.tensor(weights))


def test_sft_loss_by_hand():
    assert losses.sft_loss(torch.tensor([[math.log(0.25)]])).item() == pytest.approx(1.3862943611, abs=1e-6)


def grpo_reference(logp, old, ref, rewards, lengths, low, high, kl_coef):
    """J of the paper, written out row by row in float64: the other side of a comparison, so it shares nothing with ours."""
    total = 0.0
    problems, group = rewards.shape
    for p in range(problems):
        mean = sum(rewards[p].tolist()) / group
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards[p].tolist()) / (group - 1)) + 1e-6
        for g in range(group):
            i, advantage, row = p * group + g, (rewards[p, g].item() - mean) / std, 0.0
            for t in range(lengths[i]):
                rho = math.exp(logp[i, t].item() - old[i, t].item())
                surrogate = min(rho * advantage, max(min(rho, 1 + high), 1 - low) * advantage)
                d = ref[i, t].item() - logp[i, t].item()
                row += surrogate - kl_coef * (math.exp(d) - 1 - d)
            total += row / lengths[i] / group / problems
    return -total


def test_grpo_loss_agrees_with_a_float64_reference():
    rng = torch.Generator().manual_seed(0)
    logp, old, ref = (-torch.rand(12, 7, generator=rng) for _ in range(3))
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    lengths = [7, 3, 1, 5, 6, 2, 7, 7, 4, 1, 2, 3]
    mask = (torch.arange(7) < torch.tensor(lengths).unsqueeze(1)).float()
    weights = losses.token_weights(mask, "sequence_mean", 7)
    advantages = losses.group_advantages(rewards).flatten()
    per_token, _, _ = losses.policy_loss(logp, old, mask, advantages, 0.2, 0.28, "token")
    ours = (weights * (per_token + 0.1 * losses.kl(logp, ref, "k3"))).sum().item()
    double = [x.double() for x in (logp, old, ref, rewards)]
    assert ours == pytest.approx(grpo_reference(*double, lengths, 0.2, 0.28, 0.1), abs=1e-6)


def test_every_choice_in_the_config_has_a_function():
    from expo.positives.schedules import GATES, SCHEDULES
    from expo.positives.sources import SELECTIONS

    pairs = [
        (schema_learning.Aggregation, losses.AGGREGATIONS),
        (schema_learning.KL, losses.KL_ESTIMATORS),
        (schema_learning.Gate, GATES),
        (schema_learning.Schedule, SCHEDULES),
        (schema_learning.Selection, SELECTIONS),
    ]
    for choices, functions in pairs:
        assert {choice.name for choice in choices} == set(functions)

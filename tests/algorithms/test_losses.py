import math

import pytest
import torch
from conftest import clipped_at

from expo import config
from expo.algorithms import losses


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
        logp, torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([advantage]), clipped_at(0.1, 0.2, "token")
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert rho.item() == pytest.approx(ratio, abs=1e-6)
    assert clip.item() == clipped


@pytest.mark.parametrize(
    ("surrogate", "ratio", "advantage", "loss", "slope", "stopped"),
    [
        # d loss / d log π. Where Â < 0, ρ counts at most dual_clip times.
        ("dual_clip", 5.0, -2.0, 2.5 * 2.0, 0.0, 1.0),
        ("dual_clip", 2.0, -2.0, 4.0, 4.0, 0.0),
        ("dual_clip", 5.0, 2.0, -1.2 * 2.0, 0.0, 1.0),
        # The ratio is a weight of at most 1.2, and log π keeps its gradient: log π is log(ratio / 8) here.
        ("cispo", 4.0, 2.0, -1.2 * 2.0 * math.log(0.5), -1.2 * 2.0, 1.0),
        ("cispo", 0.5, -2.0, 0.5 * 2.0 * math.log(0.0625), 0.5 * 2.0, 0.0),
        # (4/τ) σ(τ (ρ - 1)): 2/τ, with a slope of 1, where nothing has moved.
        ("sapo", 1.0, 2.0, -2.0 * 2.0 / 1.5, -2.0, 0.0),
        ("sapo", 1.0, -2.0, 2.0 * 2.0 / 3.0, 2.0, 0.0),
        ("sapo", 3.0, 1.0, -(4 / 1.5) / (1 + math.exp(-3.0)), -4 * 3.0 * math.exp(-3) / (1 + math.exp(-3)) ** 2, 0.0),
        # π has moved by ratio / 8 - 1 / 8: over 0.2 upwards, over 0.1 downwards.
        ("dppo", 4.0, 2.0, 0.0, 0.0, 1.0),
        ("dppo", 2.0, 2.0, -4.0, -4.0, 0.0),
        ("dppo", 4.0, -2.0, 8.0, 8.0, 0.0),
        ("dppo", 0.1, -2.0, 0.0, 0.0, 1.0),
    ],
)
def test_surrogates_by_hand(surrogate, ratio, advantage, loss, slope, stopped):
    logp = torch.tensor([[math.log(ratio / 8)]], requires_grad=True)
    conf = clipped_at(
        0.1, 0.2, "token", surrogate=surrogate, dual_clip=2.5, sapo_tau_positive=1.5, sapo_tau_negative=3.0
    )
    old, advantages = torch.tensor([[math.log(1 / 8)]]), torch.tensor([advantage])
    per_token, rho, clip = losses.policy_loss(logp, old, torch.ones(1, 1), advantages, conf)
    assert (per_token.item(), rho.item(), clip.item()) == pytest.approx((loss, ratio, stopped), abs=1e-5)
    per_token.sum().backward()
    assert logp.grad.item() == pytest.approx(slope, abs=1e-5)


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
    """J of the paper, written out row by row in float64: the other side of a comparison, so it shares nothing with
    ours."""
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
    per_token, _, _ = losses.policy_loss(logp, old, mask, advantages, clipped_at(0.2, 0.28, "token"))
    ours = (weights * (per_token + 0.1 * losses.kl(logp, ref, "k3"))).sum().item()
    double = [x.double() for x in (logp, old, ref, rewards)]
    assert ours == pytest.approx(grpo_reference(*double, lengths, 0.2, 0.28, 0.1), abs=1e-6)


def test_a_choice_without_a_function_is_found_when_its_module_is_imported():
    with pytest.raises(TypeError, match="leave_one_out"):
        config.functions_of(config.GRPOConf, "advantage", {"group_norm": print, "mean": print})


def test_leave_one_out_by_hand():
    advantages = losses.group_advantages(torch.tensor([[1.0, 0.0, 0.5, 0.0]]), "leave_one_out")
    # 1 - (0 + .5 + 0) / 3, 0 - (1 + .5 + 0) / 3, .5 - 1 / 3, as the second
    torch.testing.assert_close(advantages, torch.tensor([[5 / 6, -0.5, 1 / 6, -0.5]]))


def test_a_group_of_equal_rewards_has_no_advantage_whatever_they_are():
    for advantage in losses.ADVANTAGES:
        assert not losses.group_advantages(torch.full((1, 7), 0.1), advantage).any()


def test_advantages_with_a_positive_in_the_group_by_hand():
    # An all-wrong group that a positive has joined, and a group that none has.
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    members = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    own = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    centered = losses.group_advantages(rewards, "mean", members)
    torch.testing.assert_close(centered, torch.tensor([[-0.25] * 3 + [0.75], [2 / 3, -1 / 3, -1 / 3, 0.0]]))
    centered = losses.group_advantages(rewards, "mean", members, own)
    torch.testing.assert_close(centered, torch.tensor([[0.0] * 3 + [1.0], [2 / 3, -1 / 3, -1 / 3, 0.0]]))
    # The deviation is over all members: sqrt((3/16 + 9/16) / 3) = 1/2, sqrt((4/9 + 2/9) / 2) = 1/sqrt 3.
    normed = losses.group_advantages(rewards, "group_norm", members, own)
    third = 3**0.5 / 3
    torch.testing.assert_close(
        normed, torch.tensor([[0.0] * 3 + [2.0], [2 * third, -third, -third, 0.0]]), atol=1e-5, rtol=0
    )
    others = losses.group_advantages(rewards, "leave_one_out", members, own)
    torch.testing.assert_close(others, torch.tensor([[0.0] * 3 + [1.0], [1.0, -0.5, -0.5, 0.0]]))


def test_overlong_penalty_by_hand():
    lengths = torch.tensor([[10, 80], [90, 100]])
    torch.testing.assert_close(losses.overlong_penalty(lengths, 100, 0.2), torch.tensor([[0.0, 0.0], [-0.5, -1.0]]))
    assert not losses.overlong_penalty(lengths, 100, 0).any()


def test_sequence_ratio_by_hand():
    logp = torch.tensor([[0.3, 0.1, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    _, rho, _ = losses.policy_loss(logp, torch.zeros(1, 3), mask, torch.ones(1), clipped_at(0.5, 0.5, "sequence"))
    torch.testing.assert_close(rho, torch.full((1, 3), math.exp(0.2)))


def test_member_loss_by_hand():
    logp = torch.tensor([[math.log(0.3)]], requires_grad=True)
    plain = losses.member_loss(logp, torch.tensor([2.0]), 0.0)
    assert plain.item() == pytest.approx(-2.0)
    assert torch.autograd.grad(plain.sum(), logp)[0].item() == pytest.approx(-2.0)  # that of -2 log π
    shaped = losses.member_loss(logp, torch.tensor([2.0]), 0.1)
    assert shaped.item() == pytest.approx(-2 * 0.3 / 0.4)
    assert torch.autograd.grad(shaped.sum(), logp)[0].item() == pytest.approx(-2 * 0.3 * 0.1 / 0.4**2)


def test_sampler_weights_by_hand():
    old, sampler = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.5, -3.0]])
    mask = torch.ones(1, 2)

    def weights(correction, cap):
        return losses.sampler_weights(old, sampler, mask, correction, cap)

    torch.testing.assert_close(weights("none", 2.0), torch.ones(1, 2))
    torch.testing.assert_close(weights("token", 2.0), torch.tensor([[math.exp(0.5), 2.0]]))
    torch.testing.assert_close(weights("sequence", 100.0), torch.full((1, 2), math.exp(2.5)))


def test_preference_losses_by_hand():
    chosen, rejected, lengths = torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([[4.0], [2.0]])
    sigmoid = 1 / (1 + math.exp(-0.3))  # of beta (2 + 1)

    def loss(smoothing, preference):
        return losses.preference_loss(chosen, rejected, lengths, 0.1, smoothing, preference)[0].item()

    assert loss(0.0, "sigmoid") == pytest.approx(-math.log(sigmoid), abs=1e-6)
    assert loss(0.2, "sigmoid") == pytest.approx(-0.8 * math.log(sigmoid) - 0.2 * math.log(1 - sigmoid), abs=1e-6)
    assert loss(0.0, "ipo") == pytest.approx((2 / 4 + 1 / 2 - 5) ** 2, abs=1e-5)


def test_the_deviation_has_a_small_number_added():
    found = losses.group_advantages(torch.tensor([[0.0, 2e-6]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0]]) / (2**0.5 + 1), atol=1e-4, rtol=0)


def test_equal_rewards_are_equal_whatever_an_empty_slot_holds():
    """The mean of 0.1 is not 0.1 in float32, and the rounding is divided by next to nothing."""
    rewards = torch.tensor([[0.1] * 7 + [1.0]])
    members = torch.tensor([[1.0] * 7 + [0.0]])
    for advantage in losses.ADVANTAGES:
        assert not losses.group_advantages(rewards, advantage, members).any()


def test_overlong_penalty_has_a_floor_and_is_a_float():
    lengths = torch.tensor([150])
    assert losses.overlong_penalty(lengths, 100, 0.2).tolist() == [-1.0]
    assert losses.overlong_penalty(lengths, 100, 0).dtype == torch.float32


def test_token_weights_of_one_row():
    mask = torch.tensor([[0.0, 1.0]])
    for aggregation, weight in (("sequence_mean", 1.0), ("token_mean", 1.0), ("constant", 0.1)):
        torch.testing.assert_close(losses.token_weights(mask, aggregation, 10), torch.tensor([[0.0, weight]]))


def test_ratios_of_sequences_are_those_of_their_own_tokens():
    logp = torch.tensor([[0.3, 0.1, 9.0], [0.4, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    _, rho, _ = losses.policy_loss(logp, torch.zeros(3, 3), mask, torch.ones(3), clipped_at(0.5, 0.5, "sequence"))
    torch.testing.assert_close(rho, torch.tensor([[0.2], [0.4], [0.0]]).exp().expand(3, 3))
    weights = losses.sampler_weights(logp, torch.zeros(3, 3), mask, "sequence", 100.0)
    torch.testing.assert_close(weights, torch.tensor([[0.4], [0.4], [0.0]]).exp().expand(3, 3))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_log_ratio_beyond_20_is_20(sign):
    logp, zero, one = torch.tensor([[50.0 * sign]]), torch.zeros(1, 1), torch.ones(1, 1)
    bounded = pytest.approx(math.exp(20 * sign), rel=1e-5, abs=0)
    assert losses.policy_loss(logp, zero, one, torch.ones(1), clipped_at(0.2, 0.2, "token"))[1].item() == bounded
    assert losses.sampler_weights(logp, zero, one, "token", 1e12).item() == bounded
    assert losses.kl(logp, zero, "k3").item() == pytest.approx(math.exp(-20 * sign) - 1 + 20 * sign, rel=1e-5)


def test_the_recipes_entropy_bonus_has_the_gradient_of_the_entropy():
    """Of docs/extending.md: Σ_a p_a sg(log p_a) ∇log p_a = -∇H; of -log p_a itself, the gradient is zero on average."""
    logits = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7, -0.4, 1.1], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum()
    exact = torch.autograd.grad(entropy, logits, retain_graph=True)[0]
    p = logp.exp().detach()  # the expectation over what the policy samples
    bonus = torch.autograd.grad((p * logp.detach() * logp).sum(), logits, retain_graph=True)[0]
    assert torch.allclose(bonus, -exact)
    assert exact.abs().max() > 0.05
    naive = torch.autograd.grad((p * -logp).sum(), logits)[0]
    assert torch.allclose(naive, torch.zeros_like(naive), atol=1e-12)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_fractional_weights_are_shares_however_small_they_are(aggregation):
    mask = torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]])
    weights = losses.token_weights(mask, aggregation, 8)
    assert weights.sum().item() == pytest.approx(0.5 if aggregation == "sequence_mean" else 1.0)
    assert weights[1].sum() == 0

"""Divergences of a student and its teacher, by hand and at their limits."""

import math

import pytest
import torch

from expo.algorithms.divergences import Divergence, capped, generalized_jsd, on_support

STUDENT = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]).log()
TEACHER = torch.tensor([[0.25, 0.25, 0.5], [0.8, 0.1, 0.1]]).log()


def random_logp(n=7, v=11, seed=0):
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


def test_divergences_by_hand():
    forward = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)  # KL(p_T || p_S)
    reverse = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)  # KL(p_S || p_T)
    # m = (0.375, 0.25, 0.375): each side has one word of 0.5 and one of 0.25 apart from it.
    half = 0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.375)
    for mix, expected in ((0, forward), (1, reverse), (0.5, half)):
        torch.testing.assert_close(generalized_jsd(STUDENT, TEACHER, mix), torch.tensor([expected, 0.0]))


def test_the_mixture_leans_to_the_teacher_with_beta():
    """β weighs p_T in m, and KL(p_T || m): written out for β = 0.1, which is not symmetric."""
    s, t = random_logp(seed=1), random_logp(seed=2)
    m = 0.9 * s.exp() + 0.1 * t.exp()
    expected = 0.1 * (t.exp() * (t - m.log())).sum(-1) + 0.9 * (s.exp() * (s - m.log())).sum(-1)
    torch.testing.assert_close(generalized_jsd(s, t, 0.1), expected)


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_are_the_limits(end):
    """Divided by the weight that vanishes, the divergence tends to the Kullback-Leibler divergence of its end."""
    s, t = random_logp(seed=1), random_logp(seed=2)
    near = 1e-6 if end == 0 else 1 - 1e-6
    torch.testing.assert_close(generalized_jsd(s, t, near) / 1e-6, generalized_jsd(s, t, end), rtol=1e-4, atol=1e-6)


def test_a_tail_is_one_word_more():
    s, t = random_logp(seed=1), random_logp(seed=2)
    for k in (1, 4):
        student, teacher = on_support(s, t, k, True)
        for logp in (student, teacher):
            torch.testing.assert_close(logp.exp().sum(-1), torch.ones(7, dtype=torch.float64))
        chosen = s.topk(k).indices
        torch.testing.assert_close(student[:, :k], s.gather(-1, chosen))
        torch.testing.assert_close(teacher[:, :k], t.gather(-1, chosen))
    # Words put together can only hide a divergence; with one word less than all, nothing is put together.
    assert (Divergence(1.0, 3)(s, t) <= generalized_jsd(s, t, 1.0) + 1e-12).all()
    torch.testing.assert_close(Divergence(1.0, 10)(s, t), generalized_jsd(s, t, 1.0))


def test_without_a_tail_probabilities_are_made_to_sum_to_one():
    s, t = random_logp(seed=1), random_logp(seed=2)
    student, teacher = on_support(s, t, 3, False)
    for logp in (student, teacher):
        torch.testing.assert_close(logp.exp().sum(-1), torch.ones(7, dtype=torch.float64))
    assert student.shape == (7, 3)


def test_a_support_with_all_of_the_mass_is_finite():
    sure = torch.tensor([[0.0, -90.0, -95.0]], requires_grad=True)
    value = Divergence(0.5, 2)(sure.log_softmax(-1), TEACHER[:1])
    value.sum().backward()
    assert value.isfinite().all()
    assert sure.grad.isfinite().all()
    assert torch.isfinite(Divergence(0.5, 100)(STUDENT, TEACHER)).all()  # more words than there are


def test_a_cap_scales_the_gradient_and_does_not_cut_it_off():
    x = torch.tensor([0.5, 4.0, -8.0], requires_grad=True)
    values = capped(x, 2.0)
    assert values.tolist() == [0.5, 2.0, -2.0]
    values.sum().backward()
    assert x.grad.tolist() == [1.0, 0.5, 0.25]
    assert capped(x, math.inf) is x


def test_no_divergence_where_both_agree_and_none_is_negative():
    s, t = random_logp(seed=1), random_logp(seed=2)
    for mix in (0.0, 0.3, 0.5, 1.0):
        for k in (0, 3):
            d = Divergence(mix, k)
            torch.testing.assert_close(d(s, s), torch.zeros(7, dtype=torch.float64))
            assert (d(s, t) > 0).all()

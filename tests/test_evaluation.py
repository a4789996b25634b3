from itertools import combinations

import numpy as np
import pytest

from expo.evaluation.pass_at_k import interval, pass_at_k


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(k):
    n = 6
    for c in range(n + 1):
        subsets = list(combinations([1] * c + [0] * (n - c), k))
        expected = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k(n, [c], k)[0] == pytest.approx(expected, abs=1e-12)


def test_one_of_four_right_is_certain_at_four():
    assert pass_at_k(4, [1, 0], 4).tolist() == [1.0, 0.0]


def test_more_samples_than_drawn_is_refused():
    with pytest.raises(ValueError, match="pass@5"):
        pass_at_k(4, [1], 5)


def test_interval_covers_the_mean_and_narrows_with_problems():
    rng = np.random.default_rng(0)
    few, many = rng.random(20), rng.random(2000)
    assert interval(few)[0] < few.mean() < interval(few)[1]
    assert np.ptp(interval(many)) < np.ptp(interval(few))
    assert interval(np.zeros(9)) == (0.0, 0.0)


def test_interval_over_seeds_is_wider_where_seeds_differ():
    agree, differ = np.full((3, 50), 0.5), np.array([[0.0], [0.5], [1.0]]) * np.ones((3, 50))
    assert interval(agree) == (0.5, 0.5)
    assert np.ptp(interval(differ)) > 0.5

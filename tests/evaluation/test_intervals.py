"""Intervals by hand, against scipy's and statsmodels' known cases, and by a small simulation."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import World, coverage
from expo.evaluation import intervals
from expo.evaluation.kinds import interval_of
from expo.tables.plan import EXPERIMENTS
from expo.tables.render import FEW, HELD


def test_a_crossed_table_by_hand():
    """Seeds differ by 0.2, problems by 0.4, and nothing else varies: each mean of two has one degree of freedom."""
    s = intervals.spread(np.array([[0.1, 0.5], [0.3, 0.7]]))
    t = stats.t.ppf(0.975, 1)
    assert s.mean == pytest.approx(0.4)
    assert s.of_seeds == pytest.approx(t * math.sqrt(0.2**2 / 2 / 2))
    assert s.of_problems == pytest.approx(t * math.sqrt(0.4**2 / 2 / 2))
    assert s.reach == pytest.approx(math.hypot(s.of_seeds, s.of_problems))


def test_what_each_problem_varies_by_under_each_seed_is_no_difference_of_seeds():
    """Values without any effect of a seed: half of the time, their estimated variance is below nothing, and taken as
    nothing."""
    rng = np.random.default_rng(0)
    found = [intervals.spread(rng.normal(size=(6, 40))).of_seeds for _ in range(400)]
    assert 0.4 < np.mean([f == 0 for f in found]) < 0.75


def test_one_seed_is_a_t_interval_over_problems():
    values = np.random.default_rng(0).normal(size=300)
    low, high = intervals.of_mean(values)
    expected = stats.t.interval(0.95, 299, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=1e-3)


def test_few_seeds_that_differ_have_few_degrees_of_freedom():
    values = np.array([[0.2], [0.5], [0.8]]) * np.ones((3, 1000))
    s = intervals.spread(values)
    assert s.of_seeds == pytest.approx(stats.t.ppf(0.975, 2) * 0.3 / math.sqrt(3), rel=1e-3)
    assert s.of_problems == pytest.approx(0, abs=1e-12)
    low, high = intervals.of_share(values)
    assert low < 0.05
    assert high > 0.95


@pytest.mark.parametrize(("right", "trials"), [(3, 50), (25, 50), (49, 50)])
def test_problems_that_are_right_or_wrong_have_the_exact_interval_nearly(right, trials):
    values = np.array([1.0] * right + [0.0] * (trials - right))
    exact = stats.binomtest(right, trials).proportion_ci(0.95, "exact")
    low, high = intervals.of_share(values)
    assert low == pytest.approx(exact.low, abs=0.02)
    assert high == pytest.approx(exact.high, abs=0.02)


def test_no_success_is_not_a_rate_of_zero_for_sure():
    exact = stats.binomtest(0, 50).proportion_ci(0.95, "exact")
    for values in (np.zeros(50), np.zeros((3, 50))):  # more seeds are no more problems
        assert intervals.of_share(values) == pytest.approx((0.0, exact.high))
        assert intervals.of_share(1 - values) == pytest.approx((1 - exact.high, 1.0))
    low, high = intervals.of_difference(np.zeros((3, 50)))
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.08


@pytest.mark.parametrize("values", [np.full((3, 50), -1.0), np.full((3, 50), 0.5), np.full((1, 50), 1.0)])
def test_the_same_difference_on_every_problem_is_not_that_difference_for_sure(values):
    low, high = intervals.of_difference(values)
    assert high - low > 0.02
    assert -1 <= low <= values.mean() <= high <= 1


def test_seeds_that_tie_by_chance_leave_an_interval():
    """Two seeds with the same mean, and problems that each seed solves otherwise."""
    values = np.tile([[1.0, 0.0], [0.0, 1.0]], (1, 25)) - 0.5
    low, high = intervals.of_difference(values)
    assert high - low > 0.1


def test_a_difference_is_paired():
    """Two arms on the same problems: what both find hard is no doubt about their difference."""
    rng = np.random.default_rng(0)
    hard = rng.random((1, 200)) * np.ones((3, 1))
    both = np.clip(hard + 0.1 + rng.normal(0, 0.01, (3, 200)), 0, 1) - hard
    assert np.ptp(intervals.of_difference(both)) < np.ptp(intervals.of_share(hard)) / 4


@pytest.mark.filterwarnings("error")
def test_seeds_with_other_problems_and_empty_ones_make_no_warning():
    uneven = np.array([[0.0, np.nan, np.nan], [np.nan, 1.0, np.nan]])
    assert intervals.spread(uneven).mean == 0.5
    low, high = intervals.of_share(uneven)
    assert low < 0.5 < high
    assert intervals.of_mean(np.array([3.0])) == (-np.inf, np.inf)  # one number bounds nothing
    assert intervals.of_share(np.array([0.5])) == pytest.approx((0.0, 1.0), abs=0.02)


@pytest.mark.parametrize("world", [World(50, 3, 0.3, 0.15), World(1000, 3, 0.5, 0.05), World(50, 10, 0.1, 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(world):
    held = coverage(world, 300)
    assert 0.91 <= held.share <= 0.985
    assert 0.91 <= held.equal <= 0.995
    assert 0.91 <= held.apart <= 0.99


def test_where_seeds_take_off_or_do_not_three_of_them_know_little():
    world = World(200, 3, 0.3, takes_off=0.99)
    held = coverage(world, 200)
    all_alike = world.chance**3 + (1 - world.chance) ** 3
    assert held.share == pytest.approx(1 - all_alike, abs=0.12)
    assert held.marked == pytest.approx(1 - all_alike, abs=0.12)
    assert coverage(World(200, 3, 0.3, k=4), 200).share > 0.9


def test_tables_say_the_range_that_was_simulated():
    worlds = json.loads((EXPERIMENTS / "bench_intervals" / "coverage.json").read_text())["worlds"]
    wanted = [w for w in worlds if w["seeds"] >= FEW and 0.1 <= w["rate"] <= 0.9]
    told = []
    for takes_off in (False, True):
        held = [w[name] for w in wanted if bool(w["takes_off"]) == takes_off for name in ("share", "equal", "apart")]
        told.append(f"{100 * min(held):.0f} to {100 * max(held):.0f} %")
    assert told == re.findall(r"\d+ to \d+ %", HELD)


def test_one_seed_does_not_cover_what_seeds_do():
    assert coverage(World(1000, 1, 0.5, 0.15), 200).share < 0.5
    assert coverage(World(1000, 1, 0.5, 0.0), 200).share > 0.9


def test_an_interval_of_what_cannot_be_negative_does_not_reach_below_zero():
    apart = np.array([0.01, 0.01, 2.0])
    assert intervals.of_mean(apart)[0] < 0
    for column in ("nll_per_token", "nll", "tokens"):
        low, high = interval_of(column, difference=False)(apart)
        assert low == 0
        assert high == intervals.of_mean(apart)[1]
        assert interval_of(column, difference=True)(apart)[0] < 0
    assert interval_of("answer_lift", difference=False)(apart)[0] < 0

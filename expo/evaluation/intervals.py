"""95 % intervals of means over problems and training seeds: pure functions of arrays.

Problems and seeds are crossed: every seed has the same problems. Both are samples of what a claim is about, and each has a
variance of its own; a third is that of a problem under a seed. The variance of the mean is estimated from all three, as in an analysis of
variance with two crossed random effects (Searle, Casella, McCulloch 1992, chapter 4), and has few degrees of freedom where
it comes from few seeds (Satterthwaite 1946).

`experiments/bench_intervals` measures how often such intervals hold the truth.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
NORMAL = float(stdtrit(np.inf, 1 - TAIL))  # 1.96
FEW = 10  # problems that differ, below which their spread says little


@dataclass(frozen=True)
class Spread:
    """A mean, the variance of the mean with its degrees of freedom, and of both the part that the seeds have."""

    mean: float
    variance: float
    freedom: float
    of_seeds: float = 0.0
    seeds_freedom: float = np.inf

    @property
    def factor(self) -> float:
        """Return how many standard deviations of the mean the interval reaches to each side."""
        return float(stdtrit(self.freedom, 1 - TAIL))


def spread(values: np.ndarray) -> Spread:
    """Estimate the mean of a table `[S, P]`, a row per seed and a column per problem, and how sure it is. NaN: no value.

    With one seed, only the problems vary; with one problem as well, nothing is known, and the variance is infinite.
    """
    there = ~np.isnan(values)
    values, there = values[there.any(axis=1)][:, there.any(axis=0)], there[there.any(axis=1)][:, there.any(axis=0)]
    seeds, problems = values.shape
    mean = float(np.nanmean(values))
    apart = values - mean
    of_seeds = of_problems = both = 0.0
    seeds_freedom = problems_freedom = both_freedom = np.inf
    if seeds > 1:
        rows = np.nansum(apart, axis=1) / there.sum()
        of_seeds, seeds_freedom = float(seeds / (seeds - 1) * np.square(rows).sum()), seeds - 1
    if problems > 1:
        columns = np.nansum(apart, axis=0) / there.sum()
        of_problems = float(problems / (problems - 1) * np.square(columns).sum())
        problems_freedom = _freedom(columns)
    if seeds > 1 and problems > 1:  # what both of them have counted
        rest = apart - np.nanmean(apart, axis=1, keepdims=True) - np.nanmean(apart, axis=0, keepdims=True)
        both_freedom = max(int(there.sum()) - seeds - problems + 1, 1)
        both = float(np.nansum(np.square(rest))) / both_freedom / int(there.sum())
    if seeds == problems == 1:
        return Spread(mean, np.inf, 1)
    variance = max(of_seeds + of_problems - both, of_seeds, of_problems)
    doubt = of_seeds**2 / seeds_freedom + of_problems**2 / problems_freedom + both**2 / both_freedom
    freedom = variance**2 / doubt if doubt else np.inf
    return Spread(mean, variance, freedom, of_seeds, seeds_freedom)


def _freedom(apart: np.ndarray) -> float:
    """Return the degrees of freedom of a variance estimated from values `[N]` of mean 0, whatever their distribution.

    2 V² / Var(V) with the fourth moment (Kenney, Keeping 1951): N - 1 for normal values, few where few values are all that varies.
    """
    count, squares = len(apart), np.square(apart).mean()
    excess = max(np.square(np.square(apart)).mean() / squares**2 - 3, 0.0) if squares else 0.0
    return float(2 / (excess / count + 2 / (count - 1)))


def of_mean(values: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of any measured values, `[P]` or `[S, P]`; NaN: no value."""
    s = spread(np.atleast_2d(values))
    reach = s.factor * np.sqrt(s.variance)
    return s.mean - reach, s.mean + reach


def of_share(values: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of values between 0 and 1, such as pass@k by problem, `[P]` or `[S, P]`; NaN: no value.

    The exact interval of a proportion (Clopper, Pearson 1934), of as many independent trials as would have the variance of the
    mean (Korn, Graubard 1998). Problems of which each is always right or always wrong vary most: their variance is known from
    the mean alone, and where it tells more than an estimate from few problems, it is taken. Where no value differs from
    another, there are as many trials as problems.
    """
    values = np.atleast_2d(values)
    s, problems = spread(values), int((~np.isnan(values)).any(axis=0).sum())
    most = s.mean * (1 - s.mean)
    highest = s.of_seeds + most / problems
    of_seeds = highest**2 * s.seeds_freedom / s.of_seeds**2 if s.of_seeds else np.inf
    trials = most / highest / (float(stdtrit(of_seeds, 1 - TAIL)) / NORMAL) ** 2 if most else float(problems)
    if most and 0 < s.variance < np.inf:
        trials = max(trials, most / s.variance / (s.factor / NORMAL) ** 2)
    right = s.mean * trials
    low = float(betaincinv(right, trials - right + 1, TAIL)) if s.mean > 0 else 0.0
    high = float(betaincinv(right + 1, trials - right, 1 - TAIL)) if s.mean < 1 else 1.0
    return low, high


def of_difference(values: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of paired differences between -1 and 1, `[P]` or `[S, P]`; NaN: no value.

    Where fewer than ten problems differ, two are added that differ by half of what they can, to one side each (Agresti, Min
    2005): no difference on any problem is not a difference of 0 for sure.
    """
    values = np.atleast_2d(values)
    mean = float(np.nanmean(values))
    if np.count_nonzero(np.nansum(np.abs(values), axis=0)) < FEW:
        added = np.full((len(values), 2), np.sqrt(0.5)) * [1, -1]
        values = np.concatenate([values, added], axis=1)
    s = spread(values)
    reach = s.factor * np.sqrt(s.variance)
    return max(mean - reach, -1.0), min(mean + reach, 1.0)

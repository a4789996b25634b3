"""95 % intervals of means over problems and training seeds: pure functions of arrays.

Problems and seeds are crossed: every seed has the same problems. Both are samples of what a claim is about, and each
has a variance of its own; a third is that of a problem under a seed. All three are estimated as in an analysis of
variance with two crossed random effects (Searle, Casella, McCulloch 1992, chapter 4). What a mean owes to the seeds and
what to the problems each has an interval with its own few degrees of freedom; the two are combined by their squares
(Howe 1974).

`experiments/bench_intervals` measures how often such intervals hold the truth.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
NORMAL = float(stdtrit(np.inf, 1 - TAIL))  # 1.96
FEW = 10  # problems unlike the rest, below which their spread says little


@dataclass(frozen=True)
class Spread:
    """Mean of S seeds and P problems, and its distance from the truth because of seeds and of problems."""

    mean: float
    problems: int
    of_seeds: float
    of_problems: float
    least: float = 0.0  # one standard deviation of what each problem varies by under each seed: seeds may tie by chance

    @property
    def reach(self) -> float:
        return max(float(np.hypot(self.of_seeds, self.of_problems)), self.least)


def spread(values: np.ndarray, paired: bool = False) -> Spread:
    """Estimate the mean of a table `[S, P]`, a row per seed and a column per problem. NaN: no value.

    How a problem varies under each seed is in what seeds and what problems differ by, and is taken off one of them: off
    the seeds'; with `paired`, of differences of two arms, in which problems have hardly a part of their own, off the
    problems'. With one seed, only the problems vary; with one problem as well, nothing is known, and it reaches
    infinitely far.
    """
    known = ~np.isnan(values)
    values, known = values[known.any(axis=1)][:, known.any(axis=0)], known[known.any(axis=1)][:, known.any(axis=0)]
    (seeds, problems), count = values.shape, int(known.sum())
    mean = float(np.nanmean(values))
    if seeds == problems == 1:
        return Spread(mean, 1, 0.0, np.inf)
    apart = values - mean
    rows, columns = np.nansum(apart, axis=1) / count, np.nansum(apart, axis=0) / count
    of_seeds, of_problems, both = _variance(rows), _variance(columns), 0.0
    if seeds > 1 and problems > 1:
        rest = apart - np.nanmean(apart, axis=1, keepdims=True) - np.nanmean(apart, axis=0, keepdims=True)
        both = float(np.nansum(np.square(rest))) / max(count - seeds - problems + 1, 1) / count
    of_seeds, of_problems = (of_seeds, of_problems - both) if paired else (of_seeds - both, of_problems)
    freedoms = max(seeds - 1, 1), _freedom(columns)
    seeds_reach, problems_reach = (
        float(stdtrit(freedom, 1 - TAIL)) * max(variance, 0.0) ** 0.5
        for freedom, variance in zip(freedoms, (of_seeds, of_problems), strict=True)
    )
    return Spread(mean, problems, seeds_reach, problems_reach, both**0.5)


def _variance(apart: np.ndarray) -> float:
    """Return the variance of a sum of independent values, given their distances `[N]` from their mean; 0 for one."""
    return float(len(apart) / max(len(apart) - 1, 1) * np.square(apart).sum()) if len(apart) > 1 else 0.0


def _freedom(apart: np.ndarray) -> float:
    """Return the degrees of freedom of a variance estimated from values `[N]` of mean 0, of any distribution: 2 V² /
    Var(V) with the fourth moment (Kenney, Keeping 1951). N - 1 for normal values, few where few values are all that
    varies."""
    count, squares = len(apart), float(np.square(apart).mean())
    excess = max(float(np.square(np.square(apart)).mean()) / squares**2 - 3, 0.0) if squares**2 else 0.0
    return 2 / (excess / count + 2 / max(count - 1, 1))


def of_mean(values: np.ndarray, least: float = -np.inf) -> tuple[float, float]:
    """Return the interval of the mean of any measured values, none below `least`, `[P]` or `[S, P]`; NaN: no value."""
    s = spread(np.atleast_2d(values))
    return max(s.mean - s.reach, least), s.mean + s.reach


def of_share(values: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of values between 0 and 1, such as pass@k by problem, `[P]` or `[S, P]`; NaN: no
    value.

    The exact interval of a proportion (Clopper, Pearson 1934), of as many independent trials as would reach as far
    (Korn, Graubard 1998). Problems of which each is always right or always wrong vary most: their variance is known
    from the mean alone, and where it tells more than an estimate from few problems, it is taken. Where no value differs
    from another, there are as many trials as problems.
    """
    s = spread(np.atleast_2d(values))
    most = s.mean * (1 - s.mean) * NORMAL**2
    trials = most / (s.of_seeds**2 + most / s.problems) if most else float(s.problems)
    if most and s.of_problems:
        trials = max(trials, most / s.reach**2)
    right = s.mean * trials
    low = float(betaincinv(right, trials - right + 1, TAIL)) if s.mean > 0 else 0.0
    high = float(betaincinv(right + 1, trials - right, 1 - TAIL)) if s.mean < 1 else 1.0
    return low, high


def of_difference(values: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of paired differences between -1 and 1, `[P]` or `[S, P]`; NaN: no value.

    Where fewer than ten problems differ by another number than the most frequent, two are added, one to each side, as
    in a table of pairs with half a pair more in each cell (Agresti, Min 2005): the same difference on every problem is
    not that difference for sure.
    """
    values = np.atleast_2d(values)
    mean = float(np.nanmean(values))
    _, counts = np.unique(np.nanmean(values, axis=0).round(9), return_counts=True)
    if counts.sum() - counts.max() < FEW:
        added = np.full((len(values), 2), np.sqrt(0.5)) * [1, -1]
        values = np.concatenate([values, added], axis=1)
    reach = spread(values, paired=True).reach
    return max(mean - reach, -1.0), min(mean + reach, 1.0)

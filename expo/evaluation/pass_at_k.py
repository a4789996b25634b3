"""Unbiased pass@k and its intervals: pure functions of verdict counts."""

from collections.abc import Sequence

import numpy as np

from expo.rollout.noise import BOOTSTRAP, Key

RESAMPLES = 2000


def pass_at_k(samples: int, correct: Sequence[int], k: int) -> np.ndarray:
    """Return 1 - C(n - c, k) / C(n, k) for each problem: `[P]` (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args: samples n per problem; correct, c for each problem; k <= n. Computed as a product, which does not overflow.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= {samples} samples")
    wrong = samples - np.asarray(correct)[:, None]  # [P, 1]
    factors = 1 - k / np.arange(1, samples + 1)  # [n]: 1 - k / i, of which those with i > n - c count
    missed: np.ndarray = np.where(np.arange(1, samples + 1) > wrong, factors, 1.0).clip(min=0).prod(axis=1)
    return 1 - missed


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of `values`.

    Args: values `[P]`, one per problem, or `[S, P]`, one row per training seed; problems are resampled, and seeds too
    where there are several. The same problems are drawn for every seed, because they are the same problems. NaN: no value.
    """
    values = np.atleast_2d(values)
    seeds, problems = values.shape
    rng = Key(seed, BOOTSTRAP).generator()
    columns = rng.integers(problems, size=(RESAMPLES, problems))
    rows = rng.integers(seeds, size=(RESAMPLES, seeds))
    drawn = (values[r][:, c] for r, c in zip(rows, columns, strict=True))
    if np.isnan(values).any():  # a draw of seeds may have no value for any of the problems drawn: it says nothing
        means = [np.nanmean(draw) for draw in drawn if not np.isnan(draw).all()]
    else:
        means = [np.mean(draw) for draw in drawn]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

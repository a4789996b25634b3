"""Unbiased pass@k and its intervals: pure functions of verdict counts."""

from collections.abc import Sequence

import numpy as np

from expo.randomness import BOOTSTRAP, Key

RESAMPLES = 2000


def pass_at_k(samples: int, correct: Sequence[int], k: int) -> np.ndarray:
    """1 - C(n - c, k) / C(n, k) for each problem: `[P]` (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args: samples n per problem; correct, c for each problem; k <= n. Computed as a product, which does not overflow.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= {samples} samples")
    wrong = samples - np.asarray(correct)[:, None]  # [P, 1]
    factors = 1 - k / np.arange(1, samples + 1)  # [n]: 1 - k / i, of which those with i > n - c count
    return 1 - np.where(np.arange(1, samples + 1) > wrong, factors, 1.0).clip(min=0).prod(axis=1)


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values` `[P]`, resampling problems."""
    draws = Key(seed, BOOTSTRAP).generator().integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)

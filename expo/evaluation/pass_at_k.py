"""Unbiased pass@k: a pure function of verdict counts. Its interval: `intervals.of_share`."""

from collections.abc import Sequence

import numpy as np


def pass_at_k(samples: int, correct: Sequence[int], k: int) -> np.ndarray:
    """Return 1 - C(n - c, k) / C(n, k) for each problem: `[P]` (Chen et al. 2021, arXiv 2107.03374, eq. 1), as a
    product, which does not overflow. Args: samples n per problem; correct, c for each problem; k <= n."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= {samples} samples")
    wrong = samples - np.asarray(correct)[:, None]  # [P, 1]
    factors = 1 - k / np.arange(1, samples + 1)  # [n]: 1 - k / i, of which those with i > n - c count
    missed: np.ndarray = np.where(np.arange(1, samples + 1) > wrong, factors, 1.0).clip(min=0).prod(axis=1)
    return 1 - missed

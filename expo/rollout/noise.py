"""Sampling noise, counter-based: every draw is a function of (seed, stream, step, row), so that resuming needs no RNG
state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SOLVE, EXPLAIN, EVALUATE, PROBLEMS, DROPOUT, _, HINT, HINTED, REFILL, DIAGNOSE, SHARE, RETRY, ABSTRACT = range(13)


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Key of one random stream: seed, purpose (SOLVE, EXPLAIN, …), step, and row: a rollout's is its problem's place in
    the step times `group_size`, plus its own in the group. Number t draws token t; with vLLM the stream seeds the
    request."""

    seed: int
    stream: int
    step: int = 0
    row: int = 0

    def generator(self) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=self.seed, counter=np.array([0, self.row, self.step, self.stream], dtype=np.uint64))
        )


def uniforms(keys: Sequence[NoiseKey], count: int, dtype: type[np.float32 | np.float64] = np.float32) -> np.ndarray:
    """Return `count` numbers in [0, 1) for each key `[B, count]`. Number j of a key never depends on the others."""
    return np.stack([key.generator().random(count, dtype=dtype) for key in keys])

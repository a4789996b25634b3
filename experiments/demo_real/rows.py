"""Rows of the demo on a real model: sums of two-digit numbers, as in real_lm, whose steps are checked."""

from collections.abc import Iterator
from typing import Any

from experiments.real_lm import sums as real


def sums(split: str) -> Iterator[dict[str, Any]]:
    """Yield the sums of a split; of `cold`, two and three terms, a third of them with the answer shown."""
    if split != "cold":
        yield from real.sums(split)
        return
    for level in (2, 3):
        for i, terms in enumerate(real.problems(split, level, 192)):
            made = real.row(terms, False)
            yield made | ({"question": real.EXPLAIN.format(**made)} if i % 3 == 0 else {})


sums.oracle = real.right_steps

"""Sums of two-digit numbers, worked one at a time: rows of `dataset=function` for a real language model.

The same sums are asked for in two ways. `sums` wants the sum: an answer that is shown says what the last step ends in.
`totals` wants every running total: there, the answer says what every step ends in.
"""

import random
import re
import zlib
from collections.abc import Iterator
from typing import Any

SPLITS = ("cold", "train", "tune", "table")  # share no question: a hash of its terms says which one it is in
LEVELS = (2, 3, 4, 5, 6)  # terms
COLD = {2: 192, 3: 384, 4: 192}  # rows of the cold start by level: half of them totals, and a third shows the answer
ROWS = 200  # of any other split, by level
EXPLAIN = "{question} It is {answer}. Show how."  # prompts.explain of the plan


def sums(split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split that ask for the sum."""
    return (row(terms, False) for level in LEVELS for terms in problems(split, level, ROWS))


def totals(split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split that ask for every running total."""
    return (row(terms, True) for level in LEVELS for terms in problems(split, level, ROWS))


def cold(split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of the cold start: questions, and requests to explain as `prompts.explain` makes them."""
    if split != "cold":
        yield from sums(split)
        return
    for level, count in COLD.items():
        for i, terms in enumerate(problems(split, level, count)):
            made = row(terms, i % 2 == 1)
            yield made | ({"question": EXPLAIN.format(**made)} if i % 3 == 0 else {})


def problems(split: str, level: int, count: int) -> Iterator[list[int]]:
    """Yield the terms of a split's problems of a level, each once, in an order that never changes."""
    part, rng, seen = SPLITS.index(split), random.Random(f"{split} {level}"), set[str]()
    while len(seen) < count:
        terms = [rng.randint(10, 99) for _ in range(level)]
        asked = str(terms)
        if zlib.crc32(asked.encode()) % len(SPLITS) == part and asked not in seen:
            seen.add(asked)
            yield terms


def row(terms: list[int], all_totals: bool) -> dict[str, Any]:
    """Return a problem as a row: question, answer, and the worked solution, an equation a line."""
    steps, wholes = [], terms[:1]
    for term in terms[1:]:
        wholes.append(wholes[-1] + term)
        steps.append(f"{wholes[-2]}+{term}={wholes[-1]}")
    answer = ",".join(map(str, wholes[1:] if all_totals else wholes[-1:]))
    return {
        "question": f"{'+'.join(map(str, terms))}: {'totals' if all_totals else 'sum'}?",
        "answer": answer,
        "solution": "\n".join([*steps, rf"\boxed{{{answer}}}"]),
        "level": len(terms),
    }


def right_steps(question: str, completion: str) -> list[bool]:
    """Return, of each equation that a sum takes, whether a completion has it, at its place and right."""
    terms = [int(term) for term in question.partition(":")[0].split("+")]
    found = [re.sub(r"\s", "", line) for line in completion.splitlines() if "=" in line]
    wanted = str(row(terms, False)["solution"]).splitlines()[:-1]
    return [i < len(found) and found[i] == step for i, step in enumerate(wanted)]

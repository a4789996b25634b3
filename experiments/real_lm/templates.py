"""Word problems of reasoning-gym's gsm_symbolic by template: rows of `dataset=function` for a real language model.

The cold start sees every other template. Level `known` is these with other numbers; level `new` is the templates that
it has not seen.
"""

import re
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

from reasoning_gym import create_dataset

ROWS = {"cold": 1000, "train": 400, "tune": 60, "table": 200}  # of each level; cold has known templates alone
LONGEST = 400  # characters of a worked solution
EXPLAIN = "{question} It is {answer}. Show how."  # prompts.explain of the plan
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def problems(split: str) -> Iterator[dict[str, Any]]:
    """Yield a split's rows, each question once; a third of the cold start's ask for an explanation of the answer."""
    wanted = {"known": ROWS[split], "new": 0 if split == "cold" else ROWS[split]}
    seen = set[str]()
    data = create_dataset("gsm_symbolic", seed=0, size=20_000)
    for i, template in enumerate(data.task_indices):
        level = "known" if template % 2 == 0 else "new"
        made = row(data[i], level) if wanted[level] else None
        if made is None or made["question"] in seen or part_of(made["question"]) != split:
            continue
        seen.add(made["question"])
        wanted[level] -= 1
        yield made | ({"question": EXPLAIN.format(**made)} if split == "cold" and len(seen) % 3 == 0 else {})
        if not any(wanted.values()):
            return


def part_of(question: str) -> str:
    """Return the split that a question is in: splits share none."""
    return list(ROWS)[zlib.crc32(question.encode()) % len(ROWS)]


def row(entry: dict[str, Any], level: str) -> dict[str, Any] | None:
    """Return an entry as a row; None where its worked solution is long, or ends in another number than its answer."""
    worked, _, last = entry["metadata"]["answer_cot"].rpartition("\n####")
    answer = entry["answer"]
    if len(worked) > LONGEST or last.strip().replace(",", "") != answer:
        return None
    question = entry["question"].removesuffix(" Give the result as your final answer. Do not include units.")
    return {"question": question, "answer": answer, "solution": f"{worked}\n\\boxed{{{answer}}}", "level": level}


def computed(solution: str) -> list[float]:
    """Return the numbers that a worked solution computes: the first one behind each equals sign, the answer's too."""
    return [float(found[0]) for part in solution.split("=")[1:] if (found := NUMBER.findall(part.replace(",", "")))]


@cache
def solutions() -> dict[str, str]:
    """Return the worked solution of each question."""
    return {made["question"]: made["solution"] for split in ROWS for made in problems(split)}


def right_numbers(question: str, completion: str) -> list[bool]:
    """Return, of each number that the worked solution computes, whether a completion has it behind an equals sign.

    Another way to the answer, with other numbers on it, counts as wrong, and a false equation with the right number
    behind it as right. Where the worked solution computes nothing, there is one step, which is right.
    """
    wanted, has = computed(solutions()[question]), set(computed(completion))
    return [number in has for number in wanted] or [True]


problems.oracle = right_numbers  # type: ignore[attr-defined]

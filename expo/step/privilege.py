"""What a teacher sees beside the question of a rollout: `algorithm.privilege`."""

import logging
from collections.abc import Callable
from dataclasses import replace

from expo.config import SelfDistillationConf, functions_of
from expo.data.problem import Problem
from expo.step.experience import Experience, Tools
from expo.verifier.answers import Verdict

log = logging.getLogger(__name__)

# (experience, row of a rollout) -> its problem with what is shown of it: the solution, or without one the answer. None: nothing.
Shown = Callable[[Experience, int, Tools], Problem | None]


def _answer(e: Experience, row: int, tools: Tools) -> Problem | None:
    return replace(e.problems[row // e.group_size], solution=None)


def _solution(e: Experience, row: int, tools: Tools) -> Problem | None:
    problem = e.problems[row // e.group_size]
    return problem if problem.solution else None


def _sibling(e: Experience, row: int, tools: Tools) -> Problem | None:
    """Return it with the first right rollout of its group but the row itself."""
    right = (j for j in _group(e, row) if j != row and e.verdicts[j] is Verdict.CORRECT)
    return next((replace(e.problems[row // e.group_size], solution=e.texts[j]) for j in right), None)


def _other_solution(e: Experience, row: int, tools: Tools) -> Problem | None:
    """Return it with the solution and the answer of the step's next problem that asks something else."""
    own, count = row // e.group_size, len(e.problems)
    others = (e.problems[(own + shift) % count] for shift in range(1, count))
    found = (o for o in others if o.asked != e.problems[own].asked and o.solution)
    return next((replace(e.problems[own], answer=o.answer, solution=o.solution) for o in found), None)


PRIVILEGES: dict[str, Shown] = functions_of(
    SelfDistillationConf,
    "privilege",
    {"answer": _answer, "solution": _solution, "sibling": _sibling, "other_solution": _other_solution},
)


def wrong_answer(e: Experience, row: int, tools: Tools) -> Problem | None:
    """Return a row's problem with the final answer of the first wrong rollout of its group."""
    wrong = (tools.verifier.extraction.of(e.texts[j]) for j in _group(e, row) if e.verdicts[j] is Verdict.INCORRECT)
    problem = e.problems[row // e.group_size]
    return next((replace(problem, answer=answer, solution=None) for answer in wrong if answer is not None), None)


def privileged_prompts(e: Experience, shown: Shown, tools: Tools) -> list[tuple[int, ...] | None]:
    """Return the teacher's prompt for each rollout `[P * G]`; None where there is nothing to show, or no room for it."""
    problems = [shown(e, row, tools) for row in range(len(e.completions))]
    distinct = list(dict.fromkeys(p for p in problems if p is not None))
    made = tools.prompts.privileged_ids(tools.tokenizer, distinct)
    ids = {p: tuple(i) for p, i in zip(distinct, made, strict=True) if len(i) <= tools.longest_prompt}
    if left := len(distinct) - len(ids):
        log.warning("step %d: %d prompts of the teacher not used: over %d tokens", e.step, left, tools.longest_prompt)
    return [None if p is None else ids.get(p) for p in problems]


def _group(e: Experience, row: int) -> range:
    first = row - row % e.group_size
    return range(first, first + e.group_size)

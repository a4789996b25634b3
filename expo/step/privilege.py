"""What a teacher sees beside the question of a rollout: `algorithm.privilege`."""

from collections.abc import Callable
from dataclasses import replace

from expo.config import SelfDistillationConf, functions_of
from expo.ground.problem import Problem
from expo.step.experience import Experience, Tools
from expo.verifier.answers import Verdict

# (experience, index of a group, index of a rollout in it, tools) -> the problem to put into the teacher's prompt: its
# solution is shown, or where it has none its answer. None: this rollout has no teacher.
Privilege = Callable[[Experience, int, int, Tools], Problem | None]


def _answer(e: Experience, group: int, rollout: int, tools: Tools) -> Problem | None:
    return replace(e.groups[group].problem, solution=None)


def _solution(e: Experience, group: int, rollout: int, tools: Tools) -> Problem | None:
    problem = e.groups[group].problem
    return problem if problem.solution else None


def _sibling(e: Experience, group: int, rollout: int, tools: Tools) -> Problem | None:
    siblings = e.groups[group]
    right = (j for j, v in enumerate(siblings.verdicts) if j != rollout and v is Verdict.CORRECT)
    return next((replace(siblings.problem, solution=siblings.texts[j]) for j in right), None)


def _other_solution(e: Experience, group: int, rollout: int, tools: Tools) -> Problem | None:
    """Return the rollout's problem with solution and answer of the step's next problem that asks something else."""
    asked, problems = e.groups[group].problem, e.problems
    others = [*problems[group + 1 :], *problems[:group]]
    usable = (o for o in others if o.asked != asked.asked and o.solution)
    return next((replace(asked, answer=o.answer, solution=o.solution) for o in usable), None)


PRIVILEGES: dict[str, Privilege] = functions_of(
    SelfDistillationConf,
    "privilege",
    {"answer": _answer, "solution": _solution, "sibling": _sibling, "other_solution": _other_solution},
)


def wrong_answer(e: Experience, group: int, rollout: int, tools: Tools) -> Problem | None:
    """Return the group's problem with, as its answer, the first wrong one that a rollout of the group states, and no
    solution; the same for every `rollout`. None where none states one."""
    answer = tools.wrong_answer(e.groups[group])
    return None if answer is None else replace(e.groups[group].problem, answer=answer, solution=None)


def privileged_prompts(e: Experience, shown: Privilege, tools: Tools) -> list[list[tuple[int, ...] | None]]:
    """Return the teacher's prompt for each rollout of each group `[P][G]`; None without privilege or without room."""
    problems = [[shown(e, i, row, tools) for row in range(len(g.completions))] for i, g in enumerate(e.groups)]
    distinct = list(dict.fromkeys(p for row in problems for p in row if p is not None))
    prompts = tools.prompts.privileged_ids(tools.tokenizer, distinct)
    ids = tools.fitting(dict(zip(distinct, prompts, strict=True)), e.step, "prompts of the teacher not used")
    return [[None if p is None else ids.get(p) for p in row] for row in problems]

"""The scorers of reasoning-gym as a judge: `verifier=reasoning_gym`, for rows that it has made."""

from collections.abc import Callable
from typing import Any

from expo.config.errors import UserError
from expo.config.reasoning import INSTALL
from expo.ground.problem import Problem

try:
    import reasoning_gym
except ImportError as error:
    raise UserError(f"verifier=reasoning_gym: the package reasoning-gym is not installed; {INSTALL}") from error


SCORERS: dict[str, Callable[[str, dict[str, Any]], float]] = {}  # some tasks take a second to make


def score(answer: str, problem: Problem) -> float:
    """Return the score of an answer by its row's task, which is in `metadata.source_dataset`; 1 is right."""
    entry: dict[str, Any] = dict(problem.columns)
    task, settings = entry["metadata"]["source_dataset"], entry.pop("task_config", {})
    known = f"{task} {settings}"
    if known not in SCORERS:
        scorer = reasoning_gym.create_dataset(task, **settings).score_answer if settings else None
        SCORERS[known] = scorer or reasoning_gym.get_score_answer_fn(task)
    return SCORERS[known](answer, entry)


score.accepts_itself = True  # type: ignore[attr-defined]

"""The scorers of reasoning-gym as a judge: `verifier=reasoning_gym`, for rows that it has made."""

from typing import Any

import reasoning_gym

from expo.ground.problem import Problem


def score(answer: str, problem: Problem) -> float:
    """Return the score of an answer by the task that made its row, which names it in `metadata.source_dataset`; 1 is right."""
    entry: dict[str, Any] = dict(problem.columns)
    found: float = reasoning_gym.get_score_answer_fn(entry["metadata"]["source_dataset"])(answer, entry)
    return found

"""Selection: which of a problem's usable candidates are learned from. Candidates come with the properties that the
selection asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expo.config import SelfExplanationConf, functions_of
from expo.ground.problem import Problem
from expo.step.experience import Candidate


@dataclass(frozen=True)
class Limits:
    """Numbers that some selections use; see `SelfExplanationConf`."""

    rank_weight: float = 0.5
    min_logp: float = -1.0
    min_lift: float = 0.0


# (usable candidates of one problem, that problem, limits) -> those to learn from
Select = Callable[[list[Candidate], Problem, Limits], list[Candidate]]


def _logp(candidate: Candidate) -> float:
    assert candidate.logp_given_q is not None
    return candidate.logp_given_q


def _lift(candidate: Candidate) -> float:
    assert candidate.answer_lift is not None
    return candidate.answer_lift


def _first(usable: list[Candidate], problem: Problem, limits: Limits) -> list[Candidate]:
    return usable[:1]


def _most_likely(usable: list[Candidate], problem: Problem, limits: Limits) -> list[Candidate]:
    return [max(usable, key=_logp)]


def _two_properties(usable: list[Candidate], problem: Problem, limits: Limits) -> list[Candidate]:
    by_logp, by_lift = sorted(map(_logp, usable)), sorted(map(_lift, usable))

    def rank(candidate: Candidate) -> float:
        logp, lift = by_logp.index(_logp(candidate)), by_lift.index(_lift(candidate))
        return limits.rank_weight * logp + (1 - limits.rank_weight) * lift

    return [max(usable, key=rank)]


def _threshold(usable: list[Candidate], problem: Problem, limits: Limits) -> list[Candidate]:
    return [c for c in usable if _logp(c) >= limits.min_logp and _lift(c) >= limits.min_lift]


def _oracle_sound(usable: list[Candidate], problem: Problem, limits: Limits) -> list[Candidate]:
    assert problem.oracle is not None  # see the rules of SelfExplanationConf
    return [c for c in usable if problem.oracle(problem.question, c.text).sound][:1]


SELECTIONS: dict[str, Select] = functions_of(
    SelfExplanationConf,
    "selection",
    {
        "first": _first,
        "most_likely": _most_likely,  # largest mean log π(c|q) per token
        "two_properties": _two_properties,  # best weighted rank by log π(c|q) and by answer lift
        "threshold": _threshold,  # all that reach both limits
        "oracle_sound": _oracle_sound,  # the data set's exact check of steps: for studies only
    },
)
NEEDS_LOGP = {"most_likely", "two_properties", "threshold"}
NEEDS_LIFT = {"two_properties", "threshold"}


def select(usable: Sequence[Candidate], problem: Problem, selection: str, limits: Limits) -> list[Candidate]:
    """Apply a selection to the usable candidates of a problem, at least one."""
    return SELECTIONS[selection](list(usable), problem, limits)

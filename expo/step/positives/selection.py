"""Selection: which of a problem's usable candidates are learned from. Candidates come with the properties that the
selection asks for."""

from collections.abc import Callable, Sequence

from expo.config import SelfExplanationConf, functions_of
from expo.ground.problem import Problem
from expo.step.experience import Candidate

# (usable candidates of one problem, that problem, the source's keys) -> those to learn from
Select = Callable[[Sequence[Candidate], Problem, SelfExplanationConf], list[Candidate]]


def _logp(candidate: Candidate) -> float:
    assert candidate.logp_given_q is not None
    return candidate.logp_given_q


def _lift(candidate: Candidate) -> float:
    assert candidate.answer_lift is not None
    return candidate.answer_lift


def _two_properties(usable: Sequence[Candidate], problem: Problem, conf: SelfExplanationConf) -> list[Candidate]:
    by_logp, by_lift = sorted(map(_logp, usable)), sorted(map(_lift, usable))

    def rank(candidate: Candidate) -> float:
        logp, lift = by_logp.index(_logp(candidate)), by_lift.index(_lift(candidate))
        return conf.rank_weight * logp + (1 - conf.rank_weight) * lift

    return [max(usable, key=rank)]


def _oracle_sound(usable: Sequence[Candidate], problem: Problem, conf: SelfExplanationConf) -> list[Candidate]:
    assert problem.oracle is not None  # see `expo.config.rules`
    return [c for c in usable if problem.oracle(problem.question, c.text).sound][:1]


SELECTIONS: dict[str, Select] = functions_of(
    SelfExplanationConf,
    "selection",
    {
        "first": lambda usable, problem, conf: [usable[0]],
        "most_likely": lambda usable, problem, conf: [max(usable, key=_logp)],  # largest mean log π(c|q) per token
        "two_properties": _two_properties,  # best weighted rank by log π(c|q) and by answer lift
        # All that reach both limits.
        "threshold": lambda usable, problem, conf: [
            c for c in usable if _logp(c) >= conf.min_logp and _lift(c) >= conf.min_lift
        ],
        "oracle_sound": _oracle_sound,  # the data set's exact check of steps: for studies only
    },
)
NEEDS_LOGP = {"most_likely", "two_properties", "threshold"}
NEEDS_LIFT = {"two_properties", "threshold"}

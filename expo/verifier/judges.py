"""Judges, which decide whether an answer is right: `verifier=`. A judge of your own is a function (`verifier=python`),
or a class like these.

Imports no torch: workers import it.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, Protocol

from expo.config import PythonVerifierConf, VerifierConf
from expo.config.errors import UserError, first_line
from expo.ground.problem import Problem
from expo.verifier.answers import AUTO, Verdict, fast_verdict, math_verify_verdict
from expo.verifier.kinds import KINDS, option

# The import path of a function, and its arguments. A worker calls it: what it returns is a verdict.
Task = tuple[str, tuple[Any, ...]]


class Judge(Protocol):
    """Decides whether the final answer of a completion is right. A subclass has to write `task`: the inherited `settle`
    sends every answer to a worker, and the inherited `refuses` takes every problem."""

    accepts_itself: bool = (
        False  # whether the gold answer must be right about itself: each row is asked that when it is read
    )

    def settle(self, answer: str, problem: Problem) -> Verdict | None:
        """Return the verdict where it is known at once; None where a worker has to look."""

    def task(self, answer: str, problem: Problem) -> Task:
        """Return the function that a worker calls, with its arguments."""

    def refuses(self, problem: Problem) -> str | None:
        """Return why no answer can be right on a problem, as far as its row tells; None where one can."""


LETTERED = re.compile(r"(?m)^\W{0,3}([A-Z])[).]|\(([A-Z])\)")  # options that a question lists


class ByKind:
    """Compares by the kind of the gold answer: `verifier=math`, `exact`, `choice`, `json`."""

    accepts_itself = True

    def __init__(self, conf: VerifierConf):
        self.conf = conf

    def kind(self, problem: Problem) -> str:
        return problem.kind if self.conf.kind == AUTO else self.conf.kind

    def settle(self, answer: str, problem: Problem) -> Verdict | None:
        return fast_verdict(answer, problem.answer, self.kind(problem))

    def refuses(self, problem: Problem) -> str | None:
        kind = self.kind(problem)
        form = None if kind == AUTO else KINDS[kind].form
        if kind == "option" and (letter := option(problem.answer)):
            asked = f"{problem.question} {problem.earlier}"
            letters = ["".join(found) for found in LETTERED.findall(problem.question)]
            if letters[:2] == ["A", "B"] and not re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])", asked):
                return f"the answer is none of the options {', '.join(dict.fromkeys(letters))}"
        return f"the answer is no {kind}" if form is not None and form(problem.answer) is None else None

    def task(self, answer: str, problem: Problem) -> Task:
        function = f"{math_verify_verdict.__module__}.{math_verify_verdict.__name__}"
        return function, (answer, problem.answer, self.kind(problem))


class Matching(Judge):
    """Takes the gold answer for a regular expression that the whole answer has to match: `verifier=regex`. A worker
    matches, which can be killed: some patterns take for ever."""

    def __init__(self, conf: VerifierConf):
        self.conf = conf

    def refuses(self, problem: Problem) -> str | None:
        try:
            re.compile(problem.answer)
        except re.error as error:
            return f"the answer is no regular expression: {error.msg}"
        return None

    def task(self, answer: str, problem: Problem) -> Task:
        return f"{__name__}.matches", (answer, problem.answer)


def matches(answer: str, pattern: str) -> bool:
    return re.fullmatch(pattern, answer, re.DOTALL) is not None


class ByFunction(Judge):
    """Judge that asks a user's function `judge(answer, problem) -> bool | None`:
    `verifier=python verifier.function=package.module.name`.

    True is right, False is wrong, None is no answer; of a number, 1 or more is right, and less may be a part of it
    (`reward=partial`). A function with the attribute `accepts_itself = True` is asked about each row's own answer
    first.
    """

    def __init__(self, conf: PythonVerifierConf):
        self.conf = conf
        try:
            function = function_at(conf.function)
            inspect.signature(function).bind("answer", Problem("", "", ""))
            self.accepts_itself = getattr(function, "accepts_itself", False)
        except Exception as error:  # of a module that is not ours
            why = f"cannot be called with an answer and a problem ({first_line(error)})"
            remedy = "and name its package in EXPO_PLUGINS where it stands in the working folder"
            raise UserError(
                f"verifier.function={conf.function}: {why}; give package.module.name of such a function, {remedy}"
            ) from error

    def task(self, answer: str, problem: Problem) -> Task:
        return self.conf.function, (answer, problem)


def function_at(path: str) -> Callable[..., Any]:
    """Import a function. Args: path, `package.module.name`."""
    module, _, name = path.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


ROUNDING = 1e-6  # of a sum of parts that are 1 together


def score_of(returned: Any) -> float:
    """Return the score in [0, 1] of what a judge's function returned: a number, or a verdict; 0 for anything else."""
    returned = returned is Verdict.CORRECT if isinstance(returned, Verdict) else returned
    return min(max(0.0, float(returned)), 1.0) if isinstance(returned, bool | int | float) else 0.0


def verdict_of(returned: Any) -> Verdict:
    """Return the verdict of what a judge's function returned. Raises TypeError for a value of another type, ValueError
    for a number that is no score: 2 for two right parts would make every answer right."""
    if isinstance(returned, Verdict):
        return returned
    if returned is None:
        return Verdict.UNPARSEABLE
    if isinstance(returned, bool | int | float):
        if not -ROUNDING <= returned <= 1 + ROUNDING:
            raise ValueError(f"a judge's number is a score from 0 to 1, not {returned!r}")
        return Verdict.CORRECT if returned >= 1 - ROUNDING else Verdict.INCORRECT
    raise TypeError(f"a judge returns True, False, None or a number, not {returned!r}")

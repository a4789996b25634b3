"""Readers of each format of data: which columns are question, answer, level and solution, or how problems are made."""

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from expo.config import FunctionConf, LadderConf, TableConf, UserError
from expo.config.errors import first_line
from expo.data.cells import NOTHING, answer_text, level_of, messages, text, turns, value_at
from expo.data.checks import BadRow
from expo.data.reader import USUAL, Generated, Reader
from expo.ground.problem import Problem, Steps
from expo.ladder import problems as ladder
from expo.verifier.extraction import last_boxed
from expo.verifier.judges import function_at

log = logging.getLogger(__name__)


class MATH(Reader):
    """Hendrycks et al. (2021): problem, level ("Level 5"), type, solution with the answer in its last box."""

    columns_taken = frozenset({"problem", "level", "type", "solution"})

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        answer = last_boxed(row["solution"])
        if answer is None:
            raise BadRow(r"no \boxed{} in the solution")
        level = re.fullmatch(r"Level (\d)", row["level"])
        return Problem(id, row["problem"], answer, row["solution"], int(level[1]) if level else None, row["type"])


class GSM8K(Reader):
    """Cobbe et al. (2021): the answer stands after `####`; calculator marks `<<…>>` are no text to learn."""

    columns_taken = frozenset({"question", "answer"})

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        steps, mark, answer = row["answer"].rpartition("####")
        if not mark:
            raise BadRow("no #### in the answer")
        answer = answer.strip().replace(",", "")
        solution = re.sub(r"<<[^<>]*>>", "", steps).strip()
        return Problem(id, row["question"], answer, f"{solution}\n{self.verifier.extraction.stated(answer)}")


class Columns(Reader):
    conf: TableConf
    oracle: Callable[[str, str], Steps] | None = None

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        c = self.conf.columns
        asked, given = value_at(row, c.question), value_at(row, c.answer)
        if asked is None or given is None:
            raise BadRow("no question or no answer")
        earlier, question = messages(asked) if isinstance(asked, list | tuple) else ((), text(asked, "question"))
        solution = self._solution(row)
        return Problem(
            id, question, self._answer(answer_text(given)), solution, level_of(value_at(row, c.level, None)),
            subject=None if (subject := value_at(row, c.subject, None)) is None else str(subject), earlier=earlier,
            oracle=self.oracle,
        )  # fmt: skip

    def _solution(self, row: Mapping[str, Any]) -> str | None:
        """Return a row's worked solution; None where it has none. Of chat messages, what the assistant says."""
        solution = value_at(row, self.conf.columns.solution, None)
        if isinstance(solution, list | tuple):
            solution = "\n".join(content for role, content in turns(solution) if role == "assistant")
        if solution is None or (isinstance(solution, float) and math.isnan(solution)):
            return None
        return None if text(solution, "solution").strip().lower() in NOTHING else str(solution)

    @property
    def columns_taken(self) -> frozenset[str]:
        named = [getattr(self.conf.columns, part.name) for part in fields(self.conf.columns)]
        return frozenset(named) | {name.partition(".")[0] for name in named}

    @property
    def takes_sentences(self) -> bool:
        return self.conf.answer_pattern != ""

    def _answer(self, text: str) -> str:
        if not self.conf.answer_pattern:
            # The answer of a solution, where one column holds both.
            both = self.conf.columns.answer == self.conf.columns.solution
            return (self.verifier.extraction.of(text) if both else last_boxed(text)) or text
        matches = list(re.finditer(self.conf.answer_pattern, text))
        if not matches:
            raise BadRow("the answer does not match dataset.answer_pattern", repr(text[:80]))
        last, group = matches[-1], 1 if matches[-1].re.groups else 0
        answer = last[group] or ""
        start, end = last.span(group)
        sign = re.match(r"[-+−–]?(?=\d)", answer)
        if (sign and re.search(r"\d\.?$" if sign[0] else r"[\d.,/−–-]$", text[:start])) or (
            re.match(r"[.,/]?\d", text[end:]) and answer[-1:].isdigit()
        ):
            raise BadRow("dataset.answer_pattern finds a part of a number", f"{answer!r} in {text[:80]!r}")
        return answer


class Rows(Columns):
    """What a function of one's own yields for a split: `dataset=function`."""

    conf: FunctionConf

    def _rows(self, path: str | None, split: str) -> Iterator[dict[str, Any] | BadRow | None]:
        setting = f"dataset.function={self.conf.function}"
        try:
            function = function_at(self.conf.function)
        except Exception as error:  # of a module that is not ours
            remedy = (
                "give package.module.name of a function, and name its package in EXPO_PLUGINS where it stands in the "
            )
            raise UserError(f"{setting}: cannot be imported ({first_line(error)}); {remedy}working folder") from error
        if checks := getattr(function, "oracle", None):
            self.oracle = partial(_steps, checks)
        try:
            for row in function(split):
                yield row if isinstance(row, dict) else BadRow("no dictionary", repr(row)[:80])
        except Exception as error:  # of code that is not ours
            raise UserError(f"{setting}: raises {type(error).__name__} ({first_line(error)}); correct it") from error

    def _source(self, path: str | None) -> str:
        return f"dataset.function={self.conf.function}"


def _steps(checks: Callable[[str, str], Sequence[bool]], question: str, completion: str) -> Steps:
    """Return the check by a user's function: whether each step that the question takes is present and right."""
    right = checks(question, completion)
    if not isinstance(right, Sequence) or not right or not all(isinstance(step, bool) for step in right):
        name = getattr(checks, "__name__", checks)
        raise UserError(
            f"dataset.function: its oracle {name} returned {right!r:.80} for {question!r:.80}; let it return "
            "a list with true or false for each step"
        )
    return Steps(sum(right) / len(right), all(right))


class Ladder(Generated):
    """Generated problems (`expo.ladder.problems`); `limit` and `eval_limit` are per level."""

    conf: LadderConf

    def made(self, split: str, levels: list[int], count: int) -> list[Problem]:
        problems: list[Problem] = []
        for level in levels or self.conf.known_levels:
            of_level = list(ladder.generate(level, split, count, self.conf.expert_style, self.conf.world))
            n = len(of_level)
            if n < count and count != USUAL:  # someone has asked for as many
                log.warning("%s: level %d has no more than %d problems, not %d", self.conf.name, level, n, count)
            problems += of_level
        return problems

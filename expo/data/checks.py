"""Can the verifier ever call a completion right on this problem? Asked of every row that is read."""

import re
from collections.abc import Sequence
from concurrent.futures import Future

from expo.data.problem import Problem
from expo.verifier.answers import Verdict, last_boxed
from expo.verifier.pool import Verifier

NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
SENTENCE = f"the answer is a sentence; set dataset.answer_pattern to find the answer in it, such as '{NUMBER}', or '.+' to take it whole"
# A time-out is no verdict: what a slow machine cannot judge stays in the data.
REFUSED = (Verdict.INCORRECT, Verdict.UNPARSEABLE)


class BadRow(Exception):
    """Why a row cannot be used: `reason` is counted, and `detail` told of the single row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def check_text(p: Problem) -> None:
    """Raise BadRow where a problem's parts are no text, or none that can be written to a file."""
    for name in ("question", "answer", "solution", "subject"):
        value = getattr(p, name)
        if value is not None and not isinstance(value, str):
            raise BadRow(f"the {name} is not text", repr(value)[:80])
        if value is not None and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise BadRow(f"the {name} holds half a character", ascii(value)[:80])
    if not p.question.strip() or not p.answer.strip():
        raise BadRow("empty question or answer")


def unusable(problems: Sequence[Problem], verifier: Verifier, sentences: bool = False) -> list[BadRow | None]:
    """Return, for each problem, why no completion of it can be judged right; None where one can.

    An answer must be equal to itself and to the answer of its own solution. An answer that is a sentence around a number
    must be equal to that number, too: a policy writes `29`, not "she has 29 apples". Args: sentences, whether a sentence
    is an answer all the same.
    """
    # All are asked before the first is waited for: comparing strings settles most, and the workers share the rest.
    asked = [
        (
            verifier.submit(rf"\boxed{{{p.answer}}}", p.answer),
            _solved(p, verifier),
            number,
            verifier.submit(rf"\boxed{{{number}}}", p.answer) if number else None,
        )
        for p in problems
        for number in [None if sentences else number_in_sentence(p.answer)]
    ]
    return [_reason(p, *futures) for p, futures in zip(problems, asked, strict=True)]


def _solved(p: Problem, verifier: Verifier) -> "Future[Verdict] | None":
    boxed = p.solution is not None and last_boxed(p.solution) is not None
    return verifier.submit(p.solution or "", p.answer) if boxed else None


def _reason(
    p: Problem,
    itself: "Future[Verdict]",
    solved: "Future[Verdict] | None",
    number: str | None,
    bare: "Future[Verdict] | None",
) -> BadRow | None:
    if itself.result() in REFUSED:
        return BadRow("the verifier cannot read the answer", repr(p.answer[:80]))
    if bare is not None and bare.result() in REFUSED:
        return BadRow(SENTENCE, f"{number} is not judged equal to {p.answer[:80]!r}")
    if solved is not None and solved.result() in REFUSED:
        return BadRow("the solution has another answer", f"{last_boxed(p.solution or '')!r} is not {p.answer[:80]!r}")
    return None


def number_in_sentence(answer: str) -> str | None:
    r"""Return the last number of an answer that is plain words around numbers; None for any other answer.

    A sentence has at least two words, or a mark that announces the answer (`answer: 72`, `#### 72`). An answer with LaTeX
    is none: "6 \text{ PM}", a matrix.
    """
    plain = re.sub(r"\\[$%]", "", answer)
    if "\\" in plain:
        return None
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", plain)
    words = re.findall(r"[^\W\d_]{2,}", plain)
    announced = re.match(r"\s*[^\W\d_]{2,}\s*:", plain) or "####" in plain
    return numbers[-1].rstrip(",") if numbers and (len(words) >= 2 or announced) else None

"""Filters: why a candidate positive (an explanation, say) is not trained on. Each reason is counted."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expo.config import SourceConf, functions_of
from expo.verifier.answers import Verdict


@dataclass(frozen=True)
class Written:
    """Candidate positive as a filter sees it."""

    text: str
    question: str
    answer: str
    truncated: bool
    verdict: Verdict
    leak_phrases: Sequence[str] = ()
    final_marker: str = ""  # what stands before the answer in a final statement

    @property
    def leaks(self) -> bool:
        """Return whether a phrase gives away that the answer was shown, in any case and with any white space."""
        return any(_plain(phrase) in _plain(self.text) for phrase in self.leak_phrases)


FILTERS: dict[str, Callable[[Written], bool]] = functions_of(
    SourceConf,
    "filters",
    {
        "truncated": lambda w: w.truncated,
        "unparseable": lambda w: w.verdict in (Verdict.UNPARSEABLE, Verdict.TIMEOUT),
        "wrong": lambda w: w.verdict is Verdict.INCORRECT,
        "leak": lambda w: w.leaks,
        "early_answer": lambda w: early_answer(w.text, w.question, w.answer, w.final_marker),
    },
)


def rejection(written: Written, filters: Sequence[str]) -> str | None:
    """Return the name of the first of `filters` that rejects a candidate; None for one that may be used."""
    return next((name for name in filters if FILTERS[name](written)), None)


def early_answer(text: str, question: str, answer: str, final_marker: str = "") -> bool:
    """Return whether a text begins with its final statement, or the first of several sentences states the answer, which
    the question does not: it starts from what it should arrive at."""
    flat = " ".join(text.split())
    if final_marker and flat.lstrip("$*# ").startswith(final_marker):
        return True
    first, _, rest = flat.partition(". ")
    return bool(rest) and states(first, answer) and not states(question, answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def states(text: str, answer: str) -> bool:
    """Return whether the answer stands in the text, not as a part of another word or number."""
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w)(?!\.\d)", text) is not None

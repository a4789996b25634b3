"""Why a candidate positive is not trained on. Each reason is counted."""

import re
from collections.abc import Sequence

from expo.schema_learning import Filter
from expo.verifier import Verdict


def rejection(
    text: str,
    question: str,
    answer: str,
    truncated: bool,
    verdict: Verdict,
    leak_phrases: Sequence[str],
    filters: Sequence[Filter],
) -> str | None:
    """The name of the first of `filters` that holds, or None for a candidate that may be used."""
    lowered = " ".join(text.lower().split())
    holds = {
        Filter.truncated: truncated,
        Filter.unparseable: verdict in (Verdict.UNPARSEABLE, Verdict.TIMEOUT),
        Filter.wrong: verdict is Verdict.INCORRECT,
        Filter.leak: any(phrase in lowered for phrase in leak_phrases),
        Filter.early_answer: early_answer(text, question, answer),
    }
    return next((reason.name for reason in filters if holds[reason]), None)


def early_answer(text: str, question: str, answer: str) -> bool:
    """Whether the first of several sentences states the answer, which the question does not contain.

    Such an "explanation" starts from what it should arrive at.
    """
    first, _, rest = re.sub(r"\s+", " ", text.strip()).partition(". ")
    stated = re.compile(rf"(?<![\w.]){re.escape(answer)}(?![\w])(?!\.\d)")
    return bool(rest and stated.search(first) and not stated.search(question))

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
    return bool(rest) and states(first, answer) and not states(question, answer)


def states(text: str, answer: str) -> bool:
    """Whether the answer stands in the text, not as a part of another word or number."""
    return re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w)(?!\.\d)", text) is not None

"""Why a candidate positive is not trained on. Each reason is counted."""

from collections.abc import Sequence

from expo.schema import Filter
from expo.verifier import Verdict


def rejection(
    text: str, truncated: bool, verdict: Verdict, leak_phrases: Sequence[str], filters: Sequence[Filter]
) -> str | None:
    """The name of the first of `filters` that holds, or None for a candidate that may be used."""
    lowered = " ".join(text.lower().split())
    holds = {
        Filter.truncated: truncated,
        Filter.unparseable: verdict in (Verdict.UNPARSEABLE, Verdict.TIMEOUT),
        Filter.wrong: verdict is Verdict.INCORRECT,
        Filter.leak: any(phrase in lowered for phrase in leak_phrases),
    }
    return next((reason.name for reason in filters if holds[reason]), None)

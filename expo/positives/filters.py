"""Why a candidate positive is not trained on. Each reason is counted."""

from collections.abc import Sequence

from expo.verifier import Verdict

REASONS = ("truncated", "unparseable", "wrong", "leak")


def rejection(text: str, truncated: bool, verdict: Verdict, leak_phrases: Sequence[str]) -> str | None:
    """The first of REASONS that holds, or None for a candidate that may be used."""
    if truncated:
        return "truncated"
    if verdict in (Verdict.UNPARSEABLE, Verdict.TIMEOUT):
        return "unparseable"
    if verdict is Verdict.INCORRECT:
        return "wrong"
    lowered = " ".join(text.lower().split())
    return "leak" if any(phrase in lowered for phrase in leak_phrases) else None

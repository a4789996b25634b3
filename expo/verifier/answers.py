"""What the final answer of a completion is, and whether it equals the gold answer. Imports no torch: workers import it."""

import re
from enum import StrEnum
from functools import lru_cache
from typing import Any

from expo.verifier import forms


class Verdict(StrEnum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"


LONGEST_TEXT = 200_000


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}` (or `\fbox{}`) that closes, nested braces included; None where there is none.

    One pass with a stack. Of a text of more than LONGEST_TEXT characters its end is read. `\boxed5` is `\boxed{5}`.
    """
    text = text[-LONGEST_TEXT:]
    found: tuple[int, int] | None = None
    stack: list[tuple[int, bool]] = []  # (start of the content, whether it is a box)
    for token in re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|(-?\d(?:[\d.,/]*\d)?))|\\.|[{}]", text, re.DOTALL):
        if token[1] is not None:
            found = token.span(1)
        elif token[0] == "}" and stack:
            start, box = stack.pop()
            if box and (found is None or start > found[0]):
                found = (start, token.start())
        elif token[0].endswith("{") and token[0] != r"\{":
            stack.append((token.end(), token[0] != "{"))
    return text[slice(*found)].strip() if found else None


def normalized(answer: str) -> str:
    r"""Return the answer without what never changes its value: white space, math delimiters, `\left`/`\right`, a final period."""
    answer = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\$", "", answer)
    answer = re.sub(r"(?:\\[!,;: ]|\s)+", " ", answer)
    # Between two words or numbers a space means something: "1 1/2" is not "11/2".
    answer = re.sub(r"(?<!\w) +| +(?!\w)", "", answer)
    return answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").removesuffix(".")


# Integers, and bracketed integers or tuples of them: of one kind, they are equal exactly where the digits are.
_INTEGER = r"(?:0|-?[1-9][0-9]{0,15})"
_PLAIN = [re.compile(_INTEGER), re.compile(rf"\({_INTEGER}(?:,{_INTEGER})*\)")]


def fast_verdict(answer: str, gold: str) -> Verdict | None:
    """Return the verdict where comparing strings settles it; None where math-verify has to look."""
    ours, theirs = normalized(forms.plain(answer)), normalized(forms.plain(gold))
    if normalized(answer) == normalized(gold) or (ours and ours == theirs):
        return Verdict.CORRECT
    if _is_words(theirs) and ours.lower() == theirs.lower():
        return Verdict.CORRECT
    if any(kind.fullmatch(ours) and kind.fullmatch(theirs) for kind in _PLAIN) or forms.refuses(answer, gold):
        return Verdict.INCORRECT
    return None if ours else Verdict.UNPARSEABLE


def _is_words(text: str) -> bool:
    """Return whether a text has a word and no LaTeX: capital letters make no difference then."""
    return "\\" not in text and re.search("[a-zA-Z]{3}", text) is not None


@lru_cache(maxsize=4096)
def judge(answer: str, gold: str) -> Verdict:
    """Return the verdict of math-verify. Runs in a worker. Cached, because a group often gives the same wrong answer many times."""
    from math_verify import parse, verify

    # Without its own alarm-based limits: the kill is the limit, and nothing escapes it.
    golds = parse(rf"\boxed{{{forms.readable(gold)}}}", parsing_timeout=None)
    *before, last = forms.sides(forms.readable(answer), gold)
    answers = parse(rf"\boxed{{{last}}}", parsing_timeout=None)
    if not answers:
        return Verdict.UNPARSEABLE
    if _is_finite_number(golds) and _has_infinity(answers):
        return Verdict.INCORRECT  # sympy's word on 12 == oo**oo depends on the hash seed
    sides = [parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in before if not forms.names(text)]
    numbers = [side for side in sides if _is_finite_number(side)]
    # In this direction only: taken as the gold answer, what a model writes can equal any number.
    right = all(verify(golds, side, timeout_seconds=None) for side in (answers, *numbers))
    return Verdict.CORRECT if right else Verdict.INCORRECT


def _is_finite_number(parsed: list[Any]) -> bool:
    return bool(parsed) and bool(getattr(parsed[0], "is_number", False)) and bool(parsed[0].is_finite)


def _has_infinity(parsed: list[Any]) -> bool:
    from sympy import S

    return hasattr(parsed[0], "has") and parsed[0].has(S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN)

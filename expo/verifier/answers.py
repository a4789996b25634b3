"""Verdict on a final answer: compared with the gold answer by its kind, and where that is algebra, by math-verify in a
worker. Whether two numbers are equal: `Number.agrees` (numbers).

Imports no torch: workers import it.
"""

import re
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any

from expo.verifier import answer_forms
from expo.verifier.kinds import KINDS, OPTIONS, Kind, compact, kind_of, option, option_text, verbatim
from expo.verifier.numbers import UNITS, is_arithmetic, makes_another, number, numbers_in_a_row, quantity
from expo.verifier.spelling import bare, spelled


class Verdict(StrEnum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"


AUTO = "auto"  # the gold answer itself says its kind


def kind_for(gold: str, kind: str = AUTO) -> Kind:
    return KINDS[kind_of(gold) if kind == AUTO else kind]


def _compared(answer: str, gold: str, kind: str) -> tuple[str, Kind]:
    """Return what an answer is compared with, and how: without a letter, the right option's text (`5` for `A. 5`)."""
    how = kind_for(gold, kind)
    if how.form is option and option(answer) not in OPTIONS and (text := option_text(gold)):
        return text, kind_for(text)
    return gold, how


def fast_verdict(answer: str, gold: str, kind: str = AUTO) -> Verdict | None:
    """Return the verdict where the kind of the gold answer settles it; None where math-verify has to look."""
    if answer == gold and answer:
        return Verdict.CORRECT
    if not (ours := bare(answer)):
        return Verdict.UNPARSEABLE
    gold, how = _compared(answer, gold, kind)
    if kind == "exact":  # that the user has set
        return Verdict.CORRECT if verbatim(answer) == verbatim(gold) else Verdict.INCORRECT
    if how.name not in ("exact", "json") and compact(ours) == compact(bare(gold)):
        return Verdict.CORRECT
    verdict = _verdict_by_form(answer, gold, how)
    if verdict is not None or not how.algebra:
        return verdict or (Verdict.UNPARSEABLE if how.only else Verdict.INCORRECT)
    plain, wanted = spelled(answer), spelled(gold)
    if answer_forms.refuses(plain, wanted) or (how.numeric and _is_no_value(answer)):
        return Verdict.INCORRECT
    return None


def _is_no_value(answer: str) -> bool:
    """Return whether an answer to a question for a number is several, a sum not carried out, a date, or words."""
    kind = kind_of(answer)
    worded = kind in ("date", "time") or (kind == "words" and not re.search(r"\d", answer))
    other = _HEDGED.search(answer) or makes_another(bare(answer))
    return worded or numbers_in_a_row(answer) is not None or is_arithmetic(answer) or bool(other)


# Between values: 5 or 6, in signs that math-verify reads past.
_HEDGED = re.compile(
    r"\\(?:lor|vee|land|wedge|oplus|curlyvee|curlywedge)(?![a-zA-Z])|(?<!\\)&(?!\s*=)(?<!=\s&)(?<!=&)|@|\^\s*\{\s*\}"
    r"|[\d}]\s*(?:\||\\\\|\\hspace\*?\s*\{[^{}]*\})\s*[\d\\]"
)


def _verdict_by_form(answer: str, gold: str, how: Kind) -> Verdict | None:
    """Return the verdict by the forms of answer and gold answer; None where one of them has no such form."""
    form = how.form
    if form is None or (wanted := form(gold)) is None:
        return None
    stated = form(answer)
    if stated is None and how.numeric and wanted.unit:  # 5m/s where 5 m/s is asked for
        stated = form(re.sub(r"(?<=\d)(?=[a-zA-Z])", " ", bare(answer)))
    if stated is None and how.numeric and "=" in answer:
        *before, last = answer_forms.sides(spelled(answer), spelled(gold))
        # x = 5, 2 + 3 = 5: a name says whose value it is, and what is no plain number is math-verify's to say.
        if all(answer_forms.names(side) or quantity(side) == quantity(last) for side in before):
            stated = form(last)
    return None if stated is None else Verdict.CORRECT if how.same(stated, wanted) else Verdict.INCORRECT


@lru_cache(maxsize=4096)
def math_verify_verdict(answer: str, gold: str, kind: str = AUTO) -> Verdict:
    """Compute the verdict of math-verify, in a worker. They are cached: groups often repeat one wrong answer."""
    from math_verify import parse
    from sympy import Rational

    gold, how = _compared(answer, gold, kind)
    answer, gold = spelled(answer), spelled(gold)
    wanted = quantity(gold) if how.numeric else None
    # Without its own alarm-based limits: the kill is the limit, and nothing escapes it.
    golds = (
        [Rational(wanted.number.value)]
        if wanted
        else parse(rf"\boxed{{{_indexed_capitals(answer_forms.readable(gold))}}}", parsing_timeout=None)
    )
    *before, last = answer_forms.sides(answer_forms.readable(answer), gold)
    with_unit = re.fullmatch(r"(.*[\d}]|.*\\pi)(?:\s|\\[,;: ]|~)*[mgslh]", last)
    value = with_unit[1] if with_unit and not re.search(LETTER, re.sub(r"^\s*[a-zA-Z]\s*=", "", gold)) else ""
    if value and not is_arithmetic(value) and _is_finite_number(_parsed(re.sub(r"^\s*[a-zA-Z]\s*=", "", value))):
        last = value  # 12m
    if not all(answer_forms.names(side) or _is_finite_number(_parsed(side)) for side in before):
        return Verdict.INCORRECT  # 2x = 5 leaves x to be found
    answers = _parsed(last)
    if not answers or not golds:
        return Verdict.INCORRECT if answers else Verdict.UNPARSEABLE
    if _is_finite_number(golds) and _has_infinity(answers):
        return Verdict.INCORRECT  # sympy's word on 12 == oo**oo depends on the hash seed
    values = ((text, _parsed(text)) for text in before if not answer_forms.names(text))
    texts = [(text, parsed) for text, parsed in values if _is_finite_number(parsed)]
    right = all(_same(golds, parsed, gold, text) for text, parsed in [(last, answers), *texts])
    return Verdict.CORRECT if right else Verdict.INCORRECT


def _parsed(text: str) -> list[Any]:
    r"""Parse a text with math-verify. A plain number is parsed by `number`: `1e-05` is no `e - 5`."""
    from math_verify import parse
    from sympy import Rational

    if (plain_number := number(text)) is not None:
        return [Rational(plain_number.value)]
    parsed: list[Any] = parse(rf"\boxed{{{_indexed_capitals(text)}}}", parsing_timeout=None)
    return parsed


LETTER = r"(?<![\\a-zA-Z])[a-zA-Z]"  # of no command
UNIT_LETTER = "[cdghlmost]"  # which math-verify drops where a text ends in one of them


def _indexed_capitals(text: str) -> str:
    r"""Return the text with an index at each capital letter, but not in sets and units: to math-verify R is r."""
    text = re.sub(rf"(?<![\\a-zA-Z])({UNIT_LETTER})\s*$", r"{\1}", text)
    if re.search(r"\\(?:text|mathbb|mathrm|begin)|[A-Z]{4}|\\c[ua]p", text):
        return text
    capital = (
        r"\\(?:Delta|Gamma|Theta|Lambda|Sigma|Phi|Psi|Omega)(?![a-zA-Z])|(?<![\\a-zA-Z])[a-zA-Z]{1,3}(?![a-zA-Z_(])"
    )

    def indexed(run: re.Match[str]) -> str:
        if run[0][0] == "\\":
            return run[0].lower() + "_{77}"
        if len(run[0]) > 1 and (run[0].islower() or run[0] in UNITS):
            return run[0]  # a unit, or a word
        return re.sub("[A-DF-Z]", lambda letter: letter[0].lower() + "_{77}", run[0])

    text = re.sub(capital, indexed, text)
    return re.sub(rf"(?<=\}})({UNIT_LETTER})\s*$", r"{\1}", text)


def _same(golds: list[Any], answers: list[Any], gold: str, answer: str) -> bool:
    """Return whether math-verify takes the answer for the gold answer, and no number in it is only nearly the same: it
    rounds to six places, and 2^-99 is 2^-98 to it. In this direction only: taken as the gold answer, what a model
    writes can equal any number."""
    from math_verify import verify

    golds, answers = _complex(golds, answers)
    if _is_finite_number(golds) and _is_finite_number(answers):
        return _same_value(golds[0], answers[0], gold, answer)
    if verify(golds, answers, timeout_seconds=None):
        return _no_leaf_differs(golds[0], answers[0])
    return _same_for_counts(golds[0], answers[0])


def _complex(golds: list[Any], answers: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return both with the imaginary unit for `i`, where it is the only letter."""
    from sympy import Expr, I

    sides = (golds[0], answers[0])
    if not all(isinstance(x, Expr) and {s.name for s in x.free_symbols} <= {"i"} for x in sides):
        return golds, answers
    wanted, stated = ([x.subs(dict.fromkeys(x.free_symbols, I))] for x in sides)
    return wanted, stated


def _same_value(wanted: Any, stated: Any, gold: str, answer: str) -> bool:
    """Return whether two finite numbers are equal; a decimal of enough digits may stand for what has no end."""
    from sympy import Float, N, nsimplify

    exact = [nsimplify(x.doit(), rational=True) if x.has(Float) else x.doit() for x in (wanted, stated)]
    difference = exact[0] - exact[1]
    if difference.is_zero or difference.equals(0):
        return True
    for text, other in ((answer, exact[0]), (gold, exact[1])):
        decimal = number(text)
        endless = decimal is not None and other.is_real and not other.is_Rational
        if decimal is not None and endless and decimal.stands_for(Fraction(str(N(other, 60)))):
            return True
    return False


def _no_leaf_differs(wanted: Any, stated: Any) -> bool:
    """Return whether no numbers in one place of both expressions differ; True where places cannot be matched."""
    from sympy import Expr, FiniteSet, Float, Interval, MatrixBase, Tuple

    if wanted == stated:
        return True
    if _finite(wanted) and _finite(stated):
        return _same_value(wanted, stated, "", "") or bool(
            abs(wanted - stated) <= abs(wanted) / 10**6 and stated.has(Float)
        )
    if isinstance(wanted, MatrixBase) and isinstance(stated, MatrixBase):
        return all(map(_no_leaf_differs, wanted.flat(), stated.flat()))
    if isinstance(wanted, Interval) and isinstance(stated, Interval):
        return _no_leaf_differs(wanted.start, stated.start) and _no_leaf_differs(wanted.end, stated.end)
    if isinstance(wanted, FiniteSet) and isinstance(stated, FiniteSet) and all(map(_finite, [*wanted, *stated])):
        return all(any(_no_leaf_differs(w, s) for s in stated) for w in wanted)
    if isinstance(wanted, Tuple) and isinstance(stated, Tuple):
        return all(map(_no_leaf_differs, wanted, stated))
    if isinstance(wanted, Expr) and isinstance(stated, Expr):
        return (wanted - stated).equals(0) is not False
    return True


COUNTS = ("n", "m", "k", "N")  # names of what is counted, and so positive


def _same_for_counts(wanted: Any, stated: Any) -> bool:
    r"""Return whether expressions of counts alone are equal for positive ones, as `\sqrt{1/n}` and `1/\sqrt n`."""
    from sympy import Expr, Symbol, simplify

    if not (isinstance(wanted, Expr) and isinstance(stated, Expr)) or wanted.free_symbols != stated.free_symbols:
        return False
    if not wanted.free_symbols or any(symbol.name not in COUNTS for symbol in wanted.free_symbols):
        return False
    positive = {symbol: Symbol(symbol.name, positive=True) for symbol in wanted.free_symbols}
    return bool(simplify(wanted.subs(positive) - stated.subs(positive)) == 0)


def _is_finite_number(parsed: list[Any]) -> bool:
    return bool(parsed) and _finite(parsed[0])


def _finite(parsed: Any) -> bool:
    return bool(getattr(parsed, "is_number", False)) and bool(parsed.is_finite)


def _has_infinity(parsed: list[Any]) -> bool:
    from sympy import S

    return hasattr(parsed[0], "has") and parsed[0].has(S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN)

r"""Kinds of answers: the gold answer's kind decides how an answer is compared with it.

Each kind has a form: a function that returns what a text states, or None where it states nothing of this kind. Two
answers of a kind are equal where their forms are. Only what is left to algebra (`expression` and the like) goes to
math-verify, in a worker.
"""

import json
import operator
import re
from calendar import monthrange
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from expo.verifier.numbers import FUNCTIONS, TURNS, Quantity, numbers_in_a_row, quantity, unit_word
from expo.verifier.spelling import TEXT, bare, spelled

_MONTHS = "january february march april may june july august september october november december"
ABBREVIATED = [month[:3] for month in _MONTHS.split()]
_MONTH = "|".join(rf"{month[:3]}(?:{month[3:]})?" for month in _MONTHS.split()).replace("sep(?:", "sept?(?:")
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DATES = [
    rf"{_WEEKDAY}(?P<month>{_MONTH})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?",
    rf"{_WEEKDAY}(?:the\s+)?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month>{_MONTH})\.?(?:,?\s+(?P<year>\d{{4}}))?",
    r"(?P<year>\d{4})(?P<sign>[-/])(?P<number>\d{1,2})(?P=sign)(?P<day>\d{1,2})",
]
_TIME = r"(?P<h>\d{1,2})(?:\s*:\s*(?P<m>\d{2}))?(?:\s*:\s*(?P<s>\d{2}))?\s*(?P<half>[ap]\.?\s?m\.?)?"
_RELATION = r"\\(?:neq?|leq?|geq?|leqslant|geqslant|lt|gt|approx|equiv|in|to)(?![a-zA-Z])|[<>]|!=|:="
# What stands in code, formulae of chemistry, moves, addresses, versions and scores, and not in mathematics.
_OPAQUE = re.compile(
    r"\d+(?:\s*-\s*\d+)+|\d+(?:\.\d+){2,}|\d+(?:/\d+){2,}|\d+(?:\s*:\s*\d+)+"
    r"|[A-Z](?:-[A-Z])+|(?:[a-zA-Z]['2]?\s+)+[a-zA-Z]['2]?|[^+*=^|]*[a-zA-Z]\d[^+*=^|]*[+#]?"
)
_IN_CODE = re.compile(
    r"==|!=|->|=>|::|;|\|\||[@\"#?&]|\w\.[a-zA-Z_]|(?<![a-zA-Z])[a-zA-Z]{2,}+_[a-zA-Z]|^[.~]?/\w|://|</|:\s*\w|(?<![=(,])\s--?[a-zA-Z]"
)
_CALL = re.compile(r"(?<!\w)([a-zA-Z]{2}\w*+)\s*+\(")
# Notation that math-verify reads past: cases, congruences, primes, derivatives, angles.
NOTATION = re.compile(
    r"\\begin\{cases\}|\\(?:pmod|bmod|mod|equiv|prime|angle|triangle)(?![a-zA-Z])|[a-zA-Z)]'|\\frac\{d|\bd[a-z]\s*/\s*d[a-z]\b"
)
_FORMULA = re.compile(r"\d*(?:[\[(]*[A-Z][a-z]?(?:_?\{?\d+\}?)?[\])]*(?:_?\{?\d+\}?)?)+(?:\^?\{?\d*[-+]\}?)?")
OPTIONS = frozenset("ABCDEFGHIJ")
# What is an option and nothing else. `A. Rome` may be a name, and `b` a symbol: see `doubt`.
_OPTION = r"[A-Z]|\(?[A-Za-z]\)|\(?[A-J]\) \S.*|\(?[a-j]\) [\w$].*|[A-Ja-j]\. (?:[\d$\\(+-]|[a-z]\b).*"
_NAMED = re.compile(
    r"^(?:the\s+)?(?:(?:right|correct|final)\s+)?(?:option|choice|answer)\s+(?:is\s+)?|[\[\]\"]", re.IGNORECASE
)
_LETTER = re.compile(
    r"\(?([A-Za-z])(?:\)|[.:](?=\s|$)|\s*[-\u2013\u2014,;?](?=\s|$)|(?=\s+(?:\(|(?:is|because|since)\b))|(?=$))\s*(.*)",
    re.DOTALL,
)
# A letter of an option, but where it is a part of a text, behind a word or a number: "Vitamin C", "10 C".
_NAMES_ANOTHER = re.compile(
    r"[A-J]\)|\([A-J]\b|(?:^|[^\w\s]\s*|\b(?:be|is|it|its|s|say|think|choose|pick|option|choice|answer|then|also|actually)\s+)"
    r"[A-J]\b|^is\b(?! (?:the )?(?:right|correct|answer))"
)
_LISTS = re.compile(r"\(?[A-Ja-j]\)?(?:\s*(?:[,;/&]|\band\b|\bor\b)\s*\(?[A-Ja-j]\)?)+")  # b, c


def option(text: str) -> str | None:
    r"""Return the letter of an option: `A`, `(A)`, `A)`, `\textbf{(A)}\ 5`, `B: the second`; None for anything else,
    and where what follows names another option, or takes it back."""
    plain = _NAMED.sub("", bare(text))
    match = _LETTER.fullmatch(plain)
    if match and (
        _NAMES_ANOTHER.search(match[2])
        or _LISTS.fullmatch(plain)
        or set(re.findall("[a-z]+", match[2].lower())) & TURNS
    ):
        return None
    return None if match is None else match[1].upper() if match[1].upper() in OPTIONS else match[1]


def option_text(text: str) -> str:
    """Return what an option says behind its letter; "" where it is a letter alone."""
    match = re.fullmatch(r"\(?[A-Za-z](?:\)|[.:](?=\s))\s*(\S.*)", bare(text))
    return match[1] if match else ""


def date(text: str) -> tuple[Any, ...] | None:
    """Return (year or None, month, day) of a date in words or as 2024-01-05; of 05/06/2024 the parts, in order."""
    plain = bare(text).lower()
    if parts := re.fullmatch(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{4})", plain):
        first, second, year = int(parts[1]), int(parts[3]), int(parts[4])
        if first > 12 >= second or second > 12 >= first:  # only one of them is a month
            return (year, min(first, second), max(first, second))
        return ("in this order", first, second, year)
    for pattern in _DATES:
        if match := re.fullmatch(pattern, plain):
            named = match.groupdict()
            month = int(named["number"]) if "number" in named else ABBREVIATED.index(named["month"][:3]) + 1
            day = int(named["day"])
            if 1 <= month <= 12 and 1 <= day <= monthrange(int(named["year"] or 2024), month)[1]:
                return (int(named["year"]) if named["year"] else None, month, day)
    return None


def _same_date(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    asks_no_year = len(ours) == 3 == len(theirs) and theirs[0] is None
    return ours[1:] == theirs[1:] and (ours[0] == theirs[0] or asks_no_year)


def time(text: str) -> tuple[int, int, int, str] | None:
    """Return (hours, minutes, seconds, "a", "p" or "") of a time of day or a duration as 2:40; None for others."""
    match = re.fullmatch(_TIME, bare(text).lower())
    if match is None:
        return None
    return (int(match["h"]), int(match["m"] or 0), int(match["s"] or 0), (match["half"] or "")[:1])


def is_time(text: str) -> bool:
    """Return whether a text says itself that it is a time: by minutes of two digits, or by a half of the day."""
    match = re.fullmatch(_TIME, bare(text).lower())
    return match is not None and (match["m"] is not None or match["half"] is not None)


def _same_time(ours: tuple[int, int, int, str], theirs: tuple[int, int, int, str]) -> bool:
    if ours == theirs or (ours[:3] == theirs[:3] and "" in (ours[3], theirs[3])):
        return True
    # 14:40 is 2:40 PM.
    return {ours[3], theirs[3]} != {"a", "p"} and bool(ours[3] or theirs[3]) and _of_day(ours) == _of_day(theirs)


def _of_day(time: tuple[int, int, int, str]) -> tuple[int, int, int]:
    hours, minutes, seconds, half = time
    return (hours % 12 + 12 * (half == "p") if half else hours, minutes, seconds)


def words(text: str) -> tuple[str, ...] | None:
    """Return an answer's words in one spelling. Capitals do not count in words of three letters, nor at the start."""
    plain = re.sub(r"^\((.*)\)$", r"\1", bare(text))
    plain = re.sub(r"^(?:the|an?)\s+(?=\w)", "", plain, flags=re.IGNORECASE)
    words_in_text = re.findall(r"[^\s,;.!\"'()]+", plain.replace("'", ""))
    measured = re.search(r"\d", plain) is not None  # 3 feet 2 inches
    return tuple(unit_word(word) if measured else _word(word) for word in words_in_text) or None


def _word(word: str) -> str:
    formula = re.search("[a-z][A-Z]", word) is not None  # NaCl
    return word.casefold() if (len(word) > 2 and not formula) or word.istitle() else word


def exact(text: str) -> str | None:
    """Return the text with one space for any white space, none around hyphens, colons and slashes between digits, and
    the formula of a substance without marks of its indices."""
    plain = re.sub(TEXT, r"\1", spelled(text).strip().strip("$"))
    plain = re.sub(r"(?<=\d)\s*(?:([-:/])|\{:\}|\\colon\b|\bto\b)\s*(?=\d)", lambda sign: sign[1] or ":", plain)
    plain = " ".join(re.sub(r"\\([_#&%{}])", r"\1", plain).split())
    plain = plain if plain.endswith("..") else plain.removesuffix(".")
    return (re.sub(r"[_^{}$]", "", plain) if _FORMULA.fullmatch(plain.replace("$", "")) else plain) or None


def verbatim(text: str) -> str:
    r"""Return the text itself, with one space for any white space, without `\text{}` and LaTeX's escapes."""
    return " ".join(re.sub(r"\\([_#&%{}$])", r"\1", re.sub(TEXT, r"\1", text)).split())


def data(text: str) -> str | None:
    """Return JSON in one spelling; None for what is none. What stands in it is taken as it is, if it is JSON so."""
    fenced = re.fullmatch(r"\s*```\w*\s(.*)```\s*", text, re.DOTALL)
    for written in (fenced[1] if fenced else text, spelled(text)):
        with suppress(ValueError, RecursionError, OverflowError):
            parsed = json.loads(
                written.strip().removesuffix("."), parse_float=lambda t: int(v) if (v := float(t)).is_integer() else v
            )
            return json.dumps(parsed, sort_keys=True)
    return None


def notation(text: str) -> str | None:
    """Return the text without white space that means nothing: of what math-verify would read past."""
    return compact(bare(text)).replace(r"\prime", "'").replace("^{'}", "'").replace("^'", "'") or None


def compact(text: str) -> str:
    """Return the text without spaces, but where one means something: "1 1/2" is not "11/2"."""
    return re.sub(r"(?<!\w) +| +(?!\w)", "", text)


@dataclass(frozen=True)
class Members:
    bracket: str  # "(", "{", "or" between words, or ""
    members: tuple[Any, ...]
    names: tuple[str, ...] = ()  # of the members, where they have some: x=1, y=2

    def __str__(self) -> str:
        opening, closing = {"(": ("(", ")"), "{": ("{", "}")}.get(self.bracket, ("", ""))
        text = "; ".join(" ".join(m) if isinstance(m, tuple) else str(m) for m in self.members)
        return f"{opening}{text}{closing}".strip()

    def agrees(self, gold: "Members") -> bool:
        """Return whether these are the gold answer's members: in order where one is a tuple. A set is no tuple."""
        brackets = {self.bracket, gold.bracket}
        apart = brackets == {"(", "{"} or ("or" in brackets and len(brackets) > 1)
        others = bool(self.names and gold.names) and self.names != gold.names
        if len(self.members) != len(gold.members) or apart or others:
            return False
        if "(" in (self.bracket, gold.bracket):
            return all(map(_same_member, self.members, gold.members))
        left = list(gold.members)
        for member in self.members:
            place = next((i for i, other in enumerate(left) if _same_member(member, other)), None)
            if place is None:
                return False
            left.pop(place)
        return True


def members(text: str) -> Members | None:
    r"""Return the plain members of `1,2`, `(1,2)`, `\{1,2\}`, `3 \text{ and } 5`; None for a single
    one, and for any other text."""
    plain = bare(text)
    bracketed = re.fullmatch(r"(\(|\\\{|\{)(.*?)(\)|\\\}|\})", plain, re.DOTALL)
    bracket, inner = (bracketed[1].lstrip("\\"), bracketed[2]) if bracketed else ("", plain)
    if re.search(r"[()\[\]{}]", re.sub(r"\\frac\{[^{}]*\}\{[^{}]*\}|\\overline\{\d+\}|\{,\}|\^\{-?\d+\}", "", inner)):
        return None
    if not bracketed and quantity(plain) is not None:
        return None
    parts = [part for part in re.split(r"\s*[,;]\s*(?:and\s+|or\s+)?|\s+(?:and|or)\s+", inner) if part]
    if len(parts) < 2:
        row = numbers_in_a_row(inner)
        return Members(bracket, tuple(Quantity(n) for n in row)) if row else None
    names: list[str] = []
    named = [m for part in parts if (m := re.fullmatch(r"([a-zA-Z])\s*=\s*([^=]+)", part))]
    if len(named) == len(parts) and not bracketed:
        # By name: y=1, x=2 is (2, 1). One name for all is a list of its values.
        names = sorted({m[1] for m in named})
        if 1 < len(names) < len(named):
            return None
        parts = [m[2] for m in (sorted(named, key=lambda m: m[1]) if len(names) > 1 else named)]
        bracket = "(" if len(names) > 1 else "{"
    members_found = [_member(part) for part in parts]
    if None in members_found:
        return None
    either = not bracket and re.search(r"\bor\b", inner) and any(isinstance(m, tuple) for m in members_found)
    return Members(
        "or" if either else bracket, tuple(members_found), tuple(map(str.lower, names)) if len(names) > 1 else ()
    )


def _member(text: str) -> Any:
    return quantity(text) or (words(text) if re.fullmatch(r"[A-Z]|[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*", text) else None)


def _same_member(ours: Any, theirs: Any) -> bool:
    return ours.agrees(theirs) if isinstance(ours, Quantity) and isinstance(theirs, Quantity) else bool(ours == theirs)


@dataclass(frozen=True)
class Kind:
    """One kind of answer. `form` is None where only math-verify can say what an answer states."""

    name: str
    form: Callable[[str], Any] | None = None
    same: Callable[[Any, Any], bool] = operator.eq
    # Whether what has another form may state the same all the same: `2^3` for 8. math-verify says.
    algebra: bool = False
    # Whether what has another form is no answer at all.
    only: bool = False

    @property
    def numeric(self) -> bool:
        """Return whether the gold answer is one number, with or without a unit."""
        return self.form is quantity


KINDS = {
    kind.name: kind
    for kind in (
        *(
            Kind(name, quantity, Quantity.agrees, algebra=True)
            for name in ("number", "quantity", "percentage", "money")
        ),
        Kind("date", date, _same_date),
        Kind("time", time, _same_time),
        Kind("option", option, only=True),
        Kind("words", words),
        Kind("exact", exact),
        Kind("json", data, only=True),
        Kind("list", members, Members.agrees, algebra=True),
        Kind("notation", notation),
        *(Kind(name, algebra=True) for name in ("expression", "equation", "inequality", "interval", "matrix")),
    )
}


@lru_cache(maxsize=2**14)
def kind_of(gold: str) -> str:
    plain = bare(gold)
    return next((name for name, holds in _TESTS if holds(plain) or (name == "json" and holds(gold))), "expression")


def doubt(gold: str) -> str | None:
    """Say how a right answer may be read otherwise than it is meant, with the remedy; None where it may not."""
    date_read = date(gold)
    if date_read is not None and date_read[0] == "in this order":
        return "a date whose order is not known: it is right in this order alone; write it as 2024-06-05"
    if re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", bare(gold)) and "!" not in gold and "{" not in gold:
        return "one number in groups of digits; write a list with spaces: 100, 200"
    if kind_of(gold) != "option" and option(gold) in OPTIONS:
        return "read as a name or a formula, and as no option; for options take verifier=choice"
    return None


def _quantity_kind(name: str, holds: Callable[[str], bool]) -> tuple[str, Callable[[str], bool]]:
    return name, lambda plain: (stated := quantity(plain)) is not None and holds(stated.unit)


def _is_opaque(plain: str) -> bool:
    if "\\" in plain:
        return False
    # Of what is only called, as sin(x) is, mathematics is no code.
    called = any(name.lower() not in FUNCTIONS for name in _CALL.findall(plain))
    return called or _OPAQUE.fullmatch(plain) is not None or _IN_CODE.search(plain) is not None


# 2xy, -3ab: letters at a number that are no unit, and no 2nd.
_PRODUCT = re.compile(r"-?\d+(?!(?:st|nd|rd|th)\b)[a-z]{2,3}")


def _is_words(plain: str) -> bool:
    if "\\" in plain or re.search(r"[=<>^_+*/{}]", plain) or _CALL.search(plain) or _PRODUCT.fullmatch(plain):
        return False
    words_in_text = re.findall(r"[^\W\d_]+", plain)
    if words_in_text == [plain]:
        return len(plain) > 1 and plain.lower() not in ("pi", "oo", "inf", "infinity")
    named = [word for word in words_in_text if word.lower() not in FUNCTIONS]
    return bool(named) and any(len(word) > 1 for word in named) and len(named) == len(words_in_text)


# In this order: what comes first is what the gold answer is.
_TESTS: list[tuple[str, Callable[[str], bool]]] = [
    ("option", lambda plain: re.fullmatch(_OPTION, plain) is not None),
    ("date", lambda plain: date(plain) is not None),
    ("time", is_time),
    ("exact", lambda plain: re.fullmatch("0[01]{3,}", plain) is not None),  # bits
    _quantity_kind("number", lambda unit: not unit),
    _quantity_kind("percentage", lambda unit: unit == "%"),
    _quantity_kind("money", lambda unit: unit in ("$", "€", "£", "¥", "₹", "₩", "₽")),
    _quantity_kind("quantity", lambda unit: bool(unit)),
    ("json", lambda text: bool(re.match(r"\s*[\[{]", text) and re.search(r"[\"{]", text)) and data(text) is not None),
    ("exact", _is_opaque),
    ("notation", lambda plain: NOTATION.search(plain) is not None),
    ("matrix", lambda plain: r"\begin{" in plain),
    ("list", lambda plain: members(plain) is not None),
    ("words", _is_words),
    ("interval", lambda plain: re.search(r"\\infty|\\cup|[\[\]]", plain) is not None),
    ("inequality", lambda plain: re.search(_RELATION, plain) is not None),
    ("equation", lambda plain: "=" in plain),
]

r"""What kind of thing an answer is: the gold answer's kind decides how it is compared.

Each kind has a form: a function that returns what a text states, or None where it states nothing of this kind. Two answers of
a kind are equal where their forms are. Only what is left to algebra (`expression` and the like) goes to math-verify, in a worker.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from expo.verifier.numbers import FUNCTIONS, Quantity, numbers_in_a_row, quantity, unit_word
from expo.verifier.spelling import TEXT, bare, spelled

MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = "|".join(rf"{month[:3]}(?:{month[3:]})?" if month != "may" else month for month in MONTHS).replace(
    "sep(?:", "sept?(?:"
)
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DATES = [
    rf"{_WEEKDAY}(?P<month>{_MONTH})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?",
    rf"{_WEEKDAY}(?:the\s+)?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month>{_MONTH})\.?(?:,?\s+(?P<year>\d{{4}}))?",
    r"(?P<year>\d{4})-(?P<number>\d{1,2})-(?P<day>\d{1,2})",
]
_TIME = r"(?P<h>\d{1,2})(?:\s*:\s*(?P<m>\d{2}))?(?:\s*:\s*(?P<s>\d{2}))?\s*(?P<half>[ap]\.?\s?m\.?)?"
_RELATION = r"\\(?:neq?|leq?|geq?|leqslant|geqslant|lt|gt|approx|equiv|in|to)(?![a-zA-Z])|[<>]|!=|:="
# What stands in code, formulae of chemistry, moves, addresses, versions and scores, and not in mathematics.
_OPAQUE = re.compile(
    r"\d+(?:\s*-\s*\d+)+|\d+(?:\.\d+){2,}|\d+(?:/\d+){2,}|\d+(?:\s*:\s*\d+)+"
    r"|[A-Z](?:-[A-Z])+|(?:[a-zA-Z]['2]?\s+)+[a-zA-Z]['2]?|[^+*=^]*[a-zA-Z]\d[^*=^]*"
    r"|.*(?:==|!=|->|=>|::|;|[@\"#?&|]|\w\.[a-zA-Z_]|[a-zA-Z]{2,}_[a-zA-Z]|^[.~]?/\w|://|</|:\s*\w).*"
    r"|(?=.*[a-zA-Z]{2,}\w*\().*",
    re.DOTALL,
)
_CALL = re.compile(r"([a-zA-Z]{2,})\w*\s*\(")


def option(text: str) -> str | None:
    r"""Return the letter of an option: `A`, `(A)`, `A)`, `\textbf{(A)}\ 5`, `B: the second`; None for anything else."""
    found = re.fullmatch(r"\(?([A-Za-z])(?:\)|[.:](?=\s|$)|(?=$))(?:\s*\S.*)?", bare(text), re.DOTALL)
    return None if found is None else found[1].upper() if found[1].upper() in "ABCDEFGHIJ" else found[1]


def date(text: str) -> tuple[Any, ...] | None:
    """Return (year or None, month, day) of a date in words or as 2024-01-05; of 05/06/2024, whose order is not known, the parts."""
    plain = bare(text).lower()
    if parts := re.fullmatch(r"(\d{1,2})[/.](\d{1,2})[/.](\d{4})", plain):
        return ("in this order", *(int(part) for part in parts.groups()))
    for pattern in _DATES:
        if found := re.fullmatch(pattern, plain):
            named = found.groupdict()
            month = int(named["number"]) if "number" in named else _month(named["month"])
            day = int(named["day"])
            if 1 <= month <= 12 and 1 <= day <= 31:
                return (int(named["year"]) if named["year"] else None, month, day)
    return None


def _month(name: str) -> int:
    return next(i for i, month in enumerate(MONTHS, 1) if month.startswith(name[:3]))


def _same_date(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    return ours[1:] == theirs[1:] and (
        ours[0] == theirs[0] or (len(ours) == 3 == len(theirs) and None in (ours[0], theirs[0]))
    )


def time(text: str) -> tuple[int, int, int, str] | None:
    """Return (hours, minutes, seconds, "a", "p" or "") of a time of day or a duration as 2:40; None for anything else."""
    found = re.fullmatch(_TIME, bare(text).lower())
    if found is None or int(found["h"]) > 99:
        return None
    return (int(found["h"]), int(found["m"] or 0), int(found["s"] or 0), (found["half"] or "")[:1])


def is_time(text: str) -> bool:
    """Return whether a text says itself that it is a time: by minutes of two digits, or by a half of the day."""
    found = re.fullmatch(_TIME, bare(text).lower())
    return found is not None and (found["m"] is not None or found["half"] is not None)


def _same_time(ours: tuple[int, int, int, str], theirs: tuple[int, int, int, str]) -> bool:
    if ours == theirs or (ours[:3] == theirs[:3] and "" in (ours[3], theirs[3])):
        return True
    # 14:40 is 2:40 PM.
    return {ours[3], theirs[3]} != {"a", "p"} and bool(ours[3] or theirs[3]) and _of_day(ours) == _of_day(theirs)


def _of_day(time: tuple[int, int, int, str]) -> tuple[int, int, int]:
    hours, minutes, seconds, half = time
    return (hours % 12 + 12 * (half == "p") if half else hours, minutes, seconds)


def words(text: str) -> tuple[str, ...] | None:
    """Return the words of an answer in one spelling. Capitals make no difference in a word of three letters, nor at its beginning."""
    plain = re.sub(r"^\((.*)\)$", r"\1", bare(text))
    found = re.findall(r"[^\s,;.!?\"'()]+", plain.replace("'", ""))
    measured = re.search(r"\d", plain) is not None  # 3 feet 2 inches
    return tuple(unit_word(word) if measured else _word(word) for word in found) or None


def _word(word: str) -> str:
    return word.casefold() if len(word) > 2 or word.istitle() else word


def exact(text: str) -> str | None:
    """Return the text with one space for any white space, and none around hyphens, colons and slashes between digits."""
    plain = re.sub(rf"^\s*{TEXT}\s*$", r"\1", spelled(text).strip().strip("$"))
    plain = re.sub(r"_\{(\d+)\}", r"\1", re.sub(r"(?<=\d)\s*([-:/])\s*(?=\d)", r"\1", plain))
    return " ".join(plain.split()) or None


def data(text: str) -> str | None:
    """Return JSON in one spelling; None for what is none."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Members:
    """The members of a list, tuple or set, in order."""

    bracket: str  # "(", "{" or ""
    members: tuple[Any, ...]

    def __str__(self) -> str:
        closing = {"(": ")", "{": "}", "": ""}[self.bracket]
        return (
            f"{self.bracket}{'; '.join(' '.join(m) if isinstance(m, tuple) else str(m) for m in self.members)}{closing}"
        )

    def agrees(self, gold: "Members") -> bool:
        """Return whether it has the gold answer's members: in this order where one is a tuple, in any order else. A set is no tuple."""
        if len(self.members) != len(gold.members) or {self.bracket, gold.bracket} == {"(", "{"}:
            return False
        if "(" in (self.bracket, gold.bracket):
            return all(map(_same_member, self.members, gold.members))
        left = list(gold.members)
        for member in self.members:
            found = next((i for i, other in enumerate(left) if _same_member(member, other)), None)
            if found is None:
                return False
            left.pop(found)
        return True


def members(text: str) -> Members | None:
    r"""Return the plain members of `1,2`, `(1,2)`, `\{1,2\}`, `3 \text{ and } 5`; None where there is only one, or one is no number and
    no word."""
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
    found = [_member(part) for part in parts]
    return None if None in found else Members(bracket, tuple(found))


def _member(text: str) -> Any:
    return quantity(text) or (words(text) if re.fullmatch(r"[A-Z]|[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*", text) else None)


def _same_member(ours: Any, theirs: Any) -> bool:
    return ours.agrees(theirs) if isinstance(ours, Quantity) and isinstance(theirs, Quantity) else bool(ours == theirs)


def _equal(ours: Any, theirs: Any) -> bool:
    return bool(ours == theirs)


def _agree(ours: Any, theirs: Any) -> bool:
    return bool(ours.agrees(theirs))


@dataclass(frozen=True)
class Kind:
    """One kind of answer. `form` is None where only math-verify can say what an answer states."""

    name: str
    form: Callable[[str], Any] | None = None
    same: Callable[[Any, Any], bool] = _equal
    # Whether what has another form may state the same all the same: `2^3` for 8. math-verify says.
    algebra: bool = False

    @property
    def numeric(self) -> bool:
        """Return whether the gold answer is one number, with or without a unit."""
        return self.form is quantity


KINDS = {
    kind.name: kind
    for kind in (
        Kind("number", quantity, _agree, algebra=True),
        Kind("quantity", quantity, _agree, algebra=True),
        Kind("percentage", quantity, _agree, algebra=True),
        Kind("money", quantity, _agree, algebra=True),
        Kind("date", date, _same_date),
        Kind("time", time, _same_time),
        Kind("option", option),
        Kind("words", words),
        Kind("exact", exact),
        Kind("json", data),
        Kind("list", members, _agree, algebra=True),
        Kind("expression", algebra=True),
        Kind("equation", algebra=True),
        Kind("inequality", algebra=True),
        Kind("interval", algebra=True),
        Kind("matrix", algebra=True),
    )
}


@lru_cache(maxsize=2**14)
def kind_of(gold: str) -> str:
    """Return the kind of a gold answer, a key of KINDS."""
    plain = bare(gold)
    for name, holds in _TESTS:
        if holds(plain):
            return name
    return "expression"


def _quantity_kind(name: str, holds: Callable[[str], bool]) -> tuple[str, Callable[[str], bool]]:
    return name, lambda plain: (found := quantity(plain)) is not None and holds(found.unit)


def _is_data(plain: str) -> bool:
    return plain[:1] in ("{", "[") and data(plain) is not None and re.search(r"[\"{]", plain) is not None


def _is_opaque(plain: str) -> bool:
    if "\\" in plain or _OPAQUE.fullmatch(plain) is None:
        return False
    calls = [name.lower() for name in _CALL.findall(plain)]
    # Of what is only called, as sin(x) is, mathematics is no code.
    return not calls or any(name not in FUNCTIONS for name in calls)


def _is_words(plain: str) -> bool:
    if "\\" in plain or re.search(r"[=<>^_+*/{}]", plain) or _CALL.search(plain):
        return False
    found = re.findall(r"[^\W\d_]+", plain)
    if found == [plain]:
        return len(plain) > 1 and plain.lower() not in ("pi", "oo", "inf", "infinity")
    named = [word for word in found if word.lower() not in FUNCTIONS]
    return bool(named) and any(len(word) > 1 for word in named) and len(named) == len(found)


# In this order: what comes first is what the gold answer is.
_TESTS: list[tuple[str, Callable[[str], bool]]] = [
    ("option", lambda plain: re.fullmatch(r"[A-Z]|\([A-Za-z]\)", plain) is not None),
    ("date", lambda plain: date(plain) is not None),
    ("time", is_time),
    _quantity_kind("number", lambda unit: not unit),
    _quantity_kind("percentage", lambda unit: unit == "%"),
    _quantity_kind("money", lambda unit: unit in ("$", "€", "£", "¥", "₹", "₩", "₽")),
    _quantity_kind("quantity", lambda unit: bool(unit)),
    ("json", _is_data),
    ("exact", _is_opaque),
    ("matrix", lambda plain: r"\begin{" in plain),
    ("list", lambda plain: members(plain) is not None),
    ("words", _is_words),
    ("interval", lambda plain: re.search(r"\\infty|\\cup|[\[\]]", plain) is not None),
    ("inequality", lambda plain: re.search(_RELATION, plain) is not None),
    ("equation", lambda plain: "=" in plain),
]

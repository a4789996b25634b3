r"""What an answer states, beside its value: relations, units, bases, brackets. math-verify looks at values alone.

It takes "13=12", "\neq 12", "12_8" and "12\text{ is not the answer}" for 12, and "6\text{ PM}" for "6\text{ AM}": holes that
reinforcement learning finds. `plain` takes away what changes no value; `refuses` says where two answers state different things.
"""

import re

_TEXT = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|operatorname)\s*\{([^{}]*)\}"
_INVISIBLE = r"\\[hv]?phantom\s*\{[^{}]*\}"
_SPACES = r"\\(?:[!,;:> ]|quad\b|qquad\b)|~|\\\\\s*$"
_LEADING = r"(?:so|thus|hence|therefore)?,?\s*(?:(?:the|my|our)\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*:?"
_RELATION = r"\\(?:not|neq?|leq?|geq?|leqslant|geqslant|lt|gt|to|rightarrow|Rightarrow|implies|iff|approx|sim|equiv|cong|propto|subset|subseteq|in|notin|mid)(?![a-zA-Z])|[<>≤≥≠≈→]|(?<![\w)])!=|:="
_DOTS = r"\\(?:[lc]?dots|dots[cbmio])(?![a-zA-Z])|\.\.\.|…"
_BASE = r"(?<=\d)_\{?(?:\\text\{)?\s*(\d+|[a-z]{3,})"
# Words that make of a value with words another statement than the value.
_TURNS = frozenset(
    [
        "not",
        "no",
        "never",
        "isn",
        "wrong",
        "false",
        "and",
        "or",
        "but",
        "than",
        "least",
        "most",
        "except",
        "unless",
        "minus",
        "plus",
        "incorrect",
    ]
)
# Units that are written in several ways.
_UNITS = {
    "in": "inch", "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "cm": "centimeter", "mm": "millimeter",
    "km": "kilometer", "m": "meter", "kg": "kilogram", "g": "gram", "lb": "pound", "lbs": "pound", "oz": "ounce", "sec": "second",
    "s": "second", "min": "minute", "hr": "hour", "hrs": "hour", "h": "hour", "l": "liter", "ml": "milliliter", "sq": "square",
    "deg": "degree", "cents": "cent", "a": "am", "p": "pm",
}  # fmt: skip


def plain(answer: str) -> str:
    r"""Return the answer without what never changes its value: spacing, invisible parts, `\text{}` around words, "the answer is", a
    percent sign (MATH's own graders drop it), a final period."""
    answer = re.sub(_INVISIBLE, "", answer)
    answer = re.sub(_SPACES, " ", answer)
    answer = re.sub(_TEXT, r" \1 ", answer)
    answer = re.sub(rf"^\s*{_LEADING}", "", answer, flags=re.IGNORECASE)
    return re.sub(r"\\?%", "", answer).strip().removesuffix(".").strip()


def readable(answer: str) -> str:
    """Return the answer as math-verify is to read it: without invisible parts and percent signs."""
    return re.sub(r"\\?%", "", re.sub(_INVISIBLE, "", answer))


def refuses(answer: str, gold: str) -> bool:
    """Return whether an answer states something else than the gold answer, whatever their values are."""
    return any(differ(answer, gold) for differ in (_relations, _dots, _bases, _brackets, _words, _crossed_out))


def sides(answer: str, gold: str) -> list[str]:
    r"""Return the sides of an equation, such as `x + y = 2 + 3 = 5`. The last is the answer; a number before it must equal it, and a
    name (`x`, `\angle A`, `P(X = 2)`) says whose value it is.

    An answer to a gold answer that is an equation itself, or a list, is one side; so is the set in `x \in S`.
    """
    member = re.fullmatch(r"\s*[a-zA-Z]\s*\\in(?![a-zA-Z])(.*)", answer, re.DOTALL)
    if member and "in" not in gold:
        return [member[1]]
    whole = re.search("[=,]", gold) or "," in answer or re.search(_RELATION, answer)
    # Not within brackets: P(X = 2).
    return [answer] if whole else re.split(r"=(?![^(]*\))", answer)


def names(side: str) -> bool:
    """Return whether a side of an equation has letters: it says whose value the next one is."""
    return re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", side)) is not None


def _relations(answer: str, gold: str) -> bool:
    """An inequality, a negation or an arrow is no value; it may be an interval or a set."""
    interval = re.search(r"[\[(].*,.*[\])]|\\cup|\\\{", gold)
    stated = answer if len(sides(answer, gold)) > 1 else sides(answer, gold)[0]
    return bool(re.search(_RELATION, stated)) and not re.search(_RELATION, gold) and not interval


def _dots(answer: str, gold: str) -> bool:
    """What goes on is not what ends."""
    return bool(re.search(_DOTS, answer)) and not re.search(_DOTS, gold)


def _bases(answer: str, gold: str) -> bool:
    """A base that the gold answer does not have, or another one. Without a base, the question's own is meant."""
    ours, theirs = re.findall(_BASE, answer), re.findall(_BASE, gold)
    return bool(ours) and ours != theirs


def _brackets(answer: str, gold: str) -> bool:
    """A set is no tuple."""
    kinds = [_bracket(text) for text in (answer, gold)]
    return None not in kinds and kinds[0] != kinds[1]


def _bracket(text: str) -> str | None:
    inner = re.sub(r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])\s*\.?", "", text).strip()
    if re.fullmatch(r"\\\{.*,.*\\\}", inner, re.DOTALL):
        return "set"
    return "tuple" if re.fullmatch(r"\([^()]*,[^()]*\)", inner) else None


def _words(answer: str, gold: str) -> bool:
    """Other units, or words that turn a value into another statement. A unit that only one of them has is no difference."""
    ours, theirs = _units(answer), _units(gold)
    if "," in gold:  # a list may be told with them
        ours = [word for word in ours if word not in ("and", "or")]
    if ours and theirs:
        return _has_digit(answer) and _has_digit(gold) and ours != theirs
    return bool(set(ours) & _TURNS) or (_has_digit(gold) and len(ours) > 4)


def _units(text: str) -> list[str]:
    """Return the words of an answer, lower case and without a plural s; variables, functions and commands are none."""
    worded = " ".join(re.findall(_TEXT, text)) if "\\" in text else re.sub(r"\b[a-zA-Z]\s*\(", " ", text)
    words = re.findall(r"[a-zA-Z]+", worded.lower().replace("a.m.", "am").replace("p.m.", "pm"))
    if "\\" not in text:
        words = [
            word for word in words if len(word) > 1 and word not in ("sin", "cos", "tan", "log", "ln", "sqrt", "pi")
        ]
    named = [_UNITS.get(word, word) for word in words]
    return sorted(word.removesuffix("s") if len(word) > 3 and word not in _TURNS else word for word in named)


def _has_digit(text: str) -> bool:
    return any(c.isdigit() for c in text)


def _crossed_out(answer: str, gold: str) -> bool:
    r"""`\cancel{12}` is not 12."""
    return bool(re.search(r"\\[bx]?cancel|\\st\b|\\sout", answer)) and "cancel" not in gold

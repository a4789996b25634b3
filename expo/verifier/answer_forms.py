r"""Form of an answer beside its value: relations, units, bases, brackets. math-verify compares values alone.

It takes "13=12", "\neq 12", "12_8" and "12\text{ is not the answer}" for 12, and a set for a tuple: holes that
reinforcement learning finds. `refuses` says where two answers state different things. All texts here are `spelled`.
"""

import re

from expo.verifier.kinds import NOTATION
from expo.verifier.numbers import FUNCTIONS, TURNS, UNITS
from expo.verifier.spelling import INVISIBLE, TEXT, bare

_RELATION = r"\\(?:not|neq?|leq?|geq?|leqslant|geqslant|lt|gt|to|rightarrow|Rightarrow|implies|iff|approx|sim|simeq|doteq|equiv|cong|lesssim|gtrsim|ll|gg|nless|ngtr|nleq|ngeq|gtreqless|neg|propto|subset|subseteq|in|notin|mid)(?![a-zA-Z])|[<>]|(?<![\w)])!=|:="  # noqa: E501
_PM = r"\pm"
_DOTS = r"\\(?:[lc]?dots|dots[cbmio])(?![a-zA-Z])|\.\.\."
_BASE = r"(?<=\d)_\{?(?:\\text\{)?\s*(\d+|[a-z]{3,})"
_LESS, _MORE = (rf"(?:{sign}|\\(?:{name}t|{name}eq?(?:slant)?)(?![a-zA-Z]))" for sign, name in (("<", "l"), (">", "g")))
_STRICT = ("<", r"\lt", ">", r"\gt", None)  # None: no end at all


def readable(answer: str) -> str:
    """Return the answer as math-verify is to read it: functions as commands, `^` for `**`, without invisible parts and
    percent signs (MATH's own graders drop them)."""
    answer = re.sub(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", re.sub(INVISIBLE, "", answer))
    answer = re.sub(r"(?<![\\a-zA-Z])(sin|cos|tan|cot|sec|csc|ln|log|exp|pi)(?![a-zA-Z])", r"\\\1 ", answer)
    answer = re.sub(r"(?<=\d)\s+i(?![a-zA-Z])", "i", answer)  # else a word beside the number
    answer = re.sub(r"(?<![\w.)}])(\d+)/(\d+)(?=\s*[a-zA-Z])", r"\\frac{\1}{\2}", answer)  # 1/2 m, and no 1/(2m)
    if answer.count(r"\pm") == 1 and re.search(
        r"[a-z}\]^_]\s*\{[^{}]*\\pm", answer
    ):  # math-verify reads it outside braces alone
        value = re.sub(r"^\s*[a-zA-Z]\s*=\s*", "", answer)
        answer = f"{value.replace(_PM, '+')},{value.replace(_PM, '-')}"
    return re.sub(r"\\?%", "", answer.replace("**", "^"))


def refuses(answer: str, gold: str) -> bool:
    """Return whether an answer states something other than the gold answer in form, whatever their values are."""
    if answer.lstrip().startswith("~") or (NOTATION.search(answer) and not NOTATION.search(gold)):
        return True
    return any(
        differ(answer, gold) for differ in (_relations, _solved, _dots, _bases, _brackets, _order, _words, _crossed_out)
    )


def sides(answer: str, gold: str) -> list[str]:
    r"""Return the sides of an equation, such as `x + y = 2 + 3 = 5`. The last is the answer; the caller checks that a
    number before it equals it, and a name (`x`, `\angle A`, `P(X = 2)`) says whose value it is. Answers to an equation
    or a list are one side; so is the set in `x \in S`, and the interval of an inequality."""
    member = re.fullmatch(r"\s*[a-zA-Z]\s*\\in(?![a-zA-Z])(.*)", answer, re.DOTALL)
    if member and "in" not in gold:
        return [member[1]]
    if re.search(r"[\[(].*,.*[\])]", gold) and (interval := _interval(bare(answer))):
        return [interval]
    one_side = re.search("[=,]", gold) or "," in answer or re.search(_RELATION, answer)
    # Not within brackets: P(X = 2).
    parts = [answer] if one_side else re.split(r"=(?![^(]*\))", answer)
    reverse = len(parts) == 2 and re.fullmatch(r"\s*[a-zA-Z]\s*", parts[1]) and not re.search("[a-zA-Z]", parts[0])
    return parts[::-1] if reverse else parts  # 7 = x


def _interval(text: str) -> str | None:
    r"""Return the interval of `1 \le x < 2`, `x \ge 5`; None for anything else."""
    for sign in (_LESS, _MORE):
        letters = rf"[a-zA-Z]\s*{sign}\s*[a-zA-Z]$"  # of two, the first is what has an end
        before = rf"(?:(?!{letters})([^<>\\]+?)\s*({sign})\s*)?"
        found = re.fullmatch(rf"{before}[a-zA-Z](?:\s*({sign})\s*(.+))?", text)
        if found and any(found.groups()):
            left, right = (found[1], found[2]), (found[4], found[3])
            (low, above), (high, below) = (left, right) if sign is _LESS else (right, left)
            opening, closing = "(" if above in _STRICT else "[", ")" if below in _STRICT else "]"
            return opening + (low or r"-\infty") + "," + (high or r"\infty") + closing
    return None


def names(side: str) -> bool:
    r"""Return whether a side of an equation says whose value the next one is: `x`, `x + y`, `n^2`, `\angle A`, `f(2)`.
    `2x`, `x + 1` and `-x` name nothing: they leave an equation to be solved."""
    plain = re.sub(r"\([^()]*\)|[_^](?:\{[^{}]*\}|\w)", "", side)
    unsolved = re.search(r"\d|/|\\frac|^\s*-", plain)
    operators = r"\\(?:frac|sqrt|cdot|times|div|left|right|pm)(?![a-zA-Z])"
    return unsolved is None and re.search("[a-zA-Z]", re.sub(operators, "", side)) is not None


def _relations(answer: str, gold: str) -> bool:
    """Refuse an inequality, a negation or an arrow, which is no value; it may be an interval or a set."""
    interval = re.search(r"[\[(].*,.*[\])]|\\cup|\\\{", gold)
    stated = answer if len(sides(answer, gold)) > 1 else sides(answer, gold)[0]
    return bool(re.search(_RELATION, stated)) and not re.search(_RELATION, gold) and not interval


def _solved(answer: str, gold: str) -> bool:
    """Refuse one side, or the roots, of an equation that is asked for: its sides name no value."""
    sides = re.split(r"(?<![<>!:])=(?![^(]*\))", gold)
    asked = len(sides) > 1 and not re.search("[,;]|and", gold) and "=" not in answer
    return asked and not any(map(names, sides))


def _dots(answer: str, gold: str) -> bool:
    return bool(re.search(_DOTS, answer)) != bool(re.search(_DOTS, gold))


def _bases(answer: str, gold: str) -> bool:
    """Refuse a base that the gold answer does not have, or another one. Without a base, the question's own is meant."""
    ours, theirs = re.findall(_BASE, answer), re.findall(_BASE, gold)
    return bool(ours) and ours != theirs


def _brackets(answer: str, gold: str) -> bool:
    kinds = [_bracket(text) for text in (answer, gold)]
    return None not in kinds and kinds[0] != kinds[1]


def _bracket(text: str) -> str | None:
    inner = re.sub(r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])\s*\.?", "", text).strip()
    if re.fullmatch(r"\\\{.*,.*\\\}", inner, re.DOTALL):
        return "set"
    return "tuple" if re.fullmatch(r"\([^()]*,[^()]*\)", inner) else None


def _order(answer: str, gold: str) -> bool:
    """Refuse `(y, x) = (1, 2)`: an ordered pair is told in the order of its names. Others than these have no order."""
    named = re.match(r"\s*\(?\s*([a-z](?:\s*,\s*[a-z])+)\s*\)?\s*=", answer)
    members = re.findall("[a-z]", named[1]) if named and "=" not in gold else []
    return members != sorted(members) and "".join(sorted(members)) in ("xy", "xyz", "ab", "abc")


def _words(answer: str, gold: str) -> bool:
    """Refuse other units, or words that make another statement. A unit that only one of them has is no difference."""
    ours, theirs = _units(answer), _units(gold)
    if "," in gold:  # a list may be told with them
        ours = [word for word in ours if word not in ("and", "or")]
    if ours and theirs:
        return _has_digit(answer) and _has_digit(gold) and ours != theirs
    return bool(set(ours) & TURNS) or (_has_digit(gold) and len(ours) > 4)


def _units(text: str) -> list[str]:
    """Return the words of an answer, lower case and without a plural s; variables, functions and commands are none."""
    worded = " ".join(re.findall(TEXT, text)) if "\\" in text else re.sub(r"\b[a-zA-Z]\s*\(", " ", text)
    words = re.findall(r"[a-zA-Z]+", worded.lower().replace("a.m.", "am").replace("p.m.", "pm"))
    if "\\" not in text:
        words = [word for word in words if len(word) > 1 and word not in FUNCTIONS]
    named = [UNITS.get(word, word) for word in words]
    return sorted(word.removesuffix("s") if len(word) > 3 and word not in TURNS else word for word in named)


def _has_digit(text: str) -> bool:
    return any(c.isdigit() for c in text)


def _crossed_out(answer: str, gold: str) -> bool:
    return bool(re.search(r"\\[bx]?cancel|\\st\b|\\sout", answer)) and "cancel" not in gold

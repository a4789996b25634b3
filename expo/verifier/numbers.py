r"""Numbers and quantities as they are written: `1,000`, `6.02\times10^{23}`, `3 1/2`, `0.\overline{3}`, `€29`, `60 km/h`. Exact."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from expo.verifier.spelling import TEXT, bare

MOST_EXPONENT = 400  # of ten; a larger one is no number here
FEWEST_DIGITS = 6  # significant ones, of a decimal that may stand for what has no end
FLOAT_DIGITS = 16  # significant ones: what a float's noise is written with

_GROUPED = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:['_]\d{3})+|\d+"
_DECIMAL = rf"(?:(?:{_GROUPED})(?:\.\d*)?|\.\d+)"
_POWER = r"(?:[eE](?P<e>[-+]?\d+)|\s*(?:\\times|\\cdot|x|\*)\s*10\s*\^\s*(?:\{(?P<x>[-+]?\d+)\}|(?P<y>[-+]?\d+)))"
_SIGN = r"(?P<sign>[-+]?)\s*"
_FORMS = [
    r"(?P<whole>\d+)\s*\\frac\s*\{\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}",
    r"(?P<whole>\d+) (?P<top>\d+)\s*/\s*(?P<bottom>\d+)",
    rf"\\frac\s*\{{\s*(?P<top>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>-?{_DECIMAL})\s*\}}",
    rf"(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>-?{_DECIMAL})",
    r"(?P<before>\d*\.\d*)\\(?:overline|bar|dot)\s*\{(?P<again>\d+)\}",
    rf"(?P<mantissa>{_DECIMAL}){_POWER}",
    r"(?P<ten>10)\s*\^\s*(?:\{(?P<x>[-+]?\d+)\}|(?P<y>[-+]?\d+))",
    rf"(?P<mantissa>{_DECIMAL})",
]
# What follows makes of the number a part of another one, or of an expression.
_END = r"(?![\d.,_!/*+(\[{]|\s*[-+*/=<>]|\s*\^(?!\s*\{?\s*\\circ)|\s+\d)"
NUMBERS = [re.compile(_SIGN + form + _END) for form in _FORMS]

# Units that are written in several ways.
UNITS = {
    "in": "inch", "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "cm": "centimeter", "mm": "millimeter",
    "km": "kilometer", "m": "meter", "kg": "kilogram", "g": "gram", "gm": "gram", "lb": "pound", "lbs": "pound", "oz": "ounce", "sec": "second",
    "s": "second", "min": "minute", "hr": "hour", "hrs": "hour", "h": "hour", "l": "liter", "ml": "milliliter", "sq": "square",
    "deg": "degree", "cents": "cent", "a": "am", "p": "pm", "metre": "meter", "metres": "meter", "litre": "liter", "percent": "%",
    "kilometre": "kilometer", "centimetre": "centimeter", "n": "newton", "j": "joule", "w": "watt", "v": "volt", "k": "kelvin", "mph": "mile/hour",
    "dollar": "$", "dollars": "$", "usd": "$", "euro": "€", "euros": "€", "eur": "€", "gbp": "£", "jpy": "¥", "yen": "¥", "cny": "¥",
    "inr": "₹", "rupee": "₹", "rupees": "₹", "rs": "₹",
}  # fmt: skip
CURRENCIES = "$€£¥₹₩₽"
# Words that make of a value with words another statement than the value.
TURNS = frozenset(
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
        "about",
        "approximately",
        "over",
        "under",
        "above",
        "below",
        "between",
        "from",
        "to",
    ]
)
FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "lg",
        "sqrt",
        "pi",
        "exp",
        "mod",
        "max",
        "min",
        "lim",
        "inf",
        "gcd",
        "lcm",
        "det",
        "dim",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "infinity",
        "oo",
    ]
)
# Single letters that are units where they stand apart: "12 m", not "12m".
_LETTERS = frozenset("mgslhLNJWVAKCFT")


@dataclass(frozen=True)
class Number:
    """A value, and how a decimal is written: `digits`, its significant ones, and `step`, one in the last place; None of what is exact."""

    value: Fraction
    digits: int | None = None
    step: Fraction = Fraction(0)

    def __str__(self) -> str:
        return str(self.value)

    def agrees(self, other: "Number") -> bool:
        """Return whether both are one number.

        A decimal of FEWEST_DIGITS is a fraction without an end that it is less than a step away from, and decimals that differ
        by a float's noise are one. Else only equal values are equal.
        """
        if self.value == other.value:
            return True
        if self.digits is None or other.digits is None:
            decimal, exact = (other, self) if self.digits is None else (self, other)
            return not _ends(exact.value) and decimal.stands_for(exact.value)
        noisy = max(self.digits, other.digits) >= FLOAT_DIGITS
        return noisy and abs(self.value - other.value) <= Fraction(1, 10**12) * abs(other.value)

    def stands_for(self, value: Fraction) -> bool:
        """Return whether it is a decimal with digits enough to stand for a value that it is less than a step away from."""
        return (self.digits or 0) >= FEWEST_DIGITS and abs(self.value - value) < self.step


def _ends(value: Fraction) -> bool:
    """Return whether a value is a decimal with an end."""
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


@dataclass(frozen=True)
class Quantity:
    """A number with a unit; "" where it has none."""

    number: Number
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.number} {self.unit}".rstrip()

    def agrees(self, gold: "Quantity") -> bool:
        """Return whether it is the gold answer's quantity. A unit that only one of them has is no difference, and a percent sign may
        be left out; `50%` for 0.5 is the same value."""
        if self.unit and gold.unit and self.unit != gold.unit:
            return False
        if self.unit == "%" and not gold.unit and Number(self.number.value / 100).agrees(gold.number):
            return True
        return self.number.agrees(gold.number)


@lru_cache(maxsize=2**14)
def number(text: str) -> Number | None:
    """Return the number that a text is, after `bare`; None where it is none."""
    text = bare(text)
    while (inner := re.fullmatch(r"\{([^{}]*)\}|\(([^()]*)\)|([-+])\{([^{}]*)\}", text)) is not None:
        text = (inner[1] or inner[2] or (inner[3] or "") + (inner[4] or "")).strip()
    found = _leading(text)
    return found[0] if found is not None and found[1] == len(text) else None


def _leading(text: str) -> tuple[Number, int] | None:
    """Return the number that a text begins with, and where it ends."""
    matches = [match for pattern in NUMBERS if (match := pattern.match(text))]
    if not matches:
        return None
    match = max(matches, key=lambda match: match.end())
    found = _valued({name: part for name, part in match.groupdict().items() if part is not None})
    return None if found is None else (found, match.end())


def _valued(parts: dict[str, str]) -> Number | None:
    sign = -1 if parts["sign"] == "-" else 1
    if "top" in parts:
        if (bottom := _plain(parts["bottom"])) == 0:
            return None
        return Number(sign * (int(parts.get("whole", 0)) + _plain(parts["top"]) / bottom))
    if "again" in parts:
        places, again = len(parts["before"].partition(".")[2]), parts["again"]
        repeated = Fraction(int(again), (10 ** len(again) - 1) * 10**places)
        return Number(sign * (_plain(parts["before"] if parts["before"] != "." else "0") + repeated))
    exponent = int(parts.get("e") or parts.get("x") or parts.get("y") or 0)
    if abs(exponent) > MOST_EXPONENT:
        return None
    scale = Fraction(10) ** exponent
    if "ten" in parts:
        return Number(sign * scale)
    mantissa = parts["mantissa"]
    if "." not in mantissa:
        return Number(sign * _plain(mantissa) * scale)
    decimals = mantissa.partition(".")[2]
    digits = len(re.sub(r"\D", "", mantissa).lstrip("0"))
    return Number(sign * _plain(mantissa) * scale, digits, scale / 10 ** len(decimals))


def _plain(text: str) -> Fraction:
    return Fraction(re.sub(r"[,'_ ]", "", text).removesuffix("."))


@lru_cache(maxsize=2**14)
def quantity(text: str) -> Quantity | None:
    """Return the number with a unit that a text is; None where it is none. Words that turn a value (`not 12`) are no unit."""
    plain = bare(text)
    if (alone := number(plain)) is not None:
        return Quantity(alone)
    before = re.match(rf"([-+]?)\s*(?:US|A|C)?([{CURRENCIES}]|(?:USD|EUR|GBP|JPY|INR|Rs\.?)(?=\W|\d))\s*", plain)
    if before:
        found = number(before[1] + plain[before.end() :])
        return None if found is None else Quantity(found, unit_word(before[2].rstrip(".")))
    leading = _leading(plain)
    if leading is None:
        return None
    found, end = leading
    unit = _unit(plain[end:])
    return Quantity(found, unit) if unit else None


def _unit(rest: str) -> str:
    """Return what follows a number as a unit in one spelling; "" where it is none."""
    apart, rest = rest[:1] == " ", rest.replace("\\%", "%").strip()
    rest = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", " degree ", rest).strip()
    rest = re.sub(r"\\(?:cdot|times)(?![a-zA-Z])", "*", rest)
    if not re.fullmatch(rf"(?:[^\W\d_]|[%{CURRENCIES} ./*'-]|\^\{{?-?\d\}}?)+", rest):
        return ""
    words = re.findall(r"[^\W\d_]+", rest)
    if len(words) > 4 or {word.lower() for word in words} & (TURNS | FUNCTIONS):
        return ""
    # Letters at a number are variables: 12x, 2xy, 12m; but 12cm. Apart from it, some single letters are units.
    if words and words[0].isascii():
        known = words[0].lower() in UNITS if len(words[0]) > 1 else apart and (words[0] in _LETTERS or len(words) > 1)
        if not known and (not apart or len(words[0]) == 1):
            return ""
    rest = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", rest.lower().replace("per cent", "%"))
    rest = re.sub(r"\s*(?:/|\bper\b)\s*", "/", rest)
    rest = re.sub(r"\b(square|sq|cubic|cu)\b\.?\s*([^\W\d_]+)", _with_power, rest)
    words_only = re.sub(r"[^\W\d_]+", lambda word: unit_word(word[0]), rest)
    return re.sub(r"\s+", "*", re.sub(r"[{}]|\s+(?=\^)", "", words_only).replace(".", " ").strip())


def _with_power(named: "re.Match[str]") -> str:
    return f"{named[2]}^{2 if named[1].startswith('sq') else 3}"


def unit_word(word: str) -> str:
    """Return a unit's word in one spelling: lower case, without a plural s."""
    word = UNITS.get(word.lower(), word.lower())
    return UNITS.get(word[:-1], word[:-1]) if len(word) > 3 and word.endswith("s") and word not in TURNS else word


def numbers_in_a_row(text: str) -> list[Number] | None:
    """Return the numbers of a row of them, parted by spaces, commas, semicolons, "and" or "or"; None where it is no such row."""
    found = [number(part) for part in re.split(r"\s*[,;]\s*|\s+(?:and|or)\s+|\s+", bare(text)) if part]
    return [n for n in found if n is not None] if len(found) > 1 and None not in found else None


def is_arithmetic(text: str) -> bool:
    """Return whether a text is a sum, difference, product or quotient of plain numbers that was not carried out, such as `3+4`."""
    plain = re.sub(r"\\(?:times|cdot|div)(?![a-zA-Z])|×", "*", bare(re.sub(TEXT, " ", text)))
    return number(text) is None and re.fullmatch(r"[-+*/x().\d\s,]*\d[\s)]*[-+*/x][-+*/x().\d\s,]*", plain) is not None

r"""Numbers and quantities as they are written: `1,000`, `6.02\times10^{23}`, `3 1/2`, `0.\overline{3}`, `€29`,
`60 km/h`. Values are exact fractions; which of them count as equal: `Number.agrees`."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from expo.verifier.spelling import TEXT, bare

MOST_EXPONENT = 400  # of ten; a larger one is no number here
FEWEST_DIGITS = 6  # significant ones, of a decimal that may stand for what has no end
FLOAT_DIGITS = 17  # significant ones: what a float's noise is written with

_GROUPED = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:['_]\d{3})+|\d+"
_DECIMAL = rf"(?:(?:{_GROUPED})(?:\.\d*)?|\.\d+)"
_POWER = (
    r"(?:[eE](?P<e>[-+]?\d+)|\s*(?:\\times|\\cdot|x|\*)\s*10\s*(?:\^|\*\*)\s*(?:\{(?P<x>[-+]?\d+)\}|(?P<y>[-+]?\d+)))"
)
_SIGN = r"(?P<sign>[-+]?)\s*"
_FORMS = [
    r"(?P<whole>\d+)\s*\\frac\s*\{\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}",
    rf"(?P<whole>{_GROUPED}) (?P<top>\d+)\s*/\s*(?P<bottom>\d+)",
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

# Units that are written in several ways, each before its spellings.
_SPELLINGS = """
inch in inches; foot ft feet; yard yd; mile mi; meter m metre metres; square sq;
centimeter cm centimetre; millimeter mm; kilometer km kilometre; liter l litre; milliliter ml; gallon gal;
kilogram kg; gram g gm; pound lb lbs; ounce oz; degree deg degree; kelvin k; newton n; joule j; watt w; volt v;
second sec s; minute min; hour hr hrs h; year yrs; am a; pm p; mile/hour mph; kilometer/hour kph kmph;
% percent; cent cents; ampere amp amps amperes; coulomb coulombs; tesla; hertz;
$ dollar dollars usd; € euro euros eur; £ gbp; ¥ jpy yen cny; ₹ inr rupee rupees rs
"""
UNITS = {word: unit for unit, *words in map(str.split, _SPELLINGS.split(";")) for word in words}
CURRENCIES = "$€£¥₹₩₽"
# Words that make of a value with words another statement than the value.
_TURNS = (
    "not no never isn wrong false and or but than least most except unless minus plus incorrect about "
    "approximately over under above below between from to approx ish minimum maximum more fewer less rejected "
    "excluded nope isnt cannot unlikely negative bc bce either neither maybe times halves tenths hundredths "
    "lakh crore pair pairs factorial squared cubed base binary ppm doubled"
)
TURNS = frozenset(_TURNS.split())
_FUNCTIONS = (
    "sin cos tan cot sec csc log ln lg sqrt pi exp mod max min lim inf gcd lcm det dim arcsin arccos arctan "
    "sinh cosh tanh infinity oo abs floor ceil asin acos atan"
)
FUNCTIONS = frozenset(_FUNCTIONS.split())
# Words that a number is multiplied by.
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
SCALES |= {f"{word}s": times for word, times in SCALES.items()} | {"bn": 10**9}
# Words that make another number of the one before them, at the end or before what they do it by.
_PARTS = re.compile(
    r"\d[\s-]+(?:(?:thirds|fourths|fifths|sixths|sevenths|eighths|ninths|thousandths|millionths)\b"
    r"|(?:in\s+)?(?:half|third|halved|tripled|quadrupled|hex|hexadecimal|octal|grand)\s*(?:$|of\b)"
    r"|(?:divided\s+by|choose)\s+(?:\d|(?:one|two|three|four|five|six|seven|eight|nine|ten)\b))"
)
_SYMBOL = re.compile(r"[numkMGcdµμ]?(?:Hz|Pa|eV|mol|[mgsWJVANLKC])|Nm")
# Single letters that are units where they stand apart: "12 m", not "12m".
_LETTERS = frozenset("mgslhLNJWVAKCFT")
_SI = {"A": "ampere", "C": "coulomb", "T": "tesla", "Hz": "hertz"}


@dataclass(frozen=True)
class Number:
    """Exact value of a number. One written as a decimal has `digits`, the count of significant digits, and `step`, one
    unit in the last place; else they are None and 0."""

    value: Fraction
    digits: int | None = None
    step: Fraction = Fraction(0)

    def __str__(self) -> str:
        return str(self.value)

    def agrees(self, other: "Number") -> bool:
        """Return whether both are one number: a decimal of FEWEST_DIGITS is the fraction without an end that it is
        rounded from, decimals that differ by a float's noise are one, and else equal values alone."""
        if self.value == other.value:
            return True
        if self.digits is None or other.digits is None:
            decimal, exact = (other, self) if self.digits is None else (self, other)
            bottom = exact.value.denominator
            ends = pow(10, bottom.bit_length(), bottom) == 0  # as a decimal: no prime but 2 and 5 is in it
            return not ends and decimal.stands_for(exact.value)
        noisy = max(self.digits, other.digits) >= FLOAT_DIGITS
        return noisy and abs(self.value - other.value) <= Fraction(1, 10**15) * abs(other.value)

    def stands_for(self, value: Fraction) -> bool:
        """Return whether the decimal has digits enough to stand for a value that it is rounded or cut off from."""
        apart = abs(self.value - value)
        cut_off = apart < self.step and abs(self.value) <= abs(value)
        return (self.digits or 0) >= FEWEST_DIGITS and (cut_off or apart <= self.step / 2)


@dataclass(frozen=True)
class Quantity:
    """A number with a unit; "" where it has none."""

    number: Number
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.number} {self.unit}".rstrip()

    def agrees(self, gold: "Quantity") -> bool:
        """Return whether the quantity is the gold answer's. A unit that only one of them has is no difference, and a
        percent sign may be left out; `50%` for 0.5 is the same value."""
        if self.unit and gold.unit and self.unit != gold.unit:
            return False
        # Between 0 and 1 a percentage is a value; elsewhere MATH's graders drop its sign.
        if self.unit == "%" and not gold.unit and 0 < abs(gold.number.value) < 1:
            return replace(self.number, value=self.number.value / 100, step=self.number.step / 100).agrees(gold.number)
        if gold.unit == "%" and not self.unit and Number(self.number.value * 100).agrees(gold.number):
            return 0 < abs(self.number.value) < 1
        return self.number.agrees(gold.number)


@lru_cache(maxsize=2**14)
def number(text: str) -> Number | None:
    """Return the number that a text is, after `bare`; None where it is none."""
    text = bare(text)
    while (inner := re.fullmatch(r"\{([^{}]*)\}|\(([^(),]*)\)|([-+])\{([^{}]*)\}", text)) is not None:
        text = (inner[1] or inner[2] or (inner[3] or "") + (inner[4] or "")).strip()
    leading = _leading(text)
    return leading[0] if leading is not None and leading[1] == len(text) else None


def _leading(text: str) -> tuple[Number, int] | None:
    matches = [match for pattern in NUMBERS if (match := pattern.match(text))]
    if not matches:
        return None
    match = max(matches, key=lambda match: match.end())
    value = _valued({name: part for name, part in match.groupdict().items() if part is not None})
    return None if value is None else (value, match.end())


def _valued(parts: dict[str, str]) -> Number | None:
    sign = -1 if parts["sign"] == "-" else 1
    if "top" in parts:
        if (bottom := _plain(parts["bottom"])) == 0:
            return None
        return Number(sign * (_plain(parts.get("whole", "0")) + _plain(parts["top"]) / bottom))
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


def makes_another(plain: str) -> bool:
    """Return whether words behind a number make another one of it, as `2 thirds`. Args: plain, after `bare`."""
    return _PARTS.search(plain.lower()) is not None


@lru_cache(maxsize=2**14)
def quantity(text: str) -> Quantity | None:
    """Return the number with a unit that a text is, or None. Words that turn a value (`not 12`) are no unit."""
    plain = bare(text)
    if (plain_number := number(plain)) is not None:
        return Quantity(plain_number)
    before = re.match(rf"([-+]?)\s*(?:US|A|C)?([{CURRENCIES}]|(?:USD|EUR|GBP|JPY|INR|Rs\.?)(?=\W|\d))\s*", plain)
    if before:
        amount = quantity(before[1] + plain[before.end() :])  # $3.5 million
        alone = amount is not None and not amount.unit
        return Quantity(amount.number, unit_word(before[2].rstrip("."))) if amount and alone else None
    leading = _leading(plain)
    if leading is None:
        return None
    value, end = leading
    rest = plain[end:]
    while (scale := re.match(r"\s*([a-zA-Z]+)\b", rest)) and (times := SCALES.get(scale[1].lower())):
        value, rest = Number(value.value * times, value.digits, value.step * times), rest[scale.end() :]
        if not rest.strip():
            return Quantity(value)
    unit = "" if makes_another(plain) else _unit(rest)
    return Quantity(value, unit) if unit else None


def _unit(rest: str) -> str:
    """Return the unit after a number in one spelling; "" where the text is none."""
    apart, rest = rest[:1] in (" ", "^"), rest.replace("\\%", "%").strip()
    rest = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", " degree ", rest).strip()
    rest = re.sub(r"\\(?:cdot|times)(?![a-zA-Z])", "*", rest)
    if rest.count("/") == 1 and "(" not in rest:  # J/kg K
        above, _, below = rest.partition("/")
        rest = f"{above}/{'/'.join(below.split())}"
    rest = re.sub(
        r"/\s*\(([^()]*)\)", lambda below: "".join(f"/{u}" for u in re.split(r"[\s*.]+", below[1].strip())), rest
    )
    if not re.fullmatch(rf"(?:[^\W\d_]|[%{CURRENCIES} ./*'-]|\^\{{?-?\d\}}?)+", rest):
        return ""
    words = re.findall(r"[^\W\d_]+", rest)
    if len(words) > 4 or {word.lower() for word in words} & (TURNS | (FUNCTIONS - UNITS.keys())):
        return ""
    # Letters at a number are variables: 12x, 2xy, 12m; but 12cm. Apart from it, some single letters are units.
    if words and words[0].isascii():
        known = (
            words[0].lower() in UNITS or _SYMBOL.fullmatch(words[0])
            if len(words[0]) > 1
            else apart and not _is_formula(words, rest)
        )
        if not known and (not apart or len(words[0]) == 1):
            return ""
    rest = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", rest.replace("per cent", "%"), flags=re.IGNORECASE)
    rest = re.sub(r"\bdegrees?\s*(?:celsius|c)\b\.?", "celsius", rest, flags=re.IGNORECASE)
    rest = re.sub(r"\bdegrees?\s*(?:fahrenheit|f)\b\.?", "fahrenheit", rest, flags=re.IGNORECASE)
    rest = re.sub(r"\s*\bper\b\s*", "/", re.sub(r"(?<=[a-zA-Z}])\.(?=[a-zA-Z])", "*", rest))
    rest = re.sub(r"\s*(/|\*)\s*", r"\1", rest)
    rest = re.sub(r"\b(square|sq|cubic|cu)\b\.?\s*([^\W\d_]+)", lambda u: f"{u[2]}^{2 if u[1][0] == 's' else 3}", rest)
    words_only = re.sub(r"[^\W\d_]+", lambda word: unit_word(word[0]), rest)
    return _in_order(re.sub(r"\s+", "*", re.sub(r"[{}]|\s+(?=\^)", "", words_only).replace(".", " ").strip()))


def _is_formula(words: list[str], rest: str) -> bool:
    """Return whether letters behind a number are a formula and no unit: `1/2 m v^2`, `2 m g`, `3 V/R`."""
    single = [word for word in words if len(word) == 1]
    if re.match(r"[ap]\.?\s?m\b", rest, re.IGNORECASE):
        return False
    if rest.startswith("a ") or any(len(w) > 1 and w.lower() not in UNITS and not _SYMBOL.fullmatch(w) for w in words):
        return False
    product = len(single) > 1 and all(map(str.islower, single)) and not re.search(r"[/-]", rest)
    return product or any(word not in _LETTERS for word in (single if len(words) > 1 else words))


def _in_order(unit: str) -> str:
    """Return a unit with all divisors behind one slash, so that `m s^-2`, `m/s/s` and `m/s^2` are one."""
    powers: dict[str, int] = {}
    for sign, name, power in re.findall(r"([*/]?)([^*/^]+)(?:\^(-?\d+))?", unit):
        powers[name] = powers.get(name, 0) + int(power or 1) * (-1 if sign == "/" else 1)
    shown = [(name + (f"^{abs(p)}" if abs(p) != 1 else ""), p) for name, p in sorted(powers.items())]
    return "*".join(name for name, p in shown if p > 0) + "".join(f"/{name}" for name, p in shown if p < 0)


def unit_word(word: str) -> str:
    """Return a unit's word in one spelling: lower case, without a plural s. A symbol keeps its case: MW is not mW."""
    if word in _SI:
        return _SI[word]
    lower = word.lower()
    mega = word[0] == "M" and len(word) > 1 and lower not in ("min", "mi", "mph")
    if _SYMBOL.fullmatch(word) and word != lower and (mega or lower not in UNITS):
        return word
    word = UNITS.get(lower, lower)
    if word in ("celsius", "children"):
        return word
    return UNITS.get(word[:-1], word[:-1]) if len(word) > 3 and word.endswith("s") and word not in TURNS else word


def numbers_in_a_row(text: str) -> list[Number] | None:
    """Return the numbers of a row, parted by spaces, commas, semicolons, "and" or "or"; None where it is none."""
    numbers = [number(part) for part in re.split(r"\s*[,;]\s*|\s+(?:and|or)\s+|\s+", bare(text)) if part]
    return [n for n in numbers if n is not None] if len(numbers) > 1 and None not in numbers else None


def is_arithmetic(text: str) -> bool:
    """Return whether a text is arithmetic of plain numbers that was not carried out, such as `3+4`."""
    plain = re.sub(r"\\(?:times|cdot|div)(?![a-zA-Z])|×", "*", re.sub(r"[{}]", " ", bare(re.sub(TEXT, " ", text))))
    plain = re.sub(r"\s[^\W\d_]{2,}(?:\s[^\W\d_]+)*$", "", plain)  # with a unit
    return number(text) is None and re.fullmatch(r"[-+*/x().\d\s,]*\d[\s)]*[-+*/x][-+*/x().\d\s,]*", plain) is not None

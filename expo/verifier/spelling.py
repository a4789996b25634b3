r"""Normalise spelling: Unicode, HTML, Markdown, LaTeX's spaces. Both sides of a comparison go through it.

Imports no torch: workers import it.
"""

import html
import re
import unicodedata
from functools import lru_cache

# Signs with a LaTeX command; NFKC would leave them, or take them for something else (² is no 2).
_NAMED = (
    "∞ infty, π pi, × times, · cdot, ⋅ cdot, ÷ div, ± pm, ≤ le, ≥ ge, ⩽ le, ⩾ ge, ≠ ne, ≈ approx, → to, "
    "∈ in, ∪ cup, ∩ cap, ∅ emptyset, … ldots, ⟨ langle, ⟩ rangle, ∠ angle, "
    "Γ Gamma, Δ Delta, Θ Theta, Λ Lambda, Ξ Xi, Π Pi, Σ Sigma, Φ Phi, Ψ Psi, Ω Omega, \u2126 Omega"
)
_COMMANDS = {sign: rf"\{name} " for sign, name in map(str.split, _NAMED.split(","))}
_COMMANDS |= {sign: rf"\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)}
_COMMANDS |= {"°": r"^\circ ", "\u2044": "/", "٫": ".", "٬": ",", "′": "'", "’": "'"}
_COMMANDS |= dict.fromkeys("‐‑‒–—―−﹣－", "-")
_SIGNS = str.maketrans(_COMMANDS)
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋"
_TAGS = r"</?(?:b|i|u|p|em|strong|span|code|br)(?:\s[^<>]*)?/?>"
_ENTITY = r"&(?:#\d+|#x[0-9a-fA-F]+|[a-zA-Z]+);"

TEXT = r"\\(?:text|textbf|textit|textrm|texttt|mbox|mathrm|mathbf|mathit|boldsymbol|bm|underline|emph|ce|operatorname)\s*\{([^{}]*)\}"  # noqa: E501
BOLD = r"(?:\\(?:mathbf|boldsymbol|bm|mathrm|mathit)\s*)?\{"
INVISIBLE = r"\\[hv]?phantom\s*\{[^{}]*\}"
TURNED = "\u202d\u202e"  # what follows is shown in another order than it is written: 12 as 21
SPACES = r"\\(?:[!,;:> ]|quad\b|qquad\b)|~|\\\\\s*$"
_SIZES = r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?"
_LEADING = r"^\s*(?:so|thus|hence|therefore)?,?\s*(?:(?:the|my|our)\s+)?(?:final\s+)?answer\s*(?:is|:|=)\s*:?"


@lru_cache(maxsize=2**14)
def spelled(text: str) -> str:
    """Return the text in ASCII and LaTeX, where it has such a spelling, without HTML and Markdown around it."""
    if "<" in text:
        text = re.sub(r"<sup>(.*?)</sup>", r"^{\1}", re.sub(r"<sub>(.*?)</sub>", r"_{\1}", text))
        text = re.sub(_TAGS, "", text)
    if "&" in text:
        text = re.sub(_ENTITY, lambda entity: html.unescape(entity[0]), text)
    if not text.isascii():
        text = _ascii(text)
    text = re.sub(r"^~\s*(?=[\d.$(-])", r"\\sim ", text.strip())  # about
    if fenced := re.fullmatch(r"```\w*\s(.*)```", text, re.DOTALL):
        text = fenced[1].strip()
    for mark in ("**", "__", "`", "*"):  # around the whole: 2**3 is a power
        inner = text.removeprefix(mark).removesuffix(mark)
        if len(inner) == len(text) - 2 * len(mark) and mark not in inner:
            text = inner.strip()
    if "\\" in text:
        text = re.sub(r"\\[dtcs]frac(?![a-zA-Z])", r"\\frac", text).replace(r"\varnothing", r"\emptyset")
        text = re.sub(r"\\(bar|dot|overline)\s*(\d)", r"\\\1{\2}", re.sub(r"\\textcolor\{\w+\}", "", text))
        text = re.sub(r"\\[dt]?binom\s*(\d)\s*(\d)", r"\\binom{\1}{\2}", text)
        text = re.sub(r"\\(mathbb|sqrt)(?:\s+([A-Za-z0-9])|(\d))", r"\\\1{\2\3}", text)
        text = re.sub(r"\\frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})", r"\\frac{\1\2}{\3\4}", text)
    if "Omega" in text:  # of a resistance, and no variable
        text = re.sub(r"(?<=\d)(?:\s|\\[,; ])*([kMmμµ]?)\s*\\Omega\s*$", r" \1ohm", text)
    return _unwrapped(text)


def _unwrapped(text: str) -> str:
    r"""Return the text without braces, or `\mathbf{}`, around the whole of it, unless it is a set or a dictionary."""
    while (opening := re.match(BOLD, text)) and text.endswith("}") and text != "{}":
        depth, inner, parted = 1, text[opening.end() : -1], False
        for brace in re.findall(r"\\.|[{}(\[\])]|[,;:\"]", inner):
            depth += (brace in "{([") - (brace in "})]")
            parted = parted or (depth == 1 and brace in ',;:"')
            if depth == 0:
                return text
        if (parted or re.search(r"\\(?:choose|brack|atop)(?![a-z])", inner)) and opening[0] == "{":
            return text
        if not inner.strip() or (opening[0] == "{" and re.fullmatch(r"[\s\w]*[^\W\d_]{2}[\s\w]*", inner)):
            return text  # a word
        text = inner.strip()
    return text


def _ascii(text: str) -> str:
    text = re.sub(f"[{_RAISED}]+", lambda run: "^{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    text = re.sub(f"[{_LOWERED}]+", lambda run: "_{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    text = text.translate(_SIGNS)
    text = re.sub(r"([√∛∜])\s*(\w+|\([^()]*\)|\{[^{}]*\})", _root, text)
    text = "".join(_character(c) for c in text)
    return re.sub("[‐‑‒–—―−]", "-", unicodedata.normalize("NFKC", text))


def _root(root: re.Match[str]) -> str:
    return rf"\sqrt{ {'√': '', '∛': '[3]', '∜': '[4]'}[root[1]] }{{{root[2].strip('(){}')}}}"


def _character(c: str) -> str:
    """Return a fraction as LaTeX, a digit of any script in ASCII, "" for one without width, any other unchanged."""
    if c.isascii():
        return c
    if unicodedata.category(c) == "Cf" and c not in TURNED:
        return ""
    if (digit := unicodedata.decimal(c, None)) is not None:
        return str(digit)
    top, slash, bottom = unicodedata.normalize("NFKC", c).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}" if slash else c


@lru_cache(maxsize=2**14)
def bare(text: str) -> str:
    r"""Return the text without what never changes its value: math delimiters, spacing, sizes, invisible parts,
    `\text{}` around words, "the answer is", a final period. A dollar sign that stays is money."""
    text = spelled(text)
    if "\\" in text or "~" in text or "{" in text:
        text = re.sub(r"(?<=\d)\s*(?:(,)\s*\\!|\{(,)\}|(,)\{\}|\\!)\s*(?=\d)", r"\1\2\3", text)
        text = re.sub(INVISIBLE, "", text).replace(r"\!", "")
        text = re.sub(r"^\\[(\[](.*)\\[)\]]$", r"\1", text, flags=re.DOTALL)
        text = re.sub(SPACES, " ", re.sub(_SIZES, "", text))
    if "$" in text:
        money = text.replace(r"\$", "\ue024")  # of a private use area
        text = re.sub(r"\$\$?([^$]*)\$\$?", r" \1 ", money).replace("\ue024", "$")
    if "\\" in text:
        text = re.sub(TEXT, r" \1 ", text)
    if "nswer" in text or "NSWER" in text:
        text = re.sub(_LEADING, "", text, flags=re.IGNORECASE)
    text = " ".join(text.split()).rstrip(",;")
    return text if text.endswith("..") else text.removesuffix(".").rstrip()

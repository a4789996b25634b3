"""Checks of every data row: can the verifier ever call a completion right on its problem?"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from expo.ground.problem import Problem
from expo.verifier.answers import Verdict, kind_for
from expo.verifier.pool import Verifier

NUMBER = r"(?<!\d)(-?\d[\d,]*(?:\.\d+)?)"
SENTENCE = (
    f"the answer is a sentence; set dataset.answer_pattern to find the answer in it, such as '{NUMBER}', or '.+' to "
    "take it whole, or dataset.answer_kind=exact for code"
)
# A time-out is no verdict: what a slow machine cannot judge stays in the data.
REFUSED = (Verdict.INCORRECT, Verdict.UNPARSEABLE)


# What JSON makes of LaTeX whose backslashes are not doubled: "\frac" is a form feed and "rac", "\boxed" a backspace and
# "oxed".
EATEN = {"\b": "b", "\f": "f", "\t": "t", "\r": "r", "\n": "n", "\v": "v", "\a": "a"}
_EATEN = re.compile(
    r"[\b\f\v\a](?=[a-zA-Z])|\t(?=ext\w*\{|imes\b|heta\b|frac\W|riangle|herefore|ilde\W|an[({\\])"
    r"|\r(?=ight|ho\b|angle|ceil|floor)|\n(?=eq\b|abla\b|eg\b|otin\b)"
)


class BadRow(Exception):
    """A row that cannot be used: `reason` is counted, `detail` is about this row alone."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def check_text(p: Problem) -> None:
    """Raise BadRow where a problem's parts are no text, or none that can be written to a file."""
    for name in ("question", "answer", "solution", "subject"):
        value = getattr(p, name)
        if value is not None and not isinstance(value, str):
            raise BadRow(f"the {name} is not text", repr(value)[:80])
        if value is not None and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise BadRow(f"the {name} holds half a character", ascii(value)[:80])
        if value is not None and (eaten := _EATEN.search(value)):
            lost = f"\\{EATEN[eaten[0]]}" + re.match(r"\w*", value[eaten.end() :])[0]  # type: ignore[index]
            raise BadRow(
                f"JSON has eaten a backslash of the {name}; write each as \\\\, as json.dumps does", f"of {lost}"
            )
    if not p.question.strip() or not p.answer.strip():
        raise BadRow("empty question or answer")


def unusable(problems: Sequence[Problem], verifier: Verifier, sentences: bool = False) -> list[BadRow | None]:
    """Return, for each problem, why no completion of it can be judged right; None where one can.

    An answer must be equal to itself and to the answer of its own solution; a judge of one's own is asked of the
    solution alone. An answer that is a sentence around a number must be equal to that number, too: a policy writes
    `29`, not "she has 29 apples". Args: sentences, whether a sentence is an answer all the same.
    """
    # All are asked before the first is waited for: comparing strings settles most, and the workers share the rest.
    stated = verifier.extraction.stated
    itself = verifier.judge.accepts_itself
    asked = []
    for p in problems:
        number = number_in_sentence(p) if itself and not sentences else None
        texts = {"answer": stated(p.answer) if itself else None, "solution": p.solution}
        texts["number"] = stated(number) if number else None
        futures = {of: verifier.submit(text, p) for of, text in texts.items() if text is not None}
        asked.append((p, number, futures))
    return [_reason(verifier, *of_problem) for of_problem in asked]


def _reason(verifier: Verifier, p: Problem, number: str | None, asked: Mapping[str, Future[Verdict]]) -> BadRow | None:
    def refused(of: str) -> bool:
        return of in asked and asked[of].result() in REFUSED

    begins, most = repr(p.answer[:80]), verifier.conf.max_answer_chars
    if reason := verifier.judge.refuses(p):
        return BadRow(reason, begins)
    if "answer" in asked and len(p.answer) > most:
        return BadRow(f"the answer is longer than verifier.max_answer_chars={most}; set that higher", begins)
    if refused("answer"):
        stated = verifier.extraction.stated(p.answer)
        if verifier.extraction.of(stated) is None:
            return BadRow("verifier.extract finds no answer where prompts.final states it", repr(stated[:80]))
        return BadRow("the verifier cannot read the answer", begins)
    if refused("number"):
        return BadRow(SENTENCE, f"{number} is not judged equal to {begins}")
    if refused("solution"):
        other = verifier.extraction.of(p.solution or "")
        return BadRow("the solution has another answer", f"{other!r} is not {begins}")
    return None


def lacks_number(p: Problem) -> bool:
    """Return whether the answer is a number, and the solution has numbers, but not this one."""
    text = (p.solution or "").replace("−", "-")
    text += " " + re.sub(r"(?<=\d)\s(?=\d{3}\b)", "", text)  # 1 200
    found = [float(m[0].replace(",", "")) for m in re.finditer(rf"{NUMBER}|(?<!\d)-?\.\d+", text)]
    found += [float(a) / float(b) for a, b in re.findall(r"(-?\d+)\s*/\s*(\d*[1-9]\d*)", text)]
    return bool(found and re.fullmatch(NUMBER, p.answer.strip())) and float(p.answer.replace(",", "")) not in found


# Kinds of which a number in words is a part, and no sentence.
_WITH_WORDS = ("date", "time", "number", "quantity", "percentage", "money", "json", "option")


def number_in_sentence(p: Problem) -> str | None:
    r"""Return the last number of an answer that is plain words around numbers: at least two words, or a mark that
    announces the answer (`answer: 72`, `#### 72`); None for any other, as one with LaTeX: "6 \text{ PM}", a matrix."""
    plain = re.sub(r"\\[$%]", "", p.answer)
    if "\\" in plain or p.kind not in ("auto", "words") or kind_for(p.answer, p.kind).name in _WITH_WORDS:
        return None
    numbers = re.findall(NUMBER, plain)
    words = re.findall(r"[^\W\d_]{2,}", plain)
    announced = re.match(r"\s*[^\W\d_]{2,}\s*:", plain) or "####" in plain
    return numbers[-1].rstrip(",") if numbers and (len(words) >= 2 or announced) else None

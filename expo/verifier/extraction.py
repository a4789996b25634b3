"""Extract the final answer of a completion: `verifier.extract`. Imports no torch."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

LONGEST_TEXT = 200_000
_NUMBER = (
    r"(?<![\w.])[-+−–]?(?:\d+ \d+/\d+|(?:\d{1,3}(?:[, ]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?"
)


@dataclass(frozen=True)
class Extraction:
    """How a final answer is extracted from a text, and how a text states one so that it can be extracted."""

    find: Callable[[str], str | None]
    state: str  # with {answer}

    def of(self, text: str) -> str | None:
        """Return the final answer of a text; None for none. Of more than LONGEST_TEXT characters the end is read."""
        answer = self.find(text[-LONGEST_TEXT:])
        return None if answer is None else answer.strip()

    def stated(self, answer: str) -> str:
        return self.state.replace("{answer}", answer)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last closed `\boxed{}`, `\fbox{}` or `\boxed5`, with nested braces; None for none."""
    text = text[-LONGEST_TEXT:]
    span: tuple[int, int] | None = None
    stack: list[tuple[int, bool]] = []  # (start of the content, whether it is a box)
    for token in re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|(-?\d(?:[\d.,/]*\d)?))|\\.|[{}]", text, re.DOTALL):
        if token[1] is not None:
            span = token.span(1)
        elif token[0] == "}" and stack:
            start, box = stack.pop()
            if box and (span is None or start > span[0]):
                span = (start, token.start())
        elif token[0].endswith("{") and token[0] != r"\{":
            stack.append((token.end(), token[0] != "{"))
    return text[slice(*span)].strip() if span else None


def _last(pattern: str) -> Callable[[str], str | None]:
    """Return the function that finds the last match of a pattern, or in it the first of its groups that matched."""
    compiled = re.compile(pattern, re.DOTALL)

    def find(text: str) -> str | None:
        matches = list(compiled.finditer(text))
        if not matches or not compiled.groups:
            return matches[-1][0] if matches else None
        return next(filter(None, matches[-1].groups()), "")

    return find


def _after(mark: str) -> Extraction:
    def find(text: str) -> str | None:
        _, mark_found, rest = text.rpartition(mark)
        line = rest.lstrip("* \t").lstrip("\n").partition("\n")[0].strip()
        return line.removeprefix("**").removesuffix("**") if mark_found else None

    return Extraction(find, f"{mark} {{answer}}")


def _tag(name: str) -> Extraction:
    return Extraction(
        _last(rf"<{re.escape(name)}>((?:(?!<{re.escape(name)}>).)*?)</{re.escape(name)}>"),
        f"<{name}>{{answer}}</{name}>",
    )


# By name, those that take no argument; then those that take one, after a colon.
ALONE = {
    "boxed": Extraction(last_boxed, r"\boxed{{answer}}"),
    "last_number": Extraction(_last(_NUMBER), "{answer}"),
    "whole": Extraction(lambda text: text, "{answer}"),
}
WITH_ARGUMENT: dict[str, Callable[[str], Extraction]] = {
    "after": _after,
    "tag": _tag,
    "regex": lambda pattern: Extraction(_last(pattern), ""),
}


def extraction(how: str, final: str = "{answer}") -> Extraction:
    """Return the Extraction that a value of `verifier.extract` names. Raises ValueError for an unknown one, re.error
    for a wrong pattern. Args: final, a template with {answer} (`prompts.final`) where `how` does not say how one is
    stated."""
    name, colon, argument = how.partition(":")
    argument = re.sub(r"^(['\"])(.*)\1$", r"\2", argument)
    if not colon and name in ALONE:
        return ALONE[name]
    if argument and name in WITH_ARGUMENT:
        found = WITH_ARGUMENT[name](argument)
        return found if found.state else replace(found, state=final)
    raise ValueError(f"is none of {', '.join([*ALONE, *(f'{name}:…' for name in WITH_ARGUMENT)])}")

"""Values in a row of a table: by the path of a column, as text, as an answer, as a level, as chat messages."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from expo.data.checks import BadRow

NOTHING = ("", "none", "null", "nan", "n/a")  # what tables write where there is nothing
MOST_DIGITS = 2**53  # from here on, a float is no longer the integer that it was
_NEEDED = object()


def value_at(row: Mapping[str, Any], column: str, default: Any = _NEEDED) -> Any:
    """Return the value in a column or at a path (`a.b`); "" is no row's. Raises KeyError without a default."""
    if column and column in row:
        return row[column]
    value: Any = row if column else None
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            if default is _NEEDED:
                raise KeyError(column)
            return default
        value = value[name]
    return value


def text(value: Any, name: str) -> str:
    """Return a value that is text. Raises BadRow for any other, such as `{"text": …}`."""
    if not isinstance(value, str):
        raise BadRow(f"the {name} is no text", repr(value)[:80])
    return value


def answer_text(value: Any) -> str:
    """Return an answer as text. Raises BadRow for what is no text and no number, and a number that has lost digits."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise BadRow("the answer is neither text nor a number; write it as text, as json.dumps does", repr(value)[:80])
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("the answer is not a finite number", repr(value))
    if isinstance(value, float) and abs(value) >= MOST_DIGITS:
        raise BadRow(
            "the answer has lost digits: a column of large integers became floats; write them as text", repr(value)
        )
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def level_of(value: Any) -> int | str | None:
    """Return a level: the number of 5, 5.0, "5", "Level 5" and "L5", the words of any other value; None without one.
    `same_words` looks at a whole column."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip().lower() in NOTHING:
        return None
    number = re.fullmatch(r"(?:(?:level|lvl|grade|l)[\s_:-]*)?(\d+)(?:\.0)?", str(value).strip(), re.IGNORECASE)
    return int(number[1]) if number else str(value).strip().replace("/", "-")


def same_words(levels: Sequence[int | str | None]) -> Sequence[int | str | None]:
    """Return the levels of a column: the numbers where the words before them are all the same, as in `tier 1` and
    `tier 2`; words where one of them is (`hard`, `4.5`, A1 beside B1)."""
    pattern = re.compile(r"(\D*[^\W\d_])[\s_:.-]*(\d+)")
    worded = [pattern.fullmatch(level) if isinstance(level, str) else None for level in levels]
    whole = all(match or level is None for match, level in zip(worded, levels, strict=True))
    if whole and len({match[1].lower() for match in worded if match}) == 1:
        return [int(match[2]) if match else None for match in worded]
    return [None if level is None else str(level) for level in levels]


def turns(value: Sequence[Any]) -> list[tuple[str, str]]:
    """Return (role, content) of chat messages. Raises BadRow for a list of anything else, or other content."""
    pairs = []
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise BadRow("a list that is no chat messages", repr(value)[:80])
        content = message["content"]
        if isinstance(content, list | tuple):  # in parts
            parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
            content = "".join(text(part, "content of a message") for part in parts)
        pairs.append((text(message["role"], "role of a message"), text(content, "content of a message")))
    return pairs


def messages(value: Sequence[Any]) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the messages before the user's last one, and that. Raises BadRow where the last is another's."""
    chat = turns(value)
    if not chat or chat[-1][0] != "user":
        raise BadRow("the last message is not the user's", repr(value)[-80:])
    return tuple(chat[:-1]), chat[-1][1]

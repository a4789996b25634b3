"""The one record that everything else is about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Steps:
    share: float  # of the steps that are right
    sound: bool  # every step is right, and the answer follows


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer.

    `question` is what the user says last, `earlier` the (role, content) of the messages before it, a system message
    among them. `solution` is the expert's worked solution as the policy would be trained on it; it is None where a data
    set has none. `level` is None for data sets without difficulty levels. `kind` is how answers are compared with this
    one, a key of `expo.verifier.kinds.KINDS`; "auto": as the answer itself says. `columns` are the row's own, for a
    reward or a judge of one's own. `oracle(question, completion)` checks steps exactly, where a data set can.
    """

    id: str
    question: str
    answer: str
    solution: str | None = None
    level: int | str | None = None
    subject: str | None = None
    kind: str = "auto"
    earlier: tuple[tuple[str, str], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    oracle: Callable[[str, str], Steps] | None = field(default=None, compare=False, repr=False)

    @property
    def asked(self) -> str:
        """Return the question with single spaces: two rows with the same text ask the same."""
        return " ".join(" ".join([*(content for _, content in self.earlier), self.question]).split())

"""The one record that everything else is about."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer.

    `solution` is the expert's worked solution as the policy would be trained on it; it is None where a data set
    has none. `level` is None for data sets without difficulty levels.
    """

    id: str
    question: str
    answer: str
    solution: str | None = None
    level: int | None = None
    subject: str | None = None

    @property
    def asked(self) -> str:
        """Return the question without what white space makes of it: by it, two rows ask the same."""
        return " ".join(self.question.split())

"""Solve and explain prompts: chat messages through the model's own chat template. The only module that knows templates."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expo.data.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompts:
    """The two prompts of the method, as templates over `{question}` and (explain only) `{answer}`.

    Placeholders are replaced literally, so that LaTeX braces in templates and problems need no escaping.
    """

    solve: str
    explain: str
    system: str | None = None

    def solve_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of `q` for each problem, ending where the completion begins."""
        return self._ids(tokenizer, [_fill(self.solve, question=p.question) for p in problems])

    def explain_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of `(q, a*)` for each problem: the prompt under which the policy explains the known answer."""
        return self._ids(tokenizer, [_fill(self.explain, question=p.question, answer=p.answer) for p in problems])

    def _ids(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        if not texts:
            return []
        chats = [[*system, {"role": "user", "content": text}] for text in texts]
        ids: Any = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=False)
        return ids


def _fill(template: str, **values: str) -> str:
    """Replace every `{name}` in one pass, so that a question that happens to contain "{answer}" is not filled in."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in values), lambda match: values[match[0][1:-1]], template)

"""Solve and explain prompts: chat messages through the model's own chat template. The only module that knows templates."""

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
        return self._ids(tokenizer, [self.solve.replace("{question}", p.question) for p in problems])

    def explain_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of `(q, a*)` for each problem: the prompt under which the policy explains the known answer."""
        # The template is split first: a question that happens to contain "{answer}" must not be filled in.
        before, marker, after = self.explain.partition("{answer}")
        texts = [
            before.replace("{question}", p.question)
            + (p.answer if marker else "")
            + after.replace("{question}", p.question)
            for p in problems
        ]
        return self._ids(tokenizer, texts)

    def _ids(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        if not texts:
            return []
        chats = [[*system, {"role": "user", "content": text}] for text in texts]
        ids: Any = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=False)
        return ids

"""Solve and explain prompts: chat messages through the model's own chat template. The only module that knows templates."""

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from types import FrameType
from typing import TYPE_CHECKING, Any

from expo.config import PromptsConf, UserError
from expo.config.errors import first_line
from expo.data.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompts:
    """The prompts of the method, as templates over `{question}`, `{answer}` and others; see `expo.config.PromptsConf`.

    Placeholders are replaced literally, so that LaTeX braces in templates and problems need no escaping.
    """

    def __init__(self, conf: PromptsConf):
        self.conf = conf

    def solve_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return token ids of `q` for each problem, ending where the completion begins."""
        return self._ids(tokenizer, [_fill(self.conf.solve, question=p.question) for p in problems])

    def explain_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return token ids of `(q, a*)` for each problem: the prompt under which the policy explains the known answer."""
        return self._ids(tokenizer, [_fill(self.conf.explain, question=p.question, answer=p.answer) for p in problems])

    def privileged_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return the prompts of a teacher that is shown each problem's solution; where it has none, or there is no template, its answer."""
        with_solution = self.conf.with_solution
        texts = [
            _fill(
                self.conf.explain if p.solution is None or with_solution is None else with_solution,
                question=p.question,
                answer=p.answer,
                solution=p.solution or "",
            )
            for p in problems
        ]
        return self._ids(tokenizer, texts)

    @property
    def solve_with_hint(self) -> str | None:
        """Return the template that shows a hint; None where a hint begins the completion."""
        return self.conf.solve_with_hint

    def hint_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return token ids of the prompt that shows the answer and asks for a hint; without one, for an explanation."""
        template = self.conf.hint or self.conf.explain
        return self._ids(tokenizer, [_fill(template, question=p.question, answer=p.answer) for p in problems])

    def solve_with_hint_ids(self, tokenizer: "PreTrainedTokenizerBase", problem: Problem, hint: str) -> list[int]:
        """Return token ids of q with a hint."""
        assert self.conf.solve_with_hint is not None
        return self._ids(tokenizer, [_fill(self.conf.solve_with_hint, question=problem.question, hint=hint)])[0]

    def hint_from_solution_ids(
        self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]
    ) -> list[list[int]]:
        """Return token ids of the prompt that shows the expert's solution and asks for a hint."""
        assert self.conf.hint_from_solution is not None
        template = self.conf.hint_from_solution
        texts = [_fill(template, question=p.question, answer=p.answer, solution=p.solution or "") for p in problems]
        return self._ids(tokenizer, texts)

    def abstract_ids(
        self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem], explanations: Sequence[str]
    ) -> list[list[int]]:
        """Return token ids of the prompt that shows an explanation and asks for a hint."""
        assert self.conf.abstract is not None
        template = self.conf.abstract
        texts = [
            _fill(template, question=p.question, answer=p.answer, explanation=e)
            for p, e in zip(problems, explanations, strict=True)
        ]
        return self._ids(tokenizer, texts)

    def go_on_ids(self, tokenizer: "PreTrainedTokenizerBase", problem: Problem, beginning: str) -> list[int]:
        """Return token ids of q with the beginning of a solution, and the request to go on."""
        assert self.conf.go_on is not None
        return self._ids(tokenizer, [_fill(self.conf.go_on, question=problem.question, beginning=beginning)])[0]

    def paraphrase_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return token ids of the prompt that shows the expert's solution and asks for it in the policy's own words."""
        assert self.conf.paraphrase is not None
        texts = [
            _fill(self.conf.paraphrase, question=p.question, answer=p.answer, solution=p.solution or "")
            for p in problems
        ]
        return self._ids(tokenizer, texts)

    def judge_text(self, problem: Problem, completion: str) -> str:
        """Return what a judge of steps is asked."""
        assert self.conf.judge is not None
        return _fill(self.conf.judge, question=problem.question, answer=problem.answer, completion=completion)

    def answer_ids(self, tokenizer: "PreTrainedTokenizerBase", answer: str, before: str = "") -> list[int]:
        """Return the token ids of a completion's final statement of `answer`. Args: before, text that its tokens join to it."""
        return text_ids(tokenizer, before + _fill(self.conf.final, answer=answer))

    @property
    def final_marker(self) -> str:
        """Return what stands before the answer in a completion's final statement."""
        return self.conf.final.partition("{answer}")[0]

    def check(self, tokenizer: "PreTrainedTokenizerBase", path: str) -> None:
        """Raise UserError where the chat template of the model at `path` does not show a message, once, in a prompt."""
        try:
            with _time_limit(TEMPLATE_S):
                rendered = self._rendered(tokenizer, PLACE)
        except Exception as error:  # a template is a program: it may raise anything
            raise UserError(
                f"model.path={path}: its chat template fails ({type(error).__name__}: {first_line(error)}); "
                "correct it, or set prompts.system as it wants it"
            ) from error
        if (times := rendered.count(PLACE)) != 1:
            raise UserError(
                f"model.path={path}: its chat template shows a message {times} times; choose a model with another template"
            )

    def _ids(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": False} | self._date()
        made: Any = tokenizer.apply_chat_template([self._chat(text) for text in texts], **options)
        ids: list[list[int]] = made
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        for i, text in enumerate(texts):
            if any(token in text for token in special):
                ids[i] = self._as_text(tokenizer, text)
        return ids

    def _rendered(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
        rendered: Any = tokenizer.apply_chat_template(
            self._chat(text), add_generation_prompt=True, tokenize=False, **self._date()
        )
        whole: str = rendered
        return whole

    def _date(self) -> dict[str, Any]:
        """Return what stands, for a template, in the place of today: by the names that templates ask for it."""
        day = date.fromisoformat(self.conf.date)
        return {"strftime_now": day.strftime, "date_string": day.strftime("%d %b %Y")}

    def _chat(self, text: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.conf.system}] if self.conf.system else []
        return [*system, {"role": "user", "content": text}]

    def _as_text(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
        """Return a prompt's ids in which a special token that stands in the text, such as `<|im_end|>`, is text and ends nothing."""
        before, after = self._rendered(tokenizer, PLACE).split(PLACE)
        of_template = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
        return [*of_template[0], *text_ids(tokenizer, text), *of_template[1]]


def text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of what is data: a special token that stands in it is text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what runs longer. Python can break into the main thread only: in another one, nothing is limited."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it takes over {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


TEMPLATE_S = 10.0  # seconds that a chat template has for one message
PLACE = "\ue000"  # of a private use area: no template and no tokenizer knows it


def _fill(template: str, **values: str) -> str:
    """Replace every `{name}` in one pass, so that a question that happens to contain "{answer}" is not filled in."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in values), lambda match: values[match[0][1:-1]], template)

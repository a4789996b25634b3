"""Solve and explain prompts: chat messages through the model's own chat template. The only module that knows
templates."""

import logging
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date
from types import FrameType
from typing import TYPE_CHECKING, Any

from expo.config import PromptsConf, UserError
from expo.config.errors import first_line
from expo.config.prompts import SHOWS
from expo.ground.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = logging.getLogger(__name__)


class Prompts:
    """The prompts of the method, as templates; see `expo.config.PromptsConf`. Placeholders are replaced literally:
    LaTeX braces in templates and problems need no escaping."""

    def __init__(self, conf: PromptsConf):
        self.conf = conf
        self.examples: Sequence[Problem] = ()  # of the training part: see `prompts.examples`

    def solve_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return token ids of `q` for each problem, ending where the completion begins."""
        texts = [self._text("solve", p) for p in problems]
        return self._ids(tokenizer, texts, self._with_examples(self.conf.solve, problems))

    def explain_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return token ids of `(q, a*)` for each problem: under this prompt the policy explains the known answer."""
        texts = [self._text("explain", p) for p in problems]
        return self._ids(tokenizer, texts, self._with_examples(self.conf.explain, problems))

    def privileged_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return the prompts of a teacher that is shown each problem's solution, or without one, or a template, its
        answer; after the worked examples of `solve_ids`, so that it sees what the student does, and more."""
        bare = self.conf.with_solution is None
        names = ["explain" if bare or p.solution is None else "with_solution" for p in problems]
        texts = [self._text(name, p, solution=p.solution or "") for name, p in zip(names, problems, strict=True)]
        return self._ids(tokenizer, texts, self._with_examples(self.conf.solve, problems))

    def hint_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        """Return token ids of the prompt that shows the answer and asks for a hint; without one, for an explanation."""
        name = "hint" if self.conf.hint else "explain"
        return self._ids(tokenizer, [self._text(name, p) for p in problems], problems)

    def solve_with_hint_ids(self, tokenizer: "PreTrainedTokenizerBase", problem: Problem, hint: str) -> list[int]:
        text = self._text("solve_with_hint", problem, hint=hint)
        return self._ids(tokenizer, [text], self._with_examples(self.conf.solve, [problem]))[0]

    def hint_from_solution_ids(
        self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]
    ) -> list[list[int]]:
        return self._ids(tokenizer, [self._text("hint_from_solution", p) for p in problems], problems)

    def abstract_ids(
        self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem], explanations: Sequence[str]
    ) -> list[list[int]]:
        """Return token ids of the prompt that shows an explanation and asks for a hint."""
        texts = [self._text("abstract", p, explanation=e) for p, e in zip(problems, explanations, strict=True)]
        return self._ids(tokenizer, texts, problems)

    def go_on_ids(self, tokenizer: "PreTrainedTokenizerBase", problem: Problem, beginning: str) -> list[int]:
        """Return token ids of q after the worked examples of `solve_ids`, with a beginning to go on from."""
        text = self._text("go_on", problem, beginning=beginning)
        return self._ids(tokenizer, [text], self._with_examples(self.conf.solve, [problem]))[0]

    def paraphrase_ids(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem]) -> list[list[int]]:
        return self._ids(tokenizer, [self._text("paraphrase", p) for p in problems], problems)

    def judge_text(self, problem: Problem, completion: str) -> str:
        return self._text("judge", problem, completion=completion)

    def _text(self, name: str, problem: Problem, **given: str) -> str:
        """Return a template of the config filled in. Args: given, what it shows beside the problem."""
        of_problem = {n: getattr(problem, n) or "" for n in SHOWS[name].split() if n not in given}
        return _fill(getattr(self.conf, name), **of_problem, **given)

    def answer_ids(self, tokenizer: "PreTrainedTokenizerBase", answer: str, before: str = "") -> list[int]:
        """Return the token ids of a final statement of `answer`. Args: before, text that its tokens join to it."""
        return text_ids(tokenizer, before + _fill(self.conf.final, answer=answer))

    @property
    def final_marker(self) -> str:
        """Return the text before the answer in a completion's final statement, without the space between them."""
        return self.conf.final.partition("{answer}")[0].rstrip()

    def check(self, tokenizer: "PreTrainedTokenizerBase", path: str) -> None:
        """Raise UserError where the model's chat template does not show a message just once, or lacks an option."""
        for option in self.conf.template_options:
            if option not in str(tokenizer.chat_template):
                raise UserError(
                    f"prompts.template_options.{option}: the chat template of {path} has no such option; correct its "
                    "name, or leave it out"
                )
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
                f"model.path={path}: its chat template shows a message {times} times; choose a model with another "
                "template"
            )
        if not self.conf.template_system:
            self.template_system(tokenizer)
        elif self.conf.system is None:
            with suppress(UserError, TimeoutError), _time_limit(TEMPLATE_S):
                self._warn_of_system(self.template_system(tokenizer), path)

    def _warn_of_system(self, system: str, path: str) -> None:
        if system and system not in TOLD:
            TOLD.add(system)
            message = f"{path}: its chat template writes a system message of its own ({' '.join(system.split())})"
            log.warning("%s; prompts.template_system=false leaves it out", message)

    def solution_ids(self, tokenizer: "PreTrainedTokenizerBase", solution: str) -> list[int]:
        """Return the token ids of an expert's solution as a whole turn of the assistant's: after the thoughts, where
        the chat template opens some, or the space that it leaves, and with the token that ends a turn."""
        opened = self._rendered(tokenizer, PLACE).rstrip().endswith(THOUGHTS[0])
        before = tokenizer(f"\n{THOUGHTS[1]}\n\n", add_special_tokens=False)["input_ids"] if opened else []
        return [*before, *self.beginning_ids(tokenizer, solution), turn_end(tokenizer)]

    def beginning_ids(self, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
        """Return the token ids of the assistant's first words, after the space that the chat template leaves."""
        return text_ids(tokenizer, self._space_before(tokenizer) + text)

    def _space_before(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the white space that the chat template writes between the end of a prompt and the assistant's words,
        as in `Assistant: …`; "" where the tokens of the bare words bring it along."""
        chat, told = self._chat(PLACE), {"role": "assistant", "content": PLACE}
        try:
            whole = self._render(tokenizer, [*chat, told], add_generation_prompt=False).rpartition(PLACE)[0] + PLACE
        except Exception:  # a template may take no assistant's turn: `turn_end` warns of it
            return ""
        prompt = self._render(tokenizer, chat)
        space = whole.removeprefix(prompt).removesuffix(PLACE)
        in_one, asked, bare = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (whole, prompt, PLACE))
        return space if whole.startswith(prompt) and space.isspace() and in_one != asked + bare else ""

    def _with_examples(self, template: str, problems: Sequence[Problem]) -> Sequence[Problem]:
        """Return each problem behind the worked examples of `prompts.examples`, but for one that asks the same."""
        if not self.conf.examples:
            return problems
        shown = []
        for problem in problems:
            others = [e for e in self.examples if e.asked != problem.asked][: self.conf.examples]
            turns = [
                turn
                for e in others
                for turn in (
                    ("user", _fill(template, question=e.question, answer=e.answer)),
                    ("assistant", e.solution or _fill(self.conf.final, answer=e.answer)),
                )
            ]
            first = [turn for turn in problem.earlier if turn[0] == "system"]
            rest = [turn for turn in problem.earlier if turn[0] != "system"]
            shown.append(replace(problem, earlier=(*first, *turns, *rest)))
        return shown

    def _ids(
        self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], problems: Sequence[Problem]
    ) -> list[list[int]]:
        """Return token ids of the prompts that end in the user's `texts`, after each problem's earlier messages."""
        if not texts:
            return []
        rendered = [self._rendered(tokenizer, text, p.earlier) for text, p in zip(texts, problems, strict=True)]
        ids: list[list[int]] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        for i, (text, problem) in enumerate(zip(texts, problems, strict=True)):
            given = [*(content for _, content in problem.earlier), text]
            if any(token in content for token in special for content in given):
                ids[i] = self._as_text(tokenizer, given, problem)
        return ids

    def _rendered(
        self, tokenizer: "PreTrainedTokenizerBase", text: str, earlier: Sequence[tuple[str, str]] = ()
    ) -> str:
        chat = self._chat(text, earlier)
        rendered = self._render(tokenizer, chat)
        if not self.conf.template_system and not any(turn["role"] == "system" for turn in chat):
            system = self.template_system(tokenizer)
            if system not in rendered:
                raise UserError(
                    "prompts.template_system=false: the chat template writes another system message before these "
                    "messages; leave it true, or set prompts.system"
                )
            rendered = rendered.replace(system, "", 1)
        return rendered

    def _render(self, tokenizer: "PreTrainedTokenizerBase", chat: Sequence[dict[str, str]], **more: Any) -> str:
        rendered: Any = tokenizer.apply_chat_template(list(chat), tokenize=False, **self._options() | more)
        text: str = rendered
        return text

    def template_system(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return the system turn that the chat template writes where it is given none; "" where it writes none. A
        system message of ours shows where it begins and ends. Raises UserError where what is left does not open the
        first user's turn as a later one is opened, but for special tokens."""
        user, system = ({"role": role, "content": PLACE} for role in ("user", "system"))
        try:
            before = self._render(tokenizer, [user]).split(PLACE)[0]
            later = self._render(tokenizer, [user, {"role": "assistant", "content": PLACE}, user]).split(PLACE)[2]
        except Exception as error:  # a template is a program: it may raise anything
            raise UserError(
                f"prompts.template_system=false: the chat template renders no second turn ({type(error).__name__}: "
                f"{first_line(error)}), which shows where its own system message ends; leave it true, or set "
                "prompts.system"
            ) from error
        turn = ""
        with suppress(Exception):  # a template may take no system message, and none alone
            start, between, _ = self._render(tokenizer, [system, user]).split(PLACE)
            opening = between.removeprefix(
                self._render(tokenizer, [system], add_generation_prompt=False).split(PLACE)[1]
            )
            head = start.partition("system".join(opening.rsplit("user", 1)))[0]
            if before.startswith(start) and before.endswith(between):
                turn = before.removeprefix(head).removesuffix(opening)
        special = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        words = [
            re.sub("|".join(map(re.escape, special)) + r"|\s", "", t) for t in (before.replace(turn, "", 1), later)
        ]
        if words[0] != words[1]:
            raise UserError(
                "prompts.template_system=false: what the chat template writes before a first message cannot be told "
                "apart from how it opens a turn; leave it true, or set prompts.system"
            )
        return turn

    def _options(self) -> dict[str, Any]:
        """Return the variables of the chat template beside the messages: the date, under the names by which templates
        ask for it, and the options that the config names."""
        day = date.fromisoformat(self.conf.date)
        today = {"strftime_now": day.strftime, "date_string": day.strftime("%d %b %Y")}
        return {"add_generation_prompt": True, **today, **self.conf.template_options}

    def _chat(self, text: str, earlier: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
        has_system = any(role == "system" for role, _ in earlier)  # a row's own system message counts
        system = [("system", self.conf.system)] if self.conf.system is not None and not has_system else []
        return [{"role": role, "content": content} for role, content in [*system, *earlier, ("user", text)]]

    def _as_text(self, tokenizer: "PreTrainedTokenizerBase", given: Sequence[str], problem: Problem) -> list[int]:
        """Return a prompt's ids in which a special token in a message, such as `<|im_end|>`, is text."""
        places = [chr(ord(PLACE) + i) for i in range(len(given))]
        earlier = [(role, place) for (role, _), place in zip(problem.earlier, places, strict=False)]
        parts = re.split("|".join(places), self._rendered(tokenizer, places[-1], earlier))
        ids = list(tokenizer(parts[0], add_special_tokens=False)["input_ids"])
        for content, after in zip(given, parts[1:], strict=True):
            ids += text_ids(tokenizer, content) + tokenizer(after, add_special_tokens=False)["input_ids"]
        return ids


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the token that ends an assistant's turn in the chat template; where it ends one with no token of
    its own, the end-of-sequence token. Rollouts stop there, and what the policy is trained on ends there."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACE}]
    try:
        with _time_limit(TEMPLATE_S):
            rendered: Any = tokenizer.apply_chat_template(chat, tokenize=False)
        after = str(rendered).rpartition(PLACE)[2].strip()
        first = tokenizer(after, add_special_tokens=False)["input_ids"][:1] if PLACE in rendered else []
    except Exception as error:  # a template is a program: it may raise anything
        problem = f"the chat template renders no turn of the assistant's ({type(error).__name__}: {first_line(error)})"
        if problem not in TOLD:
            TOLD.add(problem)
            log.warning("%s: completions end at the end-of-sequence token alone; see model.chat_template", problem)
        first = []
    ends = [i for i in first if i in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}]
    end: int = [*ends, tokenizer.eos_token_id][0]
    return end


def text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Return the token ids of data: a special token inside the text is encoded as text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the context's code after a while; in the main thread alone can Python do so."""
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


TOLD: set[str] = set()  # of templates that fail: once is enough
TEMPLATE_S = 10.0  # seconds that a chat template has for one message
THOUGHTS = ("<think>", "</think>")
PLACE = "\ue000"  # of a private use area: no template and no tokenizer knows it


def _fill(template: str, **values: str) -> str:
    """Replace every `{name}` in one pass, so that a question that happens to contain "{answer}" is not filled in."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in values), lambda match: values[match[0][1:-1]], template)

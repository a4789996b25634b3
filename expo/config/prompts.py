"""Keys of `prompts=`: templates, the system message, examples."""

import re
from dataclasses import fields
from datetime import date
from typing import Any

from omegaconf import MISSING

from expo.config.key import Config, Rules, key, option

WITH_SOLUTION = """\
{question}

A correct solution of it:
{solution}

You have read and understood this solution. Now derive the same answer in your own words, step by step, and put your final \
answer within \\boxed{}."""  # noqa: E501
GO_ON = """\
{question}

Here is the beginning of a correct solution:
{beginning}

Go on from where it ends, without writing it again, reason step by step, and put your final answer within \\boxed{}."""
HINT_FROM_SOLUTION = """\
{question}

A correct solution of it:
{solution}

Write one short hint for a student who cannot solve this: the idea that the solution turns on. Do not state the answer or any \
intermediate result."""  # noqa: E501
ABSTRACT = """\
{question}

An explanation of its answer:
{explanation}

Write one short, abstract hint for a student who cannot solve this: the idea or the fact that the explanation turns on. Do not \
state the answer or any intermediate result."""  # noqa: E501


@option("prompts", "prompts", formerly="expo.prompts.Prompts", alone=False)
class PromptsConf:
    """Templates over {question} and others. Placeholders are replaced literally: LaTeX braces need no escaping."""

    _target_: str = "expo.model.prompts.Prompts"
    solve: str = key(MISSING, help="asks for a solution of {question}")
    explain: str = key(MISSING, help="shows {answer} and asks for an explanation of it")
    system: str | None = key(None)
    """system message; null: none but the one that the chat template may write (prompts.template_system), "": an empty
    one. A row's own counts first"""
    template_system: bool = key(True, absent=True)
    """keep the system message that some chat templates (Qwen2.5, SmolLM2) write where they are given none; false: no
    system message at all"""
    examples: int = key(0, low=0, high=64, absent=0)
    """worked examples before each question that the policy is to solve or explain, as earlier turns; the same ones of
    the training part in every run on it, never the question itself"""
    template_options: dict[str, Any] = key(dict, absent={})
    """options of the chat template, such as {enable_thinking: false}"""
    date: str = key("2024-07-26", absent="2024-07-26")
    """the day, as YYYY-MM-DD, that a chat template is told which prints today's date: a prompt has to be the same
    tomorrow"""
    final: str = key("\\boxed{{answer}}")
    """how a completion states its final answer; its likelihood is the answer lift"""
    hint: str | None = key(None)
    """asks for a hint to {answer}; null: a hint is the beginning of an explanation, and begins the completion"""
    solve_with_hint: str | None = key(None, help="asks for a solution and shows {hint}")
    # Only the ladder may leave these four out: see the rules between groups.
    with_solution: str | None = key(WITH_SOLUTION, absent=(None, WITH_SOLUTION))
    """shows {solution} to a teacher that scores; null: the ladder's, whose teacher sees the answer instead
    (prompts.explain)"""
    go_on: str | None = key(GO_ON, absent=(None, GO_ON))
    """shows the {beginning} of a solution and asks to go on from it (hints.instructed)"""
    hint_from_solution: str | None = key(HINT_FROM_SOLUTION, absent=(None, HINT_FROM_SOLUTION))
    """shows {solution} and asks for a hint (hints.sees=solution); null: the ladder's"""
    abstract: str | None = key(ABSTRACT, absent=(None, ABSTRACT))
    """shows an {explanation} and asks for a hint (hints.stages=2); null: the ladder's"""
    paraphrase: str | None = key(None, help="asks for {solution} in the policy's own words")
    judge: str | None = key(None, identity=False, help="asks a judge whether each step of {completion} is right")

    @property
    def final_is_unmarked(self) -> bool:
        """Return whether nothing stands before the answer in a final statement, which then begins anywhere."""
        return not self.final.partition("{answer}")[0].strip()

    def rules(self, cfg: Config) -> Rules:
        if "{question}" not in self.solve:
            yield "prompts.solve: has no {question}; put {question} where the question goes"
        if "{question}" not in self.explain or "{answer}" not in self.explain:
            yield "prompts.explain: needs both {question} and {answer}; put them where question and answer go"
        if not self.template_system and self.system is not None:
            why = f"without effect beside prompts.system={self.system!r}, in whose place no template writes its own"
            yield f"prompts.template_system=false: {why}; leave it out, or set prompts.system=null"
        try:
            date.fromisoformat(self.date)
        except ValueError:
            yield f"prompts.date={self.date}: is no day; write it as YYYY-MM-DD, such as prompts.date=2024-07-26"
        if "{answer}" not in self.final:
            yield f"prompts.final={self.final}: has no {{answer}}; put {{answer}} where the answer goes"

    def doubts(self, cfg: Config) -> Rules:
        for name, shows in SHOWS.items():
            for other in dict.fromkeys(PLACEHOLDER.findall(getattr(self, name) or "")):
                if other not in shows.split():
                    filled = ", ".join(f"{{{shown}}}" for shown in shows.split())
                    remedy = f"only {filled} is filled in, and another column has to be written into the question"
                    yield f"prompts.{name}: the model reads {{{other}}} as it stands; {remedy}"
        for f in fields(self):
            if LINE_END.search(str(getattr(self, f.name))) is not None:
                has = "has a backslash and an n where a line may be meant to end, and the model reads them as they are"
                yield rf"prompts.{f.name}: {has}; a shell makes the end of a line of $'\n'"


# What is filled in.
SHOWS = {
    "solve": "question",
    "explain": "question answer",
    "final": "answer",
    "hint": "question answer",
    "solve_with_hint": "question hint",
    "with_solution": "question answer solution",
    "go_on": "question beginning",
    "hint_from_solution": "question answer solution",
    "abstract": "question answer explanation",
    "paraphrase": "question answer solution",
    "judge": "question answer completion",
}
PLACEHOLDER = re.compile(r"(?<![\w\\}]){([a-zA-Z_]\w+)}")  # and no argument of a LaTeX command
# As it is typed, and no LaTeX command.
LINE_END = re.compile(
    r"\\n(?!(?:abla|atural|e|earrow|eg|eq|ewline|exists|geq|i|leq|less|mid|onumber|ot|otin|parallel|prec|sim|"
    r"subseteq|succ|supseteq|u|warrow)(?![a-z]))"
)

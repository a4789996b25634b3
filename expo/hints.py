"""Hints for all-wrong groups: their rollouts are made again under a prompt that holds a hint, and trained on under it.

At test time there is no hint. `SelfHint` is NuRL (arXiv 2509.25666), `ExpertPrefix` is POPE (2601.18779).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from expo.data.problem import Problem
from expo.experience import Experience, Tools
from expo.positives.filters import states
from expo.randomness import HINT, SHARE, Key
from expo.rollout.engine import Completion, Request
from expo.schema_learning import Explainer


class NoHints:
    """Rollouts are never made again."""

    writer: Explainer | None = None
    keep = 0

    def wanted(self, e: Experience) -> list[int]:
        """Problems whose rollouts are made again."""
        return []

    def requests(self, e: Experience, wanted: Sequence[int], tools: Tools) -> list[Request]:
        """What to generate before there are hints."""
        return []

    def hinted(
        self, e: Experience, wanted: Sequence[int], written: Sequence[Completion], tools: Tools
    ) -> dict[int, list[int]]:
        """Prompts with a hint, by problem; a problem without a usable hint is left out."""
        return {}


@dataclass(frozen=True)
class ExpertPrefix(NoHints):
    """The beginning of the expert's solution, which the policy goes on from. It is part of the prompt: never trained on."""

    keep: int = 0
    share_low: float = 0.2
    share_high: float = 0.8

    def wanted(self, e: Experience) -> list[int]:
        return e.all_wrong.nonzero().flatten().tolist()

    def hinted(self, e, wanted, written, tools) -> dict[int, list[int]]:
        solutions = [(i, text) for i in wanted if (text := e.problems[i].solution) is not None]
        return {
            i: [
                *e.prompts[i],
                *self.beginning(tools.tokenizer(text, add_special_tokens=False)["input_ids"], e, i, tools),
            ]
            for i, text in solutions
        }

    def beginning(self, ids: list[int], e: Experience, problem: int, tools: Tools) -> list[int]:
        """A random share of a completion; never its final statement."""
        text = str(tools.tokenizer.decode(ids))
        position = text.rfind(tools.prompts.final_marker)
        whole = (
            len(tools.tokenizer(text[:position], add_special_tokens=False)["input_ids"]) if position >= 0 else len(ids)
        )
        draw = Key(tools.seed, SHARE, e.step, e.first + problem).generator().uniform(self.share_low, self.share_high)
        return ids[: round(whole * draw)]


@dataclass(frozen=True)
class SelfHint(ExpertPrefix):
    """A hint that the policy writes itself, seeing the answer. One that gives the answer away is not used."""

    keep: int = 1
    explainer: Explainer = Explainer.reference

    @property
    def writer(self) -> Explainer:  # type: ignore[override]
        return self.explainer

    def requests(self, e, wanted, tools) -> list[Request]:
        ids = tools.prompts.hint_ids(tools.tokenizer, [e.problems[i] for i in wanted])
        keys = [Key(tools.seed, HINT, e.step, e.first + i) for i in wanted]
        return [Request(tuple(prompt), key) for prompt, key in zip(ids, keys, strict=True)]

    def hinted(self, e, wanted, written, tools) -> dict[int, list[int]]:
        found = {}
        for i, completion in zip(wanted, written, strict=True):
            problem = e.problems[i]
            if tools.prompts.solve_with_hint is None:
                found[i] = [*e.prompts[i], *self.beginning(completion.ids, e, i, tools)]
            elif not completion.truncated and not gives_away(text := tools.texts([completion.ids])[0], problem):
                found[i] = tools.prompts.solve_with_hint_ids(tools.tokenizer, problem, text.strip())
        return found


def gives_away(hint: str, problem: Problem) -> bool:
    """Whether the answer stands in the hint, and not in the question."""
    return states(hint, problem.answer) and not states(problem.question, problem.answer)

"""Hints for all-wrong groups: their rollouts are made again under a prompt that holds a hint, and trained on under it.

At test time there is no hint. `SelfHint` is NuRL (arXiv 2509.25666), `ExpertPrefix` is POPE (2601.18779).
"""

from collections.abc import Mapping, Sequence

from expo.config import HintsConf, PrefixConf, SelfHintConf
from expo.data.problem import Problem
from expo.model.prompts import text_ids
from expo.rollout.engine import Completion, Request
from expo.rollout.noise import HINT, SHARE, Key
from expo.step.experience import Batch, Group, Tools
from expo.step.positives.filters import states


class NoHints:
    """Rollouts are never made again."""

    keep = 0

    def __init__(self, conf: HintsConf):
        self.writer = conf.writer  # which policy writes; None where nothing is written

    def wanted(self, groups: Mapping[int, Group]) -> list[int]:
        """Return the problems whose rollouts are made again."""
        return []

    def requests(self, batch: Batch, wanted: Sequence[int], tools: Tools) -> list[Request]:
        """Return what to generate before there are hints."""
        return []

    def hinted(
        self, batch: Batch, wanted: Sequence[int], written: Sequence[Completion], tools: Tools
    ) -> dict[int, list[int]]:
        """Return prompts with a hint, by problem; a problem without a usable hint is left out."""
        return {}


class ExpertPrefix(NoHints):
    """The beginning of the expert's solution, which the policy goes on from. It is part of the prompt: never trained on."""

    def __init__(self, conf: PrefixConf):
        super().__init__(conf)
        self.conf, self.keep = conf, conf.keep

    def wanted(self, groups: Mapping[int, Group]) -> list[int]:
        return [i for i, group in groups.items() if group.all_wrong]

    def hinted(
        self, batch: Batch, wanted: Sequence[int], written: Sequence[Completion], tools: Tools
    ) -> dict[int, list[int]]:
        solutions = {i: text for i in wanted if (text := batch.problems[i].solution) is not None}
        tokens = {i: text_ids(tools.tokenizer, text) for i, text in solutions.items()}
        return {i: [*batch.prompts[i], *self.beginning(ids, batch, i, tools)] for i, ids in tokens.items()}

    def beginning(self, ids: list[int], batch: Batch, problem: int, tools: Tools) -> list[int]:
        """Return a random share of a completion; never its final statement."""
        text = str(tools.tokenizer.decode(ids))
        position = text.rfind(tools.prompts.final_marker)
        whole = len(text_ids(tools.tokenizer, text[:position])) if position >= 0 else len(ids)
        noise = Key(tools.seed, SHARE, batch.step, batch.offset + problem).generator()
        return ids[: round(whole * noise.uniform(self.conf.share_low, self.conf.share_high))]


class SelfHint(ExpertPrefix):
    """A hint that the policy writes itself, seeing the answer. One that gives the answer away is not used."""

    conf: SelfHintConf

    def requests(self, batch: Batch, wanted: Sequence[int], tools: Tools) -> list[Request]:
        prompts = tools.prompts.hint_ids(tools.tokenizer, [batch.problems[i] for i in wanted])
        return [
            Request(tuple(prompt), Key(tools.seed, HINT, batch.step, batch.offset + i), i)
            for i, prompt in zip(wanted, prompts, strict=True)
        ]

    def hinted(
        self, batch: Batch, wanted: Sequence[int], written: Sequence[Completion], tools: Tools
    ) -> dict[int, list[int]]:
        found = {}
        for i, completion in zip(wanted, written, strict=True):
            problem = batch.problems[i]
            if tools.prompts.solve_with_hint is None:
                found[i] = [*batch.prompts[i], *self.beginning(completion.ids, batch, i, tools)]
            elif not completion.truncated and not gives_away(text := tools.texts([completion.ids])[0], problem):
                found[i] = tools.prompts.solve_with_hint_ids(tools.tokenizer, problem, text.strip())
        return found


def gives_away(hint: str, problem: Problem) -> bool:
    """Return whether the answer stands in the hint, and not in the question."""
    return states(hint, problem.answer) and not states(problem.question, problem.answer)

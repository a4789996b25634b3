"""Hints for all-wrong groups: their rollouts are made again under a prompt that holds a hint, and trained on under it,
or under the question alone (`hints.gradient`).

At test time there is no hint. `SelfHint` is NuRL (arXiv 2509.25666) or SAGE (2602.03143), `ExpertPrefix` is POPE
(2601.18779).
"""

from collections.abc import Mapping, Sequence

from expo.config import HintsConf, PrefixConf, SelfHintConf
from expo.ground.problem import Problem
from expo.model.prompts import text_ids
from expo.rollout.engine import Completion, Request
from expo.rollout.noise import ABSTRACT, HINT, SHARE, NoiseKey
from expo.step.experience import Batch, Group, Tools
from expo.step.positives.filters import states


class NoHints:
    """Rollouts are never made again."""

    gives_hints = False
    keep = 0
    under_question = False  # whether rollouts made with a hint are trained on under the question alone
    measure_every = 0

    def __init__(self, conf: HintsConf):
        self.conf = conf

    def wanted(self, groups: Mapping[int, Group]) -> list[int]:
        """Return the indices of the problems whose rollouts are made again with a hint."""
        return []

    def requests(self, batch: Batch, wanted: Sequence[int], tools: Tools) -> list[Request]:
        """Return the requests of the first stage: for the hints, or for texts that hints are made of."""
        return []

    def second_requests(self, batch: Batch, written: Sequence[Completion], tools: Tools) -> list[Request] | None:
        """Return the requests of the second stage; None where the first stage's texts are the hints already."""
        return None

    def hinted(
        self, batch: Batch, wanted: Sequence[int], written: Sequence[Completion], tools: Tools
    ) -> dict[int, list[int]]:
        """Return prompts with a hint, by problem index; a problem without a usable hint is left out."""
        return {}


class ExpertPrefix(NoHints):
    """The beginning of the expert's solution, a part of the prompt: the policy goes on from it."""

    gives_hints = True
    conf: PrefixConf

    def __init__(self, conf: PrefixConf):
        super().__init__(conf)
        self.keep = conf.keep

    def wanted(self, groups: Mapping[int, Group]) -> list[int]:
        return [i for i, group in groups.items() if group.all_wrong]

    def hinted(
        self, batch: Batch, wanted: Sequence[int], written: Sequence[Completion], tools: Tools
    ) -> dict[int, list[int]]:
        solutions = {i: text for i in wanted if (text := batch.problems[i].solution) is not None}
        instructed = self.conf.instructed and tools.prompts.conf.go_on is not None
        to_ids = text_ids if instructed else tools.prompts.beginning_ids
        tokens = {i: to_ids(tools.tokenizer, text) for i, text in solutions.items()}
        beginnings = {i: self.beginning(ids, batch, i, tools) for i, ids in tokens.items()}
        if instructed:
            return {
                i: tools.prompts.go_on_ids(tools.tokenizer, batch.problems[i], str(tools.tokenizer.decode(ids)))
                for i, ids in beginnings.items()
            }
        return {i: [*batch.prompts[i], *ids] for i, ids in beginnings.items()}

    def beginning(self, ids: list[int], batch: Batch, problem: int, tools: Tools) -> list[int]:
        """Return a random share of a completion's tokens; never its final statement."""
        text = str(tools.tokenizer.decode(ids))
        position = text.find(tools.prompts.final_marker)  # the first: some state the answer before they derive it
        length = len(text_ids(tools.tokenizer, text[:position])) if position >= 0 else len(ids)
        noise = NoiseKey(tools.seed, SHARE, batch.step, batch.offset + problem).generator()
        return ids[: round(length * noise.uniform(self.conf.share_low, self.conf.share_high))]


class SelfHint(ExpertPrefix):
    """A hint that the policy writes itself, seeing the answer. One that gives the answer away is not used."""

    conf: SelfHintConf

    def __init__(self, conf: SelfHintConf):
        super().__init__(conf)
        self.under_question, self.measure_every = conf.gradient == "question", conf.measure_every

    def requests(self, batch: Batch, wanted: Sequence[int], tools: Tools) -> list[Request]:
        shown = tools.prompts
        ask = shown.explain_ids if self._in_two(tools) else shown.hint_ids
        if self.conf.sees == "solution" and shown.conf.hint_from_solution is not None:
            ask = shown.hint_from_solution_ids
            wanted = [i for i in wanted if batch.problems[i].solution]  # some rows may have none
        return self._requests(HINT, ask(tools.tokenizer, [batch.problems[i] for i in wanted]), batch, wanted, tools)

    def second_requests(self, batch: Batch, written: Sequence[Completion], tools: Tools) -> list[Request] | None:
        if not self._in_two(tools):
            return None
        texts = tools.texts([c.ids for c in written])
        problems = [batch.problems[c.problem] for c in written]
        prompts = tools.prompts.abstract_ids(tools.tokenizer, problems, texts)
        return self._requests(ABSTRACT, prompts, batch, [c.problem for c in written], tools)

    def _in_two(self, tools: Tools) -> bool:
        return self.conf.stages == 2 and tools.prompts.conf.abstract is not None

    def _requests(
        self, stream: int, prompts: Sequence[Sequence[int]], batch: Batch, problems: Sequence[int], tools: Tools
    ) -> list[Request]:
        fitting = tools.fitting(dict(zip(problems, prompts, strict=True)), batch.step, "hints not asked for")
        return [Request(p, NoiseKey(tools.seed, stream, batch.step, batch.offset + i), i) for i, p in fitting.items()]

    def hinted(
        self, batch: Batch, wanted: Sequence[int], written: Sequence[Completion], tools: Tools
    ) -> dict[int, list[int]]:
        prompts = {}
        for completion in written:
            i = completion.problem
            problem = batch.problems[i]
            if tools.prompts.conf.solve_with_hint is None:
                if beginning := self.beginning(completion.ids, batch, i, tools):
                    prompts[i] = [*batch.prompts[i], *beginning]
            elif not completion.truncated and not gives_away(text := tools.texts([completion.ids])[0], problem):
                prompts[i] = tools.prompts.solve_with_hint_ids(tools.tokenizer, problem, text.strip())
        return prompts


def gives_away(hint: str, problem: Problem) -> bool:
    return states(hint, problem.answer) and not states(problem.question, problem.answer)

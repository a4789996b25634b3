"""Where positives come from: nothing, the expert's solution, or the policy's explanation of the known answer.

A positive is always trained on under the solve prompt q alone. The sampler's log-probabilities of an explanation are of
π(·|q, a*): no ratio and no weight uses them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from expo.config import (
    ExpertConf,
    NoPositivesConf,
    ParaphraseConf,
    PositivesConf,
    SelfExplanationConf,
    SourceConf,
    StarConf,
    functions_of,
)
from expo.ground.problem import Problem
from expo.rollout.engine import Completion, Request
from expo.rollout.noise import EXPLAIN, NoiseKey
from expo.step.experience import Batch, Candidate, Candidates, Groups, Tools
from expo.step.positives.filters import Written, rejection
from expo.step.positives.selection import SELECTIONS
from expo.verifier.answers import AUTO, Verdict, fast_verdict


class PositiveSource:
    """A source of positives, and the gate that decides which groups get one. How they are learned from is the
    algorithm's matter (`expo.config.positives.PositiveLossConf`)."""

    conf: PositivesConf
    selection = "first"
    cache_steps, cache_max_drop = 0, 0.0
    measure_every = 0

    def __init__(self, conf: PositivesConf):
        self.conf = conf

    def refreshes_snapshot(self, step: int) -> bool:
        """Return whether the explaining snapshot becomes the current policy before this step."""
        return False

    def gets_positive(self, all_wrong: bool) -> bool:
        """Decide by the gate whether a group may get a positive. Args: all_wrong, whether all its rollouts are."""
        return False

    def requests(self, batch: Batch, groups: Groups, wanted: Sequence[int], tools: Tools) -> list[Request]:
        """Return the requests for the texts of the wanted problems."""
        return []

    def candidates(
        self, batch: Batch, groups: Groups, wanted: Sequence[int], explanations: Sequence[Completion], tools: Tools
    ) -> Candidates:
        """Return all candidates of the wanted problems, each with the filter that rejects it, if one does."""
        return {}

    def choose(self, usable: Sequence[Candidate], problem: Problem) -> list[Candidate]:
        """Return the candidates of a problem to learn from. Args: usable, at least one, rejected by no filter."""
        return [usable[0]]


class NoPositives(PositiveSource):
    conf: NoPositivesConf


class WeightedSource(PositiveSource):
    conf: SourceConf

    def __init__(self, conf: SourceConf):
        super().__init__(conf)
        self.measure_every = conf.measure_every

    def gets_positive(self, all_wrong: bool) -> bool:
        return self.conf.gate == "always" or all_wrong


class ExpertSolution(WeightedSource):
    """The data set's worked solution: correct, and unlikely under the policy."""

    conf: ExpertConf

    def candidates(
        self, batch: Batch, groups: Groups, wanted: Sequence[int], explanations: Sequence[Completion], tools: Tools
    ) -> Candidates:
        solutions = [(i, text) for i in wanted if (text := batch.problems[i].solution) is not None]
        verdicts = tools.verifier.verify([text for _, text in solutions], [batch.problems[i] for i, _ in solutions])
        filters = [f for f in self.conf.filters if f != "early_answer"]  # an expert may begin with the answer
        candidates: Candidates = {}
        for (i, text), verdict in zip(solutions, verdicts, strict=True):
            ids = tools.prompts.solution_ids(tools.tokenizer, text)
            truncated, p = len(ids) > tools.sampling.max_tokens, batch.problems[i]
            written = Written(text, p.question, p.answer, truncated, verdict)
            candidates[i] = [Candidate(ids, text, rejection(written, filters))]
        return candidates


class SelfExplanation(WeightedSource):
    """c̃ ~ π(·|q, a*): the prompt shows the answer and asks for a derivation of it (ExPO)."""

    conf: SelfExplanationConf

    def __init__(self, conf: SelfExplanationConf):
        super().__init__(conf)
        self.selection = conf.selection
        self.cache_steps, self.cache_max_drop = conf.cache_steps, conf.cache_max_drop

    def refreshes_snapshot(self, step: int) -> bool:
        return step % self.conf.snapshot_every == 0

    def to_explain(self, batch: Batch, groups: Groups, wanted: Sequence[int], tools: Tools) -> dict[int, Problem]:
        """Return, by index, the wanted problems for which there is an answer to show, each with that answer."""
        shown = ((i, SHOWN[self.conf.shown_answer](batch, groups, i, tools)) for i in wanted)
        return {i: replace(batch.problems[i], answer=answer) for i, answer in shown if answer is not None}

    def prompt_ids(self, problems: Sequence[Problem], tools: Tools) -> list[list[int]]:
        return tools.prompts.explain_ids(tools.tokenizer, problems)

    def requests(self, batch: Batch, groups: Groups, wanted: Sequence[int], tools: Tools) -> list[Request]:
        explained, samples = self.to_explain(batch, groups, wanted, tools), self.conf.samples
        ids = self.prompt_ids(list(explained.values()), tools)
        return [
            Request(tuple(prompt), NoiseKey(tools.seed, EXPLAIN, batch.step, (batch.offset + i) * samples + s), i)
            for i, prompt in zip(explained, ids, strict=True)
            if len(prompt) <= tools.longest_prompt
            for s in range(samples)
        ]

    def candidates(
        self, batch: Batch, groups: Groups, wanted: Sequence[int], explanations: Sequence[Completion], tools: Tools
    ) -> Candidates:
        explained = self.to_explain(batch, groups, wanted, tools)
        owners = [explained[c.problem] for c in explanations]
        texts = tools.texts([c.ids for c in explanations])
        verdicts = tools.verifier.verify(texts, owners)
        unasked = explained.keys() - {c.problem for c in explanations}
        candidates: Candidates = {i: [Candidate([], "", "long_prompt")] for i in unasked}
        for p, c, text, verdict in zip(owners, explanations, texts, verdicts, strict=True):
            marker = tools.prompts.final_marker
            written = Written(text, p.question, p.answer, c.truncated, verdict, self.conf.leak_phrases, marker)
            candidate = Candidate(c.ids, text, rejection(written, self.conf.filters), c.prompt)
            candidates.setdefault(c.problem, []).append(candidate)
        return dict(sorted(candidates.items()))

    def choose(self, usable: Sequence[Candidate], problem: Problem) -> list[Candidate]:
        return SELECTIONS[self.selection](usable, problem, self.conf)


class STaR(SelfExplanation):
    """The policy's own right sample; where it has none, an explanation, a "rationalisation" (STaR, 2203.14465)."""

    conf: StarConf

    def to_explain(self, batch: Batch, groups: Groups, wanted: Sequence[int], tools: Tools) -> dict[int, Problem]:
        # A group that is not judged yet may turn out all wrong.
        return super().to_explain(batch, groups, [i for i in wanted if i not in groups or groups[i].all_wrong], tools)

    def candidates(
        self, batch: Batch, groups: Groups, wanted: Sequence[int], explanations: Sequence[Completion], tools: Tools
    ) -> Candidates:
        candidates = super().candidates(batch, groups, wanted, explanations, tools)
        for i in wanted:
            row = next((g for g, right in enumerate(groups[i].correct if i in groups else ()) if right), None)
            if row is not None:
                completion = groups[i].completions[row]
                cut_off = completion.truncated and "truncated" in self.conf.filters
                own_sample = Candidate(completion.ids, groups[i].texts[row], "truncated" if cut_off else None)
                candidates[i] = [own_sample, *candidates.get(i, [])]
        return dict(sorted(candidates.items()))


class ExpertParaphrase(SelfExplanation):
    """The expert's solution in the policy's own words and at the length of its rollouts. A control: what is left of the
    gain when style and length are the policy's, but the reasoning is the expert's."""

    conf: ParaphraseConf

    def prompt_ids(self, problems: Sequence[Problem], tools: Tools) -> list[list[int]]:
        return tools.prompts.paraphrase_ids(tools.tokenizer, problems)

    def to_explain(self, batch: Batch, groups: Groups, wanted: Sequence[int], tools: Tools) -> dict[int, Problem]:
        return super().to_explain(batch, groups, [i for i in wanted if batch.problems[i].solution is not None], tools)

    def candidates(
        self, batch: Batch, groups: Groups, wanted: Sequence[int], explanations: Sequence[Completion], tools: Tools
    ) -> Candidates:
        ratio = self.conf.length_ratio

        def matched(i: int, candidate: Candidate) -> bool:
            lengths = [len(rollout.ids) for rollout in groups[i].completions] if i in groups else []
            return not sum(lengths) or 1 / ratio <= len(candidate.ids) * len(lengths) / sum(lengths) <= ratio

        return {
            i: [c if c.rejected or matched(i, c) else replace(c, rejected="length") for c in some]
            for i, some in super().candidates(batch, groups, wanted, explanations, tools).items()
        }


def _shuffled_answer(batch: Batch, groups: Groups, problem: int, tools: Tools) -> str | None:
    """Return the answer of the step's next problem that has another one: 0.5 is no other than 1/2."""
    own, others = batch.problems[problem], [*batch.problems[problem + 1 :], *batch.problems[:problem]]
    kind = own.kind or AUTO  # a judge of one's own names none
    other = (o.answer for o in others if fast_verdict(o.answer, own.answer, kind) is not Verdict.CORRECT)
    return next(other, None)


ShownAnswer = Callable[[Batch, Groups, int, Tools], str | None]
SHOWN: dict[str, ShownAnswer] = functions_of(
    SelfExplanationConf,
    "shown_answer",
    {
        "true": lambda batch, groups, problem, tools: batch.problems[problem].answer,
        "wrong": lambda batch, groups, problem, tools: tools.wrong_answer(groups[problem]),
        "shuffled": _shuffled_answer,
    },
)

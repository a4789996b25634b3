"""Where positives come from: nothing, the expert's solution, or the policy's explanation of the known answer.

A positive is always trained on under the solve prompt q alone. What the sampler thought of an explanation belongs to
π(·|q, a*) and never reaches a ratio or a weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expo.data.problem import Problem
from expo.experience import Candidate, Experience, Tools
from expo.positives.filters import rejection
from expo.positives.schedules import GATES, SCHEDULES
from expo.positives.selection import Limits, select
from expo.randomness import EXPLAIN, Key
from expo.rollout.engine import Completion, Request
from expo.schema_learning import Aggregation, Baseline, Explainer, Filter, Gate, Schedule, Selection, ShownAnswer, Use
from expo.verifier import Verdict, last_boxed


@dataclass(frozen=True)
class PositiveSource:
    """What every source shares: how positives enter the loss, and the gate that decides which problems get one."""

    weight: float = 0.0
    schedule: Schedule = Schedule.constant
    aggregation: Aggregation = Aggregation.token_mean
    gate: Gate = Gate.always
    use: Use = Use.auxiliary
    member_shaping: float = 0.0
    member_baseline: Baseline = Baseline.all
    filters: Sequence[Filter] = tuple(Filter)

    measure_every: int = 1

    # What a source that generates overrides. `follows`: whether what it asks for a problem is settled as soon as that
    # problem's rollouts are judged.
    follows = False
    selection = Selection.first
    cache_steps, cache_max_drop = 0, 0.0

    @property
    def writer(self) -> Explainer | None:
        """Which policy writes; None for a source that generates nothing."""
        return None

    def refreshes_snapshot(self, step: int) -> bool:
        """Whether the explaining snapshot becomes the current policy before this step."""
        return False

    def weight_at(self, done: float, all_wrong: float) -> float:
        """β for a step; see `SCHEDULES`."""
        return self.weight * SCHEDULES[self.schedule.name](done, all_wrong)

    def wanted(self, all_wrong: Sequence[bool]) -> list[int]:
        """Indices of the problems that get a positive, given which groups are all wrong."""
        return [i for i, wrong in enumerate(all_wrong) if GATES[self.gate.name](wrong)]

    @property
    def joins_rollouts(self) -> bool:
        """Whether explanations are known to be wanted before the rollouts, by the same weights: one generation call."""
        return self.writer is Explainer.current and self.gate is Gate.always

    def requests(self, e: Experience, wanted: Sequence[int], tools: Tools) -> list[Request]:
        """What to generate for the wanted problems."""
        return []

    def candidates(
        self, e: Experience, wanted: Sequence[int], explanations: Sequence[Completion], tools: Tools
    ) -> list[Candidate]:
        """Candidates for the wanted problems, filtered; those of a problem side by side."""
        return []

    def choose(self, usable: Sequence[Candidate], problems: Sequence[Problem]) -> list[Candidate]:
        """The candidates to learn from, of those that no filter rejects."""
        return select(usable, problems, self.selection.name, Limits())


class NoPositives(PositiveSource):
    """Plain GRPO."""

    def wanted(self, all_wrong: Sequence[bool]) -> list[int]:
        return []


@dataclass(frozen=True)
class ExpertSolution(PositiveSource):
    """The data set's worked solution: correct, and unlikely under the policy."""

    def candidates(self, e, wanted, explanations, tools) -> list[Candidate]:
        solutions = [(i, text) for i in wanted if (text := e.problems[i].solution) is not None]
        verdicts = tools.verifier.verify([text for _, text in solutions], [e.problems[i].answer for i, _ in solutions])
        filters = [f for f in self.filters if f is not Filter.early_answer]  # an expert may begin with the answer
        found = []
        for (i, text), verdict in zip(solutions, verdicts, strict=True):
            ids = tools.tokenizer(text, add_special_tokens=False)["input_ids"] + [tools.tokenizer.eos_token_id]
            truncated, p = len(ids) > tools.sampling.max_tokens, e.problems[i]
            found.append(
                Candidate(i, ids, text, rejection(text, p.question, p.answer, truncated, verdict, (), filters))
            )
        return found


@dataclass(frozen=True)
class SelfExplanation(PositiveSource):
    """c̃ ~ π(·|q, a*): the prompt shows the answer and asks for a derivation of it (ExPO)."""

    explainer: Explainer = Explainer.reference
    snapshot_every: int = 20
    samples: int = 1
    selection: Selection = Selection.first
    rank_weight: float = 0.5
    min_logp: float = -1.0
    min_lift: float = 0.0
    shown_answer: ShownAnswer = ShownAnswer.true
    cache_steps: int = 0
    cache_max_drop: float = 0.5
    leak_phrases: Sequence[str] = ()

    @property
    def writer(self) -> Explainer:
        return self.explainer

    @property
    def joins_rollouts(self) -> bool:
        return super().joins_rollouts and self.follows

    @property
    def follows(self) -> bool:  # type: ignore[override]
        return self.shown_answer is not ShownAnswer.wrong  # which is one of the rollouts that hints leave

    def refreshes_snapshot(self, step: int) -> bool:
        return step % self.snapshot_every == 0

    def explained(self, e: Experience, wanted: Sequence[int], tools: Tools) -> list[tuple[int, Problem]]:
        """The wanted problems with the answer that is shown, where there is one."""
        shown = ((i, SHOWN[self.shown_answer.name](e, i)) for i in wanted)
        return [(i, replace(e.problems[i], answer=answer)) for i, answer in shown if answer is not None]

    def prompt_ids(self, problems: Sequence[Problem], tools: Tools) -> list[list[int]]:
        return tools.prompts.explain_ids(tools.tokenizer, problems)

    def requests(self, e, wanted, tools) -> list[Request]:
        explained = self.explained(e, wanted, tools)
        ids = self.prompt_ids([problem for _, problem in explained], tools)
        return [
            Request(tuple(prompt), Key(tools.seed, EXPLAIN, e.step, (e.first + i) * self.samples + s))
            for (i, _), prompt in zip(explained, ids, strict=True)
            for s in range(self.samples)
        ]

    def candidates(self, e, wanted, explanations, tools) -> list[Candidate]:
        owners = [pair for pair in self.explained(e, wanted, tools) for _ in range(self.samples)]
        texts = tools.texts([c.ids for c in explanations])
        verdicts = tools.verifier.verify(texts, [problem.answer for _, problem in owners])
        return [
            Candidate(
                i, c.ids, text,
                rejection(text, p.question, p.answer, c.truncated, verdict, self.leak_phrases, self.filters),
                c.prompt,
            )
            for (i, p), c, text, verdict in zip(owners, explanations, texts, verdicts, strict=True)
        ]  # fmt: skip

    def choose(self, usable, problems) -> list[Candidate]:
        limits = Limits(self.rank_weight, self.min_logp, self.min_lift)
        return select(usable, problems, self.selection.name, limits)


class STaR(SelfExplanation):
    """The policy's own right sample where it has one; an explanation ("rationalisation") where it has none (STaR, 2203.14465)."""

    @property
    def joins_rollouts(self) -> bool:
        return False

    def explained(self, e, wanted, tools) -> list[tuple[int, Problem]]:
        wrong = e.all_wrong.tolist()
        return super().explained(e, [i for i in wanted if wrong[i]], tools)

    def candidates(self, e, wanted, explanations, tools) -> list[Candidate]:
        own = []
        for i in wanted:
            row = next((i * e.group_size + g for g, right in enumerate(e.correct[i].tolist()) if right), None)
            if row is not None:
                cut_off = e.completions[row].truncated and Filter.truncated in self.filters
                own.append(
                    Candidate(i, e.completions[row].ids, e.texts[row], Filter.truncated.name if cut_off else None)
                )
        return sorted(own + super().candidates(e, wanted, explanations, tools), key=lambda c: c.problem)


@dataclass(frozen=True)
class ExpertParaphrase(SelfExplanation):
    """The expert's solution in the policy's own words and at the length of its own rollouts.

    A control: what is left of the gain when style and length are the policy's, but the reasoning is the expert's.
    """

    length_ratio: float = 1.25

    @property
    def joins_rollouts(self) -> bool:
        return False  # the rollouts give the length

    def prompt_ids(self, problems, tools) -> list[list[int]]:
        return tools.prompts.paraphrase_ids(tools.tokenizer, problems)

    def explained(self, e, wanted, tools) -> list[tuple[int, Problem]]:
        return [pair for pair, fits in self.paraphrased(e, wanted, tools) if fits]

    def paraphrased(self, e, wanted, tools) -> list[tuple[tuple[int, Problem], bool]]:
        """The wanted problems that have a solution, and whether an engine has room for the prompt that shows it."""
        found = super().explained(e, [i for i in wanted if e.problems[i].solution is not None], tools)
        ids = self.prompt_ids([problem for _, problem in found], tools)
        return [(pair, len(prompt) <= tools.longest_prompt) for pair, prompt in zip(found, ids, strict=True)]

    def candidates(self, e, wanted, explanations, tools) -> list[Candidate]:
        long = [Candidate(i, [], "", "long_prompt") for (i, _), fits in self.paraphrased(e, wanted, tools) if not fits]
        own = sum(len(c.ids) for c in e.completions) / max(len(e.completions), 1)

        def matched(c: Candidate) -> bool:
            return not e.completions or 1 / self.length_ratio <= len(c.ids) / own <= self.length_ratio

        found = super().candidates(e, wanted, explanations, tools)
        found = [c if c.rejected or matched(c) else replace(c, rejected="length") for c in found]
        return sorted(found + long, key=lambda c: c.problem)


def _true_answer(e: Experience, problem: int) -> str | None:
    return e.problems[problem].answer


def _wrong_answer(e: Experience, problem: int) -> str | None:
    """The final answer of the problem's first rollout that has a wrong one."""
    rows = range(problem * e.group_size, (problem + 1) * e.group_size)
    return next((last_boxed(e.texts[r]) for r in rows if e.verdicts[r] is Verdict.INCORRECT), None)


def _shuffled_answer(e: Experience, problem: int) -> str | None:
    """The answer of the step's next problem that has another one."""
    own, count = e.problems[problem].answer, len(e.problems)
    others = (e.problems[(problem + shift) % count].answer for shift in range(1, count))
    return next((answer for answer in others if answer != own), None)


SHOWN = {"true": _true_answer, "wrong": _wrong_answer, "shuffled": _shuffled_answer}

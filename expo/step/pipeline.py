"""One step's data, stage by stage: rollouts → verify → hint → explain → choose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from expo.config.explaining import When
from expo.ground.problem import Problem
from expo.rollout.engine import Completion, Engine, Request
from expo.rollout.noise import HINTED, SOLVE, NoiseKey
from expo.step.experience import Batch, Candidates, Experience, Group, Groups, Timer, Tools
from expo.step.hints import NoHints
from expo.step.positives.bank import BankedEngine
from expo.step.positives.cache import ExplanationCache
from expo.step.positives.properties import Scorer, with_lift, with_logp, with_logp_given_answer
from expo.step.positives.selection import NEEDS_LIFT, NEEDS_LOGP
from expo.step.positives.sources import PositiveSource
from expo.step.rewards import Reward, Rollout, rewards_of
from expo.verifier.answers import Verdict


@dataclass(frozen=True)
class Engines:
    """Engines by what they generate. `policy` has the current weights; each other is the same object where no snapshot,
    reference or bank generates in its place."""

    policy: Engine
    rollouts: Engine
    explanations: Engine
    hints: Engine
    banked: BankedEngine | None = None  # that of the explanations, where they are read and not generated

    @property
    def each(self) -> list[Engine]:
        return list({id(e): e for e in (self.policy, self.rollouts, self.explanations, self.hints)}.values())

    def sync(self) -> None:
        for engine in self.each:
            engine.sync()

    def close(self) -> None:
        for engine in self.each:
            engine.close()


@dataclass
class Pipeline:
    """Makes the experience of a step. `scorer` measures completions under the policy; `when` is the moment at which
    explanations are asked for.

    A group is explained whose problem has none in the cache, whose verdicts pass the gate (`source.gets_positive`),
    which the source explains (`to_explain`: e.g. a wrong answer has to be there to be shown), and whose prompt fits.
    `run` asks for it, `GroupsAsTheyEnd` as soon as a group is judged, or `roll_out` beside the rollouts. It becomes a
    positive if it passes the source's filters and `choose`.
    """

    engines: Engines
    source: PositiveSource
    hints: NoHints
    reward: Reward
    scorer: Scorer
    tools: Tools
    when: When
    cache: ExplanationCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = ExplanationCache(self.source.cache_steps, self.source.cache_max_drop)

    def run(self, step: int, problems: list[Problem], group_size: int, offset: int = 0) -> Experience:
        """Return the experience of one step. Args: offset, how many problems the step has sampled before these."""
        timer = Timer()
        batch = Batch.of(problems, self.tools, step, offset)
        with timer("explain"):
            cached = self.cache.find(batch, self.scorer)
        uncached = [i for i in range(len(problems)) if i not in cached]
        unaided, early, tokens = self.roll_out(batch, group_size, uncached, timer)
        with timer("hint"):
            groups, hint_tokens = self.hint(batch, unaided)
            reliance = self.reliance(batch, groups)
            groups = self.without_hints(groups)
        with timer("explain"):
            wanted = [i for i, group in groups.items() if self.source.gets_positive(group.all_wrong)]
            asked = [i for i in wanted if i in uncached]
            explanations = self.explain(batch, groups, asked, early)
            candidates = self.source.candidates(batch, groups, asked, explanations, self.tools)
            chosen = self.choose(groups, candidates)
            self.cache.keep(chosen, batch, self.scorer)
            reused = {i: some for i, some in cached.items() if i in wanted}
            positives = self.measure(step, groups, dict(sorted((chosen | reused).items())))
        written = sum(len(c.ids) for c in explanations)
        return Experience(
            [
                replace(groups[i], candidates=candidates.get(i, []), positives=positives.get(i, []))
                for i in range(len(problems))
            ],
            step,
            gives_hints=self.hints.gives_hints,
            reused=sum(map(len, reused.values())),
            timer=timer,
            hint_reliance=reliance,
            generated_tokens=tokens + hint_tokens + written,
            banked_tokens=written if self.engines.banked else 0,
            writer="" if self.engines.rollouts is self.engines.policy else "snapshot",
            shared_s=self.engines.banked.shared_s(explanations) if self.engines.banked else 0.0,
        )

    def roll_out(
        self, batch: Batch, group_size: int, uncached: Sequence[int], timer: Timer
    ) -> tuple[dict[int, Group], list[Completion], int]:
        """Generate and judge the rollouts; generate explanations in the same call where `when` allows that. Returns
        groups, explanations made on the way, and the rollouts' tokens. Args: uncached, the problems without a cached
        explanation."""
        first = batch.offset * group_size
        solve = [
            Request(prompt, NoiseKey(self.tools.seed, SOLVE, batch.step, first + i * group_size + g), i)
            for i, prompt in enumerate(batch.prompts)
            for g in range(group_size)
        ]
        early = self.source.requests(batch, {}, uncached, self.tools) if self.when is When.WITH_ROLLOUTS else []
        judge = GroupsAsTheyEnd(self, batch, group_size, uncached) if self.when is When.AS_GROUPS_END else None
        with timer("rollout"):
            completions = self.engines.rollouts.generate([*solve, *early], self.tools.sampling, judge)
        rollouts, explanations = completions[: len(solve)], completions[len(solve) :]
        tokens = sum(len(c.ids) for c in rollouts)
        if judge is not None:
            judging = judge.timer.seconds.get("verify", 0.0)
            timer.add({"rollout": -judging, "verify": judging})
            return dict(sorted(judge.groups.items())), sorted(explanations, key=lambda c: c.problem), tokens
        with timer("verify"):
            rows = {i: rollouts[i * group_size : (i + 1) * group_size] for i in range(len(batch.problems))}
            return self.verify(batch, rows), explanations, tokens

    def verify(self, batch: Batch, rollouts: Mapping[int, list[Completion]]) -> dict[int, Group]:
        """Judge the rollouts of some problems, all at once."""
        rows = [(i, completion) for i, completions in rollouts.items() for completion in completions]
        problems = [batch.problems[i] for i, _ in rows]
        texts = self.tools.texts([c.ids for _, c in rows])
        rated = iter(zip(texts, self.tools.verifier.score(texts, problems), strict=True))
        judged = [
            [
                Rollout(batch.problems[i], text, verdict, len(c.ids), c.truncated, batch.step, score)
                for c, (text, (verdict, score)) in zip(completions, rated, strict=False)
            ]
            for i, completions in rollouts.items()
        ]
        own = self.tools.ranks.own(judged)  # whole groups: a reward may compare the rollouts of one
        values = iter(rewards_of(self.reward, [rollout for group in own for rollout in group]))
        rewards = self.tools.ranks.whole([[next(values) for _ in group] for group in own])
        return {
            i: Group(
                batch.problems[i], batch.prompts[i], done, [r.text for r in group], [r.verdict for r in group], worth
            )
            for (i, done), group, worth in zip(rollouts.items(), judged, rewards, strict=True)
        }

    def hint(self, batch: Batch, groups: Groups) -> tuple[dict[int, Group], int]:
        """Make the rollouts of some groups again with hints, but the first `keep` of each. Returns all groups, and how
        many tokens were generated."""
        wanted = self.hints.wanted(groups)
        if not wanted:
            return dict(groups), 0
        written = _generate(self.engines.hints, self.hints.requests(batch, wanted, self.tools), self.tools)
        tokens = sum(len(c.ids) for c in written)
        second_stage = self.hints.second_requests(batch, written, self.tools)
        if second_stage is not None:
            written = _generate(self.engines.hints, second_stage, self.tools)
            tokens += sum(len(c.ids) for c in written)
        hinted = self.hints.hinted(batch, wanted, written, self.tools)
        prompts = self.tools.fitting(hinted, batch.step, "prompts with a hint not used")
        keep = self.hints.keep
        again = [
            Request(prompt, NoiseKey(self.tools.seed, HINTED, batch.step, (batch.offset + i) * size + g), i)
            for i, prompt in prompts.items()
            for size in [len(groups[i].completions)]
            for g in range(keep, size)
        ]
        redone = _generate(self.engines.rollouts, again, self.tools)
        rows = {i: groups[i].completions[:keep] + [c for c in redone if c.problem == i] for i in prompts}
        tokens += sum(len(c.ids) for c in redone)
        made = {i: replace(group, before_hint=groups[i], kept=keep) for i, group in self.verify(batch, rows).items()}
        return dict(groups) | made, tokens

    def reliance(self, batch: Batch, groups: Groups) -> float | None:
        """Return how much likelier right hinted rollouts are under their prompt with the hint than without, in nats per
        token, every `hints.measure_every` steps. Near 0, the policy could write them without, as HiLL (arXiv
        2604.00698) wants it; the definition is ours."""
        every = self.hints.measure_every
        if self.tools.prompts.conf.solve_with_hint is None or not every or batch.step % every:
            return None  # a hint that begins the completion is part of what would have to be likely
        right = [
            (group.prompt, c)
            for group in groups.values()
            for c, verdict in zip(group.completions, group.verdicts, strict=True)
            if group.before_hint and verdict is Verdict.CORRECT and c.prompt != group.prompt and c.ids
        ]
        if not right:
            return None
        ids = [c.ids for _, c in right]
        with_hint = self.scorer.mean_logp([c.prompt for _, c in right], ids)
        without = self.scorer.mean_logp([prompt for prompt, _ in right], ids)
        return float((with_hint - without).mean())

    def without_hints(self, groups: Groups) -> dict[int, Group]:
        """Return the groups to train on: with `hints.gradient=question`, all rollouts under the question alone."""
        if not self.hints.under_question:
            return dict(groups)
        return {
            i: replace(group, completions=[replace(c, prompt=group.prompt) for c in group.completions])
            for i, group in groups.items()
        }

    def explain(
        self, batch: Batch, groups: Groups, wanted: Sequence[int], early: Sequence[Completion]
    ) -> Sequence[Completion]:
        """Return the explanations of the wanted problems: those made with the rollouts, or new ones."""
        if self.when is not When.AFTERWARDS:
            return early
        return _generate(self.engines.explanations, self.source.requests(batch, groups, wanted, self.tools), self.tools)

    def choose(self, groups: Groups, candidates: Candidates) -> Candidates:
        """Return the positives that the selection picks among the candidates, with the properties that it asks for."""
        usable = {i: good for i, some in candidates.items() if (good := [c for c in some if c.rejected is None])}
        if self.source.selection in NEEDS_LOGP:
            usable = with_logp(self.scorer, groups, usable)
        if self.source.selection in NEEDS_LIFT:
            usable = with_lift(self.scorer, groups, usable)
        chosen = {i: self.source.choose(some, groups[i].problem) for i, some in usable.items()}
        return {i: positives for i, positives in chosen.items() if positives}

    def measure(self, step: int, groups: Groups, positives: Candidates) -> Candidates:
        """Return the positives, every `measure_every` steps with likelihood and answer lift."""
        every = self.source.measure_every
        if not every or step % every:
            # Drop what the selection has measured at other steps: runs with and without such a selection log at the
            # same steps, so that means over steps can be compared.
            return {i: [c.unmeasured() for c in of_problem] for i, of_problem in positives.items()}
        both = with_logp_given_answer(self.scorer, with_logp(self.scorer, groups, positives))
        return with_lift(self.scorer, groups, both)


class GroupsAsTheyEnd:
    """Judges each group when its last rollout ends, and asks at once for its explanations, which decode beside rollouts
    that go on. Afterwards `groups` holds every group, and `timer` how long the judging took."""

    def __init__(self, pipeline: Pipeline, batch: Batch, group_size: int, uncached: Sequence[int]):
        self.pipeline, self.batch, self.group_size, self.uncached = pipeline, batch, group_size, uncached
        self.ended: dict[int, Completion] = {}  # by row
        self.groups: dict[int, Group] = {}
        self.timer = Timer()

    def __call__(self, ended: Mapping[int, Completion]) -> list[Request]:
        """Take the rows that have just ended; return the requests for explanations that follow from them."""
        self.ended |= ended
        size, source = self.group_size, self.pipeline.source
        rows = {i: range(i * size, (i + 1) * size) for i in sorted({row // size for row in ended})}
        complete = {
            i: [self.ended[r] for r in of_group]
            for i, of_group in rows.items()
            if all(r in self.ended for r in of_group)
        }
        with self.timer("verify"):
            judged = self.pipeline.verify(self.batch, complete)
        self.groups |= judged
        wanted = [i for i, group in judged.items() if source.gets_positive(group.all_wrong) and i in self.uncached]
        return [r for i in wanted for r in source.requests(self.batch, self.groups, [i], self.pipeline.tools)]


def _generate(engine: Engine, requests: Sequence[Request], tools: Tools) -> list[Completion]:
    return engine.generate(requests, tools.sampling) if requests else []

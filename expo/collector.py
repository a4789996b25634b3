"""From problems to what the losses need: rollouts, verdicts, rewards, hints and positives of one step."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedTokenizerBase

from expo.config import UserError
from expo.data.problem import Problem
from expo.experience import Candidate, Experience, Tools
from expo.hints import NoHints
from expo.positives.cache import ExplanationCache
from expo.positives.properties import Scorer
from expo.positives.selection import NEEDS_LIFT, NEEDS_LOGP
from expo.positives.sources import PositiveSource
from expo.randomness import HINTED, PROBLEMS, REFILL, SOLVE, Key
from expo.rollout.engine import Completion, Engine, Follow, Request
from expo.verifier import Verdict

log = logging.getLogger(__name__)

PENDING = Completion((), [], [], truncated=False)


class ProblemSampler:
    """Which problems step t trains on: consecutive slices of one permutation per epoch, a function of (seed, t) alone."""

    def __init__(self, problems: Sequence[Problem], per_step: int, seed: int):
        self.problems, self.per_step, self.seed = problems, per_step, seed

    def batch(self, step: int) -> list[Problem]:
        """The `per_step` problems of `step`."""
        count = len(self.problems)
        positions = range(step * self.per_step, (step + 1) * self.per_step)
        orders = {
            e: Key(self.seed, PROBLEMS, e).generator().permutation(count) for e in {p // count for p in positions}
        }
        return [self.problems[orders[p // count][p % count]] for p in positions]

    def refill(self, step: int, number: int) -> list[Problem]:
        """As many further problems for `step`, drawn at random; `number` counts from 1."""
        rng = Key(self.seed, REFILL, step, number).generator()
        chosen = rng.choice(len(self.problems), self.per_step, replace=len(self.problems) < self.per_step)
        return [self.problems[i] for i in chosen]


@dataclass
class Collector:
    """Runs the generating half of a step.

    `engine` has the policy's weights, `solver` those that make the rollouts, `explainer` and `hinter` those that explain
    and hint; each is the very same object as `engine` where the current policy does it. `scorer` measures under the policy.
    """

    engine: Engine
    solver: Engine
    explainer: Engine
    hinter: Engine
    source: PositiveSource
    hints: NoHints
    scorer: Scorer
    tools: Tools
    cache: ExplanationCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = ExplanationCache(self.source.cache_steps, self.source.cache_max_drop)

    @property
    def engines(self) -> list[Engine]:
        """Each engine once."""
        return list({id(e): e for e in (self.engine, self.solver, self.explainer, self.hinter)}.values())

    def sync(self) -> None:
        """Bring all engines up to their models: at the start, and when a snapshot is taken."""
        for engine in self.engines:
            engine.sync()

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def collect(self, step: int, problems: list[Problem], group_size: int, first: int = 0) -> Experience:
        """Generate, verify and choose positives for one step; `first` counts the problems that it has sampled before."""
        prompts = [tuple(ids) for ids in self.tools.prompts.solve_ids(self.tools.tokenizer, problems)]
        count = len(problems) * group_size
        e = Experience(problems, prompts, step, first, [PENDING] * count, [""] * count, [Verdict.UNPARSEABLE] * count)
        e.rewards = e.correct = torch.zeros(len(problems), group_size)
        keys = [Key(self.tools.seed, SOLVE, step, first * group_size + i) for i in range(count)]
        solve = [Request(prompts[i // group_size], key) for i, key in enumerate(keys)]
        with e.timer("explain"):
            cached = self.cache.find(problems, prompts, step, self.scorer)
        held = {c.problem for c in cached}
        together = self.source.joins_rollouts and self.solver is self.engine
        joined = [i for i in range(len(problems)) if i not in held] if together else []
        follows = bool(count) and not joined and self.source.follows and self.solver is self.explainer
        owners: list[int] = []  # of the explanations that followed
        with e.timer("rollout"):
            asked = self.source.requests(e, joined, self.tools)
            follow = self.follower(e, held, owners) if follows else None
            generated = self.solver.generate([*solve, *asked], self.tools.sampling, follow)
            e.completions, explanations = generated[:count], generated[count:]
        e.timer.seconds["rollout"] -= e.timer.seconds.get("verify", 0.0)  # by the follower
        with e.timer("verify"):
            if not follows:
                self.judge(e, range(len(problems)))
        with e.timer("hint"):
            self.help(e)
        with e.timer("explain"):
            wanted = self.source.wanted(e.all_wrong.tolist())
            cached = [c for c in cached if c.problem in wanted]
            fresh = joined or [i for i in wanted if i not in held]
            if follows:
                explanations = [c for _, c in sorted(zip(owners, explanations, strict=True), key=lambda pair: pair[0])]
            elif not joined:
                late = self.source.requests(e, fresh, self.tools)
                explanations = self.explainer.generate(late, self.tools.sampling) if late else []
            e.generated_tokens += sum(len(c.ids) for c in [*generated[:count], *explanations])
            e.candidates = self.source.candidates(e, fresh, explanations, self.tools)
            chosen = self.choose(e)
            self.cache.keep(chosen, problems, prompts, step, self.scorer)
            e.positives = sorted([*chosen, *cached], key=lambda c: c.problem)
            every = self.source.measure_every
            if every and step % every == 0:
                e.positives = self.with_lift(e, self.with_asked(self.with_logp(e, e.positives)))
            e.reused = len(cached)
        return e

    def follower(self, e: Experience, held: set[int], owners: list[int]) -> Follow:
        """Judges groups when their last rollouts end, and asks at once for the explanations of those that get any.

        An explanation then decodes beside the rollouts that go on longest. `owners` collects whose the explanations are.
        """
        missing = [e.group_size] * len(e.problems)

        def follow(ended: Mapping[int, Completion]) -> Sequence[Request]:
            for row, completion in ended.items():
                e.completions[row] = completion
                missing[row // e.group_size] -= 1
            whole = sorted(i for i in {row // e.group_size for row in ended} if not missing[i])
            if not whole:
                return []
            with e.timer("verify"):
                self.judge(e, whole)
            found = self.source.wanted(e.all_wrong[whole].tolist())
            asked = [(i, self.source.requests(e, [i], self.tools)) for i in (whole[j] for j in found) if i not in held]
            owners.extend(i for i, requests in asked for _ in requests)
            return [request for _, requests in asked for request in requests]

        return follow

    def judge(self, e: Experience, chosen: Sequence[int]) -> None:
        """Texts, verdicts and rewards of the chosen problems' rollouts."""
        rows = [i * e.group_size + g for i in chosen for g in range(e.group_size)]
        texts = self.tools.texts([e.completions[r].ids for r in rows])
        verdicts = self.tools.verifier.verify(texts, [e.problems[r // e.group_size].answer for r in rows])
        for row, text, verdict in zip(rows, texts, verdicts, strict=True):
            e.texts[row], e.verdicts[row] = text, verdict
            e.rewards.view(-1)[row] = float(verdict is Verdict.CORRECT)

    def help(self, e: Experience) -> None:
        """Make rollouts again with hints, where the hints want it; the first `keep` of each group stay."""
        wanted = self.hints.wanted(e)
        if not wanted:
            return
        asked = self.hints.requests(e, wanted, self.tools)
        written = self.hinter.generate(asked, self.tools.sampling) if asked else []
        found, longest = self.hints.hinted(e, wanted, written, self.tools), self.tools.longest_prompt
        prompts = {i: ids for i, ids in found.items() if len(ids) <= longest}
        if len(prompts) < len(found):
            log.warning(
                "step %d: %d prompts with a hint not used: over %d tokens", e.step, len(found) - len(prompts), longest
            )
        rows = [i * e.group_size + g for i in prompts for g in range(self.hints.keep, e.group_size)]
        again = [
            Request(tuple(prompts[r // e.group_size]), Key(self.tools.seed, HINTED, e.step, e.first * e.group_size + r))
            for r in rows
        ]
        redone = self.solver.generate(again, self.tools.sampling)
        for row, completion in zip(rows, redone, strict=True):
            e.completions[row] = completion
        e.generated_tokens += sum(len(c.ids) for c in [*written, *redone])
        e.hinted, e.rewards = list(prompts), e.rewards.clone()  # `correct` stays that of the rollouts without a hint
        self.judge(e, e.hinted)

    def choose(self, e: Experience) -> list[Candidate]:
        """The positives among the candidates, measured as far as the selection asks for it."""
        usable, name = [c for c in e.candidates if c.rejected is None], self.source.selection.name
        if name in NEEDS_LOGP:
            usable = self.with_logp(e, usable)
        if name in NEEDS_LIFT:
            usable = self.with_lift(e, usable)
        return self.source.choose(usable, e.problems)

    def with_logp(self, e: Experience, found: list[Candidate]) -> list[Candidate]:
        """With mean log π(c|q)."""
        means = self.scorer.mean_logp([e.prompts[c.problem] for c in found], [c.ids for c in found]).tolist()
        return [replace(c, logp_given_q=mean) for c, mean in zip(found, means, strict=True)]

    def with_asked(self, found: list[Candidate]) -> list[Candidate]:
        """With the same under the prompt that shows the answer, for what was written."""
        written = [c for c in found if c.asked is not None]
        means = iter(self.scorer.mean_logp([c.asked or () for c in written], [c.ids for c in written]).tolist())
        return [c if c.asked is None else replace(c, logp_given_asked=next(means)) for c in found]

    def with_lift(self, e: Experience, found: list[Candidate]) -> list[Candidate]:
        """With the answer lift over the first rollout of each problem, where there are rollouts."""
        if not found or not e.completions:
            return found
        owners = sorted({c.problem for c in found})
        own = [e.completions[i * e.group_size] for i in owners]
        prompts = [c.prompt for c in own] + [e.prompts[c.problem] for c in found]
        answers = [e.problems[i].answer for i in owners] + [e.problems[c.problem].answer for c in found]
        completions = [c.ids for c in own] + [c.ids for c in found]
        logps = self.scorer.answer_logp(prompts, completions, answers).tolist()
        base = dict(zip(owners, logps[: len(owners)], strict=True))
        return [
            replace(c, answer_lift=logp - base[c.problem]) for c, logp in zip(found, logps[len(owners) :], strict=True)
        ]


def within_length(
    problems: list[Problem], prompts: Sequence[Callable[..., list[list[int]]]], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Problem]:  # fmt: skip
    """The problems all of whose prompts (made by the given functions) fit `max_tokens`; how many do not is logged.

    Raises UserError where none does.
    """
    lengths = zip(*(map(len, make_ids(tokenizer, problems)) for make_ids in prompts), strict=True)
    kept = [p for p, length in zip(problems, lengths, strict=True) if max(length) <= max_tokens]
    if not kept:
        raise UserError(
            f"rollout.max_prompt_tokens={max_tokens}: every prompt is longer; raise it, and look at prompts"
        )
    if len(kept) < len(problems):
        dropped = len(problems) - len(kept)
        log.warning("skipped %d problems: prompt longer than rollout.max_prompt_tokens=%d", dropped, max_tokens)
    return kept

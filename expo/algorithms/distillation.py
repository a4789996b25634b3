"""On-policy self-distillation: a teacher, which is the policy seeing more, scores the student's own tokens.

    loss = GRPO's  +  λ · Σ w_T · min(ρ, ratio_cap) · D(p_S(·|q, y_<t), p_T(·|q, x, y_<t))

with privilege x, GRPO's terms as in `expo.algorithms.grpo`, w_T the weights of the tokens that the teacher guides, and
ρ = π_θ / π_old of the token, without a gradient.
No gradient goes through p_T, and no explanation is sampled. Instead of D, the teacher's opinion of the sampled token
can be (a part of) its advantage. OPSD (arXiv 2601.18734), SDPO (2601.20802), SDPG (2606.04036), RLCSD (2606.11709) and
OP²SD (2608.09228) are choices among the keys.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from expo.algorithms.base import Algorithm, Components, StepSums
from expo.algorithms.divergences import Divergence, capped
from expo.algorithms.grpo import GRPO
from expo.algorithms.terms import Rows, Scored, Term
from expo.config import SelfDistillationConf, functions_of
from expo.model.modes import in_evaluation
from expo.model.scoring import TokenBatch, score_beside
from expo.step.experience import Experience, Group
from expo.step.privilege import PRIVILEGES, privileged_prompts, wrong_answer
from expo.step.sums import COUNT, SUM, TOTAL


class Distill(Term):
    """λ · D(student, teacher), weighted by the importance ratio, over the tokens that the teacher guides."""

    name = "distill"

    def __init__(self, conf: SelfDistillationConf):
        self.conf = conf

    def active(self, rows: Rows) -> Tensor:
        return rows.guided

    def mask(self, rows: Rows) -> Tensor:
        return rows.batch.mask[: rows.rollouts] * rows.guided[: rows.rollouts].unsqueeze(1)

    def begin(self, rows: Rows, sums: StepSums) -> None:
        sums.per_update("loss/distill", 0.0)

    def __call__(self, scored: Scored, sums: StepSums) -> Tensor:
        s, conf = scored, self.conf
        assert s.divergence is not None
        return s.sampler_weights * (
            conf.distill_weight * s.token_ratio.clamp(max=conf.ratio_cap) * capped(s.divergence, conf.cap)
        )


def evenness(sums: StepSums) -> float | None:
    """Return how evenly tokens diverge, (Σ d)² / (n Σ d²) of their divergences d. 1: all alike; near 0: a few tokens
    outweigh all others, which collapses runs."""
    total, count = sums["distill/divergence" + SUM], sums["distill/divergence" + COUNT]
    squares = count * sums["_divergence_squares" + TOTAL]
    return total**2 / squares if squares else None


class SelfDistillation(GRPO):
    """One step: rollouts, the teacher's opinion of their tokens, then `updates_per_rollout` optimizer steps. A rollout
    without privilege is not distilled: to `sequence_mean` and `constant` it counts as D = 0; `token_mean` leaves it
    out."""

    conf: SelfDistillationConf

    def __init__(self, conf: SelfDistillationConf, components: Components):
        super().__init__(conf, components)
        self.average = components.average
        self.divergence = Divergence(conf.mix, conf.top_k, conf.tail)
        if conf.signal != "divergence":  # then it is only measured
            self.divergence = torch.no_grad()(self.divergence)

    def make_terms(self) -> list[Term]:
        surrogate, *others = super().make_terms()
        return [surrogate, *([Distill(self.conf)] if self.conf.signal == "divergence" else []), *others]

    def rows(self, e: Experience, groups: Sequence[Group]) -> Rows:
        rows = super().rows(e, groups)
        shown = [PRIVILEGES[self.conf.privilege], *([wrong_answer] if self.conf.signal == "contrast" else [])]
        by_row = []
        for some in shown:
            prompts = privileged_prompts(e, some, self.pipeline.tools)
            of_group = {id(group): rollouts for group, rollouts in zip(e.groups, prompts, strict=True)}
            by_row.append([prompt for group in groups for prompt in of_group[id(group)]])
        rollouts, joined = [c for group in groups for c in group.completions], self.members(groups)
        has_teacher = [all(prompts[r] is not None for prompts in by_row) for r in range(len(rollouts))]
        has_teacher += [False] * len(joined)
        # A row that the teacher does not guide passes through it under its own prompt, and counts for nothing.
        members = [group.prompt for group, _ in joined]
        sees = [[*(p or c.prompt for p, c in zip(prompts, rollouts, strict=True)), *members] for prompts in by_row]
        ids = [*(c.ids for c in rollouts), *(c.ids for _, c in joined)]
        guided = torch.tensor(has_teacher, dtype=torch.bool, device=self.device)
        return replace(rows, guided=guided, seen=[self.tokens(prompts, ids) for prompts in sees])

    def update(self, experience: Experience) -> StepSums:
        sums = super().update(experience)
        tokens = sum(len(c.ids) for group in self.chosen(experience) for c in group.completions)
        # Declared in a step in which no row is guided, too: a mean over steps is of all steps.
        sums.mean("distill/guided_frac", 0, tokens * sums.updates)
        sums.mean("distill/gap", 0, 0)
        sums.mean("distill/divergence", 0, 0)
        sums.derived["distill/evenness"] = evenness
        return sums

    def scored(
        self, rows: Rows, index: Tensor, part: TokenBatch, first: bool, sums: StepSums, logp: Tensor | None = None
    ) -> Scored:
        temperature, conf = self.pipeline.tools.sampling.temperature, self.trainer_conf
        seen, *wrong = (batch.rows(index) for batch in rows.seen)
        beside = score_beside(
            self.policy, part, self.teacher(), seen, self.divergence, temperature, conf.packing, conf.shared
        )
        scored = super().scored(rows, index, part, first, sums, beside.logp)
        guided = scored.on_policy * rows.guided[index].unsqueeze(1)
        gap, divergence = (beside.teacher_logp - beside.logp.detach()) * guided, beside.divergence.detach() * guided
        sums.mean("distill/guided_frac", guided.sum(), 0)
        sums.mean("distill/gap", gap.sum(), guided.sum())
        sums.mean("distill/divergence", divergence.sum(), guided.sum())
        sums.total("_divergence_squares", divergence.square().sum())
        if self.conf.signal == "divergence":
            return replace(scored, divergence=beside.divergence * guided)
        signal = gap
        if wrong:
            with torch.no_grad(), self.teacher() as teacher:
                against = self.score(teacher, wrong[0], temperature)[wrong[0].mask.bool()]
            against = torch.zeros_like(part.mask).masked_scatter(part.mask.bool(), against)
            signal = (beside.teacher_logp - against) * guided
        shaped = scored.advantages.unsqueeze(1) + self.conf.distill_weight * capped(signal, self.conf.cap)
        return replace(scored, token_advantages=shaped)

    def teacher(self) -> AbstractContextManager[nn.Module]:
        return TEACHERS[self.conf.teacher](self)

    def take_step(self, sums: StepSums) -> None:
        skipped = sums["policy/updates_skipped" + TOTAL]
        super().take_step(sums)
        if self.average is not None and sums["policy/updates_skipped" + TOTAL] == skipped:
            self.average_in()

    @torch.no_grad()
    def average_in(self) -> None:
        """Move the average weights θ_T towards the policy's θ: θ_T ← (1 - rate) θ_T + rate θ."""
        assert self.average is not None
        for averaged, new in zip(self.average.parameters(), self.whole_policy().parameters(), strict=True):
            if averaged.is_floating_point():  # weights in 4 bits never change
                averaged.lerp_(new.to(averaged.dtype), self.conf.average_rate)
        if self.whole is not None:
            self.whole.free()  # it is in an update, in which the copy has no memory


def _average(algorithm: SelfDistillation) -> AbstractContextManager[nn.Module]:
    assert algorithm.average is not None
    return nullcontext(algorithm.average)


TEACHERS: dict[str, Callable[[SelfDistillation], AbstractContextManager[nn.Module]]] = functions_of(
    SelfDistillationConf,
    "teacher",
    {
        "current": lambda algorithm: in_evaluation(algorithm.policy),
        "initial": Algorithm.initial_policy,
        "average": _average,
    },
)

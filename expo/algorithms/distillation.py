"""On-policy self-distillation: a teacher, which is the policy seeing more, scores the student's own tokens.

    loss = GRPO's  +  λ · Σ w_T · D(p_S(·|q, y_<t), p_T(·|q, x, y_<t))

with privilege x, GRPO's terms as in `expo.algorithms.grpo`, and w_T the weights of the tokens that the teacher guides. No gradient goes through p_T, and no explanation is
sampled. Instead of D, the teacher's opinion of the sampled token can be (a part of) its advantage. OPSD (arXiv 2601.18734),
SDPO (2601.20802), SDPG (2606.04036), RLCSD (2606.11709) and OP²SD (2608.09228) are choices among the keys.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expo.algorithms.base import Components, Sums
from expo.algorithms.divergences import Divergence, capped
from expo.algorithms.grpo import GRPO, Rows
from expo.config import SelfDistillationConf, functions_of
from expo.model.policy import as_initial, in_evaluation
from expo.model.scoring import Beside, TokenBatch, score_beside
from expo.step.experience import Experience
from expo.step.privilege import PRIVILEGES, privileged_prompts, wrong_answer


@dataclass(frozen=True)
class GuidedRows(Rows):
    """Rows, and the same completions behind the prompts that the teacher sees."""

    seen: list[TokenBatch]  # seeing the privilege; with a contrast, also seeing a wrong answer
    guided: Tensor  # [B], True where the teacher has something to see


class SelfDistillation(GRPO):
    """One step: rollouts, the teacher's opinion of their tokens, then `updates_per_rollout` optimizer steps.

    A rollout for which there is nothing to show is not distilled. The mean over tokens (`token_mean`) is then one over the others'
    tokens; in `sequence_mean` and `constant` such a rollout counts as one with a divergence of 0.
    """

    conf: SelfDistillationConf

    def __init__(self, conf: SelfDistillationConf, components: Components):
        super().__init__(conf, components)
        self.average = components.average
        self.divergence = Divergence(conf.mix, conf.top_k, conf.top_of, conf.tail)
        if conf.signal != "divergence":  # then it is only measured
            self.divergence = torch.no_grad()(self.divergence)

    def rows(self, e: Experience) -> Rows:
        rows = super().rows(e)
        shown = [PRIVILEGES[self.conf.privilege], *([wrong_answer] if self.conf.signal == "contrast" else [])]
        by_row = [privileged_prompts(e, s, self.pipeline.tools) for s in shown]
        chosen = [i * e.group_size + g for i in self.chosen(e).tolist() for g in range(e.group_size)]
        own, joined = self.sequences(e)
        ids = [*(c.ids for c in own), *(c.ids for c in joined)]
        there = [all(prompts[r] is not None for prompts in by_row) for r in chosen] + [False for _ in joined]
        guided = torch.tensor(there, dtype=torch.bool, device=self.device)
        # A row that the teacher does not guide passes through it under its own prompt, and counts for nothing.
        unaided = [*(c.prompt for c in own), *(e.prompts[c.problem] for c in joined)]
        sees = [[*(p[r] or q for r, q in zip(chosen, unaided, strict=False)), *unaided[len(own) :]] for p in by_row]
        seen = [self.tokens(prompts, ids) for prompts in sees]
        return GuidedRows(**vars(rows), seen=seen, guided=guided)

    def further_weights(self, rows: Rows) -> Tensor:
        assert isinstance(rows, GuidedRows)
        return self.weights(rows.batch.mask * rows.guided.unsqueeze(1))

    def policy_stream(self, rows: Rows, active: Tensor, first: bool, sums: Sums) -> None:
        sums["guided"] += 0.0  # logged in a step in which no row is guided, too: a mean over steps is of all steps
        if self.conf.signal == "divergence":
            sums["loss/distill"] += 0.0
        super().policy_stream(rows, active, first, sums)

    def active(self, rows: Rows) -> Tensor:
        assert isinstance(rows, GuidedRows)
        rest = torch.zeros_like(rows.guided).index_fill(0, super().active(rows), True)
        return (rest | rows.guided).nonzero().squeeze(1)

    def scored(
        self, rows: Rows, index: Tensor, part: TokenBatch
    ) -> tuple[Tensor, tuple[Beside, Tensor | None, Tensor]]:
        assert isinstance(rows, GuidedRows)
        temperature, conf = self.pipeline.tools.sampling.temperature, self.trainer_conf
        seen, *wrong = (batch.rows(index) for batch in rows.seen)
        beside = score_beside(
            self.policy, part, self.teacher(), seen, self.divergence, temperature, conf.packing, conf.share_prompts
        )
        against = None
        if wrong:
            with torch.no_grad(), self.teacher() as teacher:
                against = self._aligned(self.score(teacher, wrong[0], temperature), wrong[0], part)
        return beside.logp, (beside, against, rows.guided[index].unsqueeze(1))

    def _aligned(self, scores: Tensor, seen: TokenBatch, part: TokenBatch) -> Tensor:
        """Return scores of tokens behind other prompts at the places where the tokens are in `part`."""
        return torch.zeros_like(part.mask).masked_scatter(part.mask.bool(), scores[seen.mask.bool()])

    def guided(
        self,
        advantages: Tensor,
        mask: Tensor,
        rho: Tensor,
        found: tuple[Beside, Tensor | None, Tensor],
        sums: Sums,
    ) -> tuple[Tensor, Tensor | None]:
        beside, against, there = found
        mask = mask * there  # of tokens that are there, see `policy_stream`
        gap = (beside.teacher_logp - beside.logp.detach()) * mask
        apart = beside.divergence.detach() * mask
        sums["guided"] += mask.sum().item()
        sums["gap"] += gap.sum().item()
        sums["divergence"] += apart.sum().item()
        sums["divergence_squares"] += apart.square().sum().item()
        weight, cap = self.conf.distill_weight, self.conf.cap
        if self.conf.signal == "divergence":
            return advantages, weight * mask * rho.clamp(max=self.conf.ratio_cap) * capped(beside.divergence, cap)
        signal = gap if against is None else (beside.teacher_logp - against) * mask
        return advantages.unsqueeze(1) + weight * capped(signal, cap), None

    def teacher(self) -> AbstractContextManager[nn.Module]:
        """Return a context that gives the model which scores as the teacher."""
        return TEACHERS[self.conf.teacher](self)

    def take_step(self, sums: Sums) -> None:
        skipped = sums["skipped"]
        super().take_step(sums)
        if self.average is not None and sums["skipped"] == skipped:
            self.average_in()

    @torch.no_grad()
    def average_in(self) -> None:
        """Move the average towards the policy: θ_T ← (1 - rate) θ_T + rate θ."""
        assert self.average is not None
        for own, new in zip(self.average.parameters(), self.whole_policy().parameters(), strict=True):
            if own.is_floating_point():  # weights in 4 bits never change
                own.lerp_(new.to(own.dtype), self.conf.average_rate)
        if self.whole is not None:
            self.whole.free()  # it is in an update, in which the copy has no memory


def _current(algorithm: SelfDistillation) -> AbstractContextManager[nn.Module]:
    return in_evaluation(algorithm.policy)


def _initial(algorithm: SelfDistillation) -> AbstractContextManager[nn.Module]:
    return as_initial(algorithm.policy) if algorithm.reference is None else nullcontext(algorithm.reference)


def _average(algorithm: SelfDistillation) -> AbstractContextManager[nn.Module]:
    assert algorithm.average is not None
    return nullcontext(algorithm.average)


TEACHERS: dict[str, Callable[[SelfDistillation], AbstractContextManager[nn.Module]]] = functions_of(
    SelfDistillationConf, "teacher", {"current": _current, "initial": _initial, "average": _average}
)

"""GRPO (arXiv 2402.03300) with positives: with self-explanations as an auxiliary SFT stream, ExP-GRPO (2507.02834).

    loss = Σ w · -min(ρ Â, clip(ρ) Â)  +  kl_coef · Σ w · KL(π_θ || π_ref)  -  entropy_coef · Σ w · H(π_θ)
           +  β · Σ w⁺ · -log π_θ(c̃ | q)

over the tokens of rollouts (weights w) and of positives (w⁺), see `expo.algorithms.terms` and `losses`. Dr. GRPO, DAPO,
GSPO, CISPO, SAPO, RLOO and LUFFY are choices of advantage, ratio, surrogate, weights and of what positives are used as.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from expo.algorithms import losses
from expo.algorithms.base import Algorithm, Components, StepSums
from expo.algorithms.terms import KL, Entropy, Rows, Scored, Surrogate, Term
from expo.config import GRPOConf
from expo.model.scoring import TokenBatch
from expo.step.experience import Candidate, Experience, Group
from expo.step.problems import Retries


class GRPO(Algorithm):
    """One step: rollouts and positives, then `updates_per_rollout` optimizer steps on them."""

    conf: GRPOConf

    def __init__(self, conf: GRPOConf, components: Components):
        super().__init__(conf, components)
        self.retries = Retries(self.sampler, conf.retry) if conf.retry < 1 else None
        self.terms = self.make_terms()

    def make_terms(self) -> list[Term]:
        conf = self.conf
        terms: list[Term] = [Surrogate(conf, self.positive_loss.member_shaping)]
        terms += [KL(conf)] if conf.kl_coef else []
        terms += [Entropy(conf.entropy_coef)] if conf.entropy_coef else []
        return terms

    def collect(self, step: int) -> Experience:
        if self.retries:
            return self.pipeline.run(step, self.retries.deal(), self.conf.group_size)
        experience = super().collect(step)
        for number in range(1, self.conf.refills + 1):
            if len(self.informative(experience)) >= self.trainer_conf.problems_per_step:
                break
            problems, offset = self.sampler.refill(step, number), len(experience.groups)
            experience += self.pipeline.run(step, problems, self.conf.group_size, offset)
        return experience

    def update(self, experience: Experience) -> StepSums:
        groups = self.chosen(experience)
        rows = self.rows(experience, groups)
        auxiliary = experience.positive_weight > 0 and not self.positive_loss.joins_groups
        positives = experience.positives if auxiliary else []
        active = torch.stack([term.active(rows) for term in self.terms]).any(dim=0).nonzero().squeeze(1)
        sums = StepSums(self.conf.updates_per_rollout)
        if self.retries:
            self.retries.learn(experience.problems, self.with_gradient(groups, rows, positives))
            sums.total("problem/passed_over", self.retries.passed)
        for update in range(self.conf.updates_per_rollout):
            self.policy_stream(rows, active, update == 0, sums)
            self.positive_stream(positives, experience.positive_weight, sums)
            if len(active) or positives:
                self.take_step(sums)
        return sums

    def with_gradient(
        self, groups: Sequence[Group], rows: Rows, positives: Sequence[tuple[Group, Candidate]]
    ) -> set[int]:
        """Return the indices of the groups with a gradient of rewards or positives. Args: rows, of all groups."""
        owners = [group for group in groups for _ in group.completions] + [group for group, _ in self.members(groups)]
        learned = {id(group) for group, a in zip(owners, rows.advantages.tolist(), strict=True) if a}
        learned |= {id(group) for group, _ in positives}
        return {i for i, group in enumerate(groups) if id(group) in learned}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.retries:
            checkpoint["retries"] = self.retries.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.retries:
            self.retries.load_state_dict(checkpoint["retries"])

    def members(self, groups: Sequence[Group]) -> list[tuple[Group, Candidate]]:
        """Return the positive that has joined each group: the first of its problem. Empty where positives join none."""
        if not self.positive_loss.joins_groups:
            return []
        return [(group, group.positives[0]) for group in groups if group.positives]

    def informative(self, e: Experience) -> list[Group]:
        """Return the groups whose members have unequal rewards; a positive that has joined has a reward of 1."""
        return [
            group
            for group in e.groups
            if max(group.rewards) > min(group.rewards) or (self.members([group]) and min(group.rewards) < 1)
        ]

    def chosen(self, e: Experience) -> list[Group]:
        """Return the groups that are trained on: all, or, where a step refills, the first informative ones."""
        return self.informative(e)[: self.trainer_conf.problems_per_step] if self.conf.refills else e.groups

    def rows(self, e: Experience, groups: Sequence[Group]) -> Rows:
        """Return the rollouts, then the positives that joined, with advantages. Args: e, the whole, for subclasses."""
        rollouts, joined = [(group, c) for group in groups for c in group.completions], self.members(groups)
        on_policy, from_positive = self.advantages(groups)
        prompts = [c.prompt for _, c in rollouts] + [group.prompt for group, _ in joined]
        batch = self.tokens(prompts, [*(c.ids for _, c in rollouts), *(c.ids for _, c in joined)])
        sampler = [logp for _, c in rollouts for logp in c.logp] + [0.0 for _, c in joined for _ in c.ids]
        zeros = torch.zeros_like(batch.mask)
        under_question = self.pipeline.hints.under_question
        swapped = [under_question and hinted for group in groups for hinted in group.hinted]
        return Rows(
            batch,
            torch.cat([on_policy, from_positive]).to(self.device),
            torch.tensor([False] * len(rollouts) + [True] * len(joined), device=self.device).unsqueeze(1),
            zeros.masked_scatter(batch.mask.bool(), torch.tensor(sampler, device=self.device)),
            zeros.clone(),
            torch.tensor([not s for s in swapped] + [True] * len(joined), device=self.device).unsqueeze(1),
            guided=torch.zeros(len(prompts), dtype=torch.bool, device=self.device),
        )

    def advantages(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """Return the advantages of the rollouts `[P * G]`, and of joined positives, each with a reward of 1."""
        conf, max_tokens = self.conf, self.pipeline.tools.sampling.max_tokens
        joined = {id(group) for group, _ in self.members(groups)}
        has_member = torch.tensor([[float(id(group) in joined)] for group in groups]).reshape(-1, 1)  # [P, 1]
        shape = len(groups), conf.group_size
        lengths = torch.tensor([[len(c.ids) for c in group.completions] for group in groups]).reshape(shape)
        penalty = conf.overlong_penalty * losses.overlong_penalty(lengths, max_tokens, conf.overlong_share)
        rewards = torch.tensor([group.rewards for group in groups]).reshape(shape) + penalty
        is_rollout, none = torch.ones_like(rewards), torch.zeros_like(has_member)
        advantages = losses.group_advantages(
            torch.cat([rewards, torch.ones_like(has_member)], dim=1),
            conf.advantage,
            members=torch.cat([is_rollout, has_member], dim=1),
            in_baseline=torch.cat(
                [is_rollout, has_member if self.positive_loss.member_baseline == "all" else none], dim=1
            ),
        )
        return advantages[:, :-1].flatten(), advantages[:, -1:][has_member.bool()]

    def weights(self, term: Term, rows: Rows) -> Tensor:
        """Return the weights of all tokens `[B, T]` in the mean of a term, 0 off its mask."""
        mask, count = term.mask(rows), len(rows.batch.mask)
        weights = losses.token_weights(mask, self.conf.aggregation, self.pipeline.tools.sampling.max_tokens)
        return torch.cat([weights, weights.new_zeros(count - len(mask), weights.shape[1])])

    def policy_stream(self, rows: Rows, active: Tensor, first: bool, sums: StepSums) -> None:
        """Go backward through the terms of the loss, micro-batch by micro-batch. Args: active, indices of the rows with
        a gradient; first, whether no update has moved the policy since the rollouts."""
        weights = [self.weights(term, rows) for term in self.terms]
        for term in self.terms:
            term.begin(rows, sums)
        for index, part in self.micro_batches(rows.batch, active, sums):
            scored = self.scored(rows, index, part, first, sums)
            values = [
                (w[index, : part.mask.shape[1]] * term(scored, sums)).sum()
                for term, w in zip(self.terms, weights, strict=True)
            ]
            loss = torch.as_tensor(sum(term.coefficient * v for term, v in zip(self.terms, values, strict=True)))
            self.manual_backward(loss)
            for term, value in zip(self.terms, values, strict=True):
                sums.per_update(f"loss/{term.name}", value)
            sums.per_update("loss/total", loss)
            sums.total("throughput/tokens_trained", scored.mask.sum())

    def scored(
        self, rows: Rows, index: Tensor, part: TokenBatch, first: bool, sums: StepSums, logp: Tensor | None = None
    ) -> Scored:
        """Score a micro-batch of b rows for the terms. Args: index `[b]`, its rows; logp `[b, T]`, the policy's, where
        a subclass has scored them already. The first pass fills `rows.old_logp`."""
        conf, temperature = self.conf, self.pipeline.tools.sampling.temperature
        entropy = None
        if logp is None and any(term.needs_entropy for term in self.terms):
            logp, entropy = self.score(self.policy, part, temperature, with_entropy=True)
        elif logp is None:
            logp = self.score(self.policy, part, temperature)
        # 1 for each token, whatever share of it a term's mask counts: that share is in `weights`.
        cut, mask = (index, slice(part.mask.shape[1])), (part.mask > 0).float()
        if first:
            rows.old_logp[cut] = logp.detach()
        old_logp, sampler_logp, from_positive = rows.old_logp[cut], rows.sampler_logp[cut], rows.from_positive[index]
        on_policy = mask * ~from_positive
        as_sampled = on_policy * rows.as_sampled[index]
        sampler_kl = (as_sampled * losses.kl(sampler_logp, old_logp, "k3")).sum()
        sums.mean("policy/sampler_kl", sampler_kl, as_sampled.sum())
        sampler_weights = losses.sampler_weights(
            old_logp, sampler_logp, mask, conf.sampler_correction, conf.sampler_cap
        )
        advantages = rows.advantages[index]
        return Scored(
            logp, old_logp, mask, on_policy, from_positive, advantages, advantages, sampler_weights,
            partial(self.score_reference, part, temperature), entropy,
        )  # fmt: skip

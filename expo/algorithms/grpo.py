"""GRPO (arXiv 2402.03300) with positives: with self-explanations as an auxiliary SFT stream, ExP-GRPO (2507.02834).

    loss = Σ w · -min(ρ Â, clip(ρ) Â)  +  kl_coef · Σ w · KL(π_θ || π_ref)  +  β · Σ w⁺ · -log π_θ(c̃ | q)

over the tokens of rollouts (weights w) and of positives (w⁺), see `expo.algorithms.losses`. Dr. GRPO, DAPO, GSPO, RLOO and LUFFY are
choices of advantage, ratio, clip, weights and of what positives are used as.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expo.algorithms import losses
from expo.algorithms.base import Algorithm, Components, Sums
from expo.config import GRPOConf
from expo.model.scoring import TokenBatch
from expo.rollout.engine import Completion
from expo.step.experience import Candidate, Experience
from expo.step.problems import Retries


@dataclass(frozen=True)
class Rows:
    """The rows of the policy-gradient stream: rollouts, then positives that are group members."""

    batch: TokenBatch
    advantages: Tensor  # [B]
    off_policy: Tensor  # [B, 1], True for a member that the policy did not sample
    sampler_logp: Tensor  # [B, T], 0 where off-policy
    old_logp: Tensor  # [B, T], filled by the first pass
    as_sampled: Tensor  # [B, 1], True where the prompt is the one behind which the row was sampled


class GRPO(Algorithm):
    """One step: rollouts and positives, then `updates_per_rollout` optimizer steps on them."""

    conf: GRPOConf

    def __init__(self, conf: GRPOConf, components: Components):
        super().__init__(conf, components)
        self.retries = Retries(self.sampler, conf.retry) if conf.retry < 1 else None

    def collect(self, step: int) -> Experience:
        if self.retries:
            return self.pipeline.run(step, self.retries.deal(), self.conf.group_size)
        experience = super().collect(step)
        for number in range(1, self.conf.refills + 1):
            if len(self.informative(experience)) >= self.trainer_conf.problems_per_step:
                break
            problems, offset = self.sampler.refill(step, number), len(experience.problems)
            experience = experience.join(self.pipeline.run(step, problems, self.conf.group_size, offset))
        return experience

    def update(self, experience: Experience, beta: float) -> Sums:
        rows = self.rows(experience)
        positives = experience.positives if beta > 0 and not self.pipeline.source.joins_groups else []
        active = self.active(rows)
        sums = Sums(float, updates=self.conf.updates_per_rollout)
        if self.retries:
            self.retries.learn(experience.problems, self.taught(experience, rows, positives))
            sums["passed_over"] = self.retries.passed
        for update in range(self.conf.updates_per_rollout):
            self.policy_stream(rows, active, update == 0, sums)
            self.positive_stream(experience.prompts, positives, beta, sums)
            if len(active) or positives:
                self.take_step(sums)
        return sums

    def active(self, rows: Rows) -> Tensor:
        """Return the indices of the rows that have a gradient; others cost no pass at all."""
        # A group of equal rewards has no policy gradient.
        return (torch.ones_like(rows.advantages) if self.conf.kl_coef else rows.advantages).nonzero().squeeze(1)

    def taught(self, e: Experience, rows: Rows, positives: Sequence[Candidate]) -> set[int]:
        """Return the problems with a gradient of rewards or positives. Args: rows, those of all groups of `e`."""
        own, joined = rows.advantages.bool().split([len(e.completions), len(rows.advantages) - len(e.completions)])
        members = [i for i, taught in zip(sorted(self.members(e)), joined.tolist(), strict=True) if taught]
        groups = own.view(len(e.problems), -1).any(dim=1).nonzero().squeeze(1).tolist()
        return {*groups, *members, *(c.problem for c in positives)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.retries:
            checkpoint["retries"] = self.retries.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.retries:
            self.retries.load_state_dict(checkpoint["retries"])

    def members(self, e: Experience) -> dict[int, Candidate]:
        """Return the positive that has joined each group: the first of its problem. Empty where positives join none."""
        return {c.problem: c for c in reversed(e.positives) if self.pipeline.source.joins_groups}

    def informative(self, e: Experience) -> Tensor:
        """Return the indices of the groups with both right and wrong members; a positive that has joined is right."""
        members, lowest, highest = self.members(e), e.rewards.amin(dim=1), e.rewards.amax(dim=1)
        joined = torch.tensor([i in members for i in range(len(e.problems))], dtype=torch.bool)
        return ((highest > lowest) | (joined & (lowest < 1))).nonzero().squeeze(1)

    def rows(self, e: Experience) -> Rows:
        """Return what the policy-gradient stream trains on, with advantages."""
        groups, members = self.chosen(e), self.members(e)
        there = torch.tensor([float(i in members) for i in groups.tolist()]).unsqueeze(1)  # [P, 1]
        on_policy, off_policy = self.advantages(e, groups, there)
        own, joined = self.sequences(e)
        prompts = [c.prompt for c in own] + [e.prompts[c.problem] for c in joined]
        batch = self.tokens(prompts, [*(c.ids for c in own), *(c.ids for c in joined)])
        sampler = [logp for c in own for logp in c.logp] + [0.0 for c in joined for _ in c.ids]
        zeros = torch.zeros_like(batch.mask)
        under_question = self.pipeline.hints.under_question
        swapped = [under_question and e.made_with_hint(i, g) for i in groups.tolist() for g in range(e.group_size)]
        return Rows(
            batch,
            torch.cat([on_policy, off_policy]).to(self.device),
            torch.tensor([False] * len(own) + [True] * len(joined), device=self.device).unsqueeze(1),
            zeros.masked_scatter(batch.mask.bool(), torch.tensor(sampler, device=self.device)),
            zeros.clone(),
            torch.tensor([not s for s in swapped] + [True] * len(joined), device=self.device).unsqueeze(1),
        )

    def chosen(self, e: Experience) -> Tensor:
        """Return the indices of the groups that are trained on."""
        whole = torch.arange(len(e.problems))
        return self.informative(e)[: self.trainer_conf.problems_per_step] if self.conf.refills else whole

    def sequences(self, e: Experience) -> tuple[list[Completion], list[Candidate]]:
        """Return the completions of the chosen groups, and the positives that have joined them: in the order of the rows."""
        groups, members = self.chosen(e).tolist(), self.members(e)
        own = [e.completions[i * e.group_size + g] for i in groups for g in range(e.group_size)]
        return own, [members[i] for i in groups if i in members]

    def weights(self, mask: Tensor) -> Tensor:
        """Return the weights of the tokens of a mask `[B, T]`."""
        return losses.token_weights(mask, self.conf.aggregation, self.pipeline.tools.sampling.max_tokens)

    def further_weights(self, rows: Rows) -> Tensor:
        """Return the weights `[B, T]` of the further loss, see `guided`."""
        return self.weights(rows.batch.mask)

    def scored(self, rows: Rows, index: Tensor, part: TokenBatch) -> tuple[Tensor, Any]:
        """Return log-probabilities `[B, T]` of some rows, and what else was found on the way; see `guided`."""
        return self.score(self.policy, part, self.pipeline.tools.sampling.temperature), None

    def guided(
        self, advantages: Tensor, mask: Tensor, rho: Tensor, found: Any, sums: Sums
    ) -> tuple[Tensor, Tensor | None]:
        """Return the advantages of some rows, `[B]` or `[B, T]`, and a further loss per token `[B, T]`, where there is one.

        Args: mask, of the policy's own tokens; rho `[B, T]`, π_θ / π_old of each, no gradient; found, see `scored`.
        """
        return advantages, None

    def advantages(self, e: Experience, groups: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return the advantages of the groups' rollouts `[P * G]`, and of the positives that have joined.

        Args: groups `[P]`, indices of problems; there `[P, 1]`, 1 where a positive has joined, with a reward of 1.
        """
        conf, source, max_tokens = self.conf, self.pipeline.source, self.pipeline.tools.sampling.max_tokens
        chosen = [e.completions[i * e.group_size + g] for i in groups.tolist() for g in range(e.group_size)]
        lengths = torch.tensor([len(c.ids) for c in chosen]).view(-1, e.group_size)
        penalty = conf.overlong_penalty * losses.overlong_penalty(lengths, max_tokens, conf.overlong_share)
        rewards = e.rewards[groups] + penalty
        own, none = torch.ones_like(rewards), torch.zeros_like(there)
        advantages = losses.group_advantages(
            torch.cat([rewards, torch.ones_like(there)], dim=1),
            conf.advantage,
            members=torch.cat([own, there], dim=1),
            baseline=torch.cat([own, there if source.member_baseline == "all" else none], dim=1),
        )
        return advantages[:, :-1].flatten(), advantages[:, -1:][there.bool()]

    def policy_stream(self, rows: Rows, active: Tensor, first: bool, sums: Sums) -> None:
        """Go backward through the policy-gradient and KL terms. The first pass over the rows writes `old_logp`."""
        conf, sampling = self.conf, self.pipeline.tools.sampling
        weights, further_weights = self.weights(rows.batch.mask), self.further_weights(rows)
        for index, part in self.parts(rows.batch, active, sums):
            # A fractional mask is a weight, which `weights` has; here it says which tokens there are.
            cut, mask = (index, slice(part.mask.shape[1])), (part.mask > 0).float()
            w, advantages, off_policy = weights[cut], rows.advantages[index], rows.off_policy[index]
            logp, found = self.scored(rows, index, part)
            if first:  # no update has moved the policy since it acted
                rows.old_logp[cut] = logp.detach()
            old_logp, sampler_logp, own = rows.old_logp[cut], rows.sampler_logp[cut], mask * ~off_policy
            moved = (logp.detach() - old_logp).clamp(-losses.MAX_LOG_RATIO, losses.MAX_LOG_RATIO).exp()
            by_token, further = self.guided(advantages, own, moved, found, sums)
            per_token, rho, clipped = losses.policy_loss(
                logp, old_logp, mask, by_token, conf.clip_low, conf.clip_high, conf.ratio
            )
            trust = losses.sampler_weights(old_logp, sampler_logp, mask, conf.sampler_correction, conf.sampler_cap)
            member = losses.off_policy_loss(logp, advantages, self.pipeline.source.member_shaping)
            loss = policy = (w * torch.where(off_policy, member, trust * per_token)).sum()
            if further is not None:
                added = (further_weights[cut] * own * trust * further).sum()
                sums["loss/distill"] += added.item()
                loss = loss + added
            if conf.kl_coef:
                ref_logp = self.reference_score(part, sampling.temperature)
                per_token_kl = own * losses.kl(logp, ref_logp, conf.kl_estimator)
                kl = (w * per_token_kl).sum()
                sums["loss/kl"] += kl.item()
                sums["kl"] += per_token_kl.sum().item()
                sums["kl_tokens"] += own.sum().item()
                loss = loss + conf.kl_coef * kl
            self.manual_backward(loss)
            sums["loss/policy"] += policy.item()
            sums["loss/total"] += loss.item()
            sums["tokens"] += own.sum().item()
            sums["trained"] += mask.sum().item()
            sums["ratio"] += (rho * own).sum().item()
            sums["clipped"] += (clipped * own).sum().item()
            as_sampled = own * rows.as_sampled[index]
            sums["as_sampled"] += as_sampled.sum().item()
            sums["sampler_kl"] += (as_sampled * losses.kl(sampler_logp, old_logp, "k3")).sum().item()

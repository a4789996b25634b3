"""GRPO (arXiv 2402.03300) with positives: with self-explanations as an auxiliary SFT stream, ExP-GRPO (2507.02834).

    loss = Σ w · -min(ρ Â, clip(ρ) Â)  +  kl_coef · Σ w · KL(π_θ || π_ref)  +  β · Σ w⁺ · -log π_θ(c̃ | q)

over the tokens of rollouts (weights w) and of positives (w⁺), see `expo.losses`. Dr. GRPO, DAPO, GSPO, RLOO and LUFFY are
choices of advantage, ratio, clip, weights and of what positives are used as.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from expo import losses
from expo.algorithms.base import Algorithm, Sums
from expo.algorithms.parts import Parts
from expo.experience import Candidate, Experience
from expo.policy import TokenBatch, micro_batches
from expo.schema_learning import KL, Advantage, Aggregation, Baseline, Correction, Ratio, Use


@dataclass(frozen=True)
class Rows:
    """The rows of the policy-gradient stream: rollouts, then positives that are group members."""

    batch: TokenBatch
    advantages: Tensor  # [B]
    off_policy: Tensor  # [B, 1], True for a member that the policy did not sample
    sampler_logp: Tensor  # [B, T], 0 where off-policy
    old_logp: Tensor  # [B, T], filled by the first pass


class GRPO(Algorithm):
    """One step: rollouts and positives, then `updates_per_rollout` optimizer steps on them."""

    def __init__(
        self, parts: Parts, *, group_size: int, updates_per_rollout: int, advantage: Advantage, ratio: Ratio,
        clip_low: float, clip_high: float, aggregation: Aggregation, kl_coef: float, kl_estimator: KL, refills: int,
        overlong_share: float, sampler_correction: Correction, sampler_cap: float,
    ):  # fmt: skip
        super().__init__(parts, group_size)
        self.updates_per_rollout, self.advantage, self.ratio = updates_per_rollout, advantage.name, ratio.name
        self.clip_low, self.clip_high, self.aggregation = clip_low, clip_high, aggregation.name
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator.name
        self.refills, self.overlong_share = refills, overlong_share
        self.sampler_correction, self.sampler_cap = sampler_correction.name, sampler_cap

    def collect(self, step: int) -> Experience:
        experience = super().collect(step)
        for number in range(1, self.refills + 1):
            if len(self.informative(experience)) >= self.conf.problems_per_step:
                break
            problems, first = self.sampler.refill(step, number), len(experience.problems)
            experience = experience.join(self.collector.collect(step, problems, self.group_size, first))
        return experience

    def update(self, experience: Experience, beta: float) -> Sums:
        rows = self.rows(experience)
        positives = experience.positives if beta > 0 and not self.members else []
        # A group of equal rewards has no policy gradient: without a KL term its rows cost no pass at all.
        active = (torch.ones_like(rows.advantages) if self.kl_coef else rows.advantages).nonzero().squeeze(1)
        sums = Sums(float, updates=self.updates_per_rollout)
        for update in range(self.updates_per_rollout):
            self.policy_stream(rows, active, update == 0, sums)
            self.positive_stream(experience.prompts, positives, beta, sums)
            if len(active) or positives:
                self.take_step(sums)
        return sums

    @property
    def members(self) -> bool:
        """Whether positives join the groups."""
        return self.collector.source.use is Use.group_member

    def joined(self, e: Experience) -> dict[int, Candidate]:
        """The positive that has joined each group: the first of its problem."""
        return {c.problem: c for c in reversed(e.positives) if self.members}

    def informative(self, e: Experience) -> Tensor:
        """Indices of the groups with both right and wrong members; a positive that has joined is right."""
        joined, lowest, highest = self.joined(e), e.rewards.amin(dim=1), e.rewards.amax(dim=1)
        helped = torch.tensor([i in joined for i in range(len(e.problems))])
        return ((highest > lowest) | (helped & (lowest < 1))).nonzero().squeeze(1)

    def rows(self, e: Experience) -> Rows:
        """What the policy-gradient stream trains on, with advantages."""
        source, sampling = self.collector.source, self.collector.tools.sampling
        joined = self.joined(e)
        groups = torch.arange(len(e.problems))
        if self.refills:
            groups = self.informative(e)[: self.conf.problems_per_step]
        there = torch.tensor([float(i in joined) for i in groups.tolist()]).unsqueeze(1)  # [P, 1]
        chosen = [e.completions[i * e.group_size + g] for i in groups.tolist() for g in range(e.group_size)]
        added = [joined[i] for i in groups.tolist() if i in joined]
        lengths = torch.tensor([len(c.ids) for c in chosen]).view(-1, e.group_size)
        rewards = e.rewards[groups] + losses.overlong_penalty(lengths, sampling.max_tokens, self.overlong_share)
        own, none = torch.ones_like(rewards), torch.zeros_like(there)
        baseline = torch.cat([own, there if source.member_baseline is Baseline.all else none], dim=1)
        advantages = losses.group_advantages(
            torch.cat([rewards, torch.ones_like(there)], dim=1),
            self.advantage,
            torch.cat([own, there], dim=1),
            baseline,
        )
        on_policy, off_policy = advantages[:, :-1].flatten(), advantages[:, -1:][there.bool()]
        batch = self.tokens(
            [c.prompt for c in chosen] + [e.prompts[c.problem] for c in added], [c.ids for c in [*chosen, *added]]
        )
        sampler = [logp for c in chosen for logp in c.logp] + [0.0 for c in added for _ in c.ids]
        zeros = torch.zeros_like(batch.mask)
        return Rows(
            batch,
            torch.cat([on_policy, off_policy]).to(self.device),
            torch.tensor([False] * len(chosen) + [True] * len(added), device=self.device).unsqueeze(1),
            zeros.masked_scatter(batch.mask.bool(), torch.tensor(sampler, device=self.device)),
            zeros.clone(),
        )

    def policy_stream(self, rows: Rows, active: Tensor, first: bool, sums: Sums) -> None:
        """Backward through the policy-gradient and KL terms. The first pass over the rows writes `old_logp`."""
        sampling, shaping = self.collector.tools.sampling, self.collector.source.member_shaping
        weights = losses.token_weights(rows.batch.mask, self.aggregation, sampling.max_tokens)
        for index, part in micro_batches(rows.batch, active, self.conf.micro_batch_size):
            cut, mask = (index, slice(part.mask.shape[1])), part.mask
            w, advantages, off_policy = weights[cut], rows.advantages[index], rows.off_policy[index]
            logp = self.score(self.policy, part, sampling.temperature)
            if first:  # no update has moved the policy since it acted
                rows.old_logp[cut] = logp.detach()
            old_logp, sampler_logp = rows.old_logp[cut], rows.sampler_logp[cut]
            per_token, rho, clipped = losses.policy_loss(
                logp, old_logp, mask, advantages, self.clip_low, self.clip_high, self.ratio
            )
            trust = losses.sampler_weights(old_logp, sampler_logp, mask, self.sampler_correction, self.sampler_cap)
            member = losses.off_policy_loss(logp, advantages, shaping)
            loss = policy = (w * torch.where(off_policy, member, trust * per_token)).sum()
            own = mask * ~off_policy
            if self.kl_coef:
                ref_logp = self.reference_score(part, sampling.temperature)
                kl = (w * own * losses.kl(logp, ref_logp, self.kl_estimator)).sum()
                sums["loss/kl"] += kl.item()
                loss = policy + self.kl_coef * kl
            self.manual_backward(loss)
            sums["loss/policy"] += policy.item()
            sums["loss/total"] += loss.item()
            sums["tokens"] += own.sum().item()
            sums["trained"] += mask.sum().item()
            sums["ratio"] += (rho * own).sum().item()
            sums["clipped"] += (clipped * own).sum().item()
            sums["sampler_kl"] += (own * losses.kl(sampler_logp, old_logp, "k3")).sum().item()

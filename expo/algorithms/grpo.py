"""GRPO (arXiv 2402.03300) with an auxiliary SFT stream of positives: with self-explanations, ExP-GRPO (2507.02834).

    loss = Σ w · -min(ρ Â, clip(ρ) Â)  +  kl_coef · Σ w · KL(π_θ || π_ref)  +  β · Σ w⁺ · -log π_θ(c̃ | q)

over the tokens of rollouts (weights w) and of positives (w⁺), see `expo.losses`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from expo import losses
from expo.algorithms.base import Algorithm, Sums
from expo.experience import Collector, Experience, ProblemSampler
from expo.metrics import step_metrics
from expo.policy import TokenBatch, mean_logp, micro_batches, score
from expo.randomness import DROPOUT, Key
from expo.schema import KL, Aggregation, OnBad, OptimizerConf


class GRPO(Algorithm):
    """One step: rollouts and positives, then `updates_per_rollout` optimizer steps on them.

    `snapshot` is the copy of the policy that explains where `positives.explainer=snapshot`; it is refreshed here.
    """

    def __init__(
        self, *, policy: PreTrainedModel, reference: PreTrainedModel | None, snapshot: PreTrainedModel | None,
        collector: Collector, sampler: ProblemSampler, optimizer: OptimizerConf, max_steps: int, micro_batch_size: int,
        on_nonfinite: OnBad, group_size: int, updates_per_rollout: int, advantage_std: bool, clip_low: float,
        clip_high: float, aggregation: Aggregation, kl_coef: float, kl_estimator: KL,
    ):  # fmt: skip
        super().__init__(policy, reference, collector, optimizer, on_nonfinite)
        self.snapshot, self.sampler = snapshot, sampler
        self.max_steps, self.micro_batch_size = max_steps, micro_batch_size
        self.group_size, self.updates_per_rollout, self.advantage_std = group_size, updates_per_rollout, advantage_std
        self.clip_low, self.clip_high, self.aggregation = clip_low, clip_high, aggregation.name
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator.name

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Step number `batch`."""
        source = self.collector.source
        torch.manual_seed(int(Key(self.collector.seed, DROPOUT, batch).generator().integers(2**62)))
        if self.snapshot is not None and source.refreshes_snapshot(batch):
            self.snapshot.load_state_dict(self.policy.state_dict())
        experience = self.collector.collect(batch, self.sampler.batch(batch), self.group_size, self.score_positives)
        beta = source.weight_at(batch / self.max_steps, experience.all_wrong.float().mean().item())
        with experience.timer("update"):
            sums = self.update(experience, beta)
        with experience.timer("sync"):
            self.collector.engine.sync()
        self.last_experience, self.last_metrics = experience, step_metrics(experience, sums, beta)

    def update(self, experience: Experience, beta: float) -> Sums:
        """All optimizer steps on one batch of rollouts. Returns sums over updates, for the metrics."""
        completions, positives = experience.completions, experience.positives if beta > 0 else []
        rollouts = self.tokens([c.prompt for c in completions], [c.ids for c in completions])
        positive = self.tokens([experience.prompts[c.problem] for c in positives], [c.ids for c in positives])
        advantages = losses.group_advantages(experience.rewards, self.advantage_std).flatten().to(self.device)
        # A group of equal rewards has no policy gradient: without a KL term its rows cost no pass at all.
        active = (torch.ones_like(advantages) if self.kl_coef else advantages).nonzero().squeeze(1)
        old_logp = torch.zeros_like(rollouts.mask)
        sums = Sums(float, updates=self.updates_per_rollout)
        for update in range(self.updates_per_rollout):
            self.policy_stream(rollouts, advantages, active, old_logp, update == 0, sums)
            self.positive_stream(positive, beta, sums)
            if len(active) or positives:
                self.take_step(sums)
        return sums

    def policy_stream(
        self, batch: TokenBatch, advantages: Tensor, active: Tensor, old_logp: Tensor, first: bool, sums: Sums
    ) -> None:
        """Backward through the policy-gradient and KL terms. The first pass over a batch writes `old_logp`."""
        temperature, max_tokens = self.collector.sampling.temperature, self.collector.sampling.max_tokens
        weights = losses.token_weights(batch.mask, self.aggregation, max_tokens)
        for rows, part in micro_batches(batch, active, self.micro_batch_size):
            width = part.mask.shape[1]
            w = weights[rows, :width]
            logp = score(self.policy, part, temperature)
            if first:  # no update has moved the policy since it acted
                old_logp[rows, :width] = logp.detach()
            per_token, ratio, clipped = losses.policy_loss(
                logp, old_logp[rows, :width], advantages[rows], self.clip_low, self.clip_high
            )
            loss = policy = (w * per_token).sum()
            if self.kl_coef:
                assert self.reference is not None
                with torch.no_grad():
                    ref_logp = score(self.reference, part, temperature)
                kl = (w * losses.kl(logp, ref_logp, self.kl_estimator)).sum()
                sums["loss/kl"] += kl.item()
                loss = policy + self.kl_coef * kl
            self.manual_backward(loss)
            sums["loss/policy"] += policy.item()
            sums["loss/total"] += loss.item()
            sums["tokens"] += part.mask.sum().item()
            sums["ratio"] += (ratio * part.mask).sum().item()
            sums["clipped"] += (clipped * part.mask).sum().item()

    def positive_stream(self, batch: TokenBatch, beta: float, sums: Sums) -> None:
        """Backward through β times the negative log-likelihood of the positives under q alone."""
        aggregation, max_tokens = self.collector.source.aggregation.name, self.collector.sampling.max_tokens
        weights = losses.token_weights(batch.mask, aggregation, max_tokens)
        for rows, part in micro_batches(batch, torch.arange(len(batch.mask)), self.micro_batch_size):
            logp = score(self.policy, part)
            loss = (weights[rows, : part.mask.shape[1]] * losses.sft_loss(logp)).sum()
            self.manual_backward(beta * loss)
            sums["loss/sft"] += loss.item()
            sums["loss/total"] += beta * loss.item()
            sums["positives"] += len(rows)
            sums["positive_logp"] += (logp.sum(dim=1) / part.mask.sum(dim=1)).sum().item()

    def score_positives(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        """Mean log π_θ per completion token: `[N]`."""
        return mean_logp(self.policy, self.tokens(prompts, completions), self.micro_batch_size)

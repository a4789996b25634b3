"""GRPO (arXiv 2402.03300) with an auxiliary SFT stream of positives: with self-explanations, ExP-GRPO (2507.02834).

    loss = Σ w · -min(ρ Â, clip(ρ) Â)  +  kl_coef · Σ w · KL(π_θ || π_ref)  +  β · Σ w⁺ · -log π_θ(c̃ | q)

over the tokens of rollouts (w) and of positives (w⁺). One Lightning epoch is one step of the algorithm: rollouts, then
`updates_per_rollout` optimizer steps on them.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from lightning import LightningModule
from torch import Tensor
from transformers import PreTrainedModel

from expo import losses
from expo.config import KL, Aggregation, OnBad, OptimizerConf
from expo.experience import Collector, Experience, ProblemSampler
from expo.metrics import step_metrics
from expo.policy import TokenBatch, mean_logp, micro_batches, score, token_batch
from expo.randomness import DROPOUT, Key


class NonFiniteGradient(Exception):
    """A gradient is not a number; the weights are still those of the last good step."""


class GRPO(LightningModule):
    """The policy, its frozen reference (None where nothing needs one), and one step of training.

    `snapshot` is the copy of the policy that explains where `positives.explainer=snapshot`; it is refreshed here.
    """

    def __init__(
        self, *, policy: PreTrainedModel, reference: PreTrainedModel | None, snapshot: PreTrainedModel | None,
        collector: Collector, sampler: ProblemSampler, optimizer: OptimizerConf, max_steps: int, micro_batch_size: int,
        on_nonfinite: OnBad, group_size: int, updates_per_rollout: int, advantage_std: bool, clip_low: float, clip_high: float,
        aggregation: Aggregation, kl_coef: float, kl_estimator: KL,
    ):  # fmt: skip
        super().__init__()
        self.automatic_optimization = False  # several updates per batch of rollouts, each over two streams
        self.strict_loading = False  # the reference is made anew from the base weights, not stored in checkpoints
        self.policy, self.reference, self.snapshot = policy, reference, snapshot
        self.collector, self.sampler, self.optimizer_conf = collector, sampler, optimizer
        self.max_steps, self.micro_batch_size, self.on_nonfinite = max_steps, micro_batch_size, on_nonfinite
        self.group_size, self.updates_per_rollout, self.advantage_std = group_size, updates_per_rollout, advantage_std
        self.clip_low, self.clip_high, self.aggregation = clip_low, clip_high, aggregation.name
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator.name
        self.last_experience: Experience | None = None  # for callbacks
        self.last_metrics: dict[str, float] = {}

    def train_dataloader(self) -> list[int]:
        return [self.current_epoch]

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Step number `batch`, from which everything random in it follows."""
        source = self.collector.source
        torch.manual_seed(int(Key(self.collector.seed, DROPOUT, batch).generator().integers(2**62)))
        if self.snapshot is not None and batch % source.snapshot_every == 0:
            self.snapshot.load_state_dict(self.policy.state_dict())
        experience = self.collector.collect(batch, self.sampler.batch(batch), self.group_size, self.score_positives)
        beta = source.weight_at(batch / self.max_steps, experience.all_wrong.float().mean().item())
        with experience.timer("update"):
            sums = self.update(experience, beta)
        with experience.timer("sync"):
            self.collector.engine.sync()
        self.last_experience, self.last_metrics = experience, step_metrics(experience, sums, beta)

    def update(self, experience: Experience, beta: float) -> Counter[str]:
        """All optimizer steps on one batch of rollouts. Returns sums over updates, for the metrics."""
        completions, positives = experience.completions, experience.positives if beta > 0 else []
        rollouts = self.tokens([c.prompt for c in completions], [c.ids for c in completions])
        positive = self.tokens([experience.prompts[c.problem] for c in positives], [c.ids for c in positives])
        advantages = losses.group_advantages(experience.rewards, self.advantage_std).flatten().to(self.device)
        # A group of equal rewards has no policy gradient: without a KL term its rows cost no pass at all.
        active = torch.ones_like(advantages) if self.kl_coef else advantages
        old_logp = torch.zeros_like(rollouts.mask)
        sums: Counter[str] = Counter(updates=self.updates_per_rollout)
        for update in range(self.updates_per_rollout):
            self.policy_stream(rollouts, advantages, active.nonzero().squeeze(1), old_logp, update == 0, sums)
            self.positive_stream(positive, beta, sums)
            if active.any() or positives:
                self.optimizer_step(sums)
        return sums

    def policy_stream(
        self, batch: TokenBatch, advantages: Tensor, active: Tensor, old_logp: Tensor, first: bool, sums: Counter[str]
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

    def positive_stream(self, batch: TokenBatch, beta: float, sums: Counter[str]) -> None:
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

    def optimizer_step(self, sums: Counter[str]) -> None:
        """Clip, check, step. Called only with a gradient: momentum and weight decay alone must not move the policy."""
        optimizer = self.optimizers()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.optimizer_conf.max_grad_norm)
        sums["grad_norm"] += norm.item()
        if norm.isfinite():
            optimizer.step()
            self.lr_schedulers().step()
        elif self.on_nonfinite is OnBad.stop:
            raise NonFiniteGradient(f"the gradient norm of step {self.current_epoch} is {norm.item()}")
        else:
            sums["skipped"] += 1
        optimizer.zero_grad()

    def tokens(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> TokenBatch:
        return token_batch(prompts, completions, self.collector.tokenizer.pad_token_id, self.device)

    def score_positives(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        """Mean log π_θ per completion token: `[N]`."""
        return mean_logp(self.policy, self.tokens(prompts, completions), self.micro_batch_size)

    def configure_optimizers(self):
        conf = self.optimizer_conf
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, conf.learning_rate, tuple(conf.betas), weight_decay=conf.weight_decay)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / (conf.warmup_steps + 1)))
        return [optimizer], [warmup]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("reference.")}

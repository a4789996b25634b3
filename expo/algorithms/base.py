"""What every algorithm shares: the frame of a step, the stream of positives, and the checked update."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from expo.algorithms import losses
from expo.algorithms.pairs import PairStore
from expo.config import AlgorithmConf, OptimizerConf, TrainerConf, build
from expo.devices.ranks import Ranks
from expo.devices.sharded import WholeCopy
from expo.devices.shares import gathered, sums_of
from expo.model.policy import as_initial, take_weights
from expo.model.scoring import TokenBatch, micro_batches, score, token_batch
from expo.rollout.noise import DROPOUT, Key
from expo.step.experience import Candidate, Experience
from expo.step.metrics import step_metrics
from expo.step.pipeline import Pipeline
from expo.step.problems import ProblemSampler

# Sums over the micro-batches and updates of one step, from which its metrics are made.
Sums = defaultdict[str, float]


class NonFiniteGradient(Exception):
    """A gradient, or a weight after an update, is not a number. Checkpoints are those of earlier steps."""


@dataclass
class Components:
    """What an algorithm works with.

    `reference` is the frozen initial policy; None where nothing needs it, or where it is the policy without its LoRA
    adapter. `snapshot` is an earlier policy, refreshed by the algorithm.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    snapshot: PreTrainedModel | None
    pipeline: Pipeline
    sampler: ProblemSampler
    optimizer: OptimizerConf
    trainer: TrainerConf
    pairs: PairStore
    whole: WholeCopy | None = None  # of a policy of which each device holds a share
    average: PreTrainedModel | None = None  # a moving average of the policy, kept by the algorithm


class Algorithm(LightningModule):
    """Collects an experience and updates the policy on it, once per step; `collect` and `update` are the algorithm's own.

    One Lightning epoch is one step of the algorithm, and its only batch is the step's number: everything random in a
    step follows from it. Callbacks read `last_experience` and `last_metrics`.
    """

    conf: AlgorithmConf

    def __init__(self, conf: AlgorithmConf, components: Components):
        super().__init__()
        self.automatic_optimization = False  # a step may take several updates, each over several streams
        self.strict_loading = False  # the reference is made anew from the base weights, not stored in checkpoints
        self.conf, self.trainer_conf, self.optimizer_conf = conf, components.trainer, components.optimizer
        self.policy, self.reference, self.snapshot = components.policy, components.reference, components.snapshot
        self.pipeline, self.sampler, self.pairs = components.pipeline, components.sampler, components.pairs
        self.whole, self.live = components.whole, True
        self.dealt = False  # whether rows have gone through `parts` since the last update
        self.last_experience: Experience | None = None
        self.last_metrics: dict[str, float | None] = {}

    @property
    def ranks(self) -> Ranks:
        """Return the processes of the run."""
        return self.pipeline.tools.ranks

    def whole_policy(self) -> PreTrainedModel:
        """Return the policy with all of its weights: itself, or its copy where it is sharded. Call it on all devices."""
        if self.whole is None:
            return self.policy
        self.whole.gather()
        return self.whole.model

    def on_fit_start(self) -> None:
        self.pipeline.engines.sync()  # a checkpoint may have been loaded since the engines were made

    def train_dataloader(self) -> list[int]:
        return [self.current_epoch]

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Take step number `batch`."""
        torch.manual_seed(int(Key(self.pipeline.tools.seed, DROPOUT, batch).generator().integers(2**62)))
        self.before(batch)
        experience = self.collect(batch)
        all_wrong = experience.all_wrong.float().mean().item()
        beta = self.pipeline.source.weight_at(batch / self.trainer_conf.max_steps, all_wrong)
        engine = self.pipeline.engines.policy
        with experience.timer("update"):
            engine.sleep()
            sums = self.update(experience, beta)
        with experience.timer("sync"):
            engine.wake()
            engine.sync()
        weight = None if self.pipeline.source.joins_groups else beta  # a group member has an advantage instead
        self.last_experience, self.last_metrics = experience, step_metrics(experience, sums, weight)

    def before(self, step: int) -> None:
        """Change what changes between steps: here, the snapshot that explains becomes the current policy every so often."""
        if self.snapshot is not None and self.pipeline.source.refreshes_snapshot(step):
            take_weights(self.snapshot, self.whole_policy())
            self.pipeline.engines.sync()

    def collect(self, step: int) -> Experience:
        """Return what the step learns from."""
        return self.pipeline.run(step, self.sampler.batch(step), self.conf.group_size)

    def update(self, experience: Experience, beta: float) -> Sums:
        """Take all optimizer steps on one experience. Returns sums over updates, for the metrics: `updates`, `loss/<term>`."""
        raise TypeError(f"{type(self).__name__} has no update")

    def positive_stream(
        self, prompts: Sequence[Sequence[int]], positives: list[Candidate], beta: float, sums: Sums
    ) -> None:
        """Go backward through β times the negative log-likelihood of the positives under q alone.

        Args: prompts `[P]`, the solve prompts of the step.
        """
        batch = self.tokens([prompts[c.problem] for c in positives], [c.ids for c in positives])
        aggregation, max_tokens = self.pipeline.source.aggregation, self.pipeline.tools.sampling.max_tokens
        weights = losses.token_weights(batch.mask, aggregation, max_tokens)
        for rows, part in self.parts(batch, torch.arange(len(batch.mask)), sums):
            logp = self.score(self.policy, part)
            loss = (weights[rows, : part.mask.shape[1]] * losses.sft_loss(logp)).sum()
            self.manual_backward(beta * loss)
            sums["loss/sft"] += loss.item()
            sums["loss/total"] += beta * loss.item()
            sums["trained"] += part.mask.sum().item()

    def parts(
        self, batch: TokenBatch, rows: Tensor, sums: Sums, size: int | None = None
    ) -> Iterator[tuple[Tensor, TokenBatch]]:
        """Yield this device's micro-batches of some rows, each with the indices of its rows.

        Weights of tokens have to be those of the whole batch: gradients are added up over the devices when a step is taken, and
        so is all that is added to `sums` meanwhile. Args: rows `[N]`; size, rows at a time, `trainer.micro_batch_size` by default.
        """
        before = dict(sums)
        self.dealt = True
        whole = list(micro_batches(batch, rows, size or self.trainer_conf.micro_batch_size))
        yield from self.ranks.own(whole)
        if self.whole and self.ranks.rank >= len(whole) % self.ranks.count > 0:
            # Others go through one more, and cannot without this device's share of the weights: a row that counts for nothing.
            own = dict(sums)
            self.live = False
            yield whole[0][0][:1], batch.rows(whole[0][0][:1])
            self.live = True
            sums.clear()
            sums.update(own)
        self.ranks.add_up(sums, before)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go backward, with the gradient that counts: none for a row that only fills up a device's share, see `parts`."""
        super().manual_backward(loss if self.live else 0 * loss, *args, **kwargs)

    def tokens(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> TokenBatch:
        """Return rows on the module's device, from token ids."""
        return token_batch(prompts, completions, self.pipeline.tools.tokenizer.pad_token_id, self.device)

    def score(self, model: nn.Module, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """Return log-probabilities `[B, T]`; see `expo.model.scoring.score`."""
        return score(model, batch, temperature, self.trainer_conf.packing, self.trainer_conf.share_prompts)

    @torch.no_grad()
    def reference_score(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """Return the same under the frozen initial policy."""
        context = as_initial(self.policy) if self.reference is None else nullcontext(self.reference)
        with context as reference:
            return self.score(reference, batch, temperature)

    def take_step(self, sums: Sums) -> None:
        """Clip, check, step. Call it only with a gradient: momentum and weight decay alone must not move the policy.

        Raises Apart where the devices of the run no longer have the same weights.
        """
        if not self.dealt and self.ranks.count > 1:
            raise TypeError(
                f"{type(self).__name__}: rows went through no `parts`, so that every device has trained on all of them"
            )
        self.dealt = False
        if self.whole is None:  # else they are added up already
            self.ranks.add_gradients(self.policy.parameters())
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        norm = gathered(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.optimizer_conf.max_grad_norm))
        sums["grad_norm"] += norm.item()
        if norm.isfinite():
            optimizer.step()
            schedule.step()
            self.check_weights()
        elif self.trainer_conf.on_nonfinite == "stop":
            raise NonFiniteGradient(f"the gradient norm of step {self.current_epoch + 1} is {norm.item()}")
        else:
            sums["skipped"] += 1
        optimizer.zero_grad()

    @torch.no_grad()
    def check_weights(self) -> None:
        """Raise NonFiniteGradient where an update has left a weight that is no number: before anything of it is saved.

        Raises Apart where the devices of the run no longer have the same weights; shares of weights cannot go apart.
        """
        sums = sums_of(p for p in self.policy.parameters() if p.requires_grad)
        self.ranks.agree(sums.tolist(), f"step {self.current_epoch + 1}: the weights")
        if not sums.isfinite().all():
            raise NonFiniteGradient(f"a weight is not finite after step {self.current_epoch + 1}")

    def configure_optimizers(self) -> Any:
        conf = self.optimizer_conf
        optimizer = build(conf, [p for p in self.policy.parameters() if p.requires_grad], of=torch.optim.Optimizer)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / (conf.warmup_steps + 1)))
        return [optimizer], [warmup]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("reference.")}
        checkpoint["explanations"] = self.pipeline.cache.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.pipeline.cache.load_state_dict(checkpoint["explanations"])

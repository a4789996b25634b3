"""The checked update: micro-batches dealt out among devices, a clipped gradient, and weights that are finite and the
same on every device."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from expo.config import OptimizerConf, TrainerConf, UserError, build
from expo.ground.ranks import Ranks
from expo.model.scoring import TokenBatch, micro_batches
from expo.model.shares import gathered, sums_of
from expo.rollout.sharded import WholeCopy
from expo.step.schedules import DECAY
from expo.step.sums import StepSums


class NonFiniteGradient(Exception):
    """A gradient, or a weight after an update, is not a number. Checkpoints are those of earlier steps."""


class Updates(LightningModule):
    """Optimizer steps on a policy: `micro_batches` deals rows out, `manual_backward` adds a loss's gradient up,
    `take_step` moves the weights. Args: whole, the copy of a sharded policy; None where each device has all weights."""

    def __init__(
        self,
        policy: PreTrainedModel,
        whole: WholeCopy | None,
        optimizer: OptimizerConf,
        trainer: TrainerConf,
        ranks: Ranks,
    ):
        super().__init__()
        self.automatic_optimization = False  # a step may take several updates, each over several streams
        self.policy, self.whole, self.ranks = policy, whole, ranks
        self.optimizer_conf, self.trainer_conf = optimizer, trainer
        self.row_counts = True  # False for a row that only fills up a device's share: its loss is multiplied by 0
        self.dealt = False  # whether rows have gone through `micro_batches` since the last update
        self.pending = False  # whether there is a gradient with which no step has been taken

    @property
    def trained(self) -> Sequence[nn.Module]:
        """Return the modules that are stepped, clipped, checked, and the same on all devices; a critic is another."""
        return [self.policy]

    @property
    def trained_weights(self) -> list[nn.Parameter]:
        return [p for module in self.trained for p in module.parameters() if p.requires_grad]

    def micro_batches(
        self, batch: TokenBatch, rows: Tensor, sums: StepSums, size: int | None = None
    ) -> Iterator[tuple[Tensor, TokenBatch]]:
        """Yield this device's micro-batches of some rows, each with the indices of its rows.

        Weights of tokens have to be those of the whole batch: `take_step` sums the gradients over devices. What is
        added to `sums` within the loop is summed over devices when the loop ends; do not break out of it. Args: rows
        `[N]`; size, rows at a time, `trainer.micro_batch_size` by default.
        """
        before = dict(sums)
        self.dealt = True
        batches = list(micro_batches(batch, rows, size or self.trainer_conf.micro_batch_size))
        yield from self.ranks.own(batches)
        if self.whole and self.ranks.rank >= len(batches) % self.ranks.count > 0:
            # Others go through one more, and cannot without this device's share of the weights: a row that counts for
            # nothing.
            sums_before = dict(sums)
            self.row_counts = False
            yield batches[0][0][:1], batch.rows(batches[0][0][:1])
            self.row_counts = True
            sums.clear()
            sums.update(sums_before)
        self.ranks.add_up(sums, before)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go backward through a loss; through 0 · loss for a row that only fills up a device's share."""
        self.pending = True
        super().manual_backward(loss if self.row_counts else 0 * loss, *args, **kwargs)

    def take_step(self, sums: StepSums) -> None:
        """Sum the gradients over devices, clip, check, and step. Call it only with a gradient: momentum and weight
        decay alone must not move the policy. Raises Apart where devices no longer have the same weights."""
        if not self.dealt and self.ranks.count > 1:
            raise TypeError(
                f"{type(self).__name__}: rows went through no `micro_batches`: every device has trained on all of them"
            )
        self.dealt = self.pending = False
        sharded = [] if self.whole is None else list(map(id, self.policy.parameters()))  # added up already
        self.ranks.add_gradients(p for p in self.trained_weights if id(p) not in sharded)
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        norm = gathered(nn.utils.clip_grad_norm_(self.trained_weights, self.optimizer_conf.max_grad_norm))
        sums.per_update("policy/grad_norm", norm)
        if norm.isfinite():
            share = DECAY[self.optimizer_conf.schedule](self.current_epoch / self.trainer_conf.max_steps)
            for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = rate * share
            optimizer.step()
            schedule.step()
            self.check_weights()
        elif self.trainer_conf.on_nonfinite == "stop":
            raise NonFiniteGradient(f"the gradient norm of step {self.current_epoch + 1} is {norm.item()}")
        else:
            sums.total("policy/updates_skipped", 1)
        optimizer.zero_grad()

    @torch.no_grad()
    def check_weights(self) -> None:
        """Raise NonFiniteGradient where an update leaves a weight that is not finite, before it is saved, and Apart
        where devices no longer have the same weights; shares of weights cannot go apart."""
        sums = sums_of(self.trained_weights)
        self.ranks.agree(sums.tolist(), f"step {self.current_epoch + 1}: the weights")
        if not sums.isfinite().all():
            raise NonFiniteGradient(f"a weight is not finite after step {self.current_epoch + 1}")

    def configure_optimizers(self) -> Any:
        conf = self.optimizer_conf
        if self.whole is not None and len(self.trained) > 1:
            raise UserError(
                f"trainer.strategy=fsdp: shares out the policy alone, and {type(self).__name__} trains "
                f"{len(self.trained)} modules; set trainer.strategy=ddp"
            )
        optimizer = build(conf, self.trained_weights, of=torch.optim.Optimizer)
        # The decay is `schedules.DECAY`, in `take_step`.
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / (conf.warmup_steps + 1)))
        return [optimizer], [warmup]

"""What every algorithm shares: the optimizer, the checked update, and one Lightning epoch per step."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from transformers import PreTrainedModel

from expo.experience import Collector, Experience
from expo.policy import TokenBatch, token_batch
from expo.schema import OnBad, OptimizerConf

# Sums over the micro-batches and updates of one step, from which its metrics are made.
Sums = defaultdict[str, float]


class NonFiniteGradient(Exception):
    """A gradient is not a number; the weights are still those of the last good step."""


class Algorithm(LightningModule):
    """The policy and its frozen reference (None where nothing needs one), and how the policy is updated.

    One Lightning epoch is one step of the algorithm, and its only batch is the step's number: everything random in a
    step follows from it. Callbacks read `last_experience` and `last_metrics`.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel | None,
        collector: Collector,
        optimizer: OptimizerConf,
        on_nonfinite: OnBad,
    ):
        super().__init__()
        self.automatic_optimization = False  # a step may take several updates, each over several streams
        self.strict_loading = False  # the reference is made anew from the base weights, not stored in checkpoints
        self.policy, self.reference, self.collector = policy, reference, collector
        self.optimizer_conf, self.on_nonfinite = optimizer, on_nonfinite
        self.last_experience: Experience | None = None
        self.last_metrics: dict[str, float | None] = {}

    def train_dataloader(self) -> list[int]:
        return [self.current_epoch]

    def tokens(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> TokenBatch:
        """Rows on the module's device, from token ids."""
        return token_batch(prompts, completions, self.collector.tokenizer.pad_token_id, self.device)

    def take_step(self, sums: Sums) -> None:
        """Clip, check, step. Call it only with a gradient: momentum and weight decay alone must not move the policy."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.optimizer_conf.max_grad_norm)
        sums["grad_norm"] += norm.item()
        if norm.isfinite():
            optimizer.step()
            schedule.step()
        elif self.on_nonfinite is OnBad.stop:
            raise NonFiniteGradient(f"the gradient norm of step {self.current_epoch + 1} is {norm.item()}")
        else:
            sums["skipped"] += 1
        optimizer.zero_grad()

    def configure_optimizers(self):
        conf = self.optimizer_conf
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        low, high = conf.betas
        optimizer = torch.optim.AdamW(trained, conf.learning_rate, (low, high), weight_decay=conf.weight_decay)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / (conf.warmup_steps + 1)))
        return [optimizer], [warmup]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("reference.")}

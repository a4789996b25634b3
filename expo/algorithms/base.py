"""What every algorithm shares: the frame of a step, and the stream of positives."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expo.algorithms import losses
from expo.algorithms.pair_store import PairStore
from expo.algorithms.updates import Updates
from expo.config import AlgorithmConf, OptimizerConf, TrainerConf, UserError
from expo.model.modes import as_initial, take_weights, with_dropout
from expo.model.scoring import TokenBatch, score, token_batch
from expo.rollout.noise import DROPOUT, NoiseKey
from expo.rollout.sharded import WholeCopy
from expo.step.collecting import Collector, CollectorAhead, KeepingEngine
from expo.step.experience import Candidate, Experience, Group
from expo.step.metrics import step_metrics
from expo.step.pipeline import Pipeline
from expo.step.positives.bank import fingerprint
from expo.step.problems import ProblemSampler
from expo.step.schedules import weight_at
from expo.step.sums import StepSums

__all__ = ["Algorithm", "Components", "StepSums"]  # what an algorithm of one's own needs


@dataclass
class Components:
    """Parts of an algorithm. `reference` is the frozen initial policy; None where nothing needs it, or where it is the
    policy without its LoRA adapter. `snapshot` is an earlier policy, refreshed by the algorithm."""

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


class Algorithm(Updates):
    """Collects an experience and updates the policy on it, once per step, by `collect` and `update`. One Lightning
    epoch is one step, and its only batch is the step's number: everything random follows from it. Callbacks read
    `last_experience` and `last_metrics`."""

    conf: AlgorithmConf

    def __init__(self, conf: AlgorithmConf, components: Components):
        ranks = components.pipeline.tools.ranks
        super().__init__(components.policy, components.whole, components.optimizer, components.trainer, ranks)
        self.strict_loading = False  # checkpoints leave out what the config can load, see `without_base`
        self.conf = conf
        self.reference, self.snapshot = components.reference, components.snapshot
        self.pipeline, self.sampler, self.pairs = components.pipeline, components.sampler, components.pairs
        self.positive_loss = self.pipeline.source.conf.positive_loss
        self.last_experience: Experience | None = None
        self.last_metrics: dict[str, float | None] = {}

    @cached_property
    def collector(self) -> Collector:
        """Return what says when a step's experience is collected: with `rollout.ahead=1`, one step ahead."""
        collector = CollectorAhead if isinstance(self.pipeline.engines.policy, KeepingEngine) else Collector
        return collector(self.pipeline, self.collect, self.trainer_conf.max_steps)

    def whole_policy(self) -> PreTrainedModel:
        """Return the policy with all weights: under fsdp, its gathered copy. Call on all devices."""
        if self.whole is None:
            return self.policy
        self.whole.gather()
        return self.whole.model

    def on_fit_start(self) -> None:
        self.pipeline.engines.sync()  # a checkpoint may have been loaded since the engines were made

    def train_dataloader(self) -> list[int]:
        return [self.current_epoch]

    def training_step(self, batch: int, batch_idx: int) -> None:
        noise = int(NoiseKey(self.pipeline.tools.seed, DROPOUT, batch).generator().integers(2**62))
        torch.manual_seed(noise + self.ranks.rank)  # each device has rows of its own
        self.before(batch)
        experience = self.collector.experience(batch)
        all_wrong = experience.all_wrong.float().mean().item()
        experience.positive_weight = weight_at(self.positive_loss, batch / self.trainer_conf.max_steps, all_wrong)
        self.collector.before_update(experience)
        with experience.timer("update"):
            sums = self.update(experience)
            if any(self.ranks.whole([self.pending])):  # whatever rows this device had
                raise UserError(
                    f"algorithm._target_={self.conf._target_}: its update has a gradient and takes no step; let it "
                    "call take_step(sums)"
                )
        self.collector.after_update(experience)
        # A group member has an advantage instead.
        weight = None if self.positive_loss.joins_groups else experience.positive_weight
        self.last_experience, self.last_metrics = experience, step_metrics(experience, sums, weight)

    def before(self, step: int) -> None:
        """Prepare step `step`: here, refresh the snapshot that explains from the current policy every so often."""
        if self.snapshot is not None and self.pipeline.source.refreshes_snapshot(step):
            take_weights(self.snapshot, self.whole_policy())
            self.pipeline.engines.sync()

    def collect(self, step: int) -> Experience:
        """Sample and judge the experience of a step: rollouts, positives."""
        return self.pipeline.run(step, self.sampler.batch(step), self.conf.group_size)

    def update(self, experience: Experience) -> StepSums:
        """Take all optimizer steps on one experience. Returns the sums of the step's metrics, with `loss/<term>`."""
        raise TypeError(f"{type(self).__name__} has no update")

    def positive_stream(self, positives: Sequence[tuple[Group, Candidate]], weight: float, sums: StepSums) -> None:
        """Go backward through the weight β times the negative log-likelihood of the positives under q alone."""
        batch = self.tokens([group.prompt for group, _ in positives], [c.ids for _, c in positives])
        weights = losses.token_weights(
            batch.mask, self.positive_loss.aggregation, self.pipeline.tools.sampling.max_tokens
        )
        for rows, part in self.micro_batches(batch, torch.arange(len(batch.mask)), sums):
            logp = self.score(self.policy, part)
            loss = (weights[rows, : part.mask.shape[1]] * losses.sft_loss(logp)).sum()
            self.manual_backward(weight * loss)
            sums.per_update("loss/sft", loss)
            sums.per_update("loss/total", weight * loss.item())
            sums.total("throughput/tokens_trained", part.mask.sum())

    def tokens(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> TokenBatch:
        return token_batch(prompts, completions, self.pipeline.tools.tokenizer.pad_token_id, self.device)

    def score(
        self, model: nn.Module, batch: TokenBatch, temperature: float = 1.0, with_entropy: bool = False
    ) -> Tensor:
        """Return `expo.model.scoring.score`, with dropout where there is a gradient and `trainer.dropout=true`."""
        conf = self.trainer_conf
        with with_dropout(model) if conf.dropout and torch.is_grad_enabled() else nullcontext():
            return score(model, batch, temperature, conf.packing, conf.shared, with_entropy)

    @torch.no_grad()
    def score_reference(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """Return log π_ref `[B, T]` of the initial policy. Raises UserError where the config asks for no reference."""
        if not self.conf.uses_reference:
            raise UserError(
                f"algorithm._target_={self.conf._target_}: scores under a reference that it has not asked for; let its "
                "dataclass have the property uses_reference return True"
            )
        with self.initial_policy() as reference:
            return self.score(reference, batch, temperature)

    def initial_policy(self) -> AbstractContextManager[nn.Module]:
        return as_initial(self.policy) if self.reference is None else nullcontext(self.reference)

    def without_base(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a module's state that its config cannot load: the reference and, in the policy and its
        copies, the frozen weights under a LoRA adapter are left out."""
        frozen = tuple(_names(self.policy, trained=False))
        trained = _names(self, trained=True)  # such as a critic of one's own, whose weights have the same names
        left_out = {
            key
            for key in state.keys() - trained
            if key.startswith("reference.")
            or key.partition(".")[2].startswith(frozen)  # as `….weight.absmax` of 4 bits
        }
        return {key: value for key, value in state.items() if key not in left_out}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.without_base(checkpoint["state_dict"])
        checkpoint["explanations"] = self.pipeline.cache.state_dict()
        checkpoint["ahead"] = self.collector.state_dict()
        checkpoint["base"] = self.base_mark()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning is not strict here, and would leave a weight of another name at its first value.
        if lacking := sorted(self.without_base(self.state_dict()).keys() - checkpoint["state_dict"].keys()):
            raise UserError(
                f"the checkpoint lacks {len(lacking)} weights, {lacking[0]} the first: it is of another transformers, "
                "peft or algorithm; put that one back, or start over with fresh=true"
            )
        self.pipeline.cache.load_state_dict(checkpoint["explanations"])
        self.collector.load_state_dict(checkpoint.get("ahead", {}))
        if (base := checkpoint.get("base")) and self.base_mark() not in (None, base):
            raise UserError(
                "model.path: its weights are not those that the checkpoint's adapter was trained on; put the first "
                "ones back (of a model of the hub, model.revision names them), or start over with fresh=true"
            )

    def base_mark(self) -> str | None:
        """Return a hash of the frozen weights under a LoRA adapter, which checkpoints leave out; None without them, and
        where each device holds a share."""
        has_base = any(not weight.requires_grad for weight in self.policy.parameters())
        return fingerprint(self.policy) if has_base and self.whole is None else None


def _names(module: nn.Module, trained: bool) -> set[str]:
    """Return the names of the weights that are trained, or are not; of tied ones, every name."""
    return {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad == trained}

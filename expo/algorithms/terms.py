"""The terms of a loss over rollouts. Each is a class with a name, a coefficient, the tokens that it weighs, and a loss
per token.

    loss = Σ_terms coefficient · Σ w · term(o_t)

The weights w are those of the whole batch (`expo.algorithms.losses.token_weights`), so that micro-batches and devices
add up.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expo.algorithms import losses
from expo.config import GRPOConf
from expo.model.scoring import TokenBatch
from expo.step.sums import StepSums


@dataclass(frozen=True)
class Rows:
    """The B rows that a step trains on: rollouts, and after them the positives that have joined their groups."""

    batch: TokenBatch
    advantages: Tensor  # [B]
    from_positive: Tensor  # [B, 1], True for a positive in its group, which the policy did not sample
    sampler_logp: Tensor  # [B, T], 0 on positives
    old_logp: Tensor  # [B, T], log π_old, filled by the first pass
    as_sampled: Tensor  # [B, 1], False where a hint was taken out of the prompt after sampling
    guided: Tensor  # [B], True where the teacher knows more of the row's problem than the policy
    # The same completions behind each of the teacher's prompts.
    seen: list[TokenBatch] = field(default_factory=list)

    @property
    def rollouts(self) -> int:
        """Return how many rows are rollouts: the first ones, whatever has joined their groups."""
        return int(self.from_positive.logical_not().sum())


@dataclass(frozen=True)
class Scored:
    logp: Tensor  # [b, T], log π_θ, with a gradient
    old_logp: Tensor  # [b, T]
    mask: Tensor  # [b, T], 1 on tokens of completions
    on_policy: Tensor  # [b, T], 1 on those that the policy sampled
    from_positive: Tensor  # [b, 1]
    advantages: Tensor  # [b]
    token_advantages: Tensor  # [b] or [b, T]: the same, or as a teacher shapes them
    sampler_weights: Tensor  # [b, T], see `losses.sampler_weights`; without meaning on positives
    score_reference: Callable[[], Tensor]  # computes log π_ref `[b, T]`, for a forward pass
    entropy: Tensor | None = None  # [b, T], of the next-token distribution; where a term `needs_entropy`
    divergence: Tensor | None = None  # [b, T], of policy and teacher, 0 where the teacher does not guide

    @property
    def token_ratio(self) -> Tensor:
        """Return π_θ / π_old of each token, without a gradient: `[b, T]`."""
        return losses.importance_ratio(self.logp.detach(), self.old_logp, self.mask, "token")


class Term:
    """One term of a loss, logged as `loss/<name>` before its coefficient."""

    name: str
    coefficient: float = 1.0
    needs_entropy = False

    def active(self, rows: Rows) -> Tensor:
        """Return which rows have a gradient `[B]`: others cost no pass, unless another term needs them."""
        return torch.ones_like(rows.guided)

    def mask(self, rows: Rows) -> Tensor:
        """Return the tokens that the term is a mean over: `[B, T]`, or of the first rows alone."""
        return rows.batch.mask

    def begin(self, rows: Rows, sums: StepSums) -> None:
        """Declare metrics that are also logged in a step without any active row."""

    def __call__(self, scored: Scored, sums: StepSums) -> Tensor:
        """Return the loss of each token: `[b, T]`."""
        raise NotImplementedError


class Surrogate(Term):
    """Policy gradient of the rollouts, and of positives in their groups: a formula of `losses.SURROGATES`."""

    name = "policy"

    def __init__(self, conf: GRPOConf, member_shaping: float):
        self.conf, self.member_shaping = conf, member_shaping

    def active(self, rows: Rows) -> Tensor:
        return rows.advantages.bool() | rows.guided  # a group of equal rewards has no policy gradient

    def __call__(self, scored: Scored, sums: StepSums) -> Tensor:
        s = scored
        loss, rho, clipped = losses.policy_loss(s.logp, s.old_logp, s.mask, s.token_advantages, self.conf)
        sums.mean("policy/ratio_mean", (rho * s.on_policy).sum(), s.on_policy.sum())
        sums.mean("policy/clip_frac", (clipped * s.on_policy).sum(), s.on_policy.sum())
        member = losses.member_loss(s.logp, s.advantages, self.member_shaping)
        return torch.where(s.from_positive, member, s.sampler_weights * loss)


class KL(Term):
    """KL(π_θ || π_ref) on the rollouts."""

    name = "kl"

    def __init__(self, conf: GRPOConf):
        self.coefficient, self.estimator = conf.kl_coef, conf.kl_estimator

    def mask(self, rows: Rows) -> Tensor:
        return rows.batch.mask[: rows.rollouts]

    def __call__(self, scored: Scored, sums: StepSums) -> Tensor:
        per_token = scored.on_policy * losses.kl(scored.logp, scored.score_reference(), self.estimator)
        sums.mean("policy/kl", per_token.sum(), scored.on_policy.sum())
        return per_token


class Entropy(Term):
    """Minus the entropy H = -Σ p log p of the next-token distribution: an entropy bonus, with its true gradient by
    autograd (`expo.model.scoring`, by chunks of logits)."""

    name = "entropy"
    needs_entropy = True

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    def mask(self, rows: Rows) -> Tensor:
        return rows.batch.mask[: rows.rollouts]

    def __call__(self, scored: Scored, sums: StepSums) -> Tensor:
        assert scored.entropy is not None
        return -scored.on_policy * scored.entropy

"""Pure functions of tensors: advantages, ratios, KL estimators, aggregation.

Shapes: P problems, G rollouts per problem, B rows, T target positions. `mask` is 1 on completion tokens, 0 elsewhere.

Every stream (policy gradient, KL, auxiliary SFT) is a weighted sum over tokens: `token_weights` fixes the weights once
for the whole batch, so that summing over any partition into micro-batches gives the same loss and gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# A log-ratio beyond this is a broken sample, not a signal: e^20 keeps float32 finite, and clipping bounds the gradient.
MAX_LOG_RATIO = 20.0


def group_advantages(rewards: Tensor, std: bool = True, eps: float = 1e-6) -> Tensor:
    """Â = (R - mean R) / std R within each group (GRPO, arXiv 2402.03300); without `std`, Dr. GRPO (2503.20783).

    Args: rewards `[P, G]`, G >= 2. Returns `[P, G]`. The standard deviation is the unbiased one; a group of equal rewards gets zeros.
    """
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    if not std:
        return centered
    return centered / (rewards.std(dim=1, keepdim=True) + eps)


def _sequence_mean(mask: Tensor, max_tokens: int) -> Tensor:
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1) / max(len(mask), 1)


def _token_mean(mask: Tensor, max_tokens: int) -> Tensor:
    return mask / mask.sum().clamp(min=1)


def _constant(mask: Tensor, max_tokens: int) -> Tensor:
    return mask / max_tokens / max(len(mask), 1)


AGGREGATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sequence_mean": _sequence_mean,  # mean over each sequence, then over sequences (GRPO)
    "token_mean": _token_mean,  # mean over all tokens (DAPO, arXiv 2503.14476)
    "constant": _constant,  # sum over tokens / (rows x max_tokens) (Dr. GRPO)
}


def token_weights(mask: Tensor, aggregation: str, max_tokens: int) -> Tensor:
    """Weights w with loss = Σ w·l for per-token losses l.

    Args: mask `[B, T]` of the whole batch; aggregation, a key of `AGGREGATIONS`; max_tokens, the constant normaliser
    in tokens. Returns `[B, T]`, zero off the mask.
    """
    return AGGREGATIONS[aggregation](mask.float(), max_tokens)


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ρ Â, clip(ρ, 1 - clip_low, 1 + clip_high) Â) per token, ρ = π_θ / π_old (PPO-clip as in GRPO eq. 3).

    Args: logp, old_logp `[B, T]`; advantages `[B]`. Returns (loss, ρ, clipped), each `[B, T]`; `clipped` is 1 where the
    clip is what stops the gradient.
    """
    log_ratio = (logp - old_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    advantages = advantages.unsqueeze(1)
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(unclipped, clipped), ratio, (clipped < unclipped).float()


def _k1(log_ratio: Tensor) -> Tensor:
    return log_ratio


def _k2(log_ratio: Tensor) -> Tensor:
    return 0.5 * log_ratio.square()


def _k3(log_ratio: Tensor) -> Tensor:
    inverse = (-log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(inverse) - inverse


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


def kl(logp: Tensor, ref_logp: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(π_θ || π_ref) on samples of π_θ (Schulman, "Approximating KL divergence", 2020).

    With δ = log π_θ - log π_ref: k1 = δ, k2 = δ²/2, k3 = e^-δ - 1 + δ. As a loss, k1's gradient has mean zero: it is for
    monitoring; k2's gradient is the true one; k3 is GRPO's choice.
    Args: logp, ref_logp `[B, T]`; estimator, a key of `KL_ESTIMATORS`. Returns `[B, T]`.
    """
    return KL_ESTIMATORS[estimator](logp - ref_logp)


def sft_loss(logp: Tensor) -> Tensor:
    """Negative log-likelihood per token. Args: logp `[B, T]`. Returns `[B, T]`."""
    return -logp

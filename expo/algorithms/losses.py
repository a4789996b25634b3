"""Pure functions of tensors: advantages, ratios, KL estimators, aggregation.

Shapes: P problems, G rollouts per problem, B rows, T target positions. `mask` is 1 on completion tokens, 0 elsewhere.

Every stream (policy gradient, KL, auxiliary SFT) is a weighted sum over tokens: `token_weights` fixes the weights once
for the whole batch, so that summing over any partition into micro-batches gives the same loss and gradients.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from expo.config import DPOConf, GRPOConf, functions_of

# A log-ratio beyond this is a broken sample, not a signal: e^20 keeps float32 finite, and clipping bounds the gradient.
MAX_LOG_RATIO = 20.0


# Added to a standard deviation.
EPS = 1e-6


def _mean(rewards: Tensor, members: Tensor, in_baseline: Tensor) -> Tensor:
    return rewards - (rewards * in_baseline).sum(dim=1, keepdim=True) / in_baseline.sum(dim=1, keepdim=True)


def _group_norm(rewards: Tensor, members: Tensor, in_baseline: Tensor) -> Tensor:
    squares = (_mean(rewards, members, members) * members).square().sum(dim=1, keepdim=True)
    std = (squares / (members.sum(dim=1, keepdim=True) - 1)).sqrt()
    return _mean(rewards, members, in_baseline) / (std + EPS)


def _leave_one_out(rewards: Tensor, members: Tensor, in_baseline: Tensor) -> Tensor:
    others = (rewards * in_baseline).sum(dim=1, keepdim=True) - rewards * in_baseline
    return rewards - others / (in_baseline.sum(dim=1, keepdim=True) - in_baseline)


# (rewards, members, in_baseline), each [P, G] -> advantages [P, G]. A group of equal rewards then gets 0, and is not
# trained on.
ADVANTAGES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = functions_of(
    GRPOConf,
    "advantage",
    {
        "group_norm": _group_norm,  # (R - mean) / std (GRPO, arXiv 2402.03300)
        "mean": _mean,  # R - mean (Dr. GRPO, 2503.20783)
        "leave_one_out": _leave_one_out,  # R - mean of the others (RLOO, 2402.14740)
        "none": lambda rewards, members, in_baseline: torch.zeros_like(rewards),  # rewards are not learned from
    },
)


def group_advantages(
    rewards: Tensor, advantage: str = "group_norm", members: Tensor | None = None, in_baseline: Tensor | None = None
) -> Tensor:
    """Return the advantages within each group, by a formula of `ADVANTAGES`.

    Args: rewards `[P, G]`; members `[P, G]`, 1 where a slot of the group is filled (None: everywhere), at least 2 per
    group; in_baseline `[P, G]`, 1 on the members that the mean is taken over (None: all). The standard deviation is the
    unbiased one over all members. Returns `[P, G]`; 0 off the members and in a group of equal rewards.
    """
    members = torch.ones_like(rewards) if members is None else members
    advantages = ADVANTAGES[advantage](rewards, members, members if in_baseline is None else in_baseline)
    has_member = members.bool()
    lowest = rewards.masked_fill(~has_member, torch.inf).amin(dim=1, keepdim=True)
    highest = rewards.masked_fill(~has_member, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(has_member & (highest > lowest), advantages, 0.0)


def overlong_penalty(lengths: Tensor, max_tokens: int, share: float) -> Tensor:
    """Return DAPO's penalty on the reward of a long completion (arXiv 2503.14476, eq. 13): from 0 to -1 over the last
    `share` of the allowance. Args: lengths `[...]` in tokens; share in [0, 1]. Returns the same shape; 0 with
    `share=0`."""
    if not share:
        return torch.zeros_like(lengths, dtype=torch.float32)
    buffer = share * max_tokens
    return ((max_tokens - buffer - lengths) / buffer).clamp(-1, 0)


def _or_one(total: Tensor) -> Tensor:
    """Return a divisor: the total, which a fractional mask may leave below 1, or 1 where the total is 0."""
    return torch.where(total > 0, total, 1.0)


AGGREGATIONS: dict[str, Callable[[Tensor, int], Tensor]] = functions_of(
    GRPOConf,
    "aggregation",
    {
        # Mean over each sequence, then over sequences (GRPO).
        "sequence_mean": lambda mask, most: mask / _or_one(mask.sum(dim=1, keepdim=True)) / max(len(mask), 1),
        "token_mean": lambda mask, most: mask / _or_one(mask.sum()),  # over all tokens (DAPO, arXiv 2503.14476)
        "constant": lambda mask, most: mask / most / max(len(mask), 1),  # sum / (rows x max_tokens) (Dr. GRPO)
    },
)


def token_weights(mask: Tensor, aggregation: str, max_tokens: int) -> Tensor:
    """Return the weights w `[B, T]` with loss = Σ w·l, zero off the mask. Args: mask `[B, T]` of the whole batch;
    aggregation, a key of `AGGREGATIONS`; max_tokens, the constant normaliser in tokens."""
    return AGGREGATIONS[aggregation](mask.float(), max_tokens)


def _sequence(log_ratio: Tensor, mask: Tensor) -> Tensor:
    mean = (log_ratio * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio)


RATIOS: dict[str, Callable[[Tensor, Tensor], Tensor]] = functions_of(
    GRPOConf,
    "ratio",
    {
        "token": lambda log_ratio, mask: log_ratio,  # π_θ / π_old of each token (GRPO)
        "sequence": _sequence,  # its geometric mean over the sequence (GSPO, arXiv 2507.18071, eq. 7)
    },
)


def importance_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, ratio: str) -> Tensor:
    """Return the importance ratio ρ = π_θ / π_old, which `SURROGATES` clip. Args: logp, old_logp, mask `[B, T]`; ratio,
    a key of `RATIOS`. Returns `[B, T]`."""
    return RATIOS[ratio](logp - old_logp, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _ppo_clip(rho: Tensor, advantages: Tensor, logp: Tensor, conf: GRPOConf) -> tuple[Tensor, Tensor]:
    """Return -min(ρ Â, clip(ρ, 1 - clip_low, 1 + clip_high) Â) (GRPO eq. 3)."""
    unclipped = rho * advantages
    clipped = rho.clamp(1 - conf.clip_low, 1 + conf.clip_high) * advantages
    return -torch.minimum(unclipped, clipped), (clipped < unclipped).float()


def _dual_clip(rho: Tensor, advantages: Tensor, logp: Tensor, conf: GRPOConf) -> tuple[Tensor, Tensor]:
    """Return `_ppo_clip`, of at most -dual_clip · Â where Â < 0: no token pulls harder (1912.09729, eq. 5)."""
    loss, stopped = _ppo_clip(rho, advantages, logp, conf)
    most = -conf.dual_clip * advantages
    capped = (advantages < 0) & (loss > most)
    return torch.where(capped, most, loss), torch.maximum(stopped, capped.float())


def _cispo(rho: Tensor, advantages: Tensor, logp: Tensor, conf: GRPOConf) -> tuple[Tensor, Tensor]:
    """Return -sg(min(ρ, 1 + clip_high)) Â log π_θ: a clipped ratio stops no gradient (CISPO, 2506.13585, eq. 4)."""
    limit = 1 + conf.clip_high
    return -rho.detach().clamp(max=limit) * advantages * logp, (rho > limit).float()


def _sapo(rho: Tensor, advantages: Tensor, logp: Tensor, conf: GRPOConf) -> tuple[Tensor, Tensor]:
    """Return -(4/τ) σ(τ (ρ - 1)) Â: the gradient fades with |ρ - 1|, sooner where Â ≤ 0 (SAPO, 2511.20347, eq. 5-6)."""
    tau = torch.where(advantages > 0, conf.sapo_tau_positive, conf.sapo_tau_negative)
    return -(4 / tau) * torch.sigmoid(tau * (rho - 1)) * advantages, torch.zeros_like(rho)


def _dppo(rho: Tensor, advantages: Tensor, logp: Tensor, conf: GRPOConf) -> tuple[Tensor, Tensor]:
    """Return -ρ Â, and 0 for a token whose probability has moved by over clip_high or clip_low in the direction of Â
    already: prime-rl's mask of DPPO, by the difference of probabilities, which bounds a token's binary divergence."""
    probability = logp.detach().exp()
    change = probability - probability / rho.detach()
    stopped = torch.where(advantages > 0, change > conf.clip_high, change < -conf.clip_low)
    return torch.where(stopped, 0.0, -rho * advantages), stopped.float()


# (ρ [B, T], advantages [B, 1] or [B, T], log π_θ [B, T], conf) -> loss per token [B, T], and 1 where the ratio is
# clipped, or stops the gradient
SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, GRPOConf], tuple[Tensor, Tensor]]] = functions_of(
    GRPOConf,
    "surrogate",
    {"ppo_clip": _ppo_clip, "dual_clip": _dual_clip, "cispo": _cispo, "sapo": _sapo, "dppo": _dppo},
)


def policy_loss(
    logp: Tensor, old_logp: Tensor, mask: Tensor, advantages: Tensor, conf: GRPOConf
) -> tuple[Tensor, Tensor, Tensor]:
    """Return three tensors `[B, T]`: each token's loss by `conf.surrogate`, its ratio ρ = π_θ / π_old by `conf.ratio`,
    and 1 where the surrogate clips it, or stops the gradient. Args: logp, old_logp, mask `[B, T]`; advantages `[B]`, or
    `[B, T]`."""
    rho = importance_ratio(logp, old_logp, mask, conf.ratio)
    loss, stopped = SURROGATES[conf.surrogate](rho, advantages.view(len(rho), -1), logp, conf)
    return loss, rho, stopped


def member_loss(logp: Tensor, advantages: Tensor, shaping: float) -> Tensor:
    """Return -f Â per token of a positive that joined a group: the policy did not sample it, and its sampling
    probability is unknown.

    With `shaping` γ > 0, f = π_θ / (π_θ + γ) (LUFFY, arXiv 2504.14945, eq. 6), which cares most for unlikely tokens;
    with 0, a ratio of 1 with the gradient of log π_θ. Never clipped. Args: logp `[B, T]`; advantages `[B]`. Returns
    `[B, T]`.
    """
    probability = logp.exp()
    ratio = probability / (probability + shaping) if shaping else (logp - logp.detach()).exp()
    return -ratio * advantages.unsqueeze(1)


CORRECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = functions_of(
    GRPOConf,
    "sampler_correction",
    {
        "none": lambda log_ratio, mask: torch.zeros_like(log_ratio),
        "token": lambda log_ratio, mask: log_ratio,
        "sequence": lambda log_ratio, mask: (log_ratio * mask).sum(dim=1, keepdim=True).expand_as(log_ratio),
    },
)


def sampler_weights(old_logp: Tensor, sampler_logp: Tensor, mask: Tensor, correction: str | None, cap: float) -> Tensor:
    """Return the truncated importance weights min(π_old / π_sampler, cap) between trainer and sampler (arXiv 2508.02260
    and others).

    π_sampler is what the engine sampled from: the same weights in other kernels or formats, or with `rollout.ahead=1`
    those of one update ago. Args: old_logp, sampler_logp, mask `[B, T]`; correction, a key of `CORRECTIONS`. Returns
    `[B, T]`, no gradient.
    """
    log_ratio = CORRECTIONS[correction or "none"]((old_logp - sampler_logp).detach(), mask)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=cap)


def _k3(log_ratio: Tensor) -> Tensor:
    inverse = (-log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(inverse) - inverse


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = functions_of(
    GRPOConf, "kl_estimator", {"k1": lambda delta: delta, "k2": lambda delta: 0.5 * delta.square(), "k3": _k3}
)


def kl(logp: Tensor, ref_logp: Tensor, estimator: str) -> Tensor:
    """Return the per-token estimate of KL(π_θ || π_ref) on samples of π_θ (Schulman, "Approximating KL divergence",
    2020).

    With δ = log π_θ - log π_ref: k1 = δ, k2 = δ²/2, k3 = e^-δ - 1 + δ. As a loss, k1's gradient has mean zero: it is
    for monitoring; k2's gradient is the true one; k3 is GRPO's choice. Args: logp, ref_logp `[B, T]`; estimator, a key
    of `KL_ESTIMATORS`. Returns `[B, T]`.
    """
    return KL_ESTIMATORS[estimator](logp - ref_logp)


def sft_loss(logp: Tensor) -> Tensor:
    """Return the negative log-likelihood per token. Args: logp `[B, T]`. Returns `[B, T]`."""
    return -logp


def _sigmoid(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


# (margin, beta, label_smoothing) -> loss, each tensor [B]
PREFERENCES: dict[str, Callable[[Tensor, float, float], Tensor]] = functions_of(
    DPOConf,
    "preference",
    {
        "sigmoid": _sigmoid,  # DPO (arXiv 2305.18290, eq. 7); with label smoothing, conservative DPO
        # IPO (arXiv 2310.12036, eq. 17), on means over tokens as its authors use it.
        "ipo": lambda margin, beta, label_smoothing: ((margin - 0.5) / beta).square(),
    },
)


def preference_loss(
    chosen: Tensor, rejected: Tensor, lengths: Tensor, beta: float, label_smoothing: float, preference: str
) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair, and its margin: β times how much more the policy has moved towards the chosen one.

    Args: chosen, rejected `[B]`, log π_θ(c|q) - log π_ref(c|q) summed over the tokens of each completion; lengths
    `[2, B]`, their tokens; preference, a key of `PREFERENCES`. Returns two `[B]`.
    """
    if preference == "ipo":
        chosen, rejected = torch.stack([chosen, rejected]) / lengths.clamp(min=1)
    margin = beta * (chosen - rejected)
    return PREFERENCES[preference](margin, beta, label_smoothing), margin

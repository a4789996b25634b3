"""Divergences between a student's and a teacher's next token: pure functions of log-probabilities.

Shapes: N positions, V words of the vocabulary. No gradient goes through the teacher: the caller gives it without one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# The most log-mass that a support can have before its tail: beyond it the tail's logarithm would be infinite.
FULL = -1e-7


@dataclass(frozen=True)
class Divergence:
    """Divergence of student and teacher with its settings; see `generalized_jsd` and `on_support`."""

    mix: float
    top_k: int = 0
    tail: bool = True

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of each position: `[N]`. Args: log-probabilities `[N, V]`."""
        if self.top_k:
            student, teacher = on_support(student, teacher, self.top_k, self.tail)
        return generalized_jsd(student, teacher, self.mix)


def generalized_jsd(student: Tensor, teacher: Tensor, mix: float) -> Tensor:
    """Return β KL(p_T || m) + (1 - β) KL(p_S || m) with m = (1 - β) p_S + β p_T, β = `mix` (arXiv 2306.13649, eq. 1).

    β = 0 stands for KL(p_T || p_S), the forward KL, β = 1 for KL(p_S || p_T), the reverse one: divided by β or 1 - β,
    they are the limits. Args: student, teacher `[N, V]`, log-probabilities that each sum to 1 over V. Returns `[N]`, in
    nats.
    """
    if mix == 0:
        return _kl(teacher, student)
    if mix == 1:
        return _kl(student, teacher)
    share = student.new_tensor(mix)
    mixture = torch.logaddexp(student + torch.log1p(-share), teacher + share.log())
    return mix * _kl(teacher, mixture) + (1 - mix) * _kl(student, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(dim=-1)


def on_support(student: Tensor, teacher: Tensor, k: int, tail: bool) -> tuple[Tensor, Tensor]:
    """Restrict both to the student's top-k tokens; the rest is one token with `tail`, else both are renormalized. Args:
    student, teacher `[N, V]`. Returns two `[N, k + 1]` with `tail`, else `[N, k]`; each sums to 1."""
    chosen = student.detach().topk(min(k, student.shape[-1]), dim=-1).indices
    student, teacher = student.gather(-1, chosen), teacher.gather(-1, chosen)
    close = _with_tail if tail else _renormalized
    return close(student), close(teacher)


def _with_tail(logp: Tensor) -> Tensor:
    mass = logp.logsumexp(dim=-1, keepdim=True).clamp(max=FULL)
    return torch.cat([logp, (-torch.expm1(mass)).log()], dim=-1)


def _renormalized(logp: Tensor) -> Tensor:
    return logp - logp.logsumexp(dim=-1, keepdim=True)


def capped(values: Tensor, cap: float) -> Tensor:
    """Return values of a size of at most `cap`, with sign; the gradient is scaled down as much. A few tokens of which
    teacher and student think quite differently would otherwise outweigh all others."""
    return values * (cap / values.detach().abs().clamp(min=cap)) if cap < torch.inf else values

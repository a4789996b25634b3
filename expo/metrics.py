"""The scalars of a training step, under the names that every algorithm shares (README: how to read the curves)."""

from collections import Counter
from collections.abc import Mapping

from expo.data import ladder
from expo.experience import Experience
from expo.schema import Filter
from expo.verifier import Verdict


def step_metrics(experience: Experience, sums: Mapping[str, float], beta: float) -> dict[str, float | None]:
    """Scalars of one step from its experience and from what the updates summed up."""
    e, rewards = experience, experience.rewards
    lengths = [len(c.ids) for c in e.completions]
    seconds = e.timer.seconds
    updates, tokens, positives = sums["updates"], sums["tokens"], sums["positives"]
    generated = sum(lengths) + e.explanation_tokens
    rejected = Counter(c.rejected for c in e.candidates if c.rejected)
    explained = [c.logp_given_qa for c in e.positives if c.logp_given_qa is not None]
    metrics: dict[str, float | None] = {
        "reward/mean": rewards.mean().item(),
        "reward/all_wrong_frac": e.all_wrong.float().mean().item(),
        "reward/all_right_frac": (rewards.amin(dim=1) == 1).float().mean().item(),
        "reward/unparseable_frac": _share(e.verdicts.count(Verdict.UNPARSEABLE), len(e.verdicts)),
        "reward/timeout_frac": _share(e.verdicts.count(Verdict.TIMEOUT), len(e.verdicts)),
        "loss/total": sums["loss/total"] / updates,
        "loss/policy": sums["loss/policy"] / updates,
        "loss/kl": sums["loss/kl"] / updates,
        "loss/sft": sums["loss/sft"] / updates,
        # -mean log π of what was sampled: an unbiased estimate of the entropy per token, at no cost.
        "policy/entropy": -sum(sum(c.logp) for c in e.completions) / sum(lengths),
        "policy/ratio_mean": sums["ratio"] / tokens if tokens else 1.0,
        "policy/clip_frac": _share(sums["clipped"], tokens),
        "policy/grad_norm": sums["grad_norm"] / updates,
        "policy/updates_skipped": sums["skipped"],
        "completion/length_mean": sum(lengths) / len(lengths),
        "completion/truncated_frac": _share(sum(c.truncated for c in e.completions), len(lengths)),
        "positive/used_frac": _share(len(e.positives), len(e.problems)),
        # None (null in metrics.jsonl) where there is no such positive: a log-probability of 0 would mean certainty.
        "positive/logp_given_q": sums["positive_logp"] / positives if positives else None,
        "positive/logp_given_qa": sum(explained) / len(explained) if explained else None,
        "positive/filtered_frac": _share(sum(rejected.values()), len(e.candidates)),
        **{f"positive/filtered_{f.name}_frac": _share(rejected[f.name], len(e.candidates)) for f in Filter},
        "weight/positive": beta,
        **{f"time/{part}_s": seconds.get(part, 0.0) for part in ("rollout", "verify", "explain", "update", "sync")},
        "throughput/tokens_per_s": generated / sum(seconds.values()),
    }
    written = [c for c in e.positives if c.logp_given_qa is not None]
    if e.problems[0].subject == "ladder" and written:
        # The oracle that real data lacks: are the steps of the explanations right, not only their answers?
        checks = [ladder.check_steps(e.problems[c.problem].question, c.text) for c in written]
        metrics["positive/sound_frac"] = _share(sum(c.sound for c in checks), len(checks))
    return metrics


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

"""The scalars of a training step, under the names that every algorithm shares (README: how to read the curves)."""

from collections import Counter
from collections.abc import Mapping, Sequence

from expo.config.positives import FILTERS
from expo.data import ladder
from expo.step.experience import Experience
from expo.verifier.answers import Verdict

# Loss terms that every run logs; an algorithm's own are logged after them.
LOSS_TERMS = ("loss/total", "loss/policy", "loss/kl", "loss/sft", "loss/preference")
# What algorithms of expo add up beside their loss terms; it is logged under names of its own.
_OWN_SUMS = (
    "updates tokens trained ratio clipped sampler_kl as_sampled kl kl_tokens grad_norm skipped passed_over guided "
    "gap divergence divergence_squares pairs margin accuracy chosen_logp rejected_logp chosen_gain"
)
OWN_SUMS = frozenset(_OWN_SUMS.split())
STAGES = ("rollout", "verify", "hint", "explain", "update", "sync")


def step_metrics(experience: Experience, sums: Mapping[str, float], beta: float | None) -> dict[str, float | None]:
    """Return the scalars of one step from its experience and from what the updates summed up.

    None (null in metrics.jsonl) where something does not exist: a log-probability of 0, say, would mean certainty.
    """
    e, updates = experience, sums["updates"] or 1
    own_terms = sorted(name for name in sums if name.startswith("loss/"))
    lengths = [len(c.ids) for c in e.completions]
    seconds = e.timer.seconds
    rollouts = _rollout_metrics(e)
    # Of rollouts that another policy wrote, the policy's own names say nothing.
    named = rollouts if not e.writer else {f"{e.writer}/{name}": value for name, value in rollouts.items()}
    metrics: dict[str, float | None] = {
        **dict.fromkeys(rollouts),
        **named,
        **{term: sums.get(term, 0.0) / updates for term in dict.fromkeys([*LOSS_TERMS, *own_terms])},
        "policy/kl": _ratio(sums["kl"], sums["kl_tokens"]),
        "policy/ratio_mean": sums["ratio"] / sums["tokens"] if sums["tokens"] else 1.0,
        "policy/clip_frac": _share(sums["clipped"], sums["tokens"]),
        "policy/sampler_kl": _ratio(sums["sampler_kl"], sums["as_sampled"]),
        "policy/grad_norm": sums["grad_norm"] / updates,
        "policy/updates_skipped": sums["skipped"],
        **_positive_metrics(e),
        "weight/positive": beta,
        **{f"time/{stage}_s": seconds.get(stage, 0.0) for stage in STAGES},
        # No part of the step's own: with it, runs that share pairs or a bank can be compared, whoever has made them.
        "time/shared_s": e.shared_s,
        "throughput/tokens_per_s": (e.generated_tokens - e.banked_tokens) / sum(seconds.values()),
        # Completion tokens made, and completion tokens that a gradient went through.
        "throughput/tokens_generated": e.generated_tokens,
        "throughput/tokens_trained": sums["trained"],
    }
    if e.keep is not None:
        hinted = e.rewards[e.hinted, e.keep :]  # the first of a group stay as they are
        metrics |= {
            "hint/used_frac": len(e.hinted) / len(e.problems),
            "hint/reward_mean": hinted.mean().item() if e.hinted else None,
            "hint/reliance": e.hint_reliance,
        }
    if "passed_over" in sums:
        metrics["problem/passed_over"] = sums["passed_over"]
    if "guided" in sums:
        # The share of the rollouts' tokens that a teacher judged, and what it thinks of them: log p_T - log p_S, and the divergence.
        n, apart, squares = sums["guided"], sums["divergence"], sums["divergence_squares"]
        metrics |= {
            "distill/guided_frac": _share(n, sum(lengths) * updates),
            "distill/gap": _ratio(sums["gap"], n),
            "distill/divergence": _ratio(apart, n),
            # 1: all tokens diverge alike; near 0: a few outweigh all others, which collapses runs.
            "distill/evenness": _ratio(apart**2, n * squares),
        }
    if "pairs" in sums:
        names = ("margin", "accuracy", "chosen_logp", "rejected_logp", "chosen_gain")
        metrics |= {f"pair/{name}": _ratio(sums[name], sums["pairs"]) for name in names}
        metrics["pair/used_frac"] = sums["pairs"] / len(e.problems)
    # Whatever an algorithm of one's own adds up, as a mean over updates.
    further = sorted(name for name in sums if name not in OWN_SUMS and not name.startswith("loss/"))
    return metrics | {name if "/" in name else f"own/{name}": sums[name] / updates for name in further}


def _rollout_metrics(e: Experience) -> dict[str, float | None]:
    """Return the scalars of a step's rollouts, as they are without a hint."""
    completions, verdicts = [c for c, _ in e.sampled], [v for _, v in e.sampled]
    lengths = [len(c.ids) for c in completions]
    return {
        "reward/mean": e.unaided.mean().item() if lengths else None,
        "reward/all_wrong_frac": e.all_wrong.float().mean().item() if lengths else None,
        "reward/all_right_frac": e.correct.bool().all(dim=1).float().mean().item() if lengths else None,
        "reward/unparseable_frac": _ratio(verdicts.count(Verdict.UNPARSEABLE), len(verdicts)),
        "reward/timeout_frac": _ratio(verdicts.count(Verdict.TIMEOUT), len(verdicts)),
        # -mean log π of what was sampled: an unbiased estimate of the entropy per token, at no cost.
        "policy/entropy": _ratio(-sum(sum(c.logp) for c in completions), sum(lengths)),
        "completion/length_mean": _mean(lengths),
        "completion/truncated_frac": _ratio(sum(c.truncated for c in completions), len(lengths)),
    }


def _positive_metrics(e: Experience) -> dict[str, float | None]:
    rejected = Counter(c.rejected for c in e.candidates if c.rejected)
    written = [c for c in e.positives if c.prompt is not None]
    both = [
        (c.logp_given_q, c.logp_given_qa) for c in written if c.logp_given_q is not None and c.logp_given_qa is not None
    ]
    lifts = [c.answer_lift for c in e.positives if c.answer_lift is not None]
    # Of the same problems: some have longer answers than others, and some have no positive.
    explained, g = {c.problem for c in e.positives}, e.group_size
    own = _mean([len(c.ids) for i in explained for c in e.completions[i * g : (i + 1) * g]])
    length = _mean([len(c.ids) for c in e.positives])
    reasons = dict.fromkeys([*FILTERS, *rejected])
    metrics = {
        "positive/used_frac": len({c.problem for c in e.positives}) / len(e.problems),
        "positive/reused_frac": _share(e.reused, len(e.positives)),
        # Under the policy before its update; of what the policy wrote itself also under the prompt that shows the answer.
        "positive/logp_given_q": _mean([c.logp_given_q for c in e.positives if c.logp_given_q is not None]),
        "positive/logp_given_qa": _mean([given_qa for _, given_qa in both]),
        # What seeing the answer adds to the likelihood: how far explanations lean on it (leak), per token.
        "positive/leak_gap": _mean([given_qa - given_q for given_q, given_qa in both]),
        "positive/answer_lift": _mean(lifts),
        # Against the policy's own rollouts: drift of style shows here first.
        "positive/length_ratio": None if own is None or length is None else length / own,
        "positive/filtered_frac": _share(sum(rejected.values()), len(e.candidates)),
        **{f"positive/filtered_{reason}_frac": _share(rejected[reason], len(e.candidates)) for reason in reasons},
    }
    if e.problems[0].subject == "ladder" and written:
        # The oracle that real data lacks: are the steps of the explanations right, not only their answers?
        checks = [ladder.check_steps(e.problems[c.problem].question, c.text) for c in written]
        metrics["positive/sound_frac"] = _share(sum(c.sound for c in checks), len(checks))
    return metrics


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""The scalars of a training step, under the names that every algorithm shares (docs/curves.md)."""

from collections import Counter
from collections.abc import Sequence

import torch

from expo.config.positives import FILTERS
from expo.step.experience import Experience
from expo.step.sums import StepSums
from expo.verifier.answers import Verdict

# Loss terms that every run logs; an algorithm's own are logged after them.
LOSS_TERMS = ("loss/total", "loss/policy", "loss/kl", "loss/sft", "loss/preference")
STAGES = ("rollout", "verify", "hint", "explain", "update", "sync")


def step_metrics(experience: Experience, sums: StepSums, positive_weight: float | None) -> dict[str, float | None]:
    """Return the scalars of one step. None (null in metrics.jsonl) where something does not exist: a log-probability of
    0, say, would mean certainty."""
    e = experience
    seconds = e.timer.seconds
    written = _rollout_metrics(e)
    if e.writer == "pairs":  # measured under the policy that made them, which is the trained one no more
        written |= _likelihood_metrics(e)
    # Of what another policy wrote, the policy's own names say nothing.
    named = written if not e.writer else {f"{e.writer}/{name}": value for name, value in written.items()}
    metrics: dict[str, float | None] = {
        **_likelihood_metrics(e),
        **dict.fromkeys(written),
        **named,
        # What every run logs, as it is in a step without any update; the updates' own follow after them.
        **dict.fromkeys(LOSS_TERMS, 0.0),
        **{"policy/kl": None, "policy/ratio_mean": 1.0, "policy/clip_frac": 0.0, "policy/sampler_kl": None},
        **{"policy/grad_norm": 0.0, "policy/updates_skipped": 0.0},
        **_positive_metrics(e),
        "weight/positive": positive_weight,
        **{f"time/{stage}_s": seconds.get(stage, 0.0) for stage in STAGES},
        # No part of the step's own: with it, runs that share pairs or a bank can be compared, whoever has made them.
        "time/shared_s": e.shared_s,
        "throughput/tokens_per_s": (e.generated_tokens - e.banked_tokens)
        / (sum(seconds.values()) - (e.hidden_s or 0.0)),
        # Completion tokens made, and completion tokens that a gradient went through.
        "throughput/tokens_generated": e.generated_tokens,
        "throughput/tokens_trained": 0.0,
    }
    if e.hidden_s is not None:
        metrics["time/hidden_s"] = e.hidden_s
    if e.gives_hints:
        hinted = [group for group in e.groups if group.before_hint]
        rewards = torch.tensor([group.rewards[group.kept :] for group in hinted])
        metrics |= {
            "hint/used_frac": len(hinted) / len(e.groups),
            "hint/reward_mean": rewards.mean().item() if hinted else None,
            "hint/reliance": e.hint_reliance,
        }
    return metrics | {n: value for n, value in sums.metrics().items() if value is not None or n not in metrics}


def _rollout_metrics(e: Experience) -> dict[str, float | None]:
    groups = [group.unaided for group in e.groups]
    completions, verdicts = [c for g in groups for c in g.completions], [v for g in groups for v in g.verdicts]
    lengths = [len(c.ids) for c in completions]
    all_right = torch.tensor([all(group.correct) for group in groups])
    return {
        "reward/mean": torch.tensor([g.rewards for g in groups]).mean().item() if lengths else None,
        "reward/all_wrong_frac": e.all_wrong.float().mean().item() if lengths else None,
        "reward/all_right_frac": all_right.float().mean().item() if lengths else None,
        "reward/unparseable_frac": _ratio(verdicts.count(Verdict.UNPARSEABLE), len(verdicts)),
        "reward/timeout_frac": _ratio(verdicts.count(Verdict.TIMEOUT), len(verdicts)),
        # -mean log π of what was sampled: an unbiased estimate of the entropy per token, at no cost. The loss term
        # `Entropy` has the logits' own.
        "policy/entropy": _ratio(-sum(sum(c.logp) for c in completions), sum(lengths)),
        "completion/length_mean": _mean(lengths),
        "completion/truncated_frac": _ratio(sum(c.truncated for c in completions), len(lengths)),
    }


def _likelihood_metrics(e: Experience) -> dict[str, float | None]:
    positives = [c for _, c in e.positives]
    written = [c for c in positives if c.prompt is not None]
    both = [
        (c.logp_given_q, c.logp_given_qa) for c in written if c.logp_given_q is not None and c.logp_given_qa is not None
    ]
    return {
        "positive/logp_given_q": _mean([c.logp_given_q for c in positives if c.logp_given_q is not None]),
        "positive/logp_given_qa": _mean([given_qa for _, given_qa in both]),
        # What seeing the answer adds to the likelihood: how far explanations lean on it (leak), per token.
        "positive/leak_gap": _mean([given_qa - given_q for given_q, given_qa in both]),
        "positive/answer_lift": _mean([c.answer_lift for c in positives if c.answer_lift is not None]),
    }


def _positive_metrics(e: Experience) -> dict[str, float | None]:
    candidates, positives = [c for g in e.groups for c in g.candidates], [c for _, c in e.positives]
    rejected = Counter(c.rejected for c in candidates if c.rejected)
    # Of the same problems: some have longer answers than others, and some have no positive.
    explained = [group for group in e.groups if group.positives]
    own_length = _mean([len(c.ids) for group in explained for c in group.completions])
    length = _mean([len(c.ids) for c in positives])
    reasons = dict.fromkeys([*FILTERS, *rejected])
    metrics = {
        "positive/used_frac": len(explained) / len(e.groups),
        "positive/reused_frac": _share(e.reused, len(positives)),
        # Against the policy's own rollouts: drift of style shows here first.
        "positive/length_ratio": None if own_length is None or length is None else length / own_length,
        "positive/filtered_frac": _share(sum(rejected.values()), len(candidates)),
        **{f"positive/filtered_{reason}_frac": _share(rejected[reason], len(candidates)) for reason in reasons},
    }
    # Are the steps of the explanations right, not only their answers?
    written = [(group.problem, c) for group, c in e.positives if c.prompt is not None]
    checks = [problem.oracle(problem.question, c.text) for problem, c in written if problem.oracle]
    if checks:
        metrics["positive/sound_frac"] = _share(sum(c.sound for c in checks), len(checks))
    return metrics


def _share(part: float, total: float) -> float:
    return part / total if total else 0.0


def _ratio(part: float, total: float) -> float | None:
    return part / total if total else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

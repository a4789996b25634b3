"""A policy that collapses is named, with the step where it began; what is done then is `trainer.on_collapse`'s to say."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expo.runs.health import SIGNS, WINDOW, Health, Watch, collapses_of

REWARD = SIGNS[0]
NOISY = [0.03, -0.05, 0.04, -0.02, 0.05, -0.03, 0.02, -0.04]  # around a mean that matters


def told(metric: str, values: list[float | None]) -> list[tuple[int, str]]:
    """Return (step, metric) of each collapse that the watch notices in a series of one scalar."""
    health = Health()
    return [
        (step, watch.sign.metric)
        for step, value in enumerate(values, 1)
        for watch, _ in health.see(step, {metric: value})
    ]


def noisy(mean: float, steps: int) -> list[float | None]:
    return [mean + NOISY[i % len(NOISY)] for i in range(steps)]


@pytest.mark.parametrize(
    ("metric", "healthy", "ill"),
    [
        ("reward/mean", 0.6, 0.05),
        ("reward/unparseable_frac", 0.1, 0.7),
        ("policy/entropy", 0.2, 1.5),
        ("completion/length_mean", 400.0, 3.0),
        ("completion/truncated_frac", 0.1, 0.95),
        ("loss/kl", 0.05, 3.0),
        ("positive/leak_gap", 0.2, 2.5),
    ],
)
def test_each_sign_is_noticed_once_and_dated(metric, healthy, ill):
    series = noisy(healthy, 40) + noisy(ill, 40)
    [(step, name)] = told(metric, series)
    assert name == metric
    assert 41 < step <= 40 + WINDOW + 1
    watch = Watch(next(s for s in SIGNS if s.metric == metric))
    for at, value in enumerate(series[:step], 1):
        now = watch.see(at, value)
    assert watch.began([(at, value) for at, value in enumerate(series[:step], 1)], now) == 41


@pytest.mark.parametrize("metric", [sign.metric for sign in SIGNS])
def test_noise_progress_and_what_is_undefined_are_no_collapse(metric):
    falls = next(s for s in SIGNS if s.metric == metric).falls
    better = [0.01 * i for i in range(100)]
    assert told(metric, noisy(0.3, 200)) == []
    assert told(metric, better if falls else [1 - v for v in better]) == []
    assert told(metric, [None, float("nan"), float("inf")] * 50) == []
    assert told(metric, [0.0] * 100) == []


def test_falling_entropy_is_what_learning_looks_like():
    assert told("policy/entropy", [0.12 * 0.95**i for i in range(200)]) == []


def test_rare_successes_of_hard_problems_are_no_collapse_when_they_cease():
    assert told("reward/mean", [1 / 16, 0, 0, 1 / 16, *([0.0] * 60)]) == []


def test_a_collapse_within_the_first_steps_is_noticed():
    """The reward of a real run of the ladder at a learning rate of 5e-3 (2026-11-25)."""
    first = [0.258, 0.188, 0.062, 0.0, 0.0, 0.008, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.008]
    assert told("reward/mean", first) == [(12, "reward/mean")]


def test_a_second_collapse_is_told_after_a_recovery_only():
    series = noisy(0.6, 30) + noisy(0.05, 60) + noisy(0.6, 30) + noisy(0.05, 30)
    assert [step for step, _ in told("reward/mean", series)] == [39, 129]


def test_the_watch_goes_on_from_its_state():
    series = noisy(0.6, 30) + noisy(0.05, 30)
    whole, parts = Health(), Health()
    for step, value in enumerate(series, 1):
        metrics = {"reward/mean": value, "policy/entropy": 2 * value}
        noticed = whole.see(step, metrics)
        parts = Health.of(copy.deepcopy(parts.state()))
        assert parts.see(step, metrics) == noticed
    assert len(whole.watches["reward/mean"].recent) == 2 * WINDOW, "what is kept does not grow"


def test_a_summary_of_others_may_hold_anything():
    good = {"metric": "reward/mean", "meaning": "x", "best": 0.5, "now": 0.1, "began": 3, "noticed": 9}
    summary = {"collapses": [good, {}, 3, None, good | {"best": "much"}, good | {"more": 1}]}
    assert [c.began for c in collapses_of(summary)] == [3]
    assert collapses_of({}) == collapses_of({"collapses": None}) == collapses_of({"collapses": 7}) == []


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run GRPO at a learning rate that no policy survives."""
    line = [
        "algorithm=grpo", "dataset=ladder", "optimizer.learning_rate=0.02", "trainer.max_steps=40", "algorithm.group_size=4",
        "trainer.problems_per_step=8", "dataset.levels=[1]", "dataset.eval_levels=[1]", "dataset.eval_limit=4", "evaluation.every=5", "k=[1]",
        "rollout.max_completion_tokens=24", "logger=none", f"output_dir={folder}", *overrides,
    ]  # fmt: skip
    return subprocess.run([sys.executable, "-m", "expo", "train", *line], capture_output=True, text=True, check=False)


def directory(folder: Path) -> Path:
    [found] = folder.glob("ladder/*-s0-*")
    return found


@pytest.mark.runs
def test_stop_ends_the_run_with_one_line_and_the_best_checkpoint(tmp_path):
    done = train(tmp_path, "trainer.on_collapse=stop")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("expo:")]
    assert "reward/mean collapses from step" in line
    assert "best.ckpt is of step 0" in line
    run = directory(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["collapses"][0]["metric"] == "reward/mean"
    assert (run / "checkpoints" / "best.ckpt").is_file()
    # warn is the same run, which may go on from there
    assert train(tmp_path).returncode == 0
    assert directory(tmp_path) == run


@pytest.mark.runs
def test_a_rollback_takes_the_best_policy_and_resumes_to_the_bit(tmp_path):
    options = ("trainer.on_collapse=rollback", "optimizer.warmup_steps=30")
    whole = train(tmp_path / "whole", *options)
    assert "back to the policy of step" in whole.stderr, whole.stderr
    run = directory(tmp_path / "whole")
    back = int(re.search(r"step (\d+): back", whole.stderr)[1])
    returns = re.findall(r"step (\d+): back to the policy of step (\d+)", whole.stderr)
    assert len({best for _, best in returns}) == len(returns), "once for each best checkpoint"
    kept = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["callbacks"]
    (best_step,) = (state["best_step"] for state in kept.values() if "best_step" in state)
    assert str(best_step) not in {at for at, _ in returns}, "what was returned to is no better checkpoint"
    again = train(tmp_path / "parts", *options, f"trainer.stop_after={back + 3}", "trainer.checkpoint_every=7")
    assert again.returncode == 0, again.stderr
    again = train(tmp_path / "parts", *options)
    assert again.returncode == whole.returncode
    other = directory(tmp_path / "parts")
    assert other.name == run.name
    clocks = ("time/", "throughput/")
    scalars = [
        [
            {k: v for k, v in json.loads(line).items() if not k.startswith(clocks)}
            for line in (d / "metrics.jsonl").open()
        ]
        for d in (run, other)
    ]
    assert scalars[0] == scalars[1]
    ended = [json.loads((d / "summary.json").read_text()) for d in (run, other)]
    assert ended[0]["collapses"] == ended[1]["collapses"]
    weights = [torch.load(d / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for d in (run, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.runs
def test_rollback_wants_a_reward_of_each_step(tmp_path):
    done = train(tmp_path, "algorithm=exp_dpo_offline", "trainer.on_collapse=rollback")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "trainer.on_collapse=stop" in done.stderr

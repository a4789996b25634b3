"""A policy that collapses is named, with the step where it began; what is done then is `trainer.on_collapse`'s to
say."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from expo.runs.health import (
    DEAD_AFTER,
    SIGNS,
    STUCK,
    WINDOW,
    Collapse,
    Health,
    Sign,
    SignState,
    collapses_of,
    marks_of,
    nothing_learned,
    shares_told,
    why_none_is_right,
)
from expo.training.collapse import Collapsed, WatchHealth

REWARD = SIGNS[0]
NOISY = [0.03, -0.05, 0.04, -0.02, 0.05, -0.03, 0.02, -0.04]  # around a mean that matters


def told(metric: str, values: list[float | None]) -> list[tuple[int, str]]:
    """Return (step, metric) of each collapse that the watch notices in a series of one scalar."""
    health = Health()
    return [
        (step, watch.sign.metric) for step, value in enumerate(values, 1) for watch, _ in health.see({metric: value})
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
        ("policy/kl", 0.05, 3.0),
        ("positive/leak_gap", 0.2, 2.5),
        ("distill/divergence", 0.2, 1.5),
    ],
)
def test_each_sign_is_noticed_once_and_dated(metric, healthy, ill):
    series = noisy(healthy, 40) + noisy(ill, 40)
    [(step, name)] = told(metric, series)
    assert name == metric
    assert 41 < step <= 40 + WINDOW + 1
    watch = SignState(next(s for s in SIGNS if s.metric == metric))
    for value in series[:step]:
        now = watch.see(value)
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
    for value in series:
        metrics = {"reward/mean": value, "policy/entropy": 2 * value}
        noticed = whole.see(metrics)
        parts = Health.of(copy.deepcopy(parts.state()))
        assert parts.see(metrics) == noticed
    assert len(whole.watches["reward/mean"].recent) == 2 * WINDOW, "what is kept does not grow"


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"policy/grad_norm": 0.0}, {"policy/grad_norm": 0.0}], "no step of 2 had a gradient"),
        ([{"policy/grad_norm": 0.0}, {"policy/grad_norm": 0.1}], None),
        ([{"policy/grad_norm": float("nan")}, {"policy/grad_norm": None}], "no step of 2 had a gradient"),
        ([{"policy/grad_norm": 0.0, "positive/filtered_frac": 1.0}], "every positive was rejected"),
        ([{"policy/grad_norm": 0.3, "positive/filtered_frac": 1.0, "positive/used_frac": 0.0}] * 3, "no step of 3 had a positive"),  # noqa: E501
        ([{"policy/grad_norm": 0.3, "positive/filtered_frac": 0.9, "positive/used_frac": 0.1}], None),
        ([{"policy/grad_norm": 0.3, "positive/filtered_frac": 0.0, "positive/used_frac": 0.0}], None),  # GRPO
        ([{"policy/grad_norm": 0.3, "hint/used_frac": 0.0}] * 2, "no step of 2 had a group that was given a hint"),
        ([{"policy/grad_norm": 0.3, "hint/used_frac": 0.0}, {"policy/grad_norm": 0.3, "hint/used_frac": 0.5}], None),
        ([{"pass@4": 0.5}], None),  # an evaluation alone
    ],
)  # fmt: skip
def test_a_run_that_learned_nothing_says_why(steps, said):
    told = nothing_learned(steps)
    assert told is None if said is None else said in told
    assert marks_of({"status": "done"}, steps) == ([] if said is None else ["learned nothing"])
    assert marks_of({"status": "stopped", "own_code": 5}, steps) == []


def test_a_finished_run_without_the_scalars_of_a_step_says_so():
    lines = [
        {"step": 0, "pass@4": 0.5},
        *({"step": step, "loss/total": 0.1} for step in (1, 3)),
        {"step": 3, "pass@4": 1},
    ]
    assert marks_of({"status": "done", "step": 3}, lines) == ["lacks scalars"]
    assert marks_of({"status": "done", "step": 3}, [*lines, {"step": 2, "loss/total": 0.1}]) == []
    assert marks_of({"status": "stopped", "step": 3}, lines) == []


@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_a_run_whose_positives_are_all_rejected_says_so_at_its_end(tmp_path):
    line = ["train", "debug=tiny", "rollout.max_completion_tokens=1", f"output_dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "expo", *line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "expo: this run says nothing of exp_grpo: no step of 2 had a gradient" in done.stderr
    (path,) = tmp_path.rglob("summary.json")
    assert "every positive was rejected" in json.loads(path.read_text())["learned_nothing"]


def test_a_summary_of_others_may_hold_anything():
    good = {"metric": "reward/mean", "meaning": "x", "best": 0.5, "now": 0.1, "began": 3, "noticed": 9}
    summary = {"collapses": [good, {}, 3, None, good | {"best": "much"}, good | {"more": 1}]}
    assert [c.began for c in collapses_of(summary)] == [3]
    assert collapses_of({}) == collapses_of({"collapses": None}) == collapses_of({"collapses": 7}) == []


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run GRPO at a learning rate that no policy survives."""
    line = [
        "algorithm=grpo",
        "dataset=ladder",
        "optimizer.learning_rate=0.02",
        "trainer.max_steps=40",
        "algorithm.group_size=4",
        "trainer.problems_per_step=8",
        "dataset.levels=[1]",
        "dataset.eval_levels=[1]",
        "dataset.eval_limit=4",
        "evaluation.every=5",
        "k=[1]",
        "rollout.max_completion_tokens=24",
        "logger=none",
        f"output_dir={folder}",
        *overrides,
    ]
    return subprocess.run([sys.executable, "-m", "expo", "train", *line], capture_output=True, text=True, check=False)


def directory(folder: Path) -> Path:
    [found] = folder.glob("ladder/*-s0-*")
    return found


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
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
    assert {c["metric"] for c in summary["collapses"]} >= {"pass@1", "reward/mean"}
    assert (run / "checkpoints" / "best.ckpt").is_file()
    # warn is the same run, which may go on from there
    assert train(tmp_path).returncode == 0
    assert directory(tmp_path) == run


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_stop_ends_a_run_that_has_collapsed_while_it_only_warned(tmp_path):
    assert train(tmp_path, "trainer.stop_after=30").returncode == 0
    done = train(tmp_path, "trainer.on_collapse=stop")
    assert done.returncode == 1
    assert re.search(r"stopped: \S+ collapses from step \d+ on;", done.stderr)
    assert "best.ckpt" not in done.stderr, "there is none"
    assert "Traceback" not in done.stderr
    assert train(tmp_path).returncode == 0


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
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
@pytest.mark.usefixtures("warm")
def test_rollback_wants_a_reward_of_each_step(tmp_path):
    done = train(tmp_path, "algorithm=exp_dpo_offline", "trainer.on_collapse=rollback")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "trainer.on_collapse=stop" in done.stderr


@pytest.mark.parametrize(
    ("metric", "healthy", "ill", "not_ill"),
    [
        ("reward/mean", 0.6, 0.29, 0.31),
        ("reward/mean", 0.15, 0.04, 0.06),
        ("reward/unparseable_frac", 0.1, 0.41, 0.39),
        ("reward/unparseable_frac", 0.6, 0.91, 0.89),
        ("policy/entropy", 0.05, 0.36, 0.34),
        ("policy/entropy", 0.2, 0.81, 0.79),
        ("completion/length_mean", 400.0, 39.0, 41.0),
        ("completion/length_mean", 5.4, 0.3, 0.5),
        ("completion/truncated_frac", 0.1, 0.61, 0.59),
        ("completion/truncated_frac", 0.4, 0.91, 0.89),
        ("policy/kl", 0.1, 1.11, 1.09),
        ("policy/kl", 1.0, 4.01, 3.99),
        ("positive/leak_gap", 0.1, 1.11, 1.09),
        ("positive/leak_gap", 1.0, 4.01, 3.99),
        ("distill/divergence", 0.004, 0.0145, 0.0135),
        ("distill/divergence", 0.1, 0.21, 0.19),
    ],
)
def test_how_much_worse_a_collapse_is(metric, healthy, ill, not_ill):
    assert len(told(metric, [healthy] * 20 + [ill] * 20)) == 1
    assert told(metric, [healthy] * 20 + [not_ill] * 20) == []


def test_two_bad_steps_after_a_short_start_are_no_collapse():
    assert told("reward/mean", [0.6] * 10 + [0.0] * 2) == []


def test_a_slow_decline_is_a_collapse():
    assert len(told("reward/mean", [0.6 - 0.006 * i for i in range(100)])) == 1


@pytest.mark.parametrize(
    ("between", "times"), [(0.475, 2), (0.35, 1)]
)  # of 0.6: the sign is on until half of 0.3 is left
def test_a_collapse_lasts_until_half_of_it_is_made_good(between, times):
    assert len(told("reward/mean", [0.6] * 20 + [0.05] * 20 + [between] * 20 + [0.05] * 20)) == times


def test_the_limits_of_a_sign_by_hand():
    def steps(*values):
        watch = SignState(Sign("m", True, 2.0, 0.0, ""))
        return [step for step, value in enumerate(values, 1) if watch.see(value) is not None]

    assert len(steps(*[10] * 20, *[8] * 10)) == 1  # reaching the least change is enough
    assert steps(*[10] * 20, *[0] * 10) == [30]  # at step 29 the change is 9 and three deviations are 9
    assert len(steps(*[10] * 20, *[8] * 20, *[9] * 20, *[8] * 20)) == 1  # half of it left: it lasts


def test_a_collapse_began_after_the_last_step_nearer_to_the_best():
    watch = SignState(Sign("m", True, 2.0, 0.0, ""), best=12.0)
    assert watch.began([(1, 12.0), (2, 8.0), (3, 7.0), (4, 5.0), (5, 2.0)], 2.0) == 3  # 7 is the middle
    assert watch.began([(4, 2.0), (5, 2.0)], 2.0) == 1


def test_the_reward_is_that_of_the_last_steps_once_there_are_enough():
    health = Health()
    for _ in range(WINDOW):
        assert health.reward is None
        health.see({"reward/mean": 0.2})
    assert health.reward == pytest.approx(0.2)
    for _ in range(WINDOW):
        health.see({"reward/mean": 0.4, "policy/entropy": 0.1})
    assert health.reward == pytest.approx(0.4)


def test_one_sign_is_a_collapse():
    health = Health()
    assert health.collapsing is False
    for value in [0.6] * 20 + [0.0] * 20:
        health.see({"reward/mean": value, "policy/entropy": 0.1})
    assert health.collapsing is True


def test_a_state_from_before_a_sign_existed_is_taken():
    assert Health.of({}).state() == Health().state()


@pytest.mark.parametrize(
    ("scalars", "metric"),
    [
        (
            {"completion/truncated_frac": 1.0, "reward/unparseable_frac": 1.0, "reward/all_wrong_frac": 1.0},
            "completion/truncated_frac",
        ),
        ({"reward/unparseable_frac": 1.0, "reward/all_wrong_frac": 1.0}, "reward/unparseable_frac"),
        ({"reward/all_wrong_frac": 1.0}, "reward/all_wrong_frac"),
        ({"reward/all_right_frac": 1.0}, "reward/all_right_frac"),
        ({"reward/all_wrong_frac": 1.0, "positive/used_frac": 0.5}, None),  # explanations teach
        ({"reward/all_wrong_frac": 1.0, "hint/reward_mean": 0.25}, None),
        ({"reward/all_wrong_frac": 1.0, "distill/guided_frac": 1.0}, None),
        ({"reward/all_wrong_frac": 1.0, "reward/mean": 0.3}, None),  # parts of a reward
        (
            {"reward/all_wrong_frac": 1.0, "reward/mean": 0.5, "policy/grad_norm": 0.0},
            "reward/all_wrong_frac",
        ),  # all equal
        ({"reward/all_wrong_frac": 1.0, "reward/mean": 0.0, "hint/reward_mean": 0.0}, "reward/all_wrong_frac"),
        ({"reward/all_wrong_frac": 0.9}, None),
    ],
)
def test_a_run_that_is_dead_from_its_first_step_is_named_once(scalars, metric):
    health = Health()
    told = []
    for step in range(1, 20):
        health = Health.of(health.state())  # as after a resume
        told += [(step, still.metric) for still in health.see_dead(scalars, step)]
    assert told == ([(DEAD_AFTER, metric)] if metric else [])
    alive = Health()
    assert not any(alive.see_dead(scalars if step != 2 else {}, step) for step in range(1, 20))


def test_what_is_said_of_a_dead_run_names_a_key():
    for still in STUCK:
        told = str(Collapse(still.metric, still.meaning, still.worst, still.worst, 1, DEAD_AFTER))
        assert told.startswith("the run is dead from its first step: ")
        assert any(key in told for key in ("rollout.", "prompts.", "dataset.", "algorithm."))


def written(verdict, truncated=False, text="I do not know."):
    return {"verdict": verdict, "truncated": truncated, "completion": text, "answer": "12"}


def test_a_zero_explains_itself():
    from conftest import compose_config

    cfg = compose_config("rollout.max_completion_tokens=96")
    cut, mute, wrong = (
        written("unparseable", True, "So\n\x1b[2J it " + "goes on " * 90),
        written("unparseable"),
        written("incorrect"),
    )

    def told(*rows):
        return why_none_is_right(rows, rows, cfg)

    causes, text = told(wrong, *[cut] * 30, mute)
    assert causes.startswith(
        "nothing is right: 31 of 32 have no boxed answer, 30 of 32 were cut off at 96 tokens, 1 of 32 have a wrong "
        "answer: "
        "raise rollout.max_completion_tokens, or show an example: prompts.examples"
    )
    assert text.startswith("one of them, where 12 is right: So [2J it goes on goes on")
    assert "\n" not in text
    assert len(text) < 300
    assert "4 of 4 have no boxed answer: make prompts.solve ask for it" in told(*[mute] * 4)[0]
    assert (
        "3 of 4 have no boxed answer, 1 of 4 were cut off at 96 tokens, 1 of 4 have a wrong answer: make prompts.solve"
        in told(mute, mute, cut, wrong)[0]
    )
    assert told(wrong, wrong)[0].startswith("nothing is right: 2 of 2 have a wrong answer: begin with easier problems")
    for algorithm, advised in (("grpo", True), ("exp_grpo", False)):
        said = why_none_is_right([wrong], [wrong], compose_config(f"algorithm={algorithm}"))[0]
        assert ("positives=self_explanation" in said) is advised
    assert told(written("unparseable", text=" "))[1].endswith(": (nothing)")
    assert told(cut, written("correct")) == told() == []
    cfg = compose_config("verifier.extract='after:Answer:'")
    assert "no answer where verifier.extract=after:Answer: looks" in told(mute)[0]
    cfg = compose_config("verifier=python", "verifier.function=my.judge")
    assert "have no boxed answer, or none that my.judge could judge" in told(mute)[0]


def test_the_shares_of_an_evaluation_are_told_where_it_has_them():
    both = {"pass@1": 0.5, "eval/truncated_frac": 0.25, "eval/unparseable_frac": 0.5}
    assert shares_told(both) == "25.0 % cut off, 50.0 % without an answer"
    assert shares_told({"pass@1": 0.5}) == ""


def test_evaluations_tell_where_rollouts_are_of_another_policy():
    health = Health()

    def see(value, spread=0.05):
        return [
            (w.sign.metric, now)
            for w, now in health.see(
                {"pass@1": value, "pass@1_lo": value - spread / 2, "pass@1_hi": value + spread / 2}
            )
        ]

    assert [see(v) for v in (0.667, 0.7, 0.65, 0.02, 0.0)] == [[], [], [], [("pass@1", 0.02)], []]
    few = Health()  # of four problems, a fall is noise
    assert [few.see({"pass@1": v, "pass@1_lo": 0.0, "pass@1_hi": 1.0}) for v in (0.5, 0.0)] == [[], []]


def test_how_often_explanations_are_measured_changes_no_run(tmp_path):
    """positives.measure_every is a runtime key."""
    told, acted = [], []
    watch = WatchHealth(SimpleNamespace(dir=tmp_path, collapses=[], metrics={}), "rollback", 10, "")
    watch.tell = lambda trainer, collapses: told.extend(c.metric for c in collapses)
    watch.act = lambda trainer, module, collapse: acted.append(collapse.metric)
    watch.keeps = lambda module: False
    for step in range(4 * WINDOW):
        gap = 0.1 if step < WINDOW else 9.0
        metrics = {"reward/mean": 0.5, "reward/all_wrong_frac": 0.5, "positive/leak_gap": gap}
        watch.on_train_epoch_end(SimpleNamespace(current_epoch=step), SimpleNamespace(last_metrics=metrics))
    assert (told, acted) == (["positive/leak_gap"], [])
    assert not watch.health.collapsing


def test_a_sign_that_is_only_told_of_ends_no_resumed_run():
    found = SimpleNamespace(dir=Path("nowhere"), collapses=[{"metric": "reward/all_wrong_frac"}], metrics={})
    watch = WatchHealth(found, "stop", 10, "")
    watch.health.watches["pass@1"].on = True
    watch.run.collapses.insert(0, {"metric": "pass@1", "began": 1})
    watch.on_train_start(SimpleNamespace(current_epoch=25), None)
    watch.health.watches["reward/mean"].on = True
    watch.run.collapses.append({"metric": "reward/mean", "began": 7})
    with pytest.raises(Collapsed, match="reward/mean collapses from step 7 on"):
        watch.on_train_start(SimpleNamespace(current_epoch=25), None)

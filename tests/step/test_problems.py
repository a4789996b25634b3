"""Which problems a step gets, and which are passed over."""

import json
from collections import Counter

import pytest
from conftest import compose_config

from expo import config
from expo.commands.train import train
from expo.ground.problem import Problem
from expo.step.problems import ProblemSampler, Retries

PROBLEMS = [Problem(str(i), f"q{i}", "a") for i in range(10)]


def sampler() -> ProblemSampler:
    return ProblemSampler(PROBLEMS, 4, seed=3)


def test_without_an_idle_problem_the_deal_is_the_samplers_own():
    retries = Retries(sampler(), 0.5)
    for step in range(8):
        dealt = retries.deal()
        assert dealt == sampler().batch(step)
        retries.learn(dealt, range(len(dealt)))
        assert retries.passed == 0


def test_a_problem_that_teaches_nothing_is_dealt_less_and_less_and_comes_back_when_it_teaches():
    retries, dealt = Retries(sampler(), 0.5), Counter()
    hard = {"0", "1", "2", "3", "4"}
    for step in range(60):
        problems = retries.deal()
        assert len(problems) == 4
        retries.learn(problems, [i for i, p in enumerate(problems) if p.id not in hard])
        if step >= 20:
            dealt.update(p.id in hard for p in problems)
    assert dealt[True] < 0.15 * dealt[False]  # it would be as often
    assert retries.idle["0"] >= 3
    problems = retries.deal()
    while "0" not in [p.id for p in problems]:
        problems = retries.deal()
    retries.learn(problems, [i for i, p in enumerate(problems) if p.id == "0"])
    assert retries.idle["0"] == 0


def test_it_is_the_chance_that_was_asked_for():
    retries, kept = Retries(ProblemSampler(PROBLEMS * 100, 1, seed=0), 0.3), 0
    retries.idle = {p.id: 1 for p in PROBLEMS}
    for _ in range(600):
        retries.deal()
        kept += 1
    assert kept / retries.place == pytest.approx(0.3, abs=0.03)


def test_where_nothing_teaches_a_step_is_full_all_the_same():
    retries = Retries(sampler(), 1e-9)
    retries.idle = {p.id: 50 for p in PROBLEMS}
    assert len(retries.deal()) == 4
    assert retries.passed == len(PROBLEMS)


def test_what_is_kept_gives_the_same_deals():
    one, other = Retries(sampler(), 0.4), Retries(sampler(), 0.4)
    for _ in range(10):
        problems = one.deal()
        one.learn(problems, [0])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [one.deal() for _ in range(5)] == [other.deal() for _ in range(5)]


@pytest.mark.long
@pytest.mark.runs
def test_a_run_passes_over_problems_that_gave_no_gradient(tmp_path):
    lines = {}
    for name, more in (("grpo", []), ("retry", ["algorithm.retry=0.1"])):
        cfg = compose_config(
            "algorithm=grpo",
            *more,
            "dataset=ladder",
            "dataset.levels=[2,5]",
            "dataset.limit=4",
            "dataset.eval_limit=2",
            "trainer.max_steps=8",
            "trainer.problems_per_step=4",
            "algorithm.group_size=4",
            f"output_dir={tmp_path}",
        )
        assert train(cfg) == 0
        text = (config.run_dir(cfg) / "metrics.jsonl").read_text().splitlines()
        lines[name] = [line for line in map(json.loads, text) if "reward/mean" in line]
    assert lines["retry"][0]["problem/passed_over"] == 0
    assert sum(line["problem/passed_over"] for line in lines["retry"]) > 4  # level 5, never right
    assert "problem/passed_over" not in lines["grpo"][0]

    def wasted(name: str) -> float:
        return sum(line["reward/all_wrong_frac"] for line in lines[name][4:])

    assert wasted("retry") < wasted("grpo")


def test_who_goes_back_to_an_earlier_policy_goes_on_with_other_problems():
    one, straight = Retries(sampler(), 0.4), Retries(sampler(), 0.4)
    kept = one.state_dict()
    for retries in (one, straight):
        for _ in range(6):
            retries.deal()
    one.load_state_dict(kept)
    assert one.deal() == straight.deal()


def test_what_contradicts_it_is_refused_and_nothing_is_written_ahead():
    with pytest.raises(config.UserError, match=r"algorithm.retry=0.5, algorithm.refills=2: both replace problems"):
        config.check(compose_config("algorithm=dapo", "algorithm.retry=0.5"))
    with pytest.raises(config.UserError, match=r"positives.gate=always: every problem has a positive"):
        config.check(compose_config("algorithm=exp_grpo", "algorithm.retry=0.5"))
    config.check(compose_config("algorithm=exp_grpo_member", "algorithm.retry=0.5"))
    cfg = compose_config("algorithm=exp_grpo", "algorithm.retry=0.5", "positives.gate=all_wrong")
    config.check(cfg)
    assert not cfg.positives.from_bank(cfg.algorithm)
    assert config.identity(compose_config("algorithm=grpo", "algorithm.retry=1.0")) == config.identity(
        compose_config("algorithm=grpo")
    )

"""The real test sets, where `../shared` is there: every reference solution must be right about itself."""

import pytest
from conftest import SHARED, compose_config

from expo.config import build
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier
from expo.verifier.worker import Worker

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not part of the repository")


def problems_of(*overrides):
    return build(compose_config(*overrides).dataset).whole()


@pytest.mark.runs
@pytest.mark.parametrize(
    ("overrides", "count", "share"),
    [
        (["dataset=math", f"dataset.path={SHARED}/math/test.jsonl"], 5000, 0.995),
        (["dataset=gsm8k", f"dataset.path={SHARED}/gsm8k/test.jsonl"], 1319, 1.0),
        (["dataset=gsm8k", f"dataset.path={SHARED}/gsm8k/train.jsonl"], 7473, 1.0),
    ],
)
def test_every_solution_is_right_about_itself(overrides, count, share):
    problems = problems_of(*overrides)
    assert len(problems) == count
    with Verifier() as verifier:
        verdicts = verifier.verify([p.solution for p in problems], [p.answer for p in problems])
    assert verdicts.count(Verdict.CORRECT) >= share * count


@pytest.mark.runs
def test_the_parser_agrees_without_the_fast_path():
    problems = problems_of("dataset=math", f"dataset.path={SHARED}/math/test.jsonl")[::25]
    worker = Worker(1024)
    verdicts = [
        worker.judge("expo.verifier.answers.math_verify_verdict", (p.answer, p.answer), 5.0)[0] for p in problems
    ]
    worker.kill()
    assert verdicts.count(Verdict.CORRECT) >= 0.995 * len(problems)

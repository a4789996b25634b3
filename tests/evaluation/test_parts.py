"""`expo evaluate` works part by part: what is made is kept, and the parts change nothing of the result."""

import pytest
from conftest import compose_config

from expo.config import UserError, build
from expo.evaluation import evaluate as module
from expo.evaluation.files import save_rows, seconds_of
from expo.jobs.wiring import make_engine, make_evaluator
from expo.runs.reading import first_rows, read_rows
from expo.verifier.pool import Verifier


class Stopped(Exception):
    pass


class Counting:
    """An engine that counts its calls, and stops before the one that it is told."""

    def __init__(self, engine, stop_at=99):
        self.engine, self.stop_at, self.calls = engine, stop_at, 0

    def generate(self, *arguments):
        self.calls += 1
        if self.calls == self.stop_at:
            raise Stopped
        return self.engine.generate(*arguments)


@pytest.fixture
def made(ladder):
    """Return (evaluator, engine) of 7 problems with 2 samples each."""
    model, tokenizer, prompts = ladder
    cfg = compose_config(
        "dataset=ladder", "dataset.levels=[1,2]", "dataset.eval_limit=4", "k=[1,2]", "rollout.max_completion_tokens=24"
    )
    problems = build(cfg.dataset, None).evaluation()[:7]
    return make_evaluator(cfg, problems, Verifier(), prompts, tokenizer), make_engine(cfg, model, tokenizer)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 4)  # 2 problems


def texts(rows):
    """Return rows without the log-probability, which rounds otherwise in batches of another size."""
    return [{name: value for name, value in row.items() if name != "logp"} for row in rows]


def test_parts_are_the_whole(made, tmp_path):
    evaluator, engine = made
    counting, path = Counting(engine), tmp_path / "completions" / "eval.parquet"
    tally = evaluator.evaluate_into(counting, path, "c")
    whole = evaluator.evaluate(engine)
    assert counting.calls == 4
    assert texts(read_rows(path)) == texts(whole.rows)
    assert [row["logp"] for row in read_rows(path)] == pytest.approx([row["logp"] for row in whole.rows], abs=1e-4)
    assert tally.metrics(evaluator.k) == whole.metrics
    assert [f.name for f in path.parent.iterdir()] == ["eval.parquet"]
    assert first_rows(path, 3) == read_rows(path)[:3]


def test_what_was_made_before_a_stop_is_not_made_again(made, tmp_path, caplog):
    evaluator, engine = made
    path = tmp_path / "eval.parquet"
    with pytest.raises(Stopped):
        evaluator.evaluate_into(Counting(engine, stop_at=3), path, "c")
    assert not path.exists()
    first, second = sorted(tmp_path.glob(".eval-*.parquet"))
    took = seconds_of(first)
    assert took > 0
    second.write_bytes(second.read_bytes()[:-20])
    again = Counting(engine)
    assert evaluator.evaluate_into(again, path, "c").earlier_s == took
    assert again.calls == 3  # the damaged one, and the two that were not made
    assert f"{second}: damaged" in caplog.text
    assert texts(read_rows(path)) == texts(evaluator.evaluate(engine).rows)
    assert not first.exists()


def test_fresh_makes_all_again_and_other_problems_are_not_taken(made, tmp_path):
    evaluator, engine = made
    path = tmp_path / "eval.parquet"
    for options, calls in (((), 3), ((True,), 4)):
        with pytest.raises(Stopped):
            evaluator.evaluate_into(Counting(engine, stop_at=2), path, "c")
        again = Counting(engine)
        evaluator.evaluate_into(again, path, "c", *options)
        assert again.calls == calls
    with pytest.raises(Stopped):
        evaluator.evaluate_into(Counting(engine, stop_at=2), path, "c")
    object.__setattr__(evaluator, "problems", evaluator.problems[1:])
    again = Counting(engine)
    evaluator.evaluate_into(again, path, "c")
    assert again.calls == 3


def test_parts_that_other_code_has_judged_are_made_again(made, tmp_path, caplog):
    evaluator, engine = made
    path = tmp_path / "eval.parquet"
    with pytest.raises(Stopped):
        evaluator.evaluate_into(Counting(engine, stop_at=3), path, "before")
    again = Counting(engine)
    evaluator.evaluate_into(again, path, "now")
    assert again.calls == 4
    assert caplog.text.count("judged by other code") == 2
    assert [f.name for f in tmp_path.iterdir()] == ["eval.parquet"]


def test_a_byte_that_changed_in_completions_is_noticed(tmp_path):
    path = tmp_path / "eval.parquet"
    rows = [{"problem": f"p{i}", "completion": f"text {i} " * 5} for i in range(200)]
    save_rows(rows, path)
    content = path.read_bytes()
    noticed = 0
    for place in range(4, len(content) - 8, len(content) // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert read_rows(path) == rows, place
        except UserError:
            noticed += 1
    assert noticed > 40

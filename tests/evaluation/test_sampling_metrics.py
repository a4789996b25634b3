"""mean@n, cons@n and greedy accuracy, by hand."""

import pytest
from conftest import compose_config

from expo.config import UserError, build, check
from expo.evaluation.tally import Tally, majority
from expo.verifier.answers import math_verify_verdict


def sample(problem, answer, right=False, level=None, subject=None):
    return {
        "problem": problem, "level": level, "subject": subject, "verdict": "correct" if right else "incorrect",
        "tokens": 5, "truncated": False, "completion": rf"so \boxed{{{answer}}}" if answer is not None else "no answer",
    }  # fmt: skip


def tally_of(rows, samples):
    tally = Tally(samples)
    tally.add(rows)
    return tally


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        ([("2", True), ("2", True), ("3", False)], 1.0),
        ([("2", True), ("3", False), ("3", False)], 0.0),
        ([("2", True), ("3", False)], 0.5),  # tied
        ([("2", True), ("3", False), ("4", False)], 1 / 3),
        ([("1/2", True), ("0.5", True), ("3", False), ("3", False), (r"\frac{1}{2}", True)], 1.0),  # right ones are one
        ([("3 ", False), ("$3$", False), ("2", True)], 0.0),  # as are wrong ones that are written alike
        ([("0.5", False), (r"\dfrac12", False), ("2/4", False), ("2", True), ("2", True)], 0.0),  # or are of one value
        ([("1,000", False), ("1000.0", False), ("2", True)], 0.0),
        ([("10", False), ("100", False), ("-10", False), ("1/0", False), ("2", True), ("2", True)], 1.0),
        ([("Yes", False), (r"\text{yes}", False), ("no", True)], 0.0),
        ([("2", True), (None, False), (None, False)], 1.0),  # no answer is no vote
        ([("2", True), ("", False), ("$$", False), (r"\text{ }", False)], 1.0),  # nor is an empty one
        ([(None, False)], 0.0),
    ],
)
def test_the_majority(answers, share):
    assert majority([sample("p", answer, right) for answer, right in answers]) == pytest.approx(share)


def test_all_of_them_by_level_and_subject():
    rows = [
        sample("a", "1", True, 1, "Algebra"),
        sample("a", "1", True, 1, "Algebra"),
        sample("a", "5", False, 1, "Algebra"),
        sample("b", "1", True, 2, "Geometry"),
        sample("b", "5", False, 2, "Geometry"),
        sample("b", "5", False, 2, "Geometry"),
    ]
    greedy = [sample("a", "5", False, 1, "Algebra"), sample("b", "1", True, 2, "Geometry")]
    found = tally_of(rows, 3).sampling_metrics(greedy, [1, 2])
    assert found["mean@3"] == pytest.approx(1 / 2)
    assert found["cons@3"] == pytest.approx(1 / 2)
    assert (found["cons@3/level1"], found["cons@3/level2"]) == (1.0, 0.0)
    assert found["mean@3/Algebra"] == pytest.approx(2 / 3)
    assert (found["greedy"], found["greedy/Algebra"], found["greedy/level2"]) == (0.5, 0.0, 1.0)
    assert found["pass@2/Geometry"] == pytest.approx(1 - 1 / 3)  # 1 - C(2, 2) / C(3, 2)
    assert found["mean@3_lo"] <= found["mean@3"] <= found["mean@3_hi"]
    assert "pass@1" not in found  # the evaluation itself has it
    assert "greedy" not in tally_of(rows, 3).sampling_metrics([], [1])


def test_a_subject_that_is_called_like_a_level_is_no_level():
    rows = [sample("a", "1", True, 1, "level1"), sample("b", "5", False, 1, "x")]
    tally = tally_of(rows, 1)
    assert tally.metrics([1])["pass@1/level1"] == 0.5
    found = tally.sampling_metrics([], [1])
    assert (found["mean@1/level1"], found["pass@1/subject level1"]) == (0.5, 1.0)


def test_one_subject_is_not_told_apart():
    rows = [sample("a", "1", True, subject="Algebra")]
    assert not any("/" in name for name in tally_of(rows, 1).sampling_metrics([], [1]))


@pytest.mark.parametrize("name", ["math500", "aime24", "aime25"])
def test_benchmarks_by_name_are_to_evaluate_on_only(name):
    cfg = compose_config(f"dataset={name}", "model=ladder", "k=[1,64]")
    check(cfg)
    with pytest.raises(UserError, match=rf"{name} is evaluated on this very split"):
        build(cfg.dataset).train()


def test_benchmark_rows_are_read(monkeypatch):
    math = {
        "problem": "1 + 1?",
        "solution": r"\boxed{2}",
        "answer": "2",
        "subject": "Algebra",
        "level": 4,
        "unique_id": "x",
    }
    reader = build(compose_config("dataset=math500").dataset)
    monkeypatch.setattr(reader, "_hub_rows", lambda split: [math])
    (problem,) = reader.whole()
    assert (problem.answer, problem.level, problem.subject) == ("2", 4, "Algebra")
    aime = {"id": 60, "problem": "How many?", "solution": "s", "answer": "073", "url": "u", "year": "2024"}
    reader = build(compose_config("dataset=aime24").dataset)
    monkeypatch.setattr(reader, "_hub_rows", lambda split: [aime])
    (problem,) = reader.whole()
    assert problem.answer == "073"
    assert math_verify_verdict("73", "073") == "correct"


def test_an_answer_that_the_verifier_cannot_read_is_no_vote():
    rows = [sample("p", "2", True), sample("p", "abc", False), sample("p", "abc", False)]
    unread = [row | {"verdict": "unparseable"} if row["verdict"] != "correct" else row for row in rows]
    assert (majority(rows), majority(unread)) == (0.0, 1.0)

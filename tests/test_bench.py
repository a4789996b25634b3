"""`expo bench`: two trainers that take steps in turns. No test looks at how long they took."""

import json
from dataclasses import replace

import pytest

from expo.bench import cases
from expo.bench.cases import CASES, Case
from expo.commands import bench
from expo.config import UserError

TINY = replace(
    cases.SMALL, name="tiny", tokens=4, micro=4, problems=2, group=4,
    shape=cases.SMALL.shape | {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
)  # fmt: skip


def sides(ours, theirs):
    return {"expo": {"seconds": ours, "peak_mb": [1.0] * len(ours)}, "TRL": {"seconds": theirs, "peak_mb": [2.0] * 3}}


@pytest.mark.runs
@pytest.mark.parametrize("against", ["trl", "tiny"])
def test_two_trainers_take_steps_in_turns(against, monkeypatch, capsys):
    if against == "trl":
        pytest.importorskip("trl")
    case = replace(TINY, against="" if against == "trl" else "tiny")
    monkeypatch.setitem(CASES, "tiny", TINY)
    found = bench.measure(case, list(cases.QUESTIONS), turns=2, warm_up=1)
    bench.show(case, found)
    ours, theirs = found.values()
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 2
    assert min(ours["update_s"]) > 0
    assert "the second takes" in capsys.readouterr().out


def test_a_ratio_is_that_of_each_turn():
    assert bench.ratio(sides([1.0, 2.0, 4.0], [2.0, 5.0, 12.0])) == (2.0, 2.5, 3.0)


def test_a_lead_that_has_shrunk_fails_and_seconds_do_not_matter(tmp_path, capsys):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"cases": {"a": sides([1.0] * 3, [2.0] * 3)}}))
    assert bench.slower_than(file, {"a": sides([10.0] * 3, [17.0] * 3)}) == 0
    assert bench.slower_than(file, {"a": sides([1.0] * 3, [1.5] * 3)}) == 1
    assert "a: 1.50 times, it was 2.00" in capsys.readouterr().err
    with pytest.raises(UserError, match="has not these cases"):
        bench.slower_than(file, {"b": sides([1.0] * 3, [1.5] * 3)})


@pytest.mark.parametrize(
    ("argument", "told"),
    [("cases=z", "no such case"), ("turns=0", "not a number of steps"), ("nonsense", "not an option"),
     ("data=/nowhere.jsonl", "cannot be read")],
)  # fmt: skip
def test_a_mistake_is_one_line(argument, told):
    with pytest.raises(UserError, match=told):
        bench.main([argument])


def test_a_case_survives_its_way_to_a_process():
    assert Case.of(CASES["ladder-gated"].json()) == CASES["ladder-gated"]

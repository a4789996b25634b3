"""`make bench`: two trainers that take steps in turns. No test looks at how long they took."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.bench import __main__ as bench
from benchmarks.bench import cases, growth
from benchmarks.bench.arms import in_turns
from benchmarks.bench.cases import CASES, Case
from benchmarks.bench.limit import Work
from expo.config import UserError
from expo.cost.machine import Machine
from expo.runs import directory

TINY = replace(
    cases.SMALL, name="tiny", tokens=4, micro=4, problems=2, group=4,
    shape=cases.SMALL.shape | {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
)  # fmt: skip


def sides(ours, theirs):
    return {"expo": {"seconds": ours, "peak_mb": [1.0] * len(ours)}, "TRL": {"seconds": theirs, "peak_mb": [2.0] * 3}}


@pytest.mark.long
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
    assert ours["prompt_tokens"][0] > 0
    assert 0 < ours["tokens"][0] <= 2 * 4 * 4


@pytest.mark.long
@pytest.mark.runs
def test_a_case_grows_in_one_thing_at_a_time(monkeypatch, capsys):
    monkeypatch.setattr(growth, "BASE", TINY)
    assert growth.grown("rows", 4) == replace(TINY, problems=8)
    assert growth.grown("length", 4) == replace(TINY, tokens=16)
    assert growth.grown("group", 4) == replace(TINY, group=16)
    assert growth.grown("vocabulary", 4) == replace(TINY, shape=TINY.shape | {"vocab_size": 4 * 768})
    sides = {factor: ("ours", growth.grown("rows", factor)) for factor in (1, 2)}
    found = in_turns(sides, growth.many(list(cases.QUESTIONS)), turns=1, warm_up=1)
    assert sum(found[2]["prompt_tokens"]) > sum(found[1]["prompt_tokens"])
    bench.show_growth({"rows": {f: found[min(f, 2)] for f in growth.FACTORS}})
    assert "exponent" in capsys.readouterr().out


def test_an_exponent_is_that_of_the_power():
    assert growth.exponent({f: 3.0 * f**2 for f in growth.FACTORS}) == pytest.approx(2)
    figures = {f: {"seconds": [1.0, f, 9e9], "rollout_s": [f], "update_s": [f], "peak_mb": [5.0, 7.0], "idle_mb": [4.0]}
               for f in growth.FACTORS}  # fmt: skip
    assert growth.costs(figures)["seconds"] == {1: 1.0, 2: 2, 4: 4, 8: 8}
    assert growth.costs(figures)["MiB"][1] == 3.0
    assert math.isnan(growth.exponent({1: 0.0, 2: 1.0}))


def test_the_least_work_of_a_step_by_hand():
    shape = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "vocab_size": 10}  # fmt: skip
    case = Case("x", "", shape, tokens=3)
    layers, head = 2 * (4 * 4 + 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8), 4 * 10
    work = Work.of(case, prompt_tokens=100, tokens=6)
    assert work.prefill == 2 * layers * 100
    assert work.decode == 2 * (layers + head) * 6
    assert work.read == 4 * (layers + head) * 3
    assert work.update == 3 * 2 * (layers * 106 + head * 6)
    assert Work.of(replace(case, kl=0.1), 100, 6).update == work.update * 4 / 3
    assert Work.of(replace(case, lora_rank=8, kl=0.1), 100, 6).update == work.update
    quick_reader, slow_reader = Machine(flops=100.0, bytes=1e9), Machine(flops=100.0, bytes=1.0)
    assert work.rollout_seconds(quick_reader) == (work.prefill + work.decode) / 100
    assert work.rollout_seconds(slow_reader) == work.prefill / 100 + work.read
    figures = {"prompt_tokens": [100.0], "tokens": [6.0], "rollout_s": [1000.0], "update_s": [2 * work.update / 100]}
    assert bench.limit(case, figures, quick_reader)["update_share"] == pytest.approx(0.5)


def test_the_least_work_of_positives_by_hand():
    layers, head = 4 * (4 * 96 * 96 + 3 * 96 * 256), 96 * 165  # of the ladder's shipped policy
    ours = {"positive_prompt_tokens": [30.0, 50.0], "positive_tokens": [10.0, 10.0], "seconds": [9.0]}
    sides = {"expo": ours, "expo, ladder-grpo": {"seconds": [2.0, 1.0, 3.0]}}
    found = bench.further(CASES["ladder"], sides, Machine(flops=1e9, bytes=1.0))
    assert found["positives"] == pytest.approx(3 * 2 * (layers * 50 + head * 10) / 1e9)
    assert found["positives_share"] == pytest.approx(found["positives"] / 2)


def test_a_machine_is_measured_with_the_threads_that_are_asked_for():
    import torch

    before = torch.get_num_threads()
    found = Machine.measured(1)
    assert torch.get_num_threads() == before
    assert min(found.flops, found.bytes) > 0


def test_peak_memory_is_the_process_own():
    told = "from benchmarks.bench.turns import peak_mb; print(peak_mb())"
    hog = f"import subprocess, sys; big = bytearray(400 << 20); subprocess.run([sys.executable, '-c', {told!r}])"
    found = subprocess.run([sys.executable, "-c", hog], capture_output=True, text=True, check=True).stdout
    assert 0 < float(found) < 200


def test_a_result_names_no_folder_of_its_machine():
    given = ["cases=a", "data=/home/me/math/test.jsonl", "turns=3", "output=/tmp/found.json", "check=old/summary.json"]
    assert bench.command(given) == "python -m benchmarks.bench cases=a data=test.jsonl turns=3 check=summary.json"


def test_a_result_of_an_edited_tool_names_no_clean_commit(tmp_path, monkeypatch):
    for folder in ("expo", "conf", "benchmarks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("before")
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for line in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", tmp_path, *line], check=True)
    monkeypatch.setattr(directory, "__file__", str(tmp_path / "expo" / "file"))
    assert directory.git_commit("benchmarks") == directory.git_commit()
    (tmp_path / "benchmarks" / "file").write_text("after")
    assert directory.git_commit("benchmarks") == f"{directory.git_commit()}-dirty"


def test_a_ratio_is_that_of_each_turn():
    assert bench.ratio(sides([1.0, 2.0, 4.0], [2.0, 5.0, 12.0])) == (2.0, 2.5, 3.0)


def test_a_lead_that_has_shrunk_fails_and_seconds_do_not_matter(tmp_path, capsys):
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"cases": {"a": sides([1.0] * 3, [2.0] * 3)}}))
    assert bench.slower_than(file, {"a": sides([10.0] * 3, [15.0] * 3)}) == 0
    assert bench.slower_than(file, {"a": sides([1.0] * 3, [1.3] * 3)}) == 1
    assert "a: 1.30 times, it was 2.00" in capsys.readouterr().err
    with pytest.raises(UserError, match="has not these cases"):
        bench.slower_than(file, {"b": sides([1.0] * 3, [1.5] * 3)})


@pytest.mark.parametrize(
    ("argument", "told"),
    [("cases=z", "no such case"), ("grow=z", "no such grow; use some of rows"), ("turns=0", "not a number of steps"), ("nonsense", "not an option"),  # noqa: E501
     ("data=/nowhere.jsonl", "cannot be read")],
)  # fmt: skip
def test_a_mistake_is_one_line(argument, told):
    with pytest.raises(UserError, match=told):
        bench.main([argument])


def test_a_case_survives_its_way_to_a_process():
    assert Case.of(CASES["ladder-gated"].json()) == CASES["ladder-gated"]

"""The HTML page: what it shows of runs, and that it needs nothing but itself."""

import re
from pathlib import Path

import pytest
from conftest import compose_config
from test_train import run

from expo import cli
from expo.commands import report as command
from expo.config import UserError
from expo.report import charts
from expo.report.page import Page, RunData, write
from expo.runs.reading import samples_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    code, made = run(tmp_path_factory.mktemp("runs"), "trainer.max_steps=2", "evaluation.every=1")
    assert code == 0
    return made


@pytest.mark.runs
def test_a_run_is_shown_with_curves_samples_counts_and_cost(directory, capsys):
    assert command.main([str(directory)]) == 0
    assert "report.html" in capsys.readouterr().out
    html = (directory / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(?!data:)""", html)  # nothing from outside
    for heading in (
        "By level",
        "Curves",
        "What was learned from",
        "Filters and counts",
        "Cost",
        "pass@4",
        "time/update_s",
    ):
        assert heading in html
    assert html.count('<span class="t') > 6 + 10  # the legend's, and tokens coloured by log-probability
    assert re.search(r'title="log π = -?\d+\.\d\d"', html)


@pytest.mark.runs
def test_the_log_probabilities_are_those_of_the_policy_after_the_step(directory):
    import pyarrow.parquet
    import torch

    from expo.config import ModelConf, build
    from expo.model.policy import load_policy, token_batch, token_logp

    rows = pyarrow.parquet.read_table(directory / "completions" / "train-step000002.parquet").to_pylist()
    shown = samples_of(directory)
    assert [s["right"] for s in shown] == sorted(s["right"] for s in shown)  # the hardest first
    row = next(row for row in rows if row["positive_tokens"])
    model, tokenizer = load_policy(ModelConf(path=str(directory / "checkpoints" / "final")))
    cfg = compose_config("dataset=ladder_level5")
    from expo.data.problem import Problem

    prompt = build(cfg.prompts).solve_ids(tokenizer, [Problem("", row["question"], row["answer"])])
    ids = tokenizer(" ".join(row["positive_tokens"]), add_special_tokens=False)["input_ids"]
    batch = token_batch(prompt, [ids], tokenizer.pad_token_id, torch.device("cpu"))
    expected = token_logp(model.eval(), batch, 1)[batch.mask.bool()]
    torch.testing.assert_close(torch.tensor(row["positive_token_logp"]), expected, atol=1e-4, rtol=0)


def test_each_filter_that_rejected_something_is_counted(tmp_path):
    line = {"step": 1, "pass@4": 0.5, "positive/filtered_frac": 0.25, "positive/filtered_wrong_frac": 0.25}
    data = RunData("a", 0, {"wall_s": 1.0}, [line | {"positive/filtered_leak_frac": 0.0}], [], [])
    write(Page("t", "", ["arm"], [["a"]]), [data], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<th>positive/filtered_frac</th><th>positive/filtered_wrong_frac</th>" in html
    assert "filtered_leak_frac" not in html


def test_runs_on_other_levels_stand_side_by_side(tmp_path):
    def rows(*levels):
        return [
            {"problem": f"{level}", "level": level, "verdict": "correct", "sample": 0} for level in levels
        ]  # fmt: skip

    data = [RunData("a", 0, {"wall_s": 1.0}, [], rows(1, 2), []), RunData("b", 0, {"wall_s": 1.0}, [], rows(5), [])]
    write(Page("t", "", ["arm"], [["a"]]), data, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "L1" in html
    assert "L5" in html


def test_the_preference_loss_is_shown_where_there_is_one(tmp_path):
    for loss in (0.0, 0.7):
        data = RunData("a", 0, {"wall_s": 1.0}, [{"step": s, "loss/preference": loss} for s in (1, 2)], [], [])
        write(Page("t", "", ["arm"], [["a"]]), [data], tmp_path / "page.html")
        assert ("loss/preference" in (tmp_path / "page.html").read_text()) is bool(loss)


def test_text_of_a_model_is_text_on_the_page(tmp_path):
    sample = {"positive": "<script>", "positive_tokens": ["<scr", "ipt>"], "positive_token_logp": [-0.1, -5.0]}
    sample |= {"question": "<b>", "answer": "&", "completion": None, "verdict": None, "rejected": None, "level": None}
    data = RunData("a", 0, {"wall_s": 1.0}, [{"step": 1, "pass@4": 0.5}], [], [sample | {"right": 0, "rollouts": 0}])
    write(Page("<i>", "", ["arm"], [["a"]]), [data], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script>" not in html
    assert (
        '<span class="t1" title="log π = -0.10">&lt;scr</span><span class="t5" title="log π = -5.00">ipt&gt;</span>'
        in html
    )


def test_what_cannot_be_reported_on_is_one_line(tmp_path):
    for arguments, said in (
        (["nope"], "nope: no run directory and no table"),
        ([str(tmp_path), "colour=red"], "colour=red"),
        (["output=x.html"], "nothing to report on"),
    ):
        with pytest.raises(UserError, match=said):
            command.main(arguments)
    assert "report" in cli.PROGRAMS


def test_ticks_and_places_by_hand():
    assert charts.nice_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.nice_ticks(0, 80) == [0, 20, 40, 60, 80]
    assert charts.nice_ticks(3, 3) == [3]
    frame = charts.Frame((0, 10), (0, 1))
    assert frame.at(0, 0) == f"{charts.LEFT:.1f},{charts.HEIGHT - charts.BOTTOM:.1f}"
    assert frame.at(10, 1) == f"{charts.WIDTH - charts.RIGHT:.1f},{charts.TOP:.1f}"
    assert charts.lines("x", {"a": [[]]}, {"a": "#000"}, unit=True) is None
    svg = charts.lines("x", {"a": [[(0, 0.0), (10, 1.0)], [(0, 1.0), (10, 1.0)]]}, {"a": "#000"}, unit=True)
    assert f'points="{frame.at(0, 0.5)} {frame.at(10, 1.0)}"' in svg  # the mean of the two runs
    assert "<polygon" in svg

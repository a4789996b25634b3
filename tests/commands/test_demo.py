"""`expo demo`, small."""

import json

import pytest

from expo.commands import demo
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

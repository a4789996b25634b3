"""`expo demo` and `expo pretrain`, small."""

import json

from conftest import compose_config

from expo.experiments import demo
from expo.policy import load_policy
from expo.pretrain import pretrain


def test_demo_writes_its_summary_curves_and_report(tmp_path, capsys):
    code = demo.main(
        [f"output={tmp_path}", "debug=tiny", "trainer.max_steps=1", "dataset.eval_limit=4", "evaluation.samples=8"]
    )
    assert code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["arms"].keys() == {"grpo", "grpo_sft_gt_cot", "exp_grpo"}
    for metrics in summary["arms"].values():
        assert metrics["pass@4/level5"].keys() >= {"mean", "lo", "hi"}
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text()
    assert "ExP-GRPO" in page
    assert 'src="http' not in page
    assert "ExP-GRPO" in capsys.readouterr().out
    # A second call makes nothing again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/metrics.jsonl")}
    assert (
        demo.main(
            [f"output={tmp_path}", "debug=tiny", "trainer.max_steps=1", "dataset.eval_limit=4", "evaluation.samples=8"]
        )
        == 0
    )
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/metrics.jsonl")}


def test_pretrain_makes_a_model_that_loads(tmp_path):
    cfg = compose_config(
        "pretrain.max_steps=2", "pretrain.tokens_per_batch=300", f"pretrain.output={tmp_path / 'base'}"
    )
    pretrain(cfg)
    model, tokenizer = load_policy(str(tmp_path / "base"))
    assert tokenizer.decode(tokenizer("(1) 3 + 4")["input_ids"]) == "(1) 3 + 4"
    assert model.num_parameters() < 500_000
    assert "pretrain.max_steps=2" in (tmp_path / "base" / "README.md").read_text()

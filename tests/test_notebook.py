"""The Python API, the model card and the export of a finished run."""

import subprocess
import sys

import pandas
import pytest
import torch
import yaml
from running import SMALL

import expo
from expo.commands import export, samples
from expo.config import LADDER, UserError
from expo.evaluation.files import save_rows
from expo.runs.arms import TRAINED_BY

TINY = [*SMALL, "dataset=ladder", "dataset.levels=[2]", "trainer.max_steps=2", "evaluation.every=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return expo.train(*TINY, "model.lora_rank=4", f"output_dir={tmp_path_factory.mktemp('runs')}")


def test_importing_expo_is_light():
    script = "import sys, expo; print(expo.__version__); assert not {'pandas', 'torch', 'hydra'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".") == 2
    with pytest.raises(AttributeError, match="nonsense"):
        expo.nonsense  # noqa: B018


@pytest.mark.runs
def test_a_run_as_data_frames(finished):
    run = expo.load_run(str(finished.dir))
    metrics = run.metrics()
    assert list(metrics["step"]) == [0, 1, 2]
    assert metrics["pass@4"].notna().all()
    assert pandas.isna(metrics["loss/total"][0])
    first, last = run.completions(step=0), run.completions()
    assert len(first) == len(last) == 4 * 4
    assert set(last.columns) >= {"problem", "completion", "verdict", "sample"}
    rollouts = run.rollouts(step=1)
    assert len(rollouts) == 4 * 4
    assert ((rollouts["verdict"] == "correct") == rollouts["reward"]).all()
    assert (rollouts["tokens"] > 0).all()
    assert not rollouts["truncated"].any()
    assert run.config.trainer.max_steps == run.settings["trainer.max_steps"] == 2
    assert run.summary["status"] == "done"
    with pytest.raises(UserError, match=r"no eval completions of step 9; there are those of steps \[0, 1, 2\]"):
        run.completions(step=9)


@pytest.mark.runs
def test_completions_in_the_terminal(finished, tmp_path, capsys):
    def printed(*arguments):
        assert samples.main([str(finished.dir), *arguments]) == 0
        return capsys.readouterr().out

    run = expo.load_run(finished.dir)
    right = int((run.rollouts(step=1)["verdict"] == "correct").sum())
    assert 0 < right < 16
    said = printed("step=1", "verdict=correct", "n=1")
    assert said.count("\nproblem ") + said.startswith("problem ") == 1
    assert ", correct, reward 1, " in said
    assert f"1 of {right} that fit, of 16 in " in said
    row = run.rollouts(step=1).query("verdict == 'correct'").iloc[0]
    assert row["completion"].split("\n")[0] in said
    assert f"right answer {row['answer']}" in said
    assert "of 16 in" in printed(f"problem={row['problem']}", "hinted=false", "tokens>=1")
    assert "eval-step000002.parquet" in printed("of=eval", "step=2")
    assert "train-step000002.parquet" in printed()  # the last one
    for wrong, told in (
        ("n=two", "not a number"), ("n=²", "not a number"), ("of=test", "use of=train, of=eval or of=greedy"), ("verdit=correct", "no completion has verdit"), ("step=9", "those of steps"),  # noqa: E501
        ("verdict=wrong", "no such verdict; use one of correct, incorrect"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            samples.main([str(finished.dir), wrong])
    hostile = tmp_path / "train" / "run"
    (hostile / "completions").mkdir(parents=True)
    for name in ("config.yaml", "summary.json"):
        (hostile / name).write_text("{}")
    save_rows([dict(row) | {"completion": "\x1b[2Jgone"}], hostile / "completions" / "train-step000001.parquet")
    assert samples.main([str(hostile)]) == 0
    assert "completion: \\x1b[2Jgone" in capsys.readouterr().out


@pytest.mark.runs
def test_all_runs_and_an_evaluation(finished, capsys):
    root = finished.dir.parents[1]
    frame = expo.list_runs(root, "status=done", "command=train")
    assert list(frame["name"]) == ["exp_grpo"]
    names = list(frame.columns)  # what one looks for first, first
    assert names[:3] == ["run", "command", "name"]
    assert names.index("status") < names.index("pass@4") < names.index("algorithm.group_size")
    assert frame["k"][0] == 4  # the column, not the setting of that name
    evaluated = expo.evaluate("k=[1,2]", "evaluation.greedy=true", run=finished.dir)
    assert evaluated.dir.parent.name == "evaluate"
    assert {"pass@2", "mean@2", "cons@2", "greedy"} <= evaluated.summary["metrics"].keys()
    assert len(evaluated.completions()) == 4 * 2
    assert f"run={finished.dir}: its settings, but" in capsys.readouterr().out
    with pytest.raises(UserError, match="no run directory"):
        expo.evaluate(run="nowhere")
    with pytest.raises(UserError, match="did you mean algorithm=grpo"):
        expo.train("algorithm=grppo")


@pytest.mark.runs
def test_the_card_has_the_numbers(finished):
    text = (finished.dir / "checkpoints" / "final" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "peft"
    value = 100 * finished.summary["metrics"]["pass@4"]
    assert f"| pass@4 | {value:.1f} |" in text
    assert finished.summary["identity"] in text
    assert "In the chat template's form:\n\n    {question}\n" in text


@pytest.mark.runs
def test_an_export_is_the_merged_model(finished, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    assert export.main([str(finished.dir), f"output={tmp_path / 'plain'}"]) == 0
    assert (
        len({path.stat().st_mode for path in (tmp_path / "plain").iterdir()}) == 1
    )  # others may read the weights, too
    assert not (tmp_path / "plain" / "adapter_config.json").exists()
    assert (tmp_path / "plain" / TRAINED_BY).is_file()
    assert "were measured before the export" in (tmp_path / "plain" / "README.md").read_text()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    model, tokenizer = finished.model()
    ids = torch.tensor([tokenizer("3 + 4")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(LADDER).eval()
    with torch.no_grad():
        assert not torch.equal(base(ids).logits, merged(ids).logits)
    for arguments, told in (
        ([str(finished.dir), f"output={tmp_path / 'plain'}"], "is there already"),
        (["nowhere"], "no run directory"),
        ([str(finished.dir), f"output={tmp_path / 'x'}", "dtype=int8"], "no such number format"),
        (["a", "b"], "not one run"),
    ):
        with pytest.raises(UserError, match=told):
            export.main(arguments)

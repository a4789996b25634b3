"""Whole runs, small: what a user does, through the same functions."""

import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
import wandb
from conftest import compose_config
from running import SMALL, expo, run, scalars, weights

from expo import config
from expo.commands.train import train
from expo.config import UserError, check
from expo.evaluation.evaluate import Evaluator
from expo.jobs import fit
from expo.loggers.offline import read_offline
from expo.training.checkpoints import newest_checkpoint


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.parametrize(
    "overrides",
    [
        # Level 2, where the base policy is right sometimes: every stream is busy.
        ["dataset=ladder", "dataset.levels=[2]", "algorithm.kl_coef=0.05", "algorithm.updates_per_rollout=2"],
        ["dataset=ladder", "dataset.levels=[2]", "positives.explainer=snapshot", "positives.snapshot_every=3"],
        # Explanations that the stopped run has kept.
        ["dataset.limit=12", "positives.cache_steps=8", "dataset=ladder", "dataset.levels=[2]"],
        # A round of pairs, and one of STaR, that is under way when the run stops.
        ["algorithm=exp_dpo_online", "algorithm.pairs_every=3", "dataset=ladder", "dataset.levels=[2]"],
        ["algorithm=star", "algorithm.restart_every=3", "dataset=ladder", "dataset.levels=[2]"],
        ["algorithm=dapo", "dataset=ladder", "dataset.levels=[3]"],
        # Problems that were passed over before the run stopped.
        ["algorithm=grpo", "algorithm.retry=0.3", "dataset=ladder", "dataset.levels=[1,4]", "dataset.limit=6"],
        ["algorithm=nurl", "dataset=ladder", "dataset.levels=[4]"],
    ],
)
def test_stopping_and_resuming_gives_the_same_run_bit_for_bit(tmp_path, overrides):
    overrides = [*overrides, "trainer.max_steps=8"]
    _, whole = run(tmp_path / "whole", *overrides)
    code, parts = run(tmp_path / "parts", *overrides, "trainer.stop_after=5")
    assert code == 0
    assert json.loads((parts / "summary.json").read_text())["status"] == "stopped"
    run(tmp_path / "parts", *overrides)
    assert json.loads((parts / "summary.json").read_text())["status"] == "done"
    assert scalars(parts) == scalars(whole)
    assert any(line.get("policy/grad_norm", 0) > 0 for line in scalars(whole) if "reward/mean" in line)
    ours, theirs = weights(parts), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.long
@pytest.mark.runs
def test_resuming_after_a_sigkill_gives_the_same_run(tmp_path):
    overrides = [*SMALL, "trainer.max_steps=8", "trainer.checkpoint_every=2", "evaluation.every=5"]
    process = expo("train", *overrides, "output_dir=parts", cwd=tmp_path)
    while not list(tmp_path.glob("parts/*/*/checkpoints/step*.ckpt")):
        assert process.poll() is None, process.stdout.read()
    process.kill()
    process.wait()
    cfg = compose_config(f"output_dir={tmp_path / 'parts'}", *overrides)
    parts = config.run_dir(cfg)
    assert json.loads((parts / "summary.json").read_text())["status"] == "stopped"
    assert train(cfg) == 0
    whole = compose_config(f"output_dir={tmp_path / 'whole'}", *overrides)
    train(whole)
    assert scalars(parts) == scalars(config.run_dir(whole))


@pytest.mark.runs
def test_a_finished_run_is_not_made_again(tmp_path, capsys):
    _, directory = run(tmp_path, "trainer.max_steps=1")
    before = (directory / "metrics.jsonl").read_text()
    code, _ = run(tmp_path, "trainer.max_steps=1")
    assert code == 0
    assert "finished already" in capsys.readouterr().out
    assert (directory / "metrics.jsonl").read_text() == before


@pytest.mark.runs
def test_the_run_directory_keeps_its_contract(tmp_path):
    _, directory = run(tmp_path, "trainer.max_steps=1", "name=contract")
    summary = json.loads((directory / "summary.json").read_text())
    assert {"status", "identity", "git", "versions", "device", "wall_s", "metrics"} <= summary.keys()
    assert {"pass@1", "pass@4", "pass@4/level5", "pass@4/level5_lo"} <= summary["metrics"].keys()
    assert (directory / "config.yaml").is_file()
    logged = scalars(directory)[1]
    wanted = {
        "reward/mean",
        "reward/all_wrong_frac",
        "reward/all_right_frac",
        "reward/unparseable_frac",
        "loss/total",
        "loss/policy",
        "loss/kl",
        "loss/sft",
        "policy/entropy",
        "policy/ratio_mean",
        "policy/clip_frac",
        "policy/grad_norm",
        "completion/length_mean",
        "completion/truncated_frac",
        "positive/used_frac",
        "positive/logp_given_q",
        "positive/logp_given_qa",
        "positive/filtered_frac",
        "weight/positive",
    }
    assert wanted <= logged.keys()
    rows = pyarrow.parquet.read_table(directory / "completions" / "train-step000001.parquet").to_pylist()
    assert {"question", "completion", "verdict", "positive"} <= rows[0].keys()
    assert any(row["positive"] for row in rows)


@pytest.mark.runs
def test_grpo_does_not_move_where_no_rollout_is_right(tmp_path):
    _, directory = run(tmp_path, "algorithm=grpo", "trainer.max_steps=2", "optimizer.weight_decay=0.1")
    steps = [line for line in scalars(directory) if "reward/mean" in line]
    assert all(line["reward/mean"] == 0 == line["policy/grad_norm"] for line in steps)
    from expo.model.policy import load_policy

    trained = {k.removeprefix("policy."): v for k, v in weights(directory).items() if k.startswith("policy.")}
    base = load_policy(config.ModelConf(path="ladder"))[0].state_dict()
    assert all(torch.equal(trained[name], base[name]) for name in base)


@pytest.mark.runs
@pytest.mark.parametrize("algorithm", ["grpo", "grpo_sft_gt_cot", "exp_grpo"])
@pytest.mark.parametrize("data", ["math", "gsm8k"])
def test_real_formats_run_through_every_stage(tmp_path, math_file, gsm8k_file, algorithm, data):
    path = {"math": math_file, "gsm8k": gsm8k_file}[data]
    code, directory = run(
        tmp_path, f"algorithm={algorithm}", f"dataset={data}", f"dataset.path={path}", "model=random_tiny",
        "trainer.max_steps=2", "rollout.max_completion_tokens=24",
        # A random model explains nothing; unfiltered, its words still go through every stage.
        *([] if algorithm == "grpo" else ["positives.filters=[]"]),
    )  # fmt: skip
    assert code == 0
    if algorithm != "grpo":
        assert all(line["loss/sft"] > 0 for line in scalars(directory) if "reward/mean" in line)


@pytest.mark.runs
def test_evaluate_reads_what_train_saved(tmp_path, capsys):
    from expo.commands.evaluate import evaluate_command

    _, directory = run(tmp_path, "trainer.max_steps=1")
    final = directory / "checkpoints" / "final"
    cfg = compose_config(
        f"output_dir={tmp_path}", "dataset=ladder", "model=hf", f"model.path={final}", "dataset.eval_limit=3", "k=[1,2]"
    )
    check(cfg)
    assert evaluate_command(cfg) == 0
    printed = capsys.readouterr().out
    assert "level1" in printed
    assert "pass@2" in printed
    summary = next((tmp_path / "evaluate").glob("*/summary.json"))
    assert json.loads(summary.read_text())["metrics"]["pass@2/level1"] > 0.5
    assert " % cut off, " in printed
    assert "nothing is right" not in printed
    cfg.rollout.max_completion_tokens = 2
    for _ in ("made", "shown again"):
        assert evaluate_command(cfg) == 0
        printed = capsys.readouterr().out
        assert "100.0 % cut off" in printed
        assert "were cut off at 2 tokens: raise rollout.max_completion_tokens" in printed
        assert "one of them, where" in printed


@pytest.mark.runs
def test_a_gradient_that_is_no_number_stops_or_is_skipped(tmp_path, monkeypatch):
    from expo.algorithms import losses

    monkeypatch.setattr(losses, "sft_loss", lambda logp: -logp * float("nan"))
    code, directory = run(tmp_path, "trainer.max_steps=2")
    summary = json.loads((directory / "summary.json").read_text())
    assert (code, summary["status"]) == (1, "failed")
    assert "nan" in summary["reason"]
    code, directory = run(tmp_path, "trainer.max_steps=2", "trainer.on_nonfinite=skip")
    assert code == 0
    assert [line["policy/updates_skipped"] for line in scalars(directory) if "reward/mean" in line] == [1, 1]
    assert all(torch.isfinite(v).all() for v in weights(directory).values())


def test_every_prompt_too_long_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"rollout.max_prompt_tokens=5"):
        run(tmp_path, "rollout.max_prompt_tokens=5")


@pytest.mark.runs
def test_gated_and_selected_explanations_by_the_current_policy(tmp_path):
    _, directory = run(
        tmp_path,
        "dataset=ladder",
        "dataset.levels=[2]",
        "trainer.max_steps=3",
        "positives.explainer=current",
        "positives.gate=all_wrong",
        "positives.samples=3",
        "positives.selection=most_likely",
        "positives.schedule=all_wrong_fraction",
    )
    for line in scalars(directory):
        if "reward/mean" in line:
            assert line["positive/used_frac"] <= line["reward/all_wrong_frac"]
            assert line["weight/positive"] == pytest.approx(0.04 * line["reward/all_wrong_frac"])


@pytest.mark.runs
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(tmp_path, number):
    process = expo("train", *SMALL, "algorithm=grpo", "trainer.max_steps=100000", cwd=tmp_path)
    while not list(tmp_path.glob("outputs/*/*/completions/*.parquet")):  # the first evaluation: training has begun
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=180) == 128 + number, process.stdout.read()
    directory = next(tmp_path.glob("outputs/*/*/summary.json")).parent
    assert json.loads((directory / "summary.json").read_text())["status"] == "stopped"
    assert newest_checkpoint(directory) is not None


def evaluated(directory: Path) -> list[int]:
    return [line["step"] for line in scalars(directory) if "pass@4" in line]


@pytest.mark.runs
def test_a_signal_within_an_evaluation_ends_it_at_once_and_the_run_goes_on_with_it(tmp_path, monkeypatch, capsys):
    small = ["trainer.max_steps=2", "evaluation.every=2", "dataset=ladder", "dataset.levels=[2]"]
    _, whole = run(tmp_path / "whole", *small)
    rows, handlers = Evaluator._rows, {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    begun, made = [], []

    def ends(self, *arguments):
        begun.append(1)
        if len(begun) == 2:  # the last evaluation
            signal.raise_signal(signal.SIGINT)
        made.append(rows(self, *arguments))
        return made[-1]

    monkeypatch.setattr(Evaluator, "_rows", ends)
    code, directory = run(tmp_path / "cut", *small)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert (code, len(begun), len(made)) == (130, 2, 1)
    assert "SIGINT: stopping in the midst of this evaluation; the same command goes on" in capsys.readouterr().err
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["metrics"]) == ("stopped", {})
    assert evaluated(directory) == [0]
    assert run(tmp_path / "cut", *small)[0] == 0
    assert len(begun) == 3
    assert evaluated(directory) == [0, 2]
    assert scalars(directory) == scalars(whole)
    left, right = weights(directory), weights(whole)
    assert all(torch.equal(left[name], right[name]) for name in right)


@pytest.mark.runs
def test_the_first_evaluation_can_be_left_out(tmp_path, capsys, monkeypatch):
    small = [
        "evaluation.first=false",
        "dataset=ladder",
        "dataset.levels=[2]",
        "trainer.max_steps=3",
        "evaluation.every=2",
    ]
    code, directory = run(tmp_path, *small, "trainer.stop_after=1")
    assert (code, evaluated(directory)) == (0, [])
    assert f"{directory}: stopped at step 1\n" in capsys.readouterr().out
    assert run(tmp_path, *small, "trainer.stop_after=1") == (0, directory)
    assert f"{directory}: has 1 steps, and trainer.stop_after=1; set it higher to go on" in capsys.readouterr().out
    # As of a session that was killed between an evaluation and its checkpoint: this one is not yet there.
    later = json.loads((directory / "summary.json").read_text())
    (directory / "summary.json").write_text(json.dumps(later | {"metrics": {"pass@4": 0.123}}))
    with (directory / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 2, "pass@4": 0.123}) + "\n")
    monkeypatch.setattr(fit, "fit", lambda cfg, run, *others: begun.append(run.metrics) or 0)
    begun = []
    assert run(tmp_path, *small)[0] == 0
    assert begun == [{}]
    monkeypatch.undo()
    assert run(tmp_path, *small) == (0, directory)
    assert evaluated(directory) == [2, 3]
    assert run(tmp_path, *small, "trainer.max_steps=4")[0] == 0  # a longer one goes on from it
    assert "this one goes on from its step 3" in capsys.readouterr().out
    assert config.identity(compose_config(*small)) == config.identity(compose_config(*small, "evaluation.first=true"))


@pytest.mark.slow
def test_a_signal_to_a_sweep_reaches_its_runs(tmp_path):
    process = expo(
        "train", "-m", *SMALL, "trainer.max_steps=100000", "seed=0,1", "hydra.launcher.n_jobs=2", cwd=tmp_path
    )
    while len(list(tmp_path.glob("outputs/*/*/completions/eval-step000000.parquet"))) < 2:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=180) == 128 + signal.SIGTERM, process.stdout.read()
    summaries = list(tmp_path.glob("outputs/*/*/summary.json"))
    assert [json.loads(path.read_text())["status"] for path in summaries] == ["stopped", "stopped"]
    assert all(newest_checkpoint(path.parent) for path in summaries)


@pytest.mark.slow
def test_a_sweep_makes_a_directory_per_run_and_goes_on_after_a_failure(tmp_path):
    process = expo("train", "-m", *SMALL, "trainer.max_steps=1", "algorithm=grpo,exp_grpo", "k=[1],[0]", cwd=tmp_path)
    output, _ = process.communicate()
    done = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/ladder_level5/*/summary.json")]
    assert {(summary["name"], summary["status"]) for summary in done} == {("grpo", "done"), ("exp_grpo", "done")}, (
        output
    )
    assert process.returncode == 2
    assert output.count("expo: k=[0]") == 2
    assert not (tmp_path / "multirun.yaml").exists()


@pytest.mark.long
@pytest.mark.runs
def test_wandb_offline_leaves_a_run_named_by_its_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = [
        "logger=wandb",
        "trainer.max_steps=3",
        "evaluation.every=2",
        "logger.wandb.group=g",
        "logger.wandb.tags=[t]",
    ]
    assert run(tmp_path, *arguments, "trainer.stop_after=1")[0] == 0
    wandb.finish()
    wandb.teardown()  # what is written asynchronously is there now
    code, directory = run(tmp_path, *arguments)
    wandb.finish()
    wandb.teardown()  # what is written asynchronously is there now
    assert code == 0
    sessions = [read_offline(f) for f in sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))]
    assert [session.id for session in sessions] == [f"exp_grpo-s0-{directory.name[-10:]}"] * 2
    first, second = sessions
    assert (first.group, first.tags) == ("g", ["t"])
    assert first.config["algorithm"]["group_size"] == 4
    assert first.config["git"]
    assert (first.summary["status"], second.summary["status"]) == ("stopped", "done")
    assert second.summary["wall_s"] > 0
    assert second.summary["versions"]["torch"]
    assert [row["_step"] for row in first.history] == [0, 1]
    assert [row["_step"] for row in second.history] == [2, 3]  # goes on, and loses no step
    lines = {line["step"]: line for line in scalars(directory) if "reward/mean" in line}
    rows = {row["_step"]: row for row in (*first.history, *second.history)}
    for step, line in lines.items():
        assert rows[step]["reward/mean"] == pytest.approx(line["reward/mean"])
    assert "pass@4" in rows[0]
    assert "pass@4" in rows[2]


@pytest.mark.runs
def test_an_offline_file_is_read_as_far_as_it_is_whole(tmp_path):
    with wandb.init(mode="offline", dir=tmp_path, id="abc", settings=wandb.Settings(silent=True)) as session:
        for step in range(50):
            session.log({"long": "x" * 3000, "step": step}, step=step)  # records that span blocks of the file
    wandb.teardown()
    path = next(tmp_path.glob("wandb/offline-run-*/run-abc.wandb"))
    assert [row["step"] for row in read_offline(path).history] == list(range(50))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert [row["step"] for row in read_offline(path).history] == list(range(len(read_offline(path).history)))
    assert 10 < len(read_offline(path).history) < 40
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="does not begin with :W&B"):
        read_offline(path)


@pytest.mark.slow
def test_two_processes_do_not_make_the_same_run_twice(tmp_path):
    overrides = [*SMALL, "trainer.max_steps=3", "output_dir=both"]
    processes = [expo("train", *overrides, cwd=tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("finished already" in text for text in said) == [False, True]
    directory = next(tmp_path.glob("both/ladder_level5/exp_grpo-*"))
    steps = [line["step"] for line in scalars(directory) if "loss/total" in line]
    assert steps == [1, 2, 3]


@pytest.mark.long
@pytest.mark.runs
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    arguments = [
        "trainer.max_steps=3",
        "trainer.checkpoint_every=1",
        "evaluation.every=0",
        "trainer.problems_per_step=2",
    ]
    _, directory = run(tmp_path / "cut", *arguments, "trainer.stop_after=2")
    checkpoint = newest_checkpoint(directory)
    checkpoint.write_bytes(checkpoint.read_bytes()[:10_000])
    assert newest_checkpoint(directory) != checkpoint
    assert "is damaged" in caplog.text
    assert run(tmp_path / "cut", *arguments)[0] == 0
    _, whole = run(tmp_path / "whole", *arguments)
    assert scalars(directory) == scalars(whole)


@pytest.mark.runs
def test_a_run_that_learns_from_no_positive_says_so_once(tmp_path, caplog):
    assert run(tmp_path, "trainer.max_steps=2", "evaluation.every=0", "rollout.max_completion_tokens=8")[0] == 0
    said = [r.message for r in caplog.records if "passed the filters" in r.message]
    assert len(said) == 1
    assert "none of the 4 possible positives" in said[0]
    assert "truncated 4" in said[0]
    zeros = [r.message for r in caplog.records if "nothing is right" in r.message]
    assert ["16 of 16 have no boxed answer, 16 of 16 were cut off at 8 tokens" in z for z in zeros] == [True, True]
    assert [z.partition(": nothing")[0] for z in zeros] == ["the evaluation of step 0", "step 1"]
    assert sum("one of them, where" in r.message for r in caplog.records) == 2


@pytest.mark.long
@pytest.mark.runs
def test_a_run_without_any_update_has_checkpoints_too(tmp_path):
    """Lightning's own callback skips a step in which the optimizer did nothing: all of GRPO's where every rollout is
    wrong."""
    command = [
        "train",
        *SMALL,
        "algorithm=grpo",
        "trainer.max_steps=5000",
        "evaluation.every=0",
        "dataset.eval_limit=2",
    ]
    process = expo(*command, "trainer.checkpoint_every=1", "output_dir=out", cwd=tmp_path)
    while len(list(tmp_path.glob("out/*/*/checkpoints/step*.ckpt"))) < 1:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()  # no clean end, which would save one by itself
    process.communicate()
    directory = next(tmp_path.glob("out/ladder_level5/grpo-*"))
    assert all(line["policy/grad_norm"] == 0 for line in scalars(directory) if "policy/grad_norm" in line)
    assert newest_checkpoint(directory) is not None


def test_a_checkpoint_of_0_1_with_an_explanation_cache_is_refused_in_one_line(tmp_path):
    path = tmp_path / "checkpoints" / "step000001.ckpt"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("archive/data.pkl", b"cexpo.experience\nCandidate\n")
    with pytest.raises(
        config.UserError, match=r"step000001\.ckpt: holds an explanation cache of expo 0\.1.*fresh=true"
    ):
        newest_checkpoint(tmp_path)


@pytest.mark.runs
def test_head_of_the_output_is_no_error_and_other_broken_pipes_are(tmp_path):
    help_ = subprocess.run(
        f"{sys.executable} -m expo train --help positives | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (help_.returncode, help_.stderr) in [(141, ""), (0, "")]
    broken = "from expo import cli\ndef run(): raise BrokenPipeError(32, 'a service is gone')\ncli.reporting(run)"
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a service is gone" in done.stderr

"""Offline W&B runs: read back, and sent in order to a stand-in server."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import wandb
from by_hand import leave
from conftest import compose_config
from running import run, scalars

from expo import cli
from expo.commands import wandb as wandb_command
from expo.config import UserError
from expo.loggers import trackers as loggers
from expo.loggers.offline import may_grow, offline_files, read_offline
from expo.loggers.sync import sync
from expo.loggers.tracking import Session, chosen_loggers, log_step, log_summary, make_loggers
from expo.runs import reading
from expo.runs.arms import settings_of
from expo.runs.directory import Run
from expo.training.checkpoints import newest_checkpoint
from expo.training.shorter import replay

LOG = """
import sys, wandb
with wandb.init(project="expo", id=sys.argv[2], name="n", resume="allow", mode="offline", dir=sys.argv[1]) as run:
    for step in range(int(sys.argv[3]), int(sys.argv[4])):
        run.log({"x": step}, step=step)
"""


def session(folder, run_id: str, first: int, end: int) -> None:
    """Log one offline session of a run, in a process of its own, at least a second after the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-c", LOG, str(folder), run_id, str(first), str(end)], check=True, capture_output=True
    )
    time.sleep(1)  # W&B names a session by the second


@pytest.mark.long
@pytest.mark.runs
def test_sync_sends_each_session_once_in_order(online, tmp_path, capsys):
    runs = tmp_path / "outputs" / "ladder"
    session(runs / "z", "z", 0, 2)
    session(runs / "a", "a", 0, 2)
    session(runs / "z", "z", 2, 4)
    assert sync(tmp_path / "outputs") == 0
    *sent, last = capsys.readouterr().out.splitlines()
    assert [line.partition(": sent as ")[2] for line in sent] == ["z (1 of 3)", "a (2 of 3)", "z (3 of 3)"]
    assert last == "wandb sync: 3 sessions sent, 0 sent before"
    assert online.runs["z"].steps == [0, 1, 2, 3]
    assert online.runs["a"].steps == [0, 1]
    assert sync(tmp_path / "outputs") == 0
    assert capsys.readouterr().out == "wandb sync: 0 sessions sent, 3 sent before\n"
    assert online.runs["z"].sessions == 2  # and nothing new since


@pytest.mark.slow
def test_sync_stops_where_the_server_is_gone_and_goes_on_later(online, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_X_GRAPHQL_RETRY_MAX", "1")
    session(tmp_path / "outputs" / "a", "a", 0, 2)
    session(tmp_path / "outputs" / "b", "b", 0, 2)
    online.stop()
    assert sync(tmp_path / "outputs") == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert "offline-run-" in line
    assert "connection refused" in line
    assert line.endswith("0 sessions sent, 2 left; the same command goes on")
    online.start()
    assert sync(tmp_path / "outputs") == 0
    assert {name: run.steps for name, run in online.runs.items()} == {"a": [0, 1], "b": [0, 1]}


@pytest.mark.runs
def test_sync_without_a_key_or_a_folder_is_the_users_mistake(online, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY")
    session(tmp_path / "outputs" / "a", "a", 0, 1)
    with pytest.raises(UserError, match=r"W&B cannot send it \(No API key configured.*run `wandb login`"):
        sync(tmp_path / "outputs")
    monkeypatch.setattr(sys, "argv", ["expo", "wandb", "sync", "elsewhere"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "elsewhere: no such folder" in capsys.readouterr().err


@pytest.mark.runs
def test_a_run_that_is_under_way_is_sent_later(online, tmp_path, capsys):
    name = "grpo-s0-0123456789"
    session(tmp_path / "outputs" / "ladder" / name, "a", 0, 1)
    with (tmp_path / "outputs" / "ladder" / name / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sync(tmp_path / "outputs") == 0
        assert capsys.readouterr().out == "wandb sync: 0 sessions sent, 0 sent before, 1 under way\n"
    assert sync(tmp_path / "outputs") == 0
    assert "1 session sent" in capsys.readouterr().out


def test_a_file_that_another_process_is_writing_is_left_as_it_is(tmp_path, capsys):
    session(tmp_path / "mine", "a", 0, 2)
    (file,) = offline_files(tmp_path)
    session(tmp_path / "mine", "a", 2, 4)
    half = file.read_bytes()[:-40]  # without the record of its end, and in the middle of another one
    file.write_bytes(half)
    assert sync(tmp_path) == 0
    said = capsys.readouterr()
    assert said.out == "wandb sync: 0 sessions sent, 0 sent before, 2 under way\n"
    assert said.err.startswith(f"expo: {tmp_path / 'mine'}: left out, since W&B may be writing it")
    assert file.read_bytes() == half
    os.utime(file, (0, 0))
    assert not may_grow(file)


def teardown() -> None:
    import wandb

    wandb.finish()
    wandb.teardown()  # what is written asynchronously is there now


def lose(file, last: int) -> None:
    """Cut a file off behind a step, as a SIGKILL does: W&B writes in blocks of 32 KiB."""
    content = file.read_bytes()
    for size in range(len(content), 0, -200):
        file.write_bytes(content[:size])
        if read_offline(file).history[-1]["_step"] == last:
            return


@pytest.mark.runs
def test_steps_that_were_lost_with_a_kill_are_sent_by_the_next_session(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = compose_config("logger=wandb", "logger.wandb.mode=offline", f"output_dir={tmp_path}")
    found = Run(cfg, tmp_path / "ladder" / "a")
    found.dir.mkdir(parents=True)
    lines = [{"step": step, "pass@4": 0.1 * step, "loss/total": None} for step in range(7)]
    (found.dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for first, end in ((0, 9), (7, 10)):  # two steps are made again
        (logger,) = chosen_loggers(Session(cfg, found.dir, resume_step=first and 6))
        if first:
            replay(found, [logger])
        for step in range(first, end):
            logger.log_metrics({"pass@4": 0.1 * step}, step)
        logger.close()
        teardown()
        if not first:
            lose(offline_files(found.dir)[0], 3)
            empty = (
                found.dir / "wandb" / "offline-run-20260101_000000-a" / "run-a.wandb"
            )  # of a kill before the first block
            empty.parent.mkdir()
            empty.write_bytes(b"")
        time.sleep(1)  # W&B names a session by the second
    history = read_offline(found.dir).history
    assert [row["_step"] for row in history] == list(range(10))
    assert [row["pass@4"] for row in history] == pytest.approx([0.1 * step for step in range(10)])


@pytest.mark.runs
def test_a_step_whose_evaluation_was_stopped_is_sent_whole_by_the_next_session(tmp_path):
    """W&B takes a step once: without its evaluation it would have lacked that for ever."""
    every = ["trainer.max_steps=6", "evaluation.every=3"]
    cfg = compose_config("logger=wandb", "logger.wandb.mode=offline", f"output_dir={tmp_path}", *every)
    found = Run(cfg, tmp_path / "ladder" / "a")
    found.dir.mkdir(parents=True)
    for resumed, steps in ((0, (1, 2, 3)), (3, (4, 5, 6))):
        loggers_ = make_loggers(Session(cfg, found.dir, resume_step=resumed))
        if resumed:
            replay(found, loggers_)
            log_step(loggers_, {"pass@4": 0.3}, 3)
        for step in steps:
            log_step(loggers_, {"loss/total": 0.1 * step}, step)
            if step == 6:
                log_step(loggers_, {"pass@4": 0.6}, step)
        for logger in loggers_:
            logger.close()
        teardown()
        time.sleep(1)  # W&B names a session by the second
    rows = [
        {k: v for k, v in row.items() if k in ("_step", "loss/total", "pass@4")}
        for row in read_offline(found.dir).history
    ]
    losses = [{"_step": step, "loss/total": pytest.approx(0.1 * step)} for step in range(1, 7)]
    assert rows == [row | {3: {"pass@4": 0.3}, 6: {"pass@4": 0.6}}.get(row["_step"], {}) for row in losses]


@pytest.mark.parametrize("reason", ["Collapsed: stopped at step 3", "EngineError: gone"])
def test_the_step_at_which_a_run_collapses_is_sent(tmp_path, reason):
    cfg = compose_config("logger=wandb", "logger.wandb.mode=offline", f"output_dir={tmp_path}", "evaluation.every=3")
    found = Run(cfg, tmp_path / "ladder" / "a")
    found.dir.mkdir(parents=True)
    loggers_ = make_loggers(Session(cfg, found.dir, resume_step=0))
    for step in (1, 2, 3):
        log_step(loggers_, {"loss/total": 0.1 * step}, step)
    for logger in loggers_:
        logger.finalize("failed")
    log_summary(loggers_, {"status": "failed", "reason": reason})
    for logger in loggers_:
        logger.close()
    teardown()
    goes_on = not reason.startswith("Collapsed")  # and sends step 3 with its evaluation
    assert [row["_step"] for row in read_offline(found.dir).history] == [1, 2, *([] if goes_on else [3])]


def test_an_upload_says_what_it_leaves_out(tmp_path, capsys):
    trained = leave(tmp_path, "dataset=ladder", "evaluation.every=2")
    lines = [{"step": 1, "loss/total": 0.1}, {"step": 2, "loss/total": 0.2}]
    (trained / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (trained / "summary.json").write_text(json.dumps({"status": "stopped", "step": 2}))
    assert wandb_command.main(["upload", str(trained), "mode=offline"]) == 0
    assert "without step 2, whose evaluation was stopped: go on with the run" in capsys.readouterr().out
    (trained / "summary.json").write_text(json.dumps({"status": "done", "step": 3}))
    time.sleep(1)
    assert wandb_command.main(["upload", str(trained), "mode=offline"]) == 0
    assert "lacks scalars" in capsys.readouterr().out
    measured = leave(tmp_path, "dataset=ladder", "seed=5")
    (measured / "summary.json").write_text(json.dumps({"status": "done", "command": "evaluate", "metrics": {"a": 1}}))
    for _ in range(2):  # nothing of it was stopped, and the second time nothing is left to send
        assert wandb_command.main(["upload", str(measured), "mode=offline"]) == 0
        assert "was stopped" not in capsys.readouterr().out
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True])
def test_a_killed_run_that_was_offline_is_sent_with_each_step_once(online, tmp_path, monkeypatch, lost):
    """`wandb sync` would send a step that two sessions have twice, and shift all that follow."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = ["logger=wandb", "trainer.max_steps=6", "evaluation.every=2", "trainer.checkpoint_every=3"]
    _, directory = run(tmp_path / "outputs", *arguments, "trainer.stop_after=5")
    teardown()
    newest_checkpoint(directory).unlink()  # a SIGKILL after step 5 leaves the checkpoint of step 3
    if lost:  # and another one before the first block was written
        lose(offline_files(directory)[0], 2)
        (directory / "wandb" / "offline-run-20260101_000000-a").mkdir()
        (directory / "wandb" / "offline-run-20260101_000000-a" / "run-a.wandb").write_bytes(b":W&B\x00\x00\x00")
    for file in offline_files(directory):
        os.utime(file, (0, 0))  # the kill is over a minute ago
    time.sleep(1)
    assert run(tmp_path / "outputs", *arguments)[0] == 0
    teardown()
    assert len(offline_files(directory)) == 2 + lost
    for where in (directory, str(directory), directory / "wandb"):  # the run's folder, or a string
        assert [row["_step"] for row in read_offline(where).history] == [0, 1, 2, 3, 4, 5, 6]
    assert lost or read_offline(str(offline_files(directory)[0])).summary["status"] == "stopped"
    assert read_offline(directory).summary["status"] == "done"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert sync(tmp_path / "outputs") == 0
    sent = {row["_step"]: row for row in online.runs[f"exp_grpo-s0-{directory.name[-10:]}"].history}
    assert list(sent) == online.runs[f"exp_grpo-s0-{directory.name[-10:]}"].steps == [0, 1, 2, 3, 4, 5, 6]
    for line in scalars(directory):
        for name, value in line.items():
            if name != "step" and value is not None:
                assert sent[line["step"]][name] == pytest.approx(value), name
    assert os.path.isdir(directory)


@pytest.mark.long
@pytest.mark.runs
def test_a_folder_without_offline_files_or_with_those_of_two_runs_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"no wandb/offline-run-"):
        read_offline(tmp_path)
    session(tmp_path / "a", "a", 0, 1)
    session(tmp_path / "b", "b", 0, 1)
    with pytest.raises(ValueError, match="a file of b, beside one of a"):
        read_offline(tmp_path)


@pytest.mark.runs
def test_a_run_that_was_killed_before_its_first_checkpoint_sends_no_step_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = compose_config("logger=wandb", "logger.wandb.mode=offline")
    session(tmp_path, Session(cfg, tmp_path).id, 0, 2)
    (logger,) = chosen_loggers(Session(cfg, tmp_path))
    for step in range(4):
        logger.log_metrics({"x": float(step)}, step)
    logger.close()
    teardown()
    files = offline_files(tmp_path)
    assert [[row["_step"] for row in read_offline(file).history] for file in files] == [[0, 1], [2, 3]]


@pytest.mark.long
@pytest.mark.runs
def test_sessions_are_in_the_order_of_their_steps_whatever_the_clock_said(tmp_path):
    session(tmp_path, "z", 0, 2)
    session(tmp_path, "z", 2, 4)
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    second.rename(second.with_name("offline-run-20200101_000000-z"))  # as after a flight to the west
    assert [file.parent.name for file in offline_files(tmp_path)] == [first.name, "offline-run-20200101_000000-z"]
    assert [row["_step"] for row in read_offline(tmp_path).history] == [0, 1, 2, 3]


def test_a_file_that_is_none_of_wandbs_is_named_and_stops_neither_sync_nor_a_resume(tmp_path, capsys):
    bad = tmp_path / "wandb" / "offline-run-20260101_000000-x" / "run-x.wandb"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"hello")
    assert sync(tmp_path) == 0
    said = capsys.readouterr()
    assert said.err == f"expo: {bad}: not a .wandb file: it does not begin with :W&B; it is left out\n"
    assert "0 sessions sent" in said.out
    assert loggers._last_step(tmp_path, ("", "expo")) == -1


def test_a_run_is_uploaded_whole_to_each_project_and_once_as_it_was_made(tmp_path):
    trained = leave(tmp_path, "dataset=ladder")
    measured = shutil.copytree(trained, tmp_path / "evaluate" / "m")
    (measured / "metrics.jsonl").unlink()
    for folder, steps in ((trained, [1, 2]), (measured, [0])):
        for project in ("a", "a", "b"):
            assert wandb_command.main(["upload", str(folder), f"project={project}", "mode=offline"]) == 0
            time.sleep(1)  # W&B names a session by the second
        wandb.teardown()
        sessions = [read_offline(file) for file in offline_files(folder)]
        for project in ("a", "b"):
            rows = [row["_step"] for s in sessions if s.project == ("", project) for row in s.history]
            assert rows == steps, (folder, project)
        assert {s.config["git"] for s in sessions} == {"abc"}


def test_a_run_directory_may_be_a_string(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    (tmp_path / "summary.json").write_text(json.dumps({"status": "done"}))
    (tmp_path / "config.yaml").write_text("dataset: {name: x}\n")
    assert reading.read_points(str(tmp_path), "reward/mean") == [(1, 0.5)]
    assert reading.read_summary(str(tmp_path)) == {"status": "done"}
    assert reading.samples_of(str(tmp_path)) == []
    assert settings_of(str(tmp_path)) == {"dataset.name": "x"}

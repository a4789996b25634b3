"""W&B online, against a stand-in server (tests/wandb_server.py): no run of ours needs W&B's own."""

import json
import signal
import time
from pathlib import Path

import pytest
from running import SMALL
from wandb_server import expo, start

ONLINE = ["logger=wandb", "logger.wandb.mode=online", "logger.wandb.group=g", "logger.wandb.tags=[t]"]


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_is_started_logged_and_resumed_under_its_id(server, tmp_path):
    train = ["train", *SMALL, *ONLINE, "trainer.max_steps=4", "evaluation.every=2"]
    code, said = expo(server, tmp_path, *train, "trainer.stop_after=2")
    assert code == 0, said
    (directory,) = (path.parent for path in tmp_path.glob("outputs/*/*/summary.json"))
    (run,) = server.runs.values()
    assert (run.name, run.group, run.tags) == (f"exp_grpo-s0-{directory.name[-10:]}", "g", ["t"])
    assert run.steps == [0, 1, 2]
    assert json.loads(run.summary)["status"] == "stopped"
    assert json.loads(run.config)["algorithm"]["value"]["group_size"] == 4
    code, said = expo(server, tmp_path, *train)
    assert code == 0, said
    assert list(server.runs) == [f"exp_grpo-s0-{directory.name[-10:]}"]
    assert run.sessions == 2
    assert run.steps == [0, 1, 2, 3, 4]
    assert (json.loads(run.summary)["status"], run.exit_code) == ("done", 0)
    sent = {row["_step"]: row for row in run.history}
    for line in lines(directory):
        for name, value in line.items():
            if name != "step" and value is not None:
                assert sent[line["step"]][name] == pytest.approx(value), name
    assert server.unknown == []


@pytest.mark.slow
def test_a_killed_run_that_begins_before_what_was_sent_sends_no_step_twice(server, tmp_path):
    train = ["train", *SMALL, *ONLINE, "trainer.max_steps=12", "trainer.checkpoint_every=5"]
    process = start(server, tmp_path, *train)
    while not any(max(run.steps, default=0) >= 7 for run in server.runs.values()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = server.runs.values()
    sent = -1
    while sent != len(run.history):  # wandb-core sends what it has, and ends after its process
        sent = len(run.history)
        time.sleep(5)
    before = list(run.history)
    assert before[-1]["_step"] >= 7
    code, said = expo(server, tmp_path, *train)  # from step 5
    assert code == 0, said
    assert run.steps == list(range(13))
    assert run.history[: len(before)] == before


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_while_costs_nothing(server, tmp_path):
    process = start(server, tmp_path, "train", *SMALL, *ONLINE, "trainer.max_steps=20")
    while not any(run.steps for run in server.runs.values()):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    server.stop()
    metrics = next(tmp_path.glob("outputs/*/*/metrics.jsonl"))
    while lines(metrics.parent)[-1]["step"] < 15:  # it goes on without
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    server.start()
    assert process.wait(timeout=240) == 0, process.stdout.read()
    (run,) = server.runs.values()
    assert run.steps == list(range(21))
    assert [line["step"] for line in lines(metrics.parent) if "reward/mean" in line] == list(range(1, 21))


@pytest.mark.long
@pytest.mark.runs
def test_a_missing_key_is_one_line_before_any_work(server, tmp_path):
    code, said = expo(server, tmp_path, "train", *SMALL, *ONLINE, WANDB_API_KEY="")
    assert code == 2, said
    (line,) = (line for line in said.splitlines() if line.startswith("expo: "))
    assert line.startswith("expo: logger.wandb.mode=online: W&B cannot start (")
    assert "wandb login" in line
    assert "logger.wandb.mode=offline" in line
    assert "Traceback" not in said
    assert server.runs == {}

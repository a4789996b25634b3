"""`logger=tensorboard|mlflow|csv`: the scalars of metrics.jsonl, each once, also where a run was killed and resumed."""

import csv
import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, compose_config
from pages import blocks
from running import SMALL, run, scalars
from wandb.sdk.mailbox import MailboxClosedError

from expo import config
from expo.commands import evaluate
from expo.config import UserError, check
from expo.jobs import score
from expo.loggers import trackers as loggers
from expo.loggers.offline import read_offline
from expo.loggers.tracking import Session, chosen_loggers
from expo.runs.reading import read_summary
from expo.training.checkpoints import newest_checkpoint

Points = dict[str, list[tuple[int, float]]]  # (step, value) of each scalar


def read_tensorboard(directory: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def read_csv(directory: Path) -> Points:
    points = defaultdict(list)
    with (directory / "csv" / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            for name, value in row.items():
                if value:
                    points[name].append((step, float(value)))
    return points


def mlflow_client(folder: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def run_name(directory: Path) -> str:
    """Return what a run is called everywhere: its arm, seed and identity, whatever its directory is called."""
    found = directory / "summary.json"
    return json.loads(found.read_text())["id"] if found.is_file() else config.run_id(compose_config())


def mlflow_run(directory: Path):
    client = mlflow_client(directory.parents[1])
    (experiment,) = (e for e in client.search_experiments() if e.name == "expo")
    (found,) = client.search_runs([experiment.experiment_id], f"tags.`expo.id` = '{run_name(directory)}'")
    return client, found


def read_mlflow(directory: Path) -> Points:
    client, found = mlflow_run(directory)
    return {
        name.replace("_at_", "@"): [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


def read_wandb(directory: Path) -> Points:
    points = defaultdict(list)
    for row in read_offline(directory).history:
        for name, value in row.items():
            points[name].append((row["_step"], value))
    return points


READERS = {"tensorboard": read_tensorboard, "csv": read_csv, "mlflow": read_mlflow}


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.parametrize("name", ["tensorboard", "csv", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_a_logger_has_every_scalar_once_after_a_kill(tmp_path, name):
    arguments = [f"logger={name}", "trainer.max_steps=6", "evaluation.every=2", "trainer.checkpoint_every=3"]
    _, directory = run(tmp_path, *arguments, "trainer.stop_after=5")
    newest_checkpoint(directory).unlink()  # a SIGKILL after step 5 leaves the checkpoint of step 3
    assert newest_checkpoint(directory).stem == "step000002"
    assert run(tmp_path, *arguments)[0] == 0
    found = READERS[name](directory)
    wanted = defaultdict(list)
    for line in scalars(directory):
        for scalar, value in line.items():
            if scalar != "step" and value is not None:
                wanted[scalar].append((line["step"], value))
    assert {step for step, _ in wanted["reward/mean"]} == {1, 2, 3, 4, 5, 6}
    for scalar, points in wanted.items():
        steps, values = zip(*sorted(found[scalar]), strict=True)
        assert list(steps) == [step for step, _ in points], scalar  # each once
        assert values == pytest.approx([value for _, value in points], rel=1e-5), scalar


@pytest.mark.parametrize("ends_in", [ConnectionResetError("Connection lost"), MailboxClosedError()])
def test_a_killed_process_of_wandbs_is_one_line(ends_in, tmp_path, monkeypatch):
    def lost(self):
        raise ends_in

    def teardown():
        ended.append("before its hook at exit, which would print a stack trace")
        raise ends_in

    ended = []
    monkeypatch.setattr(loggers.Wandb, "experiment", property(lost))
    monkeypatch.setattr("wandb.teardown", teardown)
    session = Session(compose_config("logger=wandb", "logger.wandb.mode=offline"), tmp_path)
    with pytest.raises(
        UserError, match=r"logger=wandb: W&B's own process has ended \((Connection lost|Mail\w+)\); the same command"
    ):
        chosen_loggers(session)
    assert ended


KILLED_IN_THE_MIDDLE = """\
import sys, time
from pathlib import Path
import psutil
from conftest import compose_config
from expo.config import UserError
from expo.loggers.tracking import Session, chosen_loggers
[logger] = chosen_loggers(Session(compose_config("logger=wandb", "logger.wandb.mode=offline"), Path(sys.argv[1])))
for process in psutil.Process().children(recursive=True):
    process.kill()
told = []
for step in range(1, 50):
    try:
        logger.log_metrics({"x": 1.0}, step)
    except UserError as error:
        told.append(str(error))
        break
    time.sleep(0.1)
logger.log_record({"status": "failed"})
logger.close()
print(told)
"""


def test_wandb_killed_in_the_middle_is_told_once_and_at_its_end_prints_no_trace(tmp_path):
    own = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "WANDB_SILENT": "true"}
    line = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\['logger=wandb: W&B's own process has ended|\[\"logger=wandb: W&B's own process", done.stdout)
    assert "Traceback" not in done.stderr


AT_HOME = """\
import sys
from pathlib import Path
from conftest import compose_config
from expo.loggers.tracking import Session, chosen_loggers
[logger] = chosen_loggers(Session(compose_config("logger=wandb", "logger.wandb.mode=offline"), Path(sys.argv[1])))
logger.log_rows("completions/train", ["question"], [["1?"]], 1)
logger.close()
"""


@pytest.mark.long
def test_wandb_needs_no_home_folder_to_write_in(tmp_path):
    """A table went through its folder there, and without one its process logged to the terminal."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_"))}
    path = f"{os.environ.get('PYTHONPATH', ROOT)}:{ROOT}/tests"
    done = subprocess.run(
        [sys.executable, "-c", AT_HOME, str(tmp_path)], capture_output=True, text=True, check=False,
        env=own | {"HOME": "/proc/no-home", "PYTHONPATH": path, "WANDB_SILENT": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert " INFO " not in done.stderr
    assert " ERROR " not in done.stderr


def test_a_disk_that_is_full_for_tensorboard_ends_in_one_error_and_no_trace_of_its_thread(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    (logger,) = chosen_loggers(Session(compose_config("logger=tensorboard"), tmp_path))
    logger.log_metrics({"x": 1.0}, 1)

    def full(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = logger.experiment.file_writer.event_writer._async_writer._worker._record_writer
    monkeypatch.setattr(writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        logger.log_metrics({"x": 1.0}, 2)
    logger.experiment.file_writer.event_writer._async_writer._worker.join()
    assert told == []
    other = threading.Thread(target=full)
    other.start()
    other.join()
    assert [ended.exc_value.errno for ended in told] == [errno.ENOSPC]


KILLED = """\
import os, signal, sys
from expo.training import callbacks
save = callbacks.save_checkpoint
def save_and_die(trainer, folder, step, **more):
    save(trainer, folder, step, **more)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.save_checkpoint = save_and_die
from expo.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", *READERS])
def test_a_sigkill_costs_no_logger_a_step(tmp_path, name):
    line = [
        "train",
        *SMALL,
        f"logger={name}",
        *(["logger.wandb.mode=offline"] if name == "wandb" else []),
        "trainer.max_steps=5",
        "evaluation.every=2",
        "trainer.checkpoint_every=1",
        "rollout.max_completion_tokens=16",
        f"output_dir={tmp_path}",
    ]
    for script, code in ((KILLED, -9), ("from expo.cli import main; main()", 0)):
        done = subprocess.run([sys.executable, "-c", script, *line], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
    (directory,) = tmp_path.glob("ladder*/*/")
    found = READERS.get(name, read_wandb)(directory)
    assert [step for step, _ in sorted(found["reward/mean"])] == [1, 2, 3, 4, 5]
    assert [step for step, _ in sorted(found["pass@4"])] == [0, 2, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_what_is_logged_is_kept_at_once(tmp_path, name):
    """A SIGKILL may come at any time, and a resumed run begins after what the checkpoint has."""
    directory = tmp_path / "ladder" / "a-s0"
    directory.mkdir(parents=True)
    script = (
        "import os, sys; from pathlib import Path; from expo.config import compose_config\n"
        "from expo.loggers.tracking import Session, chosen_loggers\n"
        "cfg = compose_config([f'logger={sys.argv[1]}', f'output_dir={sys.argv[2]}'])\n"
        "(logger,) = chosen_loggers(Session(cfg, Path(sys.argv[3])))\n"
        "logger.log_metrics({'pass@4': 0.5}, 1)\n"
        "logger.log_metrics({'pass@4': 0.25, 'reward/mean': 1.0}, 2)\n"
        "os._exit(9)\n"  # no more is written than by a SIGKILL
    )
    made = subprocess.run([sys.executable, "-c", script, name, str(tmp_path), str(directory)], check=False)
    assert made.returncode == 9
    found = READERS[name](directory)
    assert (found["pass@4"], found["reward/mean"]) == ([(1, 0.5), (2, 0.25)], [(2, 1.0)])


@pytest.mark.runs
@pytest.mark.parametrize("name", ["tensorboard", "csv"])
def test_an_evaluation_is_logged_and_a_mistake_costs_nothing_that_is_there(tmp_path, name, monkeypatch):
    def no_model(cfg):
        raise UserError("no model")

    cfg = compose_config("debug=tiny", f"logger={name}", f"output_dir={tmp_path}")
    assert evaluate.evaluate_command(cfg) == 0
    (directory,) = tmp_path.glob("evaluate/*/")
    wanted = [(0, pytest.approx(read_summary(directory)["metrics"]["pass@4"]))]
    assert READERS[name](directory)["pass@4"] == wanted
    with monkeypatch.context() as broken:
        broken.setattr(score, "load_model", no_model)
        with pytest.raises(UserError, match="no model"):
            evaluate.evaluate_command(replace(cfg, fresh=True))
    assert READERS[name](directory)["pass@4"] == wanted
    assert evaluate.evaluate_command(replace(cfg, fresh=True)) == 0
    assert READERS[name](directory)["pass@4"] == wanted  # once, not twice


@pytest.mark.long
@pytest.mark.runs
def test_mlflow_knows_the_config_the_status_and_a_run_made_again(tmp_path):
    arguments = ["logger=mlflow", "logger.mlflow.group=g", "trainer.max_steps=2"]
    _, directory = run(tmp_path, *arguments, "trainer.stop_after=1")
    _, first = mlflow_run(directory)
    assert first.info.status == "KILLED"  # stopped, not finished
    run(
        tmp_path, *arguments, "rollout.batch_size=128"
    )  # a parameter that changes nothing of the result: MLflow's are final
    _, second = mlflow_run(directory)
    assert (second.info.run_id, second.info.status) == (first.info.run_id, "FINISHED")
    assert second.data.params["algorithm/group_size"] == "4"
    assert second.data.tags["group"] == "g"
    assert second.data.tags["status"] == "done"
    run(tmp_path, *arguments, "fresh=true")
    _, third = mlflow_run(directory)  # the only one: the other is deleted, as the directory was
    assert third.info.run_id != first.info.run_id
    assert not (tmp_path / "mlruns").exists()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.slow
def test_an_mlflow_server_that_is_gone_for_a_while_costs_nothing(tmp_path, monkeypatch, caplog):
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    calls = []

    def refuse(original):
        def log_batch(*args, **kwargs):
            calls.append(kwargs)
            if "metrics" in kwargs and 2 <= len(calls) <= 6:
                raise MlflowException("connection refused")
            return original(*args, **kwargs)

        return log_batch

    monkeypatch.setattr(MlflowClient, "log_batch", refuse(MlflowClient.log_batch))
    code, directory = run(tmp_path, "logger=mlflow", "trainer.max_steps=6", "evaluation.every=2")
    assert code == 0
    assert caplog.text.count("connection refused") == 1
    assert [step for step, _ in sorted(read_mlflow(directory)["reward/mean"])] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in sorted(read_mlflow(directory)["pass@4"])] == [0, 2, 4, 6]
    assert mlflow_run(directory)[1].info.status == "FINISHED"


@pytest.mark.runs
def test_an_mlflow_server_that_is_not_there_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"logger.mlflow.tracking_uri=http://127.0.0.1:9: MLflow cannot start"):
        run(tmp_path, "logger=mlflow", "logger.mlflow.tracking_uri=http://127.0.0.1:9")
    assert not list(tmp_path.glob("*/*/completions/*"))


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_one_line_before_anything_is_loaded(monkeypatch, name, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == name else find(module, *rest)
    )
    with pytest.raises(UserError, match=rf"package {package} is not installed; install it with pip install {package}"):
        check(compose_config(f"logger={name}"))


def test_a_server_needs_no_database_here(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m, *rest: None if m == "sqlalchemy" else find(m, *rest))
    check(compose_config("logger=mlflow", "logger.mlflow.tracking_uri=http://mlflow.example"))
    with pytest.raises(UserError, match="sqlalchemy is not installed"):
        check(compose_config("logger=mlflow"))


def test_a_password_does_not_go_to_config_yaml():
    with pytest.raises(UserError, match=r"tracking_uri: has a password.*set MLFLOW_TRACKING_USERNAME") as told:
        check(compose_config("logger=mlflow", "logger.mlflow.tracking_uri='http://me:secret@mlflow.example'"))
    assert "secret" not in str(told.value)


@pytest.mark.runs
def test_mlflows_own_variable_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    cfg = compose_config("logger=mlflow", f"output_dir={tmp_path}/out")
    (logger,) = chosen_loggers(Session(cfg, tmp_path / "out" / "a", command="evaluate"))
    logger.log_metrics({"pass@4": 0.5})
    assert (tmp_path / "elsewhere.db").is_file()
    assert not list(tmp_path.glob("out/*.db"))


def test_the_runs_of_a_table_are_a_group_in_mlflow_too():
    overrides = config.MlflowLoggerConf().of_table("rivals", "grpo", ["cpu"])
    conf = compose_config("logger=mlflow", *overrides).logger
    assert (conf.mlflow.group, conf.mlflow.job_type) == ("rivals", "grpo")
    assert config.TensorBoardLoggerConf().of_table("rivals", "grpo", ["cpu"]) == []


def test_tags_of_a_table_are_read_as_they_were():
    tags = ["it's", "a\\", "a\\'b", "C:\\data", "'", "a, b"]
    overrides = config.WandbLoggerConf().of_table("rivals", "grpo", tags)
    assert compose_config("logger=wandb", *overrides).logger.wandb.tags == tags


def test_a_logger_is_no_part_of_the_identity_and_an_older_config_has_no_target():
    plain = compose_config()
    for name in ("wandb", *READERS):
        assert config.identity(compose_config(f"logger={name}")) == config.identity(plain)
    assert config.WandbLoggerConf()._target_ == "expo.loggers.trackers.Wandb"
    assert config.LoggerConf()._target_ == ""


@pytest.mark.slow
def test_the_documented_logger_of_ones_own(tmp_path):
    page = blocks((ROOT / "docs" / "wandb.md").read_text())
    ((_, name, code),) = [block for block in page if block[0] == "python"]
    (tmp_path / name).write_text(code)
    (line,) = [line for kind, _, code in page if kind == "bash" for line in code.splitlines() if "EXPO_PLUGINS" in line]
    environment, command = line.split(" ", 1)
    plugin, value = environment.split("=")
    words = [sys.executable, "-m", *command.split(), *SMALL, "trainer.max_steps=1"]
    env = os.environ | {plugin: value, "PYTHONPATH": str(ROOT)}
    made = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (file,) = tmp_path.glob("all-runs/exp_grpo-s0-*/metrics.csv")
    assert "reward/mean" in file.read_text()

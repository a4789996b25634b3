"""`expo train`: one run, unless it is finished."""

import pickle
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from expo.config import Config
from expo.ground.files import Temporary, beside
from expo.ground.ranks import is_rank
from expo.runs.directory import Run
from expo.runs.hub import ask_hub
from expo.runs.processes import importing
from expo.training.on_devices import run_on_devices


def train(cfg: Config) -> int:
    """Make one run, unless it is finished; go on from its checkpoint where it has one. Returns the exit code."""
    run = Run.find(cfg)
    if run.finished:
        print(run.finished_line)
        return 0
    ask_hub([cfg])
    if cfg.trainer.devices > 1 and not is_rank():
        return train_on_devices(cfg, run)
    with importing():  # here, since torch and its friends take seconds
        from expo.jobs.fit import make_run

    return make_run(cfg)


def train_on_devices(cfg: Config, run: Run) -> int:
    """Make one run in as many processes as it has devices, and watch over them. Returns the exit code."""
    with run.alone() as locks, (temporary := Temporary("expo-devices-")) as name:
        if (finished_run := Run.find(cfg)).finished:  # by the process that we have waited for
            print(finished_run.finished_line)
            return 0
        folder = Path(name)
        (folder / "config").write_bytes(pickle.dumps(cfg))
        command = [sys.executable, "-m", "expo.jobs.device", str(folder / "config")]
        held = [lock.fileno() for lock in (*locks, temporary.lock)]
        code = run_on_devices(command, cfg.trainer.devices, folder, held)
        if code and run.dir.is_dir():
            for log in folder.glob("device*.log"):
                # A full disk is what the first device has told of.
                with suppress(OSError), beside(run.dir / log.name) as partial:
                    shutil.copyfile(log, partial)
        return code

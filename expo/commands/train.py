"""`expo train`: one run, unless it is finished."""

from expo.config import Config
from expo.runs.directory import FINISHED, Run
from expo.runs.hub import ask_hub
from expo.runs.processes import importing


def train(cfg: Config) -> int:
    """Make one run. Returns the exit code. A finished run is not made again, an unfinished one goes on from its checkpoint."""
    run = Run.find(cfg)
    if run.finished:
        print(f"{run.dir} {FINISHED}")
        return 0
    ask_hub([cfg])
    with importing():  # here, since torch and its friends take seconds
        from expo.commands.fit import make_run

    return make_run(cfg)

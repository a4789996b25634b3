"""One of the processes of a run on several devices: `python -m expo.jobs.device CONFIG`, which `expo train` starts."""

import pickle
import sys
from pathlib import Path

from expo.cli import reporting
from expo.config import Config
from expo.config.compose import plugins
from expo.training.on_devices import end_with_parent


def main(path: str) -> int:
    """Run this device's part of a run. Args: path, of the pickled config."""
    end_with_parent()
    plugins()  # the config may be of their classes
    from expo.jobs.fit import make_run

    cfg: Config = pickle.loads(Path(path).read_bytes())
    return make_run(cfg)


if __name__ == "__main__":
    sys.exit(reporting(lambda: main(sys.argv[1])))

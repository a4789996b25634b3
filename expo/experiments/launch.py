"""Many runs through Hydra's own launchers: each in a process of its own, local (joblib), on Slurm or on Ray.

`python -m expo.experiments.launch JOBS.json [hydra/launcher=… hydra.launcher.n_jobs=…]`, where JOBS.json lists the
overrides of each run. Hydra's sweepers make products of choices; the arms of a table are no product.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from expo import cli, config


def launch(jobs: list[list[str]], logs: Path, hydra_overrides: list[str]) -> None:
    """Make all runs; one that fails says so in its summary and in `logs`, and the others go on."""
    config.register()
    logs.mkdir(parents=True, exist_ok=True)

    def task(composed: DictConfig) -> int:
        hydra = HydraConfig.get()
        with (logs / f"{hydra.job.num}.log").open("w") as log:
            command = [sys.executable, "-m", "expo", "train", *hydra.overrides.task]
            environment = cli.run_environment(hydra.launcher.get("n_jobs", 1))
            return cli.run_apart(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    with initialize_config_dir(str(cli.conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        cfg = hydra.compose_config("config", hydra_overrides, RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)
        launcher.launch(jobs, initial_job_idx=0)


def main(arguments: list[str]) -> None:
    path = Path(arguments[0])
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, cli.stop_runs)
    launch(json.loads(path.read_text()), path.parent / "logs", arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])

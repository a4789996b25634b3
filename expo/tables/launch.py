"""Many runs through Hydra's own launchers: each in a process of its own, local (joblib), on Slurm or on Ray.

`python -m expo.tables.launch JOBS.json [hydra/launcher=… hydra.launcher.n_jobs=…]`, where JOBS.json lists
`{"name", "command", "overrides", "devices"}` of each run. Hydra's sweepers make products of choices; the arms of a
table are no product.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from expo.config import conf_dir, register
from expo.ground.files import locked
from expo.runs.processes import run_environment, run_expo, stop_runs, visible_gpus

POLL_S = 2.0  # between two looks for free GPUs


def launch(jobs: list[dict[str, Any]], logs: Path, hydra_overrides: list[str]) -> None:
    """Make all runs; one that fails says so in its summary and in `logs`, and the others go on."""
    register()
    logs.mkdir(parents=True, exist_ok=True)

    def task(composed: DictConfig) -> int:
        hydra = HydraConfig.get()
        job = jobs[int(hydra.job.num)]
        arguments, log = [job["command"], *job["overrides"]], logs / f"{job['name']}.log"
        with own_gpus(visible_gpus, job["devices"]) as gpus:
            environment = run_environment(hydra.launcher.get("n_jobs", 1)) | gpus
            return run_expo(arguments, environment, log, warm=not gpus)

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        cfg = hydra.compose_config("config", hydra_overrides, RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(cfg))
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=cfg)
        launcher.launch([job["overrides"] for job in jobs], initial_job_idx=0)


@contextmanager
def own_gpus(
    visible: Callable[[], Sequence[str]],
    count: int,
    folder: Path | None = None,
    wait: Callable[[], object] = lambda: time.sleep(POLL_S),
) -> Iterator[dict[str, str]]:
    """Lock `count` GPUs for a run within the context, and give its environment; {} where the machine has too few.

    Waits until so many are free at the same time. Args: visible, tells the GPUs that may be used, by seconds of
    imports, which a run on the CPU does without; folder, where the machine's lock files are; wait, between two looks.
    """
    gpus = visible() if count else []
    if len(gpus) < count or not count:
        yield {}  # where there are too few, the run itself says so
        return
    while True:
        with ExitStack() as held:
            places = folder or Path(tempfile.gettempdir())
            locks = {gpu: places / f"expo-{os.getuid()}-gpu-{gpu.replace('/', '-')}.lock" for gpu in gpus}
            free = (gpu for gpu in gpus if held.enter_context(locked(locks[gpu])) is not None)
            if len(own := list(islice(free, count))) == count:
                yield {"CUDA_VISIBLE_DEVICES": ",".join(own)}
                return
        wait()


def main(arguments: list[str]) -> None:
    path = Path(arguments[0])
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, stop_runs)
    launch(json.loads(path.read_text()), path.parent / "logs", arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])

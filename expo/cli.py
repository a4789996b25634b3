"""The `expo` command: thin entry points, one per command."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

HELP = """\
expo: teach a language model problems that it cannot solve at all, by letting it explain the known answer (arXiv 2507.02834)

  expo train     algorithm=exp_grpo dataset=ladder_level5   one run; -m sweeps: expo train -m algorithm=grpo,exp_grpo seed=0,1,2
  expo evaluate  model=hf model.path=... dataset=math k=[1,4,64]   unbiased pass@k with intervals, per level
  expo pretrain                                             make the ladder base policy from nothing
  expo demo      [seeds=3]                                  GRPO, GRPO SFT-GT-CoT and ExP-GRPO on ladder level 5, with a report
  expo bench                                                time and memory of the parts of the demo's step

Every command but demo and bench takes Hydra overrides. `expo COMMAND --help` lists the config groups and their options,
`expo COMMAND --cfg job` shows the config and runs nothing. Exit codes: 0 done, 2 your mistake, 1 anything else.
"""
# command -> (module, function); the function takes the typed config.
COMMANDS = {
    "train": ("expo.train", "train"),
    "evaluate": ("expo.evaluation.command", "evaluate_command"),
    "pretrain": ("expo.pretrain", "pretrain"),
}
PROGRAMS = {"demo": ("expo.experiments.demo", "main"), "bench": ("expo.experiments.bench", "main")}


def conf_dir() -> Path:
    """The Hydra config folder: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


class RunFailed(Exception):
    """A run of a sweep ended with a non-zero exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def main() -> None:
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h"):
        print(HELP, end="")
        return
    if command in PROGRAMS:
        sys.exit(_load(*PROGRAMS[command])(arguments))
    if command not in COMMANDS:
        known = ", ".join([*COMMANDS, *PROGRAMS])
        sys.exit(_complain(f"command={command}: no such command; use one of {known}"))
    sys.exit(_run_hydra(command, arguments))


def _load(module: str, function: str) -> Callable:
    return getattr(importlib.import_module(module), function)


def _complain(line: str) -> int:
    print(f"expo: {' '.join(line.split())}", file=sys.stderr)
    return 2


def _run_hydra(command: str, arguments: list[str]) -> int:
    # Without this, Hydra prints an exception its own way and exits with 1; with it, main sees the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, InstantiationException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from expo import config
    from expo.checks import check

    config.register()
    code = 0

    def task(composed: DictConfig) -> None:
        nonlocal code
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _run_process(command, list(HydraConfig.get().overrides.task), HydraConfig.get().launcher.get("n_jobs", 1))
            return
        try:
            cfg = config.typed(composed)
            check(cfg)
            code = _load(*COMMANDS[command])(cfg) or 0
        except config.UserError as error:
            code = _complain(str(error))
        except InstantiationException as error:
            if not isinstance(error.__cause__, config.UserError):
                raise
            code = _complain(str(error.__cause__))

    sys.argv = [f"expo {command}", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except RunFailed as error:
        return error.code
    except KeyboardInterrupt:
        return 130
    except (HydraException, OmegaConfBaseException) as error:
        return _complain(_explain(error))
    return code


def _run_process(command: str, overrides: list[str], jobs: int) -> None:
    """One run of a sweep in a process of its own, so that its memory is given back when it ends."""
    import subprocess

    threads = max(1, (os.cpu_count() or 1) // (jobs if jobs > 0 else os.cpu_count() or 1))
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"EXPO_SWEEP": "1"}
    done = subprocess.run([sys.executable, "-m", "expo", command, *overrides], env=environment, check=False)
    if done.returncode:
        raise RunFailed(done.returncode)


def _explain(error: Exception) -> str:
    """Hydra's and OmegaConf's messages in one line: key, value, remedy."""
    texts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    noise = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "To append to your config",
        "Config search path",
        "provider=",
    )
    told = list(dict.fromkeys(line.rstrip(".:;") for line in lines if not line.startswith(noise)))
    groups = any("Could not find" in line or ("Could not override" in line and "." not in line) for line in told)
    remedy = (
        "`expo train --help` lists the groups and their options" if groups else "`expo train --cfg job` shows every key"
    )
    return f"{'; '.join(told)}; remedy: {remedy}"

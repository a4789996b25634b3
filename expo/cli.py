"""The `expo` command: thin entry points, one per command."""

import dataclasses
import difflib
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

HELP = """\
expo: teach a language model problems that it cannot solve at all, by letting it explain the known answer (arXiv 2507.02834)

  expo train     algorithm=exp_grpo dataset=ladder_level5   one run; -m sweeps: expo train -m algorithm=grpo,exp_grpo seed=0,1,2
  expo evaluate  model=hf model.path=... dataset=math k=[1,4,64]   unbiased pass@k with intervals, per level
  expo diagnose  model=... dataset=...                      likelihood and answer lift of own, expert and self-explained solutions
  expo pretrain                                             make the ladder base policy from nothing
  expo demo      [seeds=3]                                  GRPO, GRPO SFT-GT-CoT and ExP-GRPO on ladder level 5, with a report
  expo table     NAME [scale=cpu] [seeds=N] [dry_run=true]  make what is missing of a table of experiments/, and render it
  expo report    RUN_DIRECTORY... | TABLE                   one self-contained HTML page: table, curves, samples, cost
  expo doctor                                               what is installed, what would work, and how to mend the rest
  expo bench                                                time and memory of the parts of the demo's step

Every command but demo, table, report, doctor and bench takes Hydra overrides alone. `expo COMMAND --help` lists the config groups and their options,
`expo COMMAND --cfg job` shows the config and runs nothing. Exit codes: 0 done, 2 your mistake, 130/143 stopped by Ctrl-C/SIGTERM, 1 anything else.
"""
# command -> (module, function); the function takes the typed config.
COMMANDS = {
    "train": ("expo.train", "train"),
    "evaluate": ("expo.evaluation.command", "evaluate_command"),
    "pretrain": ("expo.pretrain", "pretrain"),
    "diagnose": ("expo.evaluation.diagnose", "diagnose"),
}
PROGRAMS = {
    "demo": ("expo.experiments.demo", "main"),
    "table": ("expo.experiments.table", "main"),
    "report": ("expo.report.command", "main"),
    "doctor": ("expo.doctor", "main"),
    "bench": ("expo.experiments.bench", "main"),
}


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
        sys.exit(_reporting(lambda: _load(*PROGRAMS[command])(arguments)))
    if command not in COMMANDS:
        known = ", ".join([*COMMANDS, *PROGRAMS])
        sys.exit(_complain(f"command={command}: no such command; use one of {known}"))
    if {"--help", "-h"} & set(arguments):
        print(command_help(command))
        return
    sys.exit(_reporting(lambda: _run_hydra(command, arguments)))


def command_help(command: str) -> str:
    """The groups and options of `conf/`, as a user picks them."""
    folders = sorted(folder for folder in conf_dir().iterdir() if any(folder.glob("*.yaml")))
    groups = "\n".join(f"  {f.name:<10} {', '.join(sorted(o.stem for o in f.glob('*.yaml')))}" for f in folders)
    return (
        f"expo {command} [GROUP=OPTION...] [KEY=VALUE...]    -m sweeps over comma-separated values\n\n"
        f"groups and their options (conf/):\n{groups}\n\n"
        f"expo {command} --cfg job shows every key and its value; expo/schema.py and expo/schema_learning.py say what each one means."
    )


def _load(module: str, function: str) -> Callable:
    return getattr(importlib.import_module(module), function)


def _complain(line: str) -> int:
    print(f"expo: {' '.join(line.split())}", file=sys.stderr)
    return 2


def _reporting(run: Callable[[], int]) -> int:
    """Run and return the exit code; the user's mistakes become one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from expo.config import EngineError, UserError

    # Without this, Hydra prints an exception its own way and exits with 1; with it, we see the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        return run()
    except RunFailed as error:
        return error.code
    except KeyboardInterrupt:
        return 130
    except EngineError as error:
        print(f"expo: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (UserError, HydraException, OmegaConfBaseException) as error:
        # What a `_target_` raises, Hydra wraps.
        mistake = error if isinstance(error, UserError) else error.__cause__
        return _complain(str(mistake) if isinstance(mistake, UserError) else _explain(error))


def _run_hydra(command: str, arguments: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from expo import config
    from expo.checks import check

    config.register()
    outcome: list[int | Exception] = []

    def task(composed: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _run_process(command, list(HydraConfig.get().overrides.task), HydraConfig.get().launcher.get("n_jobs", 1))
            return
        try:
            cfg = config.typed(composed)
            check(cfg)
            outcome.append(_load(*COMMANDS[command])(cfg) or 0)
        except Exception as error:  # carried past Hydra, which would print a line of its own
            outcome.append(error)

    sys.argv = [f"expo {command}", *arguments]
    if {"-m", "--multirun"} & set(arguments):
        signal.signal(signal.SIGTERM, stop_runs)
        signal.signal(signal.SIGINT, stop_runs)
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    for result in outcome:
        if isinstance(result, Exception):
            raise result
        return result
    return 0  # a sweep, or nothing but --cfg or --help


def _run_process(command: str, overrides: list[str], jobs: int) -> None:
    """One run of a sweep in a process of its own, so that its memory is given back when it ends."""
    code = run_apart([sys.executable, "-m", "expo", command, *overrides], env=run_environment(jobs))
    if code:
        raise RunFailed(code)


def run_apart(command_line: list[str], **options: Any) -> int:
    """Run a process that a Ctrl-C in the terminal does not reach: who launched it hands it a signal and waits."""
    import multiprocessing
    import subprocess

    if multiprocessing.current_process().name != "MainProcess":  # in a launcher's worker, which has only to wait
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command_line, check=False, start_new_session=True, **options).returncode


def run_environment(jobs: int) -> dict[str, str]:
    """The environment of one of `jobs` runs at a time: its share of the cores, unless the user has set the threads."""
    # A Slurm job has only some of its node's cores. macOS cannot say which.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // (jobs if jobs > 0 else cores))
    return {"OMP_NUM_THREADS": str(threads)} | os.environ | {"EXPO_SWEEP": "1"}


def stop_runs(number: int, frame: FrameType | None) -> None:
    """SIGTERM or Ctrl-C to a sweep: start no further run, hand the signal to those under way, and wait for their checkpoints."""
    import psutil

    children = psutil.Process().children(recursive=True)
    runs = [child for child in children if "expo" in child.cmdline()]
    launchers = [child for child in children if any("loky" in word for word in child.cmdline())]
    for launcher in launchers:
        launcher.suspend()  # killed now, joblib would kill the runs of all of them
    for run in runs:
        run.send_signal(number)
    while any(_alive(run) for run in runs):
        time.sleep(0.1)
    for launcher in launchers:
        launcher.kill()
    os._exit(128 + number)


def _alive(process: "psutil.Process") -> bool:
    """Whether it still works: one that has ended stays a zombie as long as its suspended parent does not fetch it."""
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _did_you_mean(told: str) -> str | None:
    """The nearest key of the config class that has no such key."""
    from expo import schema, schema_learning

    if (found := re.search(r"Key '(\w+)' not in '(\w+)'", told)) is None:
        return None
    owner = getattr(schema, found[2], None) or getattr(schema_learning, found[2], None)
    names = [field.name for field in dataclasses.fields(owner)] if owner else []
    return next(iter(difflib.get_close_matches(found[1], names, 1)), None)


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
    remedy = "--help lists the groups and their options" if groups else "--cfg job shows every key"
    told_all = "; ".join(told)
    if close := _did_you_mean(told_all):
        remedy = f"did you mean {close}? {remedy}"
    for schema, group in (
        ("'NoPositivesConf'", "positives=self_explanation or positives=expert"),
        ("'LoggerConf'", "logger=wandb"),
    ):
        if schema in told_all:  # a key of an option that has none
            remedy = f"choose {group}, or leave the key out"
    return f"{told_all}; remedy: {remedy}"

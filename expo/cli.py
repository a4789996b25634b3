"""The `expo` command: hands over to `expo.commands`, and turns errors into exit codes."""

import difflib
import hashlib
import importlib
import io
import locale
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import expo

HELP = """\
expo: teach a language model problems that it cannot solve at all, by letting it explain the known answer (arXiv 2507.02834)

  expo train     algorithm=exp_grpo dataset=ladder_level5   one run; -m sweeps: expo train -m algorithm=grpo,exp_grpo seed=0,1,2
  expo evaluate  model=hf model.path=... dataset=math k=[1,4,64]   unbiased pass@k with intervals, per level
  expo evaluate  run=outputs/.../exp_grpo-s0-...            the same of a finished run, with its own data and settings; also diagnose
  expo diagnose  model=... dataset=...                      likelihood and answer lift of own, expert and self-explained solutions
  expo pretrain                                             make the ladder base policy from nothing
  expo demo      [seeds=3]                                  GRPO, GRPO SFT-GT-CoT and ExP-GRPO on ladder level 5, with a report
  expo init      FOLDER data=mine.jsonl                     a study of your own: a plan, its data checked, and what to run
  expo verify    GOLD ANSWER...                             how an answer is compared with the right one, and what is said of it
  expo table     NAME [scale=cpu] [seeds=N] [dry_run=true]  make what is missing of a table of experiments/, and render it
  expo report    RUN_DIRECTORY... | TABLE [output_dir=...]  one self-contained HTML page: table, curves, problems over training, cost
  expo compare   RUN RUN | TABLE:ARM TABLE:ARM              two arms on the same problems: differences, problems gained and lost
  expo export    RUN [output=FOLDER]                        its model as a plain Hugging Face folder, LoRA merged
  expo runs      [FILTER...] | show | diff | rm | gc        every run: its state, result, and in what it differs from another
  expo samples   RUN [step=N] [verdict=incorrect] [n=5]     completions of a run as they were written
  expo wandb     workspace | report | sweep | upload | sync W&B: a saved view, a report, a sweep file of a table; send runs
  expo doctor                                               what is installed, what would work, and how to mend the rest
  expo explain   algorithm=exp_grpo                         write a run's explanations ahead, for all runs that share them
  expo plan      model=... plan.device=h100                 what a run would take: memory, seconds, disk, on 1 to 64 devices

Every command but demo, init, verify, table, report, compare, export, runs, samples, wandb and doctor takes Hydra overrides alone. `expo COMMAND --help` (or `expo help COMMAND`) lists the config groups and
their options, `expo COMMAND --help GROUP` explains every key of a group, `expo COMMAND --cfg job` shows the config and runs nothing.
`expo --version`; `eval "$(expo completion)"` completes commands, tables, groups, options and keys in bash.
Exit codes: 0 done, 2 your mistake, 130/143 stopped by Ctrl-C/SIGTERM, 141 nobody reads the output, 1 anything else.
"""  # noqa: E501
# command -> (module, function); the function takes the typed config.
COMMANDS = {
    "train": ("expo.commands.train", "train"),
    "evaluate": ("expo.commands.evaluate", "evaluate_command"),
    "pretrain": ("expo.jobs.pretrain", "pretrain"),
    "diagnose": ("expo.commands.diagnose", "diagnose"),
    "explain": ("expo.jobs.explain", "explain"),
    "plan": ("expo.commands.plan", "plan"),
}
# command -> (module, function); the function takes the arguments.
PROGRAMS = {
    name: (f"expo.commands.{name}", "main")
    for name in ("demo", "init", "verify", "table", "report", "compare", "export", "runs", "samples", "wandb", "doctor")
}
DO_WITHOUT = ("demo", "runs", "doctor")  # arguments
HELP_FLAGS = ("--help", "-h")


class RunFailed(Exception):
    """A run of a sweep ended with a non-zero exit code, which is its argument."""


def main() -> None:
    """Run the command that the process was started with, and exit with its code."""
    # Every Python that this one starts would look for modules in the working folder first, and run a file there, such
    # as numbers.py, for the module of that name.
    os.environ["PYTHONSAFEPATH"] = "1"
    if locale.getencoding().lower() not in ("utf-8", "utf8") and not sys.flags.utf8_mode:  # files are UTF-8 everywhere
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # The shell leaves the `~/` that an option's value begins with.
    home = os.path.expanduser("~")
    given = (re.sub(r"^([^=]+=)~(?=/)", lambda match: match[1] + home, argument) for argument in sys.argv[1:])
    command, *arguments = [*given] or ["--help"]
    if command == "help":
        command, arguments = (arguments or ["--help"])[0], ["--help", *arguments[1:]]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or a log that takes fewer characters is no reason to end
            stream.reconfigure(errors="backslashreplace")
    if command == "completion":
        sys.exit(reporting(lambda: print(_completion(), end="") or 0))
    if command == "--version":
        sys.exit(reporting(lambda: print("expo", expo.__version__) or 0))
    if command in HELP_FLAGS:
        sys.exit(reporting(lambda: print(HELP, end="") or 0))
    if command in PROGRAMS:
        sys.exit(reporting(lambda: _run_program(command, arguments)))
    if command not in COMMANDS:
        known = [*COMMANDS, *PROGRAMS]
        meant = difflib.get_close_matches(command, known, 1)
        remedy = f"did you mean {meant[0]}?" if meant else f"use one of {', '.join(known)}"
        sys.exit(_complain(f"command={command}: no such command; {remedy}"))
    if set(HELP_FLAGS) & set(arguments):
        sys.exit(reporting(lambda: _help(command, arguments)))
    sys.exit(reporting(lambda: _run_hydra(command, arguments)))


def _completion() -> str:
    from expo.tables.plan import known_tables

    return f"""\
_expo() {{
    local words=($COMP_LINE) choices="{" ".join([*COMMANDS, *PROGRAMS, "help"])}"
    if [[ "$COMP_CWORD" -gt 1 && " table report " == *" ${{words[1]}} "* ]]; then
        choices="{" ".join(known_tables())}"
    elif [[ "$COMP_CWORD" -gt 1 && ${{words[1]}} != help ]]; then
        [[ " {" ".join(COMMANDS)} " == *" ${{words[1]}} "* ]] || return
        choices=$(COMP_LINE="expo ${{COMP_LINE#* * }}" "${{words[0]}}" "${{words[1]}}" -sc query=bash 2>/dev/null)
    fi
    COMPREPLY=($(compgen -W "$choices" -- "${{COMP_LINE##* }}"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _expo expo
"""


def _help(command: str, arguments: list[str]) -> int:
    from expo.config.reference import help_of_command, help_of_group

    first = min(arguments.index(flag) for flag in HELP_FLAGS if flag in arguments)
    groups = [a for a in arguments[first + 1 :] if "=" not in a and not a.startswith("-")]
    print("\n\n".join(help_of_group(group) for group in groups) if groups else help_of_command(command))
    return 0


def _run_program(command: str, arguments: list[str]) -> int:
    """Run a program; print its usage where that is asked for, or nothing is given to one that needs something."""
    module, function = PROGRAMS[command]
    if set(HELP_FLAGS) & set(arguments) or not (arguments or command in DO_WITHOUT):
        print(importlib.import_module(module).USAGE)
        return 0
    code: int = getattr(importlib.import_module(module), function)(arguments)
    return code


def _complain(line: str, code: int = 2) -> int:
    print(f"expo: {' '.join(line.split())}", file=sys.stderr)
    return code


def reporting(run: Callable[[], int]) -> int:
    """Run and return the exit code; the user's mistakes become one line."""
    # Without this, Hydra prints an exception its own way and exits with 1; with it, we see the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home folder that is not ours to write is no news
    try:  # the imports, too: they are most of what a short command takes
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from expo.config.errors import DISK, EngineError, UserError, first_line
        from expo.config.wording import explain

        code = run()
        sys.stdout.flush()
        return code
    except RunFailed as error:
        return int(error.args[0])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 141
    except EngineError as error:
        return _complain(str(error), 1)
    except UserError as error:
        return _complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        # What is raised while Hydra composes, Hydra wraps.
        mistake = error.__cause__
        return _complain(str(mistake) if isinstance(mistake, UserError) else explain(error))
    except PermissionError as error:
        if error.filename is None:
            raise
        remedy = "this user may not do that there; get the right to, or give another place (output_dir=…, output=…)"
        return _complain(f"{error.filename}: {error.strerror}: {remedy}")
    except MemoryError as error:
        return _complain(f"out of memory ({first_line(error)}); give it more (ulimit -v), or take fewer rows", 1)
    except OSError as error:
        if error.errno not in DISK:
            raise
        if not error.filename:  # it is standard output's disk, as of /dev/full
            _give_up_output()
        return _complain(f"{error}; {DISK[error.errno]}, and the same command goes on", 1)


def _reader_is_gone() -> bool:
    """Return whether whoever read our output has had enough, as `| head` does. Then nothing more is written there."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # what is wrong with it is told unasked
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        _give_up_output()
    return gone


def _give_up_output() -> None:
    """Print nothing more: what is left would be tried again at the end, and end in a stack trace."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_hydra(command: str, arguments: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from expo.config.arguments import check_launcher, from_files
    from expo.config.compose import compose_config, conf_dir, for_command, named, register, typed
    from expo.config.from_run import run_of
    from expo.config.identity import runtime_keys
    from expo.config.naming import what_differs
    from expo.runs.processes import stop_runs

    register()
    arguments = from_files(arguments)
    if "-m" in arguments:  # which Hydra's own parser wants before the overrides
        arguments = ["-m", *(a for a in arguments if a != "-m")]
    _check_options(command, arguments)
    if run_of(arguments) is not None:
        return _run_from(command, arguments)
    if not any(a.startswith("-") or "hydra" in a for a in arguments):  # then Hydra has nothing to do but to compose
        return _run_command(command, for_command(compose_config(arguments), command, arguments))
    outcome: list[int | Exception] = []

    def task(composed: DictConfig) -> float | None:
        hydra_conf = HydraConfig.get()
        given = hydra_conf.overrides.task
        if hydra_conf.mode == RunMode.MULTIRUN:
            folders = [s.path for s in hydra_conf.runtime.config_sources if s.provider == "command-line"]
            folder = [f"--config-dir={path}" for path in folders]
            if not any(o.startswith("differs=") for o in given):
                given = [*given, f"differs='{what_differs(given, runtime_keys(), shared=arguments)}'"]
            if not any(".group=" in o for o in given):  # the same command's runs are one sweep
                mark = hashlib.sha256(" ".join(sorted(arguments)).encode()).hexdigest()[:8]
                given = [*given, *typed(composed).logger.of_table(f"sweep-{mark}", "", [])[:1]]
            _run_process(command, [*folder, *given], hydra_conf.launcher.get("n_jobs", 1))
            return _score(for_command(named(typed(composed), given), command, given, of_table=True), command)
        try:
            cfg = for_command(named(typed(composed), given), command, given)
            outcome.append(_run_command(command, cfg))
        except Exception as error:  # carried past Hydra, which would print a line of its own
            outcome.append(error)
        return None

    sys.argv = [f"expo {command}", *arguments]
    if {"-m", "--multirun"} & set(arguments):
        check_launcher(arguments)
        signal.signal(signal.SIGTERM, stop_runs)
        signal.signal(signal.SIGINT, stop_runs)
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    for result in outcome:
        if isinstance(result, Exception):
            raise result
        return result
    return 0  # a sweep, or nothing but --cfg or --help


def _score(cfg: Any, command: str) -> float | None:
    """Return the objective of Hydra's sweepers: pass@k of the last evaluation, of the largest k, on the validation
    problems where there are any; None where a command has none."""
    from expo.runs.directory import Run

    if command not in ("train", "evaluate"):
        return None
    cfg = replace(cfg, fresh=False)  # it is made by now
    metrics, name = Run.find(cfg, command).metrics, f"pass@{max(cfg.k)}"
    return metrics.get(f"validation/{name}", metrics.get(name))


def _check_options(command: str, arguments: list[str]) -> None:
    """Raise UserError for an option that Hydra does not have, for which it would print its whole usage."""
    from hydra._internal.utils import get_args_parser

    from expo.config.errors import UserError

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{command}: {message}; expo {command} --help says what it takes")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(arguments)


def _run_from(command: str, arguments: list[str]) -> int:
    """Run a command on the settings of a run directory, `run=…`. With -m, once for each combination of values."""
    from omegaconf import OmegaConf

    from expo.config.compose import check
    from expo.config.errors import UserError
    from expo.config.from_run import combinations, config_from_run
    from expo.runs.processes import stop_runs

    if command == "pretrain":
        raise UserError("run: expo pretrain makes a policy from nothing; leave run= out")
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    flags = [a for a in arguments if a not in overrides]
    if {"-m", "--multirun"} & set(flags):
        signal.signal(signal.SIGTERM, stop_runs)
        signal.signal(signal.SIGINT, stop_runs)
        for line in combinations(overrides):
            _run_process(command, line, 1)
        return 0
    if flags not in ([], ["--cfg", "job"]):
        raise UserError(f"{flags[0]}: not taken with run=; use -m, or --cfg job to see the config")
    cfg = config_from_run(command, overrides)
    if not flags:
        return _run_command(command, cfg)
    check(cfg)
    print(OmegaConf.to_yaml(OmegaConf.structured(cfg)), end="")
    return 0


def _run_command(command: str, cfg: Any) -> int:
    from expo.config.compose import check, check_anywhere

    (check_anywhere if command == "plan" else check)(cfg)
    module, function = COMMANDS[command]
    code: int = getattr(importlib.import_module(module), function)(cfg) or 0
    return code


def _run_process(command: str, arguments: list[str], jobs: int) -> None:
    """Make one run of a sweep in a new process, which frees its memory at the end."""
    from expo.runs.processes import run_environment, run_expo, visible_gpus

    if code := run_expo([command, *arguments], run_environment(jobs), warm=not visible_gpus()):
        raise RunFailed(code)

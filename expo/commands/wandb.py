"""`expo wandb`: what people click together in W&B by hand, and offline runs sent in order."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from expo.config import UserError, make_folder, take_options
from expo.config.key import check_values
from expo.runs.health import marks_of
from expo.runs.listing import RunFolder, run_folder
from expo.runs.reading import read_lines, read_summary
from expo.tables.plan import known_tables, plan_file, table_name

USAGE = """\
usage: expo wandb workspace [TABLE | RUN_DIRECTORY...] [OPTIONS]   a saved view: the panels of docs/wandb.md, grouped by arm
       expo wandb report    TABLE | RUN_DIRECTORY... [OPTIONS]     a W&B report: the table, and the same panels
       expo wandb sweep     TABLE [scale=cpu] [seeds=N] [HYDRA OVERRIDES...]   a file for `wandb sweep`, whose agents make the table's runs
       expo wandb run       TABLE arm=ARM seed=N | run=ARM-sN      one run of a table, as such an agent makes it
       expo wandb upload    RUN_DIRECTORY... [project=expo] [entity=…] [group=…] [mode=online]   send runs that are over, whatever logger they had; mode=offline: into a file for expo wandb sync
       expo wandb sync      [FOLDER]                               send offline runs that are not sent yet, oldest first
OPTIONS of workspace and report: scale=cpu project=… entity=… output=FILE mode=offline. With mode=offline, the specification
goes to a file; with mode=online, to W&B."""  # noqa: E501


def main(arguments: list[str]) -> int:
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        raise UserError(f"wandb {name}: no such command; use one of {', '.join(SUBCOMMANDS)}")
    return SUBCOMMANDS[name](rest)


def workspace(arguments: Sequence[str]) -> int:
    """Make a saved view of the runs of a table, of some runs, or of all runs of a project."""
    from expo.report.wandb_views import make_workspace

    options, subjects = _parse(arguments)
    shown = _shown(options, subjects)
    return _deliver("workspace", make_workspace(shown), options, shown.title)


def report(arguments: Sequence[str]) -> int:
    from expo.report.reading import read_runs, read_table, table_request
    from expo.report.wandb_views import make_report

    options, subjects = _parse(arguments)
    if not subjects:
        raise UserError("wandb report: nothing to report on; give a table that has results, or run directories")
    scale = [f"scale={options['scale']}"] if options["scale"] != "cpu" else []
    request = table_request(subjects[0], scale)
    page, _ = read_runs([Path(s) for s in subjects]) if request is None else read_table(request)
    shown = _shown(options, subjects)
    return _deliver("report", make_report(shown, page), options, shown.title)


def _parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    from expo.report.wandb_views import check_library, default_entity

    options, subjects = take_options(arguments, scale="cpu", project="", entity="", output="", mode="offline")
    if unknown := [s for s in subjects if "=" in s]:
        raise UserError(f"{unknown[0]}: no such option; use scale=…, project=…, entity=…, output=… or mode=…")
    if options["mode"] not in ("offline", "online"):
        raise UserError(f"mode={options['mode']}: neither offline nor online; use mode=offline")
    check_library()
    if options["mode"] == "online" and not options["entity"]:
        options["entity"] = default_entity()
    return options, subjects


def _shown(options: dict[str, str], subjects: Sequence[str]) -> Any:
    """Return the selection of a project's runs. Raises UserError for what is neither a table nor a run directory."""
    from expo.report.wandb_views import Selection

    project, entity = options["project"] or "expo", options["entity"]
    if not subjects:
        return Selection(project, project, entity)
    if plan_file(subjects[0]).is_file() and not Path(subjects[0], "config.yaml").is_file():
        if len(subjects) > 1:
            raise UserError(f"{subjects[1]}: one table per view; leave it out, or give run directories only")
        return Selection.of_table(table_name(subjects[0]), options["scale"], project, entity)
    folders = [Path(s).resolve() for s in subjects]
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            why = "no run directory and no table"
            raise UserError(f"{folder}: {why}; give one that has a config.yaml, or one of {', '.join(known_tables())}")
    ids = [_wandb_id(folder) for folder in folders]
    projects = [RunFolder(folder, {}).config.get("logger.wandb.project") for folder in folders]
    used, *others = dict.fromkeys(filter(None, projects)) or [None]
    if others and not options["project"]:
        raise UserError(f"project: the runs are of {used} and {others[0]}; give those of one, or project=NAME")
    more = f"-and-{len(ids) - 1}-more" if len(ids) > 1 else ""
    return Selection.of_runs(ids[0] + more, ids, options["project"] or used or project, entity)


def _wandb_id(folder: Path) -> str:
    """Return the id of a run directory's W&B run: `id` of its summary; before 0.3 the directory's name, after
    `evaluate-` or `diagnose-` for those commands."""
    command = f"{folder.parent.name}-" if folder.parent.name in ("evaluate", "diagnose") else ""
    return str(read_summary(folder).get("id") or command + folder.name)


def _deliver(kind: str, view: Any, options: dict[str, str], title: str) -> int:
    from expo.report.wandb_views import save, specification

    if options["mode"] == "online":
        print(f"wandb {kind}: {save(view)}")
        return 0
    path = Path(options["output"] or f"outputs/wandb/{title}-{kind}.json")
    make_folder(path.parent, "output")
    path.write_text(json.dumps(specification(view), indent=1) + "\n")
    print(f"wandb {kind}: {path}; mode=online saves it in W&B")
    return 0


def upload(arguments: Sequence[str]) -> int:
    """Send runs that have ended, whatever their logger: config, scalars of all steps, and summary, under the run's id.
    What W&B has already is not sent again."""
    from expo.config import WandbConf, WandbLoggerConf, restore
    from expo.loggers.trackers import Wandb
    from expo.loggers.tracking import Session, log_summary
    from expo.runs.directory import Run
    from expo.training.shorter import replay

    class Over(Session):
        @property
        def id(self) -> str:  # as it was: what is behind a path may be gone by now
            return _wandb_id(self.directory)

        @property
        def config(self) -> dict[str, Any]:  # of the commit that made it
            return super().config | {"git": read_summary(self.directory).get("git")}

    options, subjects = take_options(arguments, project="expo", entity="", group="", mode="online")
    if not subjects:
        raise UserError("wandb upload: no run given; give run directories, as expo runs lists them")
    for folder in map(run_folder, subjects):
        if folder.in_use:
            raise UserError(f"{folder.dir}: a process works on it; wait for it, or stop it first")
        cfg = restore(folder.dir)
        given = {key: value for key, value in options.items() if value}
        cfg.logger = WandbLoggerConf(wandb=WandbConf(**given))  # type: ignore[arg-type]
        check_values(cfg.logger)
        last = max((line["step"] for line in read_lines(folder.dir)), default=0)
        logger = Wandb(cfg.logger, Over(cfg, folder.dir.resolve(), last or 1, folder.command))
        if folder.command == "train":
            replay(Run(cfg, folder.dir, writes=False), [logger])
        elif logger.sent_steps < 0:
            logger.log_metrics(folder.summary.get("metrics", {}))
        log_summary([logger], folder.summary)
        waits = f"without step {logger.waiting}, whose evaluation was stopped: go on with the run, and upload it again"
        told = [waits] if logger.waiting is not None else []
        told += marks_of(folder.summary, read_lines(folder.dir)) if folder.command == "train" else []
        logger.close()
        print(", ".join([f"{folder.dir}: {_wandb_id(folder.dir)} in {options['project']} ({options['mode']})", *told]))
    return 0


def sweep(arguments: Sequence[str]) -> int:
    from expo.tables.wandb_sweep import sweep_file

    options, rest = take_options(arguments, project="expo", entity="", output="")
    request = _request(rest)
    content = sweep_file(request, rest, options["project"], options["entity"])
    path = Path(options["output"] or f"outputs/wandb/{content['name']}-sweep.yaml")
    make_folder(path.parent, "output")
    path.write_text(
        f"# {' '.join(['expo wandb sweep', *arguments])}\n# Then: wandb sweep {path}, and the `wandb agent …` that "
        "it says.\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    )
    print(f"wandb sweep: {path}; next: wandb sweep {path}")
    return 0


def run(arguments: Sequence[str]) -> int:
    """Replace this process by `expo train`, or another command, with the overrides of one run of a table."""
    from expo.tables.sweep import prepare, to_prepare
    from expo.tables.wandb_sweep import find_run

    named = {"arm": "", "seed": "", "run": ""}
    mine = [a for a in arguments if "=" in a and a.partition("=")[0] in named]
    named |= dict(a.split("=", 1) for a in mine)
    request = _request([a for a in arguments if a not in mine])
    planned = find_run(request.runs(), **named)
    if code := prepare(to_prepare(request.plan, [planned], [planned])):
        return code
    return os.execv(sys.executable, [sys.executable, "-m", "expo", planned.command, *planned.line])


def _request(arguments: Sequence[str]) -> Any:
    from expo.tables.request import Request

    if not arguments or "=" in arguments[0]:
        raise UserError(f"expo wandb: no table given; use one of {', '.join(known_tables())}")
    return Request.parse(arguments)


def sync(arguments: Sequence[str]) -> int:
    from expo.loggers.sync import sync as send

    if len(arguments) > 1:
        raise UserError(f"{arguments[1]}: one folder at a time; give the one that all runs are under")
    return send(Path(arguments[0] if arguments else "outputs"))


SUBCOMMANDS = {action.__name__: action for action in (workspace, report, sweep, run, sync, upload)}

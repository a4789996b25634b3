"""`expo table`: make what is missing of a table, aggregate, and render it beside the paper's numbers."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from expo.config import UserError, WandbLoggerConf
from expo.config.arguments import check_launcher
from expo.config.key import keep, rules_of
from expo.config.own_code import changed_code
from expo.runs.hub import ask_hub
from expo.runs.reading import read_summary
from expo.tables.plan import table_name
from expo.tables.planned import PlannedRun
from expo.tables.preview import preview
from expo.tables.render import cells_of
from expo.tables.request import Request, missing, read_record
from expo.tables.sweep import distinct, make, prepare, to_prepare, why

USAGE = (
    "usage: expo table NAME|PLAN.YAML [scale=cpu] [seeds=N] [jobs=N] [dry_run=true] [kept=true] [output_dir=outputs] "
    "[results=FOLDER] [hydra/launcher=…] [HYDRA OVERRIDES...]; runs that are finished are not made again; kept=true "
    "renders those that are kept beside the table, or in results=FOLDER"
)


def main(arguments: list[str]) -> int:
    """Make what is missing of a table, and render it into experiments/NAME/results/SCALE. Returns the exit code."""
    request = Request.parse(arguments)
    runs = request.runs()
    if request.plan.figures:
        from expo.tables.figures import drawers_of  # a second of imports

        drawers_of(request.plan)
    if request.dry_run:
        preview(request, runs)
        return 0
    command = shlex.join(["expo", "table", *arguments])
    return render_kept(request, runs, command) if request.from_kept else run_table(request, runs, command)


def render_kept(request: Request, runs: Sequence[PlannedRun], command: str) -> int:
    """Render a table again from the runs that are kept beside it. Returns the exit code."""
    from expo.tables.finish import finish  # seconds of imports
    from expo.tables.kept import kept_folder, unpack

    name, plan, output_dir = request.name, request.plan, runs[0].cfg.output_dir
    all_runs = replace(request, name=plan.extends or name).runs()
    folder = request.folder(output_dir)
    own = (folder / "runs.json").is_file()  # of a changed table, or one that was made elsewhere
    kept, table = (folder, folder) if own else (kept_folder(name, plan, request.scale_name), request.kept(output_dir))
    with tempfile.TemporaryDirectory() as scratch:
        kept_runs = unpack(kept, runs, all_runs, plan.prepare, Path(scratch))
        finish(name, plan, kept_runs, folder, command, read_record(table))
    return 0


def _runs_in(folder: Path) -> int:
    """Return of how many runs the table in a folder is; 0 without one, or with a damaged one."""
    try:
        return sum(arm["runs"] for arm in read_record(folder)["arms"].values())
    except UserError:
        return 0


def run_table(request: Request, runs: Sequence[PlannedRun], command: str) -> int:
    """Make the models and the runs that are missing, and render the table. Returns the exit code."""
    check_launcher(request.hydra)
    todo = missing(runs)
    for run in todo:
        keep(rules_of(run.cfg, "needs_here"))
    ask_hub([r.cfg for r in todo if r.command == "train"], [r.cfg for r in todo if r.command != "train"])
    models = to_prepare(request.plan, runs, todo)
    if code := prepare(models):
        remedy = "the same command goes on" if code > 128 else "see above"
        print(f"expo: a model that the runs begin from was not made; {remedy}", file=sys.stderr)
        return code
    if models:  # what the models hold is part of their runs' identity
        runs = request.runs()
    todo, output_dir = missing(runs), runs[0].cfg.output_dir
    sweep, folder = request.new_sweep(output_dir), request.folder(output_dir)
    code = make(todo, sweep, request.launcher(output_dir))
    if code > 128:
        print("expo: stopped, with checkpoints; the same command goes on", file=sys.stderr)
        return code
    if code and not any(read_summary(run.dir) for run in runs):
        print(f"expo: no run was made; see {sweep / 'launch.log'}", file=sys.stderr)
        return code
    failed = [run for run in todo if not run.done]
    page = request.report_command
    # A table is not overwritten by one with holes of fewer runs.
    if failed and (not request.results or _runs_in(folder) > sum(run.done for run in runs)):
        folder = sweep / "results"
        page = shlex.join(["expo", "report", str(folder)])
    from expo.tables.finish import finish  # here, since matplotlib takes a second to import

    record = finish(request.name, request.plan, runs, folder, command)
    logger = runs[0].cfg.logger
    if isinstance(logger, WandbLoggerConf) and not failed:
        from expo.loggers.trackers import log_finished_table  # seconds of imports that only W&B needs

        scale = "-".join(filter(None, (request.scale_name, request.variant)))
        log_finished_table(logger.wandb, table_name(request.name), scale, cells_of(request.plan, record), folder, sweep)
    print(f"a page about it: {page}")
    for run in distinct([run for run in runs if run.done]):
        if files := changed_code(read_summary(run.dir).get("own_code", {})):
            message = f"was made before a change of {', '.join(files)}; expo runs rm {run.dir}, and it is made again"
            print(f"expo: {run.arm} seed {run.seed}: {message}", file=sys.stderr)
    for run in failed:
        print(f"expo: {run.arm} seed {run.seed}: {why(run, sweep)}", file=sys.stderr)
    return 1 if failed else 0

"""`expo runs`: list, show, compare and tidy run directories."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from expo.config import UserError, take_options
from expo.config.foreign import UNREADABLE, content, from_json, why
from expo.config.from_run import measures
from expo.config.key import shown
from expo.config.own_code import changed_code
from expo.ground.files import ASIDE, discard, remove, unused
from expo.runs.health import collapses_of, shares_told
from expo.runs.listing import FILTER, RunFolder, find_runs, in_order, kept, run_folder, size_of
from expo.runs.reading import percent_of, read_summary

USAGE = """\
expo runs [FILTER...] [sort=KEY] [output_dir=outputs] [--json]   every run directory; filters: status=done name=exp_* pass@4>=0.5
                                                                 trainer.max_steps!=2; sort=-pass@4: the best first
expo runs show RUN                                               one run: state, result, data, and what its files are
expo runs diff RUN RUN                                           in which settings and results two runs differ
expo runs rm   RUN... | FILTER... [output_dir=outputs] [yes=true] remove run directories; without yes=true it only says which, and their size
expo runs gc   [FILTER...] [output_dir=outputs] [yes=true]       remove the checkpoints of finished runs; their models stay, but for finals=true"""  # noqa: E501


def main(arguments: list[str]) -> int:
    action = ACTIONS.get(arguments[0]) if arguments else None
    return action(arguments[1:]) if action else list_runs(arguments)


def list_runs(arguments: Sequence[str]) -> int:
    options, rest = take_options(arguments, sort="run", output_dir="outputs")
    flags = [a for a in rest if a.startswith("-")]
    if flags not in ([], ["--json"]):
        raise UserError(f"{flags[0]}: no such option; use --json")
    every = [run.row for run in find_runs(Path(options["output_dir"]))]
    rows = in_order(kept(every, [a for a in rest if a not in flags]), options["sort"])
    if flags:
        print(json.dumps(rows, indent=1))
        return 0
    table = _table("run", "data", "model", "steps", "status", "pass@k", "time", "age", "size")
    for row in rows:
        table.add_row(*_cells(row, options["output_dir"]))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table, markup=False)
    shown = {row["run"] for row in rows}
    lost = [row["run"] for row in every if row["run"] not in shown and row["status"].startswith("cannot be read")]
    also = f"; not looked at, since it cannot be read: {', '.join(lost)}" if lost else ""
    print(f"{len(rows)} runs{also}; expo runs show RUN tells more, --json tells all")
    return 0


def _cells(row: dict[str, Any], root: str) -> list[str]:
    steps = f"{row['step'] or 0}/{row['max_steps']}" if row["max_steps"] else ""
    passed = "" if row["pass@k"] is None else f"{100 * row['pass@k']:.1f} % @{row['k']}"
    run = str(Path(row["run"]).relative_to(root)) if Path(row["run"]).is_relative_to(root) else row["run"]
    times = _time(row["seconds"]), _time(row["age"])
    return [run, row["data"], row["model"], steps, _state(row), passed, *times, _size(row["size"])]


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def _state(row: dict[str, Any]) -> str:
    return f"{row['status']} ({row['marks']})" if row["marks"] else str(row["status"])


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    rest = round(seconds)
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if rest >= size:
            return f"{rest // size}{unit} {rest % size // smaller}{small}"
    return f"{rest}s"


def show(arguments: Sequence[str]) -> int:
    for run in _runs(arguments, "show"):
        row, summary = run.row, run.summary
        table = Table(box=None, pad_edge=False, show_header=False)
        steps = f", step {row['step']} of {row['max_steps']}" if row["max_steps"] else ""
        reason = f" ({summary['reason']})" if "reason" in summary else ""
        facts = {
            "run": str(run.dir),
            "command": run.command,
            "status": f"{_state(row)}{steps}{reason}",
            **({"it says nothing": summary["learned_nothing"]} if "learned_nothing" in summary else {}),
            **({"changed since": ", ".join(files)} if (files := changed_code(summary.get("own_code", {}))) else {}),
            "name": f"{row['name']}, seed {row['seed']}, identity {row['identity']}",
            "differs": row["differs"],
            "data": row["data"],
            "model": row["model"],
            "temperature": f"rollouts (reward) {row.get('rollout.temperature')}, evaluations (pass@k) "
            f"{row.get('evaluation.temperature')}",
            "made by": f"expo at {summary.get('git') or summary.get('versions', {}).get('expo')}, on "
            f"{summary.get('device')}",
            "time": f"{_time(row['seconds'])}, {_time(row['age'])} ago",
            "size": _size(row["size"]),
        }
        for name, value in (*facts.items(), *_results(run).items(), *_data(run).items()):
            table.add_row(name, value)
        for collapse in collapses_of(summary):
            table.add_row("collapse", str(collapse))
        Console().print(table, markup=False)
        print(f"its settings again: expo {run.command} run={run.dir}   all of them: {run.dir / 'config.yaml'}")
    return 0


def _results(run: RunFolder) -> dict[str, str]:
    metrics = run.summary.get("metrics", {})
    results = {"completions": shares} if (shares := shares_told(metrics)) else {}
    measured = [name for name in metrics if f"{name}_lo" in metrics]
    if run.command == "diagnose":  # nats and tokens, and shares, as its own table has them
        cells = {name: [metrics[f"{name}{end}"] for end in ("", "_lo", "_hi")] for name in measured}
        return results | {name: f"{mean:.2f} [{low:.2f}, {high:.2f}]" for name, (mean, low, high) in cells.items()}
    return results | {name: f"{percent_of(metrics, name)} %" for name in measured}


def _data(run: RunFolder) -> dict[str, str]:
    path = run.dir / "data.json"
    if not path.is_file():
        return {}
    try:
        account = from_json(content(path))
        facts = {f"rows of {s['name']}": f"{s['rows']}, used {s['used']}" for s in account["sources"]}
        return facts | {f"problems: {name}": str(part["problems"]) for name, part in account["parts"].items()}
    except (*UNREADABLE, LookupError, TypeError, AttributeError) as error:
        return {"rows": f"cannot be read: {path.name}: {why(error)}"}


def diff(arguments: Sequence[str]) -> int:
    runs = _runs(arguments, "diff")
    if len(runs) != 2:
        raise UserError(f"runs diff: {len(runs)} runs; give two run directories")
    for run in runs:
        if run.unreadable:
            raise UserError(f"{run.dir}: cannot be read ({run.unreadable}); make the run again")
    one, two = runs
    table = _table("", str(one.dir), str(two.dir))
    for first, second in zip(_compared(one), _compared(two), strict=True):
        for key in dict.fromkeys((*first, *second)):
            if first.get(key) != second.get(key):
                table.add_row(key, _value(first, key), _value(second, key))
    if table.row_count:
        Console().print(table, markup=False)
    else:
        print("no difference in settings, results or code")
    return 0


def _table(*headings: str) -> Table:
    return Table(*(Column(h, overflow="fold") for h in headings), box=None, pad_edge=False, header_style="bold")


def _compared(run: RunFolder) -> list[dict[str, Any]]:
    """Return what two runs may differ in: results without their intervals, settings, content of files, code."""
    summary = run.summary
    metrics = {k: v for k, v in summary.get("metrics", {}).items() if not k.endswith(("_lo", "_hi"))}
    asked = {name: summary[name] for name in ("part", "problems", "id") if name in summary and measures(run.dir)}
    code = {"git": summary.get("git"), **summary.get("versions", {}), **summary.get("own_code", {})}
    return [metrics, asked, run.settings, {"arm (settings and content of files)": summary.get("arm")}, code]


def _value(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key, "–")
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def remove_runs(arguments: Sequence[str]) -> int:
    """Remove run directories, given or by what filters keep of all, or say which would go."""
    options, given = take_options(arguments, yes="false", output_dir="outputs")
    filters = [text for text in _given(given, "rm") if FILTER.fullmatch(text) and not Path(text).exists()]
    rows = [run.row for run in find_runs(Path(options["output_dir"]))] if filters else []
    fitting = [row["run"] for row in kept(rows, filters)] if filters else []
    names = [text for text in given if text not in filters]
    # One that has set something aside is of a removal that was killed, and no run any more.
    folders = [Path(n) if Path(n, ASIDE).is_dir() else run_folder(n).dir for n in (*names, *fitting)]
    directories = list({path.resolve(): path for path in folders}.values())
    sizes = {directory: size_of(directory) for directory in directories}
    with ExitStack() as locks:  # of all of them, before anything goes
        for directory in directories:
            if not locks.enter_context(unused(directory)):
                raise UserError(f"{directory}: a process works on it; stop that first")
        for directory in directories:
            if yes := options["yes"] == "true":
                discard(directory)
            print(f"{'removed' if yes else 'would remove'} {directory} ({_size(sizes[directory])})")
    print(f"{len(directories)} runs, {_size(sum(sizes.values()))} in all")
    _ask(options)
    return 0


def collect(arguments: Sequence[str]) -> int:
    """Remove the checkpoints of finished runs, from which longer ones could go on, and with `finals` their models."""
    options, filters = take_options(arguments, yes="false", finals="false", output_dir="outputs")
    yes, finals = (options[name] == "true" for name in ("yes", "finals"))
    patterns = ("step*.ckpt", *(("final", "best", "best.ckpt") if finals else ()))
    runs = {str(run.dir): run for run in find_runs(Path(options["output_dir"]))}
    total = 0
    for row in kept([run.row for run in runs.values()], ["status=done", *filters]):
        directory = runs[row["run"]].dir
        folder = directory / "checkpoints"
        # Nothing is removed behind a link.
        files = [] if folder.is_symlink() else sorted(file for pattern in patterns for file in folder.glob(pattern))
        if not files:
            continue
        size = sum(size_of(file) if file.is_dir() else file.lstat().st_size for file in files)
        with unused(directory) as free:
            if not free or read_summary(directory).get("status") != "done":  # begun again meanwhile
                print(f"{directory}: a process works on it; its checkpoints stay")
                continue
            for file in files if yes else ():
                remove(file)
        total += size
        what = "checkpoints and models" if finals else "checkpoints"
        print(f"{'removed' if yes else 'would remove'} {len(files)} {what} ({_size(size)}) of {directory}")
    print(f"{_size(total)} in all")
    _ask(options)
    return 0


def _runs(arguments: Sequence[str], action: str) -> list[RunFolder]:
    return [run_folder(path) for path in _given(arguments, action)]


def _given(arguments: Sequence[str], action: str) -> Sequence[str]:
    if not arguments:
        raise UserError(f"runs {action}: no run given; give its directory, as expo runs lists it")
    return arguments


def _ask(options: dict[str, str]) -> None:
    if options["yes"] != "true":
        print("nothing was removed; add yes=true to remove it")


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {"show": show, "diff": diff, "rm": remove_runs, "gc": collect}

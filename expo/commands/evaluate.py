"""`expo evaluate`: unbiased pass@k of one model on one data set."""

from rich.console import Console
from rich.table import Table

from expo.config import Config
from expo.runs.directory import FINISHED, Run


def evaluate_command(cfg: Config) -> int:
    """Sample, verify, count; prints a table and keeps every completion in the run directory."""
    run = Run.find(cfg, "evaluate")
    with run.alone():
        run = Run.find(cfg, "evaluate")
        if run.finished:
            print(f"{run.dir} {FINISHED}")
        else:
            from expo.commands.score import evaluate  # here, since torch and its friends take seconds to import

            evaluate(cfg, run)
    show(cfg, run.metrics, run.summary()["problems"])
    print(f"completions and summary: {run.dir}")
    return 0


def show(cfg: Config, metrics: dict[str, float], problems: int) -> None:
    """Print pass@k by level with 95 % intervals, in percent."""
    levels = sorted({key.split("/")[1] for key in metrics if key.startswith("pass@") and "/" in key and "_" not in key})
    Console().print(
        f"{cfg.model.path} on {cfg.dataset.name}: {problems} problems (dataset.part={cfg.dataset.part}), pass@k in % [95 % interval]",
        markup=False,
    )
    table = Table()
    for heading in ("", *(f"pass@{k}" for k in cfg.k)):
        table.add_column(heading)
    for group in ("", *(f"/{level}" for level in levels)):
        names = [f"pass@{k}{group}" for k in cfg.k]
        cells = [
            f"{100 * metrics[n]:.1f} [{100 * metrics[n + '_lo']:.1f}, {100 * metrics[n + '_hi']:.1f}]" for n in names
        ]
        table.add_row(group[1:] or "all", *cells)
    Console().print(table)

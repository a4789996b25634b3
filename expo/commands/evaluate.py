"""`expo evaluate`: unbiased pass@k of one model on one data set."""

from rich.table import Table

from expo.config import Config
from expo.runs.directory import Run
from expo.runs.health import shares_told, why_none_is_right
from expo.runs.processes import importing
from expo.runs.reading import first_rows, percent_of, read_rows
from expo.tables.render import wide_console


def evaluate_command(cfg: Config) -> int:
    """Sample, verify, count; prints a table and keeps every completion in the run directory."""
    with Run.find(cfg, "evaluate").alone():
        run = Run.find(cfg, "evaluate")
        if run.finished:
            print(run.finished_line)
        else:
            with importing():  # here, since torch and its friends take seconds
                from expo.jobs.score import evaluate

            evaluate(cfg, run)
    print_metrics(cfg, run.metrics, run.summary()["problems"])
    path = run.dir / "completions" / "eval.parquet"
    if not run.metrics[f"pass@{max(cfg.k)}"] and path.is_file():
        for line in why_none_is_right(read_rows(path, ["verdict", "truncated"]), first_rows(path, 100), cfg):
            print(line)
    print(f"completions and summary: {run.dir}")
    return 0


def print_metrics(cfg: Config, metrics: dict[str, float], problems: int) -> None:
    """Print every metric that has an interval, by level and subject, in percent."""
    console = wide_console()
    of_part = f"{problems} problems (dataset.part={cfg.dataset.part})"
    console.print(f"{cfg.model.path} on {cfg.dataset.name}: {of_part}, in % [95 % interval]", markup=False)
    measured = [name.partition("/")[::2] for name in metrics if f"{name}_lo" in metrics]
    columns = list(dict.fromkeys(name for name, _ in measured))
    table = Table("", *columns)
    for part in dict.fromkeys(part for _, part in measured):
        names = [f"{column}/{part}" if part else column for column in columns]
        table.add_row(part or "all", *(percent_of(metrics, name) for name in names))
    console.print(table, markup=False)
    if shares := shares_told(metrics):
        mean = f"{metrics['eval/length_mean']:.0f} tokens on average"
        console.print(f"of the completions: {shares}; {mean}", markup=False)
    if (reward := metrics.get("eval/reward_mean")) is not None:
        console.print(f"mean reward ({cfg.reward._target_.rpartition('.')[2]}): {reward:.3f}", markup=False)

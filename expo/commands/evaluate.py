"""`expo evaluate`: unbiased pass@k of one model on one data set."""

import logging
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from expo.commands.wiring import load_model, make_engine, make_evaluator, set_up_process
from expo.config import Config, build, run_dir
from expo.data.readers import Reader
from expo.model.prompts import Prompts
from expo.runs.arms import settings_in, settings_of
from expo.runs.directory import FINISHED, Run
from expo.runs.tracking import Session, chosen_loggers, log_measured
from expo.step.problems import within_length
from expo.verifier.pool import Verifier

log = logging.getLogger(__name__)


def evaluate_command(cfg: Config) -> int:
    """Sample, verify, count; prints a table and keeps every completion in the run directory."""
    set_up_process(cfg)
    run = Run.find(cfg, run_dir(cfg, "evaluate"))
    with run.alone():
        run = Run.find(cfg, run.dir)
        if run.finished:
            print(f"{run.dir} {FINISHED}")
        else:
            evaluate(cfg, run)
    show(cfg, run.metrics, run.summary()["problems"])
    print(f"completions and summary: {run.dir}")
    return 0


def evaluate(cfg: Config, run: Run) -> None:
    run.dir.mkdir(parents=True, exist_ok=True)  # what an earlier run left in it stays until there is something new
    loggers = chosen_loggers(Session(cfg, run.dir, command="evaluate"))
    warn_of_another_part(cfg)
    model, tokenizer = load_model(cfg)
    prompts: Prompts = build(cfg.prompts)
    reader: Reader = build(cfg.dataset)
    problems = within_length(reader.part(), [prompts.solve_ids], tokenizer, cfg.rollout.max_prompt_tokens)
    with Verifier(cfg.verifier) as verifier:
        engine = make_engine(cfg, model, tokenizer)
        evaluation = make_evaluator(cfg, problems, verifier, prompts, tokenizer).evaluate(engine)
        engine.close()
    run.write_config()
    evaluation.save(run.dir / "completions" / "eval.parquet")
    run.metrics = evaluation.metrics
    run.write_summary("done", problems=len(problems), part=cfg.dataset.part)
    log_measured(loggers, run, "completions/eval", evaluation.rows)


def warn_of_another_part(cfg: Config) -> None:
    """Say so where a run's checkpoint would be scored on other problems of its own file than the run held out."""
    run = Path(cfg.model.path).parent.parent
    if not (cfg.dataset.shares_file and cfg.dataset.part == "held_out" and (run / "config.yaml").is_file()):
        return
    theirs, ours = settings_of(run), settings_in(OmegaConf.to_container(OmegaConf.structured(cfg)))
    if Path(str(theirs.get("dataset.path"))).name != Path(str(cfg.dataset.path)).name:
        return
    told = [
        f"{key}={ours[key]} (the run: {theirs[key]})"
        for key in sorted(ours.keys() & theirs.keys())
        if key.startswith("dataset.")
        and key not in ("dataset.path", "dataset.name", "dataset.limit")
        and ours[key] != theirs[key]
    ]
    if told:
        log.warning(
            "%s: what is scored may have been trained on; the run held out another part: %s", run, ", ".join(told)
        )


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

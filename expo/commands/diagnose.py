"""`expo diagnose`: the two properties of a good positive (paper Table 1, Figure 2), measured for each kind of sample."""

from pathlib import Path

import matplotlib
import pyarrow as pa
import pyarrow.parquet
from rich.table import Table

from expo.commands.wiring import load_model, longest_prompt, make_engine, rollout_sampling, set_up_process
from expo.config import Config, build, run_dir
from expo.data.readers import Reader
from expo.evaluation.samples import (
    COLUMNS,
    KINDS,
    Rows,
    by_problem,
    cell,
    check_steps,
    first_of_each_level,
    levels_of,
    measure,
    sample,
    summarize,
)
from expo.model.prompts import Prompts
from expo.runs.directory import FINISHED, Run
from expo.runs.reading import read_rows
from expo.runs.tracking import Session, chosen_loggers, log_measured
from expo.step.experience import Tools
from expo.step.positives.properties import Scorer
from expo.step.problems import within_length
from expo.tables.render import wide_console
from expo.verifier.pool import Verifier

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"own": "#5b6472", "expert": "#d1781a", "self_explanation": "#0b7a75", "wrong_answer": "#a8324a"}


def diagnose(cfg: Config) -> int:
    """Sample, measure, print the table; parquet, summary and picture go to the run directory."""
    set_up_process(cfg)
    run = Run.find(cfg, run_dir(cfg, "diagnose"))
    with run.alone():
        run = Run.find(cfg, run.dir)
        if run.finished:
            print(f"{run.dir} {FINISHED}")
        else:
            measure_samples(cfg, run)
    show(cfg, read_samples(run.dir), run.summary()["problems"])
    print(f"samples, summary and picture: {run.dir}")
    return 0


def read_samples(directory: Path) -> Rows:
    """Return every sample of `expo diagnose`, with what was measured of it."""
    return read_rows(directory / "samples.parquet")


def measure_samples(cfg: Config, run: Run) -> None:
    conf = cfg.diagnose
    run.dir.mkdir(parents=True, exist_ok=True)
    loggers = chosen_loggers(Session(cfg, run.dir, command="diagnose"))
    model, tokenizer = load_model(cfg)
    model.eval()
    prompts: Prompts = build(cfg.prompts)
    reader: Reader = build(cfg.dataset)
    makers = [prompts.solve_ids, prompts.explain_ids]
    problems = first_of_each_level(reader.part(), conf.problems)
    problems = within_length(problems, makers, tokenizer, cfg.rollout.max_prompt_tokens)
    with Verifier(cfg.verifier) as verifier:
        tools = Tools(prompts, tokenizer, verifier, rollout_sampling(cfg), cfg.seed, longest_prompt(cfg, model))
        engine = make_engine(cfg, model, tokenizer)
        rows = sample(problems, engine, tools, conf.samples)
        engine.close()
    measure(rows, problems, Scorer(model, tokenizer, prompts, cfg.trainer.micro_batch_size))
    run.write_config()
    if not (run.dir / "samples.parquet").is_file():  # else they are these, and what an earlier judge said of them stays
        run.write_summary("stopped")  # until the judge has spoken, who can fail
        unjudged = [row | {"right_steps": None} for row in rows]
        pa.parquet.write_table(pa.Table.from_pylist(unjudged), run.dir / "samples.parquet")
    check_steps(rows, problems, conf, tools)
    pa.parquet.write_table(pa.Table.from_pylist(rows), run.dir / "samples.parquet")
    run.metrics = summarize(rows)
    save_figure(rows, run.dir / "properties.png")
    run.write_summary(
        "done", problems=len(problems), samples=conf.samples, judge=conf.judge.model if conf.judge.base_url else None
    )
    log_measured(loggers, run, "samples", [{k: row[k] for k in ("kind", "completion", *COLUMNS)} for row in rows])


def show(cfg: Config, rows: Rows, problems: int) -> None:
    """Print one block per level, one line per kind."""
    console = wide_console()
    console.print(
        f"{cfg.model.path} on {cfg.dataset.name}: {problems} problems, means [95 % interval over problems]",
        markup=False,
    )
    levels = levels_of(rows)
    for level in (levels if len(levels) > 1 else []) + [None]:
        table = Table(title="all" if level is None else f"level {level}", title_justify="left")
        table.add_column("", no_wrap=True)
        for heading in ("problems", *COLUMNS.values()):
            table.add_column(heading, overflow="fold")
        for kind, name in KINDS.items():
            cells = [cell(rows, kind, level, column) for column in COLUMNS]
            shown = ("–" if c is None else f"{c[0]:.3g} [{c[1]:.3g}, {c[2]:.3g}]" for c in cells)
            table.add_row(name, str(len(by_problem(rows, kind, level, "nll"))), *shown)
        console.print(table)


def save_figure(rows: Rows, path: Path) -> None:
    """Draw, left, the likelihood of each kind under the policy; right, its share of right steps where known, else its answer lift."""
    right = "right_steps" if any(row["right_steps"] is not None for row in rows) else "answer_lift"
    titles = {
        "nll_per_token": "negative log-likelihood per token under the policy",
        "right_steps": "share of right steps",
        "answer_lift": "answer lift over the own CoT (nats)",
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for axis, column in zip(axes, ("nll_per_token", right), strict=True):
        found = {kind: cell(rows, kind, None, column) for kind in KINDS}
        shown = {kind: value for kind, value in found.items() if value is not None}
        for i, (kind, (mean, low, high)) in enumerate(shown.items()):
            axis.bar(i, mean, color=COLOURS[kind], width=0.65)
            axis.errorbar(i, mean, [[mean - low], [high - mean]], color="black", capsize=3, linewidth=1)
        axis.set_xticks(range(len(shown)), [KINDS[kind].replace("-answer ", "-answer\n") for kind in shown], fontsize=8)
        axis.set_title(titles[column], fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)

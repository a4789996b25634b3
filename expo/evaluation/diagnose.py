"""`expo diagnose`: the two properties of a good positive (paper Table 1, Figure 2), measured for each kind of sample."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from hydra.utils import instantiate
from rich.table import Table

from expo.collector import within_length
from expo.config import run_dir
from expo.data import ladder
from expo.data.problem import Problem
from expo.evaluation.judge import judge_steps
from expo.evaluation.pass_at_k import interval
from expo.experience import Experience, Tools
from expo.experiments.render import wide_console
from expo.positives.properties import Scorer
from expo.positives.sources import SHOWN
from expo.randomness import DIAGNOSE, Key
from expo.rollout.engine import Engine, Request, Sampling
from expo.run import Run
from expo.schema import Config, DiagnoseConf
from expo.tracking import log_measured, wandb_loggers
from expo.train import instantiate_verifier, load_model, longest_prompt, make_engine, quiet_libraries, read
from expo.verifier import Verdict

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KINDS = {
    "own": "own CoT",
    "expert": "expert CoT",
    "self_explanation": "self-explanation",
    "wrong_answer": "wrong-answer control",
}
COLOURS = {"own": "#5b6472", "expert": "#d1781a", "self_explanation": "#0b7a75", "wrong_answer": "#a8324a"}
# column -> heading
COLUMNS = {
    "nll_per_token": "NLL/token",
    "nll": "NLL",
    "answer_lift": "answer lift",
    "verified": "verified",
    "right_steps": "right steps",
    "tokens": "tokens",
}
Rows = list[dict[str, Any]]


def diagnose(cfg: Config) -> int:
    """Sample, measure, print the table; parquet, summary and picture go to the run directory."""
    quiet_libraries()
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    run = Run.find(cfg, run_dir(cfg, "diagnose"))
    with run.alone():
        run = Run.find(cfg, run.dir)
        if run.finished:
            print(f"{run.dir} is finished already; fresh=true makes it again")
        else:
            measure_samples(cfg, run)
    show(cfg, read_samples(run.dir), run.summary()["problems"])
    print(f"samples, summary and picture: {run.dir}")
    return 0


def read_samples(directory: Path) -> Rows:
    """Every sample of `expo diagnose`, with what was measured of it."""
    return pyarrow.parquet.read_table(directory / "samples.parquet").to_pylist()


def measure_samples(cfg: Config, run: Run) -> None:
    conf = cfg.diagnose
    run.dir.mkdir(parents=True, exist_ok=True)
    loggers = wandb_loggers(cfg, run.dir, "diagnose")
    model, tokenizer = load_model(cfg)
    model.eval()
    prompts, r = instantiate(cfg.prompts), cfg.rollout
    makers = [prompts.solve_ids, prompts.explain_ids]
    problems = first_of_each_level(read(cfg).whole(), conf.problems)
    problems = within_length(problems, makers, tokenizer, r.max_prompt_tokens)
    sampling = Sampling(r.temperature, r.top_p, r.top_k, r.max_completion_tokens)
    with instantiate_verifier(cfg) as verifier:
        tools = Tools(prompts, tokenizer, verifier, sampling, cfg.seed, longest_prompt(cfg, model))
        engine = make_engine(cfg, model, tokenizer)
        rows = sample(problems, engine, tools, conf.samples)
        engine.close()
    measure(rows, problems, Scorer(model, tokenizer, prompts, cfg.trainer.micro_batch_size))
    run.write_config()
    if not (run.dir / "samples.parquet").is_file():  # else they are these, and what an earlier judge said of them stays
        run.finish("stopped")  # until the judge has spoken, who can fail
        unjudged = [row | {"right_steps": None} for row in rows]
        pa.parquet.write_table(pa.Table.from_pylist(unjudged), run.dir / "samples.parquet")
    check_steps(rows, problems, conf, tools)
    pa.parquet.write_table(pa.Table.from_pylist(rows), run.dir / "samples.parquet")
    run.metrics = summarize(rows)
    save_figure(rows, run.dir / "properties.png")
    run.finish(
        "done", problems=len(problems), samples=conf.samples, judge=conf.judge.model if conf.judge.base_url else None
    )
    log_measured(loggers, run, "samples", [{k: row[k] for k in ("kind", "completion", *COLUMNS)} for row in rows])


def first_of_each_level(problems: Sequence[Problem], count: int) -> list[Problem]:
    taken: dict[int | None, int] = defaultdict(int)
    kept = []
    for problem in problems:
        if taken[problem.level] < count:
            taken[problem.level] += 1
            kept.append(problem)
    return kept


def sample(problems: list[Problem], engine: Engine, tools: Tools, samples: int) -> Rows:
    """Completions of every kind, verified: of the wrong-answer control against the answer that it was shown."""
    prompts = [tuple(ids) for ids in tools.prompts.solve_ids(tools.tokenizer, problems)]
    e = Experience(problems, prompts)
    e.completions = _generate(engine, tools, [p for p in prompts for _ in range(samples)], 0)
    e.texts = tools.texts([c.ids for c in e.completions])
    rows: Rows = [
        {
            "kind": "own",
            "problem": i // samples,
            "ids": c.ids,
            "completion": text,
            "answer": problems[i // samples].answer,
        }
        for i, (c, text) in enumerate(zip(e.completions, e.texts, strict=True))
    ]
    e.verdicts = tools.verifier.verify(e.texts, [row["answer"] for row in rows])
    for i, problem in enumerate(problems):
        if problem.solution is not None:
            ids = tools.tokenizer(problem.solution, add_special_tokens=False)["input_ids"] + [
                tools.tokenizer.eos_token_id
            ]
            rows.append(
                {"kind": "expert", "problem": i, "ids": ids, "completion": problem.solution, "answer": problem.answer}
            )
    for stream, (kind, shown) in enumerate((("self_explanation", "true"), ("wrong_answer", "wrong")), start=1):
        answers = [(i, SHOWN[shown](e, i)) for i in range(len(problems))]
        explained = [(i, Problem("", problems[i].question, answer)) for i, answer in answers if answer is not None]
        asked = tools.prompts.explain_ids(tools.tokenizer, [p for _, p in explained])
        written = _generate(engine, tools, [tuple(ids) for ids in asked for _ in range(samples)], stream)
        texts = tools.texts([c.ids for c in written])
        owners = [pair for pair in explained for _ in range(samples)]
        rows += [
            {"kind": kind, "problem": i, "ids": c.ids, "completion": text, "answer": p.answer}
            for (i, p), c, text in zip(owners, written, texts, strict=True)
        ]
    others = rows[len(e.verdicts) :]
    verdicts = tools.verifier.verify([row["completion"] for row in others], [row["answer"] for row in others])
    for row, verdict in zip(rows, [*e.verdicts, *verdicts], strict=True):
        row |= {"verified": float(verdict is Verdict.CORRECT), "tokens": len(row["ids"])}
    return rows


def _generate(engine: Engine, tools: Tools, prompts: list[tuple[int, ...]], stream: int) -> list:
    keys = [Key(tools.seed, DIAGNOSE, stream, row) for row in range(len(prompts))]
    return engine.generate([Request(p, key) for p, key in zip(prompts, keys, strict=True)], tools.sampling)


def measure(rows: Rows, problems: list[Problem], scorer: Scorer) -> None:
    """Add NLL under q alone, and the lift of the *true* answer over the mean of the policy's own completions."""
    prompts = scorer.prompts.solve_ids(scorer.tokenizer, problems)
    asked, completions = [prompts[row["problem"]] for row in rows], [row["ids"] for row in rows]
    answers = [problems[row["problem"]].answer for row in rows]
    own = defaultdict(list)
    logps = scorer.logp(asked, completions).tolist()
    answer_logps = scorer.answer_logp(asked, completions, answers).tolist()
    for row, logp, answer_logp in zip(rows, logps, answer_logps, strict=True):
        row |= {"nll": -logp, "nll_per_token": -logp / len(row["ids"]), "answer_logp": answer_logp}
        if row["kind"] == "own":
            own[row["problem"]].append(answer_logp)
    for row in rows:
        problem = problems[row["problem"]]
        row["answer_lift"] = row["answer_logp"] - float(np.mean(own[row["problem"]]))
        row |= {"id": problem.id, "level": problem.level, "question": problem.question, "true_answer": problem.answer}


def check_steps(rows: Rows, problems: list[Problem], conf: DiagnoseConf, tools: Tools) -> None:
    """Add the share of right steps: exact on the ladder (in the policy's own style), by the judge elsewhere, None without one."""
    shares: list[float | None] = [None] * len(rows)
    if problems[0].subject == "ladder":
        checks = [ladder.check_steps(row["question"], row["completion"]) for row in rows]
        shares = [
            None if row["kind"] == "expert" else (check.arithmetic + check.meanings) / 2
            for row, check in zip(rows, checks, strict=True)
        ]
    elif conf.judge.base_url:
        owners = [problems[row["problem"]] for row in rows]
        shares = judge_steps(conf.judge, tools.prompts, owners, [row["completion"] for row in rows])
    for row, share in zip(rows, shares, strict=True):
        row["right_steps"] = share


def by_problem(rows: Rows, kind: str, level: int | None, column: str) -> dict[int, float]:
    """The mean of each problem that has such samples. `level` None: all levels."""
    values = defaultdict(list)
    for row in rows:
        if row["kind"] == kind and level in (None, row["level"]) and row[column] is not None:
            values[row["problem"]].append(row[column])
    return {problem: float(np.mean(v)) for problem, v in values.items()}


def cell(
    rows: Rows, kind: str, level: int | None, column: str, less: str | None = None
) -> tuple[float, float, float] | None:
    """Mean and 95 % interval over problems, of a kind or of its difference to the kind `less` on the problems that both have.

    None where nothing was measured.
    """
    values = by_problem(rows, kind, level, column)
    if less is not None:
        other = by_problem(rows, less, level, column)
        values = {problem: value - other[problem] for problem, value in values.items() if problem in other}
    if not values:
        return None
    means = np.array(list(values.values()))
    return float(means.mean()), *interval(means)


def levels_of(rows: Rows) -> list[int]:
    return sorted({row["level"] for row in rows if row["level"] is not None})


def summarize(rows: Rows) -> dict[str, float]:
    """`<kind>/<column>` and `<kind>/<column>/level<n>`, each also with `_lo` and `_hi`.

    `self_explanation-<kind>/…` is the difference on the problems that both have: the wrong-answer control, say, exists
    only where an own sample was wrong.
    """
    others = [(f"self_explanation-{kind}", "self_explanation", kind) for kind in KINDS if kind != "self_explanation"]
    metrics: dict[str, float] = {}
    for label, kind, less in [*((kind, kind, None) for kind in KINDS), *others]:
        for column in COLUMNS:
            for level in (None, *levels_of(rows)):
                found = cell(rows, kind, level, column, less)
                if found is not None:
                    name = f"{label}/{column}" + (f"/level{level}" if level is not None else "")
                    metrics |= dict(zip((name, f"{name}_lo", f"{name}_hi"), found, strict=True))
    return metrics


def show(cfg: Config, rows: Rows, problems: int) -> None:
    """One block per level, one line per kind."""
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
    """Left, the likelihood of each kind under the policy; right, its share of right steps where known, else its answer lift."""
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

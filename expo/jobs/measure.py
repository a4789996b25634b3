"""Sample and measure for `expo diagnose`."""

import logging
from pathlib import Path

import matplotlib

from expo.config import Config, UserError, build
from expo.data.reader import Reader
from expo.evaluation.files import save_rows
from expo.evaluation.kinds import COLUMNS, KINDS, Samples, cell, first_of_each_level, summarize
from expo.evaluation.samples import add_measures, check_steps, sample
from expo.jobs.process import set_up_process
from expo.jobs.wiring import load_model, make_engine, measuring_loggers, prompt_limit, rollout_sampling
from expo.runs.directory import Run
from expo.runs.hub import ask_hub
from expo.runs.reading import read_rows
from expo.step.experience import Tools
from expo.step.positives.properties import Scorer
from expo.step.problems import within_length
from expo.tables.styles import styles
from expo.verifier.pool import Verifier

matplotlib.use("Agg")
import matplotlib.pyplot as plt

log = logging.getLogger(__name__)


def measure_samples(cfg: Config, run: Run) -> None:
    """Measure samples; write them, picture and summary. Raises UserError for a model or data that cannot be loaded."""
    set_up_process(cfg)
    ask_hub([], scored=[cfg])
    conf = cfg.diagnose
    run.enter()
    loggers = measuring_loggers(cfg, run.dir, "diagnose")
    model, tokenizer, prompts = load_model(cfg)
    model.eval()
    makers = [prompts.solve_ids, prompts.explain_ids]
    with Verifier(cfg.verifier, final=cfg.prompts.final) as verifier:
        reader: Reader = build(cfg.dataset, verifier, of=Reader)
        prompts.examples = reader.examples(cfg.prompts.examples)
        problems = first_of_each_level(reader.part(), conf.problems)
        limit = prompt_limit(cfg, model, cfg.rollout.max_prompt_tokens)
        problems, taken = within_length(problems, makers, tokenizer, limit)
        run.keep_account(reader.account() | {cfg.dataset.part: taken})
        longest = prompt_limit(cfg, model, cfg.rollout.longest_prompt)
        tools = Tools(prompts, tokenizer, verifier, rollout_sampling(cfg), cfg.seed, longest)
        engine = make_engine(cfg, model, tokenizer)
        controls = ["wrong_answer", *(["shuffled_answer"] if conf.shuffled else [])]
        if cfg.verifier.judges_rows:
            log.warning("no explanations of other answers: verifier=reasoning_gym judges by the row")
            controls = []
        rows = sample(problems, engine, tools, conf.samples, controls)
        engine.close()
    add_measures(rows, problems, Scorer(model, tokenizer, prompts, cfg.trainer.micro_batch_size))
    run.write_config()
    path = run.dir / "samples.parquet"
    earlier = read_rows(path) if path.is_file() and not cfg.fresh else []
    if not earlier:  # else they are these, and what the judge has said of them stays
        run.write_summary("stopped")  # until the judge has spoken, who can fail
        unjudged = [row | {"right_steps": None} for row in rows]
        save_rows(unjudged, path)
    failed = check_steps(rows, problems, conf, tools, earlier)
    save_rows(rows, path)
    if failed:
        run.write_summary("stopped")
        raise UserError(
            f"diagnose.judge.base_url={conf.judge.base_url}: the judge did not answer {failed} times of {len(rows)}; "
            "give the same command again, and it is asked for these alone"
        )
    run.metrics = summarize(rows)
    save_figure(rows, run.dir / "properties.png")
    record = run.record(
        "done", problems=len(problems), samples=conf.samples, judge=conf.judge.model if conf.judge.base_url else None,
        unjudged=sum(row["right_steps"] is None for row in rows) if conf.judge.base_url else None,
    )  # fmt: skip
    if loggers:
        from expo.loggers.tracking import log_measured

        shown = [{k: row[k] for k in ("kind", "completion", *COLUMNS)} for row in rows]
        log_measured(loggers, record, "samples", shown)
    run.write(record)


def save_figure(rows: Samples, path: Path) -> None:
    """Draw, left, the likelihood of each kind; right, its share of right steps where known, else its answer lift."""
    right = "right_steps" if any(row["right_steps"] is not None for row in rows) else "answer_lift"
    titles = {
        "nll_per_token": "negative log-likelihood per token under the policy",
        "right_steps": "share of right steps",
        "answer_lift": "answer lift over the own CoT (nats)",
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for axis, column in zip(axes, ("nll_per_token", right), strict=True):
        cells = {kind: cell(rows, kind, None, column) for kind in KINDS}
        shown = {kind: value for kind, value in cells.items() if value is not None}
        for i, (kind, (mean, low, high)) in enumerate(shown.items()):
            axis.bar(i, mean, color=styles(KINDS)[kind].colour, width=0.65)
            axis.errorbar(i, mean, [[mean - low], [high - mean]], color="black", capsize=3, linewidth=1)
        axis.set_xticks(range(len(shown)), [KINDS[kind].replace("-answer ", "-answer\n") for kind in shown], fontsize=8)
        axis.set_title(titles[column], fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)

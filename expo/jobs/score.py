"""Score one model on one data set, and keep every completion in the run directory."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from expo.config import Config, build, data_content
from expo.config.key import shown
from expo.data.reader import Reader
from expo.evaluation.files import save_rows
from expo.ground.problem import Problem
from expo.jobs.process import set_up_process
from expo.jobs.wiring import load_model, make_engine, make_evaluator, measuring_loggers, prompt_limit
from expo.runs.arms import measured_otherwise, settings_in, trained_by
from expo.runs.directory import Run
from expo.runs.hub import ask_hub
from expo.runs.reading import first_rows, read_rows, read_summary
from expo.step.problems import within_length
from expo.verifier.pool import Verifier

log = logging.getLogger(__name__)


def evaluate(cfg: Config, run: Run) -> None:
    """Evaluate, and write the result into the run. Raises UserError for a model or data that cannot be loaded."""
    set_up_process(cfg)
    ask_hub([], scored=[cfg])
    run.enter()  # what an earlier run left in it stays until there is something new
    loggers = measuring_loggers(cfg, run.dir, "evaluate")
    warn_of_other_settings(cfg)
    model, tokenizer, prompts = load_model(cfg)
    with Verifier(cfg.verifier, final=cfg.prompts.final) as verifier:
        reader: Reader = build(cfg.dataset, verifier, of=Reader)
        prompts.examples = reader.examples(cfg.prompts.examples)
        limit = prompt_limit(cfg, model, cfg.rollout.max_prompt_tokens)
        problems, taken = within_length(reader.part(), [prompts.solve_ids], tokenizer, limit)
        run.keep_account(reader.account() | {cfg.dataset.part: taken})
        warn_of_trained_on(cfg, problems)
        engine = make_engine(cfg, model, tokenizer)
        evaluator = make_evaluator(cfg, problems, verifier, prompts, tokenizer)
        path = run.dir / "completions" / "eval.parquet"
        tally = evaluator.evaluate_into(engine, path, run.code_mark, cfg.fresh)
        greedy = evaluator.greedy(engine) if cfg.evaluation.greedy else []
        engine.close()
    run.earlier_s += tally.earlier_s
    run.write_config()
    if greedy:
        save_rows(greedy, run.dir / "completions" / "greedy.parquet")
    run.metrics = tally.metrics(cfg.k) | tally.sampling_metrics(greedy, cfg.k)
    record = run.record("done", problems=len(problems), part=cfg.dataset.part)
    if loggers:
        from expo.loggers.tracking import TABLE_ROWS, log_measured

        log_measured(loggers, record, "completions/eval", first_rows(path, TABLE_ROWS))
    run.write(record)


def warn_of_other_settings(cfg: Config) -> None:
    """Warn where a checkpoint is scored otherwise than its run: on other problems of its file, or sampled otherwise."""
    found = trained_by(Path(cfg.model.path))
    if found is None:
        return
    (run, theirs), ours = found, settings_in(OmegaConf.to_container(OmegaConf.structured(cfg)))
    differ = {
        key: f"{key}={shown(ours[key], 40)} (the run: {shown(theirs[key], 40)})"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key] != theirs[key]
    }
    same_file = Path(str(theirs.get("dataset.path"))).name == Path(str(cfg.dataset.path)).name
    chosen = [key for key in differ if key.startswith("dataset.") and key not in OWN_CHOICE]
    if cfg.dataset.shares_file and cfg.dataset.part == "held_out" and same_file and chosen:
        differences = ", ".join(differ[key] for key in chosen)
        log.warning("%s: what is scored may have been trained on; the run held out another part: %s", run, differences)
    measured = measured_otherwise([ours], [theirs])
    differences = ", ".join(
        f"{key}={shown(now, 40)} (the run: {shown(then, 40)})" for key, (now, then) in measured.items()
    )
    if differences and cfg.run is None:  # with run=, it is said already
        remedy = f"; run={run} takes the run's settings" if (run / "config.yaml").is_file() else ""
        log.warning("%s: scored otherwise than in its run%s: %s", run, remedy, differences)


def warn_of_trained_on(cfg: Config, problems: Sequence[Problem]) -> None:
    """Warn where a checkpoint is scored on problems that its run held out and on others, which it may have trained on.

    Which rows of a file are held out follows from its name and their lines: a file that was renamed has others.
    """
    run = Path(cfg.model.path).parent.parent
    evaluated = next((run / "completions").glob("eval-step*.parquet"), None)
    trained = {row["question"] for file in run.glob("completions/train-step*") for row in read_rows(file, ["question"])}
    if not cfg.dataset.shares_file or cfg.dataset.part != "held_out" or evaluated is None:
        return
    held_out = {row["question"] for row in read_rows(evaluated, ["question"])}
    others = sum(problem.question not in held_out for problem in problems)
    # Other data has no question in common with the run's; the very file that the run had may by chance have none held
    # out in common.
    theirs = read_summary(run).get("data", {}).get("path") == data_content(cfg)["path"]
    seen = any(problem.question in trained for problem in problems)
    if others and (theirs or seen or others < len(problems)):
        message = (
            "%d of the %d problems are none that the run has held out, and may have been trained on; give the "
            "file the name it had"
        )
        log.warning(f"%s: {message}", run, others, len(problems))


OWN_CHOICE = ("dataset.path", "dataset.name", "dataset.limit")

"""Resume from a shorter run: one that differs in nothing but a smaller `trainer.max_steps`, where the result is that of
one run."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from expo.config import Config, UserError, identity, lineage
from expo.config.from_run import restore
from expo.config.own_code import changed_code
from expo.evaluation.evaluate import Evaluator
from expo.ground.files import beside, unused
from expo.loggers.tracking import JsonlLogger, trackers
from expo.runs.directory import Run
from expo.runs.reading import last_evaluation, read_lines, read_rows, read_summary, step_in
from expo.training.checkpoints import BEST, newest_checkpoint, step_of

TAKEN = ".taken_over"  # there until the loggers have been told of the steps taken over


def check_problems(run: Run, evaluator: Evaluator) -> None:
    """Raise UserError where an earlier session was evaluated on other problems, read by another version."""
    goes_on = not run.cfg.fresh and newest_checkpoint(run.dir, lineage(run.cfg)) is not None
    if goes_on and not _same_problems(run.dir, evaluator):
        why = "was begun with other held-out problems, by a version of expo that read the data otherwise"
        raise UserError(f"{run.dir}: {why}; start it over with fresh=true, or finish it with that version")


def _same_problems(directory: Path, evaluator: Evaluator) -> bool:
    first = directory / "completions" / "eval-step000000.parquet"
    known = {row["problem"] for row in read_rows(first, ["problem"])} if first.is_file() else None
    return known is None or known == {p.id for p in evaluator.problems}


def inherit(run: Run, evaluator: Evaluator) -> int:
    """Begin a run from the checkpoint of the longest one with fewer steps; say which it is, or why it cannot be used.
    Returns the step, 0 where there is none. No evaluation is taken over that only the shorter run's end asked for."""
    if run.cfg.fresh or newest_checkpoint(run.dir, lineage(run.cfg)) is not None:
        return 0
    for step, other in sorted(_shorter(run), key=lambda step_and_run: -step_and_run[0]):
        cfg = run.cfg
        of_parts = (part.why_not_extendable for part in (cfg.positives, cfg.optimizer, cfg.rollout))
        reason = cfg.algorithm.why_not_extendable(step) or next(filter(None, of_parts), None)
        message = f"{other.dir} is this run but for trainer.max_steps={other.cfg.trainer.max_steps}"
        with unused(other.dir) as free:
            if not free:
                reason = "a process works on that one"
            elif files := changed_code(read_summary(other.dir).get("own_code", {})):
                reason = f"that one was made before a change of {', '.join(files)}"
            elif not _same_problems(other.dir, evaluator):
                reason = "that one has other held-out problems"
            elif cfg.dataset.validation and not _evaluated(cfg, step):
                reason = f"that one also chose a policy at its end, step {step}, where this one does not"
            if reason:
                print(f"{message}; this one begins anew: {reason}")
                return 0
            checkpoint = newest_checkpoint(other.dir, lineage(run.cfg))
            if checkpoint is not None and step_of(checkpoint) == step:
                _copy_first_steps(other, checkpoint, run)
                print(f"{message}; this one goes on from its step {step}")
                return step
    return 0


def replay(run: Run, loggers: Sequence[Logger]) -> None:
    """Send earlier sessions' scalars to the loggers that may lack some; a shorter run's to all, once."""
    taken = run.dir / TAKEN
    for tracker in trackers(loggers):
        if tracker.skips_sent or (taken.is_file() and not isinstance(tracker, JsonlLogger)):
            for line in read_lines(run.dir):
                defined = {name: value for name, value in line.items() if name != "step" and value is not None}
                tracker.log_metrics(defined, line["step"])
    if run.writes:
        taken.unlink(missing_ok=True)


def _shorter(run: Run) -> Iterator[tuple[int, Run]]:
    """Yield the runs that differ in a smaller `trainer.max_steps` alone, each with the step of its checkpoint."""
    cfg = run.cfg
    for path in Path(cfg.output_dir).glob("*/*/config.yaml"):
        summary = read_summary(path.parent)
        if summary.get("seed") != cfg.seed or not any(path.parent.glob("checkpoints/step*.ckpt")):
            continue
        try:
            other = restore(path.parent)
            if other.trainer.max_steps >= cfg.trainer.max_steps or lineage(other) != lineage(cfg):
                continue
            # It was made of other data, or of another model, at the same path.
            if identity(other) != summary.get("identity"):
                continue
            checkpoint = newest_checkpoint(path.parent, lineage(cfg))
        except (UserError, OSError):  # of another version, not ours, or its data are gone
            continue
        evaluated = not cfg.evaluation.first or any(line["step"] == 0 for line in read_lines(path.parent))
        if checkpoint is not None and evaluated:
            other.output_dir = cfg.output_dir
            yield step_of(checkpoint), Run(other, path.parent)


def _evaluated(cfg: Config, step: int) -> bool:
    return step == 0 or bool(cfg.evaluation.every and step % cfg.evaluation.every == 0)


def _copy_first_steps(other: Run, checkpoint: Path, run: Run) -> None:
    """Copy the first steps' files from another run, the checkpoint last: a kill leaves no half that looks complete."""
    step = step_of(checkpoint)
    earlier = [line for line in read_lines(other.dir) if line["step"] <= step]
    lines = [line for line in earlier if "loss/total" in line or _evaluated(run.cfg, line["step"])]
    with beside(run.dir / "metrics.jsonl") as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file in (other.dir / "completions").glob("*-step*.parquet"):
        at = step_in(file)
        if at <= step and _evaluated(run.cfg, at):
            (run.dir / "completions").mkdir(exist_ok=True)
            shutil.copy2(file, run.dir / "completions")
    if (other.dir / "pairs").is_dir():
        shutil.copytree(other.dir / "pairs", run.dir / "pairs", dirs_exist_ok=True)
    run.metrics = last_evaluation(run.dir)
    run.earlier_s = read_summary(other.dir).get("wall_s", 0.0)
    (run.dir / "checkpoints").mkdir(exist_ok=True)
    if (best := other.dir / "checkpoints" / BEST).is_file():
        shutil.copyfile(best, run.dir / "checkpoints" / BEST)
    if (chosen := other.dir / "checkpoints" / "best").is_dir():
        shutil.copytree(chosen, run.dir / "checkpoints" / "best", dirs_exist_ok=True)
    (run.dir / TAKEN).touch()
    with beside(run.dir / "checkpoints" / checkpoint.name) as partial:
        shutil.copyfile(checkpoint, partial)
        run.write_summary("stopped", step=step)

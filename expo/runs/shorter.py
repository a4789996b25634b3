"""A run that differs from a finished one in nothing but `trainer.max_steps` goes on from it, where the result is that of one run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from expo.config import Config, UserError, lineage
from expo.config.from_run import restore
from expo.runs.checkpoints import newest_checkpoint, step_of
from expo.runs.directory import Run
from expo.runs.reading import read_lines, read_summary


def inherit(run: Run) -> int:
    """Begin a run from the checkpoint of one with fewer steps, the longest there is. Returns the step, 0 where there is none.

    Says which run it is, or why it cannot be used. What is taken over is what one long run would have left: no evaluation
    that only the shorter run's end asked for.
    """
    if run.cfg.fresh or newest_checkpoint(run.dir, lineage(run.cfg)) is not None:
        return 0
    for step, other in sorted(_shorter(run.cfg), key=lambda found: -found[0]):
        reason = run.cfg.algorithm.bound_to_length(step) or run.cfg.positives.bound_to_length
        told = f"{other.dir} is this run but for trainer.max_steps={other.cfg.trainer.max_steps}"
        if reason:
            print(f"{told}; this one begins anew: {reason}")
            return 0
        with other.unused() as unused:
            if (
                unused
                and (checkpoint := newest_checkpoint(other.dir, lineage(run.cfg))) is not None
                and step_of(checkpoint) == step
            ):
                _take(other, checkpoint, run)
                print(f"{told}; this one goes on from its step {step}")
                return step
    return 0


def _shorter(cfg: Config) -> Iterator[tuple[int, Run]]:
    """Yield the runs that differ from a config in a smaller `trainer.max_steps` alone, each with the step of its checkpoint."""
    for path in Path(cfg.output_dir).glob("*/*/config.yaml"):
        if read_summary(path.parent).get("seed") != cfg.seed or not any(path.parent.glob("checkpoints/step*.ckpt")):
            continue
        try:
            other = restore(path.parent)
        except UserError:  # of another version, or not ours
            continue
        if other.trainer.max_steps < cfg.trainer.max_steps and lineage(other) == lineage(cfg):
            checkpoint = newest_checkpoint(path.parent, lineage(cfg))
            if checkpoint is not None:
                other.output_dir = cfg.output_dir
                yield step_of(checkpoint), Run(other, path.parent)


def _take(other: Run, checkpoint: Path, run: Run) -> None:
    """Copy what the first steps have left; the checkpoint last, so that a kill in between takes nothing for whole."""
    every, step = run.cfg.evaluation.every, step_of(checkpoint)

    def evaluated(at: int) -> bool:
        return at == 0 or bool(every and at % every == 0)

    lines = [
        line
        for line in read_lines(other.dir)
        if line["step"] <= step and ("loss/total" in line or evaluated(line["step"]))
    ]
    (run.dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file in (other.dir / "completions").glob("*-step*.parquet"):
        at = int(file.stem[-6:])
        if at <= step and evaluated(at):
            (run.dir / "completions").mkdir(exist_ok=True)
            shutil.copy2(file, run.dir / "completions")
    if (other.dir / "pairs").is_dir():
        shutil.copytree(other.dir / "pairs", run.dir / "pairs", dirs_exist_ok=True)
    last = [line for line in lines if "loss/total" not in line][-1]
    run.metrics = {name: value for name, value in last.items() if name != "step"}
    run.earlier_s = read_summary(other.dir).get("wall_s", 0.0)
    (run.dir / "checkpoints").mkdir(exist_ok=True)
    partial = run.dir / "checkpoints" / "copying.tmp"
    shutil.copyfile(checkpoint, partial)
    run.write_summary("stopped", step=step)
    partial.replace(run.dir / "checkpoints" / checkpoint.name)

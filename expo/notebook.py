"""The Python API: runs as pandas DataFrames, and the commands as functions. For notebooks and scripts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from expo.commands.evaluate import evaluate_command
from expo.commands.train import train as train_command
from expo.config import Config, UserError, check, compose_config, restore, run_dir
from expo.config.compose import for_command
from expo.config.from_run import config_from_run
from expo.config.wording import explain
from expo.runs.listing import find_runs, in_order, kept, run_folder
from expo.runs.reading import completions_file, read_lines, read_rows, read_summary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedRun:
    """A run directory, of training or of an evaluation."""

    dir: Path

    @cached_property
    def config(self) -> Config:
        """Return its typed config. Raises UserError where this version of expo cannot read it."""
        return restore(self.dir)

    @property
    def summary(self) -> dict[str, Any]:
        """Return summary.json: status, metrics of the last evaluation, versions, device, seconds."""
        return read_summary(self.dir)

    @property
    def settings(self) -> dict[str, Any]:
        """Return every key that changes the result, flat."""
        return run_folder(str(self.dir)).settings

    def metrics(self) -> pandas.DataFrame:
        """Return metrics.jsonl: one row per step done, its scalars and those of its evaluation; empty for an
        evaluation's directory."""
        lines = pandas.DataFrame(read_lines(self.dir))
        # A step's own scalars and its evaluation are two lines.
        return lines.groupby("step", as_index=False).first() if len(lines) else lines

    def completions(self, step: int | None = None) -> pandas.DataFrame:
        """Return every completion of an evaluation, with its problem and verdict. Args: step, steps done; None: the
        last.

        Raises UserError where there is none.
        """
        return self._rows("eval", step)

    def rollouts(self, step: int | None = None) -> pandas.DataFrame:
        """Return the kept rollouts of a training step, with each problem's positive, as `expo samples` prints them.

        Args and errors as of `completions`.
        """
        return self._rows("train", step)

    def _rows(self, kind: str, step: int | None) -> pandas.DataFrame:
        return pandas.DataFrame(read_rows(completions_file(self.dir, kind, step)))

    def model(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Return the finished model and its tokenizer, in evaluation mode. Raises UserError where the run is not
        finished."""
        from expo.config import ModelConf
        from expo.model.policy import load_policy

        final = self.dir / "checkpoints" / "final"
        if not final.is_dir():
            raise UserError(f"{self.dir}: has no finished model; finish it with expo train run={self.dir}")
        model, tokenizer = load_policy(ModelConf(path=str(final)))
        return model.eval(), tokenizer


def load_run(directory: str | Path) -> LoadedRun:
    """Return a run directory as DataFrames. Raises UserError where it is none."""
    return LoadedRun(run_folder(str(directory)).dir)


def list_runs(output_dir: str | Path = "outputs", *filters: str, sort: str = "run") -> pandas.DataFrame:
    """Return all runs of an output folder, one per row, as `expo runs` shows them, with all metrics and keys of the
    config.

    Args: filters and sort, as of `expo runs`: "status=done", "pass@4>=0.5", "-pass@4".
    """
    return pandas.DataFrame(in_order(kept([run.row for run in find_runs(Path(output_dir))], filters), sort))


def train(*overrides: str) -> LoadedRun:
    """Make one run, or go on with it, as `expo train` does. Raises UserError for a mistake, RuntimeError where the run
    fails."""
    return _command("train", train_command, overrides)


def evaluate(*overrides: str, run: str | Path | None = None) -> LoadedRun:
    """Evaluate a model, or the finished model of a run under the run's settings, as `expo evaluate` does.

    Args: overrides, as on the command line, such as "k=[1,8]"; run, a run directory. Raises as `train`.
    """
    return _command("evaluate", evaluate_command, [*([f"run={run}"] if run is not None else []), *overrides])


def _command(name: str, command: Callable[[Config], int], overrides: Any) -> LoadedRun:
    given = list(overrides)
    of_run = any(o.startswith("run=") for o in given)
    try:
        cfg = config_from_run(name, given) if of_run else for_command(compose_config(given), name, given)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    check(cfg)
    code = command(cfg)
    if code:
        raise RuntimeError(f"expo {name} ended with {code}; see {run_dir(cfg, name)}")
    return LoadedRun(run_dir(cfg, name))

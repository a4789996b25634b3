"""Where scalars and tables go: metrics.jsonl always, and where `logger=` says (expo/loggers/trackers.py)."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from expo.config import Config, build, run_id
from expo.ground.files import beside
from expo.runs.reading import read_lines

log = logging.getLogger(__name__)

TABLE_ROWS = 200  # rows of a completions table that are shown; parquet has them all


@dataclass(frozen=True)
class Session:
    """The run as its loggers see it: config, directory, steps done before this session, command that makes it."""

    cfg: Config
    directory: Path
    resume_step: int = 0
    command: str = "train"

    @property
    def id(self) -> str:
        """Return the run's id in every logger: a resumed run appends to it, also where its directory was renamed."""
        return run_id(self.cfg, self.command)

    @property
    def config(self) -> dict[str, Any]:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(self.cfg), enum_to_str=True))


class Tracker(Logger):
    """Logger with what expo asks for beside Lightning's interface. Inherit it before one of Lightning's loggers."""

    keeps_undefined = False  # whether it takes a step's scalars that are None
    # Whether it leaves out the scalars that an earlier session has sent: then it is given all of them again.
    skips_sent = False

    def log_rows(self, name: str, columns: list[str], rows: list[list[Any]], step: int | None) -> None:
        """Show a completions table, where the logger shows tables: completions/*.parquet has all rows."""

    def log_record(self, record: Mapping[str, Any]) -> None:
        """Note what summary.json says beside the metrics: status, wall-clock seconds, versions, device."""

    def alert(self, title: str, text: str) -> None:
        """Tell whoever watches, where the logger can."""

    def close(self) -> None:
        """End the session: nothing more is logged in this process."""
        self.finalize("success")


class JsonlLogger(Tracker):
    """One JSON object per call in metrics.jsonl; `step` is the number of steps done.

    Opened at the step that a run resumes from: lines of later steps, which are about to be made again, are dropped.
    """

    keeps_undefined = True

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        earlier = [line for line in read_lines(path.parent) if line["step"] <= resume_step] if resume_step else []
        if lost := resume_step - len({line["step"] for line in earlier} - {0}):
            log.warning("%s: lacks the scalars of %d of the first %d steps", path, lost, resume_step)
        with beside(path) as partial:  # a SIGKILL in between loses nothing
            partial.write_text("".join(json.dumps(line) + "\n" for line in earlier))

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Skip hyperparameters: config.yaml has them."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | dict(metrics)) + "\n")


def make_loggers(session: Session) -> list[Tracker]:
    """Return the loggers of a training run. Raises UserError where one cannot start."""
    return [JsonlLogger(session.directory / "metrics.jsonl", session.resume_step), *chosen_loggers(session)]


def chosen_loggers(session: Session) -> list[Tracker]:
    """Return the logger that `logger=` names; none for logger=none. Raises UserError where it cannot start."""
    return [build(session.cfg.logger, session)] if session.cfg.logger._target_ else []


def trackers(loggers: Sequence[Logger]) -> list[Tracker]:
    return [logger for logger in loggers if isinstance(logger, Tracker)]


def log_step(loggers: Sequence[Logger], metrics: Mapping[str, float | None], step: int) -> None:
    """Send a step's scalars; the undefined ones go only to loggers that keep them."""
    defined = {name: value for name, value in metrics.items() if value is not None}
    for logger in trackers(loggers):
        logger.log_metrics(metrics if logger.keeps_undefined else defined, step)  # type: ignore[arg-type]


def log_summary(loggers: Sequence[Logger], record: Mapping[str, Any]) -> None:
    """Send summary.json's content beside the metrics (status, wall-clock seconds, versions, device)."""
    for logger in trackers(loggers):
        logger.log_record({name: value for name, value in record.items() if name != "metrics"})


def log_measured(loggers: Sequence[Tracker], record: Mapping[str, Any], name: str, rows: list[dict[str, Any]]) -> None:
    """Log a run without steps: its metrics, a table of its completions, and the summary that is about to be written."""
    for logger in loggers:
        # At the logger's own next step: a run that was measured before is there already.
        logger.log_metrics(record["metrics"])
    log_table(loggers, name, rows, None)
    log_summary(loggers, record)
    for logger in loggers:
        logger.close()


def log_table(loggers: Sequence[Logger], name: str, rows: list[dict[str, Any]], step: int | None) -> None:
    """Send the first rows of a completions table to the loggers that show tables."""
    columns = [c for c in rows[0] if not c.startswith("positive_token")] if rows else []
    for logger in trackers(loggers) if rows else []:
        logger.log_rows(name, columns, [[row[c] for c in columns] for row in rows[:TABLE_ROWS]], step)

"""The loggers that `logger=` chooses: Lightning's, told where a run's files go and what becomes of a resumed run."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from expo.config import CsvLoggerConf, TensorBoardLoggerConf, UserError, WandbConf, WandbLoggerConf, label
from expo.config.errors import first_line
from expo.ground.files import remove
from expo.loggers.offline import offline_files, read_offline
from expo.loggers.tracking import Session, Tracker
from expo.runs.directory import git_commit
from expo.runs.reading import last_evaluation

W_AND_B_PLACES = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")  # in the user's home, unless told


class Wandb(Tracker, WandbLogger):
    """W&B, under the run's own id. Its step is the number of steps done: by itself it counts calls of each session.

    Offline it writes in blocks of 32 KiB: a SIGKILL takes the steps of the last one along.
    """

    skips_sent = True

    def __init__(self, conf: WandbLoggerConf, session: Session):
        from wandb.errors import Error as WandbError  # here, since its import takes half a second

        if not os.access(Path.home(), os.W_OK):  # W&B's process would log to the terminal, and end at the first table
            home = str(session.directory / "wandb" / "home")
            os.environ |= {name: os.environ.get(name, home) for name in W_AND_B_PLACES}
        self.row: dict[str, Any] = {}  # scalars of the step that is being logged
        self.cfg, self.directory = session.cfg, session.directory
        options = asdict(conf.wandb)
        self.lost, mode = False, options.pop("mode")  # lost: W&B's own process has ended
        cfg, before = session.cfg, "" if session.command == "train" else f"{session.command}-"
        super().__init__(
            name=f"{before}{label(cfg)}",
            id=session.id,
            save_dir=session.directory,
            offline=mode == "offline",
            resume="allow",
            config={"git": git_commit()} | session.config,
            **({"mode": mode} if mode == "disabled" else {}),
            **options,
        )
        try:
            # Starts the run now, so that a missing key is found before any work.
            with self.telling():
                begun_at = self.experiment.starting_step
        except WandbError as error:
            raise UserError(f"logger.wandb.mode={mode}: {_no_wandb(error)}") from error
        # `wandb sync` would send them twice, and shift what follows.
        # A run that was killed before its first checkpoint begins again, and its steps are in the files all the same.
        project = conf.wandb.entity or "", conf.wandb.project
        self.sent_steps = max(_last_step(session.directory, project), begun_at - 1 if session.resume_step else -1)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send scalars, but for steps that an earlier session has sent: after a SIGKILL, some are made again, alike."""
        if step is None:
            with self.telling():
                self.experiment.log(dict(metrics))
        elif step > self.sent_steps:
            if step != self.row.get("trainer/global_step"):
                self._send()
            self.row |= {**metrics, "trainer/global_step": step}  # the x axis that Lightning tells W&B of

    def _send(self) -> None:
        """Send the step that is complete: of a step that W&B has, it makes another, and shifts all later ones."""
        row, self.row = self.row, {}
        if row and not self.lost:
            with self.telling():
                self.experiment.log(row, step=row["trainer/global_step"])

    def log_rows(self, name: str, columns: list[str], rows: list[list[Any]], step: int | None) -> None:
        self.log_table(name, columns, rows, step=step)

    def log_record(self, record: Mapping[str, Any]) -> None:
        if str(record.get("reason", "")).startswith("Collapsed"):
            self._send()  # also before its evaluation: with trainer.on_collapse=stop no session goes on from here
        if not self.lost:
            with self.telling():
                self.experiment.summary.update(dict(record))

    def alert(self, title: str, text: str) -> None:
        with self.telling():
            self.experiment.alert(title, text)

    @property
    def waiting(self) -> int | None:
        """Return the step whose evaluation was stopped: the session that goes on sends all of it."""
        step = self.row.get("trainer/global_step")
        stopped = step is not None and self.cfg.is_evaluated(step) and not last_evaluation(self.directory, step)
        return step if stopped else None

    def finalize(self, status: str) -> None:
        if self.waiting is None:
            self._send()
        super().finalize(status)

    def close(self) -> None:
        super().close()
        if not self.lost:
            with self.telling():
                self.experiment.finish()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell W&B something. Raises UserError where its own process has ended; then no more is told."""
        try:
            with telling_wandb():
                yield
        except UserError:
            self.lost = True
            raise


@contextmanager
def telling_wandb() -> Iterator[None]:
    """Raise UserError where W&B's own process has ended."""
    import wandb
    from wandb.sdk.mailbox import MailboxClosedError

    try:
        yield
    except (ConnectionError, MailboxClosedError) as error:
        with suppress(ConnectionError, MailboxClosedError):  # else W&B tries it at exit, and prints a stack trace
            wandb.teardown()
        why = f"W&B's own process has ended ({first_line(error)})"
        raise UserError(f"logger=wandb: {why}; the same command goes on, and logger=none without it") from error


def _last_step(directory: Path, project: tuple[str, str]) -> int:
    """Return the last step in a run's offline files of a project, of any entity where that is ""; -1 for none, and for
    a file damaged from its beginning on."""
    last = -1
    for file in offline_files(directory):
        with suppress(ValueError):
            if project in ((session := read_offline(file)).project, ("", session.project[1])):
                last = max((row["_step"] for row in session.history), default=last)
    return last


class TensorBoard(Tracker, TensorBoardLogger):
    """Event files in the run's `tensorboard/`. TensorBoard itself hides steps that are about to be made again."""

    def __init__(self, conf: TensorBoardLoggerConf, session: Session):
        purge_step = session.resume_step + bool(session.resume_step)
        super().__init__(session.directory, name="", version="tensorboard", purge_step=purge_step)
        _leave_to_flush(threading.excepthook)
        self.config = "" if session.resume_step else f"```json\n{json.dumps(session.config, indent=1)}\n```"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.config:  # not before there is something to show: the file hides those of an earlier session
            self.experiment.add_text("config", self.config, 0)
            self.config = ""
        super().log_metrics(metrics, step)
        self.experiment.flush()  # TensorBoard writes when it finds the time: a SIGKILL would lose it


def _leave_to_flush(hook: Callable[[threading.ExceptHookArgs], Any]) -> None:
    """Print no stack trace of the thread that writes TensorBoard's files: `flush` raises its error again."""

    def told(ended: threading.ExceptHookArgs) -> None:
        if not type(ended.thread).__module__.startswith("tensorboard."):
            hook(ended)

    threading.excepthook = told


class Csv(Tracker, CSVLogger):
    """`csv/metrics.csv` in the run's directory, begun anew by Lightning in every session: no step is sent before."""

    skips_sent = True

    def __init__(self, conf: CsvLoggerConf, session: Session):
        if session.command == "train":  # else the earlier file stays until Lightning has something new
            remove(session.directory / "csv")
        super().__init__(session.directory, name="", version="csv", flush_logs_every_n_steps=1)


def log_finished_table(
    conf: WandbConf, name: str, scale: str, rows: tuple[list[str], list[list[str]]], folder: Path, directory: Path
) -> None:
    """Log a W&B run of the table's own, the same one each time, in the group of its runs: the table as a W&B Table, its
    pictures, and all its files as an artifact. Raises UserError where W&B cannot start.

    Args: rows, headings and cells; folder, the table's files; directory, where W&B's own files go.
    """
    import wandb
    from wandb.errors import Error as WandbError

    options = {key: value for key, value in asdict(conf).items() if key not in ("group", "job_type", "tags")}
    try:
        session = wandb.init(
            **options, id=f"table-{name}-{scale}", name=f"{name}-{scale}", group=name, job_type="table", tags=[scale],
            resume="allow", dir=directory, config={"git": git_commit()},
        )  # fmt: skip
    except WandbError as error:
        why = _no_wandb(error)
        raise UserError(f"logger.wandb.mode={conf.mode}: {why}; the table itself is in {folder}") from error
    with telling_wandb(), session as run:
        run.log({"table": wandb.Table(columns=[*rows[0]], data=rows[1])})
        run.log({path.stem: wandb.Image(str(path)) for path in folder.glob("*.png")})
        artifact = wandb.Artifact(f"{name}-{scale}", type="table")
        artifact.add_dir(str(folder))
        run.log_artifact(artifact)


def _no_wandb(error: Exception) -> str:
    return f"W&B cannot start ({first_line(error)}); run `wandb login`, or use logger.wandb.mode=offline"

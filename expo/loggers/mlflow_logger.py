"""`logger=mlflow`: Lightning's MLFlowLogger, with a run that is found again, and a server that may be gone a while."""

import logging
import os
import re
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger

from expo.config import MlflowLoggerConf, UserError, label, make_folder
from expo.config.errors import first_line
from expo.ground.files import locked
from expo.loggers.tracking import Session, Tracker
from expo.runs.directory import git_commit

log = logging.getLogger(__name__)

VARIABLE = "MLFLOW_TRACKING_URI"
# What MLflow calls the ends of a run.
MLFLOW_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Mlflow(Tracker, MLFlowLogger):
    """MLflow. It makes up a run's id, so that expo's own is a tag, by which a resumed run is found again."""

    skips_sent = True

    def __init__(self, conf: MlflowLoggerConf, session: Session):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 are minutes, at every step
        options, root = conf.mlflow, Path(session.cfg.output_dir).resolve()
        make_folder(root, "output_dir")
        from mlflow.exceptions import MlflowException

        given = options.tracking_uri or os.environ.get(VARIABLE)
        uri = given or f"sqlite:///{root}/mlflow.db"
        tags = {
            "expo.id": session.id, "group": options.group, "job_type": options.job_type, "seed": session.cfg.seed,
            "git": git_commit(),
        }  # fmt: skip
        self.last_steps: dict[str, int] = {}
        self.kept: deque[tuple[dict[str, float], int]] = deque()  # not sent yet
        self.warned = False
        try:
            with ExitStack() as stack:
                stack.callback(_restore, os.environ.get(VARIABLE))
                if not given:  # of two runs that begin at once, one makes the database
                    stack.enter_context(locked(root / "mlflow.lock", ""))
                super().__init__(
                    options.experiment, label(session.cfg), uri,
                    {name: str(value) for name, value in tags.items() if value is not None},
                    artifact_location=None if given else f"file://{root}/mlflow-artifacts",
                )  # fmt: skip
                self.resumed = self._go_on(session)
                self.experiment  # noqa: B018  (starts the run now, so that a server that is not there is found before any work)
                if not self.resumed:
                    self.log_hyperparams(session.config)
        except MlflowException as error:
            raise UserError(
                f"logger.mlflow.tracking_uri={options.tracking_uri}: MLflow cannot start ({first_line(error)}); start "
                "the server, or leave the key out"
            ) from error

    def _go_on(self, session: Session) -> bool:
        """Resume the MLflow run of an earlier session; return whether there is one. With `fresh`, delete it."""
        client = self._mlflow_client
        experiment = client.get_experiment_by_name(self._experiment_name)
        if experiment is None:
            return False
        earlier = client.search_runs([experiment.experiment_id], f"tags.`expo.id` = '{session.id}'")
        if session.cfg.fresh:
            for run in earlier:
                client.delete_run(run.info.run_id)
        elif earlier:
            self._run_id = earlier[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        return self._run_id is not None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send scalars; `@` is `_at_`, and what else MLflow does not take in a name is `_`. While the server is gone
        they are kept, and sent when it is back."""
        self.kept.append(({_named(name): value for name, value in metrics.items()}, step or 0))
        self._send_kept()

    def _send_kept(self) -> None:
        """Send the scalars that wait. A step that an earlier session has sent is not sent again."""
        from mlflow.exceptions import MlflowException

        while self.kept:
            metrics, step = self.kept[0]
            try:
                if new := {n: v for n, v in metrics.items() if step > self._last_step(n)}:
                    super().log_metrics(new, step)
            except MlflowException as error:
                if not self.warned:
                    told = "MLflow does not take step %d (%s); the run goes on, and tries again"
                    log.warning(told, step, first_line(error))
                self.warned = True
                return
            self.kept.popleft()

    def _last_step(self, name: str) -> int:
        """Return the last step of a scalar that an earlier session has sent; -1 for none."""
        if name not in self.last_steps:
            history = self._mlflow_client.get_metric_history(str(self.run_id), name) if self.resumed else []
            self.last_steps[name] = max((point.step for point in history), default=-1)
        return self.last_steps[name]

    def log_record(self, record: Mapping[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        self._send_kept()
        try:
            for name, value in record.items():
                self.experiment.set_tag(self.run_id, name, value)
            self.experiment.set_terminated(self.run_id, MLFLOW_STATUS[record["status"]])
        except MlflowException as error:
            lacks = f"and lacks {len(self.kept)} steps: metrics.jsonl and summary.json have all"
            log.warning("MLflow does not take how the run ended (%s), %s", first_line(error), lacks)

    def finalize(self, status: str = "success") -> None:
        """Leave the run's status to log_record, which knows a stopped run from a finished one."""


def _restore(uri: str | None) -> None:
    """Give the variable back its value: MLflow sets it, and a later run here would take it for the user's."""
    os.environ.pop(VARIABLE, None)
    if uri is not None:
        os.environ[VARIABLE] = uri


def _named(metric: str) -> str:
    return re.sub(r"[^\w./ -]", "_", metric.replace("@", "_at_"))

"""Keys of `logger=`: where scalars go beside metrics.jsonl."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from expo.config.key import Config, Rules, installed, key, option


@option("logger", "none")
class LoggerConf:
    """metrics.jsonl only, which is always written."""

    _target_: str = ""

    def packages(self) -> Mapping[str, str]:
        """Return the modules that the logger needs beyond expo's own, and the packages that bring them."""
        return {}

    def needs_here(self, cfg: Config) -> Rules:
        remedy = f"install it with pip install {' '.join(self.packages().values())}, or use logger=none"
        for module, package in self.packages().items():
            yield from installed(f"logger._target_={self._target_}", module, remedy, package)

    def of_table(self, table: str, arm: str, tags: Sequence[str]) -> list[str]:
        """Return the overrides that sort a run of a table: nothing where the logger has no such keys."""
        return []


@dataclass
class WandbConf:
    """Where W&B puts a run."""

    project: str = key("expo", help="W&B project")
    entity: str | None = key(None, help="W&B team or user; null: your default one")
    mode: str = key("offline", choices=("offline", "online", "disabled"), help="upload later, while running, or never")
    group: str | None = key(None, help="W&B group; `expo table` sets the table's name")
    job_type: str | None = key(None, help="W&B job type; `expo table` sets the arm")
    tags: list[str] = key([], help="W&B tags")


@option("logger", "wandb", formerly="expo.loggers.loggers.Wandb")
class WandbLoggerConf(LoggerConf):
    """Weights & Biases, beside metrics.jsonl."""

    _target_: str = "expo.loggers.trackers.Wandb"
    wandb: WandbConf = key(WandbConf, help="where W&B puts the run")

    def of_table(self, table: str, arm: str, tags: Sequence[str]) -> list[str]:
        # Hydra halves the backslashes before a quote.
        quoted = ",".join(
            "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), tag) + "'" for tag in tags
        )
        return [f"logger.wandb.group={table}", f"logger.wandb.job_type={arm}", f"logger.wandb.tags=[{quoted}]"]


@option("logger", "tensorboard", formerly="expo.loggers.loggers.TensorBoard")
class TensorBoardLoggerConf(LoggerConf):
    """TensorBoard, beside metrics.jsonl: event files in `tensorboard/` of the run directory."""

    _target_: str = "expo.loggers.trackers.TensorBoard"

    def packages(self) -> Mapping[str, str]:
        return {"tensorboard": "tensorboard"}


@option("logger", "csv", formerly="expo.loggers.loggers.Csv")
class CsvLoggerConf(LoggerConf):
    """metrics.csv beside metrics.jsonl, in `csv/` of the run directory."""

    _target_: str = "expo.loggers.trackers.Csv"


@dataclass
class MlflowConf:
    """Where MLflow puts a run."""

    experiment: str = key("expo", help="MLflow experiment")
    tracking_uri: str | None = key(None)
    """MLflow server or store; null: $MLFLOW_TRACKING_URI, or else the SQLite file mlflow.db in `output_dir`"""
    group: str | None = key(None, help="tag `group`; `expo table` sets the table's name")
    job_type: str | None = key(None, help="tag `job_type`; `expo table` sets the arm")


@option("logger", "mlflow", formerly="expo.loggers.mlflow_logger.Mlflow")
class MlflowLoggerConf(LoggerConf):
    """MLflow, beside metrics.jsonl."""

    _target_: str = "expo.loggers.mlflow_logger.Mlflow"
    mlflow: MlflowConf = key(MlflowConf, help="where MLflow puts the run")

    def packages(self) -> Mapping[str, str]:
        database = {"sqlalchemy": "sqlalchemy", "alembic": "alembic"}
        local = (self.mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:")
        return {"mlflow": "mlflow-skinny"} | (database if local else {})

    def rules(self, cfg: Config) -> Rules:
        if urlsplit(self.mlflow.tracking_uri or "").password is not None:
            yield (
                "logger.mlflow.tracking_uri: has a password, which would be in config.yaml; leave it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
            )

    def of_table(self, table: str, arm: str, tags: Sequence[str]) -> list[str]:
        return [f"logger.mlflow.group={table}", f"logger.mlflow.job_type={arm}"]

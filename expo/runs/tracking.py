"""Where scalars and tables go: metrics.jsonl always, W&B where asked for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import OmegaConf

from expo.config import Config, UserError, WandbConf, WandbLoggerConf, run_id
from expo.runs.directory import Run, git_commit

TABLE_ROWS = 200  # rows of a completions table that go to W&B; parquet has them all


class JsonlLogger(Logger):
    """One JSON object per call in metrics.jsonl; `step` is the number of steps done.

    Opened at the step that a run resumes from: lines of later steps, which are about to be made again, are dropped.
    """

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() and resume_step else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= resume_step]
        path.with_suffix(".tmp").write_text("".join(line + "\n" for line in kept))
        path.with_suffix(".tmp").replace(path)  # a SIGKILL in between loses nothing

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log nothing: config.yaml has them."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | dict(metrics)) + "\n")


class StepWandbLogger(WandbLogger):
    """W&B's own step is the number of steps done. Lightning leaves it to count calls, from 0 again in every session of a resumed run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)


def make_loggers(cfg: Config, directory: Path, resume_step: int) -> list[Logger]:
    """Return the loggers of a training run."""
    return [JsonlLogger(directory / "metrics.jsonl", resume_step), *wandb_loggers(cfg, directory)]


def wandb_loggers(cfg: Config, directory: Path, command: str = "train") -> list[WandbLogger]:
    """Return W&B's logger, where asked for. Its run is called as the run's directory is, so that a resumed run goes on in it."""
    if not isinstance(cfg.logger, WandbLoggerConf):
        return []
    from wandb.errors import Error as WandbError  # here, since its import takes half a second

    options = asdict(cfg.logger.wandb)
    mode = options.pop("mode")
    before = "" if command == "train" else f"{command}-"
    record = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(cfg), enum_to_str=True))
    logger = StepWandbLogger(
        name=f"{before}{cfg.name}-s{cfg.seed}", id=run_id(cfg, command), save_dir=directory, offline=mode == "offline", resume="allow",
        config=record | {"git": git_commit()},
        **({"mode": mode} if mode == "disabled" else {}), **options,
    )  # fmt: skip
    try:
        logger.experiment  # noqa: B018  (starts the run now, so that a missing key is found before any work)
    except WandbError as error:
        raise UserError(f"logger.wandb.mode={mode}: {_no_wandb(error)}") from error
    return [logger]


def log_summary(loggers: Sequence[Logger], run: Run) -> None:
    """Send what summary.json says beside the metrics (status, wall-clock seconds, versions, device) to W&B's summary."""
    record = {name: value for name, value in run.summary().items() if name != "metrics"}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(record)


def log_measured(loggers: Sequence[WandbLogger], run: Run, name: str, rows: list[dict[str, Any]]) -> None:
    """Log a run that has no steps: its metrics, a table of its completions, and its summary."""
    for logger in loggers:
        logger.log_metrics(run.metrics)  # at W&B's own next step: a run that was measured before is there already
    log_table(loggers, name, rows, None)
    log_summary(loggers, run)
    for logger in loggers:
        logger.experiment.finish()


def log_table(loggers: Sequence[Logger], name: str, rows: list[dict[str, Any]], step: int | None) -> None:
    """Send the first rows of a completions table to the loggers that show tables."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rows:
            columns = [c for c in rows[0] if not c.startswith("positive_token")]
            logger.log_table(name, columns, [[row[c] for c in columns] for row in rows[:TABLE_ROWS]], step=step)


def log_finished_table(
    conf: WandbConf, name: str, scale: str, rows: tuple[list[str], list[list[str]]], folder: Path, directory: Path
) -> None:
    """Log a run of the table's own, in the group of its runs: the table as a W&B Table, its pictures, and all its files as an artifact.

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
        raise UserError(
            f"logger.wandb.mode={conf.mode}: {_no_wandb(error)}; the table itself is in {folder}"
        ) from error
    with session as run:
        run.log({"table": wandb.Table(columns=[*rows[0]], data=rows[1])})
        run.log({path.stem: wandb.Image(str(path)) for path in folder.glob("*.png")})
        artifact = wandb.Artifact(f"{name}-{scale}", type="table")
        artifact.add_dir(str(folder))
        run.log_artifact(artifact)


def _no_wandb(error: Exception) -> str:
    return f"W&B cannot start ({str(error).splitlines()[0]}); run `wandb login`, or use logger.wandb.mode=offline"

"""Place and name of a run: its directory, its label, its id."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from expo.config.dataset import MEASURING
from expo.config.errors import UserError
from expo.config.identity import identity
from expo.config.naming import NO_RUNS, plain
from expo.config.run import Config

LIFT = "lift2"  # what expo diagnose measures as answer lift: since 2026-11-28 another number


def run_mark(cfg: Config, command: str = "train") -> str:
    """Return a mark that differs where the outcomes of a command do: the identity, and the part that is evaluated."""
    run, part = identity(cfg), cfg.dataset.part_mark
    if command == "evaluate":
        return f"{run}{part}"
    if command == "diagnose":
        asked, kinds = cfg.diagnose, "-shuffled" if cfg.diagnose.shuffled else ""
        judge = json.dumps([asked.judge.model, cfg.prompts.judge])  # two judges, two files
        judged = f"-judged{hashlib.sha256(judge.encode()).hexdigest()[:6]}" if asked.judge.base_url else ""
        return f"{run}-{asked.problems}x{asked.samples}-{LIFT}{kinds}{part}{judged}"
    return run


def name_of(cfg: Config, command: str, overrides: Sequence[str]) -> str:
    """Return the name of an outcome: as asked for, or the run's; of another model that is measured, the model's."""
    asked = any(o.startswith("name=") for o in overrides) or cfg.run is not None
    return cfg.name if command not in MEASURING or asked else re.sub(r"-s\d+$", "", _model_name(cfg)) or cfg.name


def label(cfg: Config) -> str:
    """Return the label of a run among others: name, what differs, and seed."""
    return "-".join(filter(None, (cfg.name, cfg.differs, f"s{cfg.seed}")))


def run_id(cfg: Config, command: str = "train") -> str:
    """Return the id of a run, as W&B knows it: the same wherever its directory is moved."""
    before = f"{cfg.name}-s{cfg.seed}" if command == "train" else f"{command}-{cfg.dataset.name}"
    return f"{before}-{run_mark(cfg, command)}"


def run_dir(cfg: Config, command: str = "train", mark: str = "") -> Path:
    """Return the folder of the outcome of `expo <command>` for a config.

    A folder whose name ends in the identity is that folder, whatever stands before it: older versions and people give
    other names. A new one is called `<data>/<name>-<what differs>-s<seed>-<identity>`. Args: mark, its `run_mark` where
    that is known.
    """
    root, mark = Path(cfg.output_dir), mark or run_mark(cfg, command)
    places = [root / command] if command != "train" else [d for d in root.glob("*/") if d.name not in NO_RUNS]
    folders = [path for place in places for path in sorted(place.glob(f"*-{mark}")) if (path / "config.yaml").is_file()]
    if folders:  # of several, the one that is done, or else has come furthest
        return max(folders, key=_progress)
    if command != "train":
        differs = f"-{cfg.differs}" if cfg.differs else ""
        return root / command / f"{_model_name(cfg)}-on-{_data_name(cfg, command)}{differs}-{mark}"
    return root / _data_name(cfg, command) / f"{label(cfg)}-{mark}"


def _progress(directory: Path) -> tuple[bool, int]:
    """Return whether a run is done, and how many files of checkpoints it has."""
    summary = directory / "summary.json"
    done = summary.is_file() and '"status": "done"' in summary.read_text(errors="replace")
    return done, len(list(directory.glob("checkpoints/*")))


def _data_name(cfg: Config, command: str) -> str:
    """Return the data set's name and, of a local file, the file's."""
    file = cfg.dataset.evaluated_file(command)
    stem = plain(Path(file).stem) if file else ""
    return "-".join(dict.fromkeys(filter(None, (cfg.dataset.name, stem))))


def _model_name(cfg: Config) -> str:
    """Name a model in a folder's name: a run's final model by the run, another one by its path."""
    path = Path(cfg.model.path)
    of_run = path.parent.name == "checkpoints"
    return path.parents[1].name.rpartition("-")[0] if of_run else plain(path.name)


def make_folder(path: Path, key: str) -> None:
    """Make a folder. Raises UserError, which names the option that asks for it, where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be made ({error.strerror}); give another folder") from error

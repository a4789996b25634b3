"""A run is known by what changes its result."""

import dataclasses
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo.config.errors import UserError
from expo.config.key import FORMER, declaration
from expo.config.run import Config

# The base policy shipped with expo.
LADDER = Path(__file__).parents[1] / "model" / "assets" / "ladder"


def identity(cfg: Config) -> str:
    """Return the hash of everything in a config that changes a run's result, local data files by content."""
    return _hash(cfg, pairs=False)


def arm_identity(cfg: Config) -> str:
    """Return the hash of everything that changes a run's result but its seed."""
    return _hash(replace(cfg, seed=0), pairs=False)


def pairs_identity(cfg: Config) -> str:
    """Return the hash of everything that changes the pairs which DPO's initial policy makes."""
    return _hash(cfg, pairs=True)


def _hash(cfg: Config, pairs: bool) -> str:
    tree = _tree(cfg, pairs)
    for name in ("path", "eval_path"):
        if tree["dataset"][name]:
            tree["dataset"][name] = hashlib.sha256(Path(tree["dataset"][name]).read_bytes()).hexdigest()
    folder = LADDER if cfg.model.path == "ladder" else Path(cfg.model.path)
    tree["model"]["content"] = _content(folder) if folder.is_dir() else None
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:10]


def _tree(node: Any, pairs: bool) -> dict[str, Any]:
    """Return the keys that count, as plain data. With `pairs`, only those that change DPO's first pairs."""
    tree = {}
    for f in dataclasses.fields(node):
        declared, value = declaration(f), getattr(node, f.name)
        if not declared.identity or (pairs and not declared.pairs):
            continue
        plain = _tree(value, pairs) if dataclasses.is_dataclass(value) else value
        if f.name == "_target_":
            plain = FORMER.get(value, value)
        if plain != declared.absent:
            tree[f.name] = plain
    return tree


def _content(folder: Path) -> str:
    """Return a hash of a model folder: names, sizes and the first MiB of each file, which any training changes."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors", ".bin", ".jinja")):
        with file.open("rb") as start:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + start.read(2**20))
    return digest.hexdigest()


def run_dir(cfg: Config, command: str = "train") -> Path:
    """Return the folder where `expo <command>` puts what it makes of a config."""
    run, root, mark = identity(cfg), Path(cfg.output_dir), cfg.dataset.part_mark
    if command == "evaluate":
        return root / "evaluate" / f"{cfg.dataset.name}-{run}{mark}"
    if command == "diagnose":
        return root / "diagnose" / f"{cfg.dataset.name}-{run}-{cfg.diagnose.problems}x{cfg.diagnose.samples}{mark}"
    return root / cfg.dataset.name / f"{cfg.name}-s{cfg.seed}-{run}"


def make_folder(path: Path, key: str) -> None:
    """Make a folder. Raises UserError, which names the option that asks for it, where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be made ({error.strerror}); give another folder") from error

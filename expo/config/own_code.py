"""Hash the user's own code of a run: the packages outside of expo that `_target_` names or that declare its keys."""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from expo.config.key import nodes

NOT_OWN = {"", "expo", "__main__", "builtins"}


def own_packages(names: Iterable[str]) -> list[str]:
    """Return the packages, other than expo's own, that names of modules or classes are in."""
    return sorted({name.partition(".")[0] for name in names} - NOT_OWN)


def own_code(cfg: Any) -> dict[str, str]:
    """Return a hash of each source file of the packages that a config, or a part of one, uses beside expo; {} where it
    uses none."""
    used = [type(node).__module__ for _, node in nodes(cfg)]
    used += [getattr(node, name, "") for _, node in nodes(cfg) for name in ("_target_", "function")]
    return {file: mark for package in own_packages(used) for file, mark in _sources(package).items()}


def changed_code(before: Mapping[str, str]) -> list[str]:
    """Return the source files that have changed since; none of a package that is not installed."""
    now = {f: m for package in {_package(file) for file in before} for f, m in _sources(package).items()}
    here = {_package(file) for file in now}
    files = sorted(file for file in before.keys() | now.keys() if _package(file) in here)
    return [file for file in files if before.get(file) != now.get(file)]


def _package(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def _sources(package: str) -> dict[str, str]:
    """Return the hash of each Python file of a package, by its path from the package's parent. Nothing is imported."""
    spec = PathFinder.find_spec(package, [*sys.path, ""])
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = {str(file.relative_to(folder.parent)): file for folder in folders for file in sorted(folder.rglob("*.py"))}
    if spec and not folders and spec.origin and spec.origin.endswith(".py"):
        files = {Path(spec.origin).name: Path(spec.origin)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:10] for name, file in files.items()}

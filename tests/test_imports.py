"""Every import of a module of expo resolves, also those that no other test reaches."""

import ast
import importlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("expo", "tests", "experiments", "docs") for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(text):
    """The modules of expo that a file imports, and the names that it takes from them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((name.name, None) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module, name.name) for name in node.names)


@cache
def resolves(module, name):
    try:
        if find_spec(module) is None:
            return False
        return (
            name is None or hasattr(importlib.import_module(module), name) or find_spec(f"{module}.{name}") is not None
        )
    except ModuleNotFoundError as error:
        return error.name.partition(".")[0] != "expo"  # of an extra that is not installed here


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_of_expo_is_there(path):
    ours = {(module, name) for module, name in imported(path.read_text()) if module.partition(".")[0] == "expo"}
    assert {(module, name) for module, name in ours if not resolves(module, name)} == set()


def test_a_module_or_a_name_that_is_gone_is_noticed():
    assert not resolves("expo.tables.cost", "SHAPES")
    assert not resolves("expo.model.shapes", "SHAPE")
    assert resolves("expo.model", "shapes")

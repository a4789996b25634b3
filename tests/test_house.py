"""Rules of the house: every import resolves, every key is used, and the package grows only where a commit says why."""

import ast
import importlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml
from conftest import ROOT, TESTS
from pages import blocks

from expo.config.key import flat
from expo.config.reference import key_rows, known, nodes_of

HOUSE = ("expo", "benchmarks")
LINES = 25530
PAGES = [
    page for folder in (".", "docs", "experiments/*") for page in sorted(ROOT.glob(f"{folder}/*.md"))
    if page.name not in ("CHANGELOG.md", "keys.md")
]  # fmt: skip


def sources():
    """Yield the name and text of each piece of Python, also of those that pages show."""
    for folder in (*HOUSE, "tests", "experiments", "docs"):
        yield from ((str(path.relative_to(ROOT)), path.read_text()) for path in sorted((ROOT / folder).rglob("*.py")))
    yield from ((page.name, code) for page in PAGES for kind, _, code in blocks(page.read_text()) if kind == "python")


def imported(text):
    """Yield the modules of the house that a file imports, each with a name that it takes from there, or None."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found = [(name.name, None) for name in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [(node.module, name.name) for name in node.names]
        else:
            continue
        yield from ((module, name) for module, name in found if module.partition(".")[0] in HOUSE)


@cache
def resolves(module, name):
    """Return whether a module is there and has the name; true where an extra that it needs is not installed."""
    try:
        if find_spec(module) is None:
            return False
        return (
            name is None or hasattr(importlib.import_module(module), name) or find_spec(f"{module}.{name}") is not None
        )
    except ModuleNotFoundError as error:
        return error.name.partition(".")[0] not in HOUSE


def test_what_is_imported_of_the_house_is_there():
    found = {(file, *taken) for file, text in sources() for taken in imported(text)}
    recipes = {name for page in PAGES for name in re.findall(r"^class (\w+)", page.read_text(), re.MULTILINE)}
    assert len(found) > 1000
    assert {missing for missing in found if missing[2] not in recipes and not resolves(*missing[1:])} == set()


def test_what_make_runs_is_there():
    modules = set(re.findall(r"-m ((?:expo|benchmarks)[\w.]*)", (ROOT / "Makefile").read_text()))
    assert len(modules) > 3
    assert {module for module in modules if not resolves(module, None)} == set()


def test_a_module_or_a_name_that_is_gone_is_noticed():
    assert not resolves("expo.tables.cost", "SHAPES")
    assert not resolves("expo.model.shapes", "SHAPE")
    assert resolves("expo.model", "shapes")
    assert set(imported("import expo.a\nfrom benchmarks.b import c\nimport os")) == {
        ("expo.a", None),
        ("benchmarks.b", "c"),
    }


def keys():
    """Return every key that is declared, by its whole name."""
    nested = {row[0] for group in known() for node in nodes_of(group).values() for row in key_rows(node, f"{group}.")}
    return nested | {name for name in known() if not nodes_of(name)}


def used():
    """Return what confs set, and every dotted word of plans, tests and pages, as its last two parts."""
    words = set()
    for path in ROOT.glob("conf/**/*.yaml"):
        group = "" if "@package _global_" in path.read_text() else ".".join(path.relative_to(ROOT / "conf").parts[:-1])
        words |= flat(yaml.safe_load(path.read_text()) or {}, group).keys()
    tests = [path for path in ROOT.glob("tests/**/*.py") if path.name != Path(__file__).name]
    for path in (*ROOT.glob("experiments/*/plan.yaml"), *tests, *PAGES):
        words |= {word.strip(".") for word in re.findall(r"[\w.]+", path.read_text())}
    return {last_two(word) for word in words}


def last_two(word):
    return ".".join(word.split(".")[-2:])


def test_every_key_is_used_by_a_conf_a_plan_a_test_or_a_page():
    found = used()
    assert {key for key in keys() if last_two(key) not in found} == set()


def test_the_package_has_no_more_lines_than_it_may():
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "expo").rglob("*.py"))
    assert lines <= LINES, (
        f"expo/ has {lines} lines, {lines - LINES} more than it may. Delete or merge something; or raise LINES in "
        f"{Path(__file__).name}, "
        "in a commit that says who needs the lines, and what was looked at to save them"
    )


# From the ground up: a room may import what stands to its left.
ROOMS = (
    "config ground ladder verifier data model rollout step algorithms cost evaluation runs loggers tables report "
    "training jobs commands notebook cli __main__"
)

# The process of one device, and of a run that is a fork, are programs of their own, and end as a command does.
UP = {("expo/jobs/device.py", "cli"), ("expo/jobs/warm.py", "cli")}


def own_imports():
    """Yield (room, file, room that it imports) of each import of expo in expo, those within functions among them."""
    for path in sorted((ROOT / "expo").rglob("*.py")):
        here = path.relative_to(ROOT / "expo").with_suffix("").parts[0]
        for module, name in imported(path.read_text()):
            parts = [*module.split("."), *([name] if module == "expo" and name else [])]
            if parts[0] == "expo" and len(parts) > 1:
                yield here, str(path.relative_to(ROOT)), parts[1]


def test_no_import_runs_up():
    floors = {room: floor for floor, room in enumerate(ROOMS.split())}
    found = set(own_imports())
    assert {here for here, _, _ in found} <= floors.keys() | {"__init__"}
    up = {(file, there) for here, file, there in found if here != "__init__" and floors[there] > floors[here]}
    assert up == UP


def test_tests_stand_in_the_rooms_of_what_they_test():
    rooms = {path.parent.name for path in ROOT.glob("expo/*/*.py")}
    assert {path.parent.name for path in TESTS.glob("*/test_*.py")} == rooms | {"benchmarks"}
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names))  # pytest imports them by name


def test_no_test_file_takes_from_another():
    """What two of them need is a module of tests/, or a fixture of its conftest.py."""
    found = {
        (path.name, line) for path in TESTS.rglob("*.py") for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) test_", line)
    }  # fmt: skip
    assert found == set()


def test_tests_that_pages_name_are_there():
    pages = [*PAGES, *ROOT.glob("experiments/*.md")]
    named = {
        name.removeprefix("tests/")
        for page in pages
        for name in re.findall(r"(?:tests/(?:\w+/)*|(?:\w+/)*test_)\w+\.py", page.read_text())
    }
    assert len(named) > 30
    assert {name for name in named if not (TESTS / name).is_file()} == set()

"""Declare a key of the config in one line: type, default, bounds or choices, help, and what it changes.

    clip_high: float = key(0.2, low=0, help="upper clip of the importance ratio")

A longer help stands below, in quotes, as a docstring does. Everything else follows from the declaration: the check
before anything is loaded, the run's identity, `--help` of a group, and docs/keys.md.
"""

import ast
import dataclasses
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from omegaconf import MISSING

from expo.config.errors import UserError

LARGEST = 10**9  # of a number without a bound of its own: what is larger is a slip of the keyboard
ALWAYS_IN = object()  # the value of `absent` for a key that is always part of the identity

# The whole config, for annotations alone: its module imports all those that declare its parts.
if TYPE_CHECKING:
    from expo.config.run import Config as Config
else:
    Config = Any
# A line for each rule that is broken: key, value, why, and the remedy.
Rules = Iterator[str]


@dataclass(frozen=True)
class Declaration:
    """Declaration of a key: all but its name, type and default.

    Args:
    - written, place: the help as an argument; else file and line of the declaration, below which it stands.
    - low, high, above: bounds (above is exclusive) of a number, or of each number of a list.
    - choices: allowed strings, or allowed items of a list.
    - identity=False: it changes nothing of a run's result.
    - pairs=False: it changes the result, but not the pairs that the initial policy makes for DPO.
    - absent: the value, or a tuple of values, at which all is as before the key existed: it is then not hashed.
    - finite=False: inf is a value, too, which stands for no limit.
    - counted_as: a constant that is hashed instead of the value, or a function of the value.
    """

    written: str = ""
    place: tuple[str, int] = ("", 0)
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: Sequence[str] = ()
    identity: bool = True
    pairs: bool = True
    absent: Any = ALWAYS_IN
    finite: bool = True
    counted_as: Any = None

    @property
    def help(self) -> str:
        """Return one sentence for people."""
        return self.written or _texts_below(self.place[0]).get(self.place[1], "")

    def wrong(self, name: str, value: Any) -> str | None:
        """Say in one line what is wrong with a value of the key `name`; None where nothing is."""
        if isinstance(value, list | tuple):
            if any(isinstance(item, list | tuple | dict) for item in value):
                return f"{name}={value}: a list in a list; give plain values, such as {name}=[1,2]"
            return next((problem for item in value if (problem := self.wrong(name, item))), None)
        if value is None or isinstance(value, bool):
            return None
        if self.choices:
            if value not in self.choices:
                return f"{name}={value}: not one of the choices; set one of {', '.join(self.choices)}"
            return None
        if not isinstance(value, int | float):
            return None
        if math.isnan(value) or (math.isinf(value) and self.finite):
            return f"{name}={value}: not a finite number; set {name} to one"
        if self.above is not None and value <= self.above:
            return f"{name}={value}: must be greater than {self.above:g}; set it to a value above {self.above:g}"
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            return f"{name}={value}: not between {self.low:g} and {self.high:g}; set {name} to a value in that range"
        if self.low is not None and value < self.low:
            return f"{name}={value}: must be at least {self.low:g}; set {name}={self.low:g} or more"
        if self.high is None and not math.isinf(value) and abs(value) > LARGEST:
            return f"{name}={value}: absurdly large; set {name} to a value of at most {LARGEST:g}"
        if self.high is not None and value > self.high:
            return f"{name}={value}: must be at most {self.high:g}; set {name}={self.high:g} or less"
        return None

    def is_absent(self, value: Any) -> bool:
        """Return whether the key changes nothing at this value: all is as before the key existed."""
        return value in self.absent if isinstance(self.absent, tuple) else bool(value == self.absent)

    def counted(self, value: Any) -> Any:
        """Return what goes into the identity for a value: the value, or what `counted_as` puts in its place."""
        if callable(self.counted_as):
            return self.counted_as(value)
        return value if self.counted_as is None else self.counted_as

    @property
    def allowed(self) -> str:
        """Format the bounds or choices for people; "" where every value of the type is allowed."""
        if self.choices:
            return " | ".join(self.choices)
        bounds = ((self.above, "> "), (self.low, "≥ "), (self.high, "≤ "))
        return ", ".join(f"{sign}{bound:g}" for bound, sign in bounds if bound is not None)


@cache
def _texts_below(file: str) -> dict[int, str]:
    """Return the texts below the statements of a module's classes, by the lines of these; {} without a file, as in a
    notebook. Help alone reads it."""
    tree = ast.parse(Path(file).read_text() if Path(file).is_file() else "")
    below = [pair for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for pair in pairwise(node.body)]
    return {
        line: " ".join(text.value.value.split())
        for declared, text in below
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        for line in range(declared.lineno, (declared.end_lineno or 0) + 1)
    }


def key(default: Any = MISSING, help: str = "", **declared: Any) -> Any:
    """Declare one key of a config dataclass.

    Args: default, a value, a list, or a config dataclass for a nested group; without one, the key must be given; help,
    one sentence for people, which may also stand below, in quotes; the others are those of `Declaration`.
    """
    caller = sys._getframe(1)
    metadata = {"key": Declaration(help, (caller.f_code.co_filename, caller.f_lineno), **declared)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if isinstance(default, type) and (dataclasses.is_dataclass(default) or default is dict):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def declaration(f: "dataclasses.Field[Any]") -> Declaration:
    """Return a field's declaration; a plain one for a field without (`_target_`)."""
    declared = f.metadata.get("key", Declaration())
    assert isinstance(declared, Declaration)
    return declared


# (group, option) -> the dataclass with its keys.
OPTIONS: dict[tuple[str, str], type] = {}
# Those of them that need no YAML file to be picked.
ALONE: set[tuple[str, str]] = set()
# `_target_` -> what it was called when the identities of finished runs were made.
FORMER: dict[str, str] = {}
Node = TypeVar("Node", bound=type)


@dataclass_transform()
def option(group: str, name: str, formerly: str = "", alone: bool = True) -> Callable[[Node], Node]:
    """Make a class a config dataclass, and register it: YAML files of `conf/<group>` take its keys by
    `/schema/<group>/<name>@…`.

    Without a YAML file of its name it can be picked as `<group>=<name>` all the same, at its defaults; with alone=False
    it cannot. Args: formerly, the older name of its `_target_`, under which it goes into the identity, so that runs
    that were finished before it moved stay finished.
    """

    def register(node: Node) -> Node:
        if "__dataclass_fields__" not in vars(node):
            dataclass(node)  # in place
        OPTIONS[group, name] = node
        if alone:
            ALONE.add((group, name))
        if formerly:
            FORMER[node._target_] = formerly  # type: ignore[attr-defined]
        return node

    return register


def nodes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each config dataclass in a typed config with the prefix of its keys, such as `algorithm.`."""
    yield prefix, config
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from nodes(value, f"{prefix}{f.name}.")


def group_of(f: "dataclasses.Field[Any]") -> type | None:
    """Return the config dataclass of a nested group; None for a field that is a key."""
    return f.type if isinstance(f.type, type) and dataclasses.is_dataclass(f.type) else None


def fields_of(node: type, prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """Yield the fields of a config dataclass by their whole keys, those of a nested group after the group."""
    for f in dataclasses.fields(node):
        yield prefix + f.name, f
        if part := group_of(f):
            yield from fields_of(part, f"{prefix}{f.name}.")


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a config as plain data, by their whole keys. An empty group is a leaf."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        k: v for name, child in node.items() for k, v in flat(child, f"{prefix}.{name}" if prefix else name).items()
    }


def with_groups(key: str) -> set[str]:
    """Return a key and the groups that it is in: of `a.b.c` also `a.b` and `a`."""
    words = key.split(".")
    return {".".join(words[:n]) for n in range(1, len(words) + 1)}


def shown(value: Any, longest: int = 2**31) -> str:
    """Format a setting's value as on a command line, cut to at most `longest` characters."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


Function = TypeVar("Function", bound=Callable[..., Any])


def functions_of(node: type, name: str, functions: Mapping[str, Function]) -> dict[str, Function]:
    """Return the functions that a key's choices name. Raises TypeError where the names are not the choices of the key.

    The module that owns the functions calls it when it is imported: a choice without a function cannot go unseen.
    """
    choices = declaration(node.__dataclass_fields__[name]).choices  # type: ignore[attr-defined]
    if set(choices) != set(functions):
        raise TypeError(f"{node.__name__}.{name} has the choices {choices}, its functions are {tuple(functions)}")
    return dict(functions)


def unused(node: Any, prefix: str, names: Sequence[str], why: str, remedy: str) -> Rules:
    """Refuse any value but the default of the keys in `names`, which change nothing here.

    Args: why, what makes them idle; remedy, the setting under which they count.
    """
    for f in dataclasses.fields(node):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.name in names and (value := getattr(node, f.name)) != default:
            message = f"{prefix}{f.name}={shown(value)}: has no effect, {why}"
            yield f"{message}; set {prefix}{f.name}={shown(default)}, its default, or {remedy}"


def compiles(setting: str, pattern: str) -> Rules:
    """Refuse a pattern that is no regular expression. Args: setting, the key with its value."""
    try:
        re.compile(pattern)
    except re.error as error:
        yield f"{setting}: no regular expression ({error}); correct it"


def installed(setting: str, module: str, remedy: str, package: str = "") -> Rules:
    """Refuse a setting whose module is not installed. Args: package, what brings it, where that has another name."""
    if importlib.util.find_spec(module) is None:
        yield f"{setting}: the package {package or module} is not installed; {remedy}"


def check_values(config: Any) -> None:
    """Raise UserError for the first value out of its bounds or choices."""
    for prefix, node in nodes(config):
        for f in dataclasses.fields(node):
            if problem := declaration(f).wrong(prefix + f.name, getattr(node, f.name)):
                raise UserError(problem)


def rules_of(config: Any, kind: str) -> Rules:
    """Yield what the dataclasses in a config say against it by one of `rules`, `needs_here` and `doubts`."""
    for _, node in nodes(config):
        rules: Callable[[Any], Rules] | None = getattr(node, kind, None)
        yield from rules(config) if rules else ()


def keep(rules: Rules) -> None:
    """Raise UserError for the first rule that is broken."""
    for broken in rules:
        raise UserError(broken)

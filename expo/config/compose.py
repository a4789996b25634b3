"""Compose a typed, checked config from the command line's overrides."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from expo.config.arguments import from_files
from expo.config.dataset import MEASURING
from expo.config.errors import UserError, first_line
from expo.config.identity import runtime_keys
from expo.config.key import ALONE, OPTIONS, check_values, keep, nodes, rules_of
from expo.config.naming import what_differs
from expo.config.places import name_of
from expo.config.rules import between_groups, idle_beside
from expo.config.run import Config

# Names of modules with options of a user's own, comma-separated; installed packages name theirs as entry points.
PLUGINS_VARIABLE = "EXPO_PLUGINS"
ENTRY_POINTS = "expo.plugins"


def conf_dir() -> Path:
    """Return expo's own Hydra config folder: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@cache
def plugins() -> tuple[Path, ...]:
    """Import the users' own modules, so that their options register; return the `conf` folders beside them.

    Raises UserError for a module that cannot be imported.
    """
    entry_points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    installed = {e.value: e.dist.name if e.dist else e.name for e in entry_points}
    named = [name.strip() for name in os.environ.get(PLUGINS_VARIABLE, "").split(",") if name.strip()]
    if named and "" not in sys.path:
        sys.path.append("")  # the working folder, where nothing that is installed has the name
    folders = []
    for name in [*installed, *named]:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a user's module may raise anything
            why = f"cannot be imported ({first_line(error)})"
            if name in installed:
                remedy = f"the package {installed[name]} names it as a plug-in; mend it, or uninstall it"
                raise UserError(f"{name}: {why}; {remedy}") from error
            remedy = "mend or install it, or start expo in the folder it is in"
            raise UserError(f"{PLUGINS_VARIABLE}={name}: {why}; {remedy}") from error
        if module.__file__ is not None and (folder := Path(module.__file__).parent / "conf").is_dir():
            folders.append(folder)
    return tuple(folders)


class PluginFolders(SearchPathPlugin):
    """Adds the config folders of the users' own modules to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in plugins():
            search_path.append("expo-plugin", f"file://{folder.resolve()}")


def config_folders() -> list[Path]:
    return [conf_dir(), *plugins()]


# The options that Hydra knows already: telling it takes as long as to compose a config.
REGISTERED: dict[tuple[str, str], type] = {}


def register() -> None:
    """Make every option known to Hydra, under the names that the YAML files use in their defaults lists."""
    plugins()
    if REGISTERED == OPTIONS:
        return
    REGISTERED.update(OPTIONS)
    Plugins.instance().register(PluginFolders)
    store = ConfigStore.instance()
    store.store(name="config_schema", node=schema_of(Config))
    for (group, name), node in OPTIONS.items():
        store.store(group=f"schema/{group}", name=name, node=schema_of(node))
    for group, name in without_file():
        schema = f"/schema/{group}/{name}"
        if group == "algorithm":  # whose name is the run's
            schema_defaults = {"defaults": [f"{schema}@algorithm", "_self_"], "name": name}
            store.store(group=group, name=name, node=schema_defaults, package="_global_")
        else:
            store.store(group=group, name=name, node={"defaults": [f"{schema}@_here_"]})


def schema_of(node: type) -> DictConfig:
    """Return a config dataclass as Hydra takes it. Keys of type dict, and they alone, accept new names."""
    schema: DictConfig = OmegaConf.structured(node)
    parts = [schema]
    for part in parts:
        inner = [part._get_node(name) for name in part]
        parts += [n for n in inner if isinstance(n, DictConfig) and not (n._is_none() or n._is_missing())]
        if part._metadata.object_type is dict:
            OmegaConf.set_struct(part, False)
    return schema


def without_file() -> list[tuple[str, str]]:
    """Return the options that can be picked but have no YAML file."""
    folders = config_folders()
    return sorted(o for o in ALONE if not any((folder / o[0] / f"{o[1]}.yaml").is_file() for folder in folders))


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose the config of a run from Hydra overrides. Raises UserError, or what Hydra raises."""
    register()
    overrides = from_files(overrides)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(o.is_hydra_override() for o in parsed):  # which may bring folders of their own
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return named(typed(compose("config", list(overrides))), overrides)
    groups = config_groups()
    refuse_no_option([o for o in parsed if o.key_or_group in groups])
    keys = [  # set one, and pick no option of a group
        o
        for o in parsed
        if not (o.package is not None or o.is_sweep_override() or "/" in o.key_or_group or o.key_or_group in groups)
    ]
    chosen = tuple(o.input_line or "" for o in parsed if o not in keys)
    yamls = (file for folder in config_folders() for file in folder.rglob("*.yaml"))
    stamps = tuple((str(file), file.stat().st_mtime_ns) for file in yamls)
    config: DictConfig = pickle.loads(_composed(chosen, stamps, tuple(REGISTERED.values())))
    ConfigLoaderImpl._apply_overrides_to_config(keys, config)
    return named(typed(config), overrides)


def config_groups() -> set[str]:
    folders = {file.parent for folder in config_folders() for file in folder.glob("*/*.yaml")}
    return {*(folder.name for folder in folders), *(group for group, _ in ALONE)}


def refuse_no_option(groups: Sequence[Override]) -> None:
    """Raise UserError for `group=null`. Args: groups, overrides of config groups."""
    for o in groups:
        if o.key_or_group != "debug" and not o.is_delete() and not o.is_sweep_override() and o.value() is None:
            raise UserError(f"{o.input_line}: no option of the group; name one, as --help {o.key_or_group} lists them")


@lru_cache(maxsize=512)
def _composed(chosen: tuple[str, ...], stamps: object, options: object) -> bytes:
    """Return the pickled config of some options, cached: composing takes a hundred times as long as setting a key."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return pickle.dumps(compose("config", list(chosen)))


def named(config: Config, overrides: Sequence[str], earlier: str = "") -> Config:
    """Return the config with `differs` set to what the command line changes, unless it is set."""
    if config.differs is None:
        config.differs = what_differs(overrides, runtime_keys(), earlier)
    return config


def _idle(config: Config, command: str) -> dict[str, str]:
    """Return the keys of sampling and training that a command does not look at, each with a remedy."""
    if command not in MEASURING:
        return {"evaluation.greedy": "expo evaluate run=… of the finished run makes greedy completions"}
    other, ours = ("rollout", "evaluation") if command == "evaluate" else ("evaluation", "rollout")
    unread = {f"{other}.{name}": f"set {ours}.{name}" for name in ("temperature", "top_p", "top_k")}
    unread |= {"seed": "evaluation.seed=1 draws others"} if command == "evaluate" else {}
    if config.trainer.devices > 1:
        unread["trainer.devices"] = "it uses one; rollout=vllm_server rollout.tensor_parallel=… shares the model out"
    of_training = ["trainer.max_steps", "optimizer", *(f"optimizer.{name}" for name in vars(config.optimizer))]
    return unread | dict.fromkeys(of_training, "nothing is trained; leave it out")


def for_command(config: Config, command: str, overrides: Sequence[str], of_table: bool = False) -> Config:
    """Adapt the config to a command: a run that only measures a model is named after the model.

    Raises UserError for a key on the command line that the command does not look at. The runs of a table or a sweep
    share keys: there, a key that is idle in one of them is told of at most. Args: of_table, whether to check a line of
    a table before it has `differs=`, as those that expo makes have.
    """
    made = of_table or any(o.startswith("differs=") for o in overrides)
    unread = {f"dataset.{name}": why for name, why in config.dataset.unread(command).items()}
    idle, beside = _idle(config, command), idle_beside(config) if command == "train" else {}
    for key, value in (o.lstrip("+").partition("=")[::2] for o in overrides):
        off = ("null", "false", "no", "0") if key in idle else ("null",)
        if (reason := (unread | idle | beside).get(key)) and value.lower() not in off:
            message = f"{key}={value}: expo {command} does not look at it here; {reason}"
            if key in unread or not made:
                raise UserError(message)
            if key in beside and not of_table:
                print(f"expo: {message}", file=sys.stderr)
    config.name = name_of(config, command, overrides)
    return config


def typed(cfg: DictConfig) -> Config:
    """Return a composed config as dataclasses, resolved. Raises UserError for a key that is unknown or has no value."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise UserError(f"{min(missing)}=???: not set; give it on the command line")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    for prefix, node in nodes(config):
        known = {f.name for f in dataclasses.fields(node)}
        for name, value in vars(node).items():  # `+key=value` gets past Hydra's own check
            if name not in known:
                raise UserError(f"{prefix}{name}={value}: no such key; --cfg job shows every key that exists")
            if isinstance(value, str) and value.startswith("~/"):
                setattr(node, name, os.path.expanduser(value))
    for _, node in nodes(config):
        if settle := getattr(node, "settle", None):
            settle(config)
    return config


def check(config: Config) -> None:
    """Raise UserError for the first value or combination that cannot be run here or anywhere; warn of doubtful ones.

    Looks at the machine, loads nothing.
    """
    check_anywhere(config)
    keep(rules_of(config, "needs_here"))
    for doubt in rules_of(config, "doubts"):
        print(f"expo: {doubt}", file=sys.stderr)


def check_anywhere(config: Config) -> None:
    """Raise UserError for the first value or combination that cannot be run, whatever the machine."""
    for prefix, node in nodes(config):
        if target := getattr(node, "_target_", None):
            spec = None
            with suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(target.rpartition(".")[0])
            if spec is None:
                remedy = "give the full name of a class that can be imported"
                raise UserError(f"{prefix}_target_={target}: there is no such module; {remedy}")
    check_values(config)
    keep(between_groups(config))  # first: a key without effect may be one beside an option that is out of place
    keep(rules_of(config, "rules"))


def build(conf: Any, *parts: Any, of: type | None = None) -> Any:
    """Make the object that a config dataclass describes: call its `_target_` with the whole dataclass and then `parts`.

    Args: of, its class or protocol. Raises UserError where the module has no such class, or it is of another kind.
    """
    module, _, name = conf._target_.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_={conf._target_}: cannot be imported ({error}); correct the name") from error
    if not callable(target) or not _takes(target, len(parts) + 1) or not _is_of(target, of):
        lacking = [name for name in vars(of or object) if not name.startswith("_") and not hasattr(target, name)]
        lacks = f" (it has no {', '.join(lacking)})" if lacking else ""
        why = f"is no {of.__name__ if of else 'class'}{lacks}"
        raise UserError(f"_target_={conf._target_}: {why}; give the name of one")
    return target(conf, *parts)


def _takes(target: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(target).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _is_of(target: Any, kind: type | None) -> bool:
    """Return whether a class is of `kind`, or has a protocol's members. A function's result is taken on trust."""
    if kind is None or not isinstance(target, type):
        return True
    if not getattr(kind, "_is_protocol", False):
        return issubclass(target, kind)
    members = [n for n, value in vars(kind).items() if callable(value) and (n == "__call__" or not n.startswith("_"))]
    return all(any(name in vars(base) for base in target.__mro__) for name in members)

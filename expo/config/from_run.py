"""Take the config of a run directory: `run=<directory>`, and overrides of it."""

import copy
import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, OmegaConf
from omegaconf._utils import get_yaml_loader
from yaml.constructor import SafeConstructor
from yaml.cyaml import CParser
from yaml.resolver import Resolver

from expo.config.arguments import no_reference
from expo.config.compose import conf_dir, for_command, named, refuse_no_option, register, typed
from expo.config.dataset import MEASURING
from expo.config.errors import UserError
from expo.config.foreign import UNREADABLE, flat_config, read_summary, why, yaml_text
from expo.config.identity import identity, identity_before_lift, model_content, runtime_keys
from expo.config.key import ALWAYS_IN, FORMER, OPTIONS, declaration, flat, group_of, nodes, shown, with_groups
from expo.config.model import ModelConf
from expo.config.optimizer import OptimizerConf
from expo.config.own_code import changed_code, own_packages
from expo.config.places import run_dir
from expo.config.reference import options_of
from expo.config.rollout import RolloutConf
from expo.config.run import Config
from expo.config.training import VerifierConf

# What else the YAML files of a group set. A group whose files set single keys of others cannot be taken with run=.
TAKEN_WITH = {"algorithm": ("positives", "hints", "name", "needs"), "dataset": ("prompts",)}
ONLY_KEYS = ("trainer", "debug")
# Of these groups, another option keeps the keys that the run's own has too: another engine, the same lengths and
# sampling.
KEPT: dict[str, type] = {"rollout": RolloutConf, "optimizer": OptimizerConf, "verifier": VerifierConf}
OF_OPTION = ("_target_", "requires", "extra", "kind")


def restore(directory: Path) -> Config:
    """Return the config of a run directory. Raises UserError where it is missing, or this version cannot read it."""
    register()  # with the users' own options
    path = directory / "config.yaml"
    if not path.is_file():
        raise UserError(f"run={directory}: no run directory (it has no config.yaml); give one that expo train has made")
    tree = config_tree(path)
    prompts = tree.get("prompts")
    if isinstance(prompts, dict):  # what a user has written into a prompt is text
        tree["prompts"] = {k: no_reference(v) if isinstance(v, str) else v for k, v in prompts.items()}
    for name, value in flat(tree).items():
        if "${" in str(value) and not re.fullmatch(r"prompts\.[^.]+", name):
            raise UserError(f"{path}: {name} is an interpolation, which no run of expo leaves; write its value")
    try:
        config = _restored(Config, tree)
        # by way of OmegaConf, which checks the types
        return typed(OmegaConf.structured(config))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        if missing := _not_loaded(tree, directory):
            remedy = f"set EXPO_PLUGINS={missing}, and start expo in the folder that it is in, or install it"
            problem = f"was made with a package of its own, {missing}, which is not loaded"
            raise UserError(f"{path}: {problem}; {remedy}") from error
        raise UserError(f"{path}: cannot be read by this version of expo ({error})") from error


def _not_loaded(tree: Mapping[str, Any], directory: Path) -> str:
    """Return the run's own packages that are not imported, as EXPO_PLUGINS takes them; "" where all are."""
    targets = [str(value) for key, value in flat(tree).items() if key.endswith("_target_")]
    files = read_summary(directory).get("own_code", {})
    packages = {*own_packages(targets), *(file.partition("/")[0].removesuffix(".py") for file in files)}
    return ",".join(sorted(packages - {node.__module__.partition(".")[0] for node in OPTIONS.values()}))


class _Loader(CParser, get_yaml_loader()):  # type: ignore[misc]
    """Reads YAML as OmegaConf does, in a tenth of the time."""

    def __init__(self, text: str):
        CParser.__init__(self, text)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)


def config_tree(path: Path) -> dict[str, Any]:
    """Return a config.yaml, perhaps others', as plain data, not resolved. Raises UserError if it cannot be read."""
    try:
        tree = yaml.load(yaml_text(path), Loader=_Loader)
        flat_config(tree)
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({why(error)}); make the run again") from error
    return cast(dict[str, Any], tree)


def _restored(kind: type, tree: Mapping[str, Any]) -> Any:
    node: Any = _dataclass_of(kind, tree)
    tree = {name: value for name, value in tree.items() if (name, value) not in getattr(node, "gone", {}).items()}
    known = {f.name: f for f in dataclasses.fields(node)}
    if unknown := tree.keys() - known.keys():
        raise ValueError(f"{node.__name__} has no key {min(unknown)}")
    values: dict[str, Any] = {}
    for name, f in known.items():
        absent = declaration(f).absent
        nested = group_of(f)
        if name in tree:
            values[name] = _restored(nested, tree[name]) if nested and isinstance(tree[name], dict) else tree[name]
        elif absent is not ALWAYS_IN and not nested:  # a key that came later: as it was before
            values[name] = absent[0] if isinstance(absent, tuple) else absent
        elif nested and f.default is MISSING and (name, "none") in OPTIONS:  # a group that came later
            values[name] = OPTIONS[name, "none"]()
    if "_target_" in values and values["_target_"] == FORMER.get(getattr(node, "_target_", "")):
        values["_target_"] = node._target_
    return node(**values)


def _dataclass_of(kind: Any, tree: Mapping[str, Any]) -> Any:
    """Return the dataclass of a part of a config: by its `_target_`, with its keys."""
    fitting: list[Any] = [
        node
        for node in [kind, *OPTIONS.values()]
        if issubclass(node, kind)
        and tree.keys() <= {*(f.name for f in dataclasses.fields(node)), *getattr(node, "gone", {})}
    ]
    target = tree.get("_target_")
    named = [n for n in fitting if target and target in (n._target_, FORMER.get(n._target_))]
    return min(named or fitting or [kind], key=lambda node: len(dataclasses.fields(node)))


def run_directory(text: str) -> Path:
    """Find a run directory by path, pattern, identity, or `latest`: the training run that was worked on last. The last
    two are looked for in outputs/.

    Raises UserError where a pattern or an identity fits none, or several.
    """
    text = os.path.expanduser(text)
    if text == "latest" and not Path(text).exists():
        files = [file for file in Path("outputs").glob("*/*/summary.json") if file.parts[1] not in MEASURING]
        if not files:
            raise UserError("latest: no training run is in outputs/; name a run directory")
        return max(files, key=lambda file: file.stat().st_mtime).parent
    if not Path(text).exists() and Path("outputs", text, "config.yaml").is_file():  # as expo runs lists it
        return Path("outputs", text)
    if Path(text).exists() or not (set("*?[") & set(text) or re.fullmatch(r"[0-9a-f]{10}", text)):
        return Path(text).resolve() if ".." in Path(text).parts else Path(text)  # the folders above it are its own
    pattern = text if set("*?[") & set(text) else f"outputs/*/*-{text}*"
    paths = [path for path in sorted(glob.glob(pattern)) if Path(path, "config.yaml").is_file()]
    trained = [path for path in paths if not measures(Path(path))]
    if pattern != text and len(trained) == 1:
        paths = trained  # an evaluation of a table's settings has the identity of the run that trains by them
    if len(paths) != 1:
        some = f": {', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}" if paths else ""
        raise UserError(f"{text}: {len(paths)} run directories are called so{some}; name one, as expo runs lists them")
    return Path(paths[0])


def run_of(arguments: Sequence[str]) -> str | None:
    """Return the value of `run=` on a command line; None without it."""
    return next((a.removeprefix("run=") for a in reversed(arguments) if a.startswith("run=")), None)


def combinations(arguments: Sequence[str]) -> list[list[str]]:
    """Return the command lines of a sweep: every combination of its comma-separated values."""
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    choices = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line or ""]
        for o in parsed
    ]
    return [list(line) for line in itertools.product(*choices)]


def config_from_run(command: str, arguments: Sequence[str]) -> Config:
    """Return the config of `expo <command> run=<directory> …`: the run's own settings, then the overrides.

    `evaluate` and `diagnose` take the run's finished model; `train` and others take the model that the run began with,
    so that an unfinished run goes on. Prints what differs from the run's settings.
    """
    directory = run_directory(run_of(arguments) or "")
    run_config = restore(directory)
    run_config.fresh, run_config.trainer.stop_after = False, None
    earlier, run_config.differs = run_config.differs or "", None
    place = directory if len(directory.parts) > 2 else directory.resolve()  # folders above it may be links
    if place.parent.name.startswith(run_config.dataset.name):  # where expo has put it, seen from here
        run_config.output_dir = str(place.parents[1])
    if reason := _changed_since(run_config, directory):
        print(f"run={directory}: {reason}: this is no longer that run")
    given = {name.lstrip("+"): value.strip("'\"") for name, _, value in (a.partition("=") for a in arguments)}
    measuring = command in MEASURING
    if measuring and (files := changed_code(read_summary(directory).get("own_code", {}))):
        print(f"run={directory}: made before a change of {', '.join(files)}, which judges or trains otherwise now")
    if measuring and not measures(directory):  # else again what it has measured
        run_config = _measured(run_config, directory, given.get("dataset.part") == "train")
    overrides = [a for a in arguments if not a.startswith("run=")]
    base = run_config if measuring else _unsettled(run_config)
    if measuring and "dataset.path" in given and "dataset.eval_path" not in given:
        base = dataclasses.replace(base, dataset=dataclasses.replace(base.dataset, eval_path=None))
    config = named(_overridden(base, overrides), overrides, earlier if command == "train" else "")
    config = for_command(config, command, overrides)
    is_that_run = command == "train" and read_summary(directory).get("identity") == identity(config)
    if is_that_run and not measures(directory) and not {"fresh", "name", "output_dir"} & given.keys():
        found = run_dir(config)
        if not found.exists():
            raise UserError(f"run={directory}: expo would begin it anew in {found}; move it there, and it goes on")
    _print_changes(directory, run_config, config, command)
    return config


def _changed_since(run_config: Config, directory: Path) -> str:
    """Say what has changed since a run was made, as far as can be told; "" where nothing has."""
    made_of = read_summary(directory).get("identity")
    try:
        if made_of in (None, identity(run_config)):
            return ""
        if made_of == identity_before_lift(run_config):
            return "chose by the answer lift as it was measured before 2026-11-28"
    except OSError:  # nothing is at the path: another check says so
        return ""
    return "what is behind dataset.path or model.path has changed since"


def measures(directory: Path) -> bool:
    """Return whether a run directory is that of an evaluation or a diagnosis."""
    return directory.absolute().parent.name in MEASURING


def finished_model(directory: Path) -> Path:
    """Return the folder of a run's finished model. Raises UserError where there is none, or another one."""
    if measures(directory):
        problem = "measures a model, and trains none"
        raise UserError(f"run={directory}: {problem}; name a training run, as expo runs lists it")
    final, status = directory / "checkpoints" / "final", read_summary(directory).get("status", "done")
    if final.is_dir() and status == "done":
        if read_summary(directory).get("final", content := model_content(final)) != content:
            problem = "is not the model that the run has left"
            raise UserError(f"{final}: {problem}; restore it, or score it by its path, as model=hf model.path={final}")
        return final
    lack = "has no finished model (checkpoints/final); finish it with"
    if status == "done" and (directory / "summary.json").is_file():
        lack = "its model was not kept (trainer.save_final=false), or is removed (expo runs gc finals=true); make it "
        lack += "again with trainer.save_final=true fresh=true and"
    raise UserError(f"run={directory}: {lack} expo train run={directory}")


def _measured(run_config: Config, directory: Path, trained_on: bool) -> Config:
    """Return the config with the run's finished model, and with `dataset.limit` in the meaning of `expo evaluate`: the
    run's own limit where what it has trained on is asked for."""
    final, own_model = finished_model(directory), run_config.model
    model = ModelConf(
        path=str(final), dtype=own_model.dtype, attention=own_model.attention,
        load_in_4bit=own_model.load_in_4bit, float32_head=own_model.float32_head,
    )  # fmt: skip
    limit = run_config.dataset.limit if trained_on else None
    dataset = dataclasses.replace(run_config.dataset, limit=limit, part="held_out")
    trainer = dataclasses.replace(run_config.trainer, accelerator="auto")  # this machine may have another
    return dataclasses.replace(run_config, run=str(directory), model=model, dataset=dataset, trainer=trainer)


def _unsettled(config: Config) -> Config:
    """Return a config without the values that follow from its other keys (`settle`), so that they follow anew."""
    config = copy.deepcopy(config)
    for _, node in nodes(config):
        for f in dataclasses.fields(node) if hasattr(node, "settle") else ():
            if f.default is None and (value := getattr(node, f.name)) is not None:
                setattr(node, f.name, None)
                node.settle(config)
                setattr(node, f.name, None if getattr(node, f.name) == value else value)
    return config


def _overridden(run_config: Config, overrides: Sequence[str]) -> Config:
    tree = OmegaConf.structured(run_config)
    for name, value in vars(run_config.prompts).items():
        if isinstance(value, str):
            tree.prompts[name] = no_reference(value)
    OmegaConf.set_struct(tree, True)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = [o for o in parsed if "." not in o.key_or_group and options_of(o.key_or_group)]
    refuse_no_option(groups)
    asked = {o.key_or_group for o in groups}
    for o in groups:
        name = o.key_or_group
        if name in ONLY_KEYS:
            problem = "cannot be taken with run="
            raise UserError(f"{o.input_line}: {problem}; set single keys, such as trainer.max_steps=200")
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            chosen = compose("config", [o.input_line or ""])
        for taken in (name, *(other for other in TAKEN_WITH.get(name, ()) if other not in asked)):
            tree[taken] = chosen[taken]
        for f in dataclasses.fields(KEPT[name]) if name in KEPT else ():
            if f.name not in OF_OPTION:
                tree[name][f.name] = getattr(getattr(run_config, name), f.name)
    ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if o not in groups], tree)
    return typed(tree)


def _print_changes(directory: Path, run_config: Config, config: Config, command: str) -> None:
    before, after = (flat(OmegaConf.to_container(OmegaConf.structured(c))) for c in (run_config, config))
    runtime = runtime_keys()
    changed = {
        name: f"{name}={shown(after.get(name), 40)} (the run: {shown(before.get(name), 40)})"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not with_groups(name) & runtime
    }
    print(f"run={directory}: its settings" + (f", but {', '.join(changed.values())}" if changed else ""))
    begun_anew = changed.keys() - {"trainer.max_steps", "model.path"} and "model.path" not in changed
    if command == "train" and begun_anew and (directory / "checkpoints" / "final").is_dir():
        print(
            f"it begins from {config.model.path}, as that run did; to begin from what the run has learned: "
            f"model=hf model.path={directory / 'checkpoints' / 'final'}"
        )

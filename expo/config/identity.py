"""Hash a run's identity: everything that changes its result. Each key's declaration says whether it counts (`key.py`);
`run_dir` finds a run by it, and `Run.finished` keeps it from being made again."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from expo.config.algorithm import DPOConf
from expo.config.dataset import GeneratedConf, LadderConf
from expo.config.distillation import SelfDistillationConf
from expo.config.key import ALWAYS_IN, FORMER, OPTIONS, Declaration, declaration, fields_of, group_of, with_groups
from expo.config.model import LADDER, located
from expo.config.positives import SelfExplanationConf
from expo.config.run import Config
from expo.config.training import VerifierConf

RECIPE = "recipe.json"  # what says what made a model
START, PIECE, PIECES = 2**20, 2**12, 2**10  # bytes, bytes, pieces of a model's file that tell it from another
LARGE = 2**24  # bytes of a file that takes longer to read than two changes of it can lie apart unseen


def identity(cfg: Config) -> str:
    """Hash everything in a config that changes a run's result, local data files by content: the run's identity."""
    return _hash(cfg, pairs=False)


def arm_identity(cfg: Config) -> str:
    """Return the hash of everything that changes a run's result but its seed."""
    return _hash(replace(cfg, seed=0), pairs=False)


def lineage(cfg: Config) -> str:
    """Return the hash of what changes a run's result but its number of steps: a longer run may go on from a shorter."""
    return _hash(replace(cfg, trainer=replace(cfg.trainer, max_steps=0)), pairs=False)


def pairs_identity(cfg: Config) -> str:
    """Return the hash of everything that changes the pairs which DPO's initial policy makes."""
    return _hash(cfg, pairs=True)


def bank_identity(cfg: Config) -> str:
    """Return the hash of everything that changes the explanations which the initial policy writes for a run's steps."""
    tree = _with_contents(_tree(cfg, pairs=True), cfg)
    hashed = {name: tree[name] for name in ("dataset", "model", "prompts", "rollout", "seed")}
    hashed["trainer"] = {name: tree["trainer"][name] for name in ("problems_per_step", "precision")}
    # Then a problem whose prompt for a hint is too long is left out.
    hashed["hints"] = cfg.hints.writer is not None and not cfg.hints.needs_solutions
    if not isinstance(cfg.dataset, GeneratedConf) and tree["verifier"] != _tree(VerifierConf(), pairs=True):
        hashed["verifier"] = tree["verifier"]  # which decides which rows can be used
    hashed["positives"] = {name: tree["positives"][name] for name in ("_target_", "samples", "shown_answer")}
    return _digest(hashed)


def pretrain_settings(cfg: Config) -> list[Any]:
    """Return all that changes the model which `expo pretrain` makes: seed, keys, prompts, and a world's own keys."""
    recipe = dataclasses.asdict(replace(cfg.pretrain, output=""))
    if recipe["start"] is None:
        recipe.pop("start")  # as in what 0.3 began
    elif (folder := LADDER if recipe["start"] == "ladder" else Path(recipe["start"])).is_dir():
        recipe["start"] = model_content(folder)
    # The keys that came later change nothing: the ladder reads no such prompt, and its chat template prints no date.
    first = [f.name for f in dataclasses.fields(cfg.prompts) if declaration(f).absent is ALWAYS_IN]
    prompts = {name: getattr(cfg.prompts, name) for name in first}
    prompts["_target_"] = FORMER.get(prompts["_target_"], prompts["_target_"])  # so that what 0.1 began goes on
    world = [w] if isinstance(cfg.dataset, LadderConf) and (w := cfg.dataset.world.corpus) else []
    return [cfg.seed, recipe, prompts, *world]


def pretrain_identity(cfg: Config) -> str:
    return hashlib.sha256(json.dumps(pretrain_settings(cfg)).encode()).hexdigest()[:8]


def write_recipe(folder: Path, cfg: Config, command: str = "pretrain") -> None:
    """Write what made a model into a file beside it: models trained from it would inherit its config.json."""
    recipe = {"identity": MAKERS[command](cfg), "content": model_content(folder)}
    settings = {"settings": pretrain_settings(cfg)} if command == "pretrain" else {}
    (folder / RECIPE).write_text(json.dumps(recipe | settings, indent=1) + "\n")


# What a model is known by, by the command that makes it of a config.
MAKERS: dict[str, Callable[[Config], str]] = {"pretrain": pretrain_identity, "train": identity}


def made_as(folder: Path, cfg: Config, command: str = "pretrain") -> bool | None:
    """Return whether a folder holds the model that a command of MAKERS makes of a config; None where it has no
    recipe."""
    try:
        recipe = json.loads((folder / RECIPE).read_bytes())
        recorded = recipe["identity"], recipe["content"]
    except (OSError, ValueError, LookupError, TypeError):  # of an earlier expo or another maker, or damaged
        return None
    try:
        return recorded == (MAKERS[command](cfg), model_content(folder))
    except OSError:  # the data that it was made of are gone
        return None


def _hash(cfg: Config, pairs: bool) -> str:
    # The answer lift is measured in another way since 2026-11-28. On the ladder, whose tokens have no white space, the
    # ranks of a problem's explanations by it are what they were.
    selection, algorithm = getattr(cfg.positives, "selection", ""), cfg.algorithm
    by_lift = selection == "threshold" or (selection == "two_properties" and not cfg.dataset.is_ladder)
    needs_solutions = cfg.positives.needs_solutions or cfg.hints.needs_solutions
    teaches = isinstance(algorithm, SelfDistillationConf)
    weighs = teaches or any(getattr(algorithm, name, 0.0) for name in ("kl_coef", "entropy_coef"))
    # And since 2026-11-30: the lift beside hints, the first token of a solution, means beside positives in groups,
    # pairs of twice the same completion, which count no more, and the worked examples of teachers.
    twice = isinstance(algorithm, DPOConf) and algorithm.rejected == "any" and not pairs
    marker = cfg.prompts.final.partition("{answer}")[0]
    finds_statements = isinstance(cfg.positives, SelfExplanationConf) or cfg.hints.gives_hints
    anew = {
        # Final statements are found without the space between their words and the answer.
        "marker": 2 if marker[-1:].isspace() and finds_statements else None,
        "pair": 2 if twice else None,
        "examples": 2 if cfg.prompts.examples and (teaches or cfg.hints.gives_hints) else None,
        # Dropout draws by micro-batch, and so by what deals rows out.
        "micro": _dropout_rows(cfg) if cfg.trainer.dropout and not pairs else None,
        # Where no step 0 is evaluated, none is the best so far.
        "first": False if cfg.dataset.validation and not cfg.evaluation.first and not pairs else None,
        "answer_lift": (3 if cfg.hints.gives_hints else 2) if by_lift else None,
        "solution": 2 if cfg.model.chat_template == "plain" and needs_solutions else None,
        "kl": (3 if teaches else 2) if weighs and getattr(cfg.positives, "use", "") == "group_member" else None,
    }
    marks = {name: mark for name, mark in anew.items() if mark is not None}
    return _digest(_with_contents(_tree(cfg, pairs), cfg) | marks)


def _dropout_rows(cfg: Config) -> int | list[int]:
    conf, size = cfg.trainer, cfg.trainer.even_micro_batch(cfg.algorithm.group_size)
    devices = conf.devices * conf.num_nodes
    return [size, devices, conf.packing] if devices > 1 or conf.packing else size


def identity_before_lift(cfg: Config) -> str:
    """Return the identity that a run had before 2026-11-28, when the answer lift was measured in another way."""
    return _digest(_with_contents(_tree(cfg, pairs=False), cfg))


def _digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:10]


def data_content(cfg: Config) -> dict[str, str]:
    """Return a hash of each data file of a config, by key."""
    files = {"path": cfg.dataset.path, "eval_path": cfg.dataset.eval_path}
    return {name: _content_of(Path(file)) for name, file in files.items() if file}


def _content_of(path: Path) -> str:
    """Return a file's hash. A run asks some thirty times: a large file is read again only where it has changed."""
    found = path.stat()
    read = _hashed if found.st_size >= LARGE else _hashed.__wrapped__
    return read(path.absolute(), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@lru_cache
def _hashed(path: Path, *stamp: int) -> str:
    with path.open("rb") as file:  # it is not held in memory
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_contents(tree: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """Return the tree with hashes of data and local model files, and the name of a file of which a part is taken."""
    drawn = [*cfg.dataset.subsampled_files]
    if cfg.dataset.path and "path" not in drawn and (cfg.dataset.validation or cfg.prompts.examples):
        drawn = ["path", *drawn]  # rows are set apart, or shown, by the file's name and their lines
    if drawn:
        tree["dataset"]["drawn"] = {name: Path(tree["dataset"][name]).name for name in drawn}
    tree["dataset"] |= data_content(cfg)
    place = Path(located(tree["model"]["path"]))
    tree["model"]["content"] = model_content(place) if place.exists() else None
    template = cfg.model.chat_template
    if template and Path(template).is_file():
        tree["model"]["chat_template"] = _content_of(Path(template))
    return tree


def _tree(node: Any, pairs: bool) -> dict[str, Any]:
    """Return the keys that are hashed, as plain data, and the one value of those that are `gone`. With `pairs`, only
    those that change DPO's first pairs."""
    tree = {}
    for f in dataclasses.fields(node):
        declared, value = declaration(f), getattr(node, f.name)
        if declared.counted_as is None and (not declared.identity or (pairs and not declared.pairs)):
            continue
        value = declared.counted(value)
        plain = _tree(value, pairs) if dataclasses.is_dataclass(value) else value
        if f.name == "_target_":
            plain = FORMER.get(value, value)
        if not declared.is_absent(plain):
            tree[f.name] = plain
    return tree | dict(getattr(node, "gone", {}))


def model_content(place: Path) -> str:
    """Return a hash of a model's folder or GGUF file; of an adapter's folder, also of its local base model."""
    digest = hashlib.sha256()
    for part in filter(None, (place, _base_of(place))):
        _add_files(digest, part)
    return digest.hexdigest()


def _add_files(digest: "hashlib._Hash", place: Path) -> None:
    """Hash names, sizes, the first MiB of each file, and pieces of the rest, 4 MiB of it in all.

    The start alone would not do: an adapter that is merged changes neither the sizes nor the embedding, which often
    comes first. The shipped ladder policy is known by its start, as in older versions: it does not change.
    """
    kinds = [".json", ".safetensors", ".bin", ".jinja"]
    # Without a tokenizer.json, these say how a text is split.
    splits = () if (place / "tokenizer.json").is_file() else ("vocab.txt", "merges.txt")
    kinds += [".model"] if splits else []
    files = place.iterdir() if place.is_dir() else [place]
    for file in sorted(
        f for f in files if ((f.suffix in kinds or f.name in splits) and f.name != RECIPE and f.is_file()) or f == place
    ):
        size = file.stat().st_size
        with file.open("rb") as content:
            digest.update(f"{file.name} {size}".encode() + content.read(START))
            apart = max(PIECE, (size - START) // PIECES)  # of a file of up to 5 MiB, the pieces are all of it
            for offset in range(START, size if place != LADDER else 0, apart):
                content.seek(offset)
                digest.update(content.read(PIECE))


def _base_of(folder: Path) -> Path | None:
    """Return the folder or file of an adapter's base model; None for a full model, a hub id and the shipped ladder."""
    try:
        named = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
        base = Path(located(named))
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one, which loading will tell
        return None
    return base if base.exists() and base not in (folder, LADDER) else None


def changing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings that change a run's result: no runtime keys, no later ones at a value of `absent`."""
    runtime, later = runtime_keys(), later_keys()
    gone = {f"{group}.{name}" for (group, _), node in OPTIONS.items() for name in getattr(node, "gone", {})}
    return {
        key: later[key].counted(value) if key in later else value
        for key, value in settings.items()
        if key not in gone and not runtime & with_groups(key) and not (key in later and later[key].is_absent(value))
    }


def later_keys() -> dict[str, Declaration]:
    """Return the keys of any option that came later, or have a value that did: at it, a run is as it was before."""
    return {
        key: declared
        for node, prefix in _all_nodes()
        for key, f in fields_of(node, prefix)
        if not group_of(f) and ((declared := declaration(f)).absent is not ALWAYS_IN or callable(declared.counted_as))
    }


def runtime_keys() -> set[str]:
    """Return every key and group of keys, of any option, that changes nothing of a run's result."""
    return set().union(*(runtime_keys_of(node, prefix) for node, prefix in _all_nodes()))


def runtime_keys_of(node: type, prefix: str) -> set[str]:
    """Return the runtime keys of one dataclass, and all those in its groups that are runtime as a whole."""
    keys: set[str] = set()
    for key, f in fields_of(node, prefix):
        if not declaration(f).identity or key.rpartition(".")[0] in keys:
            keys.add(key)
    return keys


def _all_nodes() -> list[tuple[type, str]]:
    """Return the config and the dataclasses of all options, each with the prefix of its keys."""
    return [(Config, ""), *((node, f"{group}.") for (group, _), node in OPTIONS.items())]

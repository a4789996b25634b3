"""Say in one line what Hydra and OmegaConf say in many: key, value, remedy."""

import dataclasses
import difflib
import re
import shlex

from hydra.errors import OverrideParseException

from expo.config.key import OPTIONS
from expo.config.reference import means, named, options_of
from expo.config.run import Config

NOISE = (
    "full_key:",
    "object_type=",
    "reference_type=",
    "To append to your config",
    "Config search path",
    "provider=",
)
# A key of an option that has none: what to choose instead.
CHOOSE = {
    "'NoPositivesConf'": "positives=self_explanation or positives=expert",
    "'LoggerConf'": "logger=wandb or logger=mlflow",
}
# What reads a file or a hub's id, given in place of an option of its group.
PATHS = {"dataset": "dataset=custom dataset.path=", "model": "model=hf model.path="}


def explain(error: Exception) -> str:
    """Return one line for an error of Hydra or OmegaConf."""
    if isinstance(error, OverrideParseException):
        return _unread(error.override)
    texts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    told = list(dict.fromkeys(line.rstrip(".:;") for line in lines if not line.startswith(NOISE)))
    groups = any("Could not find" in line or ("Could not override" in line and "." not in line) for line in told)
    sweeps = "requires --multirun" in " ".join(told)
    if sweeps or any(line.startswith("Ambiguous value") for line in told):
        asked = re.search(r"'([^']*)'", told[0])
        line = asked[1] if asked else told[0]
        return f"{line}: several values; add -m to run each of them, or write a list as key=[1,2]"
    remedy = "--help lists the groups and their options" if groups else "--cfg job shows every key"
    whole = "; ".join(told)
    if close := _nearest_option(whole) or _nearest_key(whole):
        remedy = f"did you mean {close}? {remedy}"
    for node, group in CHOOSE.items():
        if node in whole:
            remedy = f"choose {group}, or leave the key out"
    return f"{whole}; remedy: {remedy}"


def _unread(override: str) -> str:
    """Return what to write instead of an override whose grammar Hydra cannot read."""
    key, sign, value = override.partition("=")
    if not sign or not key:
        return f"{override}: not of the form key=value; quote a value with spaces or commas twice: 'key=\"a value\"'"
    if open_ones := [one for one, other in ("[]", "{}", "()") if value.count(one) != value.count(other)]:
        return f"{override}: a {open_ones[0]} is not closed, or closed without it; close it, and quote it for the shell"
    bare = value.strip("\"'").replace('"', '\\"')
    as_text = f'{key}="{bare}"'
    return (
        f"{override}: the value cannot be read as it stands; quote the value, once for the shell and once within: "
        f"{shlex.quote(as_text)}"
    )


def _nearest_key(told: str) -> str | None:
    """Return the nearest key of the config dataclass that has no such key; of another one, the key of that very
    name."""
    if (found := re.search(r"Key '(\w+)' not in '(\w+)'", told)) is None:
        return None
    nodes = {node.__name__: node for node in [*OPTIONS.values(), *parts_of(Config)]}
    owner = nodes.get(found[2])
    names = [f.name for f in dataclasses.fields(owner)] if owner else []
    close = difflib.get_close_matches(found[1], names, 1) or [name for name in names if means(found[1], name)][:1]
    return " or ".join(close or named(found[1])) or None


def _nearest_option(told: str) -> str | None:
    """Return the nearest option of the group that has no such option, as it is given."""
    if (found := re.search(r"Could not find '([\w/]+)/([^'/]+)'", told)) is None:
        return None
    group, _, name = f"{found[1]}/{found[2]}".partition("/")
    if group in PATHS and (not options_of(found[1]) or re.search(r"\.(jsonl|parquet|gguf)(\.gz)?$", name)):
        return f"{PATHS[group]}{name}"
    return next((f"{found[1]}={near}" for near in difflib.get_close_matches(found[2], options_of(found[1]), 1)), None)


def parts_of(node: type) -> list[type]:
    """Return a config dataclass and those of its nested groups."""
    found = [node]
    for f in dataclasses.fields(node):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            found += parts_of(f.type)
    return found

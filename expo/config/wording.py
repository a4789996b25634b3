"""Say in one line what Hydra and OmegaConf say in many: key, value, remedy."""

import dataclasses
import difflib
import re
import shlex
from functools import partial

from hydra.errors import OverrideParseException

from expo.config.key import OPTIONS
from expo.config.reference import key_rows, known, nodes_of, options_of
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


def explain(error: Exception) -> str:
    """Explain an error of Hydra or OmegaConf in one line."""
    if isinstance(error, OverrideParseException):
        return _remedy(error.override)
    texts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    messages = list(dict.fromkeys(line.rstrip(".:;") for line in lines if not line.startswith(NOISE)))
    groups = any("Could not find" in line or ("Could not override" in line and "." not in line) for line in messages)
    sweeps = "requires --multirun" in " ".join(messages)
    if sweeps or any(line.startswith("Ambiguous value") for line in messages):
        asked = re.search(r"'([^']*)'", messages[0])
        line = asked[1] if asked else messages[0]
        return f"{line}: several values; add -m to run each of them, or write a list as key=[1,2]"
    remedy = "--help lists the groups and their options" if groups else "--cfg job shows every key"
    message = "; ".join(messages)
    if close := _nearest_option(message) or _nearest_key(message):
        remedy = f"did you mean {close}? {remedy}"
    for node, group in CHOOSE.items():
        if node in message:
            remedy = f"choose {group}, or leave the key out"
    return f"{message}; remedy: {remedy}"


def _remedy(override: str) -> str:
    """Return the remedy for an override whose grammar Hydra cannot read."""
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


def _nearest_key(message: str) -> str | None:
    """Return the nearest key of the config dataclass named in an error about an unknown key; the very same name in
    another dataclass comes first."""
    if (match := re.search(r"Key '(\w+)' not in '(\w+)'", message)) is None:
        return None
    nodes = {node.__name__: node for node in [*OPTIONS.values(), *parts_of(Config)]}
    owner = nodes.get(match[2])
    names = [f.name for f in dataclasses.fields(owner)] if owner else []
    every = [row[0] for group in known() for node in nodes_of(group).values() for row in key_rows(node, f"{group}.")]
    close = difflib.get_close_matches(match[1], names, 1)
    return next(iter([*close, *filter(partial(_names_key, match[1]), [*names, *every])]), None)


def _names_key(asked: str, key: str) -> bool:
    """Return whether a key has this very name, or these initials: lr is learning_rate."""
    name = key.rpartition(".")[2]
    return asked in (name, "".join(word[:1] for word in name.split("_")))


def _nearest_option(message: str) -> str | None:
    """Return the nearest option of the group named in an error about an unknown option."""
    if (match := re.search(r"Could not find '([\w/]+)/([^'/]+)'", message)) is None:
        return None
    return next((f"{match[1]}={near}" for near in difflib.get_close_matches(match[2], options_of(match[1]), 1)), None)


def parts_of(node: type) -> list[type]:
    """Return a config dataclass and those of its nested groups."""
    classes = [node]
    for f in dataclasses.fields(node):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            classes += parts_of(f.type)
    return classes

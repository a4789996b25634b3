"""Say in one line what Hydra and OmegaConf say in many: key, value, remedy."""

import dataclasses
import difflib
import re
import shlex

from hydra.errors import OverrideParseException

from expo.config.key import OPTIONS, fields_of, group_of
from expo.config.reference import means, named, options_of
from expo.config.run import Config

NOISE = ("full_key:", "object_type=", "reference_type=", "To append to your config", "Config search path", "provider=")
# A key of an option that has none: what to choose instead.
CHOOSE = {
    "'NoPositivesConf'": "positives=self_explanation or positives=expert",
    "'LoggerConf'": "logger=wandb or logger=mlflow",
}
# What reads a file or a hub's id, given in place of an option of its group.
PATHS = {"dataset": "dataset=custom dataset.path=", "model": "model=hf model.path="}
NUMBERS = {"Integer": "a whole number", "Float": "a number"}


def explain(error: Exception) -> str:
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
    if asked := re.search(r"Error merging override ([^=;]*)=([^;]*)", message):
        wanted = {"is not a ListConfig": f"write a list: {asked[1]}=[{asked[2]}]"}
        wanted |= {f"converted to {kind}": f"give {asked[1]}=… {what}" for kind, what in NUMBERS.items()}
        remedy = next((meant for sign, meant in wanted.items() if sign in message), remedy)
    if close := _nearest_option(message) or _nearest_key(message):
        remedy = f"did you mean {close}? {remedy}"
    for node, group in CHOOSE.items():
        if node in message:
            remedy = f"choose {group}, or leave the key out"
    return f"{message}; remedy: {remedy}"


def _remedy(override: str) -> str:
    key, sign, value = override.partition("=")
    if not sign or not key:
        return f"{override}: not of the form key=value; quote a value with spaces or commas twice: 'key=\"a value\"'"
    if open_ones := [one for one, other in ("[]", "{}", "()") if value.count(one) != value.count(other)]:
        return f"{override}: a {open_ones[0]} is not closed, or closed without it; close it, and quote it for the shell"
    bare = value.strip("\"'").replace('"', '\\"')
    quoted = shlex.quote(f'{key}="{bare}"')
    why = "the value cannot be read as it stands"
    return f"{override}: {why}; quote the value, once for the shell and once within: {quoted}"


def _nearest_key(message: str) -> str | None:
    """Return the nearest key of the dataclass in an error about an unknown key, or keys of that name elsewhere."""
    if (match := re.search(r"Key '(\w+)' not in '(\w+)'", message)) is None:
        return None
    parts = [part for _, f in fields_of(Config) if (part := group_of(f))]
    nodes = {node.__name__: node for node in [*OPTIONS.values(), Config, *parts]}
    owner = nodes.get(match[2])
    names = [f.name for f in dataclasses.fields(owner)] if owner else []
    close = difflib.get_close_matches(match[1], names, 1) or [name for name in names if means(match[1], name)][:1]
    groups = {group for (group, _), node in OPTIONS.items() if node is owner}  # where this option has no such key
    elsewhere = [key for key in named(match[1]) if key.rpartition(".")[0] not in groups]
    return " or ".join(close or elsewhere) or None


def _nearest_option(message: str) -> str | None:
    """Return the nearest option of the group named in an error about an unknown option."""
    if (match := re.search(r"Could not find '([\w/]+)/([^'/]+)'", message)) is None:
        return None
    group, _, name = f"{match[1]}/{match[2]}".partition("/")
    if group in PATHS and (not options_of(match[1]) or re.search(r"\.(jsonl|parquet|gguf)(\.gz)?$", name)):
        return f"{PATHS[group]}{name}"
    return next((f"{match[1]}={near}" for near in difflib.get_close_matches(match[2], options_of(match[1]), 1)), None)

"""The reference of all keys, from their declarations: `--help GROUP`, and docs/keys.md."""

import dataclasses
import textwrap
from typing import Any

from omegaconf import MISSING

from expo.config.compose import config_folders, plugins, without_file
from expo.config.errors import UserError
from expo.config.key import OPTIONS, declaration
from expo.config.run import Config


def options_of(group: str) -> list[str]:
    """Return what can follow `group=`: the YAML files of the config folders."""
    files = [file for folder in config_folders() for file in (folder / group).glob("*.yaml")]
    registered = [name for of_group, name in without_file() if of_group == group]
    return sorted({*(file.stem for file in files), *registered})


def groups() -> list[str]:
    """Return the config groups."""
    found = {f.name for folder in config_folders() for f in folder.iterdir() if any(f.glob("*.yaml"))}
    return sorted(found)


def help_of_command(command: str) -> str:
    """Return the groups and their options, as a user picks them."""
    lines = "\n".join(f"  {group:<10} {', '.join(options_of(group))}" for group in groups())
    return (
        f"expo {command} [GROUP=OPTION...] [KEY=VALUE...]    -m sweeps over comma-separated values\n\n"
        f"groups and their options (conf/):\n{lines}\n\n"
        f"expo {command} --help GROUP explains every key of a group: choices, default, meaning.\n"
        f"expo {command} --cfg job shows every key and its value."
    )


def help_of_group(group: str) -> str:
    """Return every key of a group with its choices, default and meaning. Raises UserError for an unknown group."""
    plugins()
    nodes = nodes_of(group)
    if not nodes:
        known = [f.name for f in dataclasses.fields(Config)]
        raise UserError(f"--help {group}: no such group; use one of {', '.join(known)}")
    parts = []
    if options := options_of(group):
        parts.append(f"{group}=  {', '.join(options)}")
    shown: set[str] = set()
    for name, node in nodes.items():
        rows = [row for row in rows_of(node, f"{group}.") if row[0] + repr(row[1:]) not in shown]
        shown |= {row[0] + repr(row[1:]) for row in rows}
        parts.append(f"{name}: {summary_of(node)}")
        for key, type_name, default, allowed, meaning in rows:
            parts.append(f"  {key}={default}   ({type_name}{'; ' + allowed if allowed else ''})")
            parts += textwrap.wrap(meaning, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(parts)


def nodes_of(group: str) -> dict[str, type]:
    """Return the config dataclasses of a group, by the name that people know them by."""
    found = {name: node for (of_group, name), node in OPTIONS.items() if of_group == group}
    if found:
        return found
    types = {f.name: f.type for f in dataclasses.fields(Config)}
    node = types.get(group)
    return {group: node} if isinstance(node, type) and dataclasses.is_dataclass(node) else {}


def summary_of(node: type) -> str:
    """Return the first line of a dataclass's docstring."""
    return (node.__doc__ or "").strip().split("\n")[0]


def rows_of(node: type, prefix: str) -> list[tuple[str, str, str, str, str]]:
    """Return (key, type, default, what is allowed, meaning) of each key, nested ones after their group."""
    rows = []
    for f in dataclasses.fields(node):
        if f.name == "_target_":
            continue
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            rows += rows_of(f.type, f"{prefix}{f.name}.")
            continue
        declared = declaration(f)
        type_name = f.type.__name__ if isinstance(f.type, type) and not hasattr(f.type, "__args__") else str(f.type)
        rows.append((prefix + f.name, type_name, _shown(_default(f)), declared.allowed, declared.help))
    return rows


def _default(f: "dataclasses.Field[Any]") -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _shown(default: Any) -> str:
    if default == MISSING:
        return "???"
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if isinstance(default, list):
        return f"[{','.join(_shown(item) for item in default)}]"
    return str(default)


def markdown() -> str:
    """Return the reference of every key as Markdown. `???` as a default: a YAML file or the command line sets it."""
    lines = [
        "# Keys",
        "",
        "Made from the declarations in `expo/config` by `make keys`; do not edit. Defaults are those of the declarations;",
        "files in `conf/` change some. `???`: a YAML file or the command line sets it. A key marked *runtime* changes",
        "nothing of a run's result, and is no part of its identity.",
        "",
    ]
    for f in dataclasses.fields(Config):
        nodes = nodes_of(f.name)
        if not nodes:
            continue
        lines += [f"## {f.name}", "", f"{declaration(f).help[0].upper()}{declaration(f).help[1:]}.", ""]
        if options := options_of(f.name):
            lines += [f"Options of `{f.name}=`: {', '.join(f'`{option}`' for option in options)}.", ""]
        shown: set[tuple[str, ...]] = set()
        for name, node in nodes.items():
            rows = [row for row in rows_of(node, f"{f.name}.") if row not in shown]
            if not rows:
                continue
            shown |= set(rows)
            lines += [f"### {f.name}: {name}", "", summary_of(node), "", *_table(rows, node, f.name)]
    own = [row for row in rows_of(Config, "") if "." not in row[0] and not nodes_of(row[0])]
    return "\n".join([*lines, "## Keys in no group", "", *_table(own, Config, "")])


def _table(rows: list[tuple[str, str, str, str, str]], node: type, group: str) -> list[str]:
    runtime = _runtime_keys(node, f"{group}." if group else "")
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, type_name, default, allowed, meaning in rows:
        told = f"*runtime*; {meaning}" if key in runtime else meaning
        cells = (f"`{key}`", f"`{default}`" if default else "(empty)", allowed or type_name, told)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def runtime_keys() -> set[str]:
    """Return every key and group of keys, of any option, that changes nothing of a run's result."""
    nested = ((name, node) for (name, _), node in OPTIONS.items())
    return _runtime_keys(Config, "").union(*(_runtime_keys(node, f"{name}.") for name, node in nested))


def _runtime_keys(node: type, prefix: str, runtime: bool = False) -> set[str]:
    found: set[str] = set()
    for f in dataclasses.fields(node):
        here = runtime or not declaration(f).identity
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            found |= _runtime_keys(f.type, f"{prefix}{f.name}.", here)
        if here:
            found.add(prefix + f.name)
    return found


if __name__ == "__main__":
    print(markdown(), end="")

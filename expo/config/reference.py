"""The reference of all keys, from their declarations: `--help GROUP`, and docs/keys.md."""

import dataclasses
import difflib
import textwrap

from expo.config.compose import config_folders, config_groups, plugins, without_file
from expo.config.errors import UserError
from expo.config.identity import runtime_keys_of
from expo.config.key import OPTIONS, declaration, fields_of, group_of, shown
from expo.config.run import Config

HEAD = """\
# Keys

Made from the declarations in `expo/config` by `make keys`; do not edit. Defaults are those of the declarations;
files in `conf/` change some. `???`: a YAML file or the command line sets it. A key marked *runtime* changes
nothing of a run's result, and is no part of its identity.
"""
Row = tuple[str, str, str, str, str]  # key, type, default, what is allowed, meaning


def options_of(group: str) -> list[str]:
    """Return the values of `group=`: the YAML files of the config folders."""
    files = [file for folder in config_folders() for file in (folder / group).glob("*.yaml")]
    registered = [name for of_group, name in without_file() if of_group == group]
    return sorted({*(file.stem for file in files), *registered})


def means(asked: str, key: str) -> bool:
    """Return whether a key has this very name, or these initials: lr is learning_rate."""
    name = key.rpartition(".")[2]
    return asked in (name, "".join(word[:1] for word in name.split("_")))


def named(asked: str) -> list[str]:
    """Return the first key of this very name, or else all keys that have these initials, or else the likest name's."""
    keys = {row[0]: 0 for group in known() for node in nodes_of(group).values() for row in key_rows(node, f"{group}.")}
    found = [key for key in keys if means(asked, key)]
    names = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = [names[name] for name in difflib.get_close_matches(asked.rpartition(".")[2], names, 1)]
    return [key for key in found if key.rpartition(".")[2] == asked][:1] or found or near


def help_of_command(command: str) -> str:
    """Return the groups of a command and their options, as a user picks them."""
    lines = "\n".join(f"  {group:<10} {', '.join(options_of(group))}" for group in sorted(config_groups()))
    return (
        f"expo {command} [GROUP=OPTION...] [KEY=VALUE...]    -m sweeps over comma-separated values\n\n"
        f"groups and their options (conf/):\n{lines}\n"
        f"groups of keys alone: {', '.join(name for name in known() if nodes_of(name) and not options_of(name))}\n"
        f"keys in no group: {', '.join(name for name in known() if not nodes_of(name))}\n\n"
        f"expo {command} --help GROUP explains every key of a group: choices, default, meaning. --help KEY: one key.\n"
        f"expo {command} --cfg job shows every key and its value."
    )


def known() -> list[str]:
    """Return every group and every key outside of groups."""
    return [f.name for f in dataclasses.fields(Config)]


def help_of_group(asked: str) -> str:
    """Explain every key of a group, or one key: choices, default, meaning. Raises UserError for any other name."""
    plugins()
    group, _, name = asked.partition(".")
    nodes = nodes_of(group)
    ungrouped = [row for row in key_rows(Config, "") if row[0] == asked]
    if ungrouped:
        return "\n".join(_explained(ungrouped))
    presets = _presets(group)
    if not nodes and not presets:
        near = " or ".join(difflib.get_close_matches(group, known(), 1) or named(asked))
        meant = f"did you mean {near}?" if near else f"use one of {', '.join(known())}"
        raise UserError(f"--help {asked}: no such group; {meant}")
    sections = sections_of(nodes, f"{group}.")
    if name:
        matching = [row for _, rows in sections for row in rows if row[0] == asked]
        if not matching:
            likely = [key for key in named(name) if key.startswith(f"{group}.")]
            meant = f"did you mean {likely[0]}? " if likely else ""
            raise UserError(f"--help {asked}: no such key; {meant}--help {group} lists those that there are")
        return "\n".join(_explained(matching))
    parts = [f"{group}={option:<20} {meaning}".rstrip() for option, meaning in presets.items()]
    for names, rows in sections:
        title = "every option" if len(names) > 1 and len(names) == len(nodes) else ", ".join(names)
        summary = f": {summary_of(nodes[names[0]])}" if len(names) == 1 else ""
        parts += ["", f"keys of {title}{summary}", *_explained(rows)]
    return "\n".join(parts)


def _explained(rows: list[Row]) -> list[str]:
    parts = []
    for key, type_name, default, allowed, meaning in rows:
        parts.append(f"  {key}={default}   ({type_name}{'; ' + allowed if allowed else ''})")
        parts += textwrap.wrap(meaning, 100, initial_indent="      ", subsequent_indent="      ")
    return parts


def _presets(group: str) -> dict[str, str]:
    """Return the values of `group=`, each with the first comment of its YAML file, or of its dataclass."""
    presets = {}
    for option in options_of(group):
        files = [path for folder in config_folders() if (path := folder / group / f"{option}.yaml").is_file()]
        lines = files[-1].read_text().splitlines() if files else []
        comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#") and "@package" not in line]
        node = OPTIONS.get((group, option))
        presets[option] = comments[0] if comments else summary_of(node) if node else ""
    return presets


def sections_of(nodes: dict[str, type], prefix: str) -> list[tuple[list[str], list[Row]]]:
    """Return keys by the options that have them: those that most options share come first."""
    owners: dict[Row, list[str]] = {}
    for name, node in nodes.items():
        for row in key_rows(node, prefix):
            owners.setdefault(row, []).append(name)
    sections: dict[tuple[str, ...], list[Row]] = {}
    for row, names in owners.items():
        sections.setdefault(tuple(names), []).append(row)
    return [(list(names), rows) for names, rows in sorted(sections.items(), key=lambda s: -len(s[0]))]


def nodes_of(group: str) -> dict[str, type]:
    """Return the config dataclasses of a group, by the name that people know them by."""
    by_name = {name: node for (of_group, name), node in OPTIONS.items() if of_group == group}
    if by_name:
        return by_name
    return {f.name: node for f in dataclasses.fields(Config) if f.name == group and (node := group_of(f))}


def summary_of(node: type) -> str:
    """Return the first line of a dataclass's docstring."""
    return " ".join((node.__doc__ or "").strip().split("\n\n")[0].split())


def key_rows(node: type, prefix: str) -> list[Row]:
    """Return (key, type, default, what is allowed, meaning) of each key, nested ones after their group."""
    rows = []
    for key, f in fields_of(node, prefix):
        if f.name != "_target_" and not group_of(f):
            declared = declaration(f)
            type_name = f.type.__name__ if isinstance(f.type, type) and not hasattr(f.type, "__args__") else str(f.type)
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            rows.append((key, type_name, shown(default), declared.allowed, declared.help))
    return rows


def markdown() -> str:
    """Return the reference of every key as Markdown. `???` as a default: a YAML file or the command line sets it."""
    lines = [HEAD]
    for f in dataclasses.fields(Config):
        nodes = nodes_of(f.name)
        if not nodes:
            continue
        lines += [f"## {f.name}", "", f"{declaration(f).help[0].upper()}{declaration(f).help[1:]}.", ""]
        if options := options_of(f.name):
            lines += [f"Options of `{f.name}=`: {', '.join(f'`{option}`' for option in options)}.", ""]
        for names, rows in sections_of(nodes, f"{f.name}."):
            summary = [summary_of(nodes[names[0]]), ""] if len(names) == 1 else []
            lines += [f"### {f.name}: {', '.join(names)}", "", *summary, *_table(rows, nodes[names[0]], f.name)]
    ungrouped = [row for row in key_rows(Config, "") if "." not in row[0] and not nodes_of(row[0])]
    return "\n".join([*lines, "## Keys in no group", "", *_table(ungrouped, Config, "")])


def _table(rows: list[Row], node: type, group: str) -> list[str]:
    runtime = runtime_keys_of(node, f"{group}." if group else "")
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, type_name, default, allowed, meaning in rows:
        text = f"*runtime*; {meaning}" if key in runtime else meaning
        cells = (f"`{key}`", f"`{default}`" if default else "(empty)", allowed or type_name, text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]

"""Name a run directory after what differs."""

import re
from collections.abc import Collection, Sequence

from expo.config.key import with_groups

# Said elsewhere in the path, or of no use in it.
SAID = {"algorithm", "dataset", "seed", "name", "trainer", "run", "dataset.path", "dataset.eval_path", "dataset.name"}
# Folders of output_dir that hold something else than training runs.
NO_RUNS = ("banks", "evaluate", "diagnose", "sweeps", "reports", "wandb")
LONGEST_VALUE, LONGEST = 24, 64  # characters


def plain(text: str) -> str:
    """Replace the characters of a text that cannot stand in a file's name."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("_.")


def what_differs(
    overrides: Sequence[str], runtime: Collection[str], earlier: str = "", shared: Collection[str] = ()
) -> str:
    """Name the changes of a command line, short enough for a folder's name: `max_steps_4+learning_rate_1e-05`.

    Neither `=` nor `,` is in it: Hydra would not take the folder as a value. Args: runtime, keys that change nothing of
    the result; earlier, what another run's name says, which the command line changes further; shared, the overrides
    that all runs of a sweep have: they stand last, and give way first.
    """
    given = dict(
        o.lstrip("+").replace("/", ".", o.partition("=")[0].count("/")).partition("=")[::2]
        for o in overrides
        if "=" in o and not o.startswith("hydra")
    )
    idle = {*runtime, "dataset.columns"}
    changes = {key: value for key, value in given.items() if key not in SAID and not with_groups(key) & idle}
    parts: list[str] = []
    common: list[str] = []
    for key, value in changes.items():
        if not any(other.startswith(f"{key}.") for other in changes):  # model=hf, which model.path tells better
            last = value.rstrip("/").rpartition("/")[2] if key.endswith("path") else value
            part = f"{key.rpartition('.')[2]}_{plain(last)[:LONGEST_VALUE]}"
            (common if f"{key}={value}" in shared else parts).append(part)
    changed = tuple(f"{key.rpartition('.')[2]}_" for key in changes)
    before = [part for part in earlier.split("+") if part and not re.fullmatch(r"\d+_more", part)]
    parts = [part for part in before if not part.startswith(changed)] + parts
    named: list[str] = []
    for part in [*reversed(parts), *reversed(common)]:  # what is given last tells most
        if len("+".join([*named, part])) <= LONGEST:
            named.append(part)
    left = len(parts) + len(common) - len(named)
    return "+".join(part for part in (*parts, *common) if part in named) + (f"+{left}_more" if left else "")

"""Which runs are the seeds of one arm: those that differ in nothing but the seed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo.config.from_run import config_tree
from expo.config.identity import changing, later_keys
from expo.config.key import flat, shown, with_groups
from expo.config.prompts import SHOWS

# Keys that an arm's name implies: a label tells one only where runs of the same name differ in it.
IMPLIED_BY_NAME = ("algorithm.", "positives.", "hints.", "needs")

# What changes the completions of an evaluation, or what is said of them, beside policy and problems: the beginnings of
# keys, and those of their keys that do not. More samples of a problem, it is not: as many of each are compared.
MEASURE = (
    *("evaluation.", "prompts.", "verifier.", "dataset.answer_", "trainer.precision"),
    *("model.attention", "model.chat_template", "model.dtype", "model.float32_head", "model.load_in_4bit"),
    *("rollout._target_", "rollout.dtype", "rollout.max_"),
)
# What changes the worked examples in an evaluation's prompts: they are of the training part.
EXAMPLES = ("dataset.columns", "dataset.levels", "dataset.limit", "dataset.path", "dataset.split")
UNMEASURED = {
    *("evaluation.every", "evaluation.greedy", "evaluation.patience", "evaluation.samples"),
    *(f"prompts.{name}" for name in SHOWS if name not in ("solve", "final")),
}
TRAINED_BY = "expo_settings.yaml"  # of an exported model: the settings of the run that trained it


def trained_by(model: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the run directory of a checkpoint, or an exported model's folder, and the settings that it was trained by;
    None for another model. Raises UserError where they cannot be read."""
    if (model / TRAINED_BY).is_file():
        return model, config_tree(model / TRAINED_BY)
    run = model.parent.parent
    return (run, settings_of(run)) if (run / "config.yaml").is_file() else None


def settings_of(directory: str | Path) -> dict[str, Any]:
    """Return a run's settings that change its result, without the seed. Resolves nothing in config.yaml.

    Raises UserError for one that cannot be read.
    """
    return settings_in(config_tree(Path(directory, "config.yaml")))


def settings_in(tree: Any) -> dict[str, Any]:
    """Return the settings of a config, given as plain data, that change its result, without the seed."""
    return {key: value for key, value in changing(flat(tree)).items() if key != "seed"}


def measured_otherwise(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """Return the settings in which the evaluations of two arms differ, and the values that each has. Args: the settings
    of the runs of either."""
    examples = any(of_run.get("prompts.examples") for of_run in (*first, *second))
    measure = (*MEASURE, *EXAMPLES) if examples else MEASURE
    later = {key: d.absent[0] if isinstance(d.absent, tuple) else d.absent for key, d in later_keys().items()}
    found = {}
    for key in sorted({key for of_run in (*first, *second) for key in of_run}):
        # A key that came later is not in the settings where it changes nothing: then it has the (first) value at which
        # a run is as it was before the key. Of others that a run lacks, nothing is known.
        came_later = bool(with_groups(key) & later.keys())
        sides = [
            {shown(of_run.get(key, later.get(key))) for of_run in side if came_later or key in of_run}
            for side in (first, second)
        ]
        if key.startswith(measure) and key not in UNMEASURED and all(sides) and len(sides[0] | sides[1]) > 1:
            found[key] = (", ".join(sorted(sides[0])), ", ".join(sorted(sides[1])))
    return found


def arm_names(summaries: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each run's arm: its own name, and every setting in which the runs differ.

    Two runs have the same name only if they differ in nothing but the seed: not in the content of a data file or a
    model either, which `arm` of the summary tells (runs of before 0.3 have none: of them the settings alone are
    compared). Args: summaries and settings (`settings_of`) of the runs, in the same order.
    """
    names = [str(summary["name"]) for summary in summaries]
    everywhere = {key for of_run in settings for key in of_run}
    telling = [key for key in sorted(everywhere) if _tells_arms_apart(key, names, settings)]
    short = {key: key.rpartition(".")[2] for key in telling}
    labels = []
    for name, of_run in zip(names, settings, strict=True):
        parts = [
            f"{short[k] if list(short.values()).count(short[k]) == 1 else k}={_shown(k, of_run[k])}"
            for k in telling
            if k in of_run
        ]
        labels.append(", ".join([name, *parts]))
    marks = [str(summary.get("arm", "unknown")) for summary in summaries]
    for label in set(labels):  # the same settings, but other content behind a path
        if len({mark for mark, other in zip(marks, labels, strict=True) if other == label}) > 1:
            labels = [f"{old}, arm={mark}" if old == label else old for old, mark in zip(labels, marks, strict=True)]
    return labels


def _tells_arms_apart(key: str, names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a key tells arms apart that have the same names."""
    values = [repr(of_run.get(key)) for of_run in settings]
    if not key.startswith(IMPLIED_BY_NAME):
        return len(set(values)) > 1
    return any(len({v for v, n in zip(values, names, strict=True) if n == name}) > 1 for name in set(names))


def _shown(key: str, value: Any) -> str:
    return Path(value).name if key.endswith("path") and isinstance(value, str) else shown(value)

"""Plans of tables: `experiments/<name>/plan.yaml`, read and checked. The runs that follow: `planned`."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from expo.config import UserError
from expo.config.errors import first_line
from expo.config.key import shown

# What `expo diagnose` measures of each sample, and how many decimals a table shows.
MEASURED = {"nll_per_token": 2, "nll": 1, "answer_lift": 1, "verified": 2, "right_steps": 2, "tokens": 1}
# An installed wheel has the plans inside the package; a checkout has them beside it.
SHIPPED = Path(__file__).parents[1] / "experiments"
EXPERIMENTS = SHIPPED if (SHIPPED / "demo" / "plan.yaml").is_file() else Path(__file__).parents[2] / "experiments"


Command = Enum("Command", ["train", "evaluate", "diagnose"])


@dataclass
class Arm:
    # What the arm is called in the table.
    label: str
    # Hydra overrides of `expo train`.
    overrides: list[str]
    # Key of the arm that differences are taken from, on the same problems and seeds, at the same k; every seed, of an
    # evaluated one.
    against: str | None = None
    # train; evaluate (once: it has no seed); or diagnose.
    command: Command = Command.train
    # pass@k of this arm's cells where it is not that of the columns; its label has to say so.
    k: int | None = None
    # Kind of sample of `expo diagnose`.
    kind: str | None = None


@dataclass
class Scale:
    # Overrides of every run at this scale.
    overrides: list[str]
    # Training seeds; each arm is run with each.
    seeds: list[int]
    # Runs at a time.
    jobs: int = 1
    # Overrides of single arms at this scale, after all others.
    arms: dict[str, list[str]] = field(default_factory=dict)
    # Accelerator that the cost is estimated for, see expo/cost. null: no estimate but from finished runs.
    device: str | None = None
    # Arms that this scale can make. []: all.
    only: list[str] = field(default_factory=list)


@dataclass
class Plan:
    title: str
    # By name; a plan may write them as a grid over `axes` (see `_written_out`).
    arms: dict[str, Arm]
    scales: dict[str, Scale]
    # The table's columns: metrics of the final evaluation, by summary.json's names; what `expo diagnose` measures.
    columns: list[str]
    # What the columns are called. []: as they are.
    headings: list[str] = field(default_factory=list)
    # Another table, whose plan this one changes; their runs are the same.
    extends: str | None = None
    # Arms to take from it. []: all.
    only: list[str] = field(default_factory=list)
    # Means over the whole run of scalars of metrics.jsonl, by heading.
    scalars: dict[str, str] = field(default_factory=dict)
    # expo commands, by the model folder that each makes, run first where the folder is not there.
    prepare: dict[str, list[str]] = field(default_factory=dict)
    # Pictures by file name: objects of expo.tables.figures.
    figures: dict[str, Any] = field(default_factory=dict)
    # What the paper says (paper.yaml) by arm and by the paper's own column, null where it is not known here; an arm
    # that the paper does not have is not in it.
    paper: dict[str, Any] = field(default_factory=dict)


def known_tables() -> list[str]:
    return sorted(p.parent.name for p in EXPERIMENTS.glob("*/plan.yaml"))


def plan_file(name: str) -> Path:
    """Return the plan that a person names: a table of experiments/, or the path of an own plan.yaml or its folder.

    Raises UserError for a name that is both.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    own, shipped = path / "plan.yaml", EXPERIMENTS / name / "plan.yaml"
    if not own.is_file():
        return shipped
    if name in known_tables() and not own.samefile(shipped):
        raise UserError(f"{name}: a table that comes with expo, and a folder here; use ./{name}, or {shipped}")
    return own


def table_name(name: str) -> str:
    """Return a table's name in folders and W&B: its folder's, and the plan's own where that is not plan.yaml."""
    file = plan_file(name).resolve()
    return "-".join([file.parent.name, *_plan_suffix(file)])


def results_folder(name: str, scale: str, output_dir: str = "outputs") -> Path:
    """Return the folder for results of a table's own plan: beside the plan, but never inside an installed package."""
    file = plan_file(name)
    if file.is_relative_to(SHIPPED):
        return Path(output_dir, "tables", table_name(name), scale)
    return Path(file.parent, "results", *_plan_suffix(file), scale)


def _plan_suffix(file: Path) -> list[str]:
    """Return the parts of a plan's name that tell several plans of one folder apart."""
    return [] if file.stem == "plan" else [file.stem]


def load_plan(name: str, scale_name: str | None = None) -> Plan:
    """Return the plan, with the arms of one scale. Args: name, see `plan_file`.

    Raises UserError for an unknown table or scale, and for a plan that is not one.
    """
    path = plan_file(name)
    if not path.is_file():
        near = " or ".join(difflib.get_close_matches(name, known_tables(), 1)) or f"one of {', '.join(known_tables())}"
        raise UserError(f"table={name}: no such table; use {near}, or the path of a plan.yaml of your own")
    try:
        plan: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Plan), _read(path)))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        asked = re.search(r"Key '(\w+)' not in '(Plan|Arm|Scale)'", first_line(error))
        keys = [f.name for f in fields({"Plan": Plan, "Arm": Arm, "Scale": Scale}[asked[2]])] if asked else []
        near = "".join(f"did you mean {key}? " for key in difflib.get_close_matches(asked[1] if asked else "", keys, 1))
        raise UserError(f"{path}: {first_line(error)}; {near}docs/tables.md has its keys") from error
    assert isinstance(plan, Plan)
    written = {f"arms.{key}.overrides": arm.overrides for key, arm in plan.arms.items()}
    for key, scale in plan.scales.items():
        written[f"scales.{key}.overrides"] = scale.overrides
        written |= {f"scales.{key}.arms.{arm}": overrides for arm, overrides in scale.arms.items()}
    for where, overrides in (written | {f"prepare.{folder}": line for folder, line in plan.prepare.items()}).items():
        if odd := next((o for o in overrides if not isinstance(o, str)), None):
            raise UserError(
                f"{path}: {where}: {odd} is no text to YAML, which reads a colon; put the override in quotes"
            )
        if fresh := next((o for o in overrides if o.lstrip("+").startswith("fresh=")), None):
            raise UserError(f"{path}: {where}: {fresh}: a table never makes a finished run again; leave it out")
    named: dict[str, Collection[str]] = {"only": plan.only, "paper": plan.paper}
    for key, scale in plan.scales.items():
        named |= {f"scales.{key}.only": scale.only, f"scales.{key}.arms": scale.arms}
    for where, arms in named.items():
        if unknown := sorted(set(arms) - set(plan.arms)):
            raise UserError(f"{path}: {where}={unknown[0]}: no such arm; use some of {', '.join(plan.arms)}")
    for key, numbers in plan.paper.items():
        if numbers is not None and not isinstance(numbers, dict):
            beside = path.with_name("paper.yaml")
            file = beside if beside.is_file() else path
            raise UserError(f"{file}: {key}: {numbers}: no columns; give each number its column: {{MATH: {numbers}}}")
    for key, given in {"arms": plan.arms, "columns": plan.columns, "scales": plan.scales}.items():
        if not given:
            raise UserError(f"{path}: {key}: there are none; give one or more")
    if scale_name is not None and scale_name not in plan.scales:
        raise UserError(f"scale={scale_name}: {name} has none such; use one of {', '.join(plan.scales)}")
    if len(plan.headings) not in (0, len(plan.columns)):
        raise UserError(f"{path}: headings: {len(plan.headings)} for {len(plan.columns)} columns; give one for each")
    for key, scale in plan.scales.items():
        if not scale.seeds or min(scale.seeds) < 0:
            raise UserError(f"{path}: scales.{key}.seeds={scale.seeds}: give one seed or more, each of 0 or more")
        if scale.jobs < 1:
            raise UserError(f"{path}: scales.{key}.jobs={scale.jobs}: not a number of runs at a time; give 1 or more")
    labels = [arm.label for arm in plan.arms.values()]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"{path}: arms: two have the label {twice!r}, and would be shown as one; give each its own")
    for folder, command in plan.prepare.items():
        if not command:
            raise UserError(
                f"{path}: prepare.{folder}=[]: no command; give one such as [pretrain, pretrain.output={folder}]"
            )
    given_to = [o.partition("=") for line in (*written.values(), *plan.prepare.values()) for o in line]
    values = {str(Path(value.strip("'\""))) for key, _, value in given_to if not key.endswith("output")}
    if idle := next((folder for folder in plan.prepare if folder not in values), None):
        raise UserError(f"{path}: prepare.{idle}: no run begins from it; give it to one as model.path=./{idle}")
    for key, arm in plan.arms.items():
        if "/" in key:
            raise UserError(f"{path}: arms.{key}: has a slash, and folders are named after it; leave it out")
        if arm.kind is not None and arm.command is not Command.diagnose:
            raise UserError(
                f"{path}: arms.{key}.kind={arm.kind}: of no effect on expo {arm.command.name}; leave it out"
            )
        if arm.against is not None and arm.against not in plan.arms:
            raise UserError(f"{path}: arms.{key}.against={arm.against}: no such arm; use one of {', '.join(plan.arms)}")
        if arm.against and columns_of(plan, arm) != columns_of(plan, plan.arms[arm.against]):
            unlike = f"k={shown(arm.k)}, and k={shown(plan.arms[arm.against].k)} of {arm.against}"
            raise UserError(
                f"{path}: arms.{key}.against={arm.against}: {unlike}; give both one k, or leave against out"
            )
    for only in (plan.only, plan.scales[scale_name].only if scale_name else []):
        if only:
            plan.arms = {
                key: replace(arm, against=arm.against if arm.against in only else None)
                for key, arm in plan.arms.items()
                if key in only
            }
    return plan


def _read(path: Path, extending: Sequence[Path] = ()) -> Any:
    """Read plan.yaml and paper.yaml of a folder, merged over those of the plan that they extend. Args: extending, the
    plans that extend this one."""
    plan: Any = OmegaConf.load(path)
    if not isinstance(plan, DictConfig):
        raise UserError(f"{path}: not keys with values; docs/tables.md has its keys")
    if path.resolve() in extending:
        raise UserError(f"{path}: extends itself; give another table, or leave extends out")
    if axes := plan.pop("axes", None):
        plan = OmegaConf.create(_written_out(path, OmegaConf.to_container(plan), OmegaConf.to_container(axes)))
    base = plan_file(str(plan.get("extends")))
    if plan.get("extends") and not base.is_file():
        raise UserError(f"{path}: extends={plan.extends}: no such table; give the name of a folder with a plan.yaml")
    extended = _read(base, [*extending, path.resolve()]) if plan.get("extends") else {}
    if extended.get("extends"):  # the table beside which the runs are kept
        plan["extends"] = extended["extends"]
    if "columns" in plan:  # the other table's headings are of its columns
        extended.pop("headings", None)
    paper = path.with_name("paper.yaml")
    if paper.is_file():  # instead of the other table's: a picture of it shows less
        extended.pop("paper", None)
        plan["paper"] = OmegaConf.load(paper)
    return OmegaConf.merge(extended, plan)


def _written_out(path: Path, plan: Any, axes: Any) -> Any:
    """Expand a plan's `axes`: its `arms`, `prepare` and `scales.*.arms` stand once for each point of their grid.

    `axes` is {axis: {value: {word: text or overrides}}}. `{axis}` is the value's name, `{word}` its text; an override
    that is a `{word}` alone becomes the overrides of that word. What names no axis follows the grid. Raises UserError
    where no axis has a word, or one name would stand for two arms.
    """

    grid = axes.values() if isinstance(axes, dict) else [axes]
    if not all(isinstance(v, dict) and all(isinstance(more or {}, dict) for more in v.values()) for v in grid):
        raise UserError(f"{path}: axes={axes}: not {{axis: {{value: {{word: text or overrides}}}}}}")

    def filled(of: Any, words: dict[str, Any]) -> Any:
        if isinstance(of, dict):
            return {filled(key, words): filled(value, words) for key, value in of.items()}
        if isinstance(of, list):
            return [one for each in of for one in spliced(each, words)]
        if not isinstance(of, str):
            return of
        for word in re.findall(r"\{(\w+)\}", of):
            if isinstance(words.get(word, []), list):
                raise UserError(f"{path}: {{{word}}} in {of}: no axis has this word; use one of {', '.join(words)}")
        return re.sub(r"\{(\w+)\}", lambda match: str(words[match[1]]), of)

    def spliced(one: Any, words: dict[str, Any]) -> list[Any]:
        word = str(one)[1:-1]
        if str(one) == f"{{{word}}}" and isinstance(words.get(word), list):
            return list(filled(words[word], {name: text for name, text in words.items() if name != word}))
        return [filled(one, words)]

    def over(entries: dict[str, Any]) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for point in product(*(values.items() for values in axes.values())):
            words = {axis: name for axis, (name, _) in zip(axes, point, strict=True)}
            for word, text in [item for _, more in point for item in (more or {}).items()]:
                if word in words:
                    raise UserError(f"{path}: axes: two have the word {word}; give each a name of its own")
                words[word] = text
            for key, value in entries.items():
                name = filled(key, words)
                if "{" in key and written.setdefault(name, value_filled := filled(value, words)) != value_filled:
                    raise UserError(f"{path}: {name}: stands for two; put the axis that they differ in into {key}")
        alone = {key: value for key, value in entries.items() if "{" not in key}
        if twice := next((key for key in alone if key in written), None):
            raise UserError(f"{path}: {twice}: stands alone and in the grid; give one of them another name")
        return written | alone

    scales = plan["scales"].values() if isinstance(plan.get("scales"), dict) else []
    for part, key in [(plan, "arms"), (plan, "prepare"), *((scale, "arms") for scale in scales)]:
        if isinstance(part, dict) and isinstance(part.get(key), dict):
            part[key] = over(part[key])
    return plan


def is_rate(column: str) -> bool:
    """Return whether a column is a rate of solving, shown in percent."""
    return column.startswith(("pass@", "sound@"))


def columns_of(plan: Plan, arm: Arm) -> list[str]:
    """Return the metrics of an arm's cells."""
    return [re.sub(r"@\d+", f"@{arm.k}", column) if arm.k else column for column in plan.columns]

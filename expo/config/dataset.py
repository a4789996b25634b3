"""Keys of `dataset=`: problems to train on and to evaluate on."""

import difflib
import importlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from expo.config.files import KINDS, NOT_OURS, UNREADABLE, open_rows
from expo.config.key import Config, Rules, compiles, key, option, unused
from expo.config.training import ANSWER_KINDS
from expo.config.world import WorldConf

MEASURING = ("evaluate", "diagnose")  # commands that measure a model, and train none
MOST_GENERATED = 100_000  # problems (of a level of the ladder, which takes 10 s)


@dataclass
class ColumnsConf:
    """Column names of an arbitrary data set. An empty name: the data set has no such column."""

    question: str = key("question", help="column of the question: text, or chat messages; a.b is b within a")
    answer: str = key("answer")
    """column of the final answer; the same as solution: the answer that the solution ends in"""
    solution: str = key("", help="column of a worked solution; empty: there is none")
    level: str = key("", help='column of the difficulty level (5, "5", "Level 5" or words); empty: there is none')
    subject: str = key("", help="column of the subject; empty: there is none")


@dataclass
class DatasetConf:
    """What every data set has."""

    _target_: str = MISSING
    is_ladder: ClassVar[bool] = False
    is_generated: ClassVar[bool] = False
    # Why problems have no worked solution, and the remedy.
    no_solutions: ClassVar[str] = "and dataset.columns.solution is empty; set it to the column that has them"
    name: str = key(MISSING, help="name of the data set in run directories and tables")
    path: str | None = key(None)
    """local .jsonl (packed by gzip or not) or .parquet to train on (`expo evaluate`: to evaluate on); null: the hub"""
    eval_path: str | None = key(None)
    """local file for evaluation; null with `path` set: eval_limit problems of `path` (at most half) are held out of
    training"""
    hub_id: str | None = key(None, help="id of the data set on the Hugging Face hub")
    revision: str | None = key(None, absent=None)
    """branch, tag or commit of a data set of the hub; null: its main branch"""
    hub_configs: list[str] = key([], help="hub configs, concatenated; []: the default one")
    split: str = key("train", help="split to train on")
    eval_split: str = key("test", help="split to evaluate on")
    levels: list[Any] = key([], help="difficulty levels to keep, numbers or words; []: all")
    eval_levels: list[Any] | None = key(None, help="levels to evaluate on; null: the same as `levels`")
    known_levels: list[Any] = key([], help="levels that exist in the data set; []: it has none")
    limit: int | None = key(None, above=0)
    """problems to train on (`expo evaluate`: to evaluate on); null: all; on the ladder per level"""
    eval_limit: int | None = key(None, above=0)
    """problems to evaluate on during training; null: all; on the ladder per level, and for `expo evaluate` too"""
    validation: int = key(0, low=0, absent=0)
    """problems, of those to train on, that are set apart: by their pass@k of the largest k checkpoints/best is chosen,
    and evaluation.patience goes; 0: none"""
    part: str = key("held_out", choices=("held_out", "train", "all"), identity=False)  # counted by `part_mark`
    """what `expo evaluate` and `expo diagnose` take of the data: what training leaves out, what it trains on, or all;
    with `path` alone, held_out is the part that a run with the same keys holds out"""
    on_bad_row: str = key("skip", choices=("skip", "stop"))
    """a row that cannot be used (without question or answer, or one on which no completion can be right): skip it,
    counted and named, or stop"""

    answer_kind: str = key("auto", absent="auto", choices=ANSWER_KINDS)
    """how an answer is compared with the right one; auto: each right answer says its own kind"""

    @property
    def has_oracle(self) -> bool:
        """Return whether the data set checks the steps of a completion exactly (`Problem.oracle`)."""
        return self.is_ladder

    @property
    def shares_file(self) -> bool:
        """Return whether problems to train on and to evaluate on come from one file."""
        return self.path is not None and self.eval_path is None

    @property
    def subsampled_files(self) -> list[str]:
        """Return which of `path` and `eval_path` are local files that are used in part. The file's name and lines
        decide which rows: the name counts into the identity."""
        path_drawn = self.path is not None and (self.shares_file or self.limit is not None)
        other = self.eval_path is not None and (self.limit is not None or self.eval_limit is not None)
        return [name for name, drawn in (("path", path_drawn), ("eval_path", other)) if drawn]

    def unread(self, command: str) -> dict[str, str]:
        """Return which of limit, eval_limit and part a command ignores, each with a remedy; see docs/runs.md."""
        if command not in MEASURING:
            return {"part": "it is for expo evaluate and expo diagnose; dataset.limit takes fewer problems"}
        if self.part == "held_out" and self.shares_file:
            return {}
        if self.part == "train":  # without what is held out of it
            held_out = self.path is not None or self.eval_path is not None
            return {} if held_out else {"eval_limit": "dataset.limit takes fewer problems"}
        return {"eval_limit": "it is for evaluations during training; dataset.limit takes fewer problems"}

    def evaluated_file(self, command: str) -> str | None:
        if command in MEASURING and self.part != "train":
            return self.eval_path or self.path
        return self.path or self.eval_path

    @property
    def part_mark(self) -> str:
        """Return a suffix that tells evaluations of different parts apart; "" for all of its problems, as in 0.2."""
        default = "all" if self.shares_file else "held_out"
        return "" if self.part in (default, "all") else f"-{self.part}"

    @property
    def has_solutions(self) -> bool:
        """Return whether problems come with a worked solution."""
        return True

    @property
    def any_level(self) -> bool:
        """Return whether the data's own rows say which levels there are."""
        return False

    def rules(self, cfg: Config) -> Rules:
        if not any((self.path, self.eval_path, self.hub_id)) and not self.is_generated:
            yield "dataset.path=null: this data set has no hub id either; set dataset.path or dataset.hub_id"
        if self.is_generated or self.path is not None:  # of hub_configs, a data set's own file may set some
            idle = ["revision", *(["hub_configs"] if self.is_generated else [])]
            yield from unused(self, "dataset.", idle, "since nothing is read from the hub", "take one of the hub")
        yield from self._levels("dataset.levels", self.levels)
        yield from self._levels("dataset.eval_levels", self.eval_levels or [])
        yield from _file("dataset.path", self.path)
        yield from _file("dataset.eval_path", self.eval_path)
        for name in ("path", "eval_path", "hub_id") if self.is_generated else ():
            if getattr(self, name) is not None:
                remedy = (
                    "set dataset=custom and dataset.columns, or the data set whose format it has, such as dataset=math"
                )
                yield f"dataset.{name}={getattr(self, name)}: {self.name} makes its problems and reads none; {remedy}"

    def _levels(self, name: str, levels: list[Any]) -> Rules:
        if twice := [level for level in levels if levels.count(level) > 1]:
            yield f"{name}={levels}: has {twice[0]} twice, and its problems would count twice; give each level once"
        if not self.any_level and set(levels) - set(self.known_levels):
            remedy = f"remove {name}: the data set {self.name} has no levels (or none named: dataset.columns.level)"
            remedy = f"choose from {self.known_levels}" if self.known_levels else remedy
            yield f"{name}={levels}: not all are levels of {self.name}; {remedy}"


@option("dataset", "math", formerly="expo.data.readers.MATH")
class MathConf(DatasetConf):
    """MATH (Hendrycks et al. 2021)."""

    _target_: str = "expo.data.formats.MATH"


@option("dataset", "gsm8k", formerly="expo.data.readers.GSM8K")
class Gsm8kConf(DatasetConf):
    """GSM8K (Cobbe et al. 2021)."""

    _target_: str = "expo.data.formats.GSM8K"


@option("dataset", "columns", formerly="expo.data.readers.Columns", alone=False)
class TableConf(DatasetConf):
    """Any data set with a question and an answer column."""

    _target_: str = "expo.data.formats.Columns"
    columns: ColumnsConf = key(ColumnsConf, help="names of the columns")
    answer_pattern: str = key("", absent="")
    """regular expression that finds the final answer in the answer column: its last match, of that the first group
    where it has one; empty: the column holds the final answer alone"""

    @property
    def has_solutions(self) -> bool:
        return self.columns.solution != ""

    @property
    def any_level(self) -> bool:
        return self.columns.level != "" and not self.known_levels

    def rules(self, cfg: Config) -> Rules:
        yield from super().rules(cfg)
        yield from compiles(f"dataset.answer_pattern={self.answer_pattern}", self.answer_pattern)
        wanted = {f.name: getattr(self.columns, f.name) for f in fields(self.columns)}
        for path in filter(None, (self.path, self.eval_path)):
            columns = columns_of(Path(path), {*wanted.values()} - {""})
            for column, name in wanted.items():
                name = name if name in columns else name.partition(".")[0]  # a path into the column
                near = next(iter(difflib.get_close_matches(name, columns, 1)), next(iter(columns), ""))
                if name and columns and name not in columns:
                    yield (
                        f"dataset.columns.{column}={name}: no row of {path} has it, only {', '.join(columns)}; "
                        f"set it to one of them, perhaps dataset.columns.{column}={near}"
                    )


@option("dataset", "function", formerly="expo.data.readers.Rows", alone=False)
class FunctionConf(TableConf):
    """Rows that a function of one's own yields."""

    _target_: str = "expo.data.formats.Rows"
    is_generated: ClassVar[bool] = True
    function: str = key()
    """package.module.name of a function rows(split) that yields dictionaries, for dataset.split and dataset.eval_split;
    dataset.columns names what is in them. Its attribute `oracle`, if it has one, is a function of question and
    completion that returns whether each step is right"""

    @property
    def has_oracle(self) -> bool:
        module, _, name = self.function.rpartition(".")
        try:
            return hasattr(getattr(importlib.import_module(module), name), "oracle")
        except (ImportError, AttributeError, ValueError):  # the reader says so
            return False


@dataclass
class GeneratedConf(DatasetConf):
    """Problems that are made, and read nowhere."""

    is_generated: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    def unread(self, command: str) -> dict[str, str]:
        if command not in MEASURING:
            return super().unread(command)
        read, other = ("limit", "eval_limit") if self.part == "train" else ("eval_limit", "limit")
        return {other: f"dataset.{read} takes fewer problems"}

    def rules(self, cfg: Config) -> Rules:
        yield from super().rules(cfg)
        for name, split in (("split", self.split), ("eval_split", self.eval_split)):
            if split not in self.splits:
                yield f"dataset.{name}={split}: no split of {self.name}; use {' or '.join(self.splits)}"
        for name, count in (("limit", self.limit), ("eval_limit", self.eval_limit)):
            if count is not None and count > MOST_GENERATED:
                yield f"dataset.{name}={count}: more than are made in a while; set it to {MOST_GENERATED} or less"


@option("dataset", "ladder", formerly="expo.data.readers.Ladder")
class LadderConf(GeneratedConf):
    """The ladder: generated problems."""

    _target_: str = "expo.data.formats.Ladder"
    is_ladder: ClassVar[bool] = True
    expert_style: str = key("terse", choices=("own", "terse", "foreign"))
    """the expert's solutions: in the policy's style, results only, or in an order never seen"""
    world: WorldConf = key(WorldConf, absent={})
    """what its problems are, what its base policy has read, and how its expert writes"""

    def rules(self, cfg: Config) -> Rules:
        if self.answer_kind != "auto":
            yield f"dataset.answer_kind={self.answer_kind}: the ladder knows the kind of its own answers; leave it out"
        why = "since the ladder's problems are made, and none is bad"
        yield from unused(self, "dataset.", ["on_bad_row"], why, "take a data set of rows")
        yield from super().rules(cfg)


def _file(name: str, path: str | None) -> Rules:
    if path is not None:
        if not os.path.isfile(path):
            why = "is a folder" if os.path.isdir(path) else "no such file"
            yield f"{name}={path}: {why}; give the path of a .jsonl or .parquet file"
        if os.path.isfile(path) and not os.access(path, os.R_OK):
            yield f"{name}={path}: {NOT_OURS}"
        if not path.endswith(KINDS):
            yield f"{name}={path}: not a {', '.join(KINDS)} file; convert it first"


def columns_of(path: Path, wanted: set[str]) -> list[str]:
    """Return the columns of a file. Reads rows only until all wanted columns were seen; all rows where one is missing.
    [] where the file cannot be read: its reader says why."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return list(pyarrow.parquet.read_schema(path).names)
        except (OSError, pyarrow.ArrowException):
            return []
    columns: dict[str, None] = {}
    with suppress(*UNREADABLE), open_rows(path) as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            columns |= dict.fromkeys(row) if isinstance(row, dict) else {}
            if wanted and wanted <= columns.keys():
                break
    return list(columns)

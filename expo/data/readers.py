"""Readers: from a local file, the hub or a generator to Problems. A row that cannot be used is counted and named."""

import json
import logging
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from expo.config import DatasetConf, LadderConf, TableConf, UserError
from expo.config.errors import first_line
from expo.data import ladder
from expo.data.account import NAMED, Account, Source
from expo.data.checks import BadRow, check_text, unusable
from expo.data.problem import Problem
from expo.verifier.answers import last_boxed
from expo.verifier.pool import Verifier

log = logging.getLogger(__name__)


class Reader:
    """A data set, as `expo.config.DatasetConf` describes it; subclasses turn one row into a Problem.

    `train()` and `evaluation()` share no problem: see `dataset.eval_path`. `sources` tells what became of the rows that
    were read so far.
    """

    conf: DatasetConf

    def __init__(self, conf: DatasetConf, verifier: Verifier | None = None):
        self.conf = conf
        self.verifier = verifier or Verifier()
        self.sources: list[Source] = []
        self.asked_in_held_out = 0  # problems that are not trained on since their question is held out elsewhere
        self._cache: dict[str, list[Problem]] = {}

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        """Return one row as a Problem. Raises BadRow (or KeyError for a column that is not there)."""
        raise TypeError(f"{type(self).__name__} reads no rows")

    def train(self) -> list[Problem]:
        """Return the problems to train on. A question that is also held out is not among them, wherever it stands."""
        if self.conf.path is None and self.conf.split == self.conf.eval_split:
            raise UserError(
                f"dataset.split={self.conf.split}: {self.conf.name} is evaluated on this very split; train on other data, "
                "such as dataset=math"
            )
        evaluated = self.evaluation()
        held_out = {p.asked for p in evaluated}
        problems = self._read(self.conf.path, self.conf.split, self.conf.levels)
        from_hub = (
            self.conf.path is None and self.conf.eval_path is None
        )  # whose splits are others': what they share is named, and stays
        kept = [p for p in problems if from_hub or p.asked not in held_out]
        if from_hub and (both := sum(p.asked in held_out for p in problems)):
            log.warning("%s: %d questions to train on are also evaluated on", self.conf.name, both)
        own = {p.id for p in evaluated} if self.conf.shares_file else set()
        self.asked_in_held_out = 0 if from_hub else sum(p.asked in held_out and p.id not in own for p in problems)
        if problems and not kept:
            raise UserError(
                f"{self._source(self.conf.path)}: all its questions are held out; give other rows as dataset.eval_path"
            )
        if self.conf.eval_path is not None and len(kept) < len(problems):
            log.warning(
                "%s: %d questions of dataset.eval_path are not trained on", self.conf.name, len(problems) - len(kept)
            )
        return self._nonempty(
            _spread(kept, self.conf.limit) if self.conf.limit else kept, self._source(self.conf.path), self.conf.levels
        )

    def evaluation(self) -> list[Problem]:
        """Return the problems to evaluate on: eval_path, else the held-out part of path, else the hub's eval_split."""
        levels = self.conf.levels if self.conf.eval_levels is None else self.conf.eval_levels
        if self.conf.shares_file:
            problems = self._nonempty(self._read(self.conf.path, self.conf.split, levels), self._held_out, levels)
            if len(problems) < 2:
                raise UserError(
                    f"{self._held_out}: only 1 problem can be used ({self._told()}), and none is left to hold out; "
                    "give more rows, or other rows as dataset.eval_path"
                )
            count = min(self.conf.eval_limit or 100, len(problems) // 2)  # of a small file, half is left to train on
        else:
            problems = self._read(self.conf.eval_path, self.conf.eval_split, levels)
            count = self.conf.eval_limit or len(problems)
        return self._nonempty(_spread(problems, count), self._held_out, levels)

    def part(self) -> list[Problem]:
        """Return what `expo evaluate` and `expo diagnose` take, at most `limit` problems: see `dataset.part`."""
        if self.conf.part == "train":
            return self.train()
        if self.conf.part == "held_out" and self.conf.shares_file:
            return self.evaluation()[: self.conf.limit]
        return self.whole()

    def whole(self) -> list[Problem]:
        """Return every problem of eval_path, else of path, else of the hub's eval_split, at most `limit`."""
        levels = self.conf.levels if self.conf.eval_levels is None else self.conf.eval_levels
        problems = self._read(self.conf.eval_path or self.conf.path, self.conf.eval_split, levels)
        return self._nonempty(_spread(problems, self.conf.limit), self._held_out, levels)

    def _nonempty(self, problems: list[Problem], source: str, levels: list[int]) -> list[Problem]:
        if not problems:
            wanted = f" of dataset.levels={levels}" if levels else ""
            raise UserError(
                f"{source}: no usable problem{wanted} is left ({self._told()}); check the rows, the columns and the levels"
            )
        return problems

    def _told(self) -> str:
        return ", ".join(
            f"{s.name}: {s.rows} rows, {s.used} usable" + (f", skipped: {s.reasons}" if s.skipped else "")
            for s in self.sources
        )

    @property
    def takes_sentences(self) -> bool:
        """Return whether an answer that is a sentence is meant as it is."""
        return False

    def account(self) -> Account:
        """Return what became of the rows that were read so far."""
        return Account(self.sources, asked_in_held_out=self.asked_in_held_out)

    @property
    def _held_out(self) -> str:
        return f"dataset.eval_path={self.conf.eval_path}" if self.conf.eval_path else self._source(self.conf.path)

    def _source(self, path: str | None) -> str:
        return f"dataset.path={path}" if path else f"dataset.hub_id={self.conf.hub_id}"

    def _read(self, path: str | None, split: str, levels: list[int]) -> list[Problem]:
        source = path or f"hub:{split}"
        if source not in self._cache:  # read once: training and evaluation may share a file
            self._cache[source] = self._usable(path, split)
        return [p for p in self._cache[source] if not levels or p.level in levels]

    def _usable(self, path: str | None, split: str) -> list[Problem]:
        source = Source(Path(path).name if path else f"{self.conf.name}/{split}")
        self.sources.append(source)
        made: list[tuple[int, Problem]] = []
        for line, row in enumerate(self._rows(path, split), 1):  # as an editor numbers lines
            source.rows = line
            try:
                if isinstance(row, BadRow):
                    raise row
                problem = self.problem(row, f"{source.name}:{line}")
                check_text(problem)
                made.append((line, problem))
            except (BadRow, KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
                self._skip(source, line, error if isinstance(error, BadRow) else BadRow(reason))
        judged = unusable([p for _, p in made], self.verifier, self.takes_sentences)
        used = []
        for (line, problem), why in zip(made, judged, strict=True):
            if why is None:
                used.append((line, problem))
            else:
                self._skip(source, line, why)
        source.use(used)
        if source.skipped:
            log.warning(
                "%s: skipped %d rows that cannot be used, kept %d",
                path or self.conf.name,
                source.rows - source.used,
                source.used,
            )
        return [p for _, p in used]

    def _skip(self, source: Source, line: int, why: BadRow) -> None:
        if self.conf.on_bad_row == "stop":
            raise UserError(
                f"dataset.on_bad_row=stop: row {source.name}:{line} cannot be used ({why}); "
                "mend it or set dataset.on_bad_row=skip"
            ) from why
        source.skip(line, why)
        if sum(map(len, source.skipped.values())) <= NAMED:
            log.info("skipped row %s:%d: %s", source.name, line, why)

    def _rows(self, path: str | None, split: str) -> Iterable[dict[str, Any] | BadRow]:
        if path is None:
            return self._hub_rows(split)
        if path.endswith(".parquet"):
            try:
                return _parquet_rows(Path(path))
            except MemoryError:  # of Arrow, too: not the file's fault
                raise
            except pyarrow.ArrowException as error:
                reason = first_line(error)
                raise UserError(
                    f"dataset.path={path}: cannot be read as parquet ({reason}); make the file again"
                ) from error
        return [_json_row(line) for line in Path(path).read_bytes().splitlines()]

    def _hub_rows(self, split: str) -> Iterable[dict[str, Any]]:
        import datasets  # slow to import, and only the hub needs it

        if self.conf.hub_id is None:
            raise UserError("dataset.path=null: this data set has no hub id either; set dataset.path or dataset.hub_id")
        try:
            configs: Sequence[str | None] = self.conf.hub_configs or [None]
            of = {"split": split, "revision": self.conf.revision}
            parts = [datasets.load_dataset(self.conf.hub_id, config, **of) for config in configs]
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"dataset.hub_id={self.conf.hub_id}: cannot be read ({first_line(error)}); "
                "check the id and your network, or set dataset.path to a local file"
            ) from error
        whole: Iterable[dict[str, Any]] = datasets.concatenate_datasets(parts)
        return whole


UNPACKED, TIMES = 2**30, 200  # bytes that a parquet file may unpack to, or that many times its own


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file. Raises UserError for one that unpacks to far more than its size: a few KB can hold a terabyte."""
    rows: list[dict[str, Any]] = []
    size, most = 0, max(UNPACKED, TIMES * path.stat().st_size)
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
        new = batch.to_pylist()
        rows += new
        size += sum(len(value) for row in new for value in row.values() if isinstance(value, str))
        if size > most:
            raise UserError(
                f"dataset.path={path}: has {path.stat().st_size} bytes and unpacks to over {most}; give fewer rows, or JSON lines"
            )
    return rows


def _json_row(line: bytes) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return BadRow("not UTF-8")
    except (ValueError, RecursionError):
        return BadRow("not JSON")
    return row if isinstance(row, dict) else BadRow("not a JSON object")


class MATH(Reader):
    """Hendrycks et al. (2021): problem, level ("Level 5"), type, solution with the answer in its last box."""

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        answer = last_boxed(row["solution"])
        if answer is None:
            raise BadRow(r"no \boxed{} in the solution")
        level = re.fullmatch(r"Level (\d)", row["level"])
        return Problem(id, row["problem"], answer, row["solution"], int(level[1]) if level else None, row["type"])


class GSM8K(Reader):
    """Cobbe et al. (2021): the answer stands after `####`; calculator marks `<<…>>` are not text a policy should learn."""

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        steps, mark, answer = row["answer"].rpartition("####")
        if not mark:
            raise BadRow("no #### in the answer")
        answer = answer.strip().replace(",", "")
        solution = re.sub(r"<<[^<>]*>>", "", steps).strip()
        return Problem(id, row["question"], answer, f"{solution}\n\\boxed{{{answer}}}")


class Columns(Reader):
    """Any data set with a question and an answer column."""

    conf: TableConf

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        c = self.conf.columns
        if row[c.question] is None or row[c.answer] is None:
            raise BadRow("no question or no answer")
        if not isinstance(row[c.answer], str | int | float) or isinstance(row[c.answer], bool):
            raise BadRow("the answer is neither text nor a number", repr(row[c.answer])[:80])
        if isinstance(row[c.answer], float) and not math.isfinite(row[c.answer]):
            raise BadRow("the answer is not a finite number", repr(row[c.answer]))
        answer, solution = self._answer(str(row[c.answer])), None
        if c.solution and row[c.solution] is not None:
            solution = str(row[c.solution])
            if last_boxed(solution) is None:
                solution += f"\n\\boxed{{{answer}}}"  # an expert trace must end in the answer that the verifier reads
        digits = re.fullmatch(r"\D*(\d+)", str(row[c.level])) if c.level else None  # 5, "5", "Level 5"
        level = int(digits[1]) if digits else None
        return Problem(id, str(row[c.question]), answer, solution, level, str(row[c.subject]) if c.subject else None)

    @property
    def takes_sentences(self) -> bool:
        return self.conf.answer_pattern != ""

    def _answer(self, text: str) -> str:
        if not self.conf.answer_pattern:
            return text
        found = list(re.finditer(self.conf.answer_pattern, text))
        if not found:
            raise BadRow("the answer does not match dataset.answer_pattern", repr(text[:80]))
        last, group = found[-1], 1 if found[-1].re.groups else 0
        answer = last[group] or ""
        start, end = last.span(group)
        if (re.search(r"[\d.,/-]$", text[:start]) and answer[:1].isdigit()) or (
            re.match(r"[.,/]?\d", text[end:]) and answer[-1:].isdigit()
        ):
            raise BadRow("dataset.answer_pattern finds a part of a number", f"{answer!r} in {text[:80]!r}")
        return answer


USUAL = 2000  # problems of a level to train on


class Ladder(Reader):
    """Generated problems (`expo.data.ladder`); `limit` and `eval_limit` are per level."""

    conf: LadderConf

    def train(self) -> list[Problem]:
        return list(self._generate(self.conf.split, self.conf.levels, self.conf.limit or USUAL))

    def evaluation(self) -> list[Problem]:
        levels = self.conf.levels if self.conf.eval_levels is None else self.conf.eval_levels
        return list(self._generate(self.conf.eval_split, levels, self.conf.eval_limit or 100))

    def whole(self) -> list[Problem]:
        return self.evaluation()

    def _generate(self, split: str, levels: list[int], count: int) -> Iterator[Problem]:
        for level in levels or self.conf.known_levels:
            made = 0
            for problem in ladder.generate(level, split, count, self.conf.expert_style, self.conf.world):
                made += 1
                yield problem
            if made < count and count != USUAL:  # someone has asked for as many
                log.warning("%s: level %d has no more than %d problems, not %d", self.conf.name, level, made, count)


def _spread(problems: list[Problem], count: int | None) -> list[Problem]:
    """Return `count` problems in an order that depends on their ids only, so that a subset is no stretch of a sorted file."""
    return sorted(problems, key=lambda p: zlib.crc32(p.id.encode()))[:count]

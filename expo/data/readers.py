"""Readers: from a local file, the hub or a generator to Problems. A row that cannot be used is counted and named."""

import json
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet

from expo.config import DatasetConf, FunctionConf, LadderConf, TableConf, UserError
from expo.config.errors import first_line
from expo.config.files import read_lines
from expo.config.key import shown
from expo.data.account import NAMED, Account, Source
from expo.data.checks import BadRow, check_text, unusable
from expo.ground.problem import Problem, Steps
from expo.ladder import problems as ladder
from expo.verifier.extraction import last_boxed
from expo.verifier.judges import ByFunction, function_at
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
                f"dataset.split={self.conf.split}: {self.conf.name} is evaluated on this very split; train on other "
                "data, such as dataset=math"
            )
        evaluated = self.evaluation()
        held_out = {p.asked for p in evaluated}
        problems = self._read(self.conf.path, self.conf.split, self.conf.levels)
        # Whose splits are others': what they share is named, and stays.
        from_hub = self.conf.path is None and self.conf.eval_path is None and not self.conf.is_generated
        train = [p for p in problems if from_hub or p.asked not in held_out]
        if from_hub and (both := sum(p.asked in held_out for p in problems)):
            log.warning("%s: %d questions to train on are also evaluated on", self.conf.name, both)
        ids = {p.id for p in evaluated} if self.conf.shares_file else set()
        self.asked_in_held_out = 0 if from_hub else sum(p.asked in held_out and p.id not in ids for p in problems)
        if problems and not train:
            raise UserError(
                f"{self._source(self.conf.path)}: all its questions are held out; give other rows as dataset.eval_path"
            )
        if self.conf.eval_path is not None and len(train) < len(problems):
            log.warning(
                "%s: %d questions of dataset.eval_path are not trained on", self.conf.name, len(problems) - len(train)
            )
        return self._nonempty(
            _spread(train, self.conf.limit) if self.conf.limit else train,
            self._source(self.conf.path),
            self.conf.levels,
        )

    def evaluation(self) -> list[Problem]:
        """Return the problems to evaluate on: eval_path, else the held-out part of path, else the hub's eval_split."""
        levels = self.conf.levels if self.conf.eval_levels is None else self.conf.eval_levels
        if self.conf.shares_file:
            problems = self._nonempty(
                self._once(self._read(self.conf.path, self.conf.split, levels)), self._held_out, levels
            )
            if len(problems) < 2:
                raise UserError(
                    f"{self._held_out}: only 1 problem can be used ({self._told()}), and none is left to hold out; "
                    "give more rows, or other rows as dataset.eval_path"
                )
            count = min(self.conf.eval_limit or 100, len(problems) // 2)  # of a small file, half is left to train on
        else:
            problems = self._once(self._read(self.conf.eval_path, self.conf.eval_split, levels))
            count = self.conf.eval_limit or len(problems)
        return self._nonempty(_spread(problems, count), self._held_out, levels)

    def part(self) -> list[Problem]:
        """Return the problems of `expo evaluate` and `expo diagnose`, at most `limit` of them: see `dataset.part`."""
        if self.conf.part == "train":
            return self.train()
        if self.conf.part == "held_out" and self.conf.shares_file:
            return self.evaluation()[: self.conf.limit]
        return self.whole()

    def examples(self, count: int) -> list[Problem]:
        """Return worked examples for prompts: the same ones of the training part, and one more, which replaces the one
        that a problem asks itself."""
        if not count:
            return []
        chosen = _spread([p for p in self._once(self._shown(count)) if not p.earlier], count + 1)
        if len(chosen) <= count:
            raise UserError(
                f"prompts.examples={count}: the training part has {len(chosen)} problems to show; set it lower"
            )
        return chosen

    def _shown(self, count: int) -> list[Problem]:
        """Return the problems among which examples are chosen, whatever `limit` is."""
        return self.train()

    def whole(self) -> list[Problem]:
        """Return every problem of eval_path, else of path, else of the hub's eval_split, at most `limit`."""
        levels = self.conf.levels if self.conf.eval_levels is None else self.conf.eval_levels
        problems = self._once(self._read(self.conf.eval_path or self.conf.path, self.conf.eval_split, levels))
        return self._nonempty(_spread(problems, self.conf.limit), self._held_out, levels)

    def _once(self, problems: list[Problem]) -> list[Problem]:
        """Drop problems that ask the same as an earlier one: an interval over problems takes each for another."""
        return list({p.asked: p for p in reversed(problems)}.values())[::-1]

    def _nonempty(self, problems: list[Problem], source: str, levels: list[Any]) -> list[Problem]:
        if not problems:
            wanted = f" of dataset.levels={levels}" if levels else ""
            raise UserError(
                f"{source}: no usable problem{wanted} is left ({self._told()}); check the rows, the columns and the "
                "levels"
            )
        return problems

    def _told(self) -> str:
        return ", ".join(
            f"{s.name}: {s.rows} rows, {s.used} usable" + (f", skipped: {s.reasons}" if s.skipped else "")
            for s in self.sources
        )

    @property
    def takes_sentences(self) -> bool:
        """Return whether a sentence is a valid answer."""
        return False

    def account(self) -> Account:
        """Return the account of the rows read so far."""
        return Account(self.sources, asked_in_held_out=self.asked_in_held_out)

    @property
    def _held_out(self) -> str:
        return f"dataset.eval_path={self.conf.eval_path}" if self.conf.eval_path else self._source(self.conf.path)

    def _source(self, path: str | None) -> str:
        return f"dataset.path={path}" if path else f"dataset.hub_id={self.conf.hub_id}"

    def _read(self, path: str | None, split: str, levels: list[Any]) -> list[Problem]:
        source = path or f"hub:{split}"
        if source not in self._cache:  # read once: training and evaluation may share a file
            self._cache[source] = self._usable(path, split)
        known = {str(p.level) for p in self._cache[source]}
        if self.conf.any_level and (missing := [level for level in levels if str(level) not in known]):
            raise UserError(
                f"dataset.levels={shown(levels)}: no row of {source} is of level {missing[0]}; its levels are "
                f"{', '.join(sorted(known))}"
            )
        return [p for p in self._cache[source] if not levels or str(p.level) in map(str, levels)]

    def _usable(self, path: str | None, split: str) -> list[Problem]:
        source = Source(Path(path).name if path else f"{self.conf.name}/{split}")
        self.sources.append(source)
        usable: list[tuple[int, Problem]] = []
        for line, row in enumerate(self._rows(path, split), 1):  # as an editor numbers lines
            if row is None:  # a blank line
                continue
            source.rows += 1
            if source.rows % AT_ONCE == 0:
                check_memory(f"{source.name}: {source.rows} rows are read")
            try:
                if isinstance(row, BadRow):
                    raise row
                problem = self.problem(row, f"{source.name}:{line}")
                check_text(problem)
                usable.append((line, self._ends_in_answer(replace(problem, kind=self.answer_kind, columns=row))))
            except (BadRow, KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
                self._skip(source, line, error if isinstance(error, BadRow) else BadRow(reason))
        judged = [
            why
            for start in range(0, len(usable), AT_ONCE)
            for why in unusable([p for _, p in usable[start : start + AT_ONCE]], self.verifier, self.takes_sentences)
        ]
        used = []
        for (line, problem), why in zip(usable, judged, strict=True):
            if why is None:
                used.append((line, problem))
            else:
                self._skip(source, line, why)
        if any(isinstance(p.level, str) for _, p in used):  # hard, 4.5: then all are words
            used = [(line, replace(p, level=None if p.level is None else str(p.level))) for line, p in used]
        source.use(used)
        if source.skipped:
            log.warning(
                "%s: skipped %d rows that cannot be used, kept %d",
                path or self.conf.name,
                source.rows - source.used,
                source.used,
            )
        return [p for _, p in used]

    @property
    def answer_kind(self) -> str:
        """Return the kind that all answers are compared by, or `auto`; "" where a judge of one's own compares them."""
        judge = self.verifier.judge
        if not judge.accepts_itself or isinstance(judge, ByFunction):
            return ""
        return self.conf.answer_kind if self.verifier.conf.kind == "auto" else self.verifier.conf.kind

    def _ends_in_answer(self, problem: Problem) -> Problem:
        """Return a problem whose solution ends in its answer, where the verifier reads it."""
        if problem.solution is None or self.verifier.extraction.of(problem.solution) is not None:
            return problem
        return replace(problem, solution=f"{problem.solution}\n{self.verifier.extraction.stated(problem.answer)}")

    def _skip(self, source: Source, line: int, why: BadRow) -> None:
        if self.conf.on_bad_row == "stop":
            raise UserError(
                f"dataset.on_bad_row=stop: row {source.name}:{line} cannot be used ({why}); "
                "mend it or set dataset.on_bad_row=skip"
            ) from why
        source.skip(line, why)
        if sum(map(len, source.skipped.values())) <= NAMED:
            log.info("skipped row %s:%d: %s", source.name, line, why)

    def _rows(self, path: str | None, split: str) -> Iterable[dict[str, Any] | BadRow | None]:
        if path is None:
            return self._hub_rows(split)
        if path.endswith(".parquet"):
            return _parquet_rows(Path(path))
        return (_json_row(line) if line.strip() else None for line in read_lines(Path(path)))

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
        rows: Iterable[dict[str, Any]] = datasets.concatenate_datasets(parts)
        return rows


AT_ONCE = 4096  # rows that are judged before the next are
FREE, LEAST = 1 / 64, 2**29  # share of the memory that rows leave to all else, and the most that they have to leave


def check_memory(told: str) -> None:
    """Raise MemoryError where the machine has little left: the kernel would end this process, or another, without a
    word."""
    memory = psutil.virtual_memory()
    if memory.available < min(FREE * memory.total, LEAST):
        raise MemoryError(f"{told}, and the machine has {memory.available // 2**20} MiB left")


UNPACKED, TIMES = 2**30, 200  # bytes that a parquet file may unpack to, or that many times its own


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a file one by one. Raises UserError for one that is no parquet, or that unpacks to far more than
    its size: a few KB can hold a terabyte."""
    size, most = 0, max(UNPACKED, TIMES * path.stat().st_size)
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            rows = batch.to_pylist()
            size += sum(len(value) for row in rows for value in row.values() if isinstance(value, str))
            if size > most:
                raise UserError(
                    f"dataset.path={path}: has {path.stat().st_size} bytes and unpacks to over {most}; give fewer "
                    "rows, or JSON lines"
                )
            yield from rows
    except MemoryError:  # of Arrow, too: not the file's fault
        raise
    except pyarrow.ArrowException as error:
        raise UserError(
            f"dataset.path={path}: cannot be read as parquet ({first_line(error)}); make the file again"
        ) from error


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
    """Cobbe et al. (2021): the answer stands after `####`; calculator marks `<<…>>` are not text a policy should
    learn."""

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        steps, mark, answer = row["answer"].rpartition("####")
        if not mark:
            raise BadRow("no #### in the answer")
        answer = answer.strip().replace(",", "")
        solution = re.sub(r"<<[^<>]*>>", "", steps).strip()
        return Problem(id, row["question"], answer, f"{solution}\n{self.verifier.extraction.stated(answer)}")


class Columns(Reader):
    """Any data set with a question and an answer column."""

    conf: TableConf
    oracle: Callable[[str, str], Steps] | None = None

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        c = self.conf.columns
        asked, given = _value_at(row, c.question), _value_at(row, c.answer)
        if asked is None or given is None:
            raise BadRow("no question or no answer")
        earlier, question = messages(asked) if isinstance(asked, list | tuple) else ((), text(asked, "question"))
        solution = self._solution(row)
        return Problem(
            id, question, self._answer(answer_text(given)), solution, level_of(_value_at(row, c.level, None)),
            subject=None if (subject := _value_at(row, c.subject, None)) is None else str(subject), earlier=earlier,
            oracle=self.oracle,
        )  # fmt: skip

    def _solution(self, row: Mapping[str, Any]) -> str | None:
        """Return a row's worked solution; None where it has none. Of chat messages, what the assistant says."""
        solution = _value_at(row, self.conf.columns.solution, None)
        if isinstance(solution, list | tuple):
            solution = "\n".join(content for role, content in turns(solution) if role == "assistant")
        if solution is None or (isinstance(solution, float) and math.isnan(solution)):
            return None
        return None if text(solution, "solution").strip().lower() in NOTHING else str(solution)

    @property
    def takes_sentences(self) -> bool:
        return self.conf.answer_pattern != ""

    def _answer(self, text: str) -> str:
        if not self.conf.answer_pattern:
            # The answer of a solution, where one column holds both.
            both = self.conf.columns.answer == self.conf.columns.solution
            return (self.verifier.extraction.of(text) if both else last_boxed(text)) or text
        matches = list(re.finditer(self.conf.answer_pattern, text))
        if not matches:
            raise BadRow("the answer does not match dataset.answer_pattern", repr(text[:80]))
        last, group = matches[-1], 1 if matches[-1].re.groups else 0
        answer = last[group] or ""
        start, end = last.span(group)
        if (re.search(r"[\d.,/-]$", text[:start]) and answer[:1].isdigit()) or (
            re.match(r"[.,/]?\d", text[end:]) and answer[-1:].isdigit()
        ):
            raise BadRow("dataset.answer_pattern finds a part of a number", f"{answer!r} in {text[:80]!r}")
        return answer


class Rows(Columns):
    """What a function of one's own yields for a split: `dataset=function`."""

    conf: FunctionConf

    def _rows(self, path: str | None, split: str) -> Iterator[dict[str, Any] | BadRow | None]:
        setting = f"dataset.function={self.conf.function}"
        try:
            function = function_at(self.conf.function)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{setting}: cannot be imported ({error}); give package.module.name of a function, and name its "
                "package in EXPO_PLUGINS where it stands in the working folder"
            ) from error
        if checks := getattr(function, "oracle", None):
            self.oracle = partial(_steps, checks)
        try:
            for row in function(split):
                yield row if isinstance(row, dict) else BadRow("no dictionary", repr(row)[:80])
        except Exception as error:  # of code that is not ours
            raise UserError(f"{setting}: raises {type(error).__name__} ({first_line(error)}); correct it") from error

    def _source(self, path: str | None) -> str:
        return super()._source(path) if path else f"dataset.function={self.conf.function}"


def _steps(checks: Callable[[str, str], Sequence[bool]], question: str, completion: str) -> Steps:
    """Return the check by a user's function: whether each step that the question takes is present and right."""
    right = checks(question, completion)
    if not isinstance(right, Sequence) or not right or not all(isinstance(step, bool) for step in right):
        name = getattr(checks, "__name__", checks)
        raise UserError(
            f"dataset.function: its oracle {name} returned {right!r:.80} for {question!r:.80}; let it return "
            "a list with true or false for each step"
        )
    return Steps(sum(right) / len(right), all(right))


NOTHING = ("", "none", "null", "nan", "n/a")  # what tables write where there is nothing
MOST_DIGITS = 2**53  # from here on, a float is no longer the integer that it was
_NEEDED = object()


def _value_at(row: Mapping[str, Any], column: str, default: Any = _NEEDED) -> Any:
    """Return a row's value in a column, which may be a path into it: `reward_model.ground_truth`. Raises KeyError
    without a default."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            if default is _NEEDED:
                raise KeyError(column)
            return default
        value = value[name]
    return value


def text(value: Any, name: str) -> str:
    """Return a value that is text. Raises BadRow for any other, such as `{"text": …}`."""
    if not isinstance(value, str):
        raise BadRow(f"the {name} is no text", repr(value)[:80])
    return value


def answer_text(value: Any) -> str:
    """Return an answer as text. Raises BadRow for what is neither text nor a number, and for a number that has lost
    digits."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise BadRow("the answer is neither text nor a number; write it as text, as json.dumps does", repr(value)[:80])
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("the answer is not a finite number", repr(value))
    if isinstance(value, float) and abs(value) >= MOST_DIGITS:
        raise BadRow(
            "the answer has lost digits: a column of large integers became floats; write them as text", repr(value)
        )
    return str(value)


def level_of(value: Any) -> int | str | None:
    """Return a level: the number of 5, 5.0, "5" and "Level 5", the words of any other value; None without one."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip().lower() in NOTHING:
        return None
    number = re.fullmatch(r"(?:\D*\s)?(\d+)(?:\.0)?|[^\d.]*(\d+)", str(value).strip())
    return int(number[1] or number[2]) if number else str(value).strip().replace("/", "-")


def turns(value: Sequence[Any]) -> list[tuple[str, str]]:
    """Return (role, content) of chat messages. Raises BadRow for a list of anything else, and for content that is no
    text."""
    pairs = []
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise BadRow("a list that is no chat messages", repr(value)[:80])
        content = message["content"]
        if isinstance(content, list | tuple):  # in parts
            parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
            content = "".join(text(part, "content of a message") for part in parts)
        pairs.append((text(message["role"], "role of a message"), text(content, "content of a message")))
    return pairs


def messages(value: Sequence[Any]) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the messages before the user's last one, and that. Raises BadRow where the last is another's."""
    chat = turns(value)
    if not chat or chat[-1][0] != "user":
        raise BadRow("the last message is not the user's", repr(value)[-80:])
    return tuple(chat[:-1]), chat[-1][1]


USUAL = 2000  # problems of a level to train on


class Ladder(Reader):
    """Generated problems (`expo.ladder.problems`); `limit` and `eval_limit` are per level."""

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
            n = 0
            for problem in ladder.generate(level, split, count, self.conf.expert_style, self.conf.world):
                n += 1
                yield problem
            if n < count and count != USUAL:  # someone has asked for as many
                log.warning("%s: level %d has no more than %d problems, not %d", self.conf.name, level, n, count)


def set_apart(problems: list[Problem], count: int) -> tuple[list[Problem], list[Problem]]:
    """Split problems into those to train on and `count` validation problems, no question of which is trained on. Raises
    UserError where none is left to train on."""
    apart = _spread(list({p.asked: p for p in problems}.values()), count)
    asked = {p.asked for p in apart}
    left = [p for p in problems if p.asked not in asked]
    if not left:
        raise UserError(f"dataset.validation={count}: no problem is left to train on; set it below {len(apart)}")
    return left, apart


def _spread(problems: list[Problem], count: int | None) -> list[Problem]:
    """Return `count` problems in an order that depends on their ids only, so that a subset is no stretch of a sorted
    file."""
    return sorted(problems, key=lambda p: zlib.crc32(p.id.encode()))[:count]

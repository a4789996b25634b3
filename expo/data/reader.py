"""A data set's rows as Problems, for training and for evaluation. A row that cannot be used is counted and named."""

import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo.config import DatasetConf, UserError
from expo.config.errors import first_line
from expo.config.key import shown
from expo.data.account import NAMED, Account, Source
from expo.data.cells import same_words
from expo.data.checks import BadRow, check_text, lacks_number, unusable
from expo.data.rows import check_memory, file_rows
from expo.ground.problem import Problem
from expo.verifier.judges import ByFunction
from expo.verifier.pool import Verifier

log = logging.getLogger(__name__)

USUAL = 2000  # generated problems of a level to train on
UNLIKE = "the solution has the answer's number nowhere, and the answer is written behind it: is it of this answer?"
AT_ONCE = 4096  # rows that are judged before the next are


class Reader:
    """A data set, see `expo.config.DatasetConf`; subclasses turn one row into a Problem. `train()` and `evaluation()`
    share no problem: see `dataset.eval_path`. `sources` tells what became of the rows."""

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
        self._check_splits()
        evaluated = self.evaluation()
        problems = self._read(self.conf.path, self.conf.split, self.conf.levels)
        held_out = asked_in(problems, evaluated)
        # Published splits stay as they are: of a question in both, it is warned.
        from_hub = self.conf.path is None and self.conf.eval_path is None and not self.conf.is_generated
        train = problems if from_hub else [p for p in problems if p.id not in held_out]
        if from_hub and held_out:
            log.warning("%s: %d questions to train on are also evaluated on", self.conf.name, len(held_out))
        ids = {p.id for p in evaluated} if self.conf.shares_file else set()
        self.asked_in_held_out = 0 if from_hub else len(held_out - ids)
        if problems and not train:
            raise UserError(
                f"{self._source(self.conf.path)}: all its questions are held out; give other rows as dataset.eval_path"
            )
        lost = len(problems) - len(train)
        if self.conf.eval_path is not None and lost:
            log.warning("%s: %d questions of dataset.eval_path are not trained on", self.conf.name, lost)
        chosen = _spread(train, self.conf.limit) if self.conf.limit else train
        return self._nonempty(chosen, self._source(self.conf.path), self.conf.levels)

    def _check_splits(self) -> None:
        if self.conf.path is None and self.conf.split == self.conf.eval_split:
            raise UserError(
                f"dataset.split={self.conf.split}: {self.conf.name} is evaluated on this very split; train on other "
                "data, such as dataset=math"
            )

    def evaluation(self) -> list[Problem]:
        """Return the problems to evaluate on: eval_path, else the held-out part of path, else the hub's eval_split."""
        levels = self.conf.levels if self.conf.eval_levels is None else self.conf.eval_levels
        if self.conf.shares_file:
            problems = self._once(self._read(self.conf.path, self.conf.split, levels))
            self._nonempty(problems, self._held_out, levels)
            if len(problems) < 2:
                raise UserError(
                    f"{self._held_out}: only 1 problem{_of(levels)} can be used, and none is left to hold out "
                    f"({self._told()}); mend these rows or give more, or other ones as dataset.eval_path"
                )
            count = min(self.conf.eval_limit or 100, len(problems) // 2)  # of a small file, half is left to train on
        else:
            problems = self._once(self._read(self.conf.eval_path, self.conf.eval_split, levels))
            count = self.conf.eval_limit or len(problems)
        return self._nonempty(_spread(problems, count), self._held_out, levels)

    def part(self) -> list[Problem]:
        """Return the problems of `expo evaluate` and `expo diagnose`, at most `limit` of them: see `dataset.part`."""
        if self.conf.part == "train":
            return self._once(set_apart(self.train(), self.conf.validation)[0])
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
                f"prompts.examples={count}: the training part, within dataset.limit, has {len(chosen)} problems to "
                "show; set it lower, or give more rows"
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
        """Drop problems that ask the same as an earlier one: intervals take problems for independent."""
        return list({p.asked: p for p in reversed(problems)}.values())[::-1]

    def _nonempty(self, problems: list[Problem], source: str, levels: list[Any]) -> list[Problem]:
        if not problems:
            raise UserError(
                f"{source}: no usable problem{_of(levels)} is left ({self._told()}); check rows, columns and levels"
            )
        return problems

    def _told(self) -> str:
        return ", ".join(source.told for source in self.sources)

    @property
    def columns_taken(self) -> frozenset[str] | None:
        """Return the columns that problems are made of; None where no other one may matter."""
        return None

    @property
    def takes_sentences(self) -> bool:
        return False

    def account(self) -> Account:
        return Account(list(self.sources), asked_in_held_out=self.asked_in_held_out)

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
                ended = self._ends_in_answer(problem)
                if ended is not problem and lacks_number(problem):
                    source.doubts.setdefault(UNLIKE, []).append(line)
                usable.append((line, replace(ended, kind=self.answer_kind, columns=row)))
            except (BadRow, KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
                self._skip(source, line, error if isinstance(error, BadRow) else BadRow(reason))
        if usable:
            self._try_judge(usable[0][1])
        used = []
        for start in range(0, len(usable), AT_ONCE):
            part = usable[start : start + AT_ONCE]
            reasons = unusable([p for _, p in part], self.verifier, self.takes_sentences)
            for (line, problem), why in zip(part, reasons, strict=True):
                if why is None:
                    used.append((line, problem))
                else:
                    self._skip(source, line, why)
        if any(isinstance(p.level, str) for _, p in used):
            levels = same_words([p.level for _, p in used])
            used = [(line, replace(p, level=level)) for (line, p), level in zip(used, levels, strict=True)]
        source.use(used, self.columns_taken)
        if source.skipped:
            name, skipped = path or self.conf.name, source.rows - source.used
            log.warning("%s: skipped %d rows that cannot be used, kept %d", name, skipped, source.used)
        return [p for _, p in used]

    @property
    def answer_kind(self) -> str:
        """Return the kind that all answers are compared by, or `auto`; "" where a judge of one's own compares them."""
        judge = self.verifier.judge
        if not judge.accepts_itself or isinstance(judge, ByFunction):
            return ""
        return self.conf.answer_kind if self.verifier.conf.kind == "auto" else self.verifier.conf.kind

    def _try_judge(self, problem: Problem) -> None:
        """Ask a judge of one's own about the answer of the first row. Raises UserError where it raises: it is broken,
        and would call every answer unparseable."""
        judge = self.verifier.judge
        if not isinstance(judge, ByFunction) or judge.accepts_itself:  # then each row is asked
            return
        judging = self.verifier.submit(self.verifier.extraction.stated(problem.answer), problem)
        judging.result()
        if judging.raised:
            why = f"raised {judging.raised} on a row's own answer, {problem.answer!r:.60}"
            raise UserError(f"verifier.function={judge.conf.function}: {why}; mend it")

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
        return file_rows(Path(path))

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


class Generated(Reader):
    """Reader of problems that are made: of which a command takes `limit` and `eval_limit`."""

    def made(self, split: str, levels: list[Any], count: int) -> list[Problem]:
        """Return problems of a split and its levels, `count` of them as `limit` counts."""
        raise NotImplementedError

    def train(self) -> list[Problem]:
        self._check_splits()
        return self.made(self.conf.split, self.conf.levels, self.conf.limit or USUAL)

    def evaluation(self) -> list[Problem]:
        levels = self.conf.levels if self.conf.eval_levels is None else self.conf.eval_levels
        return self.made(self.conf.eval_split, levels, self.conf.eval_limit or 100)

    def whole(self) -> list[Problem]:
        return self.evaluation()


def _of(levels: list[Any]) -> str:
    return f" of dataset.levels={levels}" if levels else ""


def asked_in(problems: Sequence[Problem], others: Sequence[Problem]) -> set[str]:
    """Return the ids of the problems that others ask, too: in the same messages, or with the same answer where either
    has a system message that many rows share, which is no part of what is asked. One of few rows may be."""
    usual = {s for each in (problems, others) for s, n in Counter(map(_told, each)).items() if n >= len(each) / 10}
    asked = {key for other in others for key in _asks(other, usual)}
    return {p.id for p in problems if not asked.isdisjoint(_asks(p, usual))}


def _told(problem: Problem) -> str:
    return " ".join(content for role, content in problem.earlier if role == "system")


def _asks(problem: Problem, usual: set[str]) -> list[object]:
    if _told(problem) not in {"", *usual}:
        return [problem.asked]
    earlier = tuple(turn for turn in problem.earlier if turn[0] != "system")
    return [problem.asked, (replace(problem, earlier=earlier).asked, problem.answer)]


def set_apart(problems: list[Problem], count: int) -> tuple[list[Problem], list[Problem]]:
    """Split problems into those to train on and `count` validation problems, no question of which is trained on. Raises
    UserError where none is left to train on."""
    apart = _spread(list({p.asked: p for p in problems}.values()), count)
    asked = asked_in(problems, apart)
    left = [p for p in problems if p.id not in asked]
    if not left:
        raise UserError(f"dataset.validation={count}: no problem is left to train on; set it below {len(apart)}")
    return left, apart


def _spread(problems: list[Problem], count: int | None) -> list[Problem]:
    """Return `count` problems in an order by their ids alone, so that a subset is no stretch of a sorted file."""
    return sorted(problems, key=lambda p: zlib.crc32(p.id.encode()))[:count]

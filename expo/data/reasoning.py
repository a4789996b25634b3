"""Problems that reasoning-gym makes: `dataset=reasoning_gym`. Which split a question is in follows from its text."""

import difflib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import reasoning_gym
from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
from reasoning_gym.factory import CURRICULA, DATASETS

from expo.config import UserError
from expo.config.errors import first_line
from expo.config.key import shown
from expo.config.reasoning import ReasoningGymConf
from expo.data.cells import text
from expo.data.checks import BadRow
from expo.data.reader import Generated
from expo.ground.problem import Problem
from expo.verifier.pool import Verifier

# Problems of one seed; a task's seeds are so far apart, since problem i of seed s is problem 0 of seed s + i.
CHUNK = 1000
PARTS = ("test", "table", "train", "train")  # by a hash of the question


class ReasoningGym(Generated):
    """The problems of one task or several. `limit` and `eval_limit` are of all tasks and levels together."""

    conf: ReasoningGymConf

    def __init__(self, conf: ReasoningGymConf, verifier: Verifier | None = None):
        super().__init__(conf, verifier)
        for split in (conf.levels, conf.eval_levels or []):  # so that what is wrong is told before a model is loaded
            streams_of(conf, split)

    def _shown(self, count: int) -> list[Problem]:
        return self.made(self.conf.split, self.conf.levels, 8 * (count + 1))  # some rows may be unusable

    def problem(self, row: dict[str, Any], id: str) -> Problem:
        metadata, level = row["metadata"], row["level"]
        task = metadata["source_dataset"]
        return Problem(
            f"{task}/{id}", text(row["question"], "question"), _answer(row), _worked(metadata), level, subject=task
        )

    def made(self, split: str, levels: list[Any], count: int) -> list[Problem]:
        self._wanted = streams_of(self.conf, levels), count
        return self._nonempty(self._usable(None, split), self._source(None), levels)

    def _source(self, path: str | None) -> str:
        return f"dataset.task={shown(self.conf.task or list(self.conf.tasks))}"

    def _rows(self, path: str | None, split: str) -> Iterable[dict[str, Any] | BadRow | None]:
        streams, count = self._wanted
        total, before, given = sum(s.share for s in streams), 0.0, 0
        for stream in streams:
            before += stream.share
            wanted = round(count * before / total) - given
            given += wanted
            yield from stream.rows(split, wanted)


@dataclass(frozen=True)
class Stream:
    """The problems of one task at one level, in an order that never changes."""

    task: str
    level: int | None
    settings: dict[str, Any]
    share: float

    def rows(self, split: str, count: int) -> Iterator[dict[str, Any] | BadRow]:
        """Yield `count` rows of a split, each of another question; fewer where CHUNK in a row bring no new one."""
        seed = zlib.crc32(f"{self.task} {self.level}".encode()) // 2  # below 2**31, as numpy wants it
        seen: set[str] = set()
        yielded = idle = 0
        for start in itertools.count(0, CHUNK):
            data = self.data(seed + start)
            for i in range(CHUNK):
                if yielded == count or idle == CHUNK:
                    return
                idle += 1
                try:
                    entry = data[i]
                    asked = " ".join(entry["question"].split())
                except Exception as error:  # whatever a task raises
                    yield BadRow(f"the task {self.task} raises {type(error).__name__}", str(error)[:80])
                    continue
                if asked not in seen and PARTS[zlib.crc32(asked.encode()) % len(PARTS)] == split:
                    seen.add(asked)
                    yielded, idle = yielded + 1, 0
                    yield {**entry, "level": self.level, "task_config": self.settings}

    def data(self, seed: int) -> Any:
        """Return CHUNK problems of a seed. Raises UserError where the task does not take its settings."""
        try:
            return reasoning_gym.create_dataset(self.task, seed=seed, size=CHUNK, **self.settings)
        except Exception as error:  # of whatever validates
            raise UserError(
                f"dataset.task={self.task}: does not take the settings {shown(str(self.settings), 200)} "
                f"({type(error).__name__}: {first_line(error)}); correct dataset.task_config, or take another level"
            ) from error


def streams_of(conf: ReasoningGymConf, levels: Sequence[Any]) -> list[Stream]:
    """Return a config's streams: each task at each level. Raises UserError for what reasoning-gym does not have."""
    streams = []
    for task, share in conf.shares.items():
        if task not in DATASETS or task == "composite":
            near = difflib.get_close_matches(task, DATASETS, 1)
            tasks = ", ".join(sorted({*DATASETS} - {"composite"}))
            meant = f"did you mean {near[0]}?" if near else f"its tasks: {tasks}"
            raise UserError(f"dataset.task={task}: no task of reasoning-gym; {meant}")
        known = _settings_of(task)
        for name in conf.settings(task):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1) or known
                raise UserError(
                    f"dataset.task_config.{name}: no setting of the task {task}; "
                    f"{'did you mean' if len(near) == 1 else 'it has'} {', '.join(near)}"
                )
        for level in levels or [None]:
            settings = {} if level is None else _at_level(task, level, conf)
            streams.append(Stream(task, level, settings | conf.settings(task), share / len(levels or [None])))
    for stream in streams:
        stream.data(0)
    return streams


def _settings_of(task: str) -> list[str]:
    """Return the names of a task's settings, without those that choose which of its problems are made."""
    return [f.name for f in fields(DATASETS[task][1]) if f.name not in ("seed", "size")]


def _at_level(task: str, level: Any, conf: ReasoningGymConf) -> dict[str, Any]:
    setting = f"dataset.levels={shown([level])}"
    if not isinstance(level, int) or isinstance(level, bool):
        raise UserError(f"{setting}: a level of reasoning-gym is a whole number; give such ones")
    if conf.level_by:
        return dict.fromkeys(_named(task, conf.level_by), level)
    if task not in CURRICULA:
        names = ", ".join(_numbers(task))
        remedy = f"set dataset.level_by to a setting that counts: {names}" if names else "leave dataset.levels out"
        raise UserError(f"{setting}: the task {task} has no curriculum, which would say what a level is; {remedy}")
    curriculum = CURRICULA[task]()
    last = max(len(attribute.levels) for attribute in curriculum.attributes.values()) - 1
    if not 0 <= level <= last:
        raise UserError(f"{setting}: the curriculum of the task {task} has the levels 0 to {last}; choose from them")
    curriculum.set_global_level(level)
    settings = curriculum.generate_configuration(context=DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND))
    return {name: getattr(settings, name) for name in _settings_of(task)}


def _named(task: str, name: str) -> list[str]:
    """Return the settings that `dataset.level_by` names. Raises UserError where the task has none such that counts."""
    numbers = _numbers(task)
    matching = [n for n in numbers if n in (name, f"min_{name}", f"max_{name}")]
    if not matching:
        none = "it has none that counts: leave dataset.levels out"
        has = f"those that count are {', '.join(numbers)}" if numbers else none
        raise UserError(f"dataset.level_by={name}: no setting of the task {task} that counts; {has}")
    return matching


def _numbers(task: str) -> list[str]:
    config = DATASETS[task][1]()
    return [name for name in _settings_of(task) if type(getattr(config, name)) is int]


def _answer(row: dict[str, Any]) -> str:
    """Return a row's right answer; of many right ones, the example that its metadata gives."""
    examples = [value for name, value in row["metadata"].items() if name.endswith("_answer")]
    answer = next((value for value in [row["answer"], *examples] if value is not None), None)
    if answer is None:
        raise BadRow("the task gives no right answer")
    return answer if isinstance(answer, str) else json.dumps(answer)


def _worked(metadata: dict[str, Any]) -> str | None:
    """Return the worked solution in a row's metadata, without the mark of its answer; None where it has none."""
    worked = metadata.get("answer_cot")
    return None if worked is None else re.sub(r"\s*####[^\n]*\s*$", "", worked)

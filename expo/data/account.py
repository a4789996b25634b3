"""Account of every data row: how many were read, used, skipped and why, held out."""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from expo.data.checks import BadRow
from expo.ground.problem import Problem
from expo.verifier.answers import kind_for
from expo.verifier.kinds import doubt

NAMED = 5  # lines that are named for one reason; the others are only counted


@dataclass
class Source:
    """One file or hub split. `skipped`: reason → lines. `duplicates`: lines that ask what an earlier one asks."""

    name: str
    rows: int = 0
    used: int = 0
    skipped: dict[str, list[int]] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)  # by reason: what is wrong with the first such row
    duplicates: list[int] = field(default_factory=list)
    contradictions: list[int] = field(default_factory=list)
    # In what answers may be meant otherwise than read: lines.
    doubts: dict[str, list[int]] = field(default_factory=dict)
    solutions: int = 0
    answer_characters: list[float] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)  # of answers, the commonest first
    unshown: list[str] = field(default_factory=list)  # columns that are no part of a problem

    def skip(self, line: int, why: BadRow) -> None:
        self.skipped.setdefault(why.reason, []).append(line)
        self.examples.setdefault(why.reason, why.detail)

    def use(self, problems: Sequence[tuple[int, Problem]], taken: Container[str] | None = None) -> None:
        """Count usable rows. Args: (line number, problem); taken, the columns that problems are made of, if known."""
        self.used = len(problems)
        columns = dict.fromkeys(column for _, p in problems for column in p.columns)
        self.unshown = [] if taken is None else [column for column in columns if column not in taken]
        self.solutions = sum(p.solution is not None for _, p in problems)
        self.answer_characters = extremes([len(p.answer) for _, p in problems])
        for line, p in problems:
            if p.kind == "auto" and (doubtful := doubt(p.answer)):
                self.doubts.setdefault(doubtful, []).append(line)
        self.kinds = dict(Counter(kind_for(p.answer, p.kind).name for _, p in problems if p.kind).most_common())
        first: dict[str, Problem] = {}
        for line, p in problems:
            earlier = first.setdefault(p.asked, p)
            if earlier is not p:
                (self.duplicates if earlier.answer == p.answer else self.contradictions).append(line)

    @property
    def told(self) -> str:
        """Say how many rows can be used, and why the others give no problem, with the first lines."""
        again = "asks what an earlier row asks; write into the question what tells them apart"
        lost = {**self.skipped, again: sorted(self.duplicates + self.contradictions)}
        reasons = [f"{_lines(lines)}: {why}" for why, lines in lost.items() if lines]
        unshown = [f"the prompt does not show {', '.join(self.unshown)}"] if self.unshown else []
        return "; ".join([f"{self.name}: {self.rows} rows, {self.used} usable", *reasons, *unshown])


@dataclass
class Part:
    """Problems that a command takes: `train`, `held_out` or `all`. `prompt_tokens`: least, median and most."""

    problems: int
    too_long: int
    prompt_tokens: list[float]


@dataclass
class Account:
    sources: list[Source]
    parts: dict[str, Part] = field(default_factory=dict)
    asked_in_held_out: int = 0

    def __or__(self, parts: dict[str, Part]) -> "Account":
        return replace(self, parts=self.parts | parts)

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def show(self) -> None:
        if self.sources:
            Console().print(self.table(), markup=False)

    def table(self) -> Table:
        table = Table("", "data", "", show_header=False, box=None, pad_edge=False)
        for s in self.sources:
            table.add_row("data", s.name, style="bold")
            table.add_row("rows", str(s.rows))
            table.add_row("used", str(s.used))
            table.add_row("skipped", str(s.rows - s.used))
            for why, lines in s.skipped.items():
                example = f" ({s.examples[why]})" if s.examples[why] else ""
                table.add_row("", f"{_lines(lines)}: {why}{example}")
            for reason, lines in s.doubts.items():
                table.add_row("look at", f"{_lines(lines)}: {reason}")
            for reason, lines in (("asked twice", s.duplicates), ("asked twice, other answer", s.contradictions)):
                if lines:
                    table.add_row(reason, f"{_lines(lines)}; kept to train on, evaluated once")
            table.add_row("with solution", str(s.solutions))
            table.add_row("answers", f"{_spread(s.answer_characters)} characters")
            kinds = ", ".join(f"{count} {kind}" for kind, count in s.kinds.items())
            table.add_row("", kinds or "compared by a judge of your own")
            if s.unshown:
                table.add_row("not shown", f"{', '.join(s.unshown)}; write into the question what the model has to see")
        for name, part in self.parts.items():
            more = f"; {part.too_long} left out: prompt too long" if part.too_long else ""
            if name == "train" and self.asked_in_held_out:
                more += f"; {self.asked_in_held_out} left out: the question is held out"
            # A problem counts by its longest prompt: of a command that trains, the one that asks for an explanation.
            shown = " with the answer shown" if name == "train" and "held_out" in self.parts else ""
            reason = f"{part.problems} problems, prompts of {_spread(part.prompt_tokens)} tokens{shown}{more}"
            table.add_row(NAMES.get(name, name), reason)
        return table


NAMES = {"train": "to train on", "validation": "to choose by", "held_out": "held out", "all": "all"}


def extremes(values: Sequence[float]) -> list[float]:
    """Return least, median and most; [] of nothing."""
    return [min(values), median(values), max(values)] if values else []


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "no"
    return f"{values[0]:g} to {values[2]:g} (median {values[1]:g})" if values[0] < values[2] else f"{values[0]:g}"


def _lines(lines: Sequence[int]) -> str:
    more = ", …" if len(lines) > NAMED else ""
    return f"{len(lines)} (line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:NAMED]))}{more})"

"""`expo bench`: seconds and memory of a step of expo and of TRL, in turns on one idle machine, and what the machine could do."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from expo.bench.cases import CASES, QUESTIONS, Case, make_model, write_rows
from expo.bench.limit import Machine, Work
from expo.config import UserError, take_options
from expo.runs.directory import device_name, git_commit
from expo.tables.render import wide_console

TOLERANCE = 0.2  # of a ratio: what another machine, or a busy one, may make of it
PARTS = ("rollout_s", "explain_s", "update_s")


class Arm:
    """A trainer in a process of its own, which takes a step when told to."""

    def __init__(self, module: str, case: Case, folder: Path, log: Path):
        command = [sys.executable, "-m", f"expo.bench.{module}", case.json(), str(folder)]
        threads = os.environ | {"OMP_NUM_THREADS": str(case.threads)}
        self.log = log
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=threads
        )
        self._read()

    def step(self) -> dict[str, float]:
        """Take one step. Returns its seconds, its parts, and the peak memory of the process so far in MiB."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # type: ignore[union-attr]
        self.process.kill()
        self.process.wait()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("bench "):
                told: dict[str, float] = json.loads(line.removeprefix("bench "))
                return told
        last = (self.log.read_text().strip().splitlines() or ["nothing on stderr"])[-1]
        raise UserError(f"bench: a trainer ended early ({last}); is TRL installed? make setup EXTRA=bench")


def main(arguments: list[str]) -> int:
    """Measure the cases, print the table, and write it to `output` where that is given."""
    options, rest = take_options(arguments, cases="a,b,c", turns="5", warm_up="1", data="", output="", check="")
    if rest:
        raise UserError(
            f"{rest[0]}: not an option of bench; it takes cases=, turns=, warm_up=, data=, output= and check="
        )
    names = options["cases"].split(",")
    if unknown := [name for name in names if name not in CASES]:
        raise UserError(f"cases={unknown[0]}: no such case; use some of {','.join(CASES)}")
    for key in ("turns", "warm_up"):
        if not options[key].isdigit() or not int(options[key]):
            raise UserError(f"{key}={options[key]}: not a number of steps; set {key}=1 or more")
    questions = _questions(options["data"])
    results, limits = {}, {}
    for name in names:
        case = CASES[name]
        results[name] = measure(case, questions, int(options["turns"]), int(options["warm_up"]))
        show(case, results[name])
        if case.shape:
            limits[name] = limit(case, results[name]["expo"], Machine.measured(case.threads))
            show_limit(case, limits[name])
    where = f"{device_name()}, commit {git_commit()}, {time.strftime('%Y-%m-%d')}"
    print(where)
    if options["output"]:
        told = {"command": " ".join(["expo bench", *arguments]), "where": where, "cases": results, "limits": limits}
        Path(options["output"]).write_text(json.dumps(told, indent=1) + "\n")
    return slower_than(Path(options["check"]), results) if options["check"] else 0


def slower_than(file: Path, results: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> int:
    """Compare the ratios, never the seconds, with those of an earlier `output`. Returns 1 where one has fallen by more than TOLERANCE."""
    try:
        earlier = json.loads(file.read_text())["cases"]
        before = {name: ratio(earlier[name])[1] for name in results}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"check={file}: has not these cases ({error!r}); make it with output={file}") from error
    code = 0
    for name, sides in results.items():
        now = ratio(sides)[1]
        if now < before[name] * (1 - TOLERANCE):
            print(
                f"{name}: {now:.2f} times, it was {before[name]:.2f}: a fall of over {TOLERANCE:.0%}", file=sys.stderr
            )
            code = 1
    return code


def _questions(data: str) -> list[str]:
    if not data:
        return list(QUESTIONS)
    try:
        rows = [json.loads(line) for line in Path(data).read_text().splitlines()[:1000]]
        return [row.get("problem") or row["question"] for row in rows]
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"data={data}: cannot be read ({error}); give a .jsonl with a problem or question in each row"
        ) from error


def measure(case: Case, questions: list[str], turns: int, warm_up: int) -> dict[str, dict[str, list[float]]]:
    """Let both sides of a case take steps in turns. Returns, by side, a list of numbers for each figure."""
    sides = [("expo", "ours", case), ("TRL", "rival", case)]
    if case.against:
        sides[1] = (f"expo, {CASES[case.against].name}", "ours", CASES[case.against])
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if case.shape:
            make_model(case, folder / "model", questions if len(questions) > len(QUESTIONS) else [])
            write_rows(folder / "rows.jsonl", questions)
        arms = {}
        for number, (side, module, of) in enumerate(sides):
            own = folder / str(number)
            own.mkdir()
            for shared in (f for f in (folder / "model", folder / "rows.jsonl") if f.exists()):
                (own / shared.name).symlink_to(shared)
            arms[side] = Arm(module, of, own, folder / f"{number}.log")
            stack.callback(arms[side].close)
        found = [{side: arm.step() for side, arm in arms.items()} for _ in range(warm_up + turns)][warm_up:]
    return {side: {k: [turn[side][k] for turn in found] for k in found[0][side]} for side in arms}


def show(case: Case, sides: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Print a case's table: medians, with the spread of the seconds."""
    table = Table(title=f"{case.name}: {case.told}", title_justify="left")
    for heading in ("", "seconds per step", "lowest to highest", *(p.removesuffix("_s") for p in PARTS), "peak MiB"):
        table.add_column(heading)
    for side, figures in sides.items():
        seconds = figures["seconds"]
        parts = (f"{statistics.median(figures[p]):.2f}" if p in figures else "–" for p in PARTS)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        peak = f"{max(figures['peak_mb']):.0f}"
        table.add_row(side, f"{statistics.median(seconds):.2f}", spread, *parts, peak)
    wide_console().print(table)
    low, middle, high = ratio(sides)
    print(f"the second takes {middle:.2f} times as long as the first (by turn {low:.2f} to {high:.2f})")


def limit(case: Case, figures: Mapping[str, list[float]], machine: Machine) -> dict[str, float]:
    """Return what a machine does, the least seconds of a step on it, and expo's share of that limit."""
    work = Work.of(case, statistics.mean(figures["prompt_tokens"]), statistics.mean(figures["tokens"]))
    least = {"rollout": work.rollout_seconds(machine), "update": work.update_seconds(machine)}
    shares = {f"{part}_share": s / statistics.median(figures[f"{part}_s"]) for part, s in least.items()}
    return {"gflops": machine.flops / 1e9, "gb_read": machine.bytes / 1e9, **least, **shares}


def show_limit(case: Case, found: Mapping[str, float]) -> None:
    """Print what `limit` found."""
    print(
        f"this machine with {case.threads} thread(s): {found['gflops']:.0f} GFLOP/s in products of float32 matrices, "
        f"{found['gb_read']:.0f} GB/s read. A step needs at least {found['rollout']:.2f} s of rollouts "
        f"({found['rollout_share']:.0%} of expo's) and {found['update']:.2f} s of update ({found['update_share']:.0%})."
    )


def ratio(sides: Mapping[str, Mapping[str, list[float]]]) -> tuple[float, float, float]:
    """Return the seconds of the second side over those of the first, turn by turn: lowest, median, highest."""
    first, second = (figures["seconds"] for figures in sides.values())
    ratios = [theirs / ours for ours, theirs in zip(first, second, strict=True)]
    return min(ratios), statistics.median(ratios), max(ratios)

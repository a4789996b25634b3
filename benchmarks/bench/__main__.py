"""Measure a step of expo and of TRL, in turns on one idle machine, beside what the machine could do: `make bench`."""

import json
import statistics
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from benchmarks.bench.arms import in_turns
from benchmarks.bench.cases import CASES, QUESTIONS, Case
from benchmarks.bench.growth import BASE, FACTORS, GROWN, costs, exponent, grown, many
from benchmarks.bench.limit import Work
from expo.cli import reporting
from expo.config import LADDER, UserError, take_options
from expo.cost.machine import Machine
from expo.runs.directory import device_name, git_commit
from expo.tables.render import wide_console

TOLERANCE = 0.3  # of a ratio: what another machine, or a busy one, may make of it
PARTS = ("rollout_s", "explain_s", "update_s")


def main(arguments: list[str]) -> int:
    """Measure the cases, print the table, and write it to `output` where that is given."""
    options, rest = take_options(arguments, cases="", grow="", turns="5", warm_up="1", data="", output="", check="")
    if rest:
        raise UserError(
            f"{rest[0]}: not an option of bench; it takes cases=, grow=, turns=, warm_up=, data=, output= and check="
        )
    names, growing = _some("cases", options["cases"], CASES), _some("grow", options["grow"], GROWN)
    for key in ("turns", "warm_up"):
        if not options[key].isdigit() or not int(options[key]):
            raise UserError(f"{key}={options[key]}: not a number of steps; set {key}=1 or more")
    questions, turns, warm_up = _questions(options["data"]), int(options["turns"]), int(options["warm_up"])
    results, limits, growth = {}, {}, {}
    for name in names or ([] if growing else ["a", "b", "c"]):
        case = CASES[name]
        results[name] = measure(case, questions, turns, warm_up)
        show(case, results[name])
        if case.shape:
            limits[name] = limit(case, results[name]["expo"], Machine.measured(case.threads))
            show_limit(case, limits[name])
        elif case.against:
            limits[name] = further(case, results[name], Machine.measured(case.threads))
            show_further(case, limits[name])
    for what in growing:
        growth[what] = in_turns({f: ("ours", grown(what, f)) for f in FACTORS}, many(questions), turns, warm_up)
    if growth:
        show_growth(growth)
    where = f"{device_name()}, commit {git_commit('benchmarks')}, {time.strftime('%Y-%m-%d')}"
    print(where)
    if options["output"]:
        told = {"command": command(arguments), "where": where}
        found = {"cases": results, "limits": limits, "growth": growth}
        Path(options["output"]).write_text(json.dumps(told | found, indent=1) + "\n")
    return slower_than(Path(options["check"]), results) if options["check"] else 0


def slower_than(file: Path, results: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> int:
    """Compare the ratios, never the seconds, with those of an earlier `output`. Returns 1 where one has fallen by more
    than TOLERANCE."""
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


def command(arguments: list[str]) -> str:
    """Return the command line as it goes into a result: files by name, since their folders are this machine's."""
    pairs = [a.partition("=") for a in arguments if not a.startswith("output=")]
    shown = (f"{key}={Path(value).name}" if key in ("data", "check") else f"{key}={value}" for key, _, value in pairs)
    return " ".join(["python -m benchmarks.bench", *shown])


def _some(key: str, given: str, known: Collection[str]) -> list[str]:
    names = [name for name in given.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{key}={unknown[0]}: no such {key.removesuffix('s')}; use some of {','.join(known)}")
    return names


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
    sides = {"expo": ("ours", case), "TRL": ("rival", case)}
    if case.against:
        sides = {"expo": ("ours", case), f"expo, {CASES[case.against].name}": ("ours", CASES[case.against])}
    return in_turns(sides, questions, turns, warm_up)


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


def further(case: Case, sides: Mapping[str, Mapping[str, list[float]]], machine: Machine) -> dict[str, float]:
    """Return the least seconds of learning from the positives of a step of the ladder, and their share of a step
    without them."""
    ours, theirs = sides.values()
    shape = json.loads((LADDER / "config.json").read_text())
    prompt_tokens, tokens = (statistics.mean(ours[k]) for k in ("positive_prompt_tokens", "positive_tokens"))
    least = Work.of(replace(case, shape=shape), prompt_tokens, tokens).update_seconds(machine)
    share = least / statistics.median(theirs["seconds"])
    told = {"gflops": machine.flops / 1e9, "prompt_tokens": prompt_tokens, "tokens": tokens}
    return told | {"positives": least, "positives_share": share}


def show_further(case: Case, found: Mapping[str, float]) -> None:
    """Print what `further` found."""
    print(
        f"{case.name}: positives of {found['tokens']:.0f} tokens, behind {found['prompt_tokens']:.0f} that the "
        "update does not read "
        f"without them, take at least {found['positives']:.3f} s at {found['gflops']:.0f} GFLOP/s: "
        f"{found['positives_share']:.0%} of a step of the second"
    )


def show_growth(growth: Mapping[str, Mapping[int, Mapping[str, list[float]]]]) -> None:
    """Print what a step costs with 1, 2, 4 and 8 times of each thing, and the exponent of each cost."""
    table = Table(title=BASE.told, title_justify="left")
    for heading in ("times", "cost", *(f"{factor} x" for factor in FACTORS), "exponent"):
        table.add_column(heading)
    for what, by_factor in growth.items():
        for cost, by in costs(by_factor).items():
            table.add_row(what, cost, *(f"{number:.3g}" for number in by.values()), f"{exponent(by):.2f}")
    wide_console().print(table)


def ratio(sides: Mapping[str, Mapping[str, list[float]]]) -> tuple[float, float, float]:
    """Return the seconds of the second side over those of the first, turn by turn: lowest, median, highest."""
    first, second = (figures["seconds"] for figures in sides.values())
    ratios = [theirs / ours for ours, theirs in zip(first, second, strict=True)]
    return min(ratios), statistics.median(ratios), max(ratios)


if __name__ == "__main__":
    sys.exit(reporting(lambda: main(sys.argv[1:])))

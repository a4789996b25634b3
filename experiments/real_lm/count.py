"""Count right steps of kept samples exactly: `python -m experiments.real_lm.count`.

A completion leaks where it ends in the right answer, and a running sum before it is wrong or left out; on word
problems, a number that the worked solution computes.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.real_lm.sums import right_steps
from experiments.real_lm.templates import NUMBER, computed, right_numbers, solutions
from expo.evaluation import intervals
from expo.runs.reading import read_rows
from expo.verifier.extraction import last_boxed

Row = dict[str, Any]
HERE = Path(__file__).parent
PROPERTIES = HERE.parent / "real_lm_properties"


def told(rows: Iterable[Row], heads: Sequence[str], key: Callable[[Row], tuple[str, ...]], problem: str) -> None:
    """Print a Markdown row for each key: samples, and the shares, with 95 % intervals over problems, of those that end
    right, are right in each step, and end right by a wrong step; and the last's share of those that end right."""
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        checks = right_steps if row.get("terms", True) else right_numbers
        sound = all(checks(row["question"], row["completion"]))
        found[key(row)][row[problem]].append((row["right"], row["right"] and sound, row["right"] and not sound))
    print(
        "| " + " | ".join([*heads, "samples", "end right", "and right in each step", "leak", "leaks of these"]) + " |"
    )
    print("|" + "---|" * (len(heads) + 5))
    for name, problems in sorted(found.items()):
        means = np.array([np.mean(samples, axis=0) for samples in problems.values()])
        cells = []
        for column in means.T:
            low, high = intervals.of_share(column)
            cells.append(f"{column.mean():.2f} [{low:.2f}, {high:.2f}]")
        right, _, leaks = np.sum([np.sum(samples, axis=0) for samples in problems.values()], axis=0)
        whole = sum(map(len, problems.values()))
        print("| " + " | ".join([*name, str(whole), *cells, f"{leaks:.0f} of {right:.0f}"]) + " |")
    print()


def of_templates(rows: Iterable[Row]) -> None:
    """Print, by level, the share of numbers before the answer that own samples and explanations compute, and the lift
    of explanations whose last line before the box states the answer, and of the others: means over problems."""
    by = {(row["level"], row["kind"], row["id"]): row for row in rows}
    for level in ("known", "new"):
        apart, lifts = [], defaultdict(list)
        for row in (row for (of, kind, _), row in by.items() if (of, kind) == (level, "self_explanation")):
            answer = float(row["true_answer"])
            wanted = [n for n in computed(solutions()[row["question"]]) if n != answer]
            pair = (by[level, "own", row["id"]], row)
            if wanted:
                apart.append([np.mean([n in computed(r["completion"]) for n in wanted]) for r in pair])
            line = row["completion"].partition("\\boxed")[0].strip().rpartition("\n")[2].replace(",", "")
            lifts[answer in map(float, NUMBER.findall(line))].append(row["answer_lift"])
        own, explained = np.array(apart).T
        print(f"{level}: numbers before the answer: own {own.mean():.2f}, explained {explained.mean():.2f},", end=" ")
        print(
            f"difference {_mean(explained - own)}; lift where the last line has the answer {_mean(lifts[True])}",
            end=" ",
        )
        print(f"({len(lifts[True])}), elsewhere {_mean(lifts[False])} ({len(lifts[False])})")
    print()


def of_steps(rows: Iterable[Row]) -> None:
    """Print, of sums of 4 and 5 terms, the shares of own samples and of explanations that are right in each step but
    the last, which the answer tells, and in each step, and the differences on the same problems and seeds."""
    found = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["level"] > 3:
            steps = right_steps(row["question"], row["completion"])
            found[row["base"], row["seed"]][row["id"]][row["kind"]] = [all(steps[:-1]), row["right"] and all(steps)]
    for base in sorted({base for base, _ in found}):
        seeds = [problems for (of, _), problems in found.items() if of == base]
        pairs = [[[problem["own"], problem["self_explanation"]] for _, problem in sorted(p.items())] for p in seeds]
        values = np.array(pairs, float)  # [S, P, own or explained, before the last or each]
        for i, which in enumerate(("each step before the last", "each step")):
            own, explained = values[..., 0, i], values[..., 1, i]
            low, high = intervals.of_difference(explained - own)
            shares = f"own {own.mean():.2f}, explained {explained.mean():.2f}"
            print(f"{base}, {len(seeds)} seeds, right in {which}: {shares}, difference", end=" ")
            print(f"{(explained - own).mean():.2f} [{low:.2f}, {high:.2f}]")
    print()


def _mean(values: Any) -> str:
    low, high = intervals.of_mean(np.array(values))
    return f"{np.mean(values):.2f} [{low:.2f}, {high:.2f}]"


def banked(folder: Path) -> list[Row]:
    """Return the explanations of sums that the base policy has written for the steps of runs under `folder`, as far as
    they are there."""
    from transformers import AutoTokenizer

    files = sorted(folder.glob("banks/sums-*/steps-*.parquet"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "bases" / "sums") if files else None
    found = []
    for file in files:
        for row in read_rows(file):
            asked = re.search(r"\n(\S+: \w+\?) It is (\S+)\. Show", tokenizer.decode(row["prompt"]))
            text = tokenizer.decode(row["ids"], skip_special_tokens=True)
            right = last_boxed(text) == asked[2] and not row["truncated"]
            task = asked[1].split()[1].rstrip("?")
            found.append({"question": asked[1], "completion": text, "right": right, "task": task, "id": asked[1]})
    return found


def measured(file: Path) -> list[Row]:
    """Return a table's own samples and explanations; a run's first arm has all kinds."""
    return [
        row | {"base": row["arm"].removesuffix("_own"), "right": row["verified"] == 1}
        for row in read_rows(file)
        if row["arm"].endswith("_own") and row["kind"] in ("own", "self_explanation")
    ]


def main() -> None:
    """Print what the kept results of both tables say of steps, and five explanations chosen at random."""
    explained, of_seeds = (measured(PROPERTIES / "results" / scale / "measured.parquet") for scale in ("cpu", "seeds"))
    heads = ("base and task", "kind", "terms")
    told(explained, heads, lambda r: (r["base"], r["kind"], str(r["level"])), "id")
    told(of_seeds, heads, lambda r: (f"{r['base']}, three seeds", r["kind"], str(r["level"])), "id")
    of_steps(row for row in explained if row["base"] != "raw_sums")
    of_steps(of_seeds)
    trained = HERE / "results" / "cpu" / "completions.parquet"
    rows = [row | {"right": row["verdict"] == "correct"} for row in read_rows(trained)] if trained.is_file() else []
    told(rows, ("arm", "terms"), lambda r: (f"{r['arm']}", str(r["level"])), "problem")
    templates = [
        row | {"right": row["verified"] == 1, "terms": False}
        for row in read_rows(PROPERTIES / "results" / "gsm_symbolic" / "cpu" / "measured.parquet")
        if row["arm"] == "own"
    ]
    told(templates, ("template", "kind"), lambda r: (r["level"], r["kind"]), "id")
    of_templates(templates)
    written = banked(Path("outputs"))
    told(written, ("written for training", "terms"), lambda r: (r["task"], str(r["question"].count("+") + 1)), "id")
    cold = [row for row in explained if row["base"] == "cold_sums" and row["kind"] == "self_explanation"]
    for row in random.Random(0).sample([row for row in cold if row["level"] > 3], 5):
        steps = " ; ".join(row["completion"].split("\n"))
        marks = "".join("+" if right else "-" for right in right_steps(row["question"], row["completion"]))
        print(f"- {row['question']} (shown: {row['true_answer']}): `{steps}` (steps {marks})")


if __name__ == "__main__":
    main()

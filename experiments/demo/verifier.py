"""The verifier's throughput and memory, on MATH's own answers and on hostile ones.

.venv/bin/python experiments/demo/verifier.py ../shared/data/math/test.jsonl
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "verifier"))
from test_verifier import HOSTILE

from expo.verifier import pool as verifier
from expo.verifier.pool import Verifier


def report(name: str, completions: Sequence[str], golds: Sequence[str]) -> None:
    """One line: verdicts, seconds, answers per second, peak memory of a worker."""
    with Verifier() as judge:
        judge.verify([r"\boxed{\frac{1}{3}}"] * 2, [r"\frac{2}{6}"] * 2)  # start the workers
        started = time.perf_counter()
        verdicts = judge.verify(completions, golds)
        seconds = time.perf_counter() - started
    counts = dict(Counter(str(v) for v in verdicts))
    print(f"{name}: {counts}, {seconds:.2f} s, {len(verdicts) / seconds:.0f}/s, {judge.peak_mb:.0f} MiB", flush=True)


def main(path: str) -> None:
    solutions = [json.loads(line)["solution"] for line in Path(path).read_text().splitlines()]
    golds = [verifier.last_boxed(solution) or "" for solution in solutions]
    report("own answers", solutions, golds)
    no_fast_path: Callable[[str, str], None] = lambda answer, gold: None  # noqa: E731
    with_fast_path, verifier.fast_verdict = verifier.fast_verdict, no_fast_path
    report("own answers, parser only", solutions, golds)
    report("each against the next one's, parser only", [rf"\boxed{{{g}}}" for g in golds[1:] + golds[:1]], golds)
    verifier.fast_verdict = with_fast_path
    report(f"{len(HOSTILE)} hostile answers", [rf"\boxed{{{h}}}" for h in HOSTILE], ["12"] * len(HOSTILE))


if __name__ == "__main__":
    main(sys.argv[1])

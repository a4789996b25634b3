"""Long runs and large ones: memory, file handles and processes over time, printed as slopes and ranges.

    python tests/soak.py [part=train|report|evaluate|verify] [steps=20000] [problems=100000] [answers=10000]
    [root=FOLDER]

Prints one line of JSON for each part, and ends with 1 where memory grows, something is left open, or a look takes too
long.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import psutil

REWARD = '''\
"""A reward that keeps two workers busy beside the run's own, and lets one of them hang now and then."""

from dataclasses import dataclass

from expo.config import VerifierConf, option
from expo.config.training import RewardConf
from expo.verifier.pool import Verifier

VERIFIER = Verifier(VerifierConf(workers=2, timeout_s=0.2))


@option("reward", "busy")
@dataclass
class BusyConf(RewardConf):
    _target_: str = "busy.Busy"


class Busy:
    def __init__(self, conf):
        self.calls = 0

    def __call__(self, rollouts):
        self.calls += 1
        hanging = [r"\\boxed{9^{9^{9^{9}}}+1}"] if self.calls % 500 == 0 else []
        VERIFIER.verify([r"\\boxed{\\frac{1}{2}}", r"\\boxed{\\sqrt{3}}", *hanging], ["0.5", "2", *("12" for _ in hanging)])
        return [float(len(r.text) % 2) for r in rollouts]
'''  # noqa: E501
TINY = [
    "dataset=ladder",
    "dataset.levels=[3]",
    "trainer.problems_per_step=1",
    "algorithm.group_size=2",
    "trainer.micro_batch_size=2",
    "k=[1]",
    "rollout.max_completion_tokens=6",
]


def watch(
    line: list[str], folder: Path, done: Callable[[], float], stop_at: float = float("inf")
) -> tuple[int, list[dict[str, float]]]:
    """Run expo and look at its processes every second. Returns the exit code and (done, MiB, file handles, processes)
    over time.

    Args: done, how much is done; stop_at, how much, before it is killed.
    """
    looks: list[dict[str, float]] = []
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "expo", *line],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | ({"EXPO_PLUGINS": "busy"} if (folder / "busy.py").is_file() else {}),
        )
        own = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(1)
            try:
                family = own.children(recursive=True)
                looks.append(
                    {
                        "done": done(),
                        "mib": own.memory_info().rss / 2**20,
                        "handles": own.num_fds(),
                        "processes": len(family),
                    }
                )
            except psutil.NoSuchProcess:
                break
            if not looks[-1]["handles"]:  # it has just ended
                looks.pop()
                break
            if looks[-1]["done"] >= stop_at:
                process.send_signal(signal.SIGKILL)
        return process.wait(), looks


def told(looks: list[dict[str, float]], per: float) -> dict[str, Any]:
    """Return the slope of memory over the second half of what was done, and the ranges of the rest in it."""
    half = [look for look in looks if look["done"] >= looks[-1]["done"] / 2]
    slope = (
        statistics.linear_regression([x["done"] for x in half], [x["mib"] for x in half]).slope
        if len({x["done"] for x in half}) > 1
        else 0.0
    )
    return {
        "MiB at half and end": [round(half[0]["mib"]), round(half[-1]["mib"])],
        f"MiB per {per:g}": round(slope * per, 3),
        **{name: [min(x[name] for x in half), max(x[name] for x in half)] for name in ("handles", "processes")},
    }


def train(folder: Path, steps: int) -> tuple[dict[str, Any], bool]:
    (folder / "busy.py").write_text(REWARD)

    def done() -> float:
        return sum(1 for path in folder.glob("outputs/ladder/*/metrics.jsonl") for _ in path.open("rb"))

    start = time.monotonic()
    line = [
        "train",
        "algorithm=grpo",
        *TINY,
        f"trainer.max_steps={steps}",
        "reward=busy",
        f"evaluation.every={steps // 20}",
        "dataset.eval_limit=8",
        f"trainer.checkpoint_every={steps // 40}",
        "logger=wandb",
        "logger.wandb.mode=offline",
    ]
    code, looks = watch(line, folder, done)
    found = told(looks, 1000) | {"steps": steps, "seconds": round(time.monotonic() - start), "exit code": code}
    flat = abs(found["MiB per 1000"]) < 1.0
    steady = found["handles"][1] - found["handles"][0] <= 12 and found["processes"][1] - found["processes"][0] <= 6
    return found, code == 0 and flat and steady


def report(folder: Path, lines: int = 100_000) -> tuple[dict[str, Any], bool]:
    """Time a look at a run of so many lines."""
    run = next(iter(folder.glob("outputs/ladder/*-s0-*")), None)
    if run is None:
        train(folder, 40)
        run = next(folder.glob("outputs/ladder/*-s0-*"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    steps, evaluated = [r for r in records if "loss/total" in r], [r for r in records if "loss/total" not in r]
    long = folder / "long" / run.name
    shutil.copytree(run, long, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", "wandb"))
    with (long / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            file.write(json.dumps(steps[step % len(steps)] | {"step": step}) + "\n")
            if step % (lines // 20) == 0:
                file.write(json.dumps(evaluated[-1] | {"step": step}) + "\n")
    start = time.monotonic()
    code = subprocess.run(
        [sys.executable, "-m", "expo", "report", str(long)], check=False, stdout=subprocess.DEVNULL
    ).returncode
    seconds = time.monotonic() - start
    size = (long / "report.html").stat().st_size / 2**20
    return {"lines": lines, "seconds": round(seconds, 1), "page MiB": round(size, 1)}, code == 0 and seconds < 5


def evaluate(folder: Path, problems: int) -> tuple[dict[str, Any], bool]:
    """Evaluate many problems, be killed on the way, and go on."""

    def parts() -> float:
        return len(list(folder.glob("outputs/evaluate/*/completions/.eval-*.parquet")))

    line = [
        "evaluate",
        "dataset=ladder",
        "dataset.levels=[3,4,5]",
        f"dataset.eval_limit={problems // 3}",
        "k=[1,4]",
        "rollout.max_completion_tokens=6",
        "logger=none",
    ]
    start, whole = time.monotonic(), problems * 4 / 2**14
    code, looks = watch(line, folder, parts, stop_at=max(whole * 0.4, 1))
    made = parts()
    code, looks = watch(line, folder, parts)
    looks = [look for look in looks if look["done"] >= made] or looks  # at the end, the parts are one file
    found = told(looks, 1) | {
        "problems": problems,
        "seconds": round(time.monotonic() - start),
        "parts kept at the kill": made,
        "exit code": code,
    }
    short = looks[-1]["done"] - made < 8  # too few parts to tell a slope from its start
    return found, code == 0 and made > 0 and (short or abs(found["MiB per 1"]) < 20)


def verify(folder: Path, answers: int) -> tuple[dict[str, Any], bool]:
    """Judge many answers of which every tenth hangs."""
    from expo.config import VerifierConf
    from expo.verifier.pool import Verifier

    def batch(count: int) -> tuple[float, float]:
        start = time.monotonic()
        golds = [rf"\frac{{{i}}}{{7}}" for i in range(count)]
        texts = [r"\boxed{9^{9^{9^{9}}}+1}" if i % 10 == 0 else rf"\boxed{{{i}/7}}" for i in range(count)]
        verdicts = verifier.verify(texts, golds)
        assert all((v.value == "timeout") is (i % 10 == 0) for i, v in enumerate(verdicts))
        return time.monotonic() - start, psutil.Process().memory_info().rss / 2**20

    with Verifier(VerifierConf(workers=2, timeout_s=0.2)) as verifier:
        looks = [batch(answers // 10) for _ in range(10)]
    rates = [round(answers / 10 / seconds, 1) for seconds, _ in looks]
    found = {
        "answers": answers,
        "seconds": round(sum(s for s, _ in looks)),
        "answers per second, least and most": [min(rates), max(rates)],
        "MiB first and last": [round(looks[0][1]), round(looks[-1][1])],
    }
    return found, min(rates) > max(rates) / 2 and looks[-1][1] - looks[0][1] < 20


def main() -> int:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    counts = {
        "train": int(options.get("steps", 20_000)),
        "report": 100_000,
        "evaluate": int(options.get("problems", 100_000)),
        "verify": int(options.get("answers", 10_000)),
    }
    good = True
    with tempfile.TemporaryDirectory(prefix="soak-") as own:
        folder = Path(options.get("root", own))
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in (("train", train), ("report", report), ("evaluate", evaluate), ("verify", verify)):
            if options.get("part", name) == name:
                found, kept = part(folder, counts[name])
                good = good and kept
                print(json.dumps({"part": name, "kept": kept} | found), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

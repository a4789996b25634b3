"""Trainers in processes of their own, which take steps in turns."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from benchmarks.bench.cases import QUESTIONS, Case, make_model, write_rows
from expo.config import UserError

Side = TypeVar("Side", str, int)  # what a side is called by


class Arm:
    """A trainer in a process of its own, which takes a step when told to."""

    def __init__(self, module: str, case: Case, folder: Path, log: Path):
        command = [sys.executable, "-m", f"benchmarks.bench.{module}", case.json(), str(folder)]
        threads = os.environ | {"OMP_NUM_THREADS": str(case.threads)}
        self.log = log
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=threads
        )
        self.idle_mb = self._read()["peak_mb"]  # before the first step

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


def in_turns(
    sides: Mapping[Side, tuple[str, Case]], questions: list[str], turns: int, warm_up: int
) -> dict[Side, dict[str, list[float]]]:
    """Let trainers take steps in turns. Returns, by side, a list of numbers for each figure.

    Args: sides, by name: the module of `benchmarks.bench` that trains, and the case. Cases of one shape have one model.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, arms, models = Path(name), {}, dict[str, Path]()
        write_rows(folder / "rows.jsonl", questions)
        for number, (side, (module, case)) in enumerate(sides.items()):
            own, shape = folder / str(number), json.dumps(case.shape)
            own.mkdir()
            (own / "rows.jsonl").symlink_to(folder / "rows.jsonl")
            write_rows(own / "held_out.jsonl", ["How many days are there in a week?"])  # so that no row to train on is
            if case.shape:
                if shape not in models:
                    models[shape] = own / "first_model"
                    make_model(case, models[shape], questions if len(questions) > len(QUESTIONS) else [])
                (own / "model").symlink_to(models[shape])
            arms[side] = Arm(module, case, own, folder / f"{number}.log")
            stack.callback(arms[side].close)
        found = [{side: arm.step() for side, arm in arms.items()} for _ in range(warm_up + turns)][warm_up:]
        figures = {side: {k: [turn[side][k] for turn in found] for k in found[0][side]} for side in arms}
        return {side: own | {"idle_mb": [arms[side].idle_mb]} for side, own in figures.items()}

"""The runs of a table: made in processes of their own, followed on the terminal."""

import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expo.config import UserError, compose_config, make_folder, run_dir
from expo.config.identity import MAKERS, made_as, write_recipe
from expo.runs.reading import read_points, read_summary
from expo.tables.plan import Plan
from expo.tables.planned import PlannedRun

POLL_S = 3
OVER = ("done", "failed")


def to_prepare(plan: Plan, runs: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> dict[str, list[str]]:
    """Return the models that are not on disk and that expo makes for the missing runs: commands by folder.

    Raises UserError where one that any of the runs begins from is not what the plan's command makes.
    """
    used, wanted = ({run.cfg.model.path.removeprefix("./") for run in some} for some in (runs, todo))
    on_disk = {folder for folder in plan.prepare if Path(folder, "config.json").is_file()}
    for folder, command in reversed(plan.prepare.items()):  # one may begin from another
        if folder in wanted - on_disk:
            wanted |= {o.partition("=")[2].strip("'\"").removeprefix("./") for o in command}
    for folder, command in plan.prepare.items():
        if folder in on_disk & (used | wanted):
            _check_made(folder, command)
    return {folder: command for folder, command in plan.prepare.items() if folder in wanted - on_disk}


def _check_made(folder: str, command: Sequence[str]) -> None:
    if command[0] not in MAKERS:  # others say nothing of what they made
        return
    as_told = made_as(Path(folder), compose_config(command[1:]), command[0])
    if as_told is None:
        print(f"{folder}: does not say which settings made it; used as it is", file=sys.stderr)
    elif not as_told:
        raise UserError(
            f"{folder}: was made with other settings than this table's, or changed since; move it away, and the table "
            f"makes its own: expo {shlex.join(command)}"
        )


def prepare(missing: Mapping[str, Sequence[str]]) -> int:
    """Make models by their commands. Returns an exit code."""
    for folder, command in missing.items():
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{folder}.lock").open("w") as lock:  # of two sweeps, one makes it
            fcntl.flock(lock, fcntl.LOCK_EX)
            if Path(folder, "config.json").is_file():
                _check_made(folder, command)
            else:
                print(f"making {folder}: expo {' '.join(command)}", file=sys.stderr)
                line = [sys.executable, "-m", "expo", *command]
                # It keeps the lock: where we are killed, it works on, and who comes next waits for it.
                code = until_over(subprocess.Popen(line, start_new_session=True, pass_fds=[lock.fileno()]))
                if not code and command[0] == "train":  # whose model is within the run
                    cfg = compose_config(command[1:])
                    made = [str(run_dir(cfg)), f"output={folder}"]
                    code = subprocess.run([sys.executable, "-m", "expo", "export", *made], check=False).returncode
                    if not code:
                        write_recipe(Path(folder), cfg, "train")
                if code:
                    return code
    return 0


def distinct(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs without duplicates: arms may share runs."""
    return list({run.dir: run for run in reversed(runs)}.values())[::-1]


def name_of(run: PlannedRun) -> str:
    return f"{run.arm}-s{run.seed}"


def make(todo: Sequence[PlannedRun], sweep: Path, hydra: list[str]) -> int:
    """Launch the missing runs in a process of its own and follow them. Returns its exit code.

    Args: sweep, a folder for this sweep's own jobs and logs: two sweeps of one table may be under way.
    """
    if not todo:
        return 0
    make_folder(sweep, "output_dir")
    path = sweep / "jobs.json"
    jobs = [{"name": name_of(r), "command": r.command, "overrides": r.line, "devices": gpus_of(r)} for r in todo]
    path.write_text(json.dumps(jobs, indent=1))
    command = [sys.executable, "-m", "expo.tables.launch", str(path), *hydra]
    view = View(todo)
    with view.bar, (sweep / "launch.log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        code = until_over(child, view.update)
        view.update()
    return code


def until_over(process: subprocess.Popen[bytes], meanwhile: Callable[[], object] = int) -> int:
    """Wait for a child in its own session and hand signals on, so that it stops with a checkpoint. Returns its code."""
    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(signal.SIGTERM)

    for number in earlier:
        signal.signal(number, hand_on)
    try:
        while process.poll() is None:
            meanwhile()
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return 128 + received[-1] if received and code == 128 + signal.SIGTERM else code


def why(run: PlannedRun, sweep: Path) -> str:
    """Say in one line what became of a run that is not done."""
    summary, log = read_summary(run.dir), sweep / "logs" / f"{name_of(run)}.log"
    said = log.read_text().split("\n") if log.is_file() else []
    last = next((line for line in reversed(said) if line.strip()), f"see {sweep / 'launch.log'}")
    return f"{summary.get('status', 'not started')}: {' '.join(str(summary.get('reason', last)).split())}"


def gpus_of(run: PlannedRun) -> int:
    """Return how many GPUs a run wants for itself."""
    trainer = run.cfg.trainer
    return 0 if trainer.accelerator == "cpu" else trainer.devices if run.command == "train" else 1


def steps_of(run: PlannedRun) -> int:
    """Return the total of the run's bar: its steps; 1 for an evaluation."""
    return run.cfg.trainer.max_steps if run.command == "train" else 1


class View:
    """A bar for the sweep and each run under way: step, reward, pass@4, time left; lines without a terminal."""

    def __init__(self, runs: Sequence[PlannedRun]):
        self.runs, self.console = runs, Console(stderr=True)
        name, state = TextColumn("{task.description}"), TextColumn("{task.fields[state]}")
        columns = (name, BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), state)
        self.bar = Progress(*columns, console=self.console, disable=not sys.stderr.isatty())
        steps = sum(steps_of(run) for run in runs)
        self.whole = self.bar.add_task(f"{len(runs)} runs", total=steps, state="")
        self.tasks: dict[str, Any] = {}
        self.ended: set[Path] = set()
        self.started = time.time()

    def update(self) -> None:
        steps_done = 0
        for run in self.runs:
            over = self._has_ended(run)
            steps, evaluations = ([] if over else read_points(run.dir, name) for name in ("reward/mean", "pass@4"))
            step = max([0, *(step for step, _ in (*steps, *evaluations))])
            steps_done += steps_of(run) if over else step
            if not over and step:
                reward = [f"reward {steps[-1][1]:.3f}"] if steps else []
                passed = [f"pass@4 {evaluations[-1][1]:.3f}"] if evaluations else []
                if (key := name_of(run)) not in self.tasks:
                    self.tasks[key] = self.bar.add_task(key, total=run.cfg.trainer.max_steps)
                self.bar.update(self.tasks[key], completed=step, state="  ".join(reward + passed))
        self.bar.update(self.whole, completed=steps_done, state=f"{len(self.ended)} ended")

    def _has_ended(self, run: PlannedRun) -> bool:
        """Return whether the run has ended in this sweep; say so once."""
        path = run.dir / "summary.json"
        if run.dir not in self.ended and path.is_file() and path.stat().st_mtime >= self.started:
            summary = read_summary(run.dir)
            if summary.get("status") in OVER:
                self.ended.add(run.dir)
                if name_of(run) in self.tasks:
                    self.bar.remove_task(self.tasks.pop(name_of(run)))
                result = f"pass@4 {summary['metrics']['pass@4']:.3f}" if "pass@4" in summary["metrics"] else ""
                said = f"{name_of(run)} {summary['status']} after {summary['wall_s']:.0f} s {result}".strip()
                self.console.print(f"{said} ({len(self.ended)} of {len(self.runs)})", markup=False, highlight=False)
        return run.dir in self.ended

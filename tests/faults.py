"""Faults by schedule: a command, a fault and a moment, all drawn from one seed; then the same command until it is done.

    python tests/faults.py trials=500 seed=0 [jobs=2] [minutes=M] [only=COMMAND]

M minutes at most: the trials that did not begin until then are left out. A third of all trials have what a place may be
beside the fault, drawn as well: `outputs` or the runs in it are links to elsewhere, or a hostile run lies beside
(`tests/hostile.py`).

After a fault the same command must lead to what an unbroken one leaves: the same scalars, weights, verdicts, W&B
history, explanations, and what is removed is removed. Nothing that was finished is made again; no process and no
temporary file stays; each process that ends early says why in a few lines, without a stack trace. A full or read-only
disk needs the right to mount; without it, the size of files is limited instead.

Each process is forked from this one, which has everything imported: a trial takes seconds instead of half a minute.
"""

import atexit
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_SILENT"] = "true"

import psutil

SMALL = [
    "trainer.max_steps=6",
    "trainer.checkpoint_every=2",
    "trainer.problems_per_step=2",
    "trainer.micro_batch_size=4",
    "evaluation.every=3",
    "dataset.eval_limit=3",
    "rollout.max_completion_tokens=64",
    "k=[1]",
    "verifier.workers=1",
    "output_dir=outputs",
]
TRAIN = ["train", "dataset=ladder", "dataset.levels=[2]", "dataset.limit=40", *SMALL]
PLAN = """\
title: two arms
columns: [pass@1]
arms:
  grpo: {label: GRPO, overrides: [algorithm=grpo]}
  sft: {label: SFT, overrides: [algorithm=sft]}
scales:
  cpu:
    overrides: [dataset=ladder, "dataset.levels=[2]", dataset.limit=40]
    seeds: [0]
    jobs: 1
"""
COMMANDS: dict[str, list[str]] = {
    "exp_grpo": [*TRAIN, "algorithm=exp_grpo", "logger=none"],
    "grpo_kl": [*TRAIN, "algorithm=grpo", "algorithm.kl_coef=0.05", "logger=none"],
    "rollback": [*TRAIN, "algorithm=grpo", "trainer.on_collapse=rollback", "logger=csv"],
    "cached": [*TRAIN, "algorithm=exp_grpo", "positives.cache_steps=4", "logger=tensorboard"],
    "lora": [*TRAIN, "algorithm=exp_grpo", "model.lora_rank=4", "logger=none"],
    "dpo": [*TRAIN, "algorithm=exp_dpo_offline", "logger=none"],
    "dpo_online": [*TRAIN, "algorithm=exp_dpo_online", "algorithm.pairs_every=3", "logger=none"],
    "sft": [*TRAIN, "algorithm=sft", "logger=none"],
    "star": [*TRAIN, "algorithm=star", "algorithm.restart_every=3", "logger=none"],
    "wandb": [*TRAIN, "algorithm=grpo", "logger=wandb", "logger.wandb.mode=offline"],
    "evaluate": ["evaluate", "dataset=ladder", *SMALL[1:], "dataset.eval_limit=12", "logger=none"],
    "diagnose": ["diagnose", "dataset=ladder", *SMALL[1:], "diagnose.problems=2", "logger=none"],
    "pretrain": [
        "pretrain",
        "dataset=ladder",
        "pretrain.max_steps=40",
        "pretrain.tokens_per_batch=800",
        "pretrain.output=outputs/base",
    ],
    "explain": ["explain", *TRAIN[1:], "algorithm=exp_grpo", "logger=none"],
    "table": ["table", "plan/plan.yaml", "logger=none", *SMALL],
    "fresh": [*TRAIN, "algorithm=exp_grpo", "logger=none", "fresh=true"],
    "report": ["report", "RUN", "output=outputs/page.html"],
    "export": ["export", "RUN", "output=outputs/exported"],
    "runs rm": ["runs", "rm", "RUN", "yes=true"],
    "runs gc": ["runs", "gc", "output_dir=outputs", "yes=true"],
    "verify": [],  # no command: answers judged by workers
}
OF_A_RUN = ("fresh", "report", "export", "runs rm", "runs gc")  # a finished run is there: that of exp_grpo
ONCE = ("export", "runs rm")  # refused where it is done already
PLACES = ("a linked folder", "linked runs", "a foreign run")
FOREIGN = "foreign-s0-0000000000"
FAULTS = (
    "SIGKILL",
    "SIGTERM",
    "SIGINT",
    "full disk",
    "small files",
    "read-only",
    "corrupted byte",
    "clock",
    "worker killed",
    "worker stopped",
    "W&B killed",
)
HISTORY = """\
import json, sys
from expo.loggers.offline import read_offline
print(json.dumps(read_offline(sys.argv[1]).history))
"""
TEMPORARY = re.compile(r"\.tmp$|\.tmp\.|\.partial$|^\.final|\.copying$", re.IGNORECASE)
CLOCKS = ("time/", "throughput/", "_timestamp", "_runtime", "_wandb")
LONGEST_S = 300  # of one process


@dataclass
class Trial:
    """What was tried and what came of it. `wrong`: broken promises; [] where all were kept."""

    number: int
    command: str
    fault: str
    moment: float  # share of an unbroken run's time
    place: str = ""  # one of PLACES; "" for none
    arguments: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # on stderr, by the process that met the fault
    processes: int = 0  # until it was done
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = "; ".join(self.wrong) or "kept"
        return f"{self.number:4d} {self.command:10s} {self.fault:14s} at {self.moment:4.0%} {self.place:15s}: {told}"


# --- processes


def launch(arguments: list[str], folder: Path, log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Fork a process that runs `expo` in `folder`. Returns its pid. Args: prepare, called in it first."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        if prepare:
            prepare()
        code = _run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    from expo.cli import main, reporting

    if not arguments:
        return reporting(verify)
    sys.argv = ["expo", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def verify() -> int:
    """Judge answers that need a worker, some of which hang; verdicts.json is written at the end."""
    from expo.config import VerifierConf
    from expo.verifier.pool import Verifier

    golds = [rf"\frac{{{i}}}{{7}}" for i in range(1, 40)] + [str(10**i) for i in range(3)]
    answers = [rf"\boxed{{{i}/7}}" for i in range(1, 40)] + [rf"\boxed{{9^{{9^{{9^{{9}}}}}}+{i}}}" for i in range(3)]
    with Verifier(VerifierConf(workers=2, timeout_s=0.3)) as verifier:
        verdicts = [v.value for v in verifier.verify(answers, golds)]
    Path("outputs").mkdir(exist_ok=True)
    Path("outputs/verdicts.tmp").write_text(json.dumps(verdicts))
    Path("outputs/verdicts.tmp").rename("outputs/verdicts.json")
    return 0


def wait(pid: int, until: float | None = None) -> int | None:
    """Return the exit code, minus the signal of one that was killed; None where it still runs at `until`
    (monotonic)."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() >= until:
            return None
        time.sleep(0.01)


def finish(pid: int) -> int:
    """Wait for the end; a process that does not end is killed and told of as 124."""
    code = wait(pid, time.monotonic() + LONGEST_S)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        return 124
    return code


def others(folder: Path, pid: int = 0) -> list[psutil.Process]:
    """Return the processes that work in a trial's folder, but for `pid`: a child starts where its parent is."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                Path(process.cwd()).is_relative_to(folder)
                and process.pid != pid
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def orphans(folder: Path, command: str) -> list[str]:
    """Return what still works in the folder some time after its process has ended; then end it.

    The runs of a table whose command was killed go on to their end, and the same command waits for them.
    """
    end = time.monotonic() + (120 if command == "table" else 15)
    while (left := others(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    names = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(process.cmdline())[:80])
            process.kill()
    return names


# --- results


def own_files(folder: Path, pattern: str) -> list[Path]:
    """Return the plain files of a pattern in a trial's folder, through the links that it has, but for those of a
    foreign run."""
    walked = (Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    found = {path.resolve(): path for path in walked if path.match(pattern) and path.is_file()}
    return sorted(path for path in found.values() if FOREIGN not in str(path) and ".locks" not in path.parts)


def result(command: str, folder: Path) -> Any:
    """Return everything of a finished command that must not depend on what happened on the way."""
    import pyarrow.parquet
    from safetensors.torch import load_file

    from expo.runs.reading import read_lines

    outputs = folder / "outputs"
    if command == "verify":
        return json.loads((outputs / "verdicts.json").read_text())
    found: dict[str, Any] = {"stale": [path.name for path in own_files(outputs, "stale")]}
    for path in own_files(outputs, "metrics.jsonl"):
        found[f"{path.parent.name} scalars"] = [without_clocks(line) for line in read_lines(path.parent)]
        if (path.parent / "wandb").is_dir():
            # In a process of its own: each that is forked from one that has W&B would remove the others' temporary
            # files.
            read = [sys.executable, "-c", HISTORY, str(path.parent)]
            history = json.loads(subprocess.run(read, capture_output=True, check=False).stdout or "[]")
            found[f"{path.parent.name} wandb"] = [without_clocks(line) for line in history]
            sent = {line["_step"] for line in history}
            lacks = {line["step"] for line in read_lines(path.parent)} - sent
            found |= {f"{path.parent.name} lacks wandb": sorted(lacks)} if lacks else {}
    for path in own_files(outputs, "summary.json"):
        summary = json.loads(path.read_text())
        found[f"{path.parent.name} summary"] = (summary["status"], summary["metrics"], summary.get("collapses"))
    for path in own_files(outputs, "*.safetensors"):
        weights = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            weights.update(name.encode() + tensor.numpy().tobytes())
        kind = path.parent.name if command in ("export", "pretrain") else path.parents[2].name
        found[f"{kind} weights"] = weights.hexdigest()
    for path in own_files(folder, "table.json"):
        record = json.loads(path.read_text())["arms"]
        found["table"] = {
            arm: {k: v for k, v in own.items() if "pass@" in k or k == "metrics"} for arm, own in record.items()
        }
    if command == "explain":
        parts = [pyarrow.parquet.read_table(path) for path in own_files(outputs, "steps-*.parquet")]
        rows = {(row["step"], row["row"]): row for part in parts for row in part.to_pylist()}
        found["explanations"] = [rows[key] for key in sorted(rows)]
    if command == "report":
        page = outputs / "page.html"
        found["page"] = page.is_file() and page.read_text().endswith("</html>\n")
    if command == "runs gc":
        found["checkpoints"] = [path.name for path in own_files(outputs, "step*.ckpt")]
    return found


def without_clocks(line: dict[str, Any]) -> dict[str, Any]:
    """Return a step's scalars, but for those that tell the time, and W&B's tables, which have names of their own."""
    return {k: v for k, v in line.items() if not k.startswith((*CLOCKS, "completions/"))}


def snapshot(folder: Path) -> dict[str, int]:
    """Return when each file was last written, but for locks and what each look at a table writes anew."""
    kept = (path for path in own_files(folder, "*") if "checkpoints" in path.parts)
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in kept}


def flip_byte(folder: Path, rng: random.Random) -> str | None:
    """Change one bit of one file. Returns its name; None where there is no file yet."""
    files = [f for f in own_files(folder / "outputs", "*") if f.stat().st_size]
    if not files:
        return None
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return str(path.relative_to(folder))


# --- faults


@contextlib.contextmanager
def disk(folder: Path, free_kib: int) -> Iterator[Path]:
    """Put a disk with that much room under what a command writes, which comes back to the folder at the end. Gives its
    place."""
    linked, kept = folder / "elsewhere", folder / "kept"
    place = linked if linked.is_dir() else folder / "outputs"
    place.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", str(place), str(kept)], check=True)
    pages = sum(1 + (path.stat().st_size + 4095) // 4096 for path in kept.rglob("*") if path.is_file())
    size = f"size={4 * pages + free_kib}k"  # what is there has room, whatever the fault
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=True)
    subprocess.run(["cp", "-a", f"{kept}/.", str(place)], check=True)
    try:
        yield place
    finally:
        shutil.rmtree(kept)
        subprocess.run(["cp", "-a", str(place), str(kept)], check=True)
        subprocess.run(["umount", "-l", str(place)], check=True)
        shutil.rmtree(place)
        kept.rename(place)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
        )
        return made.returncode == 0 and subprocess.run(["umount", folder], check=False).returncode == 0


def jumping_clock(rng: random.Random) -> Callable[[], None]:
    """Return what makes the wall clock of a process jump by up to a day, forwards and backwards, every half second."""
    seed = rng.random()

    def prepare() -> None:
        real, jumps, monotonic = time.time, random.Random(seed), time.monotonic
        state = {"at": 0.0, "by": 0.0}

        def jumped() -> float:
            if monotonic() > state["at"] + 0.5:
                state.update(at=monotonic(), by=jumps.uniform(-86400, 86400))
            return real() + state["by"]

        time.time = jumped

    return prepare


def limited_files(size: int) -> Callable[[], None]:
    """Return what limits the size of each file of a process, as a full disk would."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def victims(folder: Path, pid: int, fault: str) -> list[psutil.Process]:
    """Return the helpers of a process that a fault may hit."""
    wanted = "wandb" if fault == "W&B killed" else "verifier"
    found = []
    for process in others(folder, pid):
        with contextlib.suppress(psutil.Error):
            own = process if fault == "W&B killed" else process.parent()  # a worker's parent is the forkserver
            if own and own.pid != pid and wanted in " ".join(own.cmdline()):
                found.append(process)
    return found


def run_in(folder: Path) -> Path:
    """Return the directory of the one run that is a trial's own, relative to the folder."""
    (found,) = (path.parent for path in own_files(folder / "outputs", "config.yaml"))
    return found.relative_to(folder)


def arguments_of(command: str, folder: Path) -> list[str]:
    """Return what a command is started with, RUN being the run that is there."""
    return [str(run_in(folder)) if word == "RUN" else word for word in COMMANDS[command]]


class Harness:
    """Runs trials. What an unbroken command leaves, and how long it takes, is made once for each."""

    def __init__(self, root: Path):
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.mounts = root, can_mount()
        self.whole: dict[str, tuple[Any, float]] = {}

    def folder(self, name: str) -> Path:
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "plan").mkdir(parents=True)
        (folder / "plan" / "plan.yaml").write_text(PLAN)
        return folder

    def unbroken(self, command: str) -> tuple[Any, float]:
        """Return what a command leaves that nothing happens to, and its seconds."""
        if command not in self.whole:
            folder, log = self.folder(f"whole-{command}"), self.root / f"whole-{command}"
            self.prepare(command, folder)
            start = time.monotonic()
            code = finish(launch(arguments_of(command, folder), folder, log))
            assert code == 0, f"{command}: {log.with_suffix('.err').read_text()}"
            self.whole[command] = result(command, folder), time.monotonic() - start
            assert not [name for name in self.whole[command][0] if name.endswith("lacks wandb")], self.whole[command]
        return self.whole[command]

    def prepare(self, command: str, folder: Path) -> None:
        """Put what a command works on into a folder."""
        if command in OF_A_RUN:
            self.unbroken("exp_grpo")
            shutil.copytree(self.root / "whole-exp_grpo" / "outputs", folder / "outputs")
        if command == "fresh":
            (folder / run_in(folder) / "stale").touch()

    def lay_out(self, trial: Trial, rng: random.Random, folder: Path, log: Path, seconds: float) -> None:
        """Make the place what it is to be, with a run that has begun where runs are links."""
        from hostile import HOSTILE

        outputs, elsewhere = folder / "outputs", folder / "elsewhere"
        if trial.place == "a linked folder":
            outputs.mkdir(exist_ok=True)
            outputs.rename(elsewhere)
            outputs.symlink_to(elsewhere)
        elif trial.place == "linked runs":
            if trial.command not in OF_A_RUN:
                pid = launch(trial.arguments, folder, log)
                if wait(pid, time.monotonic() + seconds * rng.uniform(0.3, 0.9)) is None:
                    os.kill(pid, signal.SIGKILL)
                    wait(pid)
                orphans(folder, trial.command)
                trial.processes += 1
            elsewhere.mkdir()
            for path in own_files(outputs, "config.yaml"):
                path.parent.rename(elsewhere / path.parent.name)
                path.parent.symlink_to(elsewhere / path.parent.name)
        elif trial.place == "a foreign run":
            self.unbroken("exp_grpo")
            own = self.root / "whole-exp_grpo"
            foreign = outputs / "ladder" / FOREIGN
            shutil.copytree(own / run_in(own), foreign)
            name = rng.choice([name for name in HOSTILE if "MiB" not in name])
            trial.place = f"{trial.place} ({name})"
            HOSTILE[name](foreign)

    def trial(self, seed: int, number: int, only: str = "") -> Trial:
        """Make one trial."""
        rng = random.Random(f"{seed}-{number}")
        command = only or rng.choice([*COMMANDS, "verify", "exp_grpo", "dpo_online"])
        faults = [f for f in FAULTS if self.mounts or f not in ("full disk", "read-only")]
        faults = [f for f in faults if not f.startswith("worker") or command == "verify"]
        faults = [f for f in faults if f != "W&B killed" or command == "wandb"]
        if command == "verify":  # where workers are
            faults = ["SIGKILL", "SIGTERM", "SIGINT", "clock", "worker killed", "worker stopped"]
        trial = Trial(number, command, rng.choice(faults), rng.uniform(0.05, 0.95))
        trial.place = rng.choice([*PLACES, *[""] * 6]) if command != "verify" else ""
        expected, seconds = self.unbroken(command)
        folder, log = self.folder(f"trial-{number}"), self.root / f"trial-{number}"
        self.prepare(command, folder)
        trial.arguments = arguments_of(command, folder)
        try:
            self.lay_out(trial, rng, folder, log, seconds)
            self.break_it(trial, rng, folder, log, seconds * trial.moment)
            self.mend(trial, folder, log, expected)
        except Exception:  # the other trials go on
            trial.wrong.append(f"the harness itself: {traceback.format_exc()}")
        if not trial.wrong:
            shutil.rmtree(folder)
        return trial

    def break_it(self, trial: Trial, rng: random.Random, folder: Path, log: Path, moment_s: float) -> None:
        """Run the command once and let the fault happen."""
        arguments, fault = trial.arguments, trial.fault
        prepare, space = None, contextlib.nullcontext(folder)
        if fault == "clock":
            prepare = jumping_clock(rng)
        elif fault == "small files":
            prepare = limited_files(int(10 ** rng.uniform(3.5, 6.9)))
        elif fault == "full disk":
            space = disk(folder, int(10 ** rng.uniform(3, 4.4)))
        elif fault == "read-only":
            pid = launch(arguments, folder, log)
            if wait(pid, time.monotonic() + moment_s) is None:
                os.kill(pid, signal.SIGKILL)
                wait(pid)
            orphans(folder, trial.command)
            space = disk(folder, 2**20)
        log.with_suffix(".err").unlink(missing_ok=True)
        with space as place:
            if fault == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            pid = launch(arguments, folder, log, prepare)
            code = (
                wait(pid, time.monotonic() + moment_s)
                if fault not in ("clock", "small files", "full disk", "read-only")
                else None
            )
            if code is None:
                self.hit(fault, pid, folder, rng)
                code = finish(pid)
            left = orphans(folder, trial.command)
            if fault == "read-only":
                subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        trial.processes += 1
        if fault == "corrupted byte" and (name := flip_byte(folder, rng)):
            trial.fault = f"corrupted {Path(name).name}"
        self.judge(trial, code, log, left)

    def hit(self, fault: str, pid: int, folder: Path, rng: random.Random) -> None:
        if fault in ("SIGKILL", "SIGTERM", "SIGINT"):
            os.kill(pid, getattr(signal, fault))
        elif fault == "corrupted byte":
            os.kill(pid, signal.SIGKILL)
        elif fault.startswith("worker") or fault == "W&B killed":
            end = time.monotonic() + 5
            while not (found := victims(folder, pid, fault)) and time.monotonic() < end:
                time.sleep(0.02)
            if found:
                with contextlib.suppress(psutil.Error):
                    rng.choice(found).send_signal(signal.SIGSTOP if fault == "worker stopped" else signal.SIGKILL)

    def judge(self, trial: Trial, code: int, log: Path, left: list[str]) -> None:
        """Look at how a process has ended."""
        said = [line for line in log.with_suffix(".err").read_text(errors="replace").splitlines() if line.strip()]
        trial.said = said
        if left:
            trial.wrong.append(f"left running: {left}")
        if any(line.startswith("Traceback") for line in said):
            trial.wrong.append(f"stack trace: {said[-1]}")
            shutil.copy(log.with_suffix(".err"), log.with_suffix(".trace"))
        if code == 124:
            trial.wrong.append("did not end")
        if code > 0 and code not in (130, 143) and not any(line.startswith("expo: ") for line in said):
            trial.wrong.append(f"exit code {code} without a word: {said[-2:]}")
        if code > 0 and len(said) > 4:
            trial.wrong.append(f"{len(said)} lines for one fault")

    def mend(self, trial: Trial, folder: Path, log: Path, expected: Any) -> None:
        """Run the command until it is done, follow what it says, and compare."""
        arguments = trial.arguments
        for _ in range(4):
            log.with_suffix(".err").unlink(missing_ok=True)
            log.with_suffix(".out").unlink(missing_ok=True)
            code = finish(launch(arguments, folder, log))
            trial.processes += 1
            self.judge(trial, code, log, orphans(folder, trial.command))
            done = trial.command in ONCE and code == 2 and result(trial.command, folder) == expected
            if code == 0 or trial.wrong or done:
                break
            if not self.follow(trial, folder, log):
                trial.wrong.append(f"exit code {code}, and nothing to follow: {trial.said[-1]}")
                return
        if trial.wrong:
            return
        found = result(trial.command, folder)
        if trial.fault.endswith(".wandb"):  # W&B reads no further than a damaged record
            found, expected = ({k: v for k, v in r.items() if not k.endswith(" wandb")} for r in (found, expected))
        if trial.fault.endswith("metrics.jsonl"):  # it has no checksum
            found, expected = ({k: v for k, v in r.items() if not k.endswith(" scalars")} for r in (found, expected))
        if trial.fault.endswith(".safetensors") and trial.command in ("runs gc", "runs rm", "report"):
            # These read no weights; `evaluate run=` and `export` refuse the damaged file by its checksum.
            found, expected = ({k: v for k, v in r.items() if not k.endswith(" weights")} for r in (found, expected))
        if found != expected:
            trial.wrong.append(f"another result: {difference(found, expected)}; said {trial.said}")
        if left := [str(f.relative_to(folder)) for f in own_files(folder, "*") if TEMPORARY.search(f.name)]:
            trial.wrong.append(f"left behind: {left}")
        before = snapshot(folder)
        code = finish(launch(arguments, folder, log))
        if code != (2 if trial.command in ONCE else 0) or (trial.command != "fresh" and snapshot(folder) != before):
            trial.wrong.append("what was finished was made again")

    def follow(self, trial: Trial, folder: Path, log: Path) -> bool:
        """Do what a line of expo's says: give the command that it gives; remove the file or folder that it names; make
        the run again that a command works on."""
        line = trial.said[-1]
        if given := re.search(r"expo (train run=\S+) writes it again", line):
            trial.processes += 1
            return finish(launch(given[1].split(), folder, log)) == 0
        paths = [folder / name.rstrip(".,;:") for name in re.findall(r"(?:outputs|elsewhere)/[\w./+=-]+", line)]
        for path in (
            path for path in paths if path.exists() and path not in (folder / "outputs", folder / "elsewhere")
        ):
            run = next((p for p in [path, *path.parents] if (p / "config.yaml").is_file()), None)
            whole = ("make the run again", "fresh=true", "run's directory")
            again = run is not None and any(words in line for words in whole)
            target = run if run is not None and again else path
            if target.is_symlink() or not target.is_dir():
                target.unlink()
            else:
                shutil.rmtree(target)
            if again and trial.command in OF_A_RUN:
                made = self.root / "whole-exp_grpo"
                shutil.copytree(made / run_in(made), target)
            return True
        return False


def difference(found: Any, expected: Any) -> str:
    """Return where two results differ first."""
    if isinstance(found, dict) and isinstance(expected, dict):
        if found.keys() != expected.keys():
            return f"keys {sorted(found.keys() ^ expected.keys())}"
        return next((f"{k}: {difference(found[k], expected[k])}" for k in found if found[k] != expected[k]), "")
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return next(
            (f"{i}: {difference(f, e)}" for i, (f, e) in enumerate(zip(found, expected, strict=True)) if f != e), ""
        )
    return f"{str(found)[:200]} instead of {str(expected)[:200]}"


def preload() -> None:
    """Import what every process needs, and start no thread."""
    ours = sorted(
        p for room in ("commands", "jobs") for p in (Path(__file__).parents[1] / "expo" / room).glob("[a-z]*.py")
    )
    names = [f"expo.{path.parent.name}.{path.stem}" for path in ours]
    for name in ("torch", "safetensors.torch", "lightning", "expo.cli", "expo.model.small", *names):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


HARNESS: list[Harness] = []  # of this process


def begin(root: Path) -> None:
    """Make a process ready for trials."""
    preload()
    HARNESS.append(Harness(root / f"process-{os.getpid()}"))


def trial(seed: int, only: str, number: int) -> Trial:
    """Make one trial in a process that is ready."""
    return HARNESS[0].trial(seed, number, only)


def summary(done: list[Trial], seconds: float) -> str:
    """Return what came of all trials, by fault."""
    places = {t.number: t.place.partition(" (")[0] for t in done if t.place}
    kinds = {t.number: "corrupted byte" if t.fault.startswith("corrupted") else t.fault for t in done}
    lines = [
        f"{len(done)} trials, {sum(t.processes for t in done)} processes, {seconds:.0f} s",
        "",
        "| fault, place or command | tried | kept every promise | broke one |",
        "|---|---|---|---|",
    ]
    for kind in [
        *sorted(set(kinds.values())),
        *sorted(set(places.values())),
        *sorted({t.command for t in done}),
        "all",
    ]:
        own = [t for t in done if kind in ("all", kinds[t.number], places.get(t.number), t.command)]
        broken = sum(bool(t.wrong) for t in own)
        lines.append(f"| {kind} | {len(own)} | {len(own) - broken} | {broken} |")
    return "\n".join(lines)


def main() -> int:
    options = {"trials": "500", "seed": "0", "jobs": "1", "first": "0", "only": "", "root": "", "minutes": "inf"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    first, start, done = int(options["first"]), time.monotonic(), []
    make = partial(trial, int(options["seed"]), options["only"])
    with tempfile.TemporaryDirectory(prefix="faults-") as own:
        root = Path(options["root"] or own)
        context = multiprocessing.get_context("spawn")  # its workers have one thread each: they fork
        with ProcessPoolExecutor(int(options["jobs"]), context, begin, (root,)) as pool:
            trials, end = iter(range(first, first + int(options["trials"]))), start + 60 * float(options["minutes"])
            under_way = {pool.submit(make, number) for number in islice(trials, int(options["jobs"]))}
            while under_way:
                ended, under_way = futures.wait(under_way, return_when=futures.FIRST_COMPLETED)
                for future in ended:
                    done.append(future.result())
                    print(done[-1], flush=True)
                more = islice(trials, len(ended)) if time.monotonic() < end else ()
                under_way |= {pool.submit(make, number) for number in more}
    print(summary(done, time.monotonic() - start))
    return 1 if any(t.wrong for t in done) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Faults by schedule: a command, a fault and a moment, all drawn from one seed; then the same command until it is done.

    python tests/faults.py trials=300 seed=0 [jobs=2] [only=COMMAND]

After a fault the same command must lead to what an unbroken one leaves: the same scalars, weights and verdicts. Nothing that
was finished is made again; no process and no temporary file stays; each process that ends early says why in a few lines,
without a stack trace. A full or read-only disk needs the right to mount; without it, the size of files is limited instead.

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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_SILENT"] = "true"

import psutil

SMALL = [
    "trainer.max_steps=6", "trainer.checkpoint_every=2", "trainer.problems_per_step=2", "trainer.micro_batch_size=4", "evaluation.every=3",
    "dataset.eval_limit=3", "rollout.max_completion_tokens=64", "k=[1]", "verifier.workers=1", "output_dir=outputs",
]  # fmt: skip
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
    "evaluate": ["evaluate", "dataset=ladder", *SMALL, "dataset.eval_limit=12", "logger=none"],
    "diagnose": ["diagnose", "dataset=ladder", *SMALL, "diagnose.problems=2", "logger=none"],
    "pretrain": ["pretrain", "dataset=ladder", "pretrain.max_steps=40", "pretrain.tokens_per_batch=800", "pretrain.output=outputs/base"],
    "table": ["table", "plan/plan.yaml", "logger=none", *SMALL],
    "verify": [],  # no command: answers judged by workers
}  # fmt: skip
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
TEMPORARY = re.compile(r"\.tmp$|\.tmp\.|\.partial$|^\.final|\.copying$", re.IGNORECASE)
CLOCKS = ("time/", "throughput/")
LONGEST_S = 300  # of one process


@dataclass
class Trial:
    """What was tried and what came of it. `wrong`: broken promises; [] where all were kept."""

    number: int
    command: str
    fault: str
    moment: float  # share of an unbroken run's time
    said: list[str] = field(default_factory=list)  # on stderr, by the process that met the fault
    processes: int = 0  # until it was done
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = "; ".join(self.wrong) or "kept"
        return f"{self.number:4d} {self.command:10s} {self.fault:14s} at {self.moment:4.0%}: {told}"


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
    """Return the exit code, minus the signal of one that was killed; None where it still runs at `until` (monotonic)."""
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


def result(command: str, folder: Path) -> Any:
    """Return everything of a finished command that must not depend on what happened on the way."""
    from safetensors.torch import load_file

    outputs = folder / "outputs"
    if command == "verify":
        return json.loads((outputs / "verdicts.json").read_text())
    found: dict[str, Any] = {}
    for path in sorted(outputs.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in path.open()]
        found[f"{path.parent.name} scalars"] = [
            {k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in lines
        ]
    for path in sorted(outputs.rglob("summary.json")):
        summary = json.loads(path.read_text())
        found[f"{path.parent.name} summary"] = (summary["status"], summary["metrics"], summary.get("collapses"))
    for path in sorted(outputs.rglob("*.safetensors")):
        weights = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            weights.update(name.encode() + tensor.numpy().tobytes())
        found[f"{path.relative_to(folder)} weights"] = weights.hexdigest()
    for path in sorted(folder.rglob("table.json")):
        record = json.loads(path.read_text())["arms"]
        found["table"] = {
            arm: {k: v for k, v in own.items() if "pass@" in k or k == "metrics"} for arm, own in record.items()
        }
    return found


def snapshot(folder: Path) -> dict[str, int]:
    """Return when each file was last written, but for locks and what each look at a table writes anew."""
    kept = (f for f in folder.rglob("*") if f.is_file() and ".locks" not in f.parts and "checkpoints" in f.parts)
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in kept}


def flip_byte(folder: Path, rng: random.Random) -> str | None:
    """Change one bit of one file. Returns its name; None where there is no file yet."""
    files = sorted(
        f for f in (folder / "outputs").rglob("*") if f.is_file() and f.stat().st_size and ".locks" not in f.parts
    )
    if not files:
        return None
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return str(path.relative_to(folder))


# --- faults


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """Put a disk of that size under the folder's outputs, which come back to the folder at the end."""
    place, kept = folder / "outputs", folder / "kept"
    place.mkdir(exist_ok=True)
    kept.mkdir()
    subprocess.run(["cp", "-a", f"{place}/.", str(kept)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    subprocess.run(["cp", "-a", f"{kept}/.", str(place)], check=False, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        shutil.rmtree(kept)
        shutil.copytree(place, kept, symlinks=True)
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
            start = time.monotonic()
            code = finish(launch(COMMANDS[command], folder, log))
            assert code == 0, f"{command}: {log.with_suffix('.err').read_text()}"
            self.whole[command] = result(command, folder), time.monotonic() - start
        return self.whole[command]

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
        expected, seconds = self.unbroken(command)
        folder, log = self.folder(f"trial-{number}"), self.root / f"trial-{number}"
        self.break_it(trial, rng, folder, log, seconds * trial.moment)
        self.mend(trial, folder, log, expected)
        if not trial.wrong:
            shutil.rmtree(folder)
        return trial

    def break_it(self, trial: Trial, rng: random.Random, folder: Path, log: Path, moment_s: float) -> None:
        """Run the command once and let the fault happen."""
        arguments, fault = COMMANDS[trial.command], trial.fault
        prepare, space = None, contextlib.nullcontext()
        if fault == "clock":
            prepare = jumping_clock(rng)
        elif fault == "small files":
            prepare = limited_files(int(10 ** rng.uniform(3.5, 6.9)))
        elif fault == "full disk":
            space = disk(folder, f"{int(10 ** rng.uniform(3, 4.4))}k")
        elif fault == "read-only":
            pid = launch(arguments, folder, log)
            if wait(pid, time.monotonic() + moment_s) is None:
                os.kill(pid, signal.SIGKILL)
                wait(pid)
            orphans(folder, trial.command)
            space = disk(folder, "1g")
        log.with_suffix(".err").unlink(missing_ok=True)
        with space:
            if fault == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(folder / "outputs")], check=True)
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
                subprocess.run(["mount", "-o", "remount,rw", str(folder / "outputs")], check=True)
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
        if code == 124:
            trial.wrong.append("did not end")
        if code > 0 and code not in (130, 143) and not any(line.startswith("expo: ") for line in said):
            trial.wrong.append(f"exit code {code} without a word: {said[-2:]}")
        if code > 0 and len(said) > 4:
            trial.wrong.append(f"{len(said)} lines for one fault")

    def mend(self, trial: Trial, folder: Path, log: Path, expected: Any) -> None:
        """Run the command until it is done, follow what it says, and compare."""
        arguments = COMMANDS[trial.command]
        for _ in range(4):
            log.with_suffix(".err").unlink(missing_ok=True)
            log.with_suffix(".out").unlink(missing_ok=True)
            code = finish(launch(arguments, folder, log))
            trial.processes += 1
            self.judge(trial, code, log, orphans(folder, trial.command))
            if code == 0 or trial.wrong:
                break
            if not self.follow(trial.said[-1], folder):
                trial.wrong.append(f"exit code {code}, and nothing to follow: {trial.said[-1]}")
                return
        if trial.wrong:
            return
        if result(trial.command, folder) != expected:
            trial.wrong.append(
                f"another result: {difference(result(trial.command, folder), expected)}; said {trial.said}"
            )
        if left := [str(f.relative_to(folder)) for f in folder.rglob("*") if TEMPORARY.search(f.name)]:
            trial.wrong.append(f"left behind: {left}")
        before = snapshot(folder)
        if finish(launch(arguments, folder, log)) != 0 or snapshot(folder) != before:
            trial.wrong.append("what was finished was made again")

    def follow(self, line: str, folder: Path) -> bool:
        """Do what a line of expo's says: remove the file or folder that it names."""
        named = re.findall(r"outputs/[\w./+=-]+", line)
        paths = [folder / name.rstrip(".,;:") for name in named]
        paths = [path for path in paths if path.exists() and path != folder / "outputs"]
        for path in paths[:1]:
            run = next((p for p in [path, *path.parents] if (p / "config.yaml").is_file()), None)
            target = run if "make the run again" in line or "fresh=true" in line else path
            shutil.rmtree(target) if target and target.is_dir() else (target or path).unlink()
        return bool(paths)


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
    for name in (
        "torch",
        "safetensors.torch",
        "lightning",
        "expo.cli",
        "expo.model.small",
        *(
            f"expo.commands.{c}"
            for c in ("train", "fit", "evaluate", "score", "diagnose", "measure", "pretrain", "table")
        ),
    ):
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
    kinds = {t.number: "corrupted byte" if t.fault.startswith("corrupted") else t.fault for t in done}
    lines = [
        f"{len(done)} trials, {sum(t.processes for t in done)} processes, {seconds:.0f} s",
        "",
        "| fault | tried | kept every promise | broke one |",
        "|---|---|---|---|",
    ]
    for kind in [*sorted(set(kinds.values())), "all"]:
        own = [t for t in done if kind in ("all", kinds[t.number])]
        broken = sum(bool(t.wrong) for t in own)
        lines.append(f"| {kind} | {len(own)} | {len(own) - broken} | {broken} |")
    return "\n".join(lines)


def main() -> int:
    options = {"trials": "300", "seed": "0", "jobs": "1", "first": "0", "only": "", "root": ""}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    first, start, done = int(options["first"]), time.monotonic(), []
    make = partial(trial, int(options["seed"]), options["only"])
    with tempfile.TemporaryDirectory(prefix="faults-") as own:
        root = Path(options["root"] or own)
        context = multiprocessing.get_context("spawn")  # its workers have one thread each: they fork
        with ProcessPoolExecutor(int(options["jobs"]), context, begin, (root,)) as pool:
            for made in pool.map(make, range(first, first + int(options["trials"]))):
                done.append(made)
                print(made, flush=True)
    print(summary(done, time.monotonic() - start))
    return 1 if any(t.wrong for t in done) else 0


if __name__ == "__main__":
    sys.exit(main())

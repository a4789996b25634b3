"""Start the processes of a run on several devices of this machine, and end all of them when one ends badly."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from expo.ground.ranks import LOST, MEETING, share_of_cores
from expo.runs.processes import end_with

POLL_S = 0.2
GRACE_S = 10.0  # for a process to say why it ends, once another one has ended badly
OF_PARENT = "EXPO_PARENT"  # the process that watches over this one


def run_on_devices(command: Sequence[str], devices: int, folder: Path, locks: Sequence[int]) -> int:
    """Run a command once for each device, and return its exit code once all have ended.

    The first process has this one's terminal; what the others print goes to `folder/device1.log` and so on. When one
    ends badly, the others wait for it in vain: they are ended, and its last line is told. SIGINT and SIGTERM are handed
    to all.

    Args: folder, an empty one; locks, file descriptors that the processes keep open as long as they live.
    """
    started = [_start(command, rank, devices, folder, locks) for rank in range(devices)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    for number in handlers:
        signal.signal(number, hand_on)
    try:
        return _wait(started, folder)
    finally:
        for process in started:
            process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(
    command: Sequence[str], rank: int, count: int, folder: Path, locks: Sequence[int]
) -> subprocess.Popen[bytes]:
    environment = {"OMP_NUM_THREADS": share_of_cores(count)} | os.environ
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    environment |= {MEETING: str(folder / "meeting"), OF_PARENT: str(os.getpid())}
    options: dict[str, Any] = {"env": environment, "start_new_session": True, "pass_fds": locks}
    if rank == 0:
        return subprocess.Popen(command, **options)
    with _log(folder, rank).open("w") as log:
        return subprocess.Popen(command, **options, stdout=log, stderr=subprocess.STDOUT)


def _wait(started: Sequence[subprocess.Popen[bytes]], folder: Path) -> int:
    """Wait for a run's processes, and return its exit code; where one ends badly, end the others, and say which."""
    good = {0, 128 + signal.SIGINT, 128 + signal.SIGTERM}  # a stop that was asked for ends all after the same step
    codes: list[int | None] = [None]
    while None in codes and all(code is None or code in good for code in codes):
        time.sleep(POLL_S)
        codes = [process.poll() for process in started]
    if None not in codes and all(code in good for code in codes):
        return max(code or 0 for code in codes)
    _end(started)
    ended = {rank: each.returncode for rank, each in enumerate(started) if each.returncode not in (LOST, *good)}
    failed_first = {rank: code for rank, code in ended.items() if rank == 0 and code > 0}  # on the terminal
    # Where each says that another one is gone, the second one's log has torch's words for it.
    bad = next((rank for rank, code in enumerate(codes) if code is not None and rank in ended), min(ended, default=1))
    if failed_first:
        return failed_first[0]
    code = started[bad].returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else _last_line(_log(folder, bad))
    told = f"device {bad} of {len(started)}: {how.removeprefix('expo: ').rstrip('.')}"
    print(f"expo: {told}; the same command goes on from the last checkpoint", file=sys.stderr)
    return 2 if code == 2 else 1


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + GRACE_S
    while any(process.poll() is None for process in started) and time.monotonic() < until:
        time.sleep(POLL_S)
    for process in started:
        process.kill()
        process.wait()


def _log(folder: Path, rank: int) -> Path:
    return folder / f"device{rank}.log"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    of_expo = [line for line in lines if line.startswith("expo: ")]
    return re.sub(r"^\[rank\d+\]: ", "", (of_expo or lines or ["it has said nothing"])[-1])


def end_with_parent() -> None:
    """Let the kernel end this process, by SIGTERM, when the one that watches over it ends (Linux)."""
    if (parent := os.environ.get(OF_PARENT)) is not None:
        end_with(int(parent), signal.SIGTERM)

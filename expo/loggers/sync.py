"""Send offline W&B runs, the oldest first, with W&B's own `wandb sync`."""

import os
import subprocess
import sys
from pathlib import Path

from expo.config import UserError
from expo.loggers.offline import end_whole, may_grow, offline_files
from expo.runs.listing import RunFolder

# W&B would try for hours to reach a server that is not there. The user's own values come before these.
RETRIES = {f"WANDB_X_{part}_RETRY_MAX": "4" for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")}


def sync(folder: Path) -> int:
    """Send the offline runs under a folder that are not sent yet. Returns 1 after the first that is not taken; else 0.

    The files of one run are in order, too: a session begins after the one before it. Raises UserError for a folder that
    is not there, and where W&B does not begin, as without a key.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that the runs are under, as expo wandb sync outputs")
    files = offline_files(folder)
    growing = {file.parents[2] for file in files if not _sent(file) and may_grow(file)}
    under_way = [file for file in files if file.parents[2] in growing or RunFolder(file.parents[2], {}).in_use]
    for folder in sorted(growing):  # of a run with a kill, too: its later sessions have to wait for it
        later = "left out, since W&B may be writing it; the same command sends it later"
        print(f"expo: {folder}: {later}", file=sys.stderr)
    todo = [file for file in files if not _sent(file) and file not in under_way and _has_records(file)]
    for number, file in enumerate(todo, 1):
        reason = _send(file)
        if reason is not None:
            counts = f"{_count(number - 1)} sent, {len(todo) - number + 1} left; the same command goes on"
            print(f"expo: {file.parent}: not sent ({reason}); {counts}", file=sys.stderr)
            return 1
        print(f"{file.parent}: sent as {file.stem.removeprefix('run-')} ({number} of {len(todo)})", flush=True)
    already = sum(_sent(file) for file in files if file not in under_way) - len(todo)
    told = [f"{_count(len(todo))} sent", f"{already} sent before"]
    told += [f"{len(under_way)} under way"] if under_way else []
    print(f"wandb sync: {', '.join(told)}")
    return 0


def _count(sessions: int) -> str:
    return f"{sessions} session{'' if sessions == 1 else 's'}"


def _has_records(file: Path) -> bool:
    """Return whether a file has records, after cutting off what a kill left half written. Warns of other files."""
    try:
        return end_whole(file)
    except ValueError as error:
        print(f"expo: {error}; it is left out", file=sys.stderr)
        return False


def _sent(file: Path) -> bool:
    return file.with_suffix(".wandb.synced").exists()


def _send(file: Path) -> str | None:
    """Send a file. Returns why W&B did not take it, or None. Raises UserError where W&B did not begin."""
    command = [sys.executable, "-m", "wandb", "sync", str(file)]
    env, stdin = RETRIES | os.environ | {"WANDB_SILENT": "false"}, subprocess.DEVNULL
    done = subprocess.run(command, env=env, stdin=stdin, capture_output=True, text=True, check=False)
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
    reason = said[-1].removeprefix("wandb: ").removeprefix("ERROR ").removeprefix("Error: ") if said else ""
    if done.returncode:
        why = f"W&B cannot send it ({reason or f'exit code {done.returncode}'})"
        raise UserError(f"{file.parent}: {why}; run `wandb login`")
    return None if _sent(file) else reason or "W&B gave no reason"  # its exit code is 0 all the same

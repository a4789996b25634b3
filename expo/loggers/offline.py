"""Read the files of offline W&B runs (`wandb/offline-run-*/run-*.wandb`) back, without W&B's servers."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; records are kept as in LevelDB's log format, after a header of W&B's own
FILE_HEADER, RECORD_HEADER = 7, 7  # bytes; a record's are CRC (4), length (2) and type (1)
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
GROWS_S = 60  # within which whoever writes a file writes to it again


@dataclass
class OfflineRun:
    """Content of an offline run: what W&B would show once it is synced."""

    id: str = ""
    project: tuple[str, str] = ("", "")  # of the last session: entity, "" for the default one, and project
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # one per logged step, with `_step`
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)


def offline_files(folder: str | Path) -> list[Path]:
    """Return the offline files in a folder and all below it, the oldest session first.

    That is the one whose steps come first: the local time in its folder's name, which goes back with the clock and the
    time zone, only orders those that begin alike.
    """
    files = [
        path for path in Path(folder).rglob("*.wandb") if path.parent.name.startswith("offline-run-") and path.is_file()
    ]
    return sorted(files, key=lambda path: (_first_step(path), path.parent.name, path))


def _first_step(path: Path) -> int:
    """Return the first step in a file that has scalars; 0 without one."""
    try:
        return next((record.history.step.num for record in _parsed(path) if record.HasField("history")), 0)
    except ValueError:  # another kind of file
        return 0


def read_offline(path: str | Path) -> OfflineRun:
    """Return the run in a .wandb file, or in a folder that has the files of all its sessions: the run's own, say.

    Leaves out a record still being written. Raises ValueError for another kind of file, none, or those of several runs.
    """
    files = offline_files(path) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise ValueError(f"{path}: no wandb/offline-run-*/*.wandb in it")
    run = OfflineRun()
    for file, record in ((each, record) for each in files for record in _parsed(each)):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            r = record.run
            if run.id not in ("", r.run_id):
                raise ValueError(f"{file}: a file of {r.run_id}, beside one of {run.id}; read one run at a time")
            run.id, run.name, run.group, run.job_type = r.run_id, r.display_name, r.run_group, r.job_type
            run.tags, run.config, run.project = list(r.tags), _items(r.config.update), (r.entity, r.project)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item) | {"_step": record.history.step.num})
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "artifact":
            run.artifacts.append(record.artifact.name)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            run.artifacts.append(record.request.log_artifact.artifact.name)
    return run


def _parsed(path: Path) -> Iterator[Any]:
    """Yield W&B's records up to one that is damaged: W&B reads no further either."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for _, data in _records(path):
        try:
            yield Record.FromString(data)
        except DecodeError:
            return


def _items(items: Any) -> dict[str, Any]:
    by_key = {}
    for item in items:
        with suppress(ValueError):  # a damaged value
            by_key[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return by_key


def may_grow(path: Path) -> bool:
    """Return whether a process may be writing a file: it has changed within a minute, and its session has no end."""
    with suppress(ValueError):  # another kind of file
        return time.time() - path.stat().st_mtime < GROWS_S and not any(r.HasField("exit") for r in _parsed(path))
    return False


def end_whole(path: Path) -> bool:
    """Cut off the record that a kill has left half written, which W&B would refuse. Returns whether one is left."""
    end = max((end for end, _ in _records(path)), default=0)
    if 0 < end < path.stat().st_size:
        os.truncate(path, end)
    return end > 0


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the end of each complete record, and its content."""
    data = path.read_bytes()
    if not b":W&B".startswith(data[:4]):  # a kill may leave an empty file
        raise ValueError(f"{path}: not a .wandb file: it does not begin with :W&B")
    position, parts = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:  # the rest of a block is padding where no header fits
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        part = data[position + RECORD_HEADER : position + RECORD_HEADER + length]
        position += RECORD_HEADER + length
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(part) < length:
            return
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield position, parts

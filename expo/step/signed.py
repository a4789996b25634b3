"""Parquet files that several runs share: written whole or not at all, with their SHA-256 beside them, under a lock."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from expo.config import UserError

AGAIN = "delete it, and it is made again"


def is_signed(path: Path) -> bool:
    """Return whether a file was finished: it and its digest are there."""
    return path.is_file() and _digest_file(path).is_file()


def check_signed(path: Path, what: str) -> None:
    """Raise UserError where a file is not what was written. Args: what, its name in the message."""
    if _digest_file(path).read_text(errors="replace") != hashlib.sha256(path.read_bytes()).hexdigest():
        raise UserError(f"{what}={path}: not what was written there (its SHA-256 differs); {AGAIN}")


def write_signed(table: pa.Table, path: Path) -> None:
    """Write a table and its digest; what is cut off on the way leaves no file that counts as finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    stamp = _digest_file(temporary)
    try:
        pa.parquet.write_table(table, temporary)
        stamp.write_text(hashlib.sha256(temporary.read_bytes()).hexdigest())
        temporary.replace(path)
        stamp.replace(_digest_file(path))  # whole or not at all: a full disk leaves no empty one
    finally:
        temporary.unlink(missing_ok=True)
        stamp.unlink(missing_ok=True)


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Keep other processes from what is under this name while it is looked for, and made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")

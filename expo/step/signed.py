"""Parquet files that several runs share: written whole or not at all, with their SHA-256 beside them, under a lock."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from expo.config import UserError
from expo.ground.files import beside, locked, remove

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
    with beside(_digest_file(path)) as stamp, beside(path) as partial:  # the digest takes its place last
        pa.parquet.write_table(table, partial)
        stamp.write_text(hashlib.sha256(partial.read_bytes()).hexdigest())


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Lock a file name while it is looked up and written; remove the unfinished files of killed processes."""
    with locked(path.with_suffix(".lock"), ""):
        for left in path.parent.glob(f"*{path.stem}*.tmp"):
            remove(left)
        yield


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")

"""Parquet files that several runs share: written whole or not at all, with their SHA-256 beside them, under a lock."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet

from expo.config import UserError
from expo.config.errors import first_line
from expo.ground.files import beside, locked, remove

T = TypeVar("T")

AGAIN = "delete it, and it is made again"


def is_signed(path: Path) -> bool:
    return path.is_file() and _digest_file(path).is_file()


def digest_of(path: Path) -> str:
    return _digest_file(path).read_text(errors="replace")


def read_signed(path: Path, what: str, parse: Callable[[pa.Table], T], remedy: str = AGAIN) -> T:
    """Read a file's table by `parse`. Raises UserError where it is not what was written, or cannot be read. Args: what,
    the file's name in a message; remedy, what it ends in."""
    if digest_of(path) != hashlib.sha256(path.read_bytes()).hexdigest():
        raise UserError(f"{what}={path}: not what was written there (its SHA-256 differs); {remedy}")
    try:
        return parse(pa.parquet.read_table(path))
    except MemoryError:  # of Arrow, too: not the file's fault
        raise
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        message = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what}={path}: cannot be read ({message}); {remedy}") from error


def write_signed(table: pa.Table, path: Path) -> None:
    """Write a table and its digest; what is cut off on the way leaves no file that counts as finished."""
    with beside(_digest_file(path)) as stamp, beside(path) as partial:  # the digest takes its place last
        pa.parquet.write_table(table, partial)
        stamp.write_text(hashlib.sha256(partial.read_bytes()).hexdigest())


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Lock a file name within the context; remove the unfinished files of killed processes."""
    with locked(path.with_suffix(".lock"), ""):
        for left in path.parent.glob(f"*{path.stem}*.tmp"):
            remove(left)
        yield


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")

"""Files of rows as users have them: gzipped or not, under any name, with blank lines or without."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from expo.config.errors import UserError, first_line

KINDS = (".jsonl", ".jsonl.gz", ".parquet")
NOT_OURS = "this user may not read it; get the right to, or give another file"
PACKED = b"\x1f\x8b"  # what gzip begins a file with
UNREADABLE = (OSError, EOFError, zlib.error)  # of a file that is cut off or damaged


def open_rows(path: Path) -> IO[bytes]:
    """Open a file of lines, unpacked."""
    with path.open("rb") as file:
        packed = file.read(len(PACKED)) == PACKED
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[bytes]:
    """Read the lines of a file one by one, unpacked: a file may be larger than the memory that its rows need. Raises
    UserError for one that cannot be unpacked."""
    try:
        with open_rows(path) as file:
            for line in file:
                yield from line.splitlines()
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); make the file again") from error

"""Rows of a local file, one by one: parquet, or JSON lines. What is no row is a BadRow that says why."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet

from expo.config import UserError
from expo.config.errors import first_line
from expo.config.files import read_lines
from expo.data.checks import BadRow

FREE, LEAST = 1 / 64, 2**29  # share of the memory that rows leave to all else, and the most that they have to leave


def check_memory(told: str) -> None:
    """Raise MemoryError where the machine has little left: the kernel would end a process without a word."""
    memory = psutil.virtual_memory()
    if memory.available < min(FREE * memory.total, LEAST):
        raise MemoryError(f"{told}, and the machine has {memory.available // 2**20} MiB left")


UNPACKED, TIMES = 2**30, 200  # bytes that a parquet file may unpack to, or that many times its own


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a file one by one. Raises UserError for one that is no parquet, or that unpacks to far more than
    its size: a few KB can hold a terabyte."""
    size, most = 0, max(UNPACKED, TIMES * path.stat().st_size)
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            rows = batch.to_pylist()
            for field in (field for field in batch.schema if field.type in (pyarrow.float16(), pyarrow.float32())):
                for row in rows:  # 0.1, as it was written, and not 0.10000000149011612
                    row[field.name] = row[field.name] and float(str(field.type.to_pandas_dtype()(row[field.name])))
            size += sum(len(value) for row in rows for value in row.values() if isinstance(value, str))
            if size > most:
                raise UserError(
                    f"dataset.path={path}: has {path.stat().st_size} bytes and unpacks to over {most}; give fewer "
                    "rows, or JSON lines"
                )
            yield from rows
    except MemoryError:  # of Arrow, too: not the file's fault
        raise
    except pyarrow.ArrowException as error:
        raise UserError(
            f"dataset.path={path}: cannot be read as parquet ({first_line(error)}); make the file again"
        ) from error


def file_rows(path: Path) -> Iterable[dict[str, Any] | BadRow | None]:
    """Read the rows of a file, by its suffix; None for a blank line."""
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    return (_json_row(line) if line.strip() else None for line in read_lines(path))


def _json_row(line: bytes) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return BadRow("not UTF-8")
    except (ValueError, RecursionError):
        return BadRow("not JSON")
    return row if isinstance(row, dict) else BadRow("not a JSON object")

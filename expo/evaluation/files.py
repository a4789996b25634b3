"""Completions on disk: parquet, written in full or not at all, with a checksum of each page, verified when read."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from expo.ground.files import beside
from expo.ground.problem import Problem

log = logging.getLogger(__name__)


def save_rows(rows: list[dict[str, Any]], path: Path, seconds: float = 0.0) -> None:
    """Write rows as parquet: first under another name, so that a kill or a full disk leaves the earlier file. Args:
    seconds, what they took."""
    table = pa.Table.from_pylist(rows, metadata={"seconds": str(seconds)} if seconds else None)
    with beside(path) as partial:
        pa.parquet.write_table(table, partial, write_page_checksum=True)


def seconds_of(path: Path) -> float:
    """Return what the rows of a part took, as `save_rows` was told; 0 of an earlier expo's."""
    return float((pa.parquet.read_schema(path).metadata or {}).get(b"seconds", 0.0))


def kept_rows(path: Path, problems: Sequence[Problem], samples: int) -> list[dict[str, Any]] | None:
    """Return the rows of a part that an earlier session has written; None where there are none, or they are
    damaged, or of other problems or samples."""
    if not path.is_file():
        return None
    try:
        rows: list[dict[str, Any]] = pa.parquet.read_table(path, page_checksum_verification=True).to_pylist()
        complete = [(r["problem"], r["sample"]) for r in rows] == [(p.id, n) for p in problems for n in range(samples)]
    except MemoryError:  # of Arrow, too: not the file's fault
        raise
    except (OSError, ValueError, KeyError, pa.ArrowException):
        complete = False
    if not complete:
        log.warning("%s: damaged; it is made again", path)
    return rows if complete else None


def join(parts: Sequence[Path], path: Path) -> None:
    """Join parts into one file, without their seconds: the same evaluation makes the same file."""
    schemas = [pa.parquet.read_schema(part).remove_metadata() for part in parts]
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    with beside(path) as partial, pa.parquet.ParquetWriter(partial, schema, write_page_checksum=True) as writer:
        for part in parts:
            rows = pa.parquet.read_table(part, page_checksum_verification=True)
            # A part of an earlier expo may lack a column.
            whole = pa.concat_tables([schema.empty_table(), rows], promote_options="permissive")
            writer.write_table(whole.cast(schema))
    for part in parts:
        part.unlink()

"""A shop's own Parquet, as it lies: the files of a table, whether they fit the contract, and their rows in batches.

Opening a table reads the footers only; rows are then streamed in batches, so memory is that of one batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from mrse.data.contract import BATCH_ROWS, SCHEMAS, conform, conformed_schema
from mrse.data.uris import open_system, read_errors, resolve
from mrse.errors import DataError
from mrse.progress import track

_SUFFIXES = (".parquet", ".parq", ".pq")
_DAY = re.compile(r"(?:^|/)dt=(\d{4}-\d{2}-\d{2})(?:/|$)")
_BUFFER = 1 << 20

Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file.

    Attributes:
        place: its number in the file.
        rows: how many rows it has.
        span: the first and last `event_time`; None where the footer does not tell or some times are null.
    """

    place: int
    rows: int
    span: Span | None

    def may_meet(self, window: Span | None) -> bool:
        """False only when the footer proves that no row lies in `[start, end)`."""
        return window is None or self.span is None or (self.span[0] < window[1] and self.span[1] >= window[0])


@dataclass(frozen=True)
class RawFile:
    """One Parquet file.

    Attributes:
        system, path: where it is.
        name: its address, for messages.
        schema: the contract's schema that its rows are cast to, before columns of other files are added.
        groups: its row groups.
    """

    system: AbstractFileSystem
    path: str
    name: str
    schema: pa.Schema
    groups: tuple[RowGroup, ...]


@dataclass(frozen=True)
class RawTable:
    """The files of one table and the schema that all their rows are cast to."""

    uri: str
    schema: pa.Schema
    files: tuple[RawFile, ...]


def open_table(uri: str, table: str, workspace: Path, window: Span | None = None) -> RawTable:
    """Find the files of a table and check every footer against the contract.

    Args:
        uri: a Parquet file or a folder of them (hive-partitioned by `dt=` or not) at any fsspec URI.
        table: `items`, `events` or `judgments`.
        workspace: what local paths are relative to.
        window: `dt=` folders more than a day outside of `[start, end)` are left out unread. The day is a margin for
            shops whose folders follow their own time zone; which rows count is up to the caller.

    Raises:
        DataError: nothing there, not Parquet, a column is missing or does not fit, or two files disagree.
    """
    resolved = resolve(uri, workspace)
    system, root = open_system(resolved, table)
    try:
        paths = _list(system, root, table, resolved)
    except read_errors() as error:
        raise DataError(f"{table}: cannot list {resolved}: {error}") from None
    files = tuple(_open_file(system, path, table) for path in paths if window is None or _near(path, window))
    return RawTable(resolved, _merge(files, table), files)


def batches(table: RawTable, what: str, window: Span | None = None) -> Iterator[pa.RecordBatch]:
    """Stream the rows of a table, cast to its schema, showing progress.

    Args:
        table: from `open_table`.
        what: the progress label.
        window: row groups whose footer says that they lie outside `[start, end)` are not read.

    Raises:
        DataError: a file is damaged, or a value does not fit its type.
    """
    chosen = [(file, [group for group in file.groups if group.may_meet(window)]) for file in table.files]
    total = sum(-(-group.rows // BATCH_ROWS) for _, groups in chosen for group in groups)
    rows = (batch for file, groups in chosen if groups for batch in _read_groups(file, groups, table.schema))
    yield from track(rows, what, total=total, unit="batch")


def time_range(table: RawTable) -> Span | None:
    """The first and last `event_time` that the footers tell of; None when they tell nothing."""
    spans = [group.span for file in table.files for group in file.groups if group.span is not None]
    return (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None


def _list(system: AbstractFileSystem, root: str, table: str, uri: str) -> list[str]:
    if system.isfile(root):
        return [root]
    if not system.isdir(root):
        raise DataError(f"{table}: {uri}: no such file or folder; check snapshot.files.{table}")
    paths = sorted(system.find(root))
    if any("/_delta_log/" in path for path in paths):
        raise DataError(f"{table}: {uri} is a Delta table, whose folder also holds deleted rows; export it as Parquet")
    inside = [path for path in paths if not _hidden(path[len(root) :])]
    files = [path for path in inside if path.endswith(_SUFFIXES)]
    if not files:
        found = f"{len(inside)} other files, such as {inside[0]}" if inside else "nothing"
        raise DataError(f"{table}: {uri} is a folder without a {', '.join(_SUFFIXES)} file; it holds {found}")
    return files


def _hidden(relative: str) -> bool:
    """Markers and unfinished work that writers leave behind, such as `_SUCCESS` and `.part-0.crc`."""
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _near(path: str, window: Span) -> bool:
    found = _DAY.search(path)
    if found is None:
        return True
    try:
        day = date.fromisoformat(found[1])
    except ValueError:
        return True
    margin = timedelta(days=1)
    return (window[0] - margin).date() <= day < (window[1] + margin).date()


def _open_file(system: AbstractFileSystem, path: str, table: str) -> RawFile:
    name = path if isinstance(system, LocalFileSystem) else system.unstrip_protocol(path)
    with _parquet(system, path, name) as file:
        raw = file.schema_arrow.remove_metadata()
        schema = conformed_schema(raw, table, name)
        return RawFile(system, path, name, schema, tuple(_row_groups(file.metadata)))


def _row_groups(metadata: pq.FileMetaData) -> Iterator[RowGroup]:
    leaves = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
    time = leaves.index("event_time") if "event_time" in leaves else None
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        span = None if time is None else _span(group.column(time).statistics)
        yield RowGroup(place, group.num_rows, span)


def _span(statistics: Any) -> Span | None:
    if statistics is None or not statistics.has_min_max or not statistics.has_null_count or statistics.null_count:
        return None
    try:
        first, last = statistics.min, statistics.max
    except (OverflowError, ValueError):  # years that Python's datetime does not know
        return None
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return None
    return first.astimezone(UTC), last.astimezone(UTC)


def _merge(files: tuple[RawFile, ...], table: str) -> pa.Schema:
    """One schema for all files: an extra column that only some have is filled with nulls, numbers widen."""
    extras: dict[str, tuple[pa.Field, str]] = {}
    for file in files:
        for field in list(file.schema)[len(SCHEMAS[table]) :]:
            known, first = extras.get(field.name, (field, file.name))
            extras[field.name] = (_widen(known, field, first, file.name), first)
    return pa.schema([*SCHEMAS[table], *(extras[name][0] for name in sorted(extras))])


def _widen(known: pa.Field, field: pa.Field, first: str, second: str) -> pa.Field:
    try:
        merged = pa.unify_schemas([pa.schema([known]), pa.schema([field])], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise DataError(
            f"{second}: column {field.name!r} has type {field.type}, but {known.type} in {first}; "
            "write all files of a table with the same types"
        ) from None
    return merged.field(0)


def _read_groups(file: RawFile, groups: list[RowGroup], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _parquet(file.system, file.path, file.name) as parquet:
        for group in groups:
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group.place]):
                yield conform(batch, schema, file.name)


@contextmanager
def _parquet(system: AbstractFileSystem, path: str, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file so that its columns are read through small buffers, whatever the size of its row groups."""
    try:
        source = pa.OSFile(path) if isinstance(system, LocalFileSystem) else system.open(path, "rb")
        with source, pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER) as file:
            yield file
    except (pa.ArrowException, *read_errors()) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: not a readable Parquet file: {reason}. Write it again, or take it out") from None

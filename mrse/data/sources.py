"""Take a snapshot: a source's tables for one window of days, checked, cast to the contract, sorted, in one move.

Both sources go the same way. `files` reads the shop's own Parquet; `marketplace` first simulates a shop into a scratch
folder and then reads that. Events are split by day into scratch files and every day is sorted on its own by DuckDB,
which spills to disk at `snapshot.memory_limit`: memory depends neither on the number of days nor on the size of one.
Cost: about 3 s per million events on two cores, and the size of the events once more as scratch on disk.

What counts:
- events with `start <= event_time < end`; `dt=` folders and row groups outside are skipped, but rows decide. Rows
  without an `event_time` belong to no day and go to `dt=__HIVE_DEFAULT_PARTITION__`, for `validate_logs` to quarantine.
- items as of `end`: rows with `updated_at < end` or none. Where an id repeats, the row with the newest `updated_at`
  wins (a dated row wins over one without a date); rows that tie are all kept, for `validate_logs` to quarantine.
- judgments: all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from mrse.config import MarketplaceConfig, Params, SnapshotConfig
from mrse.data.contract import (
    BATCH_ROWS,
    JUDGMENTS,
    NULL_DAY,
    SCHEMAS,
    SORT_KEYS,
    SnapshotMeta,
    fingerprint,
    table_files,
    write_meta,
    write_parquet,
)
from mrse.data.images import ImageStore, as_image_root
from mrse.data.raw import Span, batches, open_table, time_range
from mrse.errors import DataError
from mrse.layout import SNAPSHOT
from mrse.progress import say, track

DRAWN = "images.zip"  # pictures that the source draws; empty where the shop has its own
_DATE = re.compile(r"\d{4}-?\d{2}-?\d{2}")
_SORT_THREADS = 4
_NEWEST = """QUALIFY item_id IS NULL
    OR updated_at IS NOT DISTINCT FROM max(updated_at) OVER (PARTITION BY item_id)"""


@dataclass(frozen=True)
class Source:
    """Where the tables of one snapshot come from, and what `snapshot.json` says about them."""

    name: str
    items: str
    events: str | None
    judgments: str | None
    image_root: str | None
    simulated: bool
    note: str


def take_snapshot(params: Params, workspace: Path) -> SnapshotMeta:
    """Write `data/snapshot/` for the window of `params.snapshot`; the old one stays until the new one is whole.

    Args:
        params: uses `snapshot` and, for a simulated shop, `marketplace`.
        workspace: the folder that holds `data/`; local paths are relative to it.

    Returns:
        What was written to `snapshot.json`.

    Raises:
        DataError: a table is missing, unreadable or does not fit the contract; or nothing lies in the window.
    """
    final = workspace / SNAPSHOT
    old, scratch = final.with_name(".snapshot.old"), final.with_name(".snapshot.tmp")
    if old.exists() and not final.exists():  # killed between the two moves below
        old.rename(final)
    for leftover in (old, scratch):
        shutil.rmtree(leftover, ignore_errors=True)
    new = scratch / "snapshot"
    new.mkdir(parents=True)
    try:
        meta = _build(params, workspace, scratch, new)
        if final.exists():
            final.rename(old)
        new.rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return meta


def shop_of(params: Params) -> str:
    """What tells a shop from others on all of its days: where its items are, or what simulates it; sha256, 16 digits.

    A hash, as an address may hold a password. Local paths count as they are written, so that a moved workspace is the
    same shop; dates in addresses do not count, as a shop may write its items to another place every day.
    """
    made = params.marketplace
    simulated: list[str | int] = [made.seed, made.items if made.catalogue is None else made.catalogue]
    given = _DATE.sub("DATE", str(params.snapshot.files.items))
    told = simulated if params.snapshot.source == "marketplace" else [given]
    return hashlib.sha256(json.dumps([params.snapshot.source, *told]).encode()).hexdigest()[:16]


def _build(params: Params, workspace: Path, scratch: Path, new: Path) -> SnapshotMeta:
    window = (params.snapshot.start, params.snapshot.stop)
    if params.snapshot.source == "marketplace":
        source = _marketplace(params.marketplace, window, workspace, scratch / "simulated", new)
    else:
        source = _files(params.snapshot, workspace)
    if not (new / DRAWN).exists():  # later stages depend on the file by name
        ZipFile(new / DRAWN, "w").close()
    with closing(_Stage(scratch / "stage", params.snapshot.memory_limit)) as stage:
        rows = {
            "items": _take_items(source.items, window, workspace, stage, new),
            "events": 0 if source.events is None else _take_events(source.events, window, workspace, stage, new),
            "judgments": _take_judgments(source.judgments, workspace, stage, new),
        }
    meta = SnapshotMeta(
        source=source.name,
        start=window[0],
        end=window[1],
        simulated=source.simulated,
        note=source.note,
        rows=rows,
        fingerprint=fingerprint(table_files(new), root=new),
        image_root=source.image_root,
        shop=shop_of(params),
    )
    write_meta(new, meta)
    return meta


def _files(config: SnapshotConfig, workspace: Path) -> Source:
    files = config.files
    if files.items is None:
        raise DataError("snapshot.files.items is not set: name the Parquet file or folder of items")
    return Source(
        name="files",
        items=files.items,
        events=files.events,
        judgments=files.judgments,
        image_root=_checked_root(files.image_root, workspace),
        simulated=False,
        note="The shop's own tables.",
    )


def _marketplace(config: MarketplaceConfig, window: Span, workspace: Path, folder: Path, new: Path) -> Source:
    from mrse.data.marketplace import located, simulate  # only this source pays for loading the simulator

    folder.mkdir()
    given = config.catalogue is not None
    root = _checked_root(config.catalogue_images, workspace) if given else f"zip://::data/snapshot/{DRAWN}"
    say("simulating a shop")
    simulate(located(config, workspace), window[0], window[1], folder)
    if not given:
        (folder / DRAWN).rename(new / DRAWN)
    return Source(
        name="marketplace",
        items=str(folder.absolute() / "items.parquet"),
        events=str(folder.absolute() / "events"),
        judgments=str(folder.absolute() / "judgments.parquet"),
        image_root=root,
        simulated=True,
        note="Simulated: items and pictures are real, the shoppers and all they do are made up."
        if given
        else "Simulated: items, pictures, shoppers and all they do are made up.",
    )


def _checked_root(value: str | None, workspace: Path) -> str | None:
    """The root as `snapshot.json` keeps it; a wrong one stops the run here, not three stages later."""
    ImageStore(value, workspace)
    return None if value is None else as_image_root(value)


def _take_items(uri: str, window: Span, workspace: Path, stage: _Stage, new: Path) -> int:
    table = open_table(uri, "items", workspace)
    stage.keep("items", table.schema, batches(table, "reading items"))
    query = (
        f"SELECT * FROM raw WHERE updated_at IS NULL OR updated_at < TIMESTAMPTZ '{window[1].isoformat()}' {_NEWEST}"
    )
    rows = write_parquet(stage.sorted("items", "items", table.schema, query), new / "items.parquet", table.schema)
    if rows == 0:
        raise DataError(f"items: {table.uri} has no row with updated_at before {window[1]:%Y-%m-%d} (or without one)")
    return rows


def _take_judgments(uri: str | None, workspace: Path, stage: _Stage, new: Path) -> int:
    path = new / "judgments.parquet"
    if uri is None:
        return write_parquet([], path, JUDGMENTS)
    table = open_table(uri, "judgments", workspace)
    stage.keep("judgments", table.schema, batches(table, "reading judgments"))
    return write_parquet(stage.sorted("judgments", "judgments", table.schema), path, table.schema)


def _take_events(uri: str, window: Span, workspace: Path, stage: _Stage, new: Path) -> int:
    table = open_table(uri, "events", workspace, window)
    days: set[str] = set()
    for batch in batches(table, "reading events", window):
        for day, part in _by_day(batch, window):
            stage.keep(day, table.schema, iter([part]))
            days.add(day)
    if not days - {NULL_DAY}:
        raise _nothing_in_window(uri, window, workspace)
    return sum(
        write_parquet(
            stage.sorted(day, "events", table.schema), new / "events" / f"dt={day}" / "part-0.parquet", table.schema
        )
        for day in track(sorted(days), "sorting events", unit="day")
    )


def _by_day(batch: pa.RecordBatch, window: Span) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of a batch inside `[start, end)`, by their day in UTC; rows without a time under `NULL_DAY`."""
    times = batch.column("event_time")
    start, end = (pa.scalar(moment, times.type) for moment in window)
    inside = pc.and_(pc.greater_equal(times, start), pc.less(times, end))
    days = pc.floor_temporal(pc.if_else(inside, times, pa.scalar(None, times.type)), unit="day")
    for day in pc.unique(days.drop_null()).to_pylist():
        yield day.date().isoformat(), batch.filter(pc.equal(days, pa.scalar(day, days.type)))
    if times.null_count:
        yield NULL_DAY, batch.filter(pc.is_null(times))


def _nothing_in_window(uri: str, window: Span, workspace: Path) -> DataError:
    table = open_table(uri, "events", workspace)
    found = time_range(table)
    tells = "its files do not tell their range" if found is None else f"it holds {found[0]} to {found[1]}"
    return DataError(
        f"events: {table.uri} has no event in [{window[0]:%Y-%m-%d}, {window[1]:%Y-%m-%d}) UTC; {tells}. "
        "Change snapshot.end or snapshot.days"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _Stage:
    """Scratch tables on disk: appended to in any order, read back sorted by DuckDB within a memory limit."""

    def __init__(self, folder: Path, memory_limit: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._database = duckdb.connect()
        self._database.execute("SET TimeZone = 'UTC'")
        self._memory_limit = memory_limit
        self._database.execute("SET memory_limit = ?", [memory_limit])
        # Every thread wants buffers of its own; more than a few only bring the limit closer, as one thread feeds them.
        self._database.execute("SET threads = ?", [min(_SORT_THREADS, os.cpu_count() or 1)])
        self._database.execute("SET temp_directory = ?", [str(folder / "spill")])

    def close(self) -> None:
        self._database.close()

    def keep(self, name: str, schema: pa.Schema, rows: Iterator[pa.RecordBatch]) -> None:
        """Append rows. Each call adds one whole Arrow stream to the file, so that no file stays open."""
        with (self._folder / name).open("ab") as file, pa.ipc.new_stream(file, schema) as stream:
            for batch in rows:
                stream.write_batch(batch)

    def sorted(
        self, name: str, table: str, schema: pa.Schema, query: str = "SELECT * FROM raw"
    ) -> Iterator[pa.RecordBatch]:
        """The rows kept under `name`, sorted by the table's keys and then by everything else.

        That makes the order, and so the bytes, independent of how the rows arrived. Extra columns may be wide, so rows
        that tie on all of the contract's columns are told apart by a 64-bit hash of the others.

        Raises:
            DataError: an extra column has a type that cannot be sorted and kept, or the memory limit is too tight.
        """
        known, extras = SCHEMAS[table].names, [_quoted(name) for name in schema.names[len(SCHEMAS[table]) :]]
        keys = [*SORT_KEYS[table], *(name for name in known if name not in SORT_KEYS[table])]
        ties = [f"hash({', '.join(extras)})"] if extras else []
        order = ", ".join(f"{key} ASC NULLS LAST" for key in [*map(_quoted, keys), *ties])
        raw = pa.RecordBatchReader.from_batches(schema, self._kept(name))
        try:
            self._database.register("raw", raw)
            for batch in self._database.sql(f"{query} ORDER BY {order}").to_arrow_reader(BATCH_ROWS):
                yield batch.cast(schema)
        except duckdb.OutOfMemoryException:
            raise DataError(
                f"{table}: sorting needs more than snapshot.memory_limit = {self._memory_limit}; raise it"
            ) from None
        except (duckdb.Error, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{table}: cannot sort the rows: {error}. Extra columns: {', '.join(extras)}") from None
        self._database.unregister("raw")
        (self._folder / name).unlink()

    def _kept(self, name: str) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(str(self._folder / name)) as file:
            while file.tell() < file.size():
                yield from pa.ipc.open_stream(file)

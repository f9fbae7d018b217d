"""The data contract: the tables every stage reads, and the one way to read and write them.

Times are UTC microseconds, ids are strings, Parquet is zstd; equal rows give equal bytes. `events` are
one file per day, so that no stage need hold more than some days of them.

What a shop's own Parquet may look like, and what becomes of it (`conform`):

| found | wanted | result |
|---|---|---|
| text in another encoding of Arrow, or binary | `string` | the same text; bytes that are not UTF-8 become U+FFFD |
| integers | `string` | their decimal digits (ids kept as numbers) |
| any integer, float or decimal | `float64` | the same number |
| any integer, or floats that are whole | `int32` | the same number; NaN becomes null |
| timestamps with any time zone, s to ns | `timestamp[us, tz=UTC]` | the same instant; below 1 us is cut off |
| a column of type null, or an optional column that is missing | any | nulls |
| timestamps without a time zone | `timestamp[us, tz=UTC]` | an error: only the shop knows which zone they are in |
| anything else | | an error that names file, column, found type and wanted type |

Columns that the contract does not know are kept, after the contract's own, in the order of their names. The values of
rows (unknown actions, null ids, NaN prices) are not judged here: `validate_logs` does that. In events, `dt` is
no column but the name of the partitions.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from mrse.errors import DataError

TIME = pa.timestamp("us", tz="UTC")

ITEMS = pa.schema(
    {
        "item_id": pa.string(),
        "title": pa.string(),
        "category": pa.string(),
        "price": pa.float64(),
        "image": pa.string(),
        "updated_at": TIME,
    }
)
EVENTS = pa.schema(
    {
        "event_time": TIME,
        "session_id": pa.string(),
        "user_id": pa.string(),
        "query": pa.string(),
        "item_id": pa.string(),
        "position": pa.int32(),
        "action": pa.string(),
        "relevance": pa.float64(),
        "propensity": pa.float64(),
    }
)
JUDGMENTS = pa.schema({"query": pa.string(), "item_id": pa.string(), "grade": pa.float64()})

SCHEMAS: dict[str, pa.Schema] = {"items": ITEMS, "events": EVENTS, "judgments": JUDGMENTS}
REQUIRED: dict[str, tuple[str, ...]] = {
    "items": ("item_id", "title"),
    "events": ("event_time", "session_id", "query", "item_id", "action"),
    "judgments": ("query", "item_id", "grade"),
}
SORT_KEYS: dict[str, tuple[str, ...]] = {
    "items": ("item_id",),
    "events": ("event_time", "session_id", "position", "item_id", "action"),
    "judgments": ("query", "item_id"),
}
ACTIONS = ("impression", "click", "add_to_cart", "order")

NULL_DAY = "__HIVE_DEFAULT_PARTITION__"  # Hive's name for the partition of rows whose event_time is null
BATCH_ROWS = 65_536
_ROW_GROUP_ROWS = 131_072  # fixed, so that the bytes do not depend on how the rows arrived
_HASH_CHUNK = 1 << 20


class SnapshotMeta(BaseModel):
    """`snapshot.json`: where the tables come from.

    Attributes:
        source: `marketplace` or `files`.
        start, end: the window `[start, end)`, UTC.
        simulated: True when the events are made up; every report made from them must say so.
        note: one sentence for people.
        rows: number of rows of `items`, `events` and `judgments`.
        fingerprint: sha256 over the table files (`fingerprint`).
        image_root: what `items.image` is relative to (`mrse.data.images.ImageStore`), or None.
        shop: the same on every day of one shop (`mrse.data.sources.shop_of`); empty where nothing tells.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    start: AwareDatetime
    end: AwareDatetime
    simulated: bool
    note: str
    rows: dict[str, int]
    fingerprint: str
    image_root: str | None = None
    shop: str = ""


def conformed_schema(raw: pa.Schema, table: str, where: str) -> pa.Schema:
    """The schema that `conform` gives to rows of schema `raw`.

    Args:
        raw: the schema of a Parquet file.
        table: `items`, `events` or `judgments`.
        where: the file, for messages.

    Raises:
        DataError: a required column is missing, a column appears twice, or a type cannot be cast safely.
    """
    names = raw.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: {table} has column {twice[0]!r} twice; rename or drop one of them")
    missing = [name for name in REQUIRED[table] if name not in names]
    if missing:
        raise DataError(
            f"{where}: {table} lacks the required column {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, names)) or 'no columns'}. Rename or add it"
        )
    wanted = SCHEMAS[table]
    for field in wanted:
        if field.name in names and not _fits(raw.field(field.name).type, field.type):
            raise _unfit(where, table, field.name, raw.field(field.name).type, field.type)
    partition = {"dt"} if table == "events" else set()
    extras = sorted(set(names) - set(wanted.names) - partition)
    return pa.schema([*wanted, *(pa.field(name, _plain_type(raw.field(name).type)) for name in extras)])


def conform(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """Cast one batch to `schema` (from `conformed_schema`); columns it lacks are filled with nulls.

    Raises:
        DataError: a value does not fit its type, such as position 2.5 or one beyond 32 bits.
    """
    columns = [
        _cast(batch.column(field.name), field, where)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def read_items(folder: Path) -> pa.Table:
    """The items of `data/snapshot` or `data/clean`, sorted by `item_id`."""
    return _read_table(folder / "items.parquet", "items")


def read_judgments(folder: Path) -> pa.Table:
    """The judgments of `data/snapshot` or `data/clean`, sorted by query and item; no rows when the shop has none."""
    return _read_table(folder / "judgments.parquet", "judgments")


def event_files(folder: Path) -> list[Path]:
    """One file per day, oldest first; an empty list when the shop has no events."""
    return sorted((folder / "events").glob("dt=*/*.parquet"))


def read_meta(folder: Path) -> SnapshotMeta:
    """Read `snapshot.json` of `data/snapshot` or `data/clean`.

    Raises:
        DataError: the file is missing or is not what `write_meta` writes.
    """
    path = folder / "snapshot.json"
    try:
        return SnapshotMeta.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that makes {folder} first") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a snapshot description: {error}") from None


def write_meta(folder: Path, meta: SnapshotMeta) -> None:
    """Write `snapshot.json` in one move."""
    path = folder / "snapshot.json"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def fingerprint(paths: Iterable[Path], root: Path | None = None) -> str:
    """sha256 over the names and bytes of files, read in pieces.

    Args:
        paths: files, in any order.
        root: names are taken relative to this folder; by default the deepest folder that holds them all, so that a
            moved folder keeps its fingerprint.
    """
    files = [Path(path) for path in paths]
    base = root or Path(os.path.commonpath([file.parent for file in files]) if files else ".")
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(base).as_posix(), file) for file in files):
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as handle:
            while chunk := handle.read(_HASH_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def table_files(folder: Path) -> list[Path]:
    """The files that the fingerprint of a snapshot covers: items, events by day, judgments."""
    return [folder / "items.parquet", *event_files(folder), folder / "judgments.parquet"]


def write_parquet(data: pa.Table | Iterable[pa.RecordBatch], path: Path, schema: pa.Schema | None = None) -> int:
    """Write rows as zstd Parquet, in one move: equal rows in equal order give equal bytes however they are cut up.

    Args:
        data: a table, a `pa.RecordBatchReader` or batches; streamed, so memory stays that of one row group.
        path: the file; its folder is made when missing.
        schema: needed when `data` may have no batch at all.

    Returns:
        The number of rows written.
    """
    if isinstance(data, pa.Table | pa.RecordBatchReader):
        schema = schema or data.schema
    batches = iter(data.to_batches() if isinstance(data, pa.Table) else data)
    if schema is None:
        first = next(batches, None)
        if first is None:
            raise ValueError(f"{path}: no batch and no schema to write")
        schema, batches = first.schema, _chain(first, batches)
    schema = schema.remove_metadata()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    rows = 0
    with pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=3) as writer:
        for group in _row_groups(batches, schema):
            writer.write_table(group, row_group_size=_ROW_GROUP_ROWS)
            rows += group.num_rows
            del group  # or it would be held while the next is gathered
    temporary.replace(path)
    return rows


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Re-cut batches into row groups of exactly `_ROW_GROUP_ROWS` rows, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch.cast(schema) if batch.schema != schema else batch)
        rows += batch.num_rows
        while rows >= _ROW_GROUP_ROWS:
            group, waiting = _cut(waiting, schema)
            rows -= _ROW_GROUP_ROWS
            yield group
            del group
    if rows:
        yield _cut(waiting, schema)[0]


def _cut(waiting: list[pa.RecordBatch], schema: pa.Schema) -> tuple[pa.Table, list[pa.RecordBatch]]:
    """A row group in one piece, and what is left; the batches it was copied from are not held while it is written."""
    table = pa.Table.from_batches(waiting, schema)
    waiting.clear()
    return table.slice(0, _ROW_GROUP_ROWS).combine_chunks(), table.slice(_ROW_GROUP_ROWS).to_batches()


def _read_table(path: Path, table: str) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            _check_exact(file.schema_arrow, table, path)
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the stage that makes {path.parent} first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _check_exact(found: pa.Schema, table: str, path: Path) -> None:
    """Files between stages hold the contract's types exactly; only a shop's own files may differ."""
    for field in SCHEMAS[table]:
        if field.name not in found.names:
            raise DataError(f"{path}: {table} lacks column {field.name!r}; run the stage that makes it again")
        if found.field(field.name).type != field.type:
            raise _unfit(str(path), table, field.name, found.field(field.name).type, field.type)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable Parquet file ({error}); run the stage that makes it again")


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    found = _plain_type(found)
    if pa.types.is_null(found) or found == wanted:
        return True
    if pa.types.is_string(wanted):
        return bool(pa.types.is_integer(found) or pa.types.is_binary(found))
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(found) and found.tz is not None)
    if pa.types.is_decimal(found):
        return bool(pa.types.is_floating(wanted))
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def _plain_type(found: pa.DataType) -> pa.DataType:
    """The same values without Arrow's encodings of them (dictionaries, 64-bit offsets, views)."""
    if pa.types.is_dictionary(found):
        return _plain_type(found.value_type)
    if pa.types.is_large_string(found) or pa.types.is_string_view(found):
        return pa.string()
    if pa.types.is_large_binary(found) or pa.types.is_binary_view(found):
        return pa.binary()
    return found


def _cast(column: pa.Array, field: pa.Field, where: str) -> pa.Array:
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    try:
        return _cast_plain(column, field.type)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{where}: column {field.name!r} ({column.type}) holds a value that is not a {field.type}: {error}; "
            "mend it in the source"
        ) from None


def _cast_plain(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    found = column.type
    if pa.types.is_string(wanted) and not pa.types.is_integer(found) and not pa.types.is_null(found):
        return _text(column)
    if pa.types.is_timestamp(wanted) and pa.types.is_timestamp(found):
        return column.cast(wanted, safe=found.unit != "ns")  # ns to us cuts digits off, which "safe" would refuse
    if pa.types.is_integer(wanted) and pa.types.is_floating(found):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, found), column)
    return column.cast(wanted)


def _text(column: pa.Array) -> pa.Array:
    """Text of any Arrow encoding as valid UTF-8. The slow way is taken only by batches with broken bytes."""
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary()).to_pylist()
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in raw], pa.string())
    return text


def _unfit(where: str, table: str, column: str, found: pa.DataType, wanted: pa.DataType) -> DataError:
    return DataError(f"{where}: {table} column {column!r} has type {found}, wanted {wanted}. {_advice(found, wanted)}")


def _advice(found: pa.DataType, wanted: pa.DataType) -> str:
    if pa.types.is_timestamp(found) and pa.types.is_timestamp(wanted):
        return (
            "It has no time zone; say which one it is in, for example with pandas "
            "`df[column].dt.tz_localize('Europe/Berlin')`, or in Spark write TIMESTAMP_MICROS, not INT96"
        )
    if pa.types.is_timestamp(wanted):
        return "Convert it, for example with pandas `pd.to_datetime(df[column], utc=True)`"
    if pa.types.is_string(wanted):
        return "Write it as text; ids that became floats because of gaps need `astype('Int64')` first"
    return "Convert it to a number in the source"

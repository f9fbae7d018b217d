"""The data contract: what may be cast, what is refused, and that equal rows give equal bytes."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrse.data import contract
from mrse.data.contract import EVENTS, ITEMS, JUDGMENTS, SnapshotMeta, conform, conformed_schema
from mrse.errors import DataError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def event_columns(**changed: pa.Array) -> dict[str, pa.Array]:
    columns = {
        "event_time": pa.array([NOON], contract.TIME),
        "session_id": pa.array(["s1"]),
        "query": pa.array(["red shirt"]),
        "item_id": pa.array(["i1"]),
        "action": pa.array(["click"]),
    }
    return columns | changed


def conformed(columns: dict[str, pa.Array], table: str = "events") -> pa.RecordBatch:
    batch = pa.RecordBatch.from_pydict(columns)
    return conform(batch, conformed_schema(batch.schema, table, "shop.parquet"), "shop.parquet")


@pytest.mark.parametrize(
    ("column", "found", "wanted"),
    [
        ("query", pa.array(["é"], pa.large_string()), "é"),
        ("query", pa.array(["é"]).cast(pa.string_view()), "é"),
        ("query", pa.array(["é"]).dictionary_encode(), "é"),
        ("query", pa.array(["é"], pa.large_string()).dictionary_encode(), "é"),
        ("query", pa.array(["é".encode()], pa.binary()), "é"),
        ("query", pa.array([b"caf\xe9"], pa.large_binary()), "caf\N{REPLACEMENT CHARACTER}"),
        ("query", pa.array([None], pa.null()), None),
        ("item_id", pa.array([17], pa.int64()), "17"),
        ("item_id", pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        ("position", pa.array([3], pa.int64()), 3),
        ("position", pa.array([3.0], pa.float64()), 3),
        ("position", pa.array([float("nan")], pa.float64()), None),
        ("position", pa.array([-1], pa.int8()), -1),
        ("relevance", pa.array([1], pa.int32()), 1.0),
        ("relevance", pa.array([Decimal("0.25")], pa.decimal128(5, 2)), 0.25),
        ("relevance", pa.array([0.5], pa.float32()), 0.5),
        ("relevance", pa.array([float("inf")], pa.float64()), float("inf")),
        ("event_time", pa.array([NOON], pa.timestamp("s", tz="UTC")), NOON),
        ("event_time", pa.array([NOON], pa.timestamp("ms", tz="+02:00")), NOON),
        ("event_time", pa.array([NOON], pa.timestamp("us", tz="Europe/Berlin")), NOON),
        ("event_time", pa.array([1772366400000000999], pa.timestamp("ns", tz="UTC")), NOON),
        ("action", pa.array(["stare"]), "stare"),
    ],
)
def test_what_can_be_cast_safely_is_cast(column: str, found: pa.Array, wanted: object) -> None:
    batch = conformed(event_columns(**{column: found}))
    assert batch.schema == EVENTS
    assert batch.column(column).to_pylist() == [wanted]


def test_missing_optional_columns_are_nulls() -> None:
    batch = conformed(event_columns())
    assert batch.schema == EVENTS
    assert [batch.column(name)[0].as_py() for name in ("user_id", "position", "relevance", "propensity")] == [None] * 4


def test_text_with_broken_bytes_is_mended_value_by_value() -> None:
    broken = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0\5\0\0\0"), pa.py_buffer("é".encode() + b"\xff" + b"ok")
    )
    columns = {"item_id": pa.array(["1", "2", "3"]), "title": broken}
    assert conformed(columns, "items").column("title").to_pylist() == ["é", "\N{REPLACEMENT CHARACTER}", "ok"]


def test_extra_columns_come_last_by_name_and_keep_their_values() -> None:
    extra = {"zone": pa.array([7], pa.int16()), "brand": pa.array(["acme"]).dictionary_encode()}
    batch = conformed({"item_id": pa.array(["1"]), **extra, "title": pa.array(["shirt"])}, "items")
    assert batch.schema.names == [*ITEMS.names, "brand", "zone"]
    assert batch.schema.field("zone").type == pa.int16()
    assert batch.column("brand").to_pylist() == ["acme"]


def test_dt_in_events_is_the_partition_and_no_column() -> None:
    assert "dt" not in conformed(event_columns(dt=pa.array(["2026-03-01"]))).schema.names
    assert (
        "dt"
        in conformed({"item_id": pa.array(["1"]), "title": pa.array(["x"]), "dt": pa.array([1])}, "items").schema.names
    )


@pytest.mark.parametrize(
    ("column", "found", "tells"),
    [
        ("event_time", pa.array([datetime(2026, 3, 1)], pa.timestamp("us")), "tz_localize"),
        ("event_time", pa.array(["2026-03-01T12:00:00Z"]), "to_datetime"),
        ("event_time", pa.array([1772366400]), "to_datetime"),
        ("event_time", pa.array([NOON.date()], pa.date32()), "to_datetime"),
        ("item_id", pa.array([17.0]), "Int64"),
        ("item_id", pa.array([True]), "text"),
        ("item_id", pa.array([["17"]]), "text"),
        ("position", pa.array(["3"]), "number"),
        ("position", pa.array([True]), "number"),
        ("position", pa.array([Decimal("1.5")]), "number"),
        ("relevance", pa.array(["0.5"]), "number"),
        ("relevance", pa.array([NOON], contract.TIME), "number"),
    ],
)
def test_what_cannot_be_cast_is_refused_by_name(column: str, found: pa.Array, tells: str) -> None:
    with pytest.raises(DataError) as caught:
        conformed(event_columns(**{column: found}))
    message = str(caught.value)
    for part in ("shop.parquet", repr(column), str(found.type), str(EVENTS.field(column).type), tells):
        assert part in message


@pytest.mark.parametrize(
    ("column", "found", "tells"),
    [
        ("position", pa.array([2.5]), "2.5"),
        ("position", pa.array([2**31]), "2147483648"),
        ("relevance", pa.array([2**53 + 1]), "9007199254740993"),
        ("event_time", pa.array([2**62], pa.timestamp("s", tz="UTC")), "event_time"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(column: str, found: pa.Array, tells: str) -> None:
    with pytest.raises(DataError, match=tells) as caught:
        conformed(event_columns(**{column: found}))
    assert "shop.parquet" in str(caught.value)


@pytest.mark.parametrize("table", ["items", "events", "judgments"])
def test_every_missing_required_column_is_named(table: str) -> None:
    for name in contract.REQUIRED[table]:
        rest = pa.schema([field for field in contract.SCHEMAS[table] if field.name != name])
        with pytest.raises(DataError, match=f"lacks the required column '{name}'"):
            conformed_schema(rest, table, "shop.parquet")


def test_a_column_that_appears_twice_is_refused() -> None:
    with pytest.raises(DataError, match="'title' twice"):
        conformed_schema(pa.schema([*ITEMS, ITEMS.field("title")]), "items", "shop.parquet")


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 299), max_size=6))
def test_bytes_do_not_depend_on_how_rows_are_cut(cuts: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    table = pa.table({"item_id": [str(i) for i in range(300)], "price": [i / 7 for i in range(300)]})
    edges = [0, *sorted(set(cuts)), 300]
    parts = [table.slice(a, b - a).to_batches()[0] for a, b in pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "_ROW_GROUP_ROWS", 64)
        contract.write_parquet(table, folder / "whole.parquet")
        assert contract.write_parquet(parts, folder / "cut.parquet") == 300
    assert (folder / "whole.parquet").read_bytes() == (folder / "cut.parquet").read_bytes()
    assert pq.ParquetFile(folder / "cut.parquet").num_row_groups == 5
    assert pq.read_table(folder / "cut.parquet").equals(table)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    contract.write_parquet(pa.table({"x": [1]}), path)

    def failing() -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"x": [2]})
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        contract.write_parquet(failing(), path)
    assert pq.read_table(path).column("x").to_pylist() == [1]


def test_no_rows_can_be_written_only_with_a_schema(tmp_path: Path) -> None:
    assert contract.write_parquet([], tmp_path / "judgments.parquet", JUDGMENTS) == 0
    assert contract.read_judgments(tmp_path).schema == JUDGMENTS
    with pytest.raises(ValueError, match="no schema"):
        contract.write_parquet([], tmp_path / "x.parquet")


def test_event_files_are_listed_oldest_day_first(tmp_path: Path) -> None:
    assert contract.event_files(tmp_path) == []
    days = ["2026-03-01", "2026-03-02", "2026-03-10"]
    for day in reversed(days):
        contract.write_parquet(contract.EVENTS.empty_table(), tmp_path / "events" / f"dt={day}" / "part-0.parquet")
    assert [path.parent.name for path in contract.event_files(tmp_path)] == [f"dt={day}" for day in days]


def test_damaged_files_between_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; run the stage"):
        contract.read_items(tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"items\.parquet: not a readable Parquet"):
        contract.read_items(tmp_path)
    pq.write_table(pa.table({"item_id": [1], "title": ["x"]}), tmp_path / "items.parquet")
    with pytest.raises(DataError, match="'item_id' has type int64"):
        contract.read_items(tmp_path)
    pq.write_table(pa.table({"query": ["x"]}), tmp_path / "judgments.parquet")
    with pytest.raises(DataError, match="lacks column 'item_id'"):
        contract.read_judgments(tmp_path)


def test_fingerprint_follows_names_and_bytes_but_not_the_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "events").mkdir(parents=True)
        (tmp_path / place / "items.parquet").write_bytes(b"one")
        (tmp_path / place / "events" / "part-0.parquet").write_bytes(b"two")
    first = [tmp_path / "a" / "items.parquet", tmp_path / "a" / "events" / "part-0.parquet"]
    second = [tmp_path / "b" / "events" / "part-0.parquet", tmp_path / "b" / "items.parquet"]
    before = contract.fingerprint(first)
    assert contract.fingerprint(second) == before
    second[0].write_bytes(b"twO")
    assert contract.fingerprint(second) != before
    second[0].write_bytes(b"two")
    second[1].rename(tmp_path / "b" / "goods.parquet")
    assert contract.fingerprint([second[0], tmp_path / "b" / "goods.parquet"]) != before


def test_meta_comes_back_as_it_went(tmp_path: Path) -> None:
    meta = SnapshotMeta(
        source="files",
        start=datetime(2026, 3, 1, tzinfo=UTC),
        end=datetime(2026, 3, 15, tzinfo=UTC),
        simulated=False,
        note="é",
        rows={"items": 3, "events": 0, "judgments": 1},
        fingerprint="ab",
    )
    contract.write_meta(tmp_path, meta)
    assert contract.read_meta(tmp_path) == meta
    assert '"start": "2026-03-01T00:00:00Z"' in (tmp_path / "snapshot.json").read_text(encoding="utf-8")


def test_bad_meta_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"snapshot\.json: no such file"):
        contract.read_meta(tmp_path)
    (tmp_path / "snapshot.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"snapshot\.json: not a snapshot description"):
        contract.read_meta(tmp_path)

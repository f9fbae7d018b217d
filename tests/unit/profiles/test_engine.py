"""What the engine keeps lies on disk, and what comes in parts comes in their order."""

import time
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrse.config import ProfilesConfig
from mrse.errors import DataError
from mrse.profiles.engine import duckdb

CONFIG = ProfilesConfig(threads=1)


def held(engine) -> int:
    """Bytes that the engine holds in memory and in its own spill files."""
    query = "SELECT sum(memory_usage_bytes + temporary_storage_bytes) FROM duckdb_memory()"
    return int(engine._backend.con.sql(query).fetchall()[0][0])


def test_what_is_kept_holds_no_memory(tmp_path: Path) -> None:
    numbers = ibis.range(0, 500_000).unnest().name("number").as_table()
    with duckdb(CONFIG, tmp_path) as engine:
        before = held(engine)
        kept = engine.keep(numbers, numbers.mutate(number=numbers.number + 500_000))
        (row,) = engine.fetch(kept.aggregate(rows=kept.count(), sum=kept.number.sum(), most=kept.number.max()))
        assert row == {"rows": 1_000_000, "sum": 499_999_500_000, "most": 999_999}
        assert held(engine) - before < 100_000, "8 MB were kept"
    assert not list(tmp_path.iterdir())


def test_what_is_kept_comes_back_with_its_types(tmp_path: Path) -> None:
    with duckdb(CONFIG, tmp_path) as engine:
        one = engine.put(pa.table({"text": ["a", None], "number": [1, 2]}))
        rows = one.group_by("text").agg(
            total=one.number.sum(), pairs=ibis.struct({"number": one.number, "text": one.text}).collect()
        )
        kept = engine.keep(rows, rows.filter(rows.total > 5))
        assert kept.schema() == rows.schema()
        (found,) = engine.fetch(kept.filter(kept.text == "a"))
        assert found == {"text": "a", "total": 1, "pairs": [{"number": 1, "text": "a"}]}


def test_parts_are_written_in_their_order(tmp_path: Path) -> None:
    schema = pa.schema({"number": pa.int64()})
    with duckdb(CONFIG, tmp_path / "it's here") as engine:
        kept = engine.keep(engine.put(pa.table({"number": [3, 1, 2]})))
        parts = [kept.filter(kept.number > 1).order_by("number"), kept.filter(kept.number > 9), kept.order_by("number")]
        assert engine.write(parts, tmp_path / "out.parquet", schema) == 5
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == {"number": [2, 3, 1, 2, 3]}


def test_what_fails_behind_is_raised_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"number": [1, 2]}), file)
    with pytest.raises(DataError, match=r"numbers\.parquet"), duckdb(CONFIG, tmp_path) as engine:
        numbers = engine.read([file], pa.schema({"number": pa.int64()}))
        file.unlink()
        doubled = engine.keep(numbers.mutate(number=numbers.number * 2))
        engine.fetch(engine.keep(doubled.filter(doubled.number > 2)))


def test_an_engine_that_is_left_stops_what_it_computes(tmp_path: Path) -> None:
    numbers = ibis.range(0, 10_000_000).unnest().name("number").as_table()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), duckdb(CONFIG, tmp_path) as engine:
        pairs = numbers.cross_join(numbers.rename(other="number"))
        engine.keep(pairs.aggregate(most=(pairs.number * pairs.other).max()))
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30, "a hundred million million pairs take days"
    assert not list(tmp_path.iterdir())

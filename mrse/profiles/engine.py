"""Where the expressions of this room run: DuckDB by default. They use nothing that only DuckDB has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from duckdb import IOException, OutOfMemoryException
from ibis.backends.duckdb import Backend

from mrse.config import ProfilesConfig
from mrse.data.contract import write_parquet
from mrse.errors import ConfigError, DataError

_BATCH_ROWS = 32_768
# What is kept is read back soon and a few times: to pack it, or to add Bloom filters, costs more than it saves. A row
# group is held while it is written; small ones also let a reader skip more.
_KEPT = {"compression": "uncompressed", "write_bloom_filter": False, "row_group_size": 16_384}


class Engine(Protocol):
    """What this room asks of an engine.

    What would need too much memory at once comes in parts of one schema. They are computed one after the other.
    """

    def keep(self, *parts: ir.Table) -> ir.Table:
        """Compute rows that more than one later step reads, and hold them, not in memory, until the engine closes."""

    def fetch(self, rows: ir.Table) -> list[dict[str, Any]]:
        """Compute a handful of rows."""

    def read(self, files: Sequence[Path], schema: pa.Schema) -> ir.Table:
        """Parquet files as one table with the columns of `schema`; no file gives an empty table."""

    def write(self, parts: Sequence[ir.Table], path: Path, schema: pa.Schema) -> int:
        """Stream parts in their order to Parquet; naive times become UTC. Returns the number of rows."""


class DuckDB:
    """`Engine` on DuckDB."""

    def __init__(self, backend: Backend, folder: Path, memory_limit: str) -> None:
        self._backend = backend
        self._folder = folder
        self._memory_limit = memory_limit
        self._names = itertools.count()

    def keep(self, *parts: ir.Table) -> ir.Table:
        files = [self._folder / f"kept-{next(self._names)}.parquet" for _ in parts]
        for rows, file in zip(parts, files, strict=True):
            self._backend.to_parquet(rows, file, **_KEPT)
        self._give_back()
        # Parquet has no type for DuckDB's sums of integers, which come back as floats: `cast` gives every type again.
        return self._backend.read_parquet(files).cast(parts[0].schema())

    def fetch(self, rows: ir.Table) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = rows.to_pyarrow().to_pylist()
        return found

    def read(self, files: Sequence[Path], schema: pa.Schema) -> ir.Table:
        if not files:
            return self.keep(ibis.memtable(schema.empty_table()))
        table = self._backend.read_parquet([str(file) for file in files], union_by_name=True, hive_partitioning=False)
        return table.select(*schema.names)

    def write(self, parts: Sequence[ir.Table], path: Path, schema: pa.Schema) -> int:
        batches = itertools.chain.from_iterable(self._batches(rows, schema) for rows in parts)
        written = write_parquet(_ahead(batches), path, schema)
        self._give_back()
        return written

    def _batches(self, rows: ir.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        query = self._backend.compile(rows.select(*schema.names))
        # Not Ibis's own to_pyarrow_batches: it calls a method that DuckDB 2 no longer has.
        yield from self._backend.con.sql(query).to_arrow_reader(_BATCH_ROWS)

    def _give_back(self) -> None:
        """Return freed memory to the system: DuckDB and Arrow hoard it, and each other's would come on top.

        DuckDB empties its allocator whenever its limit is set, even to what it is.
        """
        self._backend.con.execute(f"SET memory_limit = '{self._memory_limit}'")
        pa.default_memory_pool().release_unused()


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same, the next one being made while the last is written: writing runs on one thread."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = maker.submit(next, batches, None)
            yield batch


@contextmanager
def duckdb(config: ProfilesConfig, spill_under: Path) -> Iterator[DuckDB]:
    """A DuckDB that keeps to `memory_limit`; what it keeps and what it spills lie in a folder that is gone afterwards.

    Raises:
        ConfigError: `memory_limit` is too small even with spilling.
        DataError: a file cannot be read, or the disk is full.
    """
    spill_under.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".spill-", dir=spill_under) as spill:
        settings = {"memory_limit": config.memory_limit, "temp_directory": spill, "preserve_insertion_order": False}
        if config.threads:
            settings["threads"] = config.threads
        backend = ibis.duckdb.connect(**settings)
        try:
            yield DuckDB(backend, Path(spill), config.memory_limit)
        except OutOfMemoryException:
            raise ConfigError(
                f"build_profiles: memory_limit {config.memory_limit} is too little for this log; "
                "raise it, or lower threads"
            ) from None
        except IOException as error:
            raise DataError(f"build_profiles: {error}") from None
        finally:
            backend.disconnect()

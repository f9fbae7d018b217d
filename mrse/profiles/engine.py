"""Where the expressions of this room run: DuckDB by default. They use nothing that only DuckDB has.

Ibis takes a tenth of a second to build and compile a query, on one thread. What is kept is therefore computed behind:
while DuckDB works on one query, the next ones are built.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, Protocol

import ibis
import ibis.expr.operations as ops
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import IOException, OutOfMemoryException
from ibis.backends.duckdb import Backend
from ibis.backends.sql.datatypes import DuckDBType

from mrse.config import ProfilesConfig
from mrse.data.contract import write_parquet
from mrse.errors import ConfigError, DataError

_BATCH_ROWS = 32_768
# What is kept is read back soon and a few times: to pack it, or to add Bloom filters, costs more than it saves. A row
# group is held while it is written; small ones also let a reader skip more.
_KEPT = "FORMAT parquet, COMPRESSION uncompressed, WRITE_BLOOM_FILTER false, ROW_GROUP_SIZE 16384"


class Engine(Protocol):
    """What this room asks of an engine.

    What would need too much memory at once comes in parts of one schema. They are computed one after the other.
    """

    def put(self, table: pa.Table) -> ir.Table:
        """Hold a table that is at hand as `keep` holds what it computes."""

    def keep(self, *parts: ir.Table) -> ir.Table:
        """Compute rows that more than one later step reads, and hold them, not in memory, until the engine closes.

        Returns before they are computed: what fails is raised by the next `fetch` or `write`.
        """

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
        self._numbers = itertools.count()
        self._behind = ThreadPoolExecutor(1)
        self._begun: list[Future[Any]] = []

    def put(self, table: pa.Table) -> ir.Table:
        file = self._file()
        pq.write_table(table, file)
        return self._view([file], ibis.Schema.from_pyarrow(table.schema))

    def keep(self, *parts: ir.Table) -> ir.Table:
        files = []
        for rows in parts:
            files.append(self._file())
            self._execute(f"COPY ({self._backend.compile(rows)}) TO {_quoted(files[-1])} ({_KEPT})")
        self._begun.append(self._behind.submit(self._give_back))
        return self._view(files, parts[0].schema())

    def fetch(self, rows: ir.Table) -> list[dict[str, Any]]:
        self._catch_up()
        found: list[dict[str, Any]] = rows.to_pyarrow().to_pylist()
        return found

    def read(self, files: Sequence[Path], schema: pa.Schema) -> ir.Table:
        if not files:
            return self.put(schema.empty_table())
        self._catch_up()
        table = self._backend.read_parquet([str(file) for file in files], union_by_name=True, hive_partitioning=False)
        return table.select(*schema.names)

    def close(self) -> None:
        """Stop what is being computed."""
        self._behind.shutdown(wait=False, cancel_futures=True)
        while not all(job.done() for job in self._begun):
            self._backend.con.interrupt()  # again and again: it stops no query that is yet to start
            sleep(0.02)

    def _file(self) -> Path:
        return self._folder / f"kept-{next(self._numbers)}.parquet"

    def _view(self, files: Sequence[Path], schema: ibis.Schema) -> ir.Table:
        """Files to come as a table: known by its schema, so that queries of it can be built before they are there."""
        name = files[0].stem
        # Parquet has no type for DuckDB's sums of integers, which come back as floats: CAST gives every type again.
        columns = (
            f'CAST("{column}" AS {DuckDBType.to_string(found)}) AS "{column}"' for column, found in schema.items()
        )
        listed = ", ".join(map(_quoted, files))
        self._execute(f'CREATE TEMP VIEW "{name}" AS SELECT {", ".join(columns)} FROM read_parquet([{listed}])')
        return ops.DatabaseTable(name, schema, self._backend).to_expr()

    def _execute(self, statement: str) -> None:
        self._begun.append(self._behind.submit(self._backend.con.execute, statement))

    def _catch_up(self) -> None:
        """Wait for what has begun; raise what the first to fail has met, which the others then miss."""
        for job in self._begun:
            job.result()
        self._begun.clear()

    def write(self, parts: Sequence[ir.Table], path: Path, schema: pa.Schema) -> int:
        self._catch_up()
        batches = itertools.chain.from_iterable(self._batches(rows, schema) for rows in parts)
        with closing(_ahead(batches)) as ahead:  # or a disk that is full would leave the next batch in the making
            written = write_parquet(ahead, path, schema)
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


def _quoted(file: Path) -> str:
    text = str(file).replace("'", "''")
    return f"'{text}'"


def _ahead(batches: Iterator[pa.RecordBatch]) -> Generator[pa.RecordBatch]:
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
        engine = DuckDB(backend, Path(spill), config.memory_limit)
        try:
            yield engine
        except OutOfMemoryException:
            raise ConfigError(
                f"build_profiles: memory_limit {config.memory_limit} is too little for this log; "
                "raise it, or lower threads"
            ) from None
        except IOException as error:
            raise DataError(f"build_profiles: {error}") from None
        finally:
            engine.close()
            backend.disconnect()

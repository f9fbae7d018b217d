"""Where the expressions of this room run: DuckDB by default. They use nothing that only DuckDB has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from duckdb import IOException, OutOfMemoryException
from ibis.backends import BaseBackend

from mrse.config import ProfilesConfig
from mrse.data.contract import write_parquet
from mrse.errors import ConfigError, DataError

_BATCH_ROWS = 32_768


class Engine(Protocol):
    """What this room asks of an engine."""

    def keep(self, rows: ir.Table) -> ir.Table:
        """Compute rows that more than one later step reads, and hold them until the engine closes."""

    def read(self, files: Sequence[Path], schema: pa.Schema) -> ir.Table:
        """Parquet files as one table with the columns of `schema`; no file gives an empty table."""

    def write(self, rows: ir.Table, path: Path, schema: pa.Schema) -> int:
        """Stream rows in their order to Parquet; naive times become UTC. Returns the number of rows."""


class DuckDB:
    """`Engine` on DuckDB."""

    def __init__(self, backend: BaseBackend) -> None:
        self._backend = backend
        self._names = itertools.count()

    def keep(self, rows: ir.Table) -> ir.Table:
        return self._backend.create_table(f"kept_{next(self._names)}", rows, temp=True)

    def read(self, files: Sequence[Path], schema: pa.Schema) -> ir.Table:
        if not files:
            return self.keep(ibis.memtable(schema.empty_table()))
        table = self._backend.read_parquet([str(file) for file in files], union_by_name=True, hive_partitioning=False)
        return table.select(*schema.names)

    def write(self, rows: ir.Table, path: Path, schema: pa.Schema) -> int:
        query = self._backend.compile(rows.select(*schema.names))
        # Not Ibis's own to_pyarrow_batches: it calls a method that DuckDB 2 no longer has.
        batches = self._backend.con.sql(query).to_arrow_reader(_BATCH_ROWS)
        return write_parquet(iter(batches), path, schema)


@contextmanager
def duckdb(config: ProfilesConfig, spill_under: Path) -> Iterator[DuckDB]:
    """A DuckDB that keeps to `memory_limit` and spills the rest to a folder that is gone afterwards.

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
            yield DuckDB(backend)
        except OutOfMemoryException:
            raise ConfigError(
                f"build_profiles: memory_limit {config.memory_limit} is too little for this log; "
                "raise it, or lower threads"
            ) from None
        except IOException as error:
            raise DataError(f"build_profiles: {error}") from None
        finally:
            backend.disconnect()

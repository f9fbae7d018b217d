"""What happens to the rows that broke a rule: they leave or are repaired, and `data/quarantine/` says why.

A quarantine table holds the row as it was, and `reason`, `outcome` (`removed`, `nulled`, `cleaned`) and `detail`. A
removed row appears once, with the first reason of its suite; a repaired row appears once per repair. It is written as
it comes, so that a broken day costs disk and not memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrse.validation.engine import Hit, Rows
from mrse.validation.frames import Mask, clean_text


@dataclass
class Tally:
    """Counts for one table: rows seen and removed, and rows by reason and outcome."""

    rows: int = 0
    removed: int = 0
    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, reason: str, outcome: str, count: int) -> None:
        """Count rows of one reason."""
        if count:
            self.reasons.setdefault(outcome, Counter())[reason] += count

    def flat(self) -> Iterator[tuple[str, str, int]]:
        """Every `(reason, outcome, rows)`, sorted."""
        found = (
            (reason, outcome, count) for outcome, counts in self.reasons.items() for reason, count in counts.items()
        )
        return iter(sorted(found))


@dataclass(frozen=True)
class Verdict:
    """What becomes of each row of a batch.

    Attributes:
        keep: False for rows that leave.
        hits: one per reason, without the rows that another reason has removed.
    """

    keep: Mask
    hits: list[Hit]


def judge(hits: Sequence[Hit], rows: int, tally: Tally) -> Verdict:
    """Decide on every row and count it. The first rule that removes a row names the reason.

    Args:
        hits: what the suite found, in its order.
        rows: how many rows the batch has.
        tally: counts so far; updated.
    """
    keep = np.ones(rows, bool)
    settled: list[Hit] = []
    for hit in hits:
        if hit.outcome == "removed":
            settled.append(Hit(hit.reason, hit.outcome, hit.column, hit.rows[keep[hit.rows]]))
            keep[hit.rows] = False
    for hit in hits:
        if hit.outcome != "removed":
            settled.append(Hit(hit.reason, hit.outcome, hit.column, hit.rows[keep[hit.rows]]))
    tally.rows += rows
    tally.removed += rows - int(keep.sum())
    for hit in settled:
        tally.add(hit.reason, hit.outcome, len(hit.rows))
    return Verdict(keep, settled)


def repair(table: pa.Table, hits: Sequence[Hit], max_chars: dict[str, int]) -> pa.Table:
    """Apply the outcomes `nulled` and `cleaned`.

    Args:
        table: the batch, all rows.
        hits: of a `Verdict`.
        max_chars: the length that `cleaned` cuts each column to.
    """
    for hit in hits:
        if hit.outcome not in ("nulled", "cleaned") or not len(hit.rows):
            continue
        place = table.schema.get_field_index(hit.column)
        column = table.column(place)
        plain = column.cast(_plain(column.type))
        mended = pa.scalar(None, plain.type) if hit.outcome == "nulled" else clean_text(plain, max_chars[hit.column])
        touched = np.zeros(table.num_rows, bool)
        touched[hit.rows] = True
        mixed = pc.if_else(pa.array(touched), mended, plain)
        table = table.set_column(place, hit.column, mixed.cast(column.type) if column.type == plain.type else mixed)
    return table


class Quarantine:
    """Writes one table of `data/quarantine/`; a context manager. Without rows it leaves a file without rows.

    Args:
        path: the file.
        schema: of the table whose rows are set aside.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        plain = [pa.field(column.name, _plain(column.type)) for column in schema]
        self._columns = [column.name for column in plain]
        text = [pa.field(name, pa.string()) for name in ("reason", "outcome", "detail") if name not in self._columns]
        self._schema = pa.schema([*plain, *text])
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd", compression_level=3)
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
        self._temporary.replace(self._path)

    def add(self, table: pa.Table, hits: Sequence[Hit], details: Sequence[str] | None = None) -> None:
        """Set rows aside.

        Args:
            table: the batch as it was.
            hits: of a `Verdict`; rules that keep their rows are skipped.
            details: `detail` per row of `table`; by default the column that the rule is about.
        """
        for hit in hits:
            if hit.outcome == "kept" or not len(hit.rows):
                continue
            detail = [hit.column] * len(hit.rows) if details is None else [details[row] for row in hit.rows.tolist()]
            self._write(table.take(pa.array(hit.rows)), hit, detail)

    def _write(self, rows: pa.Table, hit: Hit, detail: list[str]) -> None:
        count = rows.num_rows
        added = {"reason": [hit.reason] * count, "outcome": [hit.outcome] * count, "detail": detail}
        columns = [
            pa.array(added[column.name], pa.string())
            if column.name in added
            else rows[column.name].cast(column.type)
            if column.name in rows.column_names
            else pa.nulls(count, column.type)
            for column in self._schema
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))


def plain_table(table: pa.Table) -> pa.Table:
    """The same rows with plain strings in place of dictionaries."""
    return table.cast(pa.schema([pa.field(column.name, _plain(column.type)) for column in table.schema]))


def rows_of(mask: Mask) -> Rows:
    """The places where a mask is True."""
    return np.flatnonzero(mask).astype(np.int64, copy=False)


def _plain(found: pa.DataType) -> pa.DataType:
    return found.value_type if pa.types.is_dictionary(found) else found

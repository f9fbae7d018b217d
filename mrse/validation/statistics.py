"""What a window looks like in numbers, and how far it is from the window before: drift.

Shapes that are mixes (which queries, which kinds of items) are compared by the Jensen-Shannon divergence (base 2, 0 to
1), the others by the population stability index. Both act on histograms with fixed bins, so a window's statistics are a
few kilobytes however long it is. They are kept as `<state_dir>/statistics/<shop>/<window end>.json` once a window has
passed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mrse.config import DriftConfig
from mrse.data.contract import ACTIONS, SnapshotMeta
from mrse.validation.frames import combine, dictionary, value_hashes

_BUCKETS = 64
_CHARS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
_MONEY = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5)
_PLACES = (1, 2, 3, 5, 8, 12, 20, 30, 50, 100)
_SHARES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_NULLABLE = {
    "items": ("category", "price", "image"),
    "events": ("user_id", "position", "relevance", "propensity"),
}

Counts = np.ndarray[tuple[int], np.dtype[np.float64]]
Measure = Literal["js", "psi"]


@dataclass
class Distribution:
    """A histogram.

    Attributes:
        measure: how it is compared.
        counts: rows per bin.
        unit: what is independent in it, `items` or `requests`: the number of those tells whether it can be compared.
    """

    measure: Measure
    counts: Counts
    unit: str


class Statistics:
    """Gathers the distributions of one window, batch by batch."""

    def __init__(self) -> None:
        self.units = {"items": 0, "requests": 0}
        self.distributions: dict[str, Distribution] = {}

    def add_items(self, table: pa.Table) -> None:
        """Count the clean items."""
        self.units["items"] += table.num_rows
        kind = pc.coalesce(table["category"], table["item_id"])
        self._add("items.kind", "js", "items", _buckets(kind))
        self._add("items.title_chars", "psi", "items", _histogram(pc.utf8_length(table["title"]), _CHARS))
        self._add("items.price", "psi", "items", _histogram(table["price"], _MONEY))
        self._add_nulls("items", "items", table)

    def add_events(self, table: pa.Table, kind_of_item: dict[str, int]) -> None:
        """Count a batch of clean events.

        Args:
            table: whole days, strings as dictionaries or plain.
            kind_of_item: the bucket of each item (`kinds`).
        """
        queries, query_codes = dictionary(table["query"])
        sessions, session_codes = dictionary(table["session_id"])
        asked = combine([value_hashes(sessions)[session_codes], value_hashes(queries)[query_codes]])
        first = ~pd.Series(asked).duplicated().to_numpy()
        self.units["requests"] += int(first.sum())
        bucket = value_hashes(queries) % np.uint64(_BUCKETS)
        self._add("events.query", "js", "requests", _count(bucket[query_codes[first]], _BUCKETS))
        lengths = pc.utf8_length(queries).to_numpy(zero_copy_only=False)
        if len(lengths):
            chars = pa.array(lengths[query_codes[first]])
            self._add("events.query_chars", "psi", "requests", _histogram(chars, _CHARS))
        self._add("events.kind", "js", "requests", _kind_counts(table["item_id"], kind_of_item))
        self._add("events.action", "psi", "requests", _action_counts(table["action"]))
        self._add("events.position", "psi", "requests", _histogram(table["position"], _PLACES))
        self._add("events.relevance", "psi", "requests", _histogram(table["relevance"], _SHARES))
        self._add_nulls("events", "requests", table)

    def _add_nulls(self, name: str, unit: str, table: pa.Table) -> None:
        for column in _NULLABLE[name]:
            nulls = table[column].null_count
            self._add(f"{name}.{column}.null", "psi", unit, np.array([nulls, table.num_rows - nulls], np.float64))

    def _add(self, name: str, measure: Measure, unit: str, counts: Counts) -> None:
        if name in self.distributions:
            self.distributions[name].counts += counts
        else:
            self.distributions[name] = Distribution(measure, counts, unit)


@dataclass(frozen=True)
class Change:
    """How far one distribution is from the reference."""

    name: str
    measure: Measure
    distance: float
    bound: float


@dataclass(frozen=True)
class Drift:
    """The comparison with the window before.

    Attributes:
        reference: the end of the window compared with, or None.
        note: why nothing, or not everything, was compared.
        changes: one per compared distribution.
    """

    reference: str | None
    note: str
    changes: list[Change]


def kinds(items: pa.Table) -> dict[str, int]:
    """The bucket of each item: of its category, or of the item itself where it has none."""
    kind = pc.coalesce(items["category"], items["item_id"])
    return dict(zip(items["item_id"].to_pylist(), _bucket_of(kind).tolist(), strict=True))


def compare(now: Statistics, meta: SnapshotMeta, folder: Path, config: DriftConfig) -> Drift:
    """Compare a window with the newest one of the same shop that ended earlier.

    Args:
        now: this window.
        meta: this window's snapshot.
        folder: where the statistics of this shop are kept.
        config: bounds.
    """
    if not config.enabled:
        return Drift(None, "drift is switched off (validate_logs.drift.enabled)", [])
    reference = _reference(folder, meta)
    if reference is None:
        return Drift(None, "no earlier window of this shop to compare with", [])
    bounds = {"js": config.max_js, "psi": config.max_psi}
    changes, small = [], []
    for name, mine in sorted(now.distributions.items()):
        theirs = reference["distributions"].get(name)
        if theirs is None or len(theirs) != len(mine.counts) or not (sum(theirs) and mine.counts.sum()):
            continue
        if min(now.units[mine.unit], reference["units"][mine.unit]) < config.min_rows:
            small.append(name)
            continue
        measure = jensen_shannon if mine.measure == "js" else population_stability
        distance = measure(np.asarray(theirs, np.float64), mine.counts)
        changes.append(Change(name, mine.measure, distance, bounds[mine.measure]))
    note = f"too few rows to compare: {', '.join(small)}" if small else ""
    return Drift(reference["end"], note, changes)


def save(now: Statistics, meta: SnapshotMeta, folder: Path) -> Path:
    """Keep the statistics of a window that has passed, in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{meta.end:%Y-%m-%d}.json"
    value = {
        "start": meta.start.isoformat(),
        "end": meta.end.isoformat(),
        "units": now.units,
        "distributions": {name: found.counts.tolist() for name, found in sorted(now.distributions.items())},
    }
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def jensen_shannon(p: Counts, q: Counts) -> float:
    """The Jensen-Shannon divergence of two histograms, base 2: 0 for equal shapes, 1 for disjoint ones."""
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return float((_entropy(middle) - (_entropy(p) + _entropy(q)) / 2).clip(0.0, 1.0))


def population_stability(p: Counts, q: Counts) -> float:
    """The population stability index of two histograms; half a row is added to each bin, so that it stays finite."""
    p, q = (p + 0.5) / (p + 0.5).sum(), (q + 0.5) / (q + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


def _entropy(p: Counts) -> np.float64:
    positive = p[p > 0]
    return np.float64(-(positive * np.log2(positive)).sum())


def _reference(folder: Path, meta: SnapshotMeta) -> dict[str, Any] | None:
    """The newest statistics whose window ended before this one's: a retry never meets itself."""
    found = []
    for path in folder.glob("*.json"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            end = datetime.fromisoformat(value["end"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            continue  # a file cut off by a full disk is no reference; the next window writes a whole one
        if end < meta.end:
            found.append((end, value))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _bucket_of(column: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    values, codes = dictionary(column)
    return (value_hashes(values) % np.uint64(_BUCKETS))[codes]


def _buckets(column: pa.ChunkedArray) -> Counts:
    return _count(_bucket_of(column), _BUCKETS)


def _kind_counts(column: pa.ChunkedArray, kind_of_item: dict[str, int]) -> Counts:
    values, codes = dictionary(column)
    kind = np.array([kind_of_item[item] for item in values.to_pylist() if item in kind_of_item] or [0])
    known = np.array([item in kind_of_item for item in values.to_pylist()], bool)
    of_value = np.zeros(len(values) + 1, np.int64)
    of_value[:-1][known] = kind[: int(known.sum())]
    return _count(of_value[codes], _BUCKETS)


def _action_counts(column: pa.ChunkedArray) -> Counts:
    values, codes = dictionary(column)
    place = {action: number for number, action in enumerate(ACTIONS)}
    of_value = np.array([place.get(value, 0) for value in values.to_pylist()] + [0])
    return _count(of_value[codes], len(ACTIONS))


def _histogram(column: pa.ChunkedArray | pa.Array, edges: tuple[float, ...]) -> Counts:
    """Rows per bin `[edge, next edge)`, the last one open; nulls are left out."""
    values = column.drop_null().cast(pa.float64()).to_numpy()
    return _count(np.searchsorted(edges, values, side="right"), len(edges) + 1)


def _count(codes: np.ndarray[Any, Any], bins: int) -> Counts:
    return np.bincount(codes.astype(np.int64), minlength=bins).astype(np.float64)

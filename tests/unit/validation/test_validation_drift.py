"""Distances, and which earlier window a window is compared with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrse.config import DriftConfig
from mrse.data.contract import EVENTS, ITEMS, SnapshotMeta
from mrse.validation import statistics

COUNTS = st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any).map(lambda v: np.array(v, np.float64))


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_distances_are_symmetric_and_not_negative(p: statistics.Counts, q: statistics.Counts) -> None:
    assert 0.0 <= statistics.jensen_shannon(p, q) <= 1.0
    assert statistics.jensen_shannon(p, q) == pytest.approx(statistics.jensen_shannon(q, p))
    assert statistics.population_stability(p, q) >= 0.0


@settings(deadline=None)
@given(COUNTS)
def test_nothing_changed_is_no_distance(p: statistics.Counts) -> None:
    assert statistics.jensen_shannon(p, p * 3) == pytest.approx(0.0, abs=1e-9)
    assert statistics.population_stability(p, p) == pytest.approx(0.0, abs=1e-9)


def test_known_distances() -> None:
    assert statistics.jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1.0)
    psi = statistics.population_stability(np.array([500.0, 500.0]), np.array([800.0, 200.0]))
    assert psi == pytest.approx((0.8 - 0.5) * np.log(1.6) + (0.2 - 0.5) * np.log(0.4), rel=0.01)


def _meta(day: int) -> SnapshotMeta:
    start, end = datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 3, day, tzinfo=UTC)
    return SnapshotMeta(source="files", start=start, end=end, simulated=False, note="", rows={}, fingerprint="")


def _window(price: float, count: int = 600) -> statistics.Statistics:
    rows = [{"item_id": f"i{n}", "title": "shirt", "category": "A", "price": price} for n in range(count)]
    found = statistics.Statistics()
    found.add_items(pa.Table.from_pylist(rows, ITEMS))
    return found


def _distance(drift: statistics.Drift, name: str) -> float:
    return next(change.distance for change in drift.changes if change.name == name)


def test_a_window_is_compared_with_the_newest_one_that_ended_earlier(tmp_path: Path) -> None:
    for day, price in ((3, 1.0), (4, 50.0), (5, 900.0), (6, 900.0)):
        statistics.save(_window(price), _meta(day), tmp_path)
    drift = statistics.compare(_window(50.0), _meta(5), tmp_path, DriftConfig())
    assert drift.reference is not None
    assert drift.reference.startswith("2025-03-04")
    assert _distance(drift, "items.price") == pytest.approx(0.0, abs=1e-9)
    changed = statistics.compare(_window(1.0), _meta(5), tmp_path, DriftConfig())
    assert _distance(changed, "items.price") > 5.0


def test_a_retry_of_the_first_window_has_no_reference(tmp_path: Path) -> None:
    statistics.save(_window(1.0), _meta(5), tmp_path)
    drift = statistics.compare(_window(900.0), _meta(5), tmp_path, DriftConfig())
    assert drift.reference is None
    assert "no earlier window" in drift.note


def test_too_few_rows_are_not_compared_and_it_says_so(tmp_path: Path) -> None:
    statistics.save(_window(1.0, count=20), _meta(4), tmp_path)
    drift = statistics.compare(_window(900.0), _meta(5), tmp_path, DriftConfig())
    assert drift.changes == []
    assert "items.price" in drift.note


def test_a_torn_statistics_file_is_passed_over(tmp_path: Path) -> None:
    statistics.save(_window(1.0), _meta(3), tmp_path)
    (tmp_path / "2025-03-04.json").write_text('{"end": "2025-03-')
    drift = statistics.compare(_window(1.0), _meta(5), tmp_path, DriftConfig())
    assert drift.reference is not None
    assert drift.reference.startswith("2025-03-03")


def test_switched_off(tmp_path: Path) -> None:
    statistics.save(_window(1.0), _meta(3), tmp_path)
    drift = statistics.compare(_window(900.0), _meta(5), tmp_path, DriftConfig(enabled=False))
    assert drift.changes == []
    assert "switched off" in drift.note


def test_requests_are_counted_once_however_many_items_they_show() -> None:
    at = datetime(2025, 3, 1, tzinfo=UTC)
    rows = [
        {"event_time": at, "session_id": "s", "query": query, "item_id": item, "action": "impression"}
        for query in ("red", "blue")
        for item in ("a", "b", "c")
    ]
    found = statistics.Statistics()
    found.add_events(pa.Table.from_pylist(rows, EVENTS), {"a": 5, "b": 5, "c": 7})
    assert found.units["requests"] == 2
    assert found.distributions["events.query"].counts.sum() == 2
    kinds = found.distributions["events.kind"].counts
    assert (kinds[5], kinds[7]) == (4, 2)

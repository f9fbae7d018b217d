"""Derived columns, verdicts and repairs on literal tables."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrse.config import ValidateConfig
from mrse.data.contract import EVENTS, ITEMS
from mrse.validation import frames
from mrse.validation.engine import Hit
from mrse.validation.quarantine import Quarantine, Tally, judge, repair

CONFIG = ValidateConfig(max_title_chars=10, max_query_chars=10, max_id_chars=4)


def _column(values: list[str | None], as_dictionary: bool = True) -> pa.ChunkedArray:
    array = pa.array(values, pa.string())
    return pa.chunked_array([array.dictionary_encode() if as_dictionary else array])


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_text_states(as_dictionary: bool) -> None:
    values = ["shirt", None, "", " \t\n", "\x00 \x01", "caf\ufffd", "x" * 11, "a\x07b", "a\tb", "日本語"]
    found = frames.text_states(_column(values, as_dictionary), 10)
    assert list(found) == [
        "fine", "missing", "missing", "missing", "missing", "invalid_utf8", "too_long", "control_characters",
        "fine", "fine",
    ]  # fmt: skip


def test_null_text_is_null_where_it_may_be() -> None:
    found = frames.text_states(_column(["", None]), 10, null_is_missing=False)
    assert found[0] == "missing"
    assert found.isna().tolist() == [False, True]


def test_text_states_of_no_rows() -> None:
    assert len(frames.text_states(_column([]), 10)) == 0


@settings(deadline=None)
@given(st.text(max_size=30))
def test_cleaned_text_has_no_controls_and_fits(text: str) -> None:
    (clean,) = frames.clean_text(_column([text], as_dictionary=False), 10).to_pylist()
    assert len(clean) <= 10
    state = frames.text_states(_column([clean]), 10)[0]
    assert state in ("fine", "missing") or "\ufffd" in text


def test_row_hashes_tell_rows_apart_and_do_not_depend_on_chunks() -> None:
    table = pa.table({"a": ["x", "y", "x", None], "b": [1, 1, 1, 1]})
    whole = frames.row_hashes(table, ["a", "b"])
    cut = frames.row_hashes(pa.concat_tables([table.slice(0, 1), table.slice(1)]), ["a", "b"])
    assert whole.tolist() == cut.tolist()
    assert whole[0] == whole[2]
    assert len(set(whole.tolist())) == 3


def _items(*rows: tuple[str | None, str, int | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"item_id": name, "title": title, "updated_at": None if day is None else datetime(2025, 3, day, tzinfo=UTC)}
            for name, title, day in rows
        ],
        ITEMS,
    )


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([("a", "old", 1), ("a", "new", 2), ("b", "one", 1)], [False, True, True]),
        ([("a", "dated", 1), ("a", "undated", None)], [True, False]),
        ([("a", "first", 1), ("a", "second", 1)], [True, False]),
        ([("a", "", 9), ("a", "usable", 1)], [True, True]),  # the newest has no title and leaves for that
        ([(None, "one", 1), (None, "two", 1)], [True, True]),  # a missing id is no duplicate
    ],
)
def test_the_newest_usable_copy_stays(rows: list[tuple[str | None, str, int | None]], kept: list[bool]) -> None:
    assert frames.items_frame(_items(*rows), CONFIG)["newest_copy"].tolist() == kept


def test_nan_becomes_infinite_and_null_stays_null() -> None:
    table = _items(("a", "t", 1), ("b", "t", 1), ("c", "t", 1))
    prices = pa.array([float("nan"), None, 2.0])
    frame = frames.items_frame(table.set_column(table.schema.get_field_index("price"), "price", prices), CONFIG)
    assert frame["price"].tolist()[0] == np.inf
    assert frame["price"].isna().tolist() == [False, True, False]


def _events(*rows: tuple[int, str, str]) -> pa.Table:
    start = datetime(2025, 3, 1, tzinfo=UTC).timestamp()
    return pa.Table.from_pylist(
        [
            {
                "event_time": datetime.fromtimestamp(start + hour * 3600, UTC),
                "session_id": session,
                "query": "q",
                "item_id": "a",
                "action": action,
            }
            for hour, session, action in rows
        ],
        EVENTS,
    )


def _funnel(table: pa.Table, session: frames.Session) -> list[object]:
    frame = frames.events_frame(table, pa.array(["a"]), CONFIG, session)
    return frame["was_shown"].astype(object).where(frame["was_shown"].notna(), None).tolist()


def test_a_click_needs_its_impression() -> None:
    table = _events((1, "s1", "impression"), (1, "s1", "click"), (2, "s2", "click"))
    assert _funnel(table, frames.Session()) == [None, True, False]


def test_an_impression_logged_after_its_click_counts() -> None:
    assert _funnel(_events((1, "s", "click"), (2, "s", "impression")), frames.Session()) == [True, None]


def test_days_without_impressions_cannot_tell() -> None:
    assert _funnel(_events((1, "s1", "click")), frames.Session()) == [None]


def test_a_session_does_not_end_at_midnight() -> None:
    session = frames.Session()
    _funnel(_events((1, "early", "impression"), (23, "late", "impression")), session)
    table = _events((24, "late", "click"), (24, "early", "click"), (30, "x", "impression"))
    assert _funnel(table, session) == [True, False, None]  # "early" is more than six hours ago


def test_only_exact_repeats_are_repeats() -> None:
    table = _events((1, "s", "click"), (1, "s", "click"), (1, "s", "order"), (2, "s", "click"))
    frame = frames.events_frame(table, pa.array(["a"]), CONFIG, frames.Session())
    assert frame["first_copy"].tolist() == [True, False, True, True]


def test_the_first_rule_that_removes_a_row_names_the_reason() -> None:
    tally = Tally()
    hits = [
        Hit("bad_price", "nulled", "price", np.array([0, 1])),
        Hit("no_id", "removed", "item_id", np.array([1])),
        Hit("no_title", "removed", "title", np.array([1, 2])),
    ]
    verdict = judge(hits, 4, tally)
    assert verdict.keep.tolist() == [True, False, False, True]
    assert (tally.rows, tally.removed) == (4, 2)
    assert list(tally.flat()) == [("bad_price", "nulled", 1), ("no_id", "removed", 1), ("no_title", "removed", 1)]


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_repairs(as_dictionary: bool) -> None:
    table = pa.table({"title": _column(["a\x00b", "x" * 9, "fine"], as_dictionary), "price": [1.0, -1.0, 2.0]})
    hits = [Hit("t", "cleaned", "title", np.array([0, 1])), Hit("p", "nulled", "price", np.array([1]))]
    mended = repair(table, hits, {"title": 4})
    assert mended["title"].to_pylist() == ["a b", "xxxx", "fine"]
    assert mended["price"].to_pylist() == [1.0, None, 2.0]


def test_quarantine_holds_the_rows_as_they_were(tmp_path: Path) -> None:
    table = pa.table({"item_id": _column(["a", "b", "c"]), "price": [1.0, -1.0, 2.0]})
    path = tmp_path / "quarantine" / "items.parquet"
    with Quarantine(path, table.schema) as quarantine:
        quarantine.add(table, [Hit("price_invalid", "nulled", "price", np.array([1]))])
        quarantine.add(table, [Hit("only_counted", "kept", "price", np.array([0]))])
    (row,) = pq.read_table(path).to_pylist()
    assert row == {"item_id": "b", "price": -1.0, "reason": "price_invalid", "outcome": "nulled", "detail": "price"}


def test_quarantine_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "items.parquet", ITEMS):
        pass
    found = pq.read_table(tmp_path / "items.parquet")
    assert found.num_rows == 0
    assert found.column_names == [*ITEMS.names, "reason", "outcome", "detail"]

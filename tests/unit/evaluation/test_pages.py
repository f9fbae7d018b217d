"""Pages of the log: with an engagement from the requests, without one from the events, each once and in its slot."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest

from mrse.data.contract import EVENTS, write_parquet
from mrse.errors import DataError
from mrse.evaluation.pages import SLOTS, Cells, read_pages, request_id
from mrse.evaluation.ranking import EMPTY
from mrse.profiles import tables
from mrse.profiles.build import request_name

ASOF = datetime(2026, 3, 13, tzinfo=UTC)
IDS = ["a", "b", "c", "d"]


def event(session: str, query: str | None, item: str, position: int | None, **rest: Any) -> dict[str, Any]:
    told = {"event_time": ASOF + timedelta(hours=5), "session_id": session, "query": query, "item_id": item}
    return {"user_id": "u1", "action": "impression", "position": position, "propensity": 0.5, **told, **rest}


def request(name: str, **rest: Any) -> dict[str, Any]:
    shown = {
        "shown": ["a", "b", "c"],
        "shown_positions": [1, 2, 4],
        "shown_propensities": [0.5, 0.25, 0.1],
        "shown_actions": ["click", "impression", "order"],
    }
    history = {"hist_items": ["d"], "hist_actions": ["click"], "hist_ages": [2.0]}
    known = {"split": "test", "request_id": name, "source": "events", "query": "red", "user_id": "u1"}
    return {**known, **history, **shown, "relevant": ["a"], "gains": [1.0], **rest}


def write(folder: Path, requests: list[dict[str, Any]], events: list[dict[str, Any]]) -> tuple[Path, Path]:
    clean, profiles = folder / "clean", folder / "profiles"
    write_parquet(pa.Table.from_pylist(requests, tables.REQUESTS), profiles / "requests.parquet")
    times = [ASOF - timedelta(days=1), ASOF + timedelta(hours=7)]
    user = {"user_id": "u1", "hist_items": ["c", "b"], "hist_actions": ["order", "click"], "hist_times": times[::-1]}
    write_parquet(pa.Table.from_pylist([user | {"events": 2}], tables.USERS), profiles / "users.parquet")
    for day in sorted({row["event_time"].date() for row in events}):
        rows = [row for row in events if row["event_time"].date() == day]
        write_parquet(pa.Table.from_pylist(rows, EVENTS), clean / f"events/dt={day}/part-0.parquet")
    return clean, profiles


def test_a_page_with_an_engagement_is_laid_out_by_position(tmp_path: Path) -> None:
    log = read_pages(*write(tmp_path, [request("e-1")], []), IDS, ASOF, 10)
    pages = log.pages
    assert log.request_ids == ["e-1"] and pages.lengths_P.tolist() == [4]
    assert pages.items_PL[0, :5].tolist() == [0, 1, EMPTY, 2, EMPTY] and pages.items_PL.shape == (1, SLOTS)
    assert pages.propensities_PL[0, :4].tolist() == [0.5, 0.25, 1.0, 0.1]
    assert pages.clicked_PL[0, :4].tolist() == [True, False, False, True]
    assert pages.ordered_PL[0, :4].tolist() == [False, False, False, True]
    assert log.histories[0] is not None and log.histories[0].item_ids == ["d"]


def test_a_page_without_an_engagement_comes_from_the_events_of_the_test_days(tmp_path: Path) -> None:
    events = [
        event("s1", "blue", "b", 2),
        event("s1", "blue", "d", 1, propensity=0.125),
        event("s2", "red", "a", 1),
        event("s2", "red", "a", 1, action="click"),  # has an engagement: it would be in the requests
        event("s3", None, "a", 1),
        event("s4", "old", "a", 1, event_time=ASOF - timedelta(hours=1)),
    ]
    log = read_pages(*write(tmp_path, [], events), IDS, ASOF, 10)
    assert (log.request_ids, log.queries) == ([request_id("s1", "blue")], ["blue"])
    assert log.pages.items_PL[0, :2].tolist() == [3, 1] and log.pages.propensities_PL[0, :2].tolist() == [0.125, 0.5]
    assert not log.pages.clicked_PL.any()
    history = log.histories[0]
    # Of the shopper's two engagements one came after the page; the other was 29 hours before it.
    assert history is not None and (history.item_ids, history.ages_hours) == (["b"], [29.0])


@pytest.mark.parametrize(
    "broken",
    [
        {"shown_positions": [1, 2, None]},
        {"shown_positions": [1, 2, 2]},
        {"shown_positions": [0, 1, 2]},
        {"shown_propensities": [0.5, 0.5, None]},
        {"shown_propensities": [0.5, 0.0, 0.5]},
        {"shown": [], "shown_positions": [], "shown_propensities": [], "shown_actions": []},
    ],
)
def test_a_page_that_cannot_be_weighed_is_left_out_and_counted(tmp_path: Path, broken: dict[str, Any]) -> None:
    log = read_pages(*write(tmp_path, [request("e-1", **broken), request("e-2")], []), IDS, ASOF, 10)
    assert log.request_ids == ["e-2"]
    assert log.left_out == {"pages without positions or propensities, or shown twice": 1}


def test_pages_are_named_as_build_profiles_names_requests() -> None:
    asked = {"session_id": ["s20260313-000000", "séance 2", "\u4f1a"], "query": ["baseball cap", "Größe 42\n", "帽子"]}
    rows = ibis.memtable({"split": ["test"] * 3, **asked})
    named = ibis.duckdb.connect().to_pyarrow(request_name(rows)).to_pylist()
    assert named == [request_id(*pair) for pair in zip(*asked.values(), strict=True)]


def test_both_kinds_of_pages_are_sampled_alike(tmp_path: Path) -> None:
    requests = [request(f"e-{at}") for at in range(400)]
    events = [event(f"s{at}", "blue", "a", 1) for at in range(600)]
    log = read_pages(*write(tmp_path, requests, events), IDS, ASOF, 100)
    assert log.queries.count("red") == 100 and 100 < log.queries.count("blue") < 200  # a quarter of 400 and of 600
    again = read_pages(tmp_path / "clean", tmp_path / "profiles", IDS, ASOF, 100)
    assert again.request_ids == log.request_ids and np.array_equal(again.pages.clusters_P, log.pages.clusters_P)


def test_a_shop_without_events_has_no_pages_and_a_missing_file_is_named(tmp_path: Path) -> None:
    assert len(read_pages(tmp_path, tmp_path, IDS, None, 10)) == 0
    with pytest.raises(DataError, match=r"requests\.parquet: no such file; run the build_profiles stage first"):
        read_pages(tmp_path, tmp_path, IDS, ASOF, 10)


def test_cells_tell_how_well_a_text_matches_and_how_popular_the_item_is() -> None:
    cells = Cells(["red wool shirt", "shirts", "hat", "red hat"], np.array([0, 2, 5, 100]))
    found = cells.of(["red wool shirts", "hat"], np.array([[0, 1, 2, 3], [2, EMPTY, EMPTY, EMPTY]], dtype=np.int32))
    assert found.tolist() == [[3, 4 + 1, 8 + 0, 16 + 1], [8 + 3, 0, 0, 0]]

"""Random small logs, full of ties and overlapping sessions: the stage against plain loops."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_profiles import Naive, is_top, run, write_shop

from mrse.config import ProfilesConfig
from mrse.profiles import build, item_profiles, log
from mrse.profiles.build import build_profiles

START = datetime(2026, 3, 1, tzinfo=UTC)
ITEMS = [f"i{number}" for number in range(8)]
QUERIES = ["red shirt", "Red Shirt ", "blue jeans", "boots", "sötes kleid", " "]
CONFIG = {
    "warmup_days": 1,
    "refresh_days": 2,
    "valid_days": 1,
    "test_days": 1,
    "history_length": 3,
    "long_history": 2,
    "item_queries": 2,
    "co_items": 3,
    "co_window": 2,
    "hard_negatives": 3,
    "popularity_half_life_days": 1.5,
    "judged_valid_share": 0.25,
    "judged_test_share": 0.25,
    "threads": 1,
}


def random_shop(rng: random.Random, days: int, size: int, judged: int):
    """Few shoppers, items and instants, so that ties, overlaps and repeats are common."""
    sessions = [f"s{number}" for number in range(max(1, size // 8))]
    users = {session: rng.choice([None, "ann", "bob", "cem"]) for session in sessions}
    homes = {session: rng.uniform(-0.2, days) for session in sessions}
    events = {}
    for _ in range(size):
        session = rng.choice(sessions)
        hours = round((homes[session] + rng.choice([0, 0, 0.02, 0.3])) * 24 * rng.choice([1, 1, 1, 1.1]))
        event = {
            "event_time": START + timedelta(hours=hours, microseconds=rng.choice([0, 0, 1, 999_999])),
            "session_id": session,
            "user_id": users[session] if rng.random() < 0.8 else None,
            "query": rng.choice(QUERIES),
            "item_id": rng.choice([*ITEMS, "gone"]),
            "position": rng.choice([None, 1, 2, 3, 4]),
            "action": rng.choice(["impression"] * 4 + ["click"] * 3 + ["add_to_cart", "order"]),
            "relevance": rng.choice([None, 0.0, 0.2, 0.9]),
            "propensity": rng.choice([None, 0.5]),
        }
        names = ("event_time", "session_id", "query", "item_id", "action", "position")
        events[tuple(event[name] for name in names)] = event
    pairs = {(rng.choice(QUERIES[:5]), rng.choice([*ITEMS, "gone"])) for _ in range(judged)}
    grades = [{"query": q, "item_id": i, "grade": rng.choice([0.0, 0.1, 0.5, 0.7, 1.0])} for q, i in sorted(pairs)]
    return list(events.values()), grades


def assert_same(folder: Path, days: int, events, grades, config: ProfilesConfig) -> None:
    # One clear example, so that the stage has something to train on whatever the dice gave.
    sure = {"session_id": "sure", "query": "boots", "item_id": "i0", "action": "click"}
    events = [*events, {"event_time": START + timedelta(days=config.warmup_days, hours=1), **sure}]
    end = START + timedelta(days=days)
    write_shop(folder / "clean", START, end, ITEMS, events, grades)
    got, report = run(folder, config)
    want = Naive(START, end, ITEMS, events, grades, config)
    assert got["users"] == want.users()
    assert got["queries"] == want.queries()
    assert got["examples"] == [_close(row) for row in want.examples()]
    assert_requests(got["requests"], want.requests())
    assert_items(got["items"], want, config)
    for cut in (want.valid_start, want.test_start):
        cut_log = Naive(START, end, ITEMS, [e for e in events if e["event_time"] < cut], grades, config)
        assert cut_log.examples() == [e for e in want.examples() if e["event_time"] is None or e["event_time"] < cut]
    assert report["examples"]["train"] == sum(row["split"] == "train" for row in got["examples"])
    assert report["requests"]["test"] == sum(row["split"] == "test" for row in got["requests"])
    assert report["dropped"]["events"]["unknown_item"] == sum(e["item_id"] == "gone" for e in want.log)
    assert report["dropped"]["events"]["outside_window"] == len(events) - len(want.log)


def _close(row):
    """The row with its 32-bit columns compared as such."""
    loose = {name: pytest.approx(row[name], rel=1e-6) for name in ("weight", "gains", "hist_ages") if name in row}
    return {**row, **loose}


def assert_requests(got, want) -> None:
    ids = [row.pop("request_id") for row in got]
    assert [row["split"] for row in got] == sorted(row["split"] for row in got)
    assert len(set(ids)) == len(ids)
    assert ids == [i for _, i in sorted(zip((row["split"] for row in got), ids, strict=True))]

    def key(row):
        return (row["split"], row["source"], row["query"], str(row["event_time"]), str(row["relevant"]), str(row))

    assert sorted(got, key=key) == [_close(row) for row in sorted(want, key=key)]


def assert_items(got, want: Naive, config: ProfilesConfig) -> None:
    counts, queries, neighbours = want.item_counts(), want.item_queries(), want.item_neighbours()
    keys = [(row["item_id"], row["asof"]) for row in got]
    assert keys == sorted(counts)
    for key, row in zip(keys, got, strict=True):
        popularity, *numbers = counts[key]
        assert row["popularity"] == pytest.approx(popularity, abs=1e-4)
        assert [row["impressions"], row["clicks"], row["orders"]] == numbers
        assert is_top(row["queries"], row["query_weights"], queries.get(key, {}), config.item_queries), key
        assert is_top(row["co_items"], row["co_weights"], neighbours.get(key, {}), config.co_items), key


@settings(max_examples=5, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**9),
    days=st.integers(4, 7),
    size=st.sampled_from([0, 60, 250]),
    judged=st.sampled_from([0, 5, 40]),
    longer=st.booleans(),
    long_history=st.sampled_from([0, 1, 4]),
)
def test_random_shops(
    tmp_path_factory, seed: int, days: int, size: int, judged: int, longer: bool, long_history: int
) -> None:
    events, grades = random_shop(random.Random(seed), days, size, judged)
    shorter = {} if longer else {"history_length": 1, "co_window": 1}
    config = ProfilesConfig(**CONFIG | shorter | {"long_history": long_history})
    assert_same(tmp_path_factory.mktemp("shop"), days, events, grades, config)


def test_parts_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a day and slices of an item or two, with sessions that reach across days and splits."""
    rng = random.Random(11)
    events, grades = random_shop(rng, 7, 300, 20)
    for event in rng.sample(events, 100):
        event["session_id"] = "endless"
    config = ProfilesConfig(**CONFIG)
    assert_same(tmp_path, 7, events, grades, config)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "profiles").glob("*.parquet")}
    spans, slices = [], []
    for name, size in (("_PART_EVENTS", 60), ("_SPAN_EVENTS", 1), ("_RUN_EVENTS", 1)):
        monkeypatch.setattr(log, name, size)
    monkeypatch.setattr(build, "_SORTED_USERS", 2)
    monkeypatch.setattr(log, "_spans", _noted(log._spans, spans))
    monkeypatch.setattr(item_profiles, "_SLICE_ROWS", 100)
    monkeypatch.setattr(item_profiles, "_slices", _noted(item_profiles._slices, slices))
    build_profiles(tmp_path / "clean", tmp_path / "profiles", config)
    assert len(spans) == 7 and spans[0].reach > spans[3].stop
    assert len(slices) > 3
    assert {path.name: path.read_bytes() for path in (tmp_path / "profiles").glob("*.parquet")} == whole


def _noted(function, notes: list):
    def noting(*arguments):
        notes.extend(found := function(*arguments))
        return found

    return noting


@pytest.mark.parametrize("long_history", [0, 3])
def test_a_crowded_shop_crosses_the_blocks_of_histories_and_pairs(tmp_path: Path, long_history: int) -> None:
    """One shopper with hundreds of engagements: several blocks of entries, of any action and strong alone, and sessions
    that overlap."""
    rng = random.Random(5)
    events, grades = random_shop(rng, 6, 700, 20)
    for event in events:
        event["user_id"] = "ann"
    lengths = {"history_length": 2, "long_history": long_history, "co_window": 3}
    assert_same(tmp_path, 6, events, grades, ProfilesConfig(**CONFIG | lengths))


def test_blocks_are_large_enough_where_every_action_is_outdone(tmp_path: Path) -> None:
    """Click, cart and order in each session: of three entries (of two strong ones) one holds afterwards."""
    events = [
        {
            "event_time": START + timedelta(hours=3 * session + step),
            "session_id": f"s{session:02d}",
            "user_id": "ann",
            "query": "boots",
            "item_id": ITEMS[session % len(ITEMS)],
            "action": action,
        }
        for session in range(48)
        for step, action in enumerate(("click", "add_to_cart", "order"))
    ]
    assert_same(tmp_path, 6, events, [], ProfilesConfig(**CONFIG | {"history_length": 2, "long_history": 3}))

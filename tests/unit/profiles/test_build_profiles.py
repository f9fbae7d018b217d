"""The stage on shops of a few rows: what leaks nothing, what is dropped, what is an error."""

import hashlib
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from naive_profiles import run, write_shop
from pydantic import ValidationError

from mrse.config import ProfilesConfig
from mrse.data import contract
from mrse.errors import ConfigError, DataError
from mrse.profiles import tables
from mrse.profiles.build import build_profiles
from mrse.profiles.engine import duckdb
from mrse.profiles.split import split_window

START = datetime(2026, 3, 1, tzinfo=UTC)
END = START + timedelta(days=6)  # warm-up day 0, training days 1 to 3, validation day 4, test day 5
CONFIG = ProfilesConfig(warmup_days=1, refresh_days=2, valid_days=1, test_days=1, threads=1)
ITEMS = ["a", "b", "c", "d", "e"]
SCHEMAS = {
    "users": tables.USERS,
    "items": tables.ITEMS,
    "examples": tables.EXAMPLES,
    "requests": tables.REQUESTS,
    "queries": tables.QUERIES,
}


def event(day: float, session: str, query: str, item: str, action: str, user: str | None = "ann", **more):
    time = START + timedelta(days=day)
    names = {"event_time": time, "session_id": session, "user_id": user, "query": query, "item_id": item}
    return {**names, "action": action, **more}


def query_of(part: str, skip: int = 0, config: ProfilesConfig = CONFIG) -> str:
    """A query whose hash falls into this part."""
    test, held_out = config.judged_test_share, config.judged_test_share + config.judged_valid_share
    low, high = {"test": (0, test), "valid": (test, held_out), "train": (held_out, 1)}[part]
    places = ((f"q{n}", int(hashlib.md5(f"q{n}".encode()).hexdigest()[:8], 16) / 16**8) for n in range(1000))
    return [query for query, place in places if low <= place < high][skip]


def build(tmp_path: Path, events, grades=(), config: ProfilesConfig = CONFIG):
    write_shop(tmp_path / "clean", START, END, ITEMS, list(events), list(grades))
    return run(tmp_path, config)


def test_the_future_never_shows_where_it_would_be_rewarded(tmp_path: Path) -> None:
    """After each label the shopper clicks the very item, with the very query, in a later and in an overlapping session.

    Whoever lets those later events into the label's history or item profile hands the model its answer.
    """
    past = [event(0.5, "past", "boots", "c", "order")]
    labels, answers = [], []
    for day in (1, 2, 3, 4):
        labels.append(event(day + 0.3, f"s{day}", "boots", "a", "click"))
        answers.append(event(day + 0.2, f"s{day}", "boots", "b", "impression"))  # the session starts here
        answers.append(event(day + 0.25, f"overlap{day}", "boots", "a", "click", position=1))
        answers.append(event(day + 0.4, f"later{day}", "boots", "a", "order"))
    got, _ = build(tmp_path, [*past, *labels, *answers])
    for row in got["examples"]:
        if row["session_id"] != "s1":
            continue
        assert row["hist_items"] == ["c"]
        assert row["hist_ages"] == [pytest.approx(0.8 * 24)]
        assert row["profile_asof"] == START + timedelta(days=1)
    first = {row["item_id"]: row for row in got["items"] if row["asof"] == START + timedelta(days=1)}
    assert set(first) == {"c"}, "only the warm-up day lies before the first cut"


def steady_log():
    days = [number / 4 for number in range(24)]
    log = [
        event(day, f"s{number // 3}", "boots", ITEMS[number % 4], ("click", "order")[number % 2], f"u{number % 2}")
        for number, day in enumerate(days)
    ]
    return log + [{**row, "action": "impression", "relevance": 0.1, "item_id": "e"} for row in log]


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory):
    return build(tmp_path_factory.mktemp("whole"), steady_log())[0]


@pytest.mark.parametrize("days", [4, 5])
def test_what_happens_later_changes_nothing_earlier(tmp_path: Path, whole_log, days: int) -> None:
    """Cut the log where the validation or test days start: sessions run across it, yet nothing before it changes."""
    cut = START + timedelta(days=days)
    short, _ = build(tmp_path, [row for row in steady_log() if row["event_time"] < cut])
    early = [row for row in whole_log["examples"] if row["event_time"] < cut]
    assert early == short["examples"] and any(row["hard_negatives"] for row in early)
    for rows in (whole_log["items"], short["items"]):
        assert any(row["asof"] <= cut for row in rows)
    assert [r for r in whole_log["items"] if r["asof"] <= cut] == [r for r in short["items"] if r["asof"] <= cut]


@pytest.fixture(scope="module")
def four_shoppers(tmp_path_factory):
    """Shoppers that share a log but no session, query or fate."""
    log = [
        # ann has two devices: when the laptop's session starts the phone's click is known, its order is not.
        event(1.0, "phone", "boots", "a", "click", "ann"),
        event(1.1, "laptop", "boots", "b", "click", "ann"),
        event(1.2, "phone", "boots", "a", "order", "ann"),
        event(1.3, "evening", "boots", "c", "click", "ann"),
        # bob clicks three items in one session
        *(event(1 + minute / 1440, "one", "boots", item, "click", "bob") for minute, item in enumerate("abc")),
        # cem starts two sessions at one instant
        event(1, "x", "boots", "a", "click", "cem"),
        event(1, "y", "boots", "b", "click", "cem"),
        # dan comes back on the test day, twice
        event(1.0, "old", "boots", "e", "click", "dan"),
        event(5.4, "new", "hat", "d", "click", "dan"),
        event(5.5, "s", "boots", "a", "impression", "dan", position=1, propensity=0.8),
        event(5.5, "s", "boots", "b", "impression", "dan", position=2, propensity=0.4),
        event(5.6, "s", "boots", "b", "click", "dan", position=2),
        event(5.7, "s", "boots", "b", "order", "dan"),
        event(5.6, "no click", "boots", "a", "impression", "dan"),
        event(4.5, "v", "boots", "b", "click", user=None),
    ]
    return build(tmp_path_factory.mktemp("shoppers"), log)[0]


def pasts(got, user: str):
    return {row["session_id"]: row["hist_items"] for row in got["examples"] if row["user_id"] == user}


def test_a_session_sees_nothing_of_itself(four_shoppers) -> None:
    rows = [row for row in four_shoppers["examples"] if row["user_id"] == "bob"]
    assert [row["hist_items"] for row in rows] == [[], [], []]


def test_an_event_at_the_instant_the_session_starts_is_not_its_past(four_shoppers) -> None:
    assert pasts(four_shoppers, "cem") == {"x": [], "y": []}


def test_a_click_counts_until_the_order_that_outdoes_it(four_shoppers) -> None:
    actions = {row["session_id"]: row["hist_actions"] for row in four_shoppers["examples"] if row["user_id"] == "ann"}
    past = pasts(four_shoppers, "ann")
    assert (past["laptop"], actions["laptop"]) == (["a"], ["click"])
    assert (past["evening"], actions["evening"]) == (["a", "b"], ["order", "click"])
    assert four_shoppers["users"][0] == {
        "user_id": "ann",
        "hist_items": ["c", "a", "b"],
        "hist_actions": ["click", "order", "click"],
        "hist_times": [START + timedelta(days=day) for day in (1.3, 1.2, 1.1)],
        "events": 4,
    }


CLICKS = [event(day, f"s{day}", "boots", item, "click") for day, item in ((2, "b"), (3, "c"), (4, "d"))]


@pytest.mark.parametrize(
    ("old", "long_history", "older"),
    [
        ([(0.5, "x", "a", "order")], 0, []),
        ([(0.5, "x", "a", "order")], 1, [("a", "order", 0.5)]),
        ([(0.5, "x", "a", "click")], 1, []),
        ([(0.5, "x", "a", "add_to_cart"), (0.75, "y", "a", "add_to_cart")], 1, [("a", "add_to_cart", 0.75)]),
        # at one instant: by item
        ([(0.5, "x", "e", "order"), (0.5, "x", "a", "order")], 1, [("a", "order", 0.5)]),
        # outdone before the session: once, as an order; by an event at its start or later: still in the cart
        ([(0.5, "x", "a", "add_to_cart"), (1, "x", "a", "order")], 2, [("a", "order", 1)]),
        ([(0.5, "x", "a", "add_to_cart"), (5, "x", "a", "order")], 2, [("a", "add_to_cart", 0.5)]),
        ([(0.5, "x", "a", "add_to_cart"), (5.2, "x", "a", "order")], 2, [("a", "add_to_cart", 0.5)]),
    ],
)
def test_old_carts_and_orders_outlive_newer_clicks(tmp_path: Path, old, long_history: int, older) -> None:
    """Three clicks later, of which a history of two keeps two; a request at the start of day 5."""
    config = CONFIG.model_copy(update={"history_length": 2, "long_history": long_history})
    log = [event(day, session, "boots", item, action) for day, session, item, action in old]
    got, _ = build(tmp_path, [*log, *CLICKS, event(5, "now", "boots", "e", "click")], config=config)
    (row,) = (row for row in got["requests"] if row["relevant"] == ["e"])
    wanted = [("d", "click", 4), ("c", "click", 3), *older]
    assert list(zip(row["hist_items"], row["hist_actions"], strict=True)) == [entry[:2] for entry in wanted]
    assert row["hist_ages"] == [pytest.approx((5 - day) * 24) for *_, day in wanted]


def test_a_cart_among_the_newest_is_not_told_twice(tmp_path: Path) -> None:
    log = [event(1, "s1", "boots", "a", "order"), event(2, "s2", "boots", "b", "add_to_cart"), *CLICKS[1:]]
    got, _ = build(tmp_path, log, config=CONFIG.model_copy(update={"history_length": 3, "long_history": 5}))
    assert got["users"][0]["hist_items"] == ["d", "c", "b", "a"]
    assert got["users"][0]["hist_actions"] == ["click", "click", "add_to_cart", "order"]


def test_requests_hold_what_was_shown_and_frozen_profiles(four_shoppers) -> None:
    valid, *test = sorted(four_shoppers["requests"], key=lambda row: row["event_time"])
    assert (valid["split"], valid["user_id"], valid["hist_items"]) == ("valid", None, [])
    assert valid["profile_asof"] == START + timedelta(days=3)
    assert [row["query"] for row in test] == ["hat", "boots"], "a session without a click is no request"
    row = test[1]
    assert (row["relevant"], row["gains"], row["shown"]) == (["b"], [3.0], ["a", "b"])
    assert (row["shown_positions"], row["shown_propensities"]) == ([1, 2], [0.8, 0.4])
    assert row["shown_actions"] == ["impression", "order"]
    assert (row["hist_items"], row["event_time"]) == (["d", "e"], START + timedelta(days=5.5)), (
        "a test day's past is live"
    )
    assert row["profile_asof"] == START + timedelta(days=5)


def shown_and_clicked(query: str):
    return [
        event(1.0, query, query, "a", "impression", position=1, relevance=0.9),  # skipped above the click
        event(1.0, query, query, "b", "impression", position=2, relevance=0.1),  # of low relevance
        event(1.0, query, query, "c", "impression", position=3, relevance=0.1),
        event(1.0, query, query, "d", "impression", position=4, relevance=0.9),  # below the click: nobody looked
        event(1.1, query, query, "c", "click", position=3),
    ]


def test_hard_negatives_are_judged_low_then_of_low_relevance_then_skipped(tmp_path: Path) -> None:
    low, high = query_of("train"), query_of("train", skip=1)
    grades = [{"query": low, "item_id": "e", "grade": 0.0}, {"query": high, "item_id": "b", "grade": 1.0}]
    got, _ = build(tmp_path, shown_and_clicked(low) + shown_and_clicked(high), grades)
    negatives = {row["query"]: row["hard_negatives"] for row in got["examples"] if row["session_id"]}
    assert negatives == {low: ["e", "b", "a"], high: ["a"]}, "judged relevant is never a negative"


def test_grades_of_held_out_queries_steer_nothing_in_training(tmp_path: Path) -> None:
    queries = [query_of("valid"), query_of("test")]
    log = [row for query in queries for row in shown_and_clicked(query)]
    results = []
    for name, grade in (("low", 0.0), ("high", 1.0)):
        grades = [{"query": query, "item_id": item, "grade": grade} for query in queries for item in "ab"]
        got, _ = build(tmp_path / name, log, grades)
        results.append([row for row in got["examples"] if row["split"] == "train"])
    assert results[0] == results[1]
    assert [row["hard_negatives"] for row in results[0]] == [[], []]


def test_a_shop_with_judgments_only(tmp_path: Path) -> None:
    queries = {part: query_of(part) for part in ("train", "valid", "test")}
    grades = [
        {"query": query, "item_id": item, "grade": grade}
        for query in queries.values()
        for item, grade in (("a", 1.0), ("b", 0.8), ("c", 0.5), ("d", 0.0), ("gone", 1.0))
    ]
    got, report = build(tmp_path, [], grades)
    assert [(row["split"], row["query"], row["item_id"]) for row in got["examples"]] == [
        ("train", queries["train"], "a"),
        ("train", queries["train"], "b"),
        ("valid", queries["valid"], "a"),
        ("valid", queries["valid"], "b"),
    ]
    example = got["examples"][1]
    assert example["weight"] == pytest.approx(0.8) and example["hard_negatives"] == ["d"]
    absent = ("event_time", "session_id", "user_id", "action", "profile_asof")
    assert all(example[name] is None for name in absent) and example["hist_items"] == []
    assert [(row["split"], row["source"], row["relevant"]) for row in got["requests"]] == [
        ("test", "judgments", ["a", "b", "c", "d"]),
        ("valid", "judgments", ["a", "b", "c", "d"]),
    ]
    assert got["users"] == got["items"] == got["queries"] == []
    assert report["dropped"]["judgments"] == {"unknown_item_or_no_query": 3, "neither_positive_nor_negative": 1}


def test_every_event_is_accounted_for(tmp_path: Path) -> None:
    log = [
        event(-1, "early", "boots", "a", "click"),
        event(6, "late", "boots", "a", "click"),
        event(0.5, "warm", "boots", "a", "click"),
        event(1, "s", "boots", "gone", "click"),
        event(1, "s", " ", "a", "click"),
        event(1, "s", "boots", "a", "click"),
        event(1, "s", "boots", "a", "order"),
        event(1, "s", "boots", "b", "stare"),
    ]
    got, report = build(tmp_path, log)
    assert report["read"] == {"events": 8, "judgments": 0}
    assert report["dropped"]["events"] == {"outside_window": 2, "unknown_action": 1, "unknown_item": 1}
    assert report["dropped"]["engagements"] == {"warm_up": 1, "no_query": 1, "weaker_or_repeated": 1}
    assert report["examples"] == {"train": 1, "valid": 0} and len(got["examples"]) == 1
    assert got["examples"][0]["action"] == "order" and got["examples"][0]["weight"] == 3.0
    assert report["rows"] == {name: len(rows) for name, rows in got.items()}


def test_no_training_example_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable training example.*of 2 events.*warm_up 1") as error:
        build(tmp_path, [event(0.5, "s", "boots", "a", "click"), event(2, "s", "boots", "gone", "click")])
    assert "unknown_item 1" in str(error.value)


def test_types_order_and_bytes(tmp_path: Path) -> None:
    log = [
        event(number / 7, f"s{number // 2}", "boots", ITEMS[number % 5], ("click", "impression", "order")[number % 3])
        for number in range(40)
    ]
    got, _ = build(tmp_path, log)
    first = {name: (tmp_path / "profiles" / f"{name}.parquet").read_bytes() for name in got}
    build_profiles(tmp_path / "clean", tmp_path / "profiles", CONFIG.model_copy(update={"threads": 2}))
    for name, before in first.items():
        path = tmp_path / "profiles" / f"{name}.parquet"
        assert path.read_bytes() == before, f"{name}: another run, other bytes"
        assert pq.read_schema(path).equals(SCHEMAS[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "profiles"], "nothing is left behind"


def test_extra_columns_that_come_and_go_are_ignored(tmp_path: Path) -> None:
    write_shop(tmp_path / "clean", START, END, ITEMS, [event(1, "s", "boots", "a", "click")], [])
    path = contract.event_files(tmp_path / "clean")[0]
    later = path.parent.parent / "dt=2026-03-03" / path.name
    table = pq.read_table(path, partitioning=None)
    contract.write_parquet(table.append_column("device", [["phone"]]), later)
    assert run(tmp_path, CONFIG)[1]["read"]["events"] == 2


def test_broken_event_files_are_one_message(tmp_path: Path) -> None:
    write_shop(tmp_path / "clean", START, END, ITEMS, [event(1, "s", "boots", "a", "click")], [])
    (path,) = contract.event_files(tmp_path / "clean")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"part-0\.parquet: not a readable Parquet file"):
        build_profiles(tmp_path / "clean", tmp_path / "profiles", CONFIG)
    table = pq.read_table(BytesIO(whole)).drop_columns(["relevance", "position"])
    contract.write_parquet(table, path)
    with pytest.raises(DataError, match="events lacks column 'position', 'relevance'"):
        build_profiles(tmp_path / "clean", tmp_path / "profiles", CONFIG)


def test_a_file_that_goes_away_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"build_profiles: .*gone\.parquet"), duckdb(CONFIG, tmp_path) as engine:
        engine.read([tmp_path / "gone.parquet"], contract.EVENTS)


def test_too_little_memory_is_one_message(tmp_path: Path) -> None:
    log = [event(1 + number / 40_000, f"s{number}", "boots", "a", "click", f"u{number}") for number in range(20_000)]
    with pytest.raises(ConfigError, match="memory_limit 1MB is too little"):
        build(tmp_path, log, config=CONFIG.model_copy(update={"memory_limit": "1MB"}))


def test_the_split_and_its_cuts() -> None:
    split = split_window(START, END, CONFIG)
    days = [(time - split.start) / timedelta(days=1) for time in split.cuts]
    assert days == [1, 3, 5, 6]
    assert split.valid_asof == split.start + timedelta(days=3)
    short = CONFIG.model_copy(update={"warmup_days": 4})
    with pytest.raises(DataError, match="leaves no training day"):
        split_window(START, END, short)
    with pytest.raises(DataError, match="whole UTC days"):
        split_window(START, END + timedelta(hours=1), CONFIG)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"negative_grade": 0.7, "positive_grade": 0.7}, "negative_grade must be below"),
        ({"judged_valid_share": 0.6, "judged_test_share": 0.6}, "more than 1"),
        ({"action_weights": {"click": 1.0}}, "no weight for add_to_cart, order"),
        ({"memory_limit": "plenty"}, "memory_limit"),
    ],
)
def test_impossible_settings(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProfilesConfig(**keys)

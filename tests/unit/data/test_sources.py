"""Taking a snapshot: the shop's own files in every shape, the window, and what a killed run leaves behind."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zipfile import ZipFile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrse import config
from mrse.data import contract, sources
from mrse.data.contract import SnapshotMeta, read_items, read_judgments
from mrse.data.images import ImageStore, decode
from mrse.errors import DataError

END = datetime(2026, 3, 15, tzinfo=UTC)
START = END - timedelta(days=3)
TICK = timedelta(microseconds=1)
HOUR = timedelta(hours=1)


def params(**files: str | None) -> config.Params:
    return config.parse(
        {
            "snapshot": {"source": "files", "end": END.date(), "days": 3, "files": files},
            "build_profiles": {"warmup_days": 1, "valid_days": 0, "test_days": 1},
        }
    )


def events(times: Sequence[datetime | None], **columns: Any) -> pa.Table:
    n = len(times)
    text = {name: pa.array([f"{name}{i}" for i in range(n)]) for name in ("session_id", "query", "item_id")}
    return pa.table(
        {"event_time": pa.array(list(times), contract.TIME), **text, "action": pa.array(["click"] * n)} | columns
    )


def items(**columns: Any) -> pa.Table:
    return pa.table({"item_id": ["b", "a"], "title": ["blue", "red"]} | columns)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A workspace with two items and four events: one before the window, two in it, one after it."""
    pq.write_table(items(), tmp_path / "items.parquet")
    times = [START + HOUR, START - HOUR, START + 30 * HOUR, END]
    pq.write_table(events(times), tmp_path / "events.parquet")
    return tmp_path


def take(workspace: Path, items: str = "items.parquet", **files: str | None) -> SnapshotMeta:
    return sources.take_snapshot(params(items=items, **files), workspace)


def event_rows(workspace: Path) -> list[dict[str, Any]]:
    files = contract.event_files(workspace / "data/snapshot")
    return [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]


def all_bytes(workspace: Path) -> dict[str, bytes]:
    folder = workspace / "data/snapshot"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_three_tables_come_out_sorted_and_described(shop: Path) -> None:
    grades = pa.table({"query": ["red", "blue"], "item_id": ["a", "b"], "grade": pa.array([1, 0], pa.int8())})
    pq.write_table(grades, shop / "grades.parquet")
    meta = take(shop, events="events.parquet", judgments="grades.parquet")
    folder = shop / "data/snapshot"
    assert contract.read_meta(folder) == meta
    assert meta.rows == {"items": 2, "events": 2, "judgments": 2}
    assert (meta.source, meta.start, meta.end, meta.simulated) == ("files", START, END, False)
    assert meta.fingerprint == contract.fingerprint(contract.table_files(folder))
    assert read_items(folder).column("item_id").to_pylist() == ["a", "b"]
    assert read_judgments(folder).to_pylist() == [
        {"query": "blue", "item_id": "b", "grade": 0.0},
        {"query": "red", "item_id": "a", "grade": 1.0},
    ]
    assert [str(path.relative_to(folder)) for path in contract.event_files(folder)] == [
        "events/dt=2026-03-12/part-0.parquet",
        "events/dt=2026-03-13/part-0.parquet",
    ]


def test_a_shop_is_the_same_on_all_its_days_and_unlike_others() -> None:
    def shop(source: str, day: int = 15, table: str = "a.parquet", **marketplace: Any) -> str:
        snapshot = {"source": source, "end": date(2026, 3, day), "files": {"items": table}}
        return sources.shop_of(config.parse({"snapshot": snapshot, "marketplace": marketplace}))

    shops = [shop("files"), shop("files", table="b.parquet"), shop("marketplace"), shop("marketplace", seed=8)]
    shops += [shop("marketplace", catalogue="a.parquet"), shop("marketplace", items=6000)]
    assert len(set(shops)) == len(shops)
    assert [shop("files", 16), shop("marketplace", 16)] == [shops[0], shops[2]]
    daily = [shop("files", table=f"s3://shop/{day}/items") for day in ("2026-03-15", "20260316")]
    assert daily[0] == daily[1]


def test_a_snapshot_says_whose_it_is(shop: Path) -> None:
    assert take(shop).shop == sources.shop_of(params(items="items.parquet"))


def test_the_window_holds_its_first_instant_and_not_its_last(shop: Path) -> None:
    edges = [START - TICK, START, END - TICK, END]
    pq.write_table(events(edges), shop / "events.parquet")
    take(shop, events="events.parquet")
    assert [row["event_time"] for row in event_rows(shop)] == [START, END - TICK]


def test_days_are_cut_in_utc_whatever_the_zone_of_the_shop(shop: Path) -> None:
    midnight_in_berlin = datetime(2026, 3, 12, 23, 30, tzinfo=UTC)
    local = events([midnight_in_berlin])
    local = local.set_column(0, "event_time", local.column("event_time").cast(pa.timestamp("ns", "Europe/Berlin")))
    pq.write_table(local, shop / "events.parquet")
    take(shop, events="events.parquet")
    assert [path.parent.name for path in contract.event_files(shop / "data/snapshot")] == ["dt=2026-03-12"]
    assert event_rows(shop)[0]["event_time"] == midnight_in_berlin


def test_events_are_sorted_by_their_keys_with_nulls_last(shop: Path) -> None:
    rows = events(
        [START + HOUR] * 5 + [START],
        session_id=["s2", "s1", "s1", "s1", "s1", "s9"],
        position=pa.array([1, None, 10, 2, 2, 1], pa.int64()),
        item_id=["i", "i", "i", "j", "i", "i"],
    )
    pq.write_table(rows, shop / "events.parquet")
    take(shop, events="events.parquet")
    assert [(row["session_id"], row["position"], row["item_id"]) for row in event_rows(shop)] == [
        ("s9", 1, "i"),
        ("s1", 2, "i"),
        ("s1", 2, "j"),
        ("s1", 10, "i"),
        ("s1", None, "i"),
        ("s2", 1, "i"),
    ]


def test_rows_that_tie_on_the_keys_give_the_same_bytes_in_any_order(shop: Path) -> None:
    rows = events([START] * 40, session_id=["s"] * 40, item_id=["i"] * 40, note=[str(i * 7 % 40) for i in range(40)])
    pq.write_table(rows, shop / "events.parquet")
    take(shop, events="events.parquet")
    before = all_bytes(shop)
    pq.write_table(rows.take(list(range(39, -1, -1))), shop / "events.parquet", row_group_size=7)
    take(shop, events="events.parquet")
    assert all_bytes(shop) == before
    assert len(event_rows(shop)) == 40


def hive(folder: Path, rows: pa.Table, days: list[str]) -> None:
    for place, day in enumerate(days):
        (folder / f"dt={day}").mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.slice(place, 1), folder / f"dt={day}" / f"{place}.parquet")


def test_flat_hive_folder_and_bucket_give_the_same_bytes(
    shop: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "shop_of", lambda params: "one shop")  # else its items' address would tell
    take(shop, events="events.parquet")
    flat = all_bytes(shop)

    rows = pq.read_table(shop / "events.parquet")
    hive(shop / "hive", rows, [f"{time:%Y-%m-%d}" for time in rows.column("event_time").to_pylist()])
    (shop / "hive" / "_SUCCESS").touch()
    (shop / "hive" / "dt=2026-03-12" / ".0.parquet.crc").write_bytes(b"crc")
    take(shop, events="hive")
    assert all_bytes(shop) == flat

    with_dt = rows.append_column("dt", pa.array(["2026-03-12"] * rows.num_rows))
    (shop / "parts" / "deep").mkdir(parents=True)
    pq.write_table(with_dt.slice(2), shop / "parts" / "deep" / "1.parquet")
    pq.write_table(with_dt.slice(0, 2), shop / "parts" / "2.pq")
    take(shop, events="parts/../parts/")
    assert all_bytes(shop) == flat

    store = fsspec.filesystem("s3")
    store.put(str(shop / "hive"), f"{bucket}/events", recursive=True)
    store.put(str(shop / "items.parquet"), f"{bucket}/items.parquet")
    take(shop, items=f"{bucket}/items.parquet", events=f"{bucket}/events")
    assert all_bytes(shop) == flat

    shutil.make_archive(str(shop / "shop"), "zip", shop / "hive")
    take(shop, items=str(shop / "items.parquet"), events="zip://::shop.zip")
    assert all_bytes(shop) == flat


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "Could not connect to the endpoint URL"),
        ("AWS_ACCESS_KEY_ID", None, "Unable to locate credentials"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_one_message(
    shop: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, why: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable)
    with pytest.raises(DataError, match=f"^items: cannot list {bucket}/items: {why}"):
        take(shop, items=f"{bucket}/items")


def test_a_bucket_or_table_that_is_not_there_is_named(shop: Path, bucket: str) -> None:
    for address in (f"{bucket}/nowhere", "s3://no-such-bucket/items"):
        with pytest.raises(DataError, match=f"items: {address}: no such file or folder"):
            take(shop, items=address)


def test_folders_of_other_days_are_not_even_opened_but_their_neighbours_are(shop: Path) -> None:
    days = [START, END - TICK]
    hive(shop / "hive", events(days), ["2026-03-11", "2026-03-15"])  # the shop's own zone shifts its folders
    for day in ("2026-03-10", "2026-03-16"):
        (shop / "hive" / f"dt={day}").mkdir()
        (shop / "hive" / f"dt={day}" / "p.parquet").write_bytes(b"broken")
    assert take(shop, events="hive").rows["events"] == 2
    (shop / "hive" / "dt=2026-03-13").mkdir()
    (shop / "hive" / "dt=2026-03-13" / "p.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"dt=2026-03-13/p\.parquet: not a readable Parquet"):
        take(shop, events="hive")


def test_row_groups_outside_are_skipped_only_on_proof(shop: Path) -> None:
    """Nulls in a row group, or no statistics at all, leave nothing proven."""
    times = [START - HOUR, None, START, START + HOUR]
    for statistics in (True, False):
        pq.write_table(events(times), shop / "events.parquet", row_group_size=2, write_statistics=statistics)
        assert take(shop, events="events.parquet").rows["events"] == 3
    files = contract.event_files(shop / "data/snapshot")
    assert [path.parent.name for path in files] == ["dt=2026-03-12", f"dt={contract.NULL_DAY}"]
    assert event_rows(shop)[-1]["event_time"] is None


def test_no_event_in_the_window_tells_what_there_is(shop: Path) -> None:
    pq.write_table(events([START - HOUR, END]), shop / "events.parquet")
    with pytest.raises(DataError, match="no event in") as caught:
        take(shop, events="events.parquet")
    for part in ("2026-03-12", "2026-03-15", "2026-03-11 23:00:00", "snapshot.end"):
        assert part in str(caught.value)
    hive(shop / "hive", events([END + 99 * HOUR]), ["2026-03-19"])
    with pytest.raises(DataError, match=r"it holds 2026-03-19 03:00:00\+00:00 to"):
        take(shop, events="hive")
    pq.write_table(events([None]), shop / "events.parquet")
    with pytest.raises(DataError, match="do not tell"):
        take(shop, events="events.parquet")


def test_a_shop_without_events_or_judgments(shop: Path) -> None:
    meta = take(shop)
    assert meta.rows == {"items": 2, "events": 0, "judgments": 0}
    assert not (shop / "data/snapshot/events").exists()
    assert read_judgments(shop / "data/snapshot").num_rows == 0


def test_items_are_taken_as_of_the_end(shop: Path) -> None:
    history = [
        ("a", "old", START),
        ("a", "current", END - TICK),
        ("a", "future", END),
        ("b", "undated", None),
        ("b", "dated", START),
        ("c", "tie 1", START),
        ("c", "tie 2", START),
        ("d", "never dated 1", None),
        ("d", "never dated 2", None),
        ("e", "only in the future", END + HOUR),
        (None, "no id 1", START),
        (None, "no id 2", None),
    ]
    ids, titles, times = (list(column) for column in zip(*history, strict=True))
    table = pa.table({"item_id": ids, "title": titles, "updated_at": pa.array(times, contract.TIME)})
    pq.write_table(table, shop / "items.parquet")
    assert take(shop).rows["items"] == 8
    assert read_items(shop / "data/snapshot").column("title").to_pylist() == [
        "current",
        "dated",
        "tie 1",
        "tie 2",
        "never dated 1",
        "never dated 2",
        "no id 1",
        "no id 2",
    ]


def test_no_item_before_the_end_is_an_error(shop: Path) -> None:
    pq.write_table(items(updated_at=pa.array([END, END], contract.TIME)), shop / "items.parquet")
    with pytest.raises(DataError, match="no row with updated_at before 2026-03-15"):
        take(shop)


def test_extra_columns_of_any_common_type_are_kept(shop: Path) -> None:
    extras = {
        "brand": pa.array(["x", None]).dictionary_encode(),
        "tags": pa.array([["n"], []], pa.list_(pa.large_string())),
        "size": pa.array([{"w": 1.5}, None]),
        "launch": pa.array([date(2026, 1, 1), None]),
        "seen": pa.array([START, None], pa.timestamp("ns", "Europe/Berlin")),
        "blob": pa.array([b"\xff", None]),
        'odd "name"': pa.array([True, None]),
    }
    pq.write_table(items(**extras), shop / "items.parquet")
    take(shop)
    kept = read_items(shop / "data/snapshot").to_pylist()
    assert [row["item_id"] for row in kept] == ["a", "b"]
    for name, values in extras.items():
        assert [row[name] for row in reversed(kept)] == values.to_pylist()


def test_an_extra_column_that_cannot_be_kept_is_named(shop: Path) -> None:
    pq.write_table(items(pause=pa.array([1, 2], pa.duration("us"))), shop / "items.parquet")
    with pytest.raises(DataError, match="pause"):
        take(shop)


def test_files_of_one_table_may_grow_columns_but_not_contradict(shop: Path) -> None:
    (shop / "many").mkdir()
    pq.write_table(pa.table({"item_id": [1], "title": ["x"], "stock": [1]}), shop / "many" / "1.parquet")
    pq.write_table(pa.table({"item_id": ["2"], "title": ["y"], "stock": [0.5]}), shop / "many" / "2.parquet")
    pq.write_table(pa.table({"item_id": ["3"], "title": ["z"], "price": [9]}), shop / "many" / "3.parquet")
    take(shop, items="many")
    kept = read_items(shop / "data/snapshot")
    assert kept.column("stock").to_pylist() == [1.0, 0.5, None]
    assert kept.column("price").to_pylist() == [None, None, 9.0]
    pq.write_table(pa.table({"item_id": ["4"], "title": ["z"], "stock": ["many"]}), shop / "many" / "4.parquet")
    with pytest.raises(DataError, match=r"4\.parquet: column 'stock' has type string, but double in .*1\.parquet"):
        take(shop, items="many")


def spoil(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("item_id,title\n1,shirt\n", encoding="utf-8")
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "damaged":
        path.write_bytes(whole[:4] + bytes(len(whole) // 4) + whole[4 + len(whole) // 4 :])
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "folder of csv":
        path.mkdir()
        (path / "a.csv").touch()
    elif kind == "delta table":
        (path / "_delta_log").mkdir(parents=True)
        (path / "_delta_log" / "0.json").touch()
        (path / "p.parquet").write_bytes(whole)
    elif kind == "no rows":
        pq.write_table(items().slice(0, 0), path)


@pytest.mark.parametrize(
    ("kind", "tells"),
    [
        ("missing", "no such file"),
        ("empty", "not a readable Parquet"),
        ("text", "not a readable Parquet"),
        ("truncated", "not a readable Parquet"),
        ("damaged", "not a readable Parquet"),
        ("empty folder", "it holds nothing"),
        ("folder of csv", "a.csv"),
        ("delta table", "Delta table"),
        ("no rows", "has no row"),
    ],
)
def test_a_broken_items_file_is_one_clear_error(shop: Path, kind: str, tells: str) -> None:
    spoil(shop / "items.parquet", kind)
    with pytest.raises(DataError, match=tells) as caught:
        take(shop)
    assert str(shop / "items.parquet") in str(caught.value)
    assert not (shop / "data/snapshot").exists()


@pytest.mark.parametrize("uri", ["nosuch://items", "zip://::items.parquet", "zip://items.parquet::nowhere.zip"])
def test_an_address_that_cannot_be_opened_is_a_data_error(shop: Path, uri: str) -> None:
    with pytest.raises(DataError, match=r"items: cannot (open|list)"):
        take(shop, items=uri)


@pytest.mark.parametrize(
    ("table", "rows", "tells"),
    [
        ("events", events([START]).drop_columns(["query"]), "lacks the required column 'query'"),
        ("events", events([START]).set_column(0, "event_time", pa.array([datetime(2026, 3, 12)])), "time zone"),
        ("events", events([START], position=["1"]), "'position' has type string, wanted int32"),
        ("judgments", pa.table({"query": ["x"], "item_id": ["a"], "grade": ["good"]}), "'grade' has type string"),
        ("judgments", pa.table({"query": ["x"], "item_id": ["a"]}), "lacks the required column 'grade'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(shop: Path, table: str, rows: pa.Table, tells: str) -> None:
    pq.write_table(rows, shop / "bad.parquet")
    with pytest.raises(DataError, match=tells):
        take(shop, **{table: "bad.parquet"})


def test_row_level_faults_pass_on_to_validation(shop: Path) -> None:
    bad = events(
        [START] * 3,
        item_id=[None, "", "x"],
        action=["stare", None, "click"],
        position=pa.array([-5, 0, None], pa.int32()),
        relevance=[float("nan"), 7.0, -1.0],
    )
    pq.write_table(bad, shop / "events.parquet")
    pq.write_table(items(price=[float("nan"), float("-inf")]), shop / "items.parquet")
    assert take(shop, events="events.parquet").rows == {"items": 2, "events": 3, "judgments": 0}


@pytest.mark.parametrize(
    ("given", "kept"),
    [("pictures", "pictures"), ("pictures.zip", "zip://::pictures.zip"), ("memory://shop", "memory://shop")],
)
def test_the_image_root_is_kept_as_a_prefix(shop: Path, given: str, kept: str) -> None:
    (shop / "pictures").mkdir()
    shutil.make_archive(str(shop / "pictures"), "zip", shop / "pictures")
    assert take(shop, image_root=given).image_root == kept


def test_a_wrong_image_root_stops_the_snapshot(shop: Path) -> None:
    with pytest.raises(DataError, match="image_root"):
        take(shop, image_root="nowhere")


def test_a_failed_run_leaves_the_old_snapshot_and_no_scratch(shop: Path) -> None:
    take(shop)
    before = all_bytes(shop)
    with pytest.raises(DataError):
        take(shop, events="nowhere")
    assert all_bytes(shop) == before
    assert [path.name for path in (shop / "data").iterdir()] == ["snapshot"]


def test_a_run_killed_between_its_moves_is_mended_by_the_next(shop: Path) -> None:
    take(shop)
    before = all_bytes(shop)
    (shop / "data/snapshot").rename(shop / "data/.snapshot.old")
    (shop / "data/.snapshot.tmp").mkdir()
    (shop / "data/.snapshot.tmp/half").touch()
    with pytest.raises(DataError):
        take(shop, events="nowhere")
    assert all_bytes(shop) == before


def test_a_new_snapshot_leaves_nothing_of_the_old(shop: Path) -> None:
    take(shop, events="events.parquet")
    take(shop)
    assert not (shop / "data/snapshot/events").exists()
    assert [path.name for path in (shop / "data").iterdir()] == ["snapshot"]


def market(**marketplace: object) -> config.Params:
    raw = {"source": "marketplace", "end": END.date(), "days": 3}
    split = {"warmup_days": 1, "valid_days": 0, "test_days": 1}
    sizes = {"items": 30, "shoppers": 10, "events_per_day": 60, "image_size": 16}
    return config.parse({"snapshot": raw, "build_profiles": split, "marketplace": sizes | marketplace})


def test_a_simulated_shop_goes_through_the_same_checks_and_says_what_it_is(tmp_path: Path) -> None:
    meta = sources.take_snapshot(market(), tmp_path)
    assert meta.simulated and "imulated" in meta.note
    assert meta.rows["items"] >= 30 and min(meta.rows.values()) > 0
    rows = event_rows(tmp_path)
    assert len(rows) == meta.rows["events"]
    assert all(START <= row["event_time"] < END and row["action"] in contract.ACTIONS for row in rows)
    store = ImageStore(meta.image_root, tmp_path)
    names = read_items(tmp_path / "data/snapshot").column("image").to_pylist()
    assert decode(store.read(next(filter(None, names))), 10_000).size == (16, 16)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["snapshot"]
    before = all_bytes(tmp_path)
    assert sources.take_snapshot(market(), tmp_path) == meta
    assert all_bytes(tmp_path) == before


def test_shoppers_over_a_given_catalogue_leave_its_items_and_pictures_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop").mkdir()
    pq.write_table(items(), tmp_path / "shop/items.parquet")
    shutil.make_archive(str(tmp_path / "shop/images"), "zip", tmp_path / "shop")
    seen: list[config.MarketplaceConfig] = []

    def simulate(given: config.MarketplaceConfig, start: datetime, end: datetime, folder: Path) -> None:
        seen.append(given)
        assert (start, end) == (START, END)
        pq.write_table(items(), folder / "items.parquet")
        pq.write_table(pa.table({"query": ["x"], "item_id": ["a"], "grade": [1.0]}), folder / "judgments.parquet")
        hive(folder / "events", events([START]), ["2026-03-12"])

    monkeypatch.setattr("mrse.data.marketplace.simulate", simulate)
    given = market(catalogue="shop/items.parquet", catalogue_images="shop/images.zip")
    meta = sources.take_snapshot(given, tmp_path)
    assert seen[0].catalogue == f"{tmp_path}/shop/items.parquet"
    assert meta.simulated and "items and pictures are real" in meta.note
    assert meta.image_root == "zip://::shop/images.zip"
    assert ZipFile(tmp_path / "data/snapshot/images.zip").namelist() == [], "later stages depend on it by name"
    with pytest.raises(DataError, match="image_root"):
        sources.take_snapshot(market(catalogue="shop/items.parquet", catalogue_images="nowhere.zip"), tmp_path)


LONG = pa.schema([*contract.EVENTS, ("note", pa.string())])


def sort_in_memory(folder: Path, limit: str) -> tuple[bytes, bool]:
    """Sort one day of 80,000 long rows, about 90 MB, within a limit; the file's bytes and whether DuckDB spilled."""
    random = Random(0)
    times = [START + timedelta(microseconds=random.randrange(10**9)) for _ in range(4000)]
    batches = [
        contract.conform(
            events(times, note=[random.randbytes(4).hex() * 125 for _ in times]).to_batches()[0], LONG, "x"
        )
        for _ in range(20)
    ]
    spill = folder / limit / "spill"
    spilled = False

    def watched(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        nonlocal spilled
        for batch in rows:
            spilled = spilled or (spill.exists() and any(spill.iterdir()))
            yield batch

    with closing(sources._Stage(folder / limit, limit)) as stage:
        stage.keep("day", LONG, iter(batches))
        rows = contract.write_parquet(watched(stage.sorted("day", "events", LONG)), folder / "day.parquet", LONG)
    assert rows == 80_000
    return (folder / "day.parquet").read_bytes(), spilled


def test_a_day_beyond_the_memory_limit_spills_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SORT_THREADS", 2)
    tight, spilled = sort_in_memory(tmp_path, "100MB")
    roomy, spilled_too = sort_in_memory(tmp_path, "2GB")
    assert (spilled, spilled_too) == (True, False)
    assert tight == roomy


def test_a_memory_limit_that_is_too_tight_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"snapshot\.memory_limit = 5MB"):
        sort_in_memory(tmp_path, "5MB")

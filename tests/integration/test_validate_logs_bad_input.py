"""Every kind of bad input has one documented result (docs/validation.md), and never a traceback.

The run stops with one clear message, rows are quarantined with a reason, or the report says what is missing.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mrse import config
from mrse.data.contract import EVENTS, ITEMS, JUDGMENTS, read_items
from mrse.data.sources import take_snapshot
from mrse.errors import MrseError, ValidationFailed
from mrse.validation import run
from mrse.validation.run import validate_logs

START = datetime(2025, 3, 1, tzinfo=UTC)
DAYS = 2
Row = dict[str, Any]


def _png(width: int = 4, height: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def _png_of_size(side: int) -> bytes:
    """A few bytes that claim to be a picture of `side` x `side` pixels."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return _png()[:12] + header + zlib.crc32(header).to_bytes(4, "big") + _png()[33:]


def _gif(frames: int) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", (4, 4), (60 * n, 0, 0)) for n in range(frames)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def item(item_id: str | None, **changes: Any) -> Row:
    row: Row = {
        "item_id": item_id,
        "title": "Blue cotton shirt",
        "category": "Clothes > Shirts",
        "price": 10.0,
        "image": None,
        "updated_at": START,
    }
    return row | changes


def event(session_id: str | None, **changes: Any) -> Row:
    row: Row = {
        "event_time": START + timedelta(hours=3),
        "session_id": session_id,
        "user_id": "u1",
        "query": "blue shirt",
        "item_id": "i00",
        "position": 1,
        "action": "impression",
        "relevance": 0.5,
        "propensity": 0.5,
    }
    return row | changes


def judgment(query: str | None, **changes: Any) -> Row:
    return {"query": query, "item_id": "i00", "grade": 1.0} | changes


@dataclass
class Shop:
    """A tiny good shop. A case changes the rows, the tables, or the files."""

    items: list[Row] = field(default_factory=lambda: [item(f"i{n:02d}", image=f"{n}.png") for n in range(12)])
    events: list[Row] = field(default_factory=lambda: list(_good_events()))
    judgments: list[Row] = field(default_factory=lambda: [judgment("red shoes", item_id="i01")])
    images: dict[str, bytes] = field(default_factory=lambda: {f"{n}.png": _png() for n in range(12)})
    tables: dict[str, pa.Table] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    has_events: bool = True

    def write(self, workspace: Path) -> config.Params:
        folder = workspace / "shop"
        (folder / "images").mkdir(parents=True)
        for name, data in self.images.items():
            (folder / "images" / name).write_bytes(data)
        for name, rows, schema in (
            ("items", self.items, ITEMS),
            ("events", self.events, EVENTS),
            ("judgments", self.judgments, JUDGMENTS),
        ):
            pq.write_table(self.tables.get(name, pa.Table.from_pylist(rows, schema)), folder / f"{name}.parquet")
        return config.parse(self.raw_params())

    def raw_params(self) -> dict[str, Any]:
        names = ("items", "events", "judgments") if self.has_events else ("items", "judgments")
        files = {name: f"shop/{name}.parquet" for name in names} | {"image_root": "shop/images"}
        return {
            "snapshot": {"source": "files", "end": "2025-03-03", "days": DAYS, "files": files},
            "build_profiles": {"warmup_days": 0, "valid_days": 0, "test_days": 1},
            "validate_logs": self.params,
            "services": {"state_dir": "state"},
        }

    def table(self, name: str) -> pa.Table:
        rows, schema = {"items": (self.items, ITEMS), "events": (self.events, EVENTS)}.get(
            name, (self.judgments, JUDGMENTS)
        )
        return pa.Table.from_pylist(rows, schema)


def _good_events() -> Iterator[Row]:
    for day in range(DAYS):
        for number in range(30):
            at = START + timedelta(days=day, minutes=30 * number)
            for place in range(1, 5):
                seen = event(
                    f"s{day}-{number}",
                    event_time=at + timedelta(seconds=place),
                    user_id=f"u{number}" if number % 5 else None,
                    item_id=f"i{(number + place) % 12:02d}",
                    position=place,
                )
                yield seen
                if place == 1:
                    yield seen | {"action": "click", "event_time": at + timedelta(seconds=20)}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSE_QUIET", "1")
    monkeypatch.delenv("MRSE_STATE_DIR", raising=False)


def run_stages(shop: Shop, workspace: Path, damage: Callable[[Path], None] | None = None) -> dict[str, Any]:
    """Snapshot and validate; the report."""
    params = shop.write(workspace)
    take_snapshot(params, workspace)
    if damage is not None:
        damage(workspace / "data" / "snapshot")
    validate_logs(params, workspace)
    report: dict[str, Any] = json.loads((workspace / "reports" / "validation.json").read_text())
    return report


# --- Rows: one shop with every kind of bad row, validated once; each case looks for its own rows


@dataclass(frozen=True)
class BadRows:
    """Rows that one rule must find.

    Attributes:
        rows: added to the table.
        reason, outcome: what must become of `found` of them.
        clean: what the repaired column must hold in the clean table, for rows that stay.
    """

    name: str
    table: str
    rows: list[Row]
    reason: str
    outcome: str = "removed"
    found: int = 1
    clean: tuple[str, str, Any] | None = None


LATE, EARLY = START + timedelta(days=9), START - timedelta(days=9)
MEGABYTE = "x" * 1_000_000

ITEM_ROWS = [
    BadRows("null item id", "items", [item(None)], "item_id_missing", found=3),
    BadRows("empty item id", "items", [item("")], "item_id_missing", found=3),
    BadRows("blank item id", "items", [item("  \t")], "item_id_missing", found=3),
    BadRows("overlong item id", "items", [item("i" * 257)], "item_id_invalid", found=3),
    BadRows("control character in item id", "items", [item("a\x00b")], "item_id_invalid", found=3),
    BadRows("invalid UTF-8 in item id", "items", [item("a\ufffd")], "item_id_invalid", found=3),
    BadRows(
        "item id twice",
        "items",
        [item("twice", title="Old shirt"), item("twice", title="Old skirt")],
        "item_id_duplicate",
        found=1,
    ),
    BadRows("null title", "items", [item("no-title", title=None)], "title_missing", found=3),
    BadRows("blank title", "items", [item("blank-title", title="  ")], "title_missing", found=3),
    BadRows("title of control characters", "items", [item("control-only", title="\x00\x01")], "title_missing", found=3),
    BadRows("invalid UTF-8 in a title", "items", [item("bad-utf8", title="caf\ufffd")], "title_invalid_utf8"),
    BadRows(
        "title of 1 MB",
        "items",
        [item("huge", title=MEGABYTE)],
        "title_too_long",
        "cleaned",
        clean=("huge", "title", "x" * 2000),
    ),
    BadRows(
        "control character in a title",
        "items",
        [item("bell", title="Red\x07shirt")],
        "title_control_characters",
        "cleaned",
        clean=("bell", "title", "Red shirt"),
    ),
    BadRows(
        "control character in a category",
        "items",
        [item("cat", category="A\x01> B")],
        "category_invalid",
        "cleaned",
        clean=("cat", "category", "A > B"),
    ),
    *(
        BadRows(
            f"{name} price",
            "items",
            [item(f"price-{name}", price=price)],
            "price_invalid",
            "nulled",
            found=4,
            clean=(f"price-{name}", "price", None),
        )
        for name, price in [
            ("NaN", math.nan),
            ("infinite", math.inf),
            ("minus infinite", -math.inf),
            ("negative", -1.0),
        ]
    ),
]

IMAGE_ROWS = [
    BadRows(
        name,
        "images",
        [item(f"image-{name}", image=ref)],
        "image_unreadable",
        "nulled",
        8,
        (f"image-{name}", "image", None),
    )
    for name, ref in [
        ("missing", "nowhere.png"),
        ("zero-byte", "empty.png"),
        ("text", "text.png"),
        ("truncated", "cut.png"),
        ("bomb", "bomb.png"),
        ("bomb-header", "header-bomb.png"),
        ("outside", "../../etc/passwd"),
        ("uri", "no-such-protocol://x.png"),
    ]
]

EVENT_ROWS = [
    BadRows("null time", "events", [event("null-time", event_time=None)], "event_time_missing"),
    BadRows("null session", "events", [event(None)], "session_id_missing", found=2),
    BadRows("empty session", "events", [event("")], "session_id_missing", found=2),
    BadRows("overlong session", "events", [event("s" * 300)], "session_id_invalid"),
    BadRows("null query", "events", [event("q-null", query=None)], "query_missing", found=2),
    BadRows("blank query", "events", [event("q-blank", query=" ")], "query_missing", found=2),
    BadRows("overlong query", "events", [event("q-long", query="q" * 1001)], "query_too_long"),
    BadRows("invalid UTF-8 in a query", "events", [event("q-utf8", query="bl\ufffd")], "query_invalid_utf8"),
    BadRows(
        "control in a query", "events", [event("q-ctl", query="blue\x08shirt")], "query_control_characters", "cleaned"
    ),
    BadRows("null item of an event", "events", [event("i-null", item_id=None)], "item_id_missing"),
    BadRows("unknown item", "events", [event("i-unknown", item_id="nobody")], "item_unknown", found=2),
    BadRows("item that was itself removed", "events", [event("i-gone", item_id="no-title")], "item_unknown", found=2),
    BadRows("unknown action", "events", [event("a-unknown", action="hover")], "action_unknown", found=3),
    BadRows("upper-case action", "events", [event("a-upper", action="CLICK")], "action_unknown", found=3),
    BadRows("null action", "events", [event("a-null", action=None)], "action_unknown", found=3),
    BadRows("exact repeat", "events", [event("repeat"), event("repeat"), event("repeat")], "event_duplicate", found=2),
    BadRows("click never shown", "events", [event("unseen", action="click")], "click_without_impression"),
    BadRows("order never clicked", "events", [event("unclicked", action="order")], "order_without_click", "kept"),
    BadRows("empty user", "events", [event("user-empty", user_id="")], "user_id_invalid", "nulled", found=2),
    BadRows("overlong user", "events", [event("user-long", user_id="u" * 300)], "user_id_invalid", "nulled", found=2),
    BadRows("negative position", "events", [event("p-negative", position=-3)], "position_invalid", "nulled", found=2),
    BadRows("position zero", "events", [event("p-zero", position=0)], "position_invalid", "nulled", found=2),
    BadRows("relevance above 1", "events", [event("r-high", relevance=1.5)], "relevance_invalid", "nulled", found=3),
    BadRows("negative relevance", "events", [event("r-low", relevance=-0.1)], "relevance_invalid", "nulled", found=3),
    BadRows("NaN relevance", "events", [event("r-nan", relevance=math.nan)], "relevance_invalid", "nulled", found=3),
    BadRows("propensity zero", "events", [event("pr-zero", propensity=0.0)], "propensity_invalid", "nulled", found=2),
    BadRows("infinite propensity", "events", [event("pr-inf", propensity=math.inf)], "propensity_invalid", "nulled", 2),
]

JUDGMENT_ROWS = [
    BadRows("null judged query", "judgments", [judgment(None)], "query_missing"),
    BadRows("judged item unknown", "judgments", [judgment("j-unknown", item_id="nobody")], "item_unknown"),
    BadRows("null grade", "judgments", [judgment("g-null", grade=None)], "grade_invalid", found=4),
    BadRows("NaN grade", "judgments", [judgment("g-nan", grade=math.nan)], "grade_invalid", found=4),
    BadRows("grade of 4 stars", "judgments", [judgment("g-high", grade=4.0)], "grade_invalid", found=4),
    BadRows("negative grade", "judgments", [judgment("g-low", grade=-0.5)], "grade_invalid", found=4),
    BadRows("judged twice alike", "judgments", [judgment("same"), judgment("same")], "judgment_duplicate"),
    BadRows(
        "judged twice differently",
        "judgments",
        [judgment("differs"), judgment("differs", grade=0.0)],
        "judgment_conflict",
        found=2,
    ),
]
BAD_ROWS = ITEM_ROWS + IMAGE_ROWS + EVENT_ROWS + JUDGMENT_ROWS


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A shop with all of `BAD_ROWS` among its good rows, validated once."""
    shop = Shop(params={"max_quarantined": 1.0, "max_image_pixels": 10_000})
    for case in BAD_ROWS:
        {"items": shop.items, "images": shop.items, "events": shop.events, "judgments": shop.judgments}[
            case.table
        ].extend(case.rows)
    shop.items.append(item("animated", image="moving.gif"))
    shop.images |= {
        "empty.png": b"",
        "text.png": b"<html>not found</html>",
        "cut.png": _png(64, 64)[:70],
        "bomb.png": _png(101, 100),
        "header-bomb.png": _png_of_size(60_000),
        "moving.gif": _gif(3),
    }
    workspace = tmp_path_factory.mktemp("dirty")
    return workspace, run_stages(shop, workspace)


@pytest.mark.parametrize("case", BAD_ROWS, ids=lambda case: case.name)
def test_bad_rows_are_set_aside_with_their_reason(case: BadRows, dirty: tuple[Path, dict[str, Any]]) -> None:
    workspace, report = dirty
    found = report["tables"][case.table]["reasons"][case.reason]
    assert (found["outcome"], found["rows"]) == (case.outcome, case.found)
    name = "items" if case.table == "images" else case.table
    quarantined = pq.read_table(workspace / "data" / "quarantine" / f"{name}.parquet").to_pylist()
    rows = [row for row in quarantined if row["reason"] == case.reason]
    assert len(rows) == (0 if case.outcome == "kept" else case.found)
    if case.clean is not None:
        item_id, column, value = case.clean
        (clean,) = [row for row in read_items(workspace / "data" / "clean").to_pylist() if row["item_id"] == item_id]
        assert clean[column] == value


def test_good_rows_of_a_dirty_shop_stay(dirty: tuple[Path, dict[str, Any]]) -> None:
    workspace, report = dirty
    items = read_items(workspace / "data" / "clean").to_pylist()
    assert {f"i{n:02d}" for n in range(12)} <= {row["item_id"] for row in items}
    assert next(row for row in items if row["item_id"] == "animated")["image"] == "moving.gif"
    removed = report["tables"]["events"]["removed"]
    assert report["clean_rows"]["events"] == report["tables"]["events"]["rows"] - removed
    assert report["status"] == "passed"


def test_the_reason_why_a_picture_cannot_be_used_is_kept(dirty: tuple[Path, dict[str, Any]]) -> None:
    workspace, _ = dirty
    rows = pq.read_table(workspace / "data" / "quarantine" / "items.parquet").to_pylist()
    detail = {row["image"]: row["detail"] for row in rows if row["reason"] == "image_unreadable"}
    assert detail["nowhere.png"] == "missing"
    assert detail["empty.png"] == "empty"
    assert detail["bomb.png"] == detail["header-bomb.png"] == "too_large"


# --- Whole tables: the run stops, or passes with a word about it


def _drop(name: str, column: str) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        shop.tables[name] = shop.table(name).drop_columns([column])

    return change


def _retype(name: str, column: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        table = shop.table(name)
        shop.tables[name] = table.set_column(table.schema.get_field_index(column), column, values(table))

    return change


def _naive(table: pa.Table) -> pa.Array:
    return table["event_time"].cast(pa.timestamp("us"))


def _zone(table: pa.Table) -> pa.Array:
    return table["event_time"].cast(pa.timestamp("ns", tz="Asia/Tokyo"))


def _raw_titles(table: pa.Table) -> pa.Array:
    return pa.array([b"caf\xe9", *(b"shirt" for _ in range(table.num_rows - 1))], pa.binary())


def _shift(days: int) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        for row in shop.events:
            row["event_time"] += timedelta(days=days)

    return change


def _all(name: str, **values: Any) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        for row in getattr(shop, name):
            row.update(values)

    return change


def _set(**values: Any) -> Callable[[Shop], None]:
    def change(shop: Shop) -> None:
        for name, value in values.items():
            setattr(shop, name, value)

    return change


def _one_user_half(shop: Shop) -> None:
    for row in shop.events[::2]:
        row["user_id"] = "robot"


def _missing_day(shop: Shop) -> None:
    shop.events = [row for row in shop.events if row["event_time"] < START + timedelta(days=1)]


def _lost_impressions(shop: Shop) -> None:
    clicks = [row for row in shop.events if row["action"] == "click"]
    again = [row | {"event_time": row["event_time"] + timedelta(seconds=1)} for row in clicks]
    shop.events = [row for row in shop.events if row["position"] == 1] + again


def _extra_columns(shop: Shop) -> None:
    for name in ("items", "events"):
        table = shop.table(name)
        shop.tables[name] = table.append_column("colour", pa.array(["blue"] * table.num_rows))


def _ints(column: str) -> Callable[[pa.Table], pa.Array]:
    return lambda table: pa.array(range(table.num_rows), pa.int64())


STOPS: list[tuple[str, Callable[[Shop], None], str]] = [
    ("items without item_id", _drop("items", "item_id"), "item_id"),
    ("items without title", _drop("items", "title"), "title"),
    ("events without action", _drop("events", "action"), "action"),
    ("events without session_id", _drop("events", "session_id"), "session_id"),
    ("judgments without grade", _drop("judgments", "grade"), "grade"),
    ("price as text", _retype("items", "price", lambda t: pa.array(["ten"] * t.num_rows)), "price"),
    ("time as text", _retype("events", "event_time", lambda t: pa.array(["noon"] * t.num_rows)), "event_time"),
    ("naive timestamps", _retype("events", "event_time", _naive), "time zone"),
    ("fractional positions", _retype("events", "position", lambda t: pa.array([1.5] * t.num_rows)), "position"),
    ("no items", _set(items=[]), "has no row"),
    ("fewer items than min_items", lambda shop: _set(items=shop.items[:3])(shop), "min_items"),
    ("all titles empty", _all("items", title=""), "title_missing"),
    ("all prices negative", _all("items", price=-1.0), "price_invalid"),
    ("all pictures missing", _set(images={}), "image_unreadable"),
    ("all items unknown", _all("events", item_id="nobody"), "item_unknown"),
    ("all positions zero-based", _all("events", position=0), "position_invalid"),
    ("one user with half the traffic", _one_user_half, "'robot'"),
    ("a whole day missing", _missing_day, "2025-03-02"),
    ("impressions lost", _lost_impressions, "clicks than impressions"),
    ("no events inside the window", _shift(30), "has no event in"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in STOPS], ids=[case[0] for case in STOPS])
def test_the_run_stops_with_one_message(change: Callable[[Shop], None], message: str, tmp_path: Path) -> None:
    shop = Shop(params={"max_quarantined_by_reason": {"click_without_impression": 1.0}})
    change(shop)
    with pytest.raises(MrseError) as stopped:
        run_stages(shop, tmp_path)
    assert message in str(stopped.value)
    assert not (tmp_path / "data" / "clean").exists()


PASSES: list[tuple[str, Callable[[Shop], None], str | None]] = [
    ("untouched", lambda shop: None, None),
    ("extra columns", _extra_columns, None),
    ("no category, price, image, updated_at", lambda shop: _minimal(shop), None),
    ("numbers as ids", lambda shop: _numbered(shop), None),
    ("another time zone", _retype("events", "event_time", _zone), None),
    ("no users", _all("events", user_id=None), "names a user"),
    ("no impressions", lambda shop: _clicks_only(shop), "logs no impressions"),
    ("items without events", _set(has_events=False), "no events"),
    ("no judgments", _set(judgments=[]), None),
    ("nearly all users unknown", lambda shop: _nearly_no_users(shop), "max_null_user_share"),
]


def _minimal(shop: Shop) -> None:
    shop.tables["items"] = shop.table("items").select(["item_id", "title"])


def _numbered(shop: Shop) -> None:
    place = {row["item_id"]: number for number, row in enumerate(shop.items)}
    for name in ("items", "events"):
        numbers = pa.array([place[value] for value in shop.table(name)["item_id"].to_pylist()], pa.int64())
        _retype(name, "item_id", lambda table, numbers=numbers: numbers)(shop)  # type: ignore[misc]
    shop.judgments = []


def _clicks_only(shop: Shop) -> None:
    shop.events = [row for row in shop.events if row["action"] == "click"]


def _nearly_no_users(shop: Shop) -> None:
    for row in shop.events[:-1]:
        row["user_id"] = None


@pytest.mark.parametrize(("change", "word"), [case[1:] for case in PASSES], ids=[case[0] for case in PASSES])
def test_the_run_passes_and_says_what_is_missing(
    change: Callable[[Shop], None], word: str | None, tmp_path: Path
) -> None:
    shop = Shop()
    change(shop)
    report = run_stages(shop, tmp_path)
    assert report["status"] == "passed"
    assert sum(table["removed"] for table in report["tables"].values()) == 0
    said = " ".join(report["warnings"] + report["notes"])
    assert word is None or word in said


def test_extra_columns_reach_the_clean_tables(tmp_path: Path) -> None:
    shop = Shop()
    _extra_columns(shop)
    run_stages(shop, tmp_path)
    assert read_items(tmp_path / "data" / "clean")["colour"].to_pylist() == ["blue"] * 12


def test_bytes_that_are_no_utf8_are_quarantined(tmp_path: Path) -> None:
    shop = Shop(params={"max_quarantined": 0.2})
    _retype("items", "title", _raw_titles)(shop)
    report = run_stages(shop, tmp_path)
    assert report["tables"]["items"]["reasons"]["title_invalid_utf8"]["rows"] == 1


def test_events_of_the_future_are_removed(tmp_path: Path) -> None:
    """The window reaches past today: only what has not happened yet leaves."""
    shop = Shop(params={"max_quarantined": 1.0, "max_missing_days": DAYS})
    params = shop.write(tmp_path)
    take_snapshot(params, tmp_path)
    ahead = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    meta = tmp_path / "data" / "snapshot" / "snapshot.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"end": (ahead + timedelta(days=1)).isoformat()}))
    last = tmp_path / "data" / "snapshot" / "events" / "dt=2025-03-02" / "part-0.parquet"
    rows = pq.read_table(last)
    late = rows.slice(0, 1).set_column(0, "event_time", pa.array([ahead], EVENTS.field("event_time").type))
    pq.write_table(pa.concat_tables([rows, late]), last)
    with pytest.raises(ValidationFailed, match="days without events"):
        validate_logs(params, tmp_path)
    report = json.loads((tmp_path / "reports" / "validation.json").read_text())
    assert report["tables"]["events"]["reasons"]["event_in_future"]["rows"] == 1


def test_events_outside_the_window_are_removed(tmp_path: Path) -> None:
    """`snapshot` filters by the window; a damaged snapshot may still hold others."""

    def damage(snapshot: Path) -> None:
        path = snapshot / "events" / "dt=2025-03-01" / "part-0.parquet"
        rows = pq.read_table(path)
        kind = EVENTS.field("event_time").type
        strays = [rows.slice(0, 1).set_column(0, "event_time", pa.array([at], kind)) for at in (EARLY, LATE)]
        pq.write_table(pa.concat_tables([rows, *strays]), path)

    report = run_stages(Shop(), tmp_path, damage)
    assert report["tables"]["events"]["reasons"]["event_outside_window"]["rows"] == 2
    assert report["clean_rows"]["events"] == 300


# --- Damaged files


def _cut(path: str) -> Callable[[Path], None]:
    def damage(snapshot: Path) -> None:
        target = snapshot / path
        target.write_bytes(target.read_bytes()[:-40])

    return damage


def _empty(path: str) -> Callable[[Path], None]:
    return lambda snapshot: (snapshot / path).write_bytes(b"") and None


def _folder(path: str) -> Callable[[Path], None]:
    def damage(snapshot: Path) -> None:
        (snapshot / path).unlink()
        (snapshot / path).mkdir()

    return damage


def _remove(path: str) -> Callable[[Path], None]:
    return lambda snapshot: (snapshot / path).unlink()


def _spoil_pages(path: str) -> Callable[[Path], None]:
    """Good footer, bad data."""

    def damage(snapshot: Path) -> None:
        data = bytearray((snapshot / path).read_bytes())
        data[8:200] = bytes(192)
        (snapshot / path).write_bytes(data)

    return damage


def _other_schema(snapshot: Path) -> None:
    path = snapshot / "events" / "dt=2025-03-01" / "part-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["query"]), path)


DAY = "events/dt=2025-03-01/part-0.parquet"
DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("items cut off", _cut("items.parquet"), "items.parquet"),
    ("events cut off", _cut(DAY), "part-0.parquet"),
    ("empty items file", _empty("items.parquet"), "items.parquet"),
    ("empty events file", _empty(DAY), "part-0.parquet"),
    ("a directory instead of items", _folder("items.parquet"), "items.parquet"),
    ("a directory instead of events", _folder(DAY), "part-0.parquet"),
    ("items gone", _remove("items.parquet"), "items.parquet"),
    ("judgments gone", _remove("judgments.parquet"), "judgments.parquet"),
    ("snapshot.json gone", _remove("snapshot.json"), "snapshot.json"),
    ("snapshot.json cut off", _cut("snapshot.json"), "snapshot.json"),
    ("data pages of items spoilt", _spoil_pages("items.parquet"), "items.parquet"),
    ("data pages of events spoilt", _spoil_pages(DAY), "part-0.parquet"),
    ("a day with another schema", _other_schema, "'query'"),
]


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_a_damaged_snapshot_stops_the_run(
    damage: Callable[[Path], None], message: str, tmp_path: Path, good_snapshot: Path
) -> None:
    shutil.copytree(good_snapshot, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "data" / "snapshot")
    with pytest.raises(MrseError) as stopped:
        validate_logs(config.parse(Shop().raw_params()), tmp_path)
    assert message in str(stopped.value)


@pytest.fixture(scope="module")
def good_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("good")
    take_snapshot(Shop().write(workspace), workspace)
    return workspace


def test_invalid_utf8_inside_a_snapshot_is_quarantined(tmp_path: Path, good_snapshot: Path) -> None:
    shutil.copytree(good_snapshot, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "data" / "snapshot" / DAY
    table = pq.read_table(path)
    raw = [value.encode() for value in table["query"].to_pylist()]
    broken = pa.array([b"bl\xff", *raw[1:]], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("query"), "query", broken), path)
    validate_logs(config.parse(Shop().raw_params()), tmp_path)
    report = json.loads((tmp_path / "reports" / "validation.json").read_text())
    assert report["tables"]["events"]["reasons"]["query_invalid_utf8"]["rows"] == 1


def test_pictures_in_a_broken_archive_stop_the_run(tmp_path: Path) -> None:
    params = Shop().write(tmp_path)
    take_snapshot(params, tmp_path)
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("0.png", _png())
    archive.write_bytes(archive.read_bytes()[:30])
    meta = tmp_path / "data" / "snapshot" / "snapshot.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"image_root": "zip://::images.zip"}))
    with pytest.raises(MrseError, match=r"images\.zip"):
        validate_logs(params, tmp_path)


@pytest.mark.parametrize("damage", [_cut(DAY), None], ids=["damaged file", "failed expectation"])
def test_the_component_prints_one_message_and_fails(
    damage: Callable[[Path], None] | None, tmp_path: Path, good_snapshot: Path
) -> None:
    shutil.copytree(good_snapshot, tmp_path, dirs_exist_ok=True)
    raw = Shop(params={"min_items": 100} if damage is None else {}).raw_params()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    if damage is not None:
        damage(tmp_path / "data" / "snapshot")
    done = subprocess.run(
        [sys.executable, "-m", "components.validate_logs", "--workspace", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"MRSE_QUIET": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("validate_logs: ")
    assert "Traceback" not in done.stderr


# --- Windows one after the other


def _many_items(shop: Shop, price: float) -> None:
    shop.items += [item(f"x{n}", price=price) for n in range(600)]


def _validate(shop: Shop, workspace: Path, end: str) -> dict[str, Any]:
    shutil.rmtree(workspace / "shop", ignore_errors=True)
    shop.write(workspace)
    raw = shop.raw_params()
    raw["snapshot"]["end"] = end
    params = config.parse(raw)
    take_snapshot(params, workspace)
    validate_logs(params, workspace)
    report: dict[str, Any] = json.loads((workspace / "reports" / "validation.json").read_text())
    return report


def test_a_changed_shop_stops_the_next_window_but_not_a_retry(tmp_path: Path) -> None:
    before, after = Shop(has_events=False), Shop(has_events=False)
    _many_items(before, 5.0)
    _many_items(after, 5000.0)
    assert _validate(before, tmp_path, "2025-03-03")["drift"]["reference"] is None
    with pytest.raises(ValidationFailed, match=r"items\.price \(psi"):
        _validate(after, tmp_path, "2025-03-04")
    assert _validate(after, tmp_path, "2025-03-03")["drift"]["reference"] is None
    assert _validate(after, tmp_path, "2025-03-04")["drift"]["reference"].startswith("2025-03-03")


def test_however_the_days_are_batched_the_result_is_the_same(
    tmp_path: Path, good_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(good_snapshot, tmp_path, dirs_exist_ok=True)
    params = config.parse(Shop().raw_params())
    found = []
    for rows in (run.BATCH_ROWS, 1):
        monkeypatch.setattr(run, "BATCH_ROWS", rows)
        validate_logs(params, tmp_path)
        report = json.loads((tmp_path / "reports" / "validation.json").read_text())
        files = [path for path in sorted((tmp_path / "data" / "clean").rglob("*.*")) if path.is_file()]
        facts = {key: report[key] for key in ("tables", "days", "clean_rows", "notes")}
        found.append((facts, [(path.name, path.read_bytes()) for path in files]))
        assert sum(suite["suite"] == "events" for suite in report["suites"]) == (1 if rows > 1 else DAYS)
    assert found[0] == found[1]

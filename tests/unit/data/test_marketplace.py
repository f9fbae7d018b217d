"""The simulated marketplace: what follows from the seed and the day, and what the paper's claims need it to have."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mrse.config import MarketplaceConfig
from mrse.data.contract import EVENTS, ITEMS, JUDGMENTS, read_items, read_judgments
from mrse.data.marketplace import draws, lexicon, simulate
from mrse.data.marketplace.catalogue import ATTRIBUTES, open_catalogue
from mrse.data.marketplace.pictures import Look, Painter
from mrse.data.marketplace.queries import Question, Wordings, grade
from mrse.data.marketplace.ranker import SLOTS, LexicalIndex, Ranker, draw_pages, pool_sizes
from mrse.data.marketplace.sessions import Shop
from mrse.data.marketplace.shoppers import fashion_of, gather
from mrse.errors import ConfigError, DataError

SMALL = MarketplaceConfig(items=600, shoppers=150, events_per_day=3_000, image_size=16)
START = datetime(2026, 1, 10, tzinfo=UTC)


def _days(count: int, start: datetime = START) -> tuple[datetime, datetime]:
    return start, start + timedelta(days=count)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _events(folder: Path) -> pd.DataFrame:
    return pd.concat(
        [pq.ParquetFile(path).read().to_pandas() for path in sorted(folder.glob("events/dt=*/part-0.parquet"))]
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    simulate(SMALL, *_days(6), folder)
    return folder


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough traffic per shopper to see tastes; pictures as small as they get."""
    folder = tmp_path_factory.mktemp("big")
    simulate(MarketplaceConfig(items=2_000, shoppers=150, events_per_day=6_000, image_size=8), *_days(10), folder)
    return folder


def test_tables_follow_the_contract(shop: Path) -> None:
    assert pq.read_schema(shop / "items.parquet") == ITEMS
    assert pq.read_schema(shop / "judgments.parquet") == JUDGMENTS
    files = sorted((shop / "events").glob("dt=*/part-0.parquet"))
    assert [path.parent.name for path in files] == [f"dt=2026-01-{day}" for day in range(10, 16)]
    for path in files:
        table = pq.ParquetFile(path).read()
        assert table.schema == EVENTS
        assert {str(moment.date()) for moment in table["event_time"].to_pylist()} == {path.parent.name[3:]}
        keys = ["event_time", "session_id", "position", "item_id", "action"]
        assert table.equals(table.sort_by([(key, "ascending") for key in keys]))


def test_the_same_configuration_gives_the_same_bytes(shop: Path, tmp_path: Path) -> None:
    simulate(SMALL, *_days(6), tmp_path)
    assert _hashes(tmp_path) == _hashes(shop)


def test_another_seed_gives_another_shop(shop: Path, tmp_path: Path) -> None:
    simulate(SMALL.model_copy(update={"seed": 8}), *_days(1), tmp_path)
    other, mine = _hashes(tmp_path), _hashes(shop)
    assert all(other[name] != mine[name] for name in ("items.parquet", "events/dt=2026-01-10/part-0.parquet"))


def test_windows_that_overlap_agree_on_their_common_days(shop: Path, tmp_path: Path) -> None:
    simulate(SMALL, *_days(6, START + timedelta(days=2)), tmp_path)
    later, earlier = _hashes(tmp_path), _hashes(shop)
    common = sorted(name for name in later if name in earlier and name.split("/")[0] in ("events",))
    assert len(common) == 4
    assert [later[name] for name in common] == [earlier[name] for name in common]
    before, after = (read_items(folder).to_pandas().set_index("item_id") for folder in (shop, tmp_path))
    pd.testing.assert_frame_equal(before, after.loc[before.index])


def test_a_rerun_leaves_nothing_of_another_window(tmp_path: Path) -> None:
    simulate(SMALL, *_days(3), tmp_path)
    simulate(SMALL, *_days(1, START + timedelta(days=1)), tmp_path)
    assert [path.name for path in (tmp_path / "events").iterdir()] == ["dt=2026-01-11"]


def test_every_click_has_its_impression_every_cart_its_click_every_order_its_cart(shop: Path) -> None:
    events = _events(shop)
    rows = {
        action: set(map(tuple, part[["session_id", "query", "item_id", "position"]].itertuples(index=False)))
        for action, part in events.groupby("action")
    }
    assert rows["order"] < rows["add_to_cart"] < rows["click"] < rows["impression"]
    assert not events.duplicated(["session_id", "query", "item_id", "action"]).any()
    assert not events[events.action == "impression"].duplicated(["session_id", "query", "position"]).any()


def test_events_name_listed_items_and_positions_without_gaps(shop: Path) -> None:
    events, items = _events(shop), read_items(shop).to_pandas().set_index("item_id")
    listed = items.updated_at.loc[events.item_id].to_numpy()
    assert (listed < events.event_time.to_numpy()).all()
    shown = events[events.action == "impression"].groupby(["session_id", "query"]).position
    assert (shown.max() == shown.size()).all()
    assert set(shown.size()) == {12, 16, 20}


def test_attributes_are_forgotten_at_the_configured_rate() -> None:
    config = MarketplaceConfig(items=4_000, missing_attribute=0.3, misspelt_title=0.0, stuffed_title=0.0)
    catalogue = open_catalogue(config, date(2026, 1, 2))
    patterned = catalogue.codes("pattern") > 0  # sellers seldom write "solid"
    shares = {
        "colour": np.mean(["colour" in names for names in catalogue.forgotten]),
        "pattern": np.mean([("pattern" in f) for f, p in zip(catalogue.forgotten, patterned, strict=True) if p]),
    }
    assert shares == pytest.approx({"colour": 0.3, "pattern": 0.3}, abs=0.03)
    for title, names, code in zip(
        catalogue.titles, catalogue.forgotten, catalogue.codes("colour").tolist(), strict=True
    ):
        forms = catalogue.words[ATTRIBUTES.index("colour")][code]
        said = any(form in title.lower() for form in (*forms, lexicon.ABBREVIATIONS.get(forms[0], forms[0])))
        assert said or "colour" in names, title


def test_no_attribute_is_forgotten_when_sellers_are_careful() -> None:
    catalogue = open_catalogue(MarketplaceConfig(items=300, missing_attribute=0.0), date(2026, 1, 2))
    assert not any("colour" in names for names in catalogue.forgotten)


@pytest.mark.parametrize(
    "candidates, asked", [(5, 0), (20, 1), (44, 0), (45, 2), (60, 0), (200, 0), (900, 0), (900, 3)]
)
def test_pools_are_large_enough_for_their_positions(candidates: int, asked: int) -> None:
    first, second, third, explored = pool_sizes(candidates, asked)
    assert first + second + third + explored <= candidates
    if candidates >= 45:
        assert first >= 4 and second >= 6 and third >= 10 and explored >= SLOTS
    else:
        assert (first + second + third, explored) == (min(candidates, SLOTS), 0)


@pytest.mark.parametrize("words, items", [(("type",), 600), (("type", "colour"), 600), (("type",), 30)])
def test_propensities_are_the_probabilities_of_being_shown(words: tuple[str, ...], items: int) -> None:
    """The number written on a row against the share of 40,000 pages drawn by the same policy."""
    config = MarketplaceConfig(items=items)
    catalogue = open_catalogue(config, date(2026, 1, 2))
    intent = [-1] * len(ATTRIBUTES)
    for name in words:
        intent[ATTRIBUTES.index(name)] = int(catalogue.codes(name)[0])
    text = Wordings(catalogue, config.seed).text(Question(tuple(intent), 0, 0))
    day = date(2026, 1, 2).toordinal()
    ranking = Ranker(config, catalogue, day, LexicalIndex(catalogue.titles, catalogue.listed_N < day)).rank(
        [text], [tuple(intent)]
    )
    pages = 40_000
    drawn = draw_pages(ranking, np.zeros(pages, dtype=int), np.full(pages, SLOTS), np.random.default_rng(0))
    shown = drawn.item_RL >= 0
    assert shown.all() == (items > SLOTS)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in drawn.item_RL[:200])
    for position in (0, 3, 4, 12, 19):
        met, times = np.unique(drawn.item_RL[:, position], return_counts=True)
        said = {
            int(i): float(p) for i, p in zip(drawn.item_RL[:, position], drawn.propensity_RL[:, position], strict=True)
        }
        expected = np.array([said[int(item)] for item in met])
        error = (times / pages - expected) / np.sqrt(expected * (1 - expected) / pages + 1e-12)
        assert np.abs(error).max() < 5.0
        assert sum(said.values()) == pytest.approx(1.0, abs=0.02)


def test_the_log_carries_the_propensities_of_the_policy(shop: Path) -> None:
    """Explored slots are told by their small propensity, and there are as many as configured."""
    impressions = _events(shop).query("action == 'impression'")
    assert impressions.propensity.between(0.0, 1.0, inclusive="right").all()
    explored = impressions.propensity < 0.15 / SLOTS + 1e-9
    assert explored.mean() == pytest.approx(SMALL.exploration, abs=0.02)


def test_higher_positions_are_clicked_more_for_the_same_relevance(big: Path) -> None:
    """Within a tier items are placed by lot, so its positions differ by examination alone."""
    events = _events(big)
    shown, clicked = (events[events.action == action].groupby("position").size() for action in ("impression", "click"))
    rate = clicked / shown
    assert rate[1] / rate[4] == pytest.approx(4**0.45, rel=0.15)
    assert rate[5] / rate[10] == pytest.approx(2**0.45, rel=0.2)


def _vague_clicks(folder: Path) -> Iterator[tuple[list[int], int, np.ndarray]]:
    """(colours clicked before, colour clicked now, colours shown then) for clicks of known shoppers' vague queries."""
    items = pq.read_table(folder / "truth" / "items.parquet").to_pandas().set_index("item_id")
    colours = {name: i for i, name in enumerate(sorted(items.colour.unique()))}
    truth = pd.concat([pq.ParquetFile(path).read().to_pandas() for path in folder.glob("truth/queries/*/*")])
    vague = set(truth[truth.vague]["query"])
    events = _events(folder).dropna(subset="user_id")
    events["colour"] = items.colour.loc[events.item_id].map(colours).to_numpy()
    shown = events[events.action == "impression"].groupby(["session_id", "query"]).colour.apply(np.array)
    before: dict[str, list[int]] = {}
    for click in events[events.action == "click"].itertuples():
        past = before.setdefault(click.user_id, [])
        if click.query in vague and len(past) >= 10:
            yield past[-20:], click.colour, shown[click.session_id, click.query]
        past.append(click.colour)


def test_history_tells_what_a_shopper_will_click_for_a_vague_query(big: Path) -> None:
    lift = []
    for past, chosen, shown in _vague_clicks(big):
        liked = np.argsort(-np.bincount(past, minlength=len(lexicon.COLOURS)), kind="stable")[:3]
        lift.append((chosen in liked) - np.isin(shown, liked).mean())
    assert len(lift) > 150
    assert np.mean(lift) > 0.15
    assert np.mean(lift) > 4 * np.std(lift) / np.sqrt(len(lift))


def test_shoppers_of_looks_ask_vaguely_and_the_share_is_as_configured() -> None:
    config = SMALL.model_copy(update={"events_per_day": 40_000, "typo_query": 0.1})
    catalogue = open_catalogue(config, START.date() + timedelta(days=1))
    day = START.date().toordinal()
    shoppers = gather(config, catalogue, day + 1)
    requests = Shop(config, catalogue, shoppers).ask(day)
    asks = np.array(
        [sum(q.intent[ATTRIBUTES.index(n)] >= 0 for n in ("colour", "pattern")) for q in requests.questions]
    )
    typos = np.array([q.typo > 0 for q in requests.questions])
    assert typos[requests.query_R].mean() == pytest.approx(0.1, abs=0.02)
    looks = shoppers.looks_U[requests.user_R]
    named = asks[requests.query_R] > 0
    assert named[looks < 0.2].mean() > named[looks > 0.8].mean() + 0.2


def test_days_drift_catalogue_shoppers_and_demand(big: Path) -> None:
    config = MarketplaceConfig(items=2_000, shoppers=150)
    catalogue = open_catalogue(config, date(2026, 3, 1))
    assert len(catalogue.item_ids) == 2_000 + 59 * 4
    first, later = (fashion_of(config, catalogue, date(2026, 1, day).toordinal()) for day in (1, 15))
    assert np.abs(first.type_T - later.type_T).max() > 0.3
    assert np.abs(first.colour_C - later.colour_C).max() > 0.3
    events = _events(big)
    days = events.event_time.dt.date
    first_seen = events.assign(day=days).groupby("user_id").day.min()
    assert (first_seen > days.min() + timedelta(days=5)).any()
    items = read_items(big).to_pandas().set_index("item_id")
    fresh = set(items.index[items.updated_at > pd.Timestamp(START)])
    assert fresh and events.item_id.isin(fresh).any()


def test_grades_are_by_what_items_are(shop: Path) -> None:
    catalogue = open_catalogue(SMALL, date(2026, 1, 2))
    codes = {name: catalogue.codes(name) for name in ATTRIBUTES}
    shirt = int(np.flatnonzero(codes["colour"] == 3)[0])
    assert catalogue.words[ATTRIBUTES.index("colour")][3][0] == "navy"
    intent = [-1] * len(ATTRIBUTES)
    intent[0], intent[ATTRIBUTES.index("colour")] = int(codes["type"][shirt]), 3
    grades = grade(catalogue, intent, np.arange(len(catalogue.item_ids)))
    same_type = codes["type"] == intent[0]
    same_group = codes["group"] == catalogue.group_of_type[intent[0]]
    blue, navy = codes["colour"] == 2, codes["colour"] == 3
    assert set(grades[same_type & navy]) == {1.0}
    assert np.all((grades[same_type & blue] > 0.2) & (grades[same_type & blue] < 0.7))
    assert np.allclose(grades[same_type & ~blue & ~navy], 0.2)
    assert np.allclose(grades[~same_type & same_group & navy], 0.1)
    assert not grades[~same_group].any()


def test_judgments_are_sorted_grades_of_common_queries(shop: Path) -> None:
    table = read_judgments(shop)
    assert table.equals(table.sort_by([("query", "ascending"), ("item_id", "ascending")]))
    judged = table.to_pandas()
    assert judged.grade.between(0.0, 1.0).all()
    assert not judged.duplicated(["query", "item_id"]).any()
    assert (judged.groupby("query").grade.min() == 0.0).mean() > 0.95
    asked = (
        _events(shop).query("action == 'impression'").drop_duplicates(["session_id", "query"])["query"].value_counts()
    )
    assert set(asked.index[:20]) <= set(judged["query"])


def test_relevance_is_a_noisy_grade_and_sometimes_missing(shop: Path) -> None:
    shown = _events(shop).query("action == 'impression'")
    assert shown.relevance.isna().mean() == pytest.approx(0.1, abs=0.02)
    both = shown.merge(read_judgments(shop).to_pandas(), on=["query", "item_id"]).dropna(subset="relevance")
    assert 0.02 < (both.relevance - both.grade).abs().mean() < 0.12
    assert shown.dropna(subset="relevance").groupby(["query", "item_id"]).relevance.nunique().max() == 1


def test_titles_and_categories_carry_no_truth_columns(shop: Path) -> None:
    assert set(read_items(shop).column_names) == set(ITEMS.names)


def test_pictures_are_named_by_the_items_and_open(shop: Path) -> None:
    images = read_items(shop)["image"]
    with zipfile.ZipFile(shop / "images.zip") as archive:
        assert sorted(archive.namelist()) == sorted(name for name in images.to_pylist() if name)
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        picture = Image.open(io.BytesIO(archive.read(archive.namelist()[0])))
        assert (picture.format, picture.size, picture.mode) == ("PNG", (16, 16), "RGB")
    assert images.null_count / len(images) == pytest.approx(SMALL.missing_picture, abs=0.03)


@pytest.mark.parametrize("kind", [kind.name for kind in lexicon.TYPES])
def test_a_picture_shows_the_colour_of_its_item(kind: str) -> None:
    """Against a twin in another colour, the pixels that differ are nearer to the item's own colour."""
    painter = Painter(64)
    red, blue = (np.asarray(painter.paint(Look(kind, c, "solid", ""), 7, 1), dtype=float) for c in ("red", "blue"))
    differs = np.abs(red - blue).sum(axis=2) > 120
    assert differs.mean() > 0.02
    for picture, name in ((red, "red"), (blue, "blue")):
        own = np.array(lexicon.COLOURS[name][1])
        other = np.array(lexicon.COLOURS["blue" if name == "red" else "red"][1])
        seen = np.median(picture[differs], axis=0)
        assert np.linalg.norm(seen - own) < np.linalg.norm(seen - other)


def test_patterns_look_different() -> None:
    painter = Painter(64)
    looks = [np.asarray(painter.paint(Look("dress", "red", name, ""), 7, 1), dtype=float) for name in lexicon.PATTERNS]
    for i, one in enumerate(looks):
        for other in looks[:i]:
            assert np.abs(one - other).mean() > 1.5


def test_memory_is_that_of_one_day(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"items": 150, "image_size": 8, "events_per_day": 3_000})

    def peak(days: int) -> int:
        tracemalloc.start()
        simulate(config, *_days(days), tmp_path / str(days))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # fills the caches of imports
    assert peak(5) < 1.35 * peak(2)


@pytest.mark.parametrize(
    "start, end, message",
    [
        (START, START, "holds no day"),
        (START + timedelta(hours=5), START + timedelta(days=1), "not midnight"),
        (datetime(2025, 12, 31, tzinfo=UTC), START, "opens on 2026-01-01"),
    ],
)
def test_impossible_windows_are_one_clear_error(tmp_path: Path, start: datetime, end: datetime, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(SMALL, start, end, tmp_path)


# --- a given catalogue ---


def _given(tmp_path: Path, **columns: list[object]) -> Path:
    rows: dict[str, list[object]] = {
        "item_id": ["c", "a", "b"],
        "title": ["Kurta by Aria", "Blue Tshirt", "Tshirt"],
        "category": ["Apparel > Ethnic > Kurtas", "Apparel > Topwear > Tshirts", "Apparel > Topwear > Tshirts"],
        "image": ["3.jpg", None, "2.jpg"],
        "article_type": ["Kurtas", "Tshirts", "Tshirts"],
        "colour": ["Red", "Blue", "Navy Blue"],
        "usage": ["Ethnic", "Casual", None],
        **columns,
    }
    path = tmp_path / "given.parquet"
    pq.write_table(pa.table(rows), path)
    return path


def test_a_given_catalogue_keeps_its_items_and_loses_its_labels(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"catalogue": str(_given(tmp_path)), "shoppers": 20, "events_per_day": 200})
    simulate(config, *_days(2), tmp_path / "out")
    items = read_items(tmp_path / "out")
    assert items.column_names == ITEMS.names
    assert items.select(["item_id", "title", "price", "image"]).to_pylist() == [
        {"item_id": "a", "title": "Blue Tshirt", "price": None, "image": None},
        {"item_id": "b", "title": "Tshirt", "price": None, "image": "2.jpg"},
        {"item_id": "c", "title": "Kurta by Aria", "price": None, "image": "3.jpg"},
    ]
    assert not (tmp_path / "out" / "images.zip").exists()
    events = _events(tmp_path / "out")
    assert set(events.item_id) <= {"a", "b", "c"}
    assert np.allclose(events.propensity, 1 / 3)  # one tier of three items, in any order
    grades = read_judgments(tmp_path / "out").to_pandas().set_index(["query", "item_id"]).grade
    assert grades["blue tshirt", "a"] == 1.0
    assert 0.2 < grades["blue tshirt", "b"] < 0.7  # navy blue is nearly blue
    assert grades["blue tshirt", "c"] == 0.0


def test_a_given_catalogue_honours_its_listing_times(tmp_path: Path) -> None:
    times = [datetime(2026, 1, 11, 8, tzinfo=UTC), None, datetime(2026, 2, 1, tzinfo=UTC)]
    path = _given(tmp_path, updated_at=times)
    config = SMALL.model_copy(update={"catalogue": str(path), "shoppers": 20, "events_per_day": 200})
    simulate(config, *_days(3), tmp_path / "out")
    assert read_items(tmp_path / "out")["item_id"].to_pylist() == ["a", "c"]
    events = _events(tmp_path / "out")
    assert set(events.item_id) == {"a", "c"}
    assert events[events.item_id == "c"].event_time.min() > pd.Timestamp(datetime(2026, 1, 12, tzinfo=UTC))
    simulate(config, *_days(28), tmp_path / "longer")  # the listing of "b" moves rows, but no earlier day
    longer, shorter = _hashes(tmp_path / "longer"), _hashes(tmp_path / "out")
    days = [name for name in shorter if name.startswith("events")]
    assert [longer[name] for name in days] == [shorter[name] for name in days]
    assert read_items(tmp_path / "longer").num_rows == 3


@pytest.mark.parametrize(
    "labels, message",
    [({"type": "kind"}, "lacks the label column 'kind'"), ({"colour": "colour"}, "names no column for 'type'")],
)
def test_wrong_labels_are_one_clear_error(tmp_path: Path, labels: dict[str, str], message: str) -> None:
    config = SMALL.model_copy(update={"catalogue": str(_given(tmp_path)), "labels": labels})
    with pytest.raises((ConfigError, DataError), match=message):
        simulate(config, *_days(1), tmp_path / "out")


def test_a_missing_or_broken_catalogue_is_one_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    unknown = "nosuch://shop/items.parquet"
    cases = [(tmp_path / "none.parquet", "no such file"), (broken, "not a readable Parquet"), (unknown, "nosuch")]
    for path, message in cases:
        with pytest.raises(DataError, match=message):
            simulate(SMALL.model_copy(update={"catalogue": str(path)}), *_days(1), tmp_path / "out")


def test_frozen_dice_are_fair_and_stable() -> None:
    u = draws.uniform(1, np.arange(100_000))
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    g = draws.gaussian(2, np.arange(100_000))
    assert abs(g.mean()) < 0.02 and abs(g.std() - 1.0) < 0.02
    assert draws.hashed(7, np.array([1, 2])).tolist() == draws.hashed(7, np.array([1, 2])).tolist()
    assert draws.text_hash("red shirt") == 3547979663773499182

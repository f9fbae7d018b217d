"""The reader: one pair of encoder and collection, never a mixed one; ties; histories; caches."""

import json
import shutil
from pathlib import Path

import pytest

from mrse import tracking
from mrse.errors import DataError, IndexFailed, ServiceError
from mrse.index import swap as swapping
from mrse.index.build import build
from mrse.index.client import Store, opened
from mrse.index.filters import Filter
from mrse.serving.recall import Reader, reading
from tests import fake_shop


@pytest.fixture
def live(shop, services):
    params = fake_shop.params_for(services)
    build(params, shop)
    swapping.swap(params, shop)
    return shop


def ids(answers):
    return [[hit.item_id for hit in hits] for hits in answers]


def test_search_finds_what_the_words_say(live, services):
    with reading(services) as reader:
        first, second = reader.search(["red dress", "leather boots"], k=2)
    assert (first[0].item_id, first[0].title, first[0].category, first[0].price) == (
        "a1",
        "red dress",
        "Clothing > Dresses",
        30.0,
    )
    assert first[0].image == "a1.png" and first[0].score > first[1].score
    assert ids([second]) == [["c1", "c2"]], "equal scores go by item id"
    assert second[1].image is None


def test_swaps_and_readers_write_nothing_to_a_collection_that_is_live(shop, services, monkeypatch):
    params = fake_shop.params_for(services)
    build(params, shop)

    def refuse(*_, **__):
        raise AssertionError("only a build seals")

    monkeypatch.setattr("pymilvus.MilvusClient.flush", refuse)
    swapping.swap(params, shop)
    with reading(services) as reader:
        assert ids(reader.search(["red dress"], k=1)) == [["a1"]]


def test_a_cut_through_a_tie_goes_by_item_id(live, services):
    with reading(services) as reader:
        assert ids(reader.search(["leather boots"], k=1)) == [["c1"]]


def test_unknown_price_and_category_come_back_as_nothing(live, services):
    with reading(services) as reader:
        hits = {hit.item_id: hit for hit in reader.search(["blue"], k=6)[0]}
    assert len(hits) == 6
    assert hits["a2"].price is None
    assert hits["b2"].category == ""


def test_the_same_words_mean_another_thing_to_another_shopper(live, services):
    with reading(services) as reader:
        answers = reader.search(["blue"] * 4, ["dresser", "shirty", None, "a stranger"], k=1)
        assert ids(answers)[:2] == [["a2"], ["b2"]]
        assert answers[2] == answers[3]
        history = reader.pair.shoppers.history("dresser")
    assert history.ages_hours == [3.0, 24.0], "ages count from the end of the window"


def test_more_than_the_catalogue_is_the_catalogue(live, services):
    with reading(services) as reader:
        assert len(reader.search(["red"], k=1000)[0]) == 6


FILTERS = [
    (Filter("Clothing"), {"a1", "a2", "b1"}),
    (Filter("Clothing > Dresses"), {"a1", "a2"}),
    (Filter("Cloth"), set()),
    (Filter("Shoes"), {"c1", "c2"}),
    (Filter(min_price=12), {"a1", "b2", "c1", "c2"}),
    (Filter(max_price=30), {"a1", "b1", "b2"}),
    (Filter("Clothing", 10, 30), {"a1", "b1"}),
    (Filter('"Shoes" or price > 0 \\ ü'), set()),
]


def test_a_filter_lets_through_what_it_says(live, services):
    with reading(services) as reader:
        for among, expected in FILTERS:
            hits = reader.search(["blue"], k=6, among=among)[0]
            assert {hit.item_id for hit in hits} == expected, among


def test_items_alike_leave_the_item_itself_out(live, services):
    with reading(services) as reader:
        boots, dress = reader.similar(["c1", "a1"], k=2)
        assert boots[0].item_id == "c2" and "c1" not in ids([boots])[0]
        assert len(reader.similar(["a1"], k=100)[0]) == 5
        assert ids(reader.similar(["a1"], among=Filter("Shoes"))) == [["c1", "c2"]]
        assert "a1" not in ids([dress])[0]
        with pytest.raises(DataError, match="item 'gone' is not in the live index"):
            reader.similar(["a1", "gone"])


def test_no_words_and_a_shopper_is_what_suits_them(live, services):
    with reading(services) as reader:
        dresser, shirty, nobody = reader.search(["", "", ""], ["dresser", "shirty", None])
    assert ids([dresser])[0][0] == "a2"
    assert dresser != nobody != shirty != dresser


def test_ids_and_categories_with_quotes_and_unicode(shop, services):
    odd = """6" 'pot' \\ ü 漢 []"""
    fake_shop.open_shop(shop, [(odd, 'a "pot"', f"Küche > {odd}", -5.0, None), *fake_shop.ITEMS])
    params = fake_shop.params_for(services)
    build(params, shop)
    swapping.swap(params, shop)
    with reading(services) as reader:
        (hit,) = reader.search(["pot"], k=5, among=Filter(f"Küche > {odd}"))[0]
        assert (hit.item_id, hit.category, hit.price) == (odd, f"Küche > {odd}", None)
        assert len(reader.similar([odd], k=3)[0]) == 3
        assert reader.pictures([odd]) == {odd: None}


def test_an_answer_begins_again_when_its_collection_is_replaced_and_dropped(live, services, monkeypatch):
    search = Store.search
    params = fake_shop.params_for(services)
    with opened(services) as store:
        reader = Reader(store, services)
        first = reader.pair
    fake_shop.train_challenger(live, services, seed=2)
    second = build(params, live)["collection"]

    def overtaken(store, collection, *arguments):
        if collection == first.collection:
            store.point(second)
            store.drop(first.collection)
        return search(store, collection, *arguments)

    with opened(services) as store:
        stamp = store.stamp(second)
        tracking.log_artifacts(services, stamp.run_id, live / "models/index/serving", f"serving/{second}")
        reader = Reader(store, services)
        monkeypatch.setattr(Store, "search", overtaken)
        assert ids(reader.search(["red dress"], k=1)) == [["a1"]]
        assert reader.pair.collection == second


def test_a_failure_of_what_is_still_live_is_an_error(live, services, monkeypatch):
    def broken(*_):
        raise ServiceError("Milvus is gone")

    with reading(services) as reader:
        monkeypatch.setattr(Store, "search", broken)
        with pytest.raises(ServiceError, match="Milvus is gone"):
            reader.search(["red dress"])


def test_a_reader_follows_the_alias_whole(live, services):
    params = fake_shop.params_for(services)
    with reading(services) as reader:
        before = reader.pair
        fake_shop.train_challenger(live, services, seed=2)
    build(params, live)
    swapping.swap(params, live)
    with opened(services) as store:
        reader = Reader(store, services)
        after = reader.pair
        assert after.stamp.model_version == before.stamp.model_version + 1
        assert after.retriever.fingerprint == after.stamp.model_fingerprint != before.stamp.model_fingerprint
        assert not reader.follow()
        store.point(before.collection)
        assert ids(reader.search(["red dress"], k=1)) == [["a1"]]
        assert reader.pair.collection == before.collection
        assert reader.pair.retriever.fingerprint == before.stamp.model_fingerprint


def test_a_reader_needs_only_the_two_services(live, services, tmp_path):
    shutil.rmtree(live / "models")
    shutil.rmtree(live / "data")
    with reading(services) as reader:
        assert ids(reader.search(["red dress"], ["dresser"], k=1)) != []


def test_a_second_reader_asks_mlflow_nothing(live, services, monkeypatch):
    with reading(services):
        pass
    for name in ("download_package", "download_artifacts"):
        monkeypatch.setattr(tracking, name, lambda *_: pytest.fail("downloaded again"))
    with reading(services) as reader:
        assert ids(reader.search(["red dress"], k=1)) == [["a1"]]


def test_a_damaged_cache_is_fetched_again(live, services):
    with reading(services):
        pass
    (config,) = Path(services.cache_dir).glob("packages/*/config.json")
    config.write_text(json.dumps({"seed": 99}))
    with reading(services) as reader:
        assert reader.pair.retriever.seed == 1


def test_a_collection_of_another_model_is_refused(live, services):
    with opened(services) as store:
        name = store.target()
        store.write_stamp(name, store.stamp(name).with_(model_fingerprint="0" * 64))
    with pytest.raises(IndexFailed, match="MLflow holds another model under that number"), reading(services):
        pass
    assert list(Path(services.cache_dir).glob("packages/*")) == []


def test_an_unverified_collection_is_refused(live, services):
    with opened(services) as store:
        name = store.target()
        store.write_stamp(name, store.stamp(name).with_(state="building"))
    with pytest.raises(IndexFailed, match="no verified collection"), reading(services):
        pass


def test_nothing_live_is_said_and_nothing_made(services):
    with pytest.raises(ServiceError, match="nothing is live yet"), reading(services):
        pass
    assert not Path(services.milvus_uri).exists()

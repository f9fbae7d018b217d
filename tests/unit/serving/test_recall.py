"""The reader: one pair of encoder and collection, never a mixed one; ties; histories; caches."""

import json
import shutil
from pathlib import Path

import pytest

from mrse import tracking
from mrse.errors import IndexFailed, ServiceError
from mrse.index import swap as swapping
from mrse.index.build import build
from mrse.index.client import opened
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

"""What `build_index` writes, refuses, keeps and replaces, on six items in a real Milvus Lite."""

from dataclasses import replace

import fsspec
import numpy as np
import pytest

from mrse.errors import DataError, IndexFailed, ServiceError
from mrse.index import build as stage
from mrse.index.client import ALIAS, Store, opened
from mrse.index.filters import UNKNOWN_PRICE
from mrse.jsonfile import read_json, write_json
from mrse.model.arrays import HistoryBank
from tests import fake_shop
from tests.unit.index.test_client import STAMP


def run(shop, services, **sections):
    return stage.build(fake_shop.params_for(services, **sections), shop)


def test_a_promoted_challenger_becomes_a_verified_stamped_collection(shop, services):
    index = run(shop, services)
    assert index == read_json(shop / "models/index/index.json")
    assert (index["status"], index["rows"]) == ("built", 6)
    version = read_json(shop / "models/challenger.json")["version"]
    snapshot = read_json(shop / "data/clean/snapshot.json")["fingerprint"]
    assert index["collection"].startswith(f"mrse_v{version}_{snapshot[:8]}_")
    assert index["verification"]["recall"] == {"3": {"mean": 1.0, "p5": 1.0}}
    assert index["verification"]["sampled_vectors"] == 6
    with opened(services) as store:
        stamp = store.stamp(index["collection"])
        assert stamp.as_dict() == index["stamp"]
        assert (stamp.state, stamp.model_version, stamp.rows) == ("verified", version, 6)
        assert store.target() is None, "building never touches what is live"
        retriever = fake_shop.FakeRetriever.load(shop / "models/challenger")
        query = retriever.encode_queries(["leather boots"])
        store.load(index["collection"])
        found = store.search(index["collection"], query, 3, {"ef": 8}, ["title", "category", "price", "image"])[0]
    assert [hit.item_id for hit in found][:2] == ["c1", "c2"], "equal scores go by item id"
    assert found[0].fields == {"title": "leather boots", "category": "Shoes", "price": 80.0, "image": "c1.png"}


def test_the_serving_folder_holds_what_the_query_side_needs(shop, services):
    run(shop, services)
    bank = HistoryBank.load(shop / "models/index/serving")
    assert bank.item_ids == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert (shop / "models/index/serving/users.parquet").read_bytes() == (
        shop / "data/profiles/users.parquet"
    ).read_bytes()


@pytest.mark.parametrize("outcome", ["HOLD", "REJECT"])
def test_what_the_gate_did_not_promote_is_not_built(shop, services, outcome):
    run(shop, services)
    fake_shop.decide(shop, outcome)
    index = run(shop, services)
    assert index["status"] == "skipped" and outcome in index["reason"]
    assert list((shop / "models/index/serving").iterdir()) == []


def test_a_promotion_holds_for_the_model_that_was_judged(shop, services):
    challenger = read_json(shop / "models/challenger.json")
    write_json(shop / "models/challenger.json", {**challenger, "version": 2, "fingerprint": "f" * 64})
    with pytest.raises(IndexFailed, match="version 2, which it has not judged; run the gate"):
        run(shop, services)


def test_nothing_is_opened_when_nothing_is_built(shop, services, tmp_path):
    fake_shop.decide(shop, "HOLD")
    run(shop, services)
    assert not (tmp_path / "milvus.db").exists()


def test_the_same_inputs_keep_the_collection_and_other_inputs_make_another(shop, services):
    first = run(shop, services)
    again = run(shop, services)
    assert again["stamp"] == first["stamp"], "kept, not rebuilt: the time of creation is the first one's"
    other = run(shop, services, build_index={"type": "FLAT", "verify": {"recall_k": [3]}})
    assert other["collection"] != first["collection"]
    with opened(services) as store:
        assert set(store.collections()) == {first["collection"], other["collection"]}


@pytest.mark.parametrize("index_type", ["HNSW", "IVF_FLAT", "FLAT", "AUTOINDEX"])
def test_every_index_type_builds_and_finds(shop, services, index_type):
    index = run(shop, services, build_index={"type": index_type, "verify": {"recall_k": [3]}})
    assert index["verification"]["recall"] == {"3": {"mean": 1.0, "p5": 1.0}}


@pytest.mark.parametrize("step", ["create", "insert", "load", "count", "write_stamp"])
def test_a_build_that_dies_anywhere_is_built_anew_by_the_next(shop, services, step, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, step, _interrupt)
        run(shop, services)
    assert not (shop / "models/index/index.json").exists()
    index = run(shop, services)
    with opened(services) as store:
        assert set(store.collections()) == {index["collection"]}
        assert store.count(index["collection"]) == 6
        assert store.stamp(index["collection"]).state == "verified"


def test_what_a_kill_tore_in_milvus_lite_is_in_nobodys_way(shop, services, tmp_path):
    index = run(shop, services)
    with opened(services) as store:
        store.drop(index["collection"])
    torn = [tmp_path / "milvus.db/collections" / name for name in (index["collection"], "mrse_v0_dropped")]
    for folder in torn:  # a kill behind mkdir, and one before the last file was deleted
        folder.mkdir()
        (folder / "rest").touch()
    assert run(shop, services)["collection"] == index["collection"]
    assert not torn[1].exists()


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_file_that_a_killed_import_left_goes_with_the_next_import(services, tmp_path, monkeypatch, request, place):
    folder = str(tmp_path / "[a]") if place == "folder" else f"{request.getfixturevalue('bucket')}/import"
    system, root = fsspec.url_to_fs(folder)
    content = stage.Content(["a"], ["t"], [""], [1.0], [""], np.eye(1, 4, dtype=np.float32))
    read = []
    monkeypatch.setattr(Store, "bulk_import", lambda store, name, file: read.append(file))
    left = [f"{root}/{name}.parquet" for name in ("mrse_v1_gone", "mrse_v2_whole", "mrse_v3_begun", "of_others")]
    system.makedirs(root, exist_ok=True)
    for path in left:
        system.touch(path)
    with opened(services) as store:
        for name, state in (("mrse_v2_whole", "verified"), ("mrse_v3_begun", "building")):
            store.create(name, fake_shop.params_for(services).build_index, STAMP.with_(state=state))
        stage._bulk_import(store, "mrse_v4_new", content, folder, 10)
    assert read == [f"{root}/mrse_v4_new.parquet" if place == "folder" else "import/mrse_v4_new.parquet"]
    assert sorted(system.find(root)) == left[2:]


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("s3://no-such-bucket/x", "mrse_v4_new.parquet: cannot be written: The specified bucket does not exist"),
        ("/dev/null/x", "mrse_v4_new.parquet: cannot be written: .*; build_index.bulk_folder names its place"),
    ],
)
def test_a_place_for_bulk_import_that_cannot_be_written_is_one_error(services, bucket, folder, why):
    content = stage.Content(["a"], ["t"], [""], [1.0], [""], np.eye(1, 4, dtype=np.float32))
    with opened(services) as store, pytest.raises(IndexFailed, match=why):
        stage._bulk_import(store, "mrse_v4_new", content, folder, 10)


def test_a_package_that_bulk_import_lacks_is_told_before_anything_is_embedded(shop, services, monkeypatch):
    monkeypatch.setattr(stage, "embed", pytest.fail)
    server = services.model_copy(update={"milvus_uri": "http://127.0.0.1:9"})
    with pytest.raises(DataError, match=r"build_index\.bulk_folder: cannot open gs://bucket/import: .*gcsfs"):
        run(shop, server, build_index={"bulk_folder": "gs://bucket/import"})


def test_a_half_filled_leftover_does_not_leak_rows(shop, services, monkeypatch):
    calls = []

    def fail_on_second(store, name, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        insert(store, name, rows)

    insert = Store.insert
    small = {"batch_size": 4, "verify": {"recall_k": [3]}}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "insert", fail_on_second)
        run(shop, services, build_index=small)
    assert calls == [4, 2]
    assert run(shop, services, build_index=small)["rows"] == 6


def test_a_passing_failure_of_an_insert_is_tried_again(shop, services, monkeypatch):
    failed = []
    call = Store._call

    def flaky(store, method, *arguments, **options):
        if method == "insert" and not failed:
            call(store, method, *arguments, **options)  # the rows arrive, the answer is lost
            failed.append(method)
            raise ServiceError("connection reset")
        return call(store, method, *arguments, **options)

    monkeypatch.setattr(Store, "_call", flaky)
    assert run(shop, services)["rows"] == 6
    assert failed == ["insert"]


def test_an_index_that_misses_its_recall_is_dropped(shop, services, monkeypatch):
    def blind(store, collection, vectors, k, params, fields=()):
        return [hits[:1] for hits in search(store, collection, vectors, k, params, fields)]

    search = Store.search
    monkeypatch.setattr(Store, "search", blind)
    with pytest.raises(IndexFailed, match=r"recall@3 .* mean .* 0\.333 < 0\.950"):
        run(shop, services)
    with opened(services) as store:
        assert store.collections() == {}


@pytest.mark.parametrize(
    ("verify", "message"),
    [({"max_p99_ms": 1e-6}, "p99 of single queries"), ({"keep_failed": True}, "Milvus has not loaded it")],
)
def test_a_collection_that_fails_is_dropped_or_kept_as_configured(shop, services, monkeypatch, verify, message):
    monkeypatch.setattr(Store, "loaded", lambda *_: "max_p99_ms" in verify)
    with pytest.raises(IndexFailed, match=message):
        run(shop, services, build_index={"verify": {"recall_k": [3], **verify}})
    with opened(services) as store:
        assert [stamp.state for stamp in store.collections().values()] == ["failed"] * verify.get("keep_failed", False)


def test_a_failed_collection_that_was_kept_is_built_anew(shop, services, monkeypatch):
    keep = {"verify": {"recall_k": [3], "keep_failed": True}}
    with monkeypatch.context() as patch, pytest.raises(IndexFailed):
        patch.setattr(Store, "count", lambda *_: 5)
        run(shop, services, build_index=keep)
    name = run(shop, services, build_index=keep)["collection"]
    with opened(services) as store:
        assert {n: stamp.state for n, stamp in store.collections().items()} == {name: "verified"}


def test_an_empty_catalogue_and_one_of_a_single_item(shop, services, tmp_path):
    fake_shop.open_shop(shop, [])
    with pytest.raises(IndexFailed, match="there are no items to index"):
        run(shop, services)
    assert not (tmp_path / "milvus.db").exists()
    fake_shop.open_shop(shop, fake_shop.ITEMS[:1])
    assert run(shop, services)["rows"] == 1


def test_a_long_title_is_cut_and_a_price_that_is_none_is_unknown(shop, services):
    items = [("a", "ü" * 3000, None, -1e9, None), ("b", "b", "C" * 600, float("inf"), "i" * 2000)]
    fake_shop.open_shop(shop, items)
    name = run(shop, services)["collection"]
    with opened(services) as store:
        store.load(name)
        rows = store.fetch(name, ["a", "b"], ["title", "category", "price", "image"])
    assert rows["a"]["title"] == "ü" * 1024 and rows["b"]["category"] == "C" * 512 and rows["b"]["image"] == "i" * 1024
    assert rows["a"]["price"] == rows["b"]["price"] == UNKNOWN_PRICE


def test_a_server_that_asks_for_fewer_writes_is_given_time(shop, services, monkeypatch):
    from pymilvus.exceptions import MilvusException

    pauses, refused = [], []
    monkeypatch.setattr("mrse.index.client.time.sleep", pauses.append)
    with opened(services) as store:
        insert = store._client.upsert

        def throttled(*arguments, **options):
            if len(refused) < 8:
                refused.append(1)
                raise MilvusException(code=8, message="rate limit exceeded")
            return insert(*arguments, **options)

        store.create("mrse_v1_x", fake_shop.params_for(services).build_index, STAMP)
        monkeypatch.setattr(store._client, "insert", throttled)
        monkeypatch.setattr(store._client, "upsert", throttled)
        row = {"item_id": "a", "title": "", "category": "", "image": "", "price": 1.0, "vector": [1.0, 0, 0, 0]}
        store.insert("mrse_v1_x", [row])
        store.seal("mrse_v1_x")
        store.load("mrse_v1_x")
        assert store.count("mrse_v1_x") == 1
    assert len(refused) == 8 and max(pauses) == 10.0


def test_a_live_collection_survives_its_own_failed_verification(shop, services, monkeypatch):
    name = run(shop, services)["collection"]
    with opened(services) as store:
        store.point(name)
    monkeypatch.setattr(Store, "count", lambda *_: 5)
    with pytest.raises(IndexFailed, match="5 rows, 6 were embedded"):
        run(shop, services)
    with opened(services) as store:
        assert store.target(ALIAS) == name and store.has(name)


def test_a_challenger_that_is_not_the_registered_one_is_refused(shop, services):
    challenger = read_json(shop / "models/challenger.json")
    write_json(shop / "models/challenger.json", {**challenger, "fingerprint": "0" * 64})
    fake_shop.decide(shop, "PROMOTE")
    with pytest.raises(DataError, match="run the train stage again"):
        run(shop, services)


def _interrupt(*_, **__):
    raise KeyboardInterrupt


UNIT = np.eye(3, 4, dtype=np.float32)
GOOD = stage.Content(["a", "b", "c"], ["t"] * 3, [""] * 3, [1.0] * 3, [""] * 3, UNIT)


def broken(row, value):
    vectors = UNIT.copy()
    vectors[row] = value
    return vectors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (replace(GOOD, vectors_ND=UNIT[:, :3]), r"shape \(3, 3\)"),
        (replace(GOOD, item_ids=["a", "b", "a"]), "1 item ids appear twice"),
        (replace(GOOD, item_ids=["a", "b", "é" * 300]), "longer than 512 bytes"),
        (replace(GOOD, vectors_ND=broken(1, np.nan)), "1 vectors are not finite, the first is of item 'b'"),
        (replace(GOOD, vectors_ND=broken(2, np.inf)), "not finite, the first is of item 'c'"),
        (replace(GOOD, vectors_ND=broken(0, 0.0)), "item 'a' is off by 1"),
    ],
)
def test_rows_that_would_make_a_broken_index_are_refused(content, message):
    stage.check(GOOD, 4)
    with pytest.raises(IndexFailed, match=message):
        stage.check(content, 4)


def test_bad_vectors_stop_before_milvus_is_touched(shop, services, monkeypatch, tmp_path):
    fuse = fake_shop.FakeRetriever.fuse_items

    def poisoned(self, *arguments):
        encoded = fuse(self, *arguments)
        encoded.vectors[3] = np.nan
        return encoded

    monkeypatch.setattr(fake_shop.FakeRetriever, "fuse_items", poisoned)
    with pytest.raises(IndexFailed, match="item 'b2'"):
        run(shop, services)
    assert not (tmp_path / "milvus.db").exists()


@pytest.mark.parametrize(
    ("text", "size", "expected"), [("abc", 3, "abc"), ("abcd", 3, "abc"), ("aé", 2, "a"), (None, 5, ""), ("é", 2, "é")]
)
def test_text_is_cut_between_characters(text, size, expected):
    assert stage.cut(text, size) == expected


def test_verification_asks_the_held_out_requests_with_their_histories(workspace):
    queries, histories = stage.held_out_queries(workspace, 10)
    assert queries == ["red dress", "shirt"]
    assert histories == [fake_shop.history("a2"), None]
    assert stage.held_out_queries(workspace, 1)[0] == ["red dress"]

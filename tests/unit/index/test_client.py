"""Milvus Lite by one process at a time, stamps, aliases, the lease: what the steps of a swap lean on."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from pymilvus.exceptions import MilvusException

from mrse.config import IndexConfig, ServicesConfig
from mrse.errors import ConfigError, DataError, IndexFailed, ServiceError
from mrse.index.client import Stamp, Store, check_served, exists, opened, parse_stamp
from mrse.index.lease import lease
from mrse.jsonfile import read_handed
from tests import fake_shop

STAMP = Stamp(
    model_version=3,
    model_fingerprint="f" * 64,
    run_id="run",
    snapshot_fingerprint="s" * 64,
    window_start="2026-03-01T00:00:00+00:00",
    window_end="2026-03-15T00:00:00+00:00",
    simulated=True,
    image_root="zip://::bilder/ä.zip",
    rows=0,
    ids_fingerprint="i",
    content_fingerprint="c",
    dim=4,
    index_type="FLAT",
    search_params={"ef": 8},
    created="2026-03-15T00:00:00+00:00",
)
HOLD = "import sys, time; from mrse.index.client import opened; from mrse.config import ServicesConfig\n"
HOLD += "with opened(ServicesConfig(milvus_uri=sys.argv[1])): print('open', flush=True); time.sleep(60)"


@pytest.fixture
def local(tmp_path):
    return ServicesConfig(milvus_uri=str(tmp_path / "new" / "milvus.db"))


def test_a_stamp_survives_the_store_and_can_change(local):
    with opened(local) as store:
        store.create("mrse_v3_x", IndexConfig(type="FLAT"), STAMP)
        assert store.stamp("mrse_v3_x") == STAMP
        store.write_stamp("mrse_v3_x", replace(STAMP, state="verified", previous="mrse_v2_x"))
    with opened(local) as store:
        assert store.collections() == {"mrse_v3_x": replace(STAMP, state="verified", previous="mrse_v2_x")}
        assert store.stamp("missing") is None


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"model_version": 3}', '{"unknown": 1}'])
def test_what_is_no_stamp_is_none(text):
    assert parse_stamp(text) is None


def test_one_build_is_the_same_before_and_after_going_live():
    assert STAMP.same_build(replace(STAMP, state="verified", since="now", previous="x"))
    assert not STAMP.same_build(replace(STAMP, created="later"))


def test_the_alias_is_made_moved_and_removed(local):
    with opened(local) as store:
        for name in ("mrse_v1_a", "mrse_v2_b"):
            store.create(name, IndexConfig(type="FLAT"), STAMP)
        assert store.target() is None
        for name in ("mrse_v1_a", "mrse_v2_b", "mrse_v2_b", None, None):
            store.point(name)
            assert store.target() == name
        store.point("mrse_v1_a")
        with pytest.raises(IndexFailed, match="is live; it is not deleted"):
            store.drop("mrse_v1_a")
        with pytest.raises(ServiceError, match="alter_alias"):
            store.point("missing")
        assert store.target() == "mrse_v1_a"


def test_an_alias_that_outlived_its_collection_is_moved(local, monkeypatch):
    with opened(local) as store:
        for name in ("mrse_v1_a", "mrse_v2_b"):
            store.create(name, IndexConfig(type="FLAT"), STAMP)
        store.point("mrse_v1_a")
        with monkeypatch.context() as patch:
            seen = iter([None, "mrse_v2_b"])  # Milvus 2.3 does not describe an alias whose collection is gone
            patch.setattr(Store, "target", lambda *_: next(seen))
            store.point("mrse_v2_b")
        assert store.target() == "mrse_v2_b"


def test_looking_makes_nothing(local, tmp_path):
    assert not exists(local)
    assert list(tmp_path.iterdir()) == []
    assert exists(ServicesConfig(milvus_uri="http://host:19530")), "a server is asked, not looked for"


GO = (
    "/src/pkg/tracer/stack_trace.go:51 x/pkg/tracer.StackTrace\n/src/client.go:550 x/grpcclient.(*ClientBase[...]).Call"
)
REASONS = [
    (
        f"attempt #0: stack trace: {GO}: attempt #0: session not found[node=4]",
        "attempt #0: attempt #0: session not found[node=4]",
    ),
    (f"no room: stack trace: {GO}", "no room"),
    (f"stack trace: {GO}", "MilvusException"),
    ("collection not found[collection=x]\n/src/a.go:1 b", "collection not found[collection=x]"),
]


@pytest.mark.parametrize(("message", "reason"), REASONS)
def test_the_reason_is_told_and_not_the_servers_stack(local, monkeypatch, message, reason):
    def fail(*_, **__):
        raise MilvusException(message=message)

    with opened(local) as store:
        monkeypatch.setattr(store._client, "has_collection", fail)
        with pytest.raises(ServiceError) as caught:
            store.has("mrse_v1_x")
    assert str(caught.value) == f"Milvus at {local.milvus_uri}: has_collection: {reason}"


def test_what_is_not_loaded_any_more_is_loaded_and_read_once_more(local, monkeypatch):
    row = {"item_id": "a", "title": "", "category": "", "image": "", "price": 1.0, "vector": [1.0, 0, 0, 0]}
    vectors_QD = np.eye(1, 4, dtype=np.float32)
    with opened(local) as store:
        store.create("mrse_v3_x", IndexConfig(type="FLAT"), STAMP)
        store.insert("mrse_v3_x", [row])
        store.seal("mrse_v3_x")
        reads = [
            lambda: [hit.item_id for hit in store.search("mrse_v3_x", vectors_QD, 1, {})[0]] == ["a"],
            lambda: list(store.fetch("mrse_v3_x", ["a"], ["title"])) == ["a"],
            lambda: list(store.ids("mrse_v3_x")) == ["a"],
            lambda: store.count("mrse_v3_x") == 1,
        ]
        for read in reads:
            store._client.release_collection("mrse_v3_x")
            assert read()
        store._client.release_collection("mrse_v3_x")
        monkeypatch.setattr(store._client, "load_collection", lambda *_, **__: None)
        with pytest.raises(ServiceError, match=r"search: .*load"):
            store.search("mrse_v3_x", vectors_QD, 1, {})


def test_ids_with_quotes_come_page_by_page(local):
    item_ids = [f'{n}"ä\\' for n in range(7)]
    row = {"title": "", "category": "", "image": "", "price": 1.0, "vector": [1.0, 0, 0, 0]}
    with opened(local) as store:
        store.create("mrse_v3_x", IndexConfig(type="FLAT"), STAMP)
        store.insert("mrse_v3_x", [{"item_id": item_id, **row} for item_id in reversed(item_ids)])
        store.seal("mrse_v3_x")
        assert list(store.ids("mrse_v3_x", batch_size=2)) == item_ids


def test_closing_lets_the_next_one_in_and_a_busy_folder_names_its_holder(local):
    with opened(local):
        pass
    other = subprocess.Popen([sys.executable, "-c", HOLD, local.milvus_uri], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "open\n"
        message = rf"in use by process {other.pid} \(.*one process at a time"
        with pytest.raises(ServiceError, match=message), opened(local, busy_seconds=0.2):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with opened(local) as store:
        assert store.collections() == {}


def test_an_address_that_is_none_is_explained(tmp_path):
    wrong = ServicesConfig(milvus_uri=str(tmp_path / "milvus"))
    with pytest.raises(ServiceError, match=r"neither a server .* nor a folder that ends in \.db"), opened(wrong):
        pass


def test_an_unreachable_server_is_an_error_within_seconds():
    started = time.perf_counter()
    gone = ServicesConfig(milvus_uri="http://127.0.0.1:9")
    with pytest.raises(ServiceError, match="does not answer"), opened(gone):
        pass
    assert time.perf_counter() - started < 15


def test_a_lease_is_held_released_and_taken_over_from_the_dead(tmp_path):
    with lease(tmp_path, 60) as held:
        held.check()
        with pytest.raises(IndexFailed, match=f"process {os.getpid()} "), lease(tmp_path, 60):
            pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with lease(tmp_path, 60):
        path = tmp_path / "swap.lease"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": dead.pid, "token": "theirs"}))
        with lease(tmp_path, 60) as mine:
            mine.check()
    path.write_text('{"token": "cut of')
    with lease(tmp_path, 60):
        pass
    assert json.loads(path.read_text()) == {}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"type": "FLAT", "build": {"M": 4}}, "build: FLAT takes no parameters, got M"),
        ({"type": "HNSW", "search": {"nprobe": 4}}, "search: HNSW takes ef, got nprobe"),
        ({"build": {"M": 0, "efConstruction": 8}}, "build_index.build.M"),
        ({"type": "ANNOY"}, "build_index.type"),
        ({"bulk_folder": "http://host/x"}, "bulk_folder: .*http://host/x is neither a folder nor a prefix in a bucket"),
        ({"bulk_folder": "zip://a::s3://bucket/x.zip"}, "is neither a folder nor a prefix in a bucket"),
    ],
)
def test_index_parameters_must_fit_the_type(raw, message):
    with pytest.raises(ConfigError, match=message):
        fake_shop.params_for(ServicesConfig(), build_index=raw)


def test_what_only_a_server_has_is_refused_before_anything_is_embedded(tmp_path):
    lite = ServicesConfig(milvus_uri=str(tmp_path / "milvus.db"))
    disk, bulk = IndexConfig.model_validate({"type": "DISKANN"}), IndexConfig(bulk_folder="/import")
    with pytest.raises(ConfigError, match=r"build_index\.type: Milvus Lite has no DISKANN; take another type, or"):
        check_served(lite, disk)
    with pytest.raises(
        ConfigError, match=r"build_index\.bulk_folder: Milvus Lite has no bulk import; make it null, or"
    ):
        check_served(lite, bulk)
    check_served(lite, IndexConfig())
    for config in (disk, bulk):
        check_served(ServicesConfig(milvus_uri="http://host:19530"), config)


def test_an_index_type_brings_its_own_parameters():
    assert IndexConfig.model_validate({"type": "IVF_FLAT"}).search == {"nprobe": 16}
    assert IndexConfig().build == {"M": 16, "efConstruction": 200}


def test_local_services_lie_under_the_workspace(tmp_path):
    placed = ServicesConfig().under(tmp_path)
    assert placed.milvus_uri == str(tmp_path / ".mrse/milvus.db")
    assert placed.mlflow_uri == f"sqlite:///{tmp_path}/.mrse/mlflow.db"
    remote = ServicesConfig(milvus_uri="http://m:1", mlflow_uri="https://t", state_dir="/s", cache_dir="/c")
    assert remote.under(tmp_path) == remote


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(DataError, match="run the gate stage first"):
        read_handed(tmp_path / "decision.json", "gate")
    (tmp_path / "decision.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_handed(tmp_path / "decision.json", "gate")

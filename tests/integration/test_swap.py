"""Going live, back and forth, and being killed on the way: real Milvus Lite, real MLflow on SQLite, a fake model."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mrse import tracking
from mrse.errors import IndexFailed, ServiceError
from mrse.index import swap as stage
from mrse.index.build import build
from mrse.index.client import ALIAS, Store, opened
from mrse.jsonfile import read_json, write_json
from tests import fake_shop

ROOT = Path(__file__).parents[2]


def run_build(shop, services):
    return build(fake_shop.params_for(services), shop)["collection"]


def run_swap(shop, services, **swap_index):
    return stage.swap(fake_shop.params_for(services, swap_index=swap_index), shop)


def publish_next(shop, services, seed, **swap_index):
    """One more day: a new challenger, promoted, built and put live."""
    version = fake_shop.train_challenger(shop, services, seed)
    name = run_build(shop, services)
    return version, name, run_swap(shop, services, **swap_index)


def state(services):
    with opened(services) as store:
        return stage.look(store, services)


def test_the_first_swap_goes_live(shop, services):
    name = run_build(shop, services)
    live = run_swap(shop, services)
    version = read_json(shop / "models/challenger.json")["version"]
    assert live == read_json(shop / "reports/live.json")
    assert (live["status"], live["collection"], live["previous"], live["version"]) == ("swapped", name, None, version)
    found = state(services)
    assert (found.collection, found.champion, found.known) == (name, version, True)
    assert datetime.now(UTC) - datetime.fromisoformat(live["since"]) < timedelta(minutes=5)
    assert tracking.champion(services).tags["collection"] == name


def test_a_second_day_replaces_the_first_and_remembers_it(shop, services):
    first = run_build(shop, services)
    run_swap(shop, services)
    version, name, live = publish_next(shop, services, seed=2)
    assert (live["collection"], live["previous"], live["version"]) == (name, first, version)
    assert state(services).champion == version


def test_a_hold_changes_nothing_and_says_so(shop, services):
    name = run_build(shop, services)
    before = run_swap(shop, services)
    fake_shop.train_challenger(shop, services, seed=2, outcome="HOLD")
    build(fake_shop.params_for(services), shop)
    live = run_swap(shop, services)
    assert live["status"] == "unchanged" and "HOLD" in live["reason"]
    assert (live["collection"], live["version"], live["since"]) == (name, before["version"], before["since"])
    assert state(services).champion == before["version"]


def test_a_hold_with_nothing_live_says_so(shop, services):
    fake_shop.decide(shop, "HOLD")
    build(fake_shop.params_for(services), shop)
    live = run_swap(shop, services)
    assert (live["status"], live["collection"], live["version"]) == ("unchanged", None, None)


def test_swapping_again_changes_nothing(shop, services):
    run_build(shop, services)
    assert run_swap(shop, services) == run_swap(shop, services)


STEPS = [
    "mrse.index.swap.tracking.tag_version",
    "mrse.index.swap.reconcile",
    "mrse.index.swap.publish",
    "mrse.index.swap.Store.load",
    "mrse.index.swap.Store.write_stamp",
    "mrse.index.swap.Store.point",
    "mrse.index.swap.smoke",
    "mrse.index.swap.cleanup",
    "mrse.index.swap.tracking.set_champion",
    "mrse.index.swap.write_json",
]


# The steps that others see run with every test, all of them with the longer proofs.
VISIBLE = [("mrse.index.swap.Store.write_stamp", True), ("mrse.index.swap.Store.point", True)]
ALL = [
    pytest.param(step, after, marks=() if (step, after) in VISIBLE else pytest.mark.slow, id=f"{step}-{after}")
    for step in STEPS
    for after in (False, True)
]


@pytest.mark.parametrize(("step", "after"), ALL)
def test_a_swap_that_dies_anywhere_converges_when_retried(shop, services, step, after, monkeypatch):
    first = run_build(shop, services)
    run_swap(shop, services)
    version = fake_shop.train_challenger(shop, services, seed=2)
    name = run_build(shop, services)

    with monkeypatch.context() as patch:
        original = _resolve(step)

        def die(*arguments, **options):
            if after:
                original(*arguments, **options)
            raise KeyboardInterrupt

        patch.setattr(step, die)
        with pytest.raises(KeyboardInterrupt):
            run_swap(shop, services)

    found = state(services)
    assert found.collection in (first, name), "something is live at every moment"
    live = run_swap(shop, services)
    assert (live["status"], live["collection"], live["previous"], live["version"]) == ("swapped", name, first, version)
    assert state(services).champion == version
    with opened(services) as store:
        assert set(store.collections()) == {first, name}


def _resolve(path):
    module, *names = path.removeprefix("mrse.index.swap.").split(".")
    value = getattr(stage, module)
    for name in names:
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(
    ("command", "step"),
    [
        pytest.param("build", "mrse.index.client.Store.load", marks=pytest.mark.slow),
        pytest.param("swap", "mrse.index.client.Store.point", marks=pytest.mark.slow),
        ("swap", "mrse.tracking.set_champion"),
    ],
)
def test_a_sigkill_leaves_no_lock_and_nothing_half_done(shop, services, command, step):
    first = run_build(shop, services)
    run_swap(shop, services)
    version = fake_shop.train_challenger(shop, services, seed=2)
    if command == "swap":
        run_build(shop, services)
    assert _stage(command, shop, services, step).returncode == -signal.SIGKILL
    assert state(services).collection is not None
    name = run_build(shop, services)
    live = run_swap(shop, services)
    assert (live["collection"], live["previous"], live["version"]) == (name, first, version)
    assert state(services).champion == version


def _stage(command, shop, services, step):
    environment = {
        **os.environ,
        "MRSE_MILVUS_URI": services.milvus_uri,
        "MLFLOW_TRACKING_URI": services.mlflow_uri,
        "MRSE_STATE_DIR": services.state_dir,
        "MRSE_CACHE_DIR": services.cache_dir,
    }
    return subprocess.run(
        [sys.executable, "-m", "tests.fake_shop", command, str(shop), "--kill-at", step],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )


def _finds_nothing(store, _alias, vectors_QD, *_):
    return [[] for _ in vectors_QD]


def _is_gone(*_):
    raise ServiceError("Milvus is gone")


@pytest.mark.parametrize(
    ("search", "error", "says"),
    [(_finds_nothing, IndexFailed, "does not find item"), (_is_gone, ServiceError, "Milvus is gone")],
)
def test_smoke_queries_that_fail_put_the_old_index_back(shop, services, monkeypatch, search, error, says):
    first = run_build(shop, services)
    run_swap(shop, services)
    version = fake_shop.train_challenger(shop, services, seed=2)
    second = run_build(shop, services)
    with monkeypatch.context() as patch, pytest.raises(error, match=f"{says}.*; {first} is live now"):
        patch.setattr(Store, "search", search)
        run_swap(shop, services)
    found = state(services)
    assert (found.collection, found.champion) == (first, found.stamp.model_version)
    with opened(services) as store:
        stamp = store.stamp(second)
    assert (stamp.state, stamp.since, stamp.previous) == ("verified", None, None), "it never served"
    with pytest.raises(IndexFailed, match=f"version {version} that was live is kept; kept versions: {version - 1}$"):
        stage.rollback(fake_shop.params_for(services), shop, to=version)


def test_a_first_index_whose_smoke_queries_fail_is_not_live(shop, services, monkeypatch):
    run_build(shop, services)
    with monkeypatch.context() as patch, pytest.raises(ServiceError, match="nothing is live now"):
        patch.setattr(Store, "search", _is_gone)
        run_swap(shop, services)
    assert state(services) is None
    assert run_swap(shop, services)["status"] == "swapped"


def test_going_back_that_fails_too_is_said(shop, services, monkeypatch):
    run_build(shop, services)
    point = Store.point
    monkeypatch.setattr(Store, "search", _finds_nothing)
    monkeypatch.setattr(Store, "point", lambda store, to: point(store, to) if to else _is_gone())
    with pytest.raises(
        IndexFailed, match=r"does not find item .*; going back to nothing failed too \(Milvus is gone\)"
    ):
        run_swap(shop, services)


@pytest.mark.parametrize("damage", ["dropped", "emptied", "unverified", "rebuilt"])
def test_a_collection_that_is_not_what_was_verified_does_not_go_live(shop, services, damage):
    name = run_build(shop, services)
    with opened(services) as store:
        stamp = store.stamp(name)
        if damage == "dropped":
            store.drop(name)
        elif damage == "emptied":
            store._client.delete(name, ids=["a1", "c2"])
        elif damage == "unverified":
            store.write_stamp(name, stamp.with_(state="building"))
        else:
            store.write_stamp(name, stamp.with_(created="2020-01-01T00:00:00+00:00"))
    expected = {"dropped": "is gone", "emptied": "4 rows", "unverified": "never verified", "rebuilt": "built anew"}
    with pytest.raises(IndexFailed, match=expected[damage]):
        run_swap(shop, services)
    assert state(services) is None


def test_an_index_of_another_model_is_refused(shop, services):
    run_build(shop, services)
    fake_shop.train_challenger(shop, services, seed=2)
    with pytest.raises(IndexFailed, match="run the build_index stage again"):
        run_swap(shop, services)


def test_a_decision_about_another_model_is_refused(shop, services):
    run_build(shop, services)
    decision = read_json(shop / "reports/decision.json")
    version = fake_shop.train_challenger(shop, services, seed=2, outcome="HOLD")
    write_json(shop / "reports/decision.json", decision)
    with pytest.raises(IndexFailed, match=f"names version {version}, which it has not judged; run the gate"):
        run_swap(shop, services)


def test_reconcile_makes_mlflow_follow_the_alias(shop, services):
    run_build(shop, services)
    live = run_swap(shop, services)
    other = fake_shop.train_challenger(shop, services, seed=2)
    tracking.set_champion(services, other)
    assert state(services).champion == other
    with opened(services) as store:
        stage.reconcile(store, services)
    assert tracking.champion(services).version == live["version"]


def test_an_alias_on_a_stranger_is_reported_not_moved(shop, services):
    name = run_build(shop, services)
    with opened(services) as store:
        store._client.create_collection("stranger", dimension=4)
        store._client.create_alias("stranger", ALIAS)
    with pytest.raises(IndexFailed, match="stranger, which carries no stamp"):
        run_swap(shop, services)
    with opened(services) as store:
        assert store.target() == "stranger" and store.has(name)


def test_rollback_goes_back_and_forth(shop, services):
    first = run_build(shop, services)
    old = run_swap(shop, services)["version"]
    new, second, _ = publish_next(shop, services, seed=2)
    params = fake_shop.params_for(services)

    back = stage.rollback(params, shop)
    assert (back.collection, back.stamp.model_version, back.champion) == (first, old, old)
    with pytest.raises(IndexFailed, match="replaced nothing"):
        stage.rollback(params, shop)
    forth = stage.rollback(params, shop, to=new)
    assert (forth.collection, forth.champion) == (second, new)
    assert forth.stamp.previous == first, "going forth again forgets nothing"
    with pytest.raises(IndexFailed, match=rf"version 4711 that was live is kept; kept versions: {old}, {new}"):
        stage.rollback(params, shop, to=4711)


def test_rollback_without_anything_live_says_so(shop, services):
    with pytest.raises(IndexFailed, match="nothing is live"):
        stage.rollback(fake_shop.params_for(services), shop)


def test_cleanup_keeps_what_is_needed_and_drops_the_rest(shop, services):
    names = [run_build(shop, services)]
    run_swap(shop, services)
    for seed in (2, 3):
        names.append(publish_next(shop, services, seed, keep_last=2)[1])
    with opened(services) as store:
        assert set(store.collections()) == set(names[1:]), "the oldest is gone, the live one and the one before it stay"
        template = store.stamp(names[-1])
        config = fake_shop.params_for(services).build_index
        hours_ago = (datetime.now(UTC) - timedelta(hours=30)).isoformat()
        store.create("mrse_v9_building", config, template.with_(state="building", created=_now()))
        store.create("mrse_v9_abandoned", config, template.with_(state="building", created=hours_ago))
        store.create("mrse_v9_staging", config, template.with_(since=None, created=hours_ago))
        store._client.create_alias("mrse_v9_staging", "staging")
        assert stage.cleanup(store, 2) == ["mrse_v9_abandoned"]
        assert "mrse_v9_staging" in store.collections()
        with pytest.raises(IndexFailed, match="is live; it is not deleted"):
            store.drop(names[-1])


def _now():
    return datetime.now(UTC).isoformat()


def test_two_swaps_at_once_are_one_error(shop, services):
    run_build(shop, services)
    lease = Path(services.state_dir) / "swap.lease"
    lease.parent.mkdir(parents=True, exist_ok=True)
    far = datetime.now(UTC).timestamp() + 60
    lease.write_text(json.dumps({"token": "x", "pid": 17, "host": "elsewhere", "expires": far}))
    with pytest.raises(IndexFailed, match="process 17 on elsewhere is swapping"):
        run_swap(shop, services)
    assert state(services) is None
    lease.write_text(json.dumps({"token": "x", "pid": 17, "host": "elsewhere", "expires": far - 61}))
    assert run_swap(shop, services)["status"] == "swapped"


def test_a_swap_that_lost_its_lease_moves_nothing(shop, services, monkeypatch):
    run_build(shop, services)
    original = Store.write_stamp

    def slow(store, name, stamp):
        original(store, name, stamp)
        Path(services.state_dir, "swap.lease").write_text(json.dumps({"token": "another"}))

    monkeypatch.setattr(Store, "write_stamp", slow)
    with pytest.raises(IndexFailed, match="took longer than its lease"):
        run_swap(shop, services)
    assert state(services) is None


def test_a_swap_that_lost_its_lease_leaves_the_other_swap_alone(shop, services, monkeypatch):
    name = run_build(shop, services)
    theirs = "2031-01-01T00:00:00+00:00"

    original = Store.write_stamp

    def lost(_lease):
        raise IndexFailed("the lease is lost")

    def overtaken(store, collection, stamp):
        original(store, collection, stamp.with_(since=theirs))
        store.point(collection)

    monkeypatch.setattr(Store, "write_stamp", overtaken)
    monkeypatch.setattr("mrse.index.lease.Lease.check", lost)
    with pytest.raises(IndexFailed, match=f"is lost; {name} is live now"):
        run_swap(shop, services)
    found = state(services)
    assert (found.collection, found.stamp.since) == (name, theirs)


def test_an_unreachable_milvus_is_one_error_within_seconds(shop, services):
    gone = services.model_copy(update={"milvus_uri": "http://127.0.0.1:9"})
    with pytest.raises(ServiceError, match=r"Milvus at http://127\.0\.0\.1:9 does not answer"):
        build(fake_shop.params_for(gone), shop)

"""What goes wrong around an index, each with the outcome that docs/index.md promises.

The server is `milvus-lite server` behind a proxy on loopback; with `MRSE_TEST_MILVUS_URI` it is the one named there.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest

from mrse.errors import IndexFailed, MrseError, ServiceError
from mrse.index import swap as stage
from mrse.index.build import _COLUMNS, build
from mrse.index.client import ALIAS, STAMP, Store, opened
from mrse.serving.recall import reading
from mrse.serving.status import describe
from tests import fake_shop


class _Line:
    """A proxy on loopback: every 16 KiB take `delay` seconds; once it is cut, connections break and are refused."""

    def __init__(self, target):
        self.delay, self.port, self._target = 0.0, 0, target
        self.mend()

    def mend(self):
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._sockets = [listener]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def slow(self):
        self.delay = 1.0

    def cut(self):
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                here, there = listener.accept()[0], socket.create_connection(self._target)
                self._sockets += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, one, other):
        with contextlib.suppress(OSError):
            while chunk := one.recv(16384):
                time.sleep(self.delay)
                other.sendall(chunk)
            other.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(services, tmp_path):
    """A line to a server that is well, and the settings of who is at its other end."""
    with contextlib.ExitStack() as stack:
        if os.environ.get("MRSE_TEST_MILVUS_URI"):
            there = urlsplit(services.milvus_uri)
            target = (there.hostname, there.port)
        else:
            target = stack.enter_context(_served(tmp_path / "served.db"))
        line = _Line(target)
        stack.callback(line.cut)
        yield line


@contextlib.contextmanager
def _served(folder):
    """Milvus Lite as a server of its own; its address."""
    address = "127.0.0.1", _free_port()
    command = [Path(sys.executable).with_name("milvus-lite"), "server", "--data-dir", folder]
    process = subprocess.Popen(
        [*command, "--host", address[0], "--port", str(address[1])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and socket.socket().connect_ex(address):
            time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def far(shop, services, line):
    """The shop with its index on the server behind the line: parameters and settings."""
    services = services.model_copy(update={"milvus_uri": f"http://127.0.0.1:{line.port}"})
    fake_shop.train_challenger(shop, services, seed=1)
    return fake_shop.params_for(services), services


def _publish(shop, params):
    return build(params, shop)["collection"], stage.swap(params, shop)["version"]


def test_a_slow_line_costs_time_alone(shop, line, far):
    params, services = far
    line.delay = 0.02
    _, version = _publish(shop, params)
    with reading(services) as reader:
        began = time.monotonic()
        assert reader.search(["red dress"], k=1)[0][0].item_id == "a1"
        assert time.monotonic() - began > 2 * line.delay
    assert f"version {version}, as live" in describe(services, shop)


@pytest.mark.slow
def test_a_line_slower_than_a_call_may_take_is_one_error_and_the_live_index_stays(shop, line, far, monkeypatch):
    params, services = far
    first, version = _publish(shop, params)
    fake_shop.train_challenger(shop, services, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "insert", _after(lambda: _strain(patch, 0.4, line.slow), Store.insert))
        with pytest.raises(ServiceError, match=r"^Milvus at http://127\.0\.0\.1:\d+: \w+: "):
            build(params, shop)
    assert line.delay
    line.delay = 0.0
    assert _soon(lambda: _target(services)) == first
    assert _publish(shop, params)[1] == version + 1, "the next run converges"


def _strain(patch, patience, event):
    """Let something happen to the line, and wait no longer than that for a call from then on."""
    patch.setattr("mrse.index.client._CALL_SECONDS", patience)
    patch.setattr("mrse.index.client._LOAD_SECONDS", patience)
    event()


@pytest.mark.parametrize("step", [pytest.param("insert", marks=pytest.mark.slow), "point"])
def test_a_line_that_is_cut_is_one_error_and_the_next_run_converges(shop, line, far, monkeypatch, step):
    params, services = far
    first, version = _publish(shop, params)
    fake_shop.train_challenger(shop, services, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(Store, step, _after(lambda: _strain(patch, 1.0, line.cut), getattr(Store, step)))
        with pytest.raises(ServiceError):
            _publish(shop, params)
    line.mend()
    assert _soon(lambda: _target(services)) == first
    assert _publish(shop, params)[1] == version + 1


def _target(services):
    with opened(services) as store:
        return store.target()


def _soon(call):
    """Again for some seconds: gRPC looks only now and then whether a broken line is mended."""
    give_up = time.monotonic() + 30
    while True:
        try:
            return call()
        except ServiceError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)


def _after(event, call):
    def late(*arguments):
        event()
        return call(*arguments)

    return late


def test_a_reader_whose_line_is_cut_answers_again_once_it_is_mended(shop, line, far, monkeypatch):
    params, services = far
    _publish(shop, params)
    monkeypatch.setattr("mrse.index.client._CALL_SECONDS", 2.0)
    with reading(services) as reader:
        line.cut()
        with pytest.raises(ServiceError, match=r"^Milvus at http://127\.0\.0\.1:\d+: "):
            reader.search(["red dress"], k=1)
        line.mend()
        monkeypatch.setattr("mrse.index.client._CALL_SECONDS", 60.0)
        assert _soon(lambda: reader.search(["red dress"], k=1))[0][0].item_id == "a1"


def test_a_server_that_refuses_connections_is_one_error_of_every_command(shop, services):
    port = _free_port()
    gone = services.model_copy(update={"milvus_uri": f"http://127.0.0.1:{port}"})
    build(fake_shop.params_for(services), shop)
    params = fake_shop.params_for(gone)
    commands = [
        lambda: build(params, shop),
        lambda: stage.swap(params, shop),
        lambda: stage.rollback(params, shop),
        lambda: describe(gone, shop),
        lambda: reading(gone).__enter__(),
    ]
    for command in commands:
        with pytest.raises(ServiceError, match=rf"Milvus at http://127\.0\.0\.1:{port} does not answer"):
            command()
    assert Path(services.state_dir, "swap.lease").read_text() == "{}", "nobody holds the lease any more"


def test_two_runs_at_once_are_one_result_or_one_error_and_nothing_breaks(shop, far):
    params, services = far
    first, version = _publish(shop, params)
    fake_shop.train_challenger(shop, services, seed=2)
    outcomes, together = [], threading.Barrier(2)

    def run():
        together.wait()
        try:
            outcomes.append(_publish(shop, params)[1])
        except MrseError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(outcome == version + 1 or isinstance(outcome, MrseError) for outcome in outcomes) and len(outcomes) == 2
    with opened(services) as store:
        live = stage.look(store, services)
        store.load(live.collection)
        assert live.collection == first or live.stamp.model_version == version + 1
        assert (live.stamp.state, store.count(live.collection)) == ("verified", live.stamp.rows)
    second, newest = _publish(shop, params)
    assert newest == version + 1
    with opened(services) as store:
        assert set(store.collections()) == {first, second}


def _mounts():
    return os.geteuid() == 0 and subprocess.run(["mount", "-V"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _mounts(), reason="a disk that is full is mounted, which takes root")
@pytest.mark.slow
@pytest.mark.parametrize("full", ["milvus", "cache"])
def test_a_full_disk_is_one_error_and_the_next_run_goes_on_once_there_is_room(shop, services, tmp_path, full):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        place = {"milvus_uri": str(disk / "milvus.db")} if full == "milvus" else {"cache_dir": str(disk)}
        _fill_and_make_room(shop, services.model_copy(update=place), disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _fill_and_make_room(shop, services, disk):
    params = fake_shop.params_for(services, build_index={"type": "FLAT", "verify": {"recall_k": [3]}})
    first, version = _publish(shop, params)
    count = 12_000
    fake_shop.open_shop(shop, [(f"i{n}", f"red dress n{n}", None, 1.0, None) for n in range(count)])
    fake_shop.train_challenger(shop, services, seed=2)
    for _ in range(2):
        with pytest.raises((ServiceError, IndexFailed), match=r"No space left on device|disk"):
            build(params, shop)
        with opened(services) as store:
            store.load(first)
            assert (store.target(), store.count(first)) == (first, 6), "what is live stays live"
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    second, newest = _publish(shop, params)
    with opened(services) as store:
        assert newest == version + 1 and set(store.collections()) == {first, second} and store.count(second) == count


def test_a_stranger_at_the_alias_is_told_by_all_and_undone_by_hand(shop, services):
    params = fake_shop.params_for(services)
    name, version = _publish(shop, params)
    with opened(services) as store:
        store._client.create_collection("stranger", dimension=4)
        store._client.alter_alias("stranger", ALIAS)
        with pytest.raises(IndexFailed, match="stranger, which carries no stamp of MRSE; move the alias by hand"):
            stage.reconcile(store, services)
    with pytest.raises(IndexFailed, match="stranger, which carries no stamp"):
        describe(services, shop)
    with pytest.raises(IndexFailed, match="stranger, which is no verified collection of MRSE"), reading(services):
        pass
    with opened(services) as store:
        store.point(name)
        assert stage.reconcile(store, services).champion == version


def test_an_alias_that_somebody_moved_to_another_collection_of_ours_is_followed(shop, services):
    params = fake_shop.params_for(services)
    first, old = _publish(shop, params)
    fake_shop.train_challenger(shop, services, seed=2)
    _publish(shop, params)
    with reading(services) as reader:
        reader._store.point(first)
        assert reader.follow() and reader.pair.stamp.model_version == old
        assert stage.reconcile(reader._store, services).champion == old


@pytest.mark.parametrize("removed", ["alias", "collection"])
def test_what_is_removed_behind_our_back_is_told_and_comes_back_with_the_next_run(shop, services, removed):
    params = fake_shop.params_for(services)
    name, version = _publish(shop, params)
    with reading(services) as reader:
        if removed == "collection":
            reader._store._client.drop_collection(name)
        else:
            reader._store.point(None)
        with pytest.raises(ServiceError, match="nothing is live yet"):
            reader.search(["red dress"])
    assert f"nothing is live, but MLflow's champion is version {version}" in describe(services, shop)
    with pytest.raises(IndexFailed, match="nothing is live, so there is nothing to roll back from"):
        stage.rollback(params, shop)
    if removed == "collection":
        with pytest.raises(IndexFailed, match=f"collection {name} is gone"):
            stage.swap(params, shop)
    assert _publish(shop, params) == (name, version)
    with reading(services) as reader:
        assert reader.search(["red dress"], k=1)[0][0].item_id == "a1"


TAMPERED = [
    ({"model_fingerprint": "0" * 64}, "was built anew by another run", "MLflow holds another model under that number"),
    ({"state": "failed"}, "was never verified", "no verified collection of MRSE"),
    ({"dim": 4}, "was built anew by another run", "was not made with the model in"),
    (None, "is gone, or its stamp cannot be read", "no verified collection of MRSE"),
]


def test_a_stamp_that_was_tampered_with_is_neither_swapped_in_nor_read(shop, services):
    params = fake_shop.params_for(services)
    name = build(params, shop)["collection"]
    for change, swapped, read in TAMPERED:
        with opened(services) as store:
            whole = store.stamp(name)
            _tamper(store, name, change)
        with pytest.raises(IndexFailed, match=swapped):
            stage.swap(params, shop)
        with opened(services) as store:
            assert store.target() is None
            store.point(name)
        with pytest.raises(IndexFailed, match=read), reading(services):
            pass
        with opened(services) as store:
            store.point(None)
            store.write_stamp(name, whole)
    assert stage.swap(params, shop)["status"] == "swapped"


def _tamper(store, name, change):
    if change is None:
        store._client.alter_collection_properties(name, properties={STAMP: "{"})
    else:
        store.write_stamp(name, store.stamp(name).with_(**change))


BULK = os.environ.get("MRSE_TEST_BULK")


@pytest.mark.slow
@pytest.mark.skipif(BULK is None, reason="MRSE_TEST_BULK names no place that the server of MRSE_TEST_MILVUS_URI reads")
def test_a_bulk_import_is_what_inserting_is_and_one_that_fails_is_one_error(shop, services, monkeypatch):
    fake_shop.open_shop(shop, [(f'"{n}"ä', f"red dress n{n}", 'Çä "x"', float(n), None) for n in range(3000)])
    inserted = build(fake_shop.params_for(services), shop)
    with opened(services) as store:
        store.drop(inserted["collection"])
    params = fake_shop.params_for(services, build_index={"bulk_folder": BULK})
    imported = build(params, shop)
    assert imported["fingerprint"] == inserted["fingerprint"], "verified: rows, ids and vectors"
    with opened(services) as store:
        row = store.fetch(imported["collection"], ['"7"ä'], ["title", "category", "price"])['"7"ä']
        assert row == {"item_id": '"7"ä', "title": "red dress n7", "category": 'Çä "x"', "price": 7.0}
        store.drop(imported["collection"])
    system, folder = fsspec.url_to_fs(BULK)
    assert system.glob(f"{folder}/*.parquet") == []
    monkeypatch.setattr("mrse.index.build._COLUMNS", _COLUMNS.remove(0))
    with pytest.raises(ServiceError, match="bulk import"):
        build(params, shop)
    assert system.glob(f"{folder}/*.parquet") == []

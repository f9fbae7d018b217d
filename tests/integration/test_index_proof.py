"""Readers beside swaps, and stages killed at random moments. Small with every test, long with `make test-slow`.

`MRSE_TEST_MILVUS_URI=http://host:19530 pytest -m slow -s tests/integration/test_index_proof.py` asks a server; what
was measured is printed. `MRSE_PROOF_SWAPS` and `MRSE_PROOF_KILLS` make the long versions shorter. `MRSE_TEST_RESTART`
is a command that kills the server and starts it again.
"""

import contextlib
import itertools
import multiprocessing
import os
import pkgutil
import random
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mrse.errors import ServiceError
from mrse.index import swap as stage
from mrse.index.build import build
from mrse.index.client import Store, opened
from mrse.serving.recall import Reader
from mrse.serving.status import describe
from tests import fake_shop

_PRELOADED = [
    "tests.fake_shop",
    "mrse.index.swap",
    "mrse.serving.recall",
    "mrse.serving.status",
    "pymilvus",
    "mlflow.tracking",
    "milvus_lite.db",
]
_PRELOADED += ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_PRELOADED)
_BATCH = 32
_K = 10
_KEPT = 3
_PATIENCE = 1800.0  # seconds, for readers on a slow machine to meet every collection
WORDS = [
    f"{colour} {kind}" for colour in ("red", "blue", "green", "grey") for kind in ("dress", "shirt", "boots", "hat")
]


def _publish(shop, services, seed, count):
    """A day whose items all carry the model's seed in their titles, built and put live."""
    items = [(f"s{seed}i{n}", f"{WORDS[n % len(WORDS)]} n{n} s{seed}", None, float(n), None) for n in range(count)]
    fake_shop.open_shop(shop, items)
    version = fake_shop.train_challenger(shop, services, seed)
    params = fake_shop.params_for(services, build_index={"verify": {"queries": 8}}, swap_index={"keep_last": _KEPT})
    build(params, shop)
    stage.swap(params, shop)
    return version, params


class _Watcher(threading.Thread):
    """Asks without pause and holds every answer against the pair that gave it."""

    def __init__(self, reader, rows, until):
        super().__init__(daemon=True)
        self.reader, self.rows, self.until = reader, rows, until
        self.asked, self.faults, self.taken, self.seen = 0, [], [], set()

    def run(self):
        rng = random.Random(self.name)
        while not self.until.is_set():
            try:
                self._ask([rng.choice(WORDS) for _ in range(_BATCH)])
            except Exception as error:  # whatever it is, a customer would have met it
                self.faults.append(repr(error))

    def _ask(self, queries):
        started = time.perf_counter()
        answers = self.reader.rank(queries, k=_K, fields=["title"])
        self.taken.append((started, 1000 * (time.perf_counter() - started)))
        pair = self.reader.pair
        self.seen.add(pair.collection)
        self.asked += len(queries)
        seed = pair.retriever.seed
        for query, hits in zip(queries, answers, strict=True):
            if len(hits) != min(_K, self.rows):
                self.faults.append(f"{len(hits)} hits in {pair.collection}")
            elif any(not hit.fields["title"].endswith(f" s{seed}") for hit in hits):
                self.faults.append(f"{pair.collection} answered with items of another model")
            elif not self._fits(pair, query, hits[0]):
                self.faults.append(f"{pair.collection} was asked with a vector of another model")

    def _fits(self, pair, query, hit):
        vectors = pair.encode([query, hit.fields["title"]])
        return abs(float(vectors[0] @ vectors[1]) - hit.score) < 1e-4


LONG = int(os.environ.get("MRSE_PROOF_SWAPS", "50")), 8, 100_000, 2000, 9


@pytest.mark.parametrize(
    ("swaps", "readers", "queries", "items", "calm_seconds"),
    [pytest.param(4, 3, 500, 40, 0, id="small"), pytest.param(*LONG, id="long", marks=pytest.mark.slow)],
)
def test_no_reader_meets_a_mixed_or_incomplete_index(shop, services, swaps, readers, queries, items, calm_seconds):
    versions = [_publish(shop, services, seed, items) for seed in range(1, _KEPT + 1)]
    params = versions[-1][1]
    with opened(services) as store:
        quiet, during = threading.Event(), threading.Event()
        crowd = [_Watcher(Reader(store, services), items, quiet) for _ in range(readers)]
        if calm_seconds:
            _watch(crowd, quiet, lambda: time.sleep(calm_seconds))
        calm = [ms for watcher in crowd for _, ms in watcher.taken]
        crowd = [_Watcher(watcher.reader, items, during) for watcher in crowd]
        moved = []

        def enough():
            return sum(watcher.asked for watcher in crowd) >= queries and len(_seen(crowd)) == _KEPT

        def swap_all():
            give_up = time.monotonic() + _PATIENCE
            while len(moved) < swaps or (not enough() and time.monotonic() < give_up):
                moved.append(_swap_to(store, services, params, versions[len(moved) % _KEPT][0]))

        _watch(crowd, during, swap_all)
    faults = [fault for watcher in crowd for fault in watcher.faults]
    assert not faults, (len(faults), faults[:5])
    asked, busy = sum(w.asked for w in crowd), [ms for w in crowd for _, ms in w.taken]
    assert asked >= queries and len(_seen(crowd)) == _KEPT
    print(
        f"\n{len(moved)} swaps, {readers} readers, {asked} queries in calls of {_BATCH}: none failed or mixed; "
        f"call p50/p99 {_percentiles(busy)} ms during swaps, {_percentiles(calm)} ms without; "
        f"alias move p50/p99 {_percentiles(moved)} ms"
    )


def _seen(crowd):
    return set.union(*(set(watcher.seen) for watcher in crowd))


def _watch(crowd, until, work):
    for watcher in crowd:
        watcher.start()
    try:
        work()
    finally:
        until.set()
        for watcher in crowd:
            watcher.join()


def _swap_to(store, services, params, version):
    """What `mrse rollback --to` does, on a store that readers have open too; the alias move alone in ms."""
    taken = []
    point = store.point

    def timed(collection):
        started = time.perf_counter()
        point(collection)
        taken.append(1000 * (time.perf_counter() - started))

    store.point = timed
    try:
        with stage.lease(Path(services.state_dir), params.swap_index.lease_seconds) as held:
            target = stage._earlier(store, stage.reconcile(store, services), version)
            stage._go_live(store, params.swap_index, target, held, remember=False)
    finally:
        del store.point
    return taken[0] if taken else 0.0


def _percentiles(values):
    return "-" if not values else "/".join(f"{np.percentile(values, q):.1f}" for q in (50, 99))


# What a kill is aimed at: the function that does it, and which of its calls in a run of both stages.
_PHASES = {
    "swap": ("mrse.index.swap._go_live", 1),
    "clean-up": ("mrse.index.swap.cleanup", 1),
    "reconcile": ("mrse.index.swap.reconcile", 2),  # the one behind the alias: champion moves
    "build": ("mrse.index.build.fill", 1),
    "verify": ("mrse.index.build.verify", 1),
}


def _stages(workspace, services, told):
    """A whole day's end in a process of its own: build, swap, clean up. It tells when a phase begins and ends."""
    os.environ["MRSE_QUIET"] = "1"
    telling = [mock.patch(path, _telling(told, phase, *_PHASES[phase])) for phase, (path, _) in _PHASES.items()]
    for patch in [*fake_shop.patches(), *telling]:
        patch.start()
    params = fake_shop.params_for(services, swap_index={"keep_last": 2})
    build(params, workspace)
    stage.swap(params, workspace)


def _telling(told, phase, path, nth):
    original, calls = pkgutil.resolve_name(path), itertools.count(1)

    def call(*arguments, **options):
        aimed = next(calls) == nth
        if aimed:
            told.send((phase, "begins"))
        answer = original(*arguments, **options)
        if aimed:
            told.send((phase, "ended"))
        return answer

    return call


KILLS = int(os.environ.get("MRSE_PROOF_KILLS", "200"))


@pytest.mark.parametrize("kills", [pytest.param(2, id="small"), pytest.param(KILLS, id="long", marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_whole_index_and_the_next_run_converges(shop, services, kills):
    rng, hit = random.Random(0), Counter()
    for seed in (-1, 0):
        fake_shop.train_challenger(shop, services, seed)
        lengths = _run_whole(shop, services)
    kept = _kept_on_disk(services)
    for seed, phase in zip(range(1, kills + 1), itertools.cycle(_PHASES), strict=False):
        version = fake_shop.train_challenger(shop, services, seed)
        hit[phase] += _killed_amid(shop, services, phase, rng.uniform(0.0, lengths[phase]))
        _assert_whole(services, {version - 1, version})
        lengths |= _run_whole(shop, services)
        _assert_whole(services, {version})
        _assert_nothing_left(services, version, kept)
    aimed = {phase: round(1000 * lengths[phase]) for phase in _PHASES}
    print(f"\n{kills} kills, {dict(hit)} amid what they were aimed at (which takes {aimed} ms): each converged")


def _killed_amid(shop, services, phase, after):
    """Whether a SIGKILL so many seconds after the phase began came before its end."""
    process, told = _begin(shop, services)
    while told.recv() != (phase, "begins"):
        pass
    time.sleep(after)
    process.kill()
    process.join()
    return (phase, "ended") not in _messages(told)


def _run_whole(shop, services):
    """The seconds that each phase took."""
    process, told = _begin(shop, services)
    at = {message: time.monotonic() for message in _messages(told)}
    process.join(120)
    assert process.exitcode == 0
    return {phase: at[phase, "ended"] - began for (phase, what), began in at.items() if what == "begins"}


def _begin(shop, services):
    told, tell = multiprocessing.Pipe(duplex=False)
    process = _FORKS.Process(target=_stages, args=(shop, services, tell))
    process.start()
    tell.close()  # so that the other end's death is the end of what is told
    return process, told


def _messages(told):
    """What a process tells until it ends."""
    with contextlib.suppress(EOFError):
        while True:
            yield told.recv()


def _assert_whole(services, versions):
    """Something is live, verified, complete, of one of these model versions, and `mrse status` tells it."""
    with opened(services) as store:
        live = store.target()
        store.load(live)  # a server that was restarted loads again by itself, in its own time
        stamp = store.stamp(live)
        assert (stamp.state, stamp.model_version in versions) == ("verified", True)
        assert store.count(live) == stamp.rows
    assert f"live      {live} since" in describe(services, Path(services.state_dir))


def _assert_nothing_left(services, version, kept):
    with opened(services) as store:
        stamps = store.collections()
        live = stage.look(store, services)
    assert live.champion == version
    assert len(stamps) == 2 and all(stamp.state == "verified" for stamp in stamps.values())
    assert Path(services.state_dir, "swap.lease").read_text() == "{}"
    assert _kept_on_disk(services) <= kept + 1, "a collection's or a shard's files were left behind"


def _kept_on_disk(services):
    """Milvus Lite's folders of collections, and what is half written in the cache."""
    collections = Path(services.milvus_uri, "collections").glob("*")
    return len([*collections, *Path(services.cache_dir).rglob("*.partial")])


def _patiently(run, seconds=180):
    """Again until it succeeds: for a while after a restart Milvus 2.3 still sends work to the node that died."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return run()
        except ServiceError:
            if time.monotonic() > give_up:
                raise
            time.sleep(5)


RESTART = os.environ.get("MRSE_TEST_RESTART")


@pytest.mark.slow
@pytest.mark.skipif(RESTART is None, reason="MRSE_TEST_RESTART names no command")
@pytest.mark.parametrize(("command", "call"), [("build", "insert"), ("swap", "point"), ("swap", "write_stamp")])
def test_a_server_that_is_killed_on_the_way_costs_a_run_at_most(shop, services, command, call, monkeypatch):
    params = fake_shop.params_for(services)
    fake_shop.train_challenger(shop, services, seed=1)
    build(params, shop)
    first = stage.swap(params, shop)["version"]
    second = fake_shop.train_challenger(shop, services, seed=2)
    if command == "swap":
        build(params, shop)
    restarts = []
    original = getattr(Store, call)

    def restart(store, *arguments):
        if not restarts:
            restarts.append(subprocess.Popen(RESTART, shell=True))
            time.sleep(1)
        return original(store, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Store, call, restart)
        try:
            (build if command == "build" else stage.swap)(params, shop)
            outcome = "it went on"
        except ServiceError as error:
            outcome = f"one error: {error}"
    assert restarts[0].wait(300) == 0
    _patiently(lambda: _assert_whole(services, {first, second}))
    _patiently(lambda: build(params, shop))
    assert _patiently(lambda: stage.swap(params, shop))["version"] == second
    _assert_whole(services, {second})
    print(f"\nserver killed in {command} at {call}: {outcome}; the next run converged")

"""Move the alias `mrse_live` to a verified collection, and everything that follows from it.

The alias in Milvus is the one truth about what is live. A swap does, in this order, steps that may each be repeated:

1. `reconcile`: MLflow's alias `champion` follows what is live now (a killed run may have left it behind);
2. check that the collection is the one of `index.json`, whole and verified;
3. publish what the query side needs (`models/index/serving`) with the model version's run, so that a reader needs
   Milvus and MLflow alone;
4. write into the new collection's stamp which collection it replaces: from here on a retry knows;
5. move the alias, in one call, and read it back;
6. ask the live index for items that it must find; where 4 to 6 fail, alias and stamp become what they were;
7. `champion`, the version's tags, the clean-up of old collections, `live.json`.

Killed anywhere, the next run starts at 1 and ends in the same place. One swap runs at a time (`mrse.index.lease`).
Cost: a few seconds, most of them the import of MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mrse import tracking
from mrse.config import Params, ServicesConfig, SwapConfig
from mrse.errors import IndexFailed, MrseError
from mrse.index.client import ALIAS, Stamp, Store, opened
from mrse.index.handed import check_judged, serving_artifact
from mrse.index.lease import Lease, lease
from mrse.index.verify import SCORE_TOLERANCE
from mrse.jsonfile import read_handed, write_json
from mrse.layout import CHALLENGER_JSON, DECISION, INDEX_JSON, LIVE_JSON, SERVING
from mrse.progress import say

# Without the last flag DVC would run the stages before it again, too.
_AGAIN = "dvc repro --force --single-item build_index"
_ABANDONED = timedelta(hours=24)  # a collection still unverified after this long is nobody's work any more


@dataclass(frozen=True)
class Live:
    """What answers queries now.

    Attributes:
        champion: the version that MLflow's alias names; it may lag behind `stamp` until the next reconcile.
        known: whether MLflow knows the live version at all.
    """

    collection: str
    stamp: Stamp
    champion: int | None
    known: bool


def swap(params: Params, workspace: Path) -> dict[str, Any]:
    """Put the collection of `models/index` live, or say why nothing changes.

    Args:
        params: sections `swap_index` and `services`.
        workspace: folder with `models/index`, `models/challenger.json` and `reports/decision.json`.

    Returns:
        The content of `reports/live.json`.

    Raises:
        IndexFailed: the collection is gone, not verified or fails its smoke queries, the gate has not judged the
            challenger, or another swap runs. What was live stays live.
        ServiceError: Milvus or MLflow cannot be reached.
    """
    services = params.services.under(workspace)
    index = read_handed(workspace / INDEX_JSON, "build_index")
    check_judged(read_handed(workspace / DECISION, "gate"), read_handed(workspace / CHALLENGER_JSON, "train"))
    with lease(Path(services.state_dir), params.swap_index.lease_seconds) as held, opened(services) as store:
        before = reconcile(store, services)
        if index["status"] == "skipped":
            live = _report("unchanged", index["reason"], before)
        else:
            stamp = _promised(store, index, read_handed(workspace / CHALLENGER_JSON, "train"))
            publish(services, stamp, index["collection"], workspace / SERVING)
            _go_live(store, params.swap_index, index["collection"], held)
            after = reconcile(store, services)
            cleanup(store, params.swap_index.keep_last, keep={index["collection"]})
            live = _report("swapped", index["reason"], after)
    write_json(workspace / LIVE_JSON, live)
    return live


def rollback(params: Params, workspace: Path, to: int | None = None) -> Live:
    """Put an earlier collection live again: one alias move, then MLflow follows.

    Args:
        to: the model version to go back to, one that was live; None: what the live collection replaced.

    Raises:
        IndexFailed: there is nothing to go back to, or it fails its smoke queries.
    """
    services = params.services.under(workspace)
    with lease(Path(services.state_dir), params.swap_index.lease_seconds) as held, opened(services) as store:
        before = reconcile(store, services)
        target = _earlier(store, before, to)
        _go_live(store, params.swap_index, target, held, remember=False)
        after = reconcile(store, services)
    if after is None:
        raise IndexFailed(f"alias {ALIAS} vanished during the rollback to {target}; run `mrse status`")
    return after


def reconcile(store: Store, services: ServicesConfig) -> Live | None:
    """Make MLflow say what Milvus does: `champion` and the tag `collection` follow the live collection's stamp.

    Returns:
        What is live, or None when nothing is; then `champion` is left alone, the gate still compares with it.

    Raises:
        IndexFailed: the alias names a collection that MRSE did not build.
    """
    live = look(store, services)
    if live is None or not live.known:
        if live is not None:
            say(f"MLflow does not know version {live.stamp.model_version}, which is live; its champion stays as it is")
        return live
    version = live.stamp.model_version
    if live.champion != version:
        before = "there was no champion" if live.champion is None else f"champion was version {live.champion}"
        say(f"{before}, live is version {version}: champion moves")
        tracking.set_champion(services, version)
    tracking.tag_version(services, version, {"collection": live.collection, "live_since": live.stamp.since or ""})
    return look(store, services)


def look(store: Store, services: ServicesConfig) -> Live | None:
    """What is live, without changing anything."""
    collection = store.target()
    if collection is None:
        return None
    stamp = store.stamp(collection)
    if stamp is None:
        raise IndexFailed(
            f"alias {ALIAS} names collection {collection}, which carries no stamp of MRSE; move the alias by hand"
        )
    champion = tracking.champion(services)
    known = tracking.get_version(services, stamp.model_version)
    return Live(
        collection=collection,
        stamp=stamp,
        champion=None if champion is None else champion.version,
        known=known is not None and known.fingerprint == stamp.model_fingerprint,
    )


def publish(services: ServicesConfig, stamp: Stamp, collection: str, serving: Path) -> None:
    """Log the serving folder with the model version's run, under `serving/<collection>`."""
    if not serving.is_dir():
        raise IndexFailed(f"{serving} is missing; run the build_index stage again")
    tracking.log_artifacts(services, stamp.run_id, serving, serving_artifact(collection))


def cleanup(store: Store, keep_last: int, keep: Iterable[str] = ()) -> list[str]:
    """Drop old collections, and say which.

    Kept are the `keep_last` newest verified ones, the live one and the one it replaced, those in `keep`, any that
    another alias names, unverified ones that may still be being built or looked at (younger than a day), and those
    without a stamp.
    """
    store.sweep()
    live = store.target()
    stamps = {name: stamp for name, stamp in store.collections().items() if stamp is not None}
    kept = {*keep, live, stamps[live].previous if live in stamps else None}
    verified = [name for name, stamp in stamps.items() if stamp.state == "verified"]
    # Stamps tell seconds; of two swaps within one, the later model is the newer.
    verified.sort(key=lambda name: (_last_used(stamps[name]), stamps[name].model_version), reverse=True)
    kept.update(verified[:keep_last])
    dropped = [
        name
        for name, stamp in stamps.items()
        if name not in kept and not _in_the_making(stamp) and not store.aliases(name)
    ]
    for name in dropped:
        store.drop(name)
        say(f"dropped the old collection {name}")
    return dropped


def smoke(store: Store, stamp: Stamp, queries: int) -> None:
    """Ask the live alias for items that are in it: each must be found, or one of equal score.

    Raises:
        IndexFailed: the alias answers nothing or the wrong items.
    """
    item_ids = [item_id for item_id, _ in zip(store.ids(ALIAS), range(queries), strict=False)]
    stored = store.vectors(ALIAS, item_ids)
    if not stored:
        raise IndexFailed(f"alias {ALIAS} holds no items")
    found = store.search(ALIAS, np.stack(list(stored.values())), 1, stamp.search_params)
    for (item_id, vector_D), hits in zip(stored.items(), found, strict=True):
        if not hits or hits[0].score < float(vector_D @ vector_D) - 10 * SCORE_TOLERANCE:
            raise IndexFailed(f"alias {ALIAS} does not find item {item_id!r} by its own vector")


def _go_live(store: Store, config: SwapConfig, collection: str, held: Lease, remember: bool = True) -> None:
    """Steps 4 to 6; `remember`: the collection replaced becomes the one to go back to."""
    before = store.target()
    stamp = store.stamp(collection)
    if stamp is None:
        raise IndexFailed(f"collection {collection} vanished; run the build_index stage again")
    store.load(collection)
    if before == collection:
        smoke(store, stamp, config.smoke_queries)
        return
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = stamp.with_(since=since, previous=before if remember else stamp.previous)
    try:
        store.write_stamp(collection, mine)
        held.check()
        store.point(collection)
        smoke(store, mine, config.smoke_queries)
    except MrseError as error:
        raise type(error)(f"{error}; {_take_back(store, collection, mine, stamp, before)}") from error


def _take_back(store: Store, collection: str, mine: Stamp, old: Stamp, before: str | None) -> str:
    """Undo steps 4 and 5, so that what never served does not count as once live; says what is live now.

    Another swap that took over an expired lease has put a stamp of its own on the collection; its work is left alone.
    """
    try:
        if store.stamp(collection) == mine:
            if store.target() == collection:
                store.point(before)
            store.write_stamp(collection, old)
        return f"{store.target() or 'nothing'} is live now"
    except MrseError as error:
        return f"going back to {before or 'nothing'} failed too ({error}); look at `mrse status`, then run again"


def _promised(store: Store, index: dict[str, Any], challenger: dict[str, Any]) -> Stamp:
    """The stamp of the collection that index.json names, after checking that it is that collection."""
    name = index["collection"]
    wanted = Stamp(**index["stamp"])
    if (wanted.model_version, wanted.model_fingerprint) != (int(challenger["version"]), challenger["fingerprint"]):
        raise IndexFailed(
            f"{INDEX_JSON} was built from model version {wanted.model_version}, {CHALLENGER_JSON} names version "
            f"{challenger['version']}; run the build_index stage again"
        )
    found = store.stamp(name)
    if found is None or not found.same_build(wanted):
        state = "is gone, or its stamp cannot be read," if found is None else "was built anew by another run"
        raise IndexFailed(f"collection {name} {state}; run build_index again (`{_AGAIN}`)")
    if found.state != "verified":
        raise IndexFailed(f"collection {name} was never verified; run build_index again")
    store.load(name)
    count = store.count(name)
    if count != wanted.rows:
        raise IndexFailed(f"collection {name} holds {count} rows, {wanted.rows} were verified; run build_index again")
    return found


def _earlier(store: Store, live: Live | None, to: int | None) -> str:
    stamps = {name: s for name, s in store.collections().items() if s is not None and s.state == "verified"}
    if to is not None:
        served = {name: stamp for name, stamp in stamps.items() if stamp.since is not None}
        fitting = [name for name, stamp in served.items() if stamp.model_version == to]
        if not fitting:
            kept = ", ".join(map(str, sorted({stamp.model_version for stamp in served.values()}))) or "none"
            raise IndexFailed(f"no collection of model version {to} that was live is kept; kept versions: {kept}")
        return max(fitting, key=lambda name: _last_used(served[name]))
    if live is None:
        raise IndexFailed(
            "nothing is live, so there is nothing to roll back from; `mrse rollback --to VERSION` names one"
        )
    previous = live.stamp.previous
    if previous not in stamps:
        what = "replaced nothing" if previous is None else f"replaced {previous}, which is gone"
        raise IndexFailed(f"{live.collection} {what}; `mrse rollback --to VERSION` names another")
    return previous


def _report(status: str, reason: str, live: Live | None) -> dict[str, Any]:
    return {
        "status": status,
        "reason": reason,
        "collection": None if live is None else live.collection,
        "previous": None if live is None else live.stamp.previous,
        "version": None if live is None else live.stamp.model_version,
        "since": None if live is None else live.stamp.since,
        "rows": None if live is None else live.stamp.rows,
        "snapshot_fingerprint": None if live is None else live.stamp.snapshot_fingerprint,
    }


def _last_used(stamp: Stamp) -> str:
    return stamp.since or stamp.created


def _in_the_making(stamp: Stamp) -> bool:
    if stamp.state == "verified":
        return False
    return datetime.now(UTC) - datetime.fromisoformat(stamp.created) < _ABANDONED

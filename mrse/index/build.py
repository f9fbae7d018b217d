"""Embed the catalogue with the challenger into a new, verified Milvus collection.

The new collection lies beside the live one, which is not touched. Its name follows from what is in it (model version,
snapshot, content), so a run that was killed finds its own half-built collection under the same name, drops it and
builds it again, from what it had embedded (`mrse.index.embed`), and a run that finds it whole keeps it.
`models/index/index.json` is written last: it is there or the stage is not done.

Cost: embedding, about 1,200 items/s on one busy core, is most of it; Milvus Lite takes some 15,000 rows/s.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem
from numpy.typing import NDArray

from mrse.config import IndexConfig, Params
from mrse.data.contract import SnapshotMeta, read_items, read_meta
from mrse.data.uris import open_system, resolve, store_errors
from mrse.device import pick
from mrse.errors import DataError, IndexFailed
from mrse.index.client import PREFIX, TEXT_BYTES, Stamp, Store, check_served, opened
from mrse.index.embed import embed
from mrse.index.filters import UNKNOWN_PRICE
from mrse.index.handed import check_judged
from mrse.index.verify import ids_fingerprint, verify
from mrse.jsonfile import read_handed, write_json
from mrse.layout import CHALLENGER_JSON, CHALLENGER_PACKAGE, CLEAN, DECISION, INDEX_JSON, PROFILES, SERVING
from mrse.model.arrays import Catalogue, EncodedCatalogue, History, HistoryBank
from mrse.model.retriever import Retriever, load_catalogue
from mrse.progress import say, track

_UNIT_TOLERANCE = 1e-3
_COLUMNS = pa.schema(
    [*((name, pa.string()) for name in TEXT_BYTES), ("price", pa.float64()), ("vector", pa.list_(pa.float32()))]
)


@dataclass(frozen=True)
class Content:
    """The rows of a collection; row i of everything is item i."""

    item_ids: list[str]
    titles: list[str]
    categories: list[str]
    prices: list[float]
    images: list[str]
    vectors_ND: NDArray[np.float32]

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Rows `[start, stop)` as Milvus takes them."""
        return [
            {
                "item_id": self.item_ids[i],
                "title": self.titles[i],
                "category": self.categories[i],
                "price": self.prices[i],
                "image": self.images[i],
                "vector": self.vectors_ND[i],
            }
            for i in range(start, min(stop, len(self.item_ids)))
        ]

    def fingerprint(self, index: IndexConfig) -> str:
        """sha256 over everything that is stored and how it is indexed."""
        digest = hashlib.sha256(repr((index.type, sorted(index.build.items()), sorted(index.search.items()))).encode())
        for column in (self.item_ids, self.titles, self.categories, self.images):
            for text in column:
                digest.update(text.encode() + b"\0")
        digest.update(np.asarray(self.prices, dtype=np.float64).tobytes())
        digest.update(np.ascontiguousarray(self.vectors_ND).tobytes())
        return digest.hexdigest()


def build(params: Params, workspace: Path) -> dict[str, Any]:
    """Build and verify the challenger's collection when the gate promoted it.

    Args:
        params: sections `build_index` and `services`.
        workspace: folder with `reports/decision.json`, `models/challenger`, `data/clean` and `data/profiles`; gets
            `models/index`.

    Returns:
        The content of `models/index/index.json`.

    Raises:
        ConfigError: Milvus Lite has no index of this type, or no bulk import.
        IndexFailed: the challenger is not the one that was promoted, vectors are unusable, or the collection is not
            what was asked for; what was built is dropped.
        ServiceError: Milvus cannot be reached.
    """
    decision = read_handed(workspace / DECISION, "gate")
    if decision["outcome"] != "PROMOTE":
        return _skip(workspace, f"the gate said {decision['outcome']}")
    challenger = read_handed(workspace / CHALLENGER_JSON, "train")
    check_judged(decision, challenger)
    services = params.services.under(workspace)
    check_served(services, params.build_index)
    if params.build_index.bulk_folder is not None:
        _bulk_place(params.build_index.bulk_folder)  # a package that it lacks is told before all is embedded
    encoder, device = _load(workspace, challenger), pick(params.build_index.device)
    retriever = encoder.to(device)
    cache_dir = Path(services.cache_dir)
    catalogue = _catalogue(retriever, workspace, cache_dir)
    encoded = embed(retriever, catalogue, device, params.build_index.shard_items, cache_dir)
    content = _content(workspace, encoded)
    check(content, retriever.dim)
    stamp = _stamp(challenger, read_meta(workspace / CLEAN), content, params.build_index)
    name = f"{PREFIX}{stamp.model_version}_{stamp.snapshot_fingerprint[:8]}_{stamp.content_fingerprint[:6]}"

    bank = HistoryBank(encoded.item_ids, encoded.bank)
    queries, histories = held_out_queries(workspace, params.build_index.verify.queries)
    queries_QD = retriever.encode_queries(queries, histories, bank)
    with opened(services) as store:
        stamp, verification = ensure(store, name, stamp, content, queries_QD, params.build_index)
    _write_serving(workspace, bank)
    index = {
        "status": "built",
        "reason": "the gate said PROMOTE",
        "collection": name,
        "stamp": stamp.as_dict(),
        "rows": stamp.rows,
        "fingerprint": stamp.content_fingerprint,
        "verification": verification,
    }
    write_json(workspace / INDEX_JSON, index)
    return index


def ensure(
    store: Store,
    name: str,
    stamp: Stamp,
    content: Content,
    queries_QD: NDArray[np.float32],
    config: IndexConfig,
) -> tuple[Stamp, dict[str, Any]]:
    """Make sure that the collection `name` exists, holds `content` and is verified.

    A verified collection of this name and content (an earlier run of the same inputs) is verified again and kept: it
    may be live. Anything else of this name is a leftover and is built anew. A collection that fails is dropped unless
    an alias names it; with `verify.keep_failed` it is marked and kept, until a clean-up finds it a day old.

    Returns:
        The stamp as stored, and the figures of the verification.
    """
    found = store.stamp(name) if store.has(name) else None
    kept = found if found is not None and found.state == "verified" and _same_content(found, stamp) else None
    if kept is None:
        fill(store, name, stamp, content, config)
    else:
        say(f"collection {name} is there already; verifying it again")
        store.load(name)
    built = kept or stamp
    try:
        report = verify(store, name, built, content.item_ids, content.vectors_ND, queries_QD, config.verify)
    except IndexFailed:
        if not store.aliases(name):
            _put_away(store, name, built, config.verify.keep_failed)
        raise
    verified = built.with_(state="verified")
    if kept is None:
        store.write_stamp(name, verified)
    return verified, report


def fill(store: Store, name: str, stamp: Stamp, content: Content, config: IndexConfig) -> None:
    """Write a collection anew, with its index, and make it searchable; a leftover of its name is dropped."""
    if store.has(name):
        say(f"dropping the leftover {name}")
        store.drop(name)
    store.sweep()
    store.create(name, config, stamp)
    if config.bulk_folder is None:
        for start in _batches(content, name, config.batch_size):
            store.insert(name, content.rows(start, start + config.batch_size))
    else:
        _bulk_import(store, name, content, config.bulk_folder, config.batch_size)
    store.seal(name)
    store.load(name)


def _batches(content: Content, name: str, batch_size: int) -> Iterator[int]:
    """The first row of each batch."""
    return track(range(0, len(content.item_ids), batch_size), f"filling {name}", unit="batch")


def _bulk_import(store: Store, name: str, content: Content, folder: str, batch_size: int) -> None:
    """Write the rows as a file that the server reads, and delete it, with those that killed builds left."""
    system, root, is_bucket = _bulk_place(folder)
    path = f"{root}/{name}.parquet"
    try:
        if not is_bucket:
            system.makedirs(root, exist_ok=True)
        _sweep(store, system, root)
        with system.open(path, "wb") as raw, pq.ParquetWriter(raw, _COLUMNS) as file:
            for start in _batches(content, name, batch_size):
                file.write_table(pa.Table.from_pylist(content.rows(start, start + batch_size), _COLUMNS))
        store.bulk_import(name, path.partition("/")[2] if is_bucket else path)  # a key has no bucket before it
    except store_errors() as error:
        raise IndexFailed(f"{path}: cannot be written: {error}; build_index.bulk_folder names its place") from None
    finally:
        with contextlib.suppress(*store_errors()):
            system.rm_file(path)


def _bulk_place(folder: str) -> tuple[AbstractFileSystem, str, bool]:
    """The file system, the folder on it, and whether it is in a bucket."""
    return *open_system(resolve(folder, Path.cwd()), "build_index.bulk_folder"), "://" in folder


def _sweep(store: Store, system: AbstractFileSystem, root: str) -> None:
    """Delete the files of collections that nobody is building: another build's file is being read."""
    stamps = store.collections()
    for path in map(PurePosixPath, system.find(root, maxdepth=1)):
        stamp = stamps.get(path.stem)
        ours = path.name.startswith(PREFIX) and path.suffix == ".parquet"
        if ours and (stamp is None or stamp.state != "building"):
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(str(path))


def check(content: Content, dim: int) -> None:
    """Refuse rows that would make a broken index, before anything is written.

    Raises:
        IndexFailed: a wrong shape, ids that repeat or are too long, vectors that are not finite or not of
            length 1.
    """
    count = len(content.item_ids)
    if content.vectors_ND.shape != (count, dim):
        raise IndexFailed(f"{count} items of {dim} dimensions gave vectors of shape {content.vectors_ND.shape}")
    repeated = count - len(set(content.item_ids))
    if repeated:
        raise IndexFailed(f"{repeated} item ids appear twice; ids must be unique")
    longest = max(content.item_ids, key=lambda item_id: len(item_id.encode()))
    if len(longest.encode()) > TEXT_BYTES["item_id"]:
        raise IndexFailed(f"item id {longest[:40]!r}… is longer than {TEXT_BYTES['item_id']} bytes")
    finite_N = np.isfinite(content.vectors_ND).all(axis=1)
    if not finite_N.all():
        first = content.item_ids[int(np.argmin(finite_N))]
        raise IndexFailed(f"{int((~finite_N).sum())} vectors are not finite, the first is of item {first!r}")
    off_N = np.abs(np.linalg.norm(content.vectors_ND, axis=1) - 1.0)
    if off_N.max() > _UNIT_TOLERANCE:
        worst = content.item_ids[int(np.argmax(off_N))]
        raise IndexFailed(f"vectors must have length 1; that of item {worst!r} is off by {off_N.max():.3g}")


def held_out_queries(workspace: Path, limit: int) -> tuple[list[str], list[History | None]]:
    """Real queries to verify with: an even sample of the test requests, with their shoppers' histories.

    A shop without test requests is verified with its own titles.
    """
    columns = ["query", "hist_items", "hist_actions", "hist_ages"]
    table = pq.read_table(workspace / PROFILES / "requests.parquet", columns=["split", *columns])
    table = table.filter(pc.equal(table.column("split"), "test"))
    if table.num_rows == 0:
        titles: list[str] = read_items(workspace / CLEAN).column("title").slice(0, limit).to_pylist()
        return titles, [None] * len(titles)
    rows = np.unique(np.linspace(0, table.num_rows - 1, num=min(limit, table.num_rows), dtype=np.int64))
    sample = table.take(rows).select(columns).to_pylist()
    histories = [
        History(row["hist_items"], row["hist_actions"], row["hist_ages"]) if row["hist_items"] else None
        for row in sample
    ]
    return [row["query"] for row in sample], histories


def cut(text: str | None, size: int) -> str:
    """`text` in at most `size` bytes of UTF-8, cut between characters; nothing becomes the empty text."""
    raw = (text or "").encode()
    return raw[:size].decode(errors="ignore") if len(raw) > size else text or ""


def _price(price: float | None) -> float:
    """The price as it is stored: what is no price of a sale counts as unknown."""
    return price if price is not None and math.isfinite(price) and price >= 0 else UNKNOWN_PRICE


def _put_away(store: Store, name: str, stamp: Stamp, keep: bool) -> None:
    """Drop a collection that failed, or mark it."""
    if keep:
        store.write_stamp(name, stamp.with_(state="failed"))
        say(f"collection {name} failed and is kept to be looked at")
    else:
        store.drop(name)


def _same_content(found: Stamp, wanted: Stamp) -> bool:
    return found.with_(created=wanted.created).same_build(wanted)


def _skip(workspace: Path, reason: str) -> dict[str, Any]:
    shutil.rmtree(workspace / SERVING, ignore_errors=True)
    (workspace / SERVING).mkdir(parents=True)
    nothing = dict.fromkeys(("collection", "stamp", "fingerprint", "verification"))
    index = {"status": "skipped", "reason": reason, "rows": 0, **nothing}
    write_json(workspace / INDEX_JSON, index)
    return index


def _load(workspace: Path, challenger: dict[str, Any]) -> Retriever:
    retriever = Retriever.load(workspace / CHALLENGER_PACKAGE)
    if retriever.fingerprint != challenger["fingerprint"]:
        raise DataError(
            f"{CHALLENGER_PACKAGE} is not version {challenger['version']} that {CHALLENGER_JSON} names "
            f"({retriever.fingerprint[:12]} is not {challenger['fingerprint'][:12]}); run the train stage again"
        )
    return retriever


def _catalogue(retriever: Retriever, workspace: Path, cache_dir: Path) -> Catalogue:
    clean = workspace / CLEAN
    return load_catalogue(retriever, clean, workspace / PROFILES, workspace, cache_dir, read_meta(clean).end)


def _content(workspace: Path, encoded: EncodedCatalogue) -> Content:
    items = read_items(workspace / CLEAN)
    if items.column("item_id").to_pylist() != encoded.item_ids:
        raise IndexFailed(f"the model embedded other items than {CLEAN / 'items.parquet'} holds")
    texts = {name: [cut(t, TEXT_BYTES[name]) for t in items.column(name).to_pylist()] for name in TEXT_BYTES}
    return Content(
        item_ids=encoded.item_ids,
        titles=texts["title"],
        categories=texts["category"],
        prices=[_price(price) for price in items.column("price").to_pylist()],
        images=texts["image"],
        vectors_ND=encoded.vectors,
    )


def _stamp(challenger: dict[str, Any], meta: SnapshotMeta, content: Content, config: IndexConfig) -> Stamp:
    return Stamp(
        model_version=int(challenger["version"]),
        model_fingerprint=challenger["fingerprint"],
        run_id=challenger["run_id"],
        snapshot_fingerprint=meta.fingerprint,
        window_start=meta.start.isoformat(),
        window_end=meta.end.isoformat(),
        simulated=meta.simulated,
        image_root=meta.image_root,
        rows=len(content.item_ids),
        ids_fingerprint=ids_fingerprint(content.item_ids),
        content_fingerprint=content.fingerprint(config),
        dim=int(content.vectors_ND.shape[1]),
        index_type=config.type,
        search_params=dict(config.search),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _write_serving(workspace: Path, bank: HistoryBank) -> None:
    """What the query side needs beside the model: the items' representations and the shoppers' histories."""
    folder = workspace / SERVING
    shutil.rmtree(folder, ignore_errors=True)
    bank.save(folder)
    shutil.copyfile(workspace / PROFILES / "users.parquet", folder / "users.parquet")

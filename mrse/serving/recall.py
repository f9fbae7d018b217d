"""Answer queries from the live index.

A reader works with one (query encoder, collection) **pair**. Which encoder belongs to a collection stands in the
collection's stamp; the package and the serving folder (item representations, shoppers' histories) come from MLflow and
are kept in `services.cache_dir`, so a reader needs Milvus and MLflow, not the pipeline's files. The alias is looked at
before every call; when it has moved, the new pair is loaded whole before any query meets it. A call that is under way
stays with the pair that it began with; where that one was dropped meanwhile, it begins again with the live one. One
reader may be used by many threads.

Cost: opening takes about 5 s of CPU, most of it imports, and 2 s more when the package must be fetched. After that a
query takes some milliseconds, most of them in Milvus; many queries at once cost less each, and ids alone less than all
fields (`Reader.rank`).
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrse import tracking
from mrse.config import ServicesConfig
from mrse.errors import DataError, IndexFailed, MrseError, ServiceError
from mrse.index.client import ALIAS, FIELDS, Found, Stamp, Store, exists, opened
from mrse.index.filters import EVERYTHING, Filter
from mrse.index.handed import serving_artifact
from mrse.model.arrays import History, HistoryBank
from mrse.model.retriever import Retriever, package_fingerprint

# Equal scores at the cut are common (one product listed twice): fetching a few more makes the cut go by item id.
_TIE_MARGIN = 10
_SEARCH_BATCH = 512

T = TypeVar("T")


@dataclass(frozen=True)
class Hit:
    """One item of an answer. `price` is None where the shop gave none; `image` is its reference in `items`."""

    item_id: str
    title: str
    category: str
    price: float | None
    image: str | None
    score: float


@dataclass(frozen=True)
class Pair:
    """A collection and the encoder that it was made with; never one of another model."""

    collection: str
    stamp: Stamp
    retriever: Retriever
    bank: HistoryBank
    shoppers: Shoppers

    def encode(self, queries: Sequence[str], users: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Query vectors (Q, D) of the pair's model; `users` as in `Reader.search`."""
        histories = None if users is None else [self.shoppers.history(user) for user in users]
        return self.retriever.encode_queries(queries, histories, self.bank)


class Shoppers:
    """The histories of `users.parquet`, looked up by user id."""

    def __init__(self, users: pa.Table, asof: datetime) -> None:
        """Args: users: the table of the contract; asof: the end of its window, from which ages count."""
        self._table = users
        self._asof = asof
        self._row = {user: row for row, user in enumerate(users.column("user_id").to_pylist())}

    def history(self, user: str | None) -> History | None:
        """The shopper's history, or None for somebody unknown."""
        row = None if user is None else self._row.get(user)
        if row is None:
            return None
        found = self._table.slice(row, 1).to_pylist()[0]
        ages = [(self._asof - time).total_seconds() / 3600 for time in found["hist_times"]]
        return History(found["hist_items"], found["hist_actions"], ages)

    def busiest(self, count: int) -> list[str]:
        """The shoppers with the most events, busiest first."""
        order = pc.sort_indices(self._table, sort_keys=[("events", "descending"), ("user_id", "ascending")])
        users: list[str] = self._table.column("user_id").take(order.slice(0, count)).to_pylist()
        return users


class Reader:
    """Searches the live index; made by `reading`."""

    def __init__(self, store: Store, services: ServicesConfig) -> None:
        self._store = store
        self._services = services
        self._moving = threading.Lock()
        self.pair = self._load(self._target())

    def search(
        self,
        queries: Sequence[str],
        users: Sequence[str | None] | None = None,
        k: int = 10,
        among: Filter = EVERYTHING,
    ) -> list[list[Hit]]:
        """The k nearest items of each query: score descending, then item id ascending.

        Args:
            queries: as shoppers typed them; an empty one asks for what suits the shopper.
            users: one user id or None per query; an id that is not known counts as None.
            k: how many items each; fewer come back where fewer are let through.
            among: which items may answer.

        Raises:
            ServiceError: nothing is live, or Milvus does not answer.
            IndexFailed: the live collection does not belong to the encoder that its stamp names.
        """
        return [[_hit(found) for found in answer] for answer in self.rank(queries, users, k, FIELDS[1:], among=among)]

    def rank(
        self,
        queries: Sequence[str],
        users: Sequence[str | None] | None = None,
        k: int = 10,
        fields: Sequence[str] = (),
        pinned: bool = False,
        among: Filter = EVERYTHING,
    ) -> list[list[Found]]:
        """As `search`, with ids, scores and the stored `fields` alone: fewer fields, more queries per second.

        `pinned`: stay with the present pair, whatever is live by now; its collection outlives the next swap, not many.
        """

        def answer(pair: Pair) -> list[list[Found]]:
            answers = []
            for start in range(0, len(queries), _SEARCH_BATCH):
                part = slice(start, start + _SEARCH_BATCH)
                vectors_QD = pair.encode(queries[part], None if users is None else users[part])
                answers += self._nearest(pair, vectors_QD, k, fields, among)
            return answers

        return answer(self.pair) if pinned else self._live(answer)

    def similar(self, item_ids: Sequence[str], k: int = 10, among: Filter = EVERYTHING) -> list[list[Hit]]:
        """The k nearest other items of each item: score descending, then item id ascending.

        Raises:
            DataError: an item is not in the live index.
            ServiceError, IndexFailed: as `search`.
        """

        def answer(pair: Pair) -> list[list[Found]]:
            stored = self._store.vectors(pair.collection, sorted(set(item_ids)))
            missing = [item_id for item_id in item_ids if item_id not in stored]
            if missing:
                raise DataError(f"item {missing[0]!r} is not in the live index {pair.collection}")
            answers: list[list[Found]] = []
            for start in range(0, len(item_ids), _SEARCH_BATCH):
                part = item_ids[start : start + _SEARCH_BATCH]
                vectors_QD = np.stack([stored[item_id] for item_id in part])
                found = self._nearest(pair, vectors_QD, k + 1, FIELDS[1:], among)
                answers += [
                    [hit for hit in hits if hit.item_id != own][:k] for own, hits in zip(part, found, strict=True)
                ]
            return answers

        return [[_hit(found) for found in hits] for hits in self._live(answer)]

    def pictures(self, item_ids: Sequence[str]) -> dict[str, str | None]:
        """The image references of items, by id; items that the collection lacks are left out."""
        rows = self._store.fetch(self.pair.collection, sorted(set(item_ids)), ["image"])
        return {item_id: row["image"] or None for item_id, row in rows.items()}

    def follow(self) -> bool:
        """Move to the pair that is live now; True when it is another one than before."""
        before = self.pair
        return self._current() is not before

    def _current(self) -> Pair:
        """The live pair, loaded whole; anew where the alias moved on, and its collection went, while it was loaded."""
        with self._moving:
            while True:
                target = self._target()
                try:
                    return self._move(target)
                except MrseError:
                    if self._target() == target:
                        raise

    def _move(self, target: str) -> Pair:
        stamp = self._store.stamp(target)
        if target != self.pair.collection or stamp is None or not stamp.same_build(self.pair.stamp):
            self.pair = self._load(target)
        return self.pair

    def _live(self, answer: Callable[[Pair], T]) -> T:
        """An answer of the live pair; anew where that pair was replaced, and its collection dropped, on the way."""
        while True:
            pair = self._current()
            try:
                return answer(pair)
            except MrseError:
                if self._target() == pair.collection:
                    raise

    def _nearest(
        self, pair: Pair, vectors_QD: NDArray[np.float32], k: int, fields: Sequence[str], among: Filter
    ) -> list[list[Found]]:
        wanted = min(k + _TIE_MARGIN, pair.stamp.rows)
        found = self._store.search(pair.collection, vectors_QD, wanted, pair.stamp.search_params, fields, among)
        return [hits[:k] for hits in found]

    def _target(self) -> str:
        target = self._store.target()
        if target is None:
            raise ServiceError("nothing is live yet; run the pipeline (`dvc repro`), then `mrse status`")
        return target

    def _load(self, collection: str) -> Pair:
        stamp = self._store.stamp(collection)
        if stamp is None or stamp.state != "verified":
            raise IndexFailed(f"alias {ALIAS} names {collection}, which is no verified collection of MRSE")
        package = cached_package(self._services, stamp)
        retriever = Retriever.load(package)
        if retriever.fingerprint != stamp.model_fingerprint or retriever.dim != stamp.dim:
            raise IndexFailed(f"collection {collection} was not made with the model in {package}; not reading it")
        serving = cached_serving(self._services, stamp, collection)
        self._store.load(collection)
        users = pq.read_table(serving / "users.parquet")
        shoppers = Shoppers(users, datetime.fromisoformat(stamp.window_end))
        return Pair(collection, stamp, retriever, HistoryBank.load(serving), shoppers)


@contextmanager
def reading(services: ServicesConfig) -> Iterator[Reader]:
    """Open a reader on what is live, and close it.

    Raises:
        ServiceError: nothing is live, or a service does not answer.
    """
    if not exists(services):
        raise ServiceError("nothing is live yet; run the pipeline (`dvc repro`), then `mrse status`")
    with opened(services) as store:
        yield Reader(store, services)


def cached_package(services: ServicesConfig, stamp: Stamp) -> Path:
    """The model package that a stamp names, from the cache or from MLflow.

    Raises:
        IndexFailed: MLflow's version of that number is another model: its store was replaced.
    """
    folder = Path(services.cache_dir) / "packages" / stamp.model_fingerprint[:16]
    if folder.is_dir() and package_fingerprint(folder) == stamp.model_fingerprint:
        return folder
    tracking.download_package(services, stamp.model_version, folder)
    if package_fingerprint(folder) != stamp.model_fingerprint:
        shutil.rmtree(folder)
        raise IndexFailed(
            f"the live collection was made with model version {stamp.model_version} ({stamp.model_fingerprint[:12]}), "
            "but MLflow holds another model under that number; run the pipeline again to build an index for it"
        )
    return folder


def cached_serving(services: ServicesConfig, stamp: Stamp, collection: str) -> Path:
    """The serving folder of a collection, from the cache or from MLflow."""
    build = hashlib.sha256(stamp.identity().encode()).hexdigest()[:16]
    folder = Path(services.cache_dir) / "serving" / build
    if not folder.is_dir():
        tracking.download_artifacts(services, stamp.run_id, serving_artifact(collection), folder)
    return folder


def _hit(found: Found) -> Hit:
    fields = found.fields
    return Hit(
        item_id=found.item_id,
        title=fields["title"],
        category=fields["category"],
        price=fields["price"] if fields["price"] >= 0 else None,
        image=fields["image"] or None,
        score=found.score,
    )

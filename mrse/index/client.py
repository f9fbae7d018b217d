"""One way to talk to Milvus, whether it is Milvus Lite in a folder or a server.

Milvus Lite allows one process per folder, so a store is opened, used and closed (`with opened(services) as store`);
where another process holds it, the error names that process. Every error of Milvus leaves here as a `ServiceError`.

A collection carries a **stamp**, a JSON text in its property `mrse.stamp`: which model and which snapshot it was made
from, and whether it was verified. Properties come back and can be changed on Milvus Lite 3.2 and on Milvus 2.3.5 alike;
a description can be written only once, and Milvus Lite forgets it.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from mrse.config import CANDIDATES, IndexConfig, ServicesConfig
from mrse.errors import ConfigError, IndexFailed, ServiceError
from mrse.index.filters import EVERYTHING, Filter, one_of, quoted
from mrse.progress import say

ALIAS = "mrse_live"
PREFIX = "mrse_v"
METRIC = "IP"  # vectors have length 1, so the inner product is the cosine
STAMP = "mrse.stamp"

# Bytes that a text field holds, and what happens to longer text: an id fails the build, other text is cut.
TEXT_BYTES = {"item_id": 512, "title": 2048, "category": 512, "image": 1024}
FIELDS = ("item_id", "title", "category", "price", "image")

_CALL_SECONDS = 60.0
_LOAD_SECONDS = 600.0
_INDEX_SECONDS = 1800.0  # a large segment is indexed in one go, during which nothing shows
_CONNECT_SECONDS = 5.0
_BUSY_SECONDS = 10.0
_STACK = re.compile(r"stack trace: (?:\S+:\d+ [^\n:]+\n)*\S+:\d+ [^\n:]+(?:: |$)")  # Go's, amid a message
_UNKNOWN = (100, 1600)  # Milvus's codes for an unknown collection and an unknown alias
_NOT_LOADED = (101, 103)  # not at all, not yet whole: for a while after a server was started again
_FATAL = (100, 1100, 1600)  # codes of calls that fail again however often they are tried
_LITE_FATAL = (1,)  # on a server: not ready yet
_TRIES = 4
_THROTTLED = (4, 8, 9)  # codes of a server that asks for fewer writes, or is out of memory or disk
_THROTTLED_TRIES = 12
_LONGEST_PAUSE = 10.0
_DONE, _IMPORT_FAILED = 6, (1, 7)  # states of a bulk import
_SERVER_ONLY = ("DISKANN",)  # index types

T = TypeVar("T")


@dataclass(frozen=True)
class Stamp:
    """What a collection was made from, and how far it got.

    Attributes:
        model_version, model_fingerprint, run_id: the MLflow version, its package's sha256 and its run.
        snapshot_fingerprint, window_start, window_end: the data (`snapshot.json`).
        simulated: whether that data was made up.
        image_root: where the pictures are (`mrse.data.images.ImageStore`).
        rows, ids_fingerprint, content_fingerprint: the number of items, sha256 over their ids, and over ids, vectors
            and shown fields.
        dim, index_type, search_params: how to search it, exactly as it was verified.
        created: ISO, UTC.
        state: `building` until verification has passed, `failed` where it has not and the collection was kept.
        previous, since: once it has gone live, the collection that it replaced and the moment.
    """

    model_version: int
    model_fingerprint: str
    run_id: str
    snapshot_fingerprint: str
    window_start: str
    window_end: str
    simulated: bool
    image_root: str | None
    rows: int
    ids_fingerprint: str
    content_fingerprint: str
    dim: int
    index_type: str
    search_params: dict[str, int]
    created: str
    state: Literal["building", "verified", "failed"] = "building"
    previous: str | None = None
    since: str | None = None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.as_dict(), sort_keys=True, ensure_ascii=True)

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)

    def with_(self, **changes: Any) -> Stamp:
        """A copy with some attributes changed."""
        return replace(self, **changes)

    def identity(self) -> str:
        """What one build has in common before and after verification and going live."""
        return self.with_(state="building", previous=None, since=None).to_json()

    def same_build(self, other: Stamp) -> bool:
        """Whether both describe one and the same build."""
        return self.identity() == other.identity()


def parse_stamp(text: str | None) -> Stamp | None:
    """The stamp in a property's text; None where there is none or it is not one of ours."""
    try:
        return Stamp(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Found:
    """One search result: the item, its stored fields and its score."""

    item_id: str
    score: float
    fields: dict[str, Any]


@contextmanager
def opened(services: ServicesConfig, busy_seconds: float = _BUSY_SECONDS) -> Iterator[Store]:
    """Open Milvus, and close it again whatever happens.

    Args:
        services: `milvus_uri` is a folder ending in `.db` (Milvus Lite), else the address of a server. A server's token
            is read from `MRSE_MILVUS_TOKEN`.
        busy_seconds: how long to wait for another process to let go of Milvus Lite's folder.

    Raises:
        ServiceError: no server answers, or another process holds the folder; the message names it.
    """
    uri = services.milvus_uri
    client = _connect_lite(Path(uri), busy_seconds) if is_lite(uri) else _connect_server(uri)
    try:
        yield Store(client, uri)
    finally:
        client.close()
        if is_lite(uri):
            # Closing the client leaves the in-process server, and with it the lock, behind.
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(uri)


def exists(services: ServicesConfig) -> bool:
    """False when Milvus Lite's folder was never made: looking must not make it."""
    return not is_lite(services.milvus_uri) or Path(services.milvus_uri).is_dir()


def is_lite(uri: str) -> bool:
    """Whether `uri` names a folder of Milvus Lite."""
    return "://" not in uri


def check_served(services: ServicesConfig, config: IndexConfig) -> None:
    """Raise ConfigError when Milvus Lite is asked for what only a server has: some index types, bulk import."""
    if not is_lite(services.milvus_uri):
        return
    server = "set services.milvus_uri (MRSE_MILVUS_URI) to a Milvus server"
    if config.type in _SERVER_ONLY:
        raise ConfigError(f"build_index.type: Milvus Lite has no {config.type}; take another type, or {server}")
    if config.bulk_folder is not None:
        raise ConfigError(f"build_index.bulk_folder: Milvus Lite has no bulk import; make it null, or {server}")


class Store:
    """What MRSE asks of Milvus. Made by `opened`."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._uri = uri

    # Collections and their stamps

    def collections(self) -> dict[str, Stamp | None]:
        """Every collection that MRSE named, with its stamp (None: unreadable)."""
        names = sorted(n for n in self._call("list_collections") if n.startswith(PREFIX))
        return {name: self.stamp(name) for name in names}

    def has(self, collection: str) -> bool:
        """Whether the collection exists."""
        return bool(self._call("has_collection", collection))

    def stamp(self, collection: str) -> Stamp | None:
        """The collection's stamp, or None when it has none or does not exist."""
        described = self._or_none("describe_collection", collection)
        return None if described is None else parse_stamp(described.get("properties", {}).get(STAMP))

    def write_stamp(self, collection: str, stamp: Stamp) -> None:
        """Replace the collection's stamp and read it back."""
        self._call("alter_collection_properties", collection, properties={STAMP: stamp.to_json()})
        if self.stamp(collection) != stamp:
            raise ServiceError(f"Milvus at {self._uri} did not keep the stamp of collection {collection}")

    def sweep(self) -> None:
        """Delete what a killed process left of a collection that it was making or dropping in Milvus Lite.

        Milvus Lite does not list it, but its files take room, and its name cannot be made again.
        """
        if not is_lite(self._uri):
            return
        for folder in Path(self._uri, "collections").glob(f"{PREFIX}*"):
            if not (folder / "schema.json").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def create(self, collection: str, config: IndexConfig, stamp: Stamp) -> None:
        """Make an empty collection with its index and stamp."""
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, size in TEXT_BYTES.items():
            schema.add_field(name, DataType.VARCHAR, max_length=size, is_primary=name == "item_id")
        schema.add_field("price", DataType.DOUBLE)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=stamp.dim)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type=config.type, metric_type=METRIC, params=config.build)
        for field, index_type in self._scalar_indexes().items():
            index.add_index(field, index_type=index_type)
        self._call(
            "create_collection", collection, schema=schema, index_params=index, properties={STAMP: stamp.to_json()}
        )

    def drop(self, collection: str) -> None:
        """Delete a collection. Milvus would also delete one that is live; this refuses to."""
        if self.aliases(collection):
            raise IndexFailed(f"collection {collection} is live; it is not deleted")
        self._call("drop_collection", collection)

    # Rows

    def insert(self, collection: str, rows: list[dict[str, Any]]) -> None:
        """Write rows, again after a passing failure; a second try replaces what the first one wrote.

        Each batch waits for the server's answer, so it is never sent faster than it is taken; a server that asks for
        fewer writes is given up to a minute and a half.
        """
        self._patiently(lambda tried: self._call("insert" if tried == 0 else "upsert", collection, rows))

    def bulk_import(self, collection: str, parquet: str) -> None:
        """Let the server read a Parquet file with a column for each field, and wait until its rows are stored.

        Args:
            collection: an empty one.
            parquet: the file as the server finds it: a key in its bucket, or a path where its storage is local.

        Raises:
            ServiceError: the server cannot read or take the file, or is not done after 10 minutes.
        """
        connection = self._client._get_connection()  # MilvusClient has no such method
        files, limit = [parquet], {"timeout": _CALL_SECONDS}
        task = self._translated("bulk import", partial(connection.do_bulk_insert, collection, "", files, **limit))
        give_up = time.monotonic() + _LOAD_SECONDS
        state = partial(connection.get_bulk_insert_state, task, **limit)
        while (found := self._translated("bulk import", state)).state != _DONE:
            if found.state in _IMPORT_FAILED or time.monotonic() >= give_up:
                reason = found.failed_reason or "it is not done after 10 minutes"
                raise ServiceError(
                    f"Milvus at {self._uri}: bulk import of {parquet}: {reason} (a file that it does not find: "
                    "build_index.bulk_folder must lie in its own storage)"
                )
            time.sleep(0.2)
        self._call("refresh_load", collection, timeout=_LOAD_SECONDS)  # else it shows nothing of what was imported

    def seal(self, collection: str) -> None:
        """Make what was written lasting, and wait for the index. For the builder alone: it writes."""
        self._patiently(lambda _: self._call("flush", collection, timeout=_LOAD_SECONDS))
        self._await_index(collection)

    def load(self, collection: str) -> None:
        """Make the collection searchable; changes nothing where it is."""
        self._patiently(lambda _: self._call("load_collection", collection, timeout=_LOAD_SECONDS))

    def loaded(self, collection: str) -> bool:
        """Whether the whole collection can be searched now."""
        return str(self._call("get_load_state", collection)["state"]) == "Loaded"

    def count(self, collection: str) -> int:
        """The number of rows, as of now."""
        rows = self._read("query", collection, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    def ids(self, collection: str, batch_size: int = 8000) -> Iterator[str]:
        """Every item id, in batches, in the order of the store."""
        # Not `query_iterator`: pymilvus does not escape the id that it goes on after. With its flags, pages ascend.
        paged = {"limit": batch_size, "iterator": "True", "reduce_stop_for_best": "True"}
        after = ""
        while rows := self._read(
            "query",
            collection,
            filter=f"item_id > {quoted(after)}",
            output_fields=["item_id"],
            consistency_level="Strong",
            **paged,
        ):
            yield from (str(row["item_id"]) for row in rows)
            after = str(rows[-1]["item_id"])

    def vectors(self, collection: str, item_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Stored vectors (D,) by item id; ids that are not there are left out."""
        rows = self.fetch(collection, item_ids, ["vector"])
        return {item_id: np.asarray(row["vector"], dtype=np.float32) for item_id, row in rows.items()}

    def fetch(self, collection: str, item_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Stored fields by item id; ids that are not there are left out."""
        if not item_ids:
            return {}
        # Not `get`: pymilvus does not escape the ids.
        rows = self._read("query", collection, filter=one_of(item_ids), output_fields=["item_id", *fields])
        return {str(row["item_id"]): dict(row) for row in rows}

    def search(
        self,
        collection: str,
        vectors_QD: NDArray[np.float32],
        k: int,
        search_params: dict[str, int],
        fields: Sequence[str] = (),
        among: Filter = EVERYTHING,
    ) -> list[list[Found]]:
        """The nearest items of each query vector: score descending, then item id ascending.

        Args:
            collection: a collection's name or an alias.
            vectors_QD: (queries, dim), length 1.
            k: how many items each; a candidate list (`ef`, `search_list`) shorter than k is widened to k.
            search_params: of the index type.
            fields: stored fields to bring along.
            among: which items may be found.
        """
        params = {name: max(value, k) if name in CANDIDATES else value for name, value in search_params.items()}
        found = self._read(
            "search",
            collection,
            data=list(vectors_QD),
            filter=among.expression(),
            limit=k,
            output_fields=["item_id", *fields],
            search_params={"metric_type": METRIC, "params": params},
        )
        return [sorted(map(_found, hits), key=lambda hit: (-hit.score, hit.item_id)) for hits in found]

    # Aliases

    def target(self, alias: str = ALIAS) -> str | None:
        """The collection behind an alias, or None."""
        described = self._or_none("describe_alias", alias)
        return None if described is None else str(described["collection_name"])

    def aliases(self, collection: str) -> list[str]:
        """The aliases of a collection."""
        return list(self._call("list_aliases", collection)["aliases"])

    def point(self, collection: str | None, alias: str = ALIAS) -> None:
        """Move an alias to a collection in one call (None: remove it), and read it back."""
        current = self.target(alias)
        if current == collection:
            return
        if collection is None:
            self._call("drop_alias", alias)
        elif current is None:
            self._make_alias(collection, alias)
        else:
            self._call("alter_alias", collection, alias)
        if self.target(alias) != collection:
            raise ServiceError(f"Milvus at {self._uri}: alias {alias} is not where it was moved to ({collection})")

    def _make_alias(self, collection: str, alias: str) -> None:
        try:
            self._call("create_alias", collection, alias)
        except ServiceError as error:  # Milvus 2.3 keeps, and does not show, the alias of a collection that was dropped
            say(f"{error}; moving it")
            self._call("alter_alias", collection, alias)

    # Calls

    def _scalar_indexes(self) -> dict[str, str]:
        """The index of each field that filters read: Milvus Lite has one kind, Milvus 2.3 one for each type."""
        if str(self._call("get_server_version")).startswith("milvus_lite"):  # it may be behind a server's address
            return {"category": "INVERTED", "price": "INVERTED"}
        return {"category": "Trie", "price": "STL_SORT"}

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        options.setdefault("timeout", _CALL_SECONDS)  # without one, pymilvus tries for many minutes
        return self._translated(method, lambda: getattr(self._client, method)(*arguments, **options))

    def _read(self, method: str, collection: str, **options: Any) -> Any:
        """A call that reads rows, made once more after loading where Milvus, started again, has not loaded them yet."""
        try:
            return self._call(method, collection, **options)
        except ServiceError as error:
            if _code(error.__cause__) not in _NOT_LOADED:
                raise
            say(f"{error}; loading it for up to {_CALL_SECONDS:.0f} s")
        self._call("load_collection", collection)
        return self._call(method, collection, **options)

    def _or_none(self, method: str, *arguments: Any) -> Any:
        try:
            return self._call(method, *arguments)
        except ServiceError as error:
            if _code(error.__cause__) in _UNKNOWN:
                return None
            raise

    def _await_index(self, collection: str) -> None:
        """A server builds the index in the background, and until then searches what it has by brute force."""
        if is_lite(self._uri):
            return
        pending, give_up = None, 0.0
        while left := self._call("describe_index", collection, "vector")["pending_index_rows"]:
            if left != pending:
                pending, give_up = left, time.monotonic() + _INDEX_SECONDS
            if time.monotonic() >= give_up:
                raise ServiceError(
                    f"Milvus at {self._uri}: the index of {collection} lacks {left} rows, as {_INDEX_SECONDS:.0f} s "
                    "ago; the server's log may tell why"
                )
            time.sleep(0.2)

    def _translated(self, method: str, call: Callable[[], T]) -> T:
        from grpc import RpcError
        from pymilvus.exceptions import MilvusException

        try:
            return call()
        except (MilvusException, RpcError) as error:
            raise ServiceError(f"Milvus at {self._uri}: {method}: {_reason(error)}") from error

    def _patiently(self, attempt: Callable[[int], Any]) -> None:
        for number in itertools.count():
            try:
                attempt(number)
                return
            except ServiceError as error:
                if number + 1 >= self._tries(_code(error.__cause__)):
                    raise
                say(f"{error}; trying again")
                time.sleep(min(2.0**number / 2, _LONGEST_PAUSE))

    def _tries(self, code: int | None) -> int:
        """How often a call is made that fails with this code."""
        if code in _FATAL or (code in _LITE_FATAL and is_lite(self._uri)):
            return 1
        return _THROTTLED_TRIES if code in _THROTTLED else _TRIES


def _connect_lite(folder: Path, busy_seconds: float) -> Any:
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    if folder.suffix != ".db":
        raise ServiceError(
            f"services.milvus_uri: {folder} is neither a server (http://host:19530) nor a folder that ends in .db"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    _quiet()
    give_up = time.monotonic() + busy_seconds
    while True:
        held_by = holder(folder)
        if held_by is None:
            break
        if time.monotonic() >= give_up:
            raise ServiceError(
                f"{folder} is in use by {held_by}; Milvus Lite allows one process at a time. Wait for it or "
                "stop it, or run `milvus-lite server --host 127.0.0.1` and set MRSE_MILVUS_URI to its address"
            )
        time.sleep(0.1)
    try:
        return MilvusClient(str(folder), timeout=_CONNECT_SECONDS)
    except MilvusException as error:
        raise ServiceError(
            f"{folder}: Milvus Lite cannot open it ({holder(folder) or error.message}); if it is damaged, move it away "
            "and run the pipeline again"
        ) from error


def _connect_server(uri: str) -> Any:
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    _quiet()
    try:
        return MilvusClient(uri, token=os.environ.get("MRSE_MILVUS_TOKEN", ""), timeout=_CONNECT_SECONDS)
    except MilvusException as error:
        shown = urlsplit(uri)._replace(query="").geturl()
        raise ServiceError(
            f"Milvus at {shown} does not answer ({error.message}); is the server up, and is services.milvus_uri "
            "(MRSE_MILVUS_URI) right?"
        ) from None


def holder(folder: Path) -> str | None:
    """Who holds Milvus Lite's folder: `process 123 (python -m …)`, or None when it is free."""
    import fcntl

    lock = folder / "LOCK"
    if not lock.exists():
        return None
    with lock.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except OSError:
            inode = os.fstat(handle.fileno()).st_ino
    return _process_with_lock(inode)


def _process_with_lock(inode: int) -> str:
    """Linux tells who holds a lock; elsewhere, or in another container, the holder stays unnamed."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
        pid = next(f[4] for f in map(str.split, lines) if f[1] == "FLOCK" and f[5].endswith(f":{inode}"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, StopIteration, IndexError):
        return "another process"
    return f"process {pid} ({command[:100]})"


def _quiet() -> None:
    # They print a traceback for every error that is raised as well, and for calls that Milvus Lite lacks.
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _found(hit: Any) -> Found:
    fields = dict(hit["entity"])
    return Found(item_id=str(fields.pop("item_id")), score=float(hit["distance"]), fields=fields)


def _reason(error: Exception) -> str:
    """The first line that is not Go's stack, which may stand before the reason as well as behind it."""
    message = _STACK.sub("", getattr(error, "message", "") or str(error)).strip(" \n:")
    return message.partition("\n")[0] or type(error).__name__


def _code(error: BaseException | None) -> int | None:
    return getattr(error, "code", None)

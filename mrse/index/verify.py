"""What a new collection must show before it may go live.

The collection is read back and compared with what was embedded: rows, ids, a sample of vectors, and how often the
approximate search finds what exact search finds, for real queries at the parameters that live search uses and at each
depth that is asked for. Exact search costs queries × items × dim multiplications: 200 queries over a million items take
about 10 s and 64 MiB.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrse.config import VerifyConfig
from mrse.errors import IndexFailed
from mrse.index.client import Stamp, Store

# Two scores this close are a tie: the store adds the products up in another order than numpy does.
SCORE_TOLERANCE = 1e-5
_VECTOR_TOLERANCE = 1e-6
_TIMED = 100
_EXACT_BATCH = 16


def ids_fingerprint(item_ids: Iterable[str]) -> str:
    """sha256 over the ids in their order as sorted text."""
    digest = hashlib.sha256()
    for item_id in sorted(item_ids):
        digest.update(item_id.encode() + b"\n")
    return digest.hexdigest()


def verify(
    store: Store,
    collection: str,
    stamp: Stamp,
    item_ids: Sequence[str],
    vectors_ND: NDArray[np.float32],
    queries_QD: NDArray[np.float32],
    config: VerifyConfig,
) -> dict[str, Any]:
    """Hold a loaded collection against what was embedded.

    Args:
        stamp: what the collection was asked to be.
        item_ids, vectors_ND: what was embedded.
        queries_QD: embedded queries of the held-out days.

    Returns:
        The figures: rows, sampled vectors, recall by depth (mean, p5), latency of one query at the largest depth in ms
        (p50, p99). A depth beyond the number of rows is that number.

    Raises:
        IndexFailed: anything differs, the collection is not loaded, or recall or latency is beyond its bound.
    """
    if not store.loaded(collection):
        raise IndexFailed(f"collection {collection}: Milvus has not loaded it; is its memory full?")
    _check_stamp(store, collection, stamp)
    _check_rows(store, collection, stamp)
    sampled = _check_vectors(store, collection, item_ids, vectors_ND, config.sample)
    depths = sorted({min(k, len(item_ids)) for k in config.recall_k})
    recall = ann_recall(store, collection, stamp.search_params, item_ids, vectors_ND, queries_QD, depths)
    bounds = {"mean": config.min_recall_mean, "p5": config.min_recall_p5}
    for (k, found), (name, bound) in itertools.product(recall.items(), bounds.items()):
        if found[name] < bound:
            raise IndexFailed(
                f"collection {collection}: recall@{k} against exact search, {name} over {len(queries_QD)} queries, is "
                f"{found[name]:.3f} < {bound:.3f} with {stamp.index_type} {stamp.search_params}; raise "
                "build_index.search or build_index.build"
            )
    taken = latency(store, collection, stamp.search_params, queries_QD, depths[-1])
    if config.max_p99_ms is not None and taken["latency_p99_ms"] > config.max_p99_ms:
        raise IndexFailed(
            f"collection {collection}: the p99 of single queries is {taken['latency_p99_ms']:.1f} ms > "
            f"{config.max_p99_ms:.1f} ms with {stamp.index_type} {stamp.search_params}"
        )
    return {
        "rows": stamp.rows,
        "sampled_vectors": sampled,
        "queries": len(queries_QD),
        "recall": {str(k): found for k, found in recall.items()},
        "search_params": stamp.search_params,
        **taken,
    }


def ann_recall(
    store: Store,
    collection: str,
    search_params: dict[str, int],
    item_ids: Sequence[str],
    vectors_ND: NDArray[np.float32],
    queries_QD: NDArray[np.float32],
    depths: Sequence[int],
) -> dict[int, dict[str, float]]:
    """Recall@k of the index against exact search, for each depth k: `mean` and `p5` over the queries.

    A found item counts when its exact score reaches the k-th best one: items of equal vectors (the same product listed
    twice) stand in for one another, and which of them is found says nothing about the index.
    """
    row = {item_id: i for i, item_id in enumerate(item_ids)}
    by_query: dict[int, list[float]] = {k: [] for k in depths}
    for start in range(0, len(queries_QD), _EXACT_BATCH):
        batch_BD = queries_QD[start : start + _EXACT_BATCH]
        scores_BN = batch_BD @ vectors_ND.T
        for k in depths:
            kth_B = np.partition(scores_BN, -k, axis=1)[:, -k]
            found = store.search(collection, batch_BD, k, search_params)
            for scores_N, kth, hits in zip(scores_BN, kth_B, found, strict=True):
                rows = {row[hit.item_id] for hit in hits if hit.item_id in row}
                good = sum(scores_N[i] >= kth - SCORE_TOLERANCE for i in rows)
                by_query[k].append(float(good) / k)
    return {k: mean_and_p5(shares) for k, shares in by_query.items()}


def mean_and_p5(shares: Sequence[float]) -> dict[str, float]:
    """Their mean and 5th percentile, to four digits."""
    return {"mean": round(float(np.mean(shares)), 4), "p5": round(float(np.percentile(shares, 5)), 4)}


def latency(
    store: Store, collection: str, search_params: dict[str, int], queries_QD: NDArray[np.float32], k: int
) -> dict[str, float]:
    """The latency of single queries in ms, p50 and p99, over the first hundred."""
    taken = []
    for query_D in queries_QD[:_TIMED]:
        started = time.perf_counter()
        store.search(collection, query_D[None, :], k, search_params)
        taken.append(1000 * (time.perf_counter() - started))
    return {
        "latency_p50_ms": round(float(np.median(taken)), 2),
        "latency_p99_ms": round(float(np.percentile(taken, 99)), 2),
    }


def _check_stamp(store: Store, collection: str, stamp: Stamp) -> None:
    found = store.stamp(collection)
    if found is None or not found.same_build(stamp):
        raise IndexFailed(f"collection {collection}: its stamp is not that of this build; is another build running?")


def _check_rows(store: Store, collection: str, stamp: Stamp) -> None:
    count = store.count(collection)
    if count != stamp.rows:
        raise IndexFailed(f"collection {collection}: {count} rows, {stamp.rows} were embedded")
    if ids_fingerprint(store.ids(collection)) != stamp.ids_fingerprint:
        raise IndexFailed(f"collection {collection}: it holds {count} rows, but not of the items that were embedded")


def _check_vectors(
    store: Store, collection: str, item_ids: Sequence[str], vectors_ND: NDArray[np.float32], sample: int
) -> int:
    rows = np.unique(np.linspace(0, len(item_ids) - 1, num=min(sample, len(item_ids)), dtype=np.int64))
    stored = store.vectors(collection, [item_ids[i] for i in rows])
    for i in rows:
        vector_D = stored.get(item_ids[i])
        if vector_D is None or not np.allclose(vector_D, vectors_ND[i], rtol=0, atol=_VECTOR_TOLERANCE):
            raise IndexFailed(
                f"collection {collection}: the stored vector of item {item_ids[i]!r} is not its embedding"
            )
    return len(rows)

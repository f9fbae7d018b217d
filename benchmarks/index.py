"""Building an index and searching it, on a Milvus server or Milvus Lite: `python -m benchmarks.index`.

Two things are measured, and printed as one JSON object:

- how fast a collection is filled, against a bare loop of `MilvusClient.insert` over the same rows, then flush and load:
  the two take turns, and the ratio is of rows per second (above 1: ours is faster);
- for each index type: build time, recall@10 against exact search (mean and 5th percentile) at the served parameters,
  and the latency of single queries (p50, p99), beside faiss in process with the same parameters.

Vectors are made up: points around centres, and queries near points. `MRSE_MILVUS_URI` names the server.

    python -m benchmarks.index --items 1000000 --types HNSW IVF_FLAT
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MRSE_QUIET": "1"}

import faiss
import numpy as np
from numpy.typing import NDArray

from mrse.config import INDEX_PARAMETERS, IndexConfig, ServicesConfig
from mrse.index.build import Content, fill
from mrse.index.client import Stamp, Store, opened
from mrse.index.verify import ann_recall, ids_fingerprint, latency

_K = 10
_CENTRES = 500
_SPREAD = 0.6  # of a point around its centre, in lengths of the centre
_NAME = "mrse_v0_benchmark"


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--types", nargs="+", default=["FLAT", "IVF_FLAT", "HNSW"], choices=sorted(INDEX_PARAMETERS))
    arguments = parser.parse_args()
    content, queries_QD = _shop(arguments.items, arguments.dim, arguments.queries)
    with tempfile.TemporaryDirectory() as folder:
        services = ServicesConfig(milvus_uri=str(Path(folder) / "milvus.db")).resolved()
        with opened(services) as store:
            measured = {
                "items": arguments.items,
                "dim": arguments.dim,
                "fill": _fill_ratio(store, content, arguments.rounds),
                "types": {name: _index_type(store, name, content, queries_QD) for name in arguments.types},
            }
            store.drop(_NAME)
    print(json.dumps(measured, indent=2))


def _shop(items: int, dim: int, queries: int) -> tuple[Content, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    centres_CD = rng.normal(size=(_CENTRES, dim)).astype(np.float32)
    vectors_ND = _near(rng, centres_CD[rng.integers(_CENTRES, size=items)])
    content = Content(
        item_ids=[f"i{number:08}" for number in range(items)],
        titles=[f"a title of some length, number {number}" for number in range(items)],
        categories=[f"category {number % 50} > kind {number % 500}" for number in range(items)],
        prices=[float(number % 300) for number in range(items)],
        images=[f"{number}.jpg" for number in range(items)],
        vectors_ND=vectors_ND,
    )
    return content, _near(rng, vectors_ND[rng.integers(items, size=queries)] * np.sqrt(dim))


def _near(rng: np.random.Generator, points_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    moved_ND = points_ND + _SPREAD * rng.normal(size=points_ND.shape).astype(np.float32)
    return (moved_ND / np.linalg.norm(moved_ND, axis=1, keepdims=True)).astype(np.float32)


def _fill_ratio(store: Store, content: Content, rounds: int) -> dict[str, Any]:
    config = IndexConfig.model_validate({"type": "FLAT"})
    stamp = _stamp(content, config)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        seconds["bare"].append(_timed(lambda: _bare_loop(store, content, config, stamp)))
        store.drop(_NAME)
        seconds["ours"].append(_timed(lambda: fill(store, _NAME, stamp, content, config)))
        store.drop(_NAME)
    ours, bare = (statistics.median(seconds[name]) for name in ("ours", "bare"))
    return {"rows_per_s": round(stamp.rows / ours), "bare_rows_per_s": round(stamp.rows / bare), "ratio": bare / ours}


def _bare_loop(store: Store, content: Content, config: IndexConfig, stamp: Stamp) -> None:
    store.create(_NAME, config, stamp)
    client = store._client
    for start in range(0, stamp.rows, config.batch_size):
        client.insert(_NAME, content.rows(start, start + config.batch_size))
    client.flush(_NAME)
    client.load_collection(_NAME)


def _index_type(store: Store, name: str, content: Content, queries_QD: NDArray[np.float32]) -> dict[str, Any]:
    config = IndexConfig.model_validate({"type": name})
    stamp = _stamp(content, config)
    build_s = _timed(lambda: fill(store, _NAME, stamp, content, config))
    recall = ann_recall(store, _NAME, config.search, content.item_ids, content.vectors_ND, queries_QD, _K)
    return {
        "search": config.search,
        "fill_and_build_s": round(build_s, 1),
        "recall_mean": round(recall.mean, 4),
        "recall_p5": round(recall.p5, 4),
        **latency(store, _NAME, config.search, queries_QD, _K),
        "faiss": _in_process(config, content.vectors_ND, queries_QD),
    }


def _in_process(config: IndexConfig, vectors_ND: NDArray[np.float32], queries_QD: NDArray[np.float32]) -> Any:
    dim = vectors_ND.shape[1]
    index: Any
    if config.type == "HNSW":
        index = faiss.IndexHNSWFlat(dim, config.build["M"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = config.build["efConstruction"], config.search["ef"]
    elif config.type == "IVF_FLAT":
        quantizer = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFFlat(quantizer, dim, config.build["nlist"], faiss.METRIC_INNER_PRODUCT)
        index.nprobe = config.search["nprobe"]
    else:
        index = faiss.IndexFlatIP(dim)
    build_s = _timed(lambda: (index.train(vectors_ND), index.add(vectors_ND)))
    taken, shares = [], []
    for query_D in queries_QD:
        kth = np.partition(vectors_ND @ query_D, -_K)[-_K]
        started = time.perf_counter()
        scores_1K, _ = index.search(query_D[None], _K)
        taken.append(1000 * (time.perf_counter() - started))
        shares.append(float((scores_1K[0] >= kth - 1e-5).mean()))
    return {
        "build_s": round(build_s, 1),
        "recall_mean": round(float(np.mean(shares)), 4),
        "latency_p50_ms": round(float(np.percentile(taken, 50)), 2),
        "latency_p99_ms": round(float(np.percentile(taken, 99)), 2),
        "size_mib": round(len(faiss.serialize_index(index)) / 2**20, 1),
    }


def _stamp(content: Content, config: IndexConfig) -> Stamp:
    return Stamp(
        model_version=0,
        model_fingerprint="",
        run_id="",
        snapshot_fingerprint="",
        window_start="2026-01-01T00:00:00+00:00",
        window_end="2026-01-01T00:00:00+00:00",
        simulated=True,
        image_root=None,
        rows=len(content.item_ids),
        ids_fingerprint=ids_fingerprint(content.item_ids),
        content_fingerprint="",
        dim=content.vectors_ND.shape[1],
        index_type=config.type,
        search_params=config.search,
        created="2026-01-01T00:00:00+00:00",
    )


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

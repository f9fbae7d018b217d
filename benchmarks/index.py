"""Building an index and searching it, on a Milvus server or Milvus Lite: `python -m benchmarks.index`.

Two things are measured, and printed as they come, one JSON object per line:

- how fast a collection is filled, against a bare loop of `MilvusClient.insert` over the same rows, then flush and load:
  the two take turns, and the ratio is of rows per second (above 1: ours is faster); not with `--rounds 0`;
- for each index type: build time, recall@10 and @100 against exact search (mean and 5th percentile) at the served
  parameters, the latency of single queries for 10 items (p50, p99) and size, then the same of faiss, and for HNSW of
  hnswlib, in process with the same parameters on one thread.

Vectors are made up: points around centres, and queries near points. `MRSE_MILVUS_URI` names the server. It does not
tell the size of an index: `--index-files` names the folder where it keeps them, if it keeps them on this machine.

    python -m benchmarks.index --items 1000000 --dim 128 --rounds 0 --types HNSW IVF_FLAT --parameters '
        {"HNSW": {"build": {"M": 16, "efConstruction": 64}},
         "IVF_FLAT": {"build": {"nlist": 1024}, "search": {"nprobe": 32}}}'
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MRSE_QUIET": "1"}

import faiss
import hnswlib
import numpy as np
from numpy.typing import NDArray

from mrse.config import INDEX_PARAMETERS, IndexConfig, ServicesConfig
from mrse.index.build import Content, fill
from mrse.index.client import Stamp, Store, opened
from mrse.index.verify import SCORE_TOLERANCE, ann_recall, ids_fingerprint, latency, mean_and_p5

_DEPTHS = (10, 100)
_CENTRES = 500
_SPREAD = 0.6  # of a point around its centre, in lengths of the centre
_NAME = "mrse_v0_benchmark"


def main() -> None:
    """Measure, and print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--types", nargs="+", default=["FLAT", "IVF_FLAT", "HNSW"], choices=sorted(INDEX_PARAMETERS))
    parser.add_argument("--parameters", type=json.loads, default={}, help="JSON: what differs from a type's defaults")
    parser.add_argument("--index-files", type=Path)
    arguments = parser.parse_args()
    content, queries_QD = _shop(arguments.items, arguments.dim, arguments.queries)
    _say(items=arguments.items, dim=arguments.dim)
    with tempfile.TemporaryDirectory() as folder:
        services = ServicesConfig(milvus_uri=str(Path(folder) / "milvus.db")).resolved()
        with opened(services) as store:
            if arguments.rounds:
                _say(**_fill_ratio(store, content, arguments.rounds))
            for name in arguments.types:
                config = IndexConfig.model_validate({"type": name, **arguments.parameters.get(name, {})})
                _index_type(store, config, content, queries_QD, arguments.index_files)
            store.drop(_NAME)


def _say(**measured: Any) -> None:
    print(json.dumps(measured), flush=True)


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


def _index_type(
    store: Store, config: IndexConfig, content: Content, queries_QD: NDArray[np.float32], index_files: Path | None
) -> None:
    stamp = _stamp(content, config)
    began = time.time()
    build_s = _timed(lambda: fill(store, _NAME, stamp, content, config))
    recall = ann_recall(store, _NAME, config.search, content.item_ids, content.vectors_ND, queries_QD, _DEPTHS)
    _say(
        type=config.type,
        of="milvus",
        build=config.build,
        search=config.search,
        build_s=round(build_s, 1),
        recall=recall,
        **latency(store, _NAME, config.search, queries_QD, _DEPTHS[0]),
        size_mib=None if index_files is None else _written_mib(index_files, began),
    )
    _in_process("faiss", config, *_faiss(config, content.vectors_ND.shape[1]), content.vectors_ND, queries_QD)
    if config.type == "HNSW":
        _in_process("hnswlib", config, *_hnswlib(config, content.vectors_ND), content.vectors_ND, queries_QD)


def _written_mib(folder: Path, since: float) -> float:
    """The size of the files written since then; those of a dropped index lie there for a while yet."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return _mib(sum(stat.st_size for stat in stats if stat.st_mtime >= since))


Fill = Callable[[NDArray[np.float32]], None]
Find = Callable[[NDArray[np.float32], int], NDArray[np.int64]]
Size = Callable[[], int]


def _faiss(config: IndexConfig, dim: int) -> tuple[Fill, Find, Size]:
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

    def fill_index(vectors_ND: NDArray[np.float32]) -> None:
        index.train(vectors_ND)
        index.add(vectors_ND)

    return (
        fill_index,
        lambda query_D, k: index.search(query_D[None], k)[1][0],
        lambda: len(faiss.serialize_index(index)),
    )


def _hnswlib(config: IndexConfig, vectors_ND: NDArray[np.float32]) -> tuple[Fill, Find, Size]:
    index = hnswlib.Index("ip", vectors_ND.shape[1])
    index.init_index(len(vectors_ND), M=config.build["M"], ef_construction=config.build["efConstruction"])
    index.set_ef(config.search["ef"])
    index.set_num_threads(1)
    return index.add_items, lambda query_D, k: index.knn_query(query_D, k)[0][0], index.index_file_size


def _in_process(
    peer: str,
    config: IndexConfig,
    fill_index: Fill,
    find: Find,
    size: Size,
    vectors_ND: NDArray[np.float32],
    queries_QD: NDArray[np.float32],
) -> None:
    build_s = _timed(lambda: fill_index(vectors_ND))
    taken: list[float] = []
    shares: dict[int, list[float]] = {k: [] for k in _DEPTHS}
    for query_D in queries_QD:
        taken.append(1000 * _timed(lambda query_D=query_D: find(query_D, _DEPTHS[0])))
        scores_N = vectors_ND @ query_D
        for k in _DEPTHS:
            good = scores_N[find(query_D, k)] >= np.partition(scores_N, -k)[-k] - SCORE_TOLERANCE
            shares[k].append(float(good.mean()))
    _say(
        type=config.type,
        of=peer,
        build_s=round(build_s, 1),
        recall={k: mean_and_p5(by_query) for k, by_query in shares.items()},
        latency_p50_ms=round(float(np.percentile(taken, 50)), 2),
        latency_p99_ms=round(float(np.percentile(taken, 99)), 2),
        size_mib=_mib(size()),
    )


def _mib(size: int) -> float:
    return round(size / 2**20, 1)


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

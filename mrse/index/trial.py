"""A throwaway index of the configured kind, so that it can be known before anything is built what its search loses.

It is made of Milvus Lite in a folder of its own, by the client that builds and asks the live one, and goes away with
the folder: no server and no live collection is touched. A server keeps a large collection in segments and may lose less
or more; what it loses is measured on the collection itself (`mrse.index.verify`).

Cost: for 5,700 items and 1,000 queries about 5 s on one core.

Legend of the shape suffixes: Q queries, N items, D vector size, K depth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrse.config import IndexConfig, ServicesConfig
from mrse.errors import ConfigError
from mrse.index.build import Content, fill
from mrse.index.client import Stamp, check_served, opened
from mrse.scratch import scratch

_NAME = "trial"
_BATCH = 256


def trial(
    config: IndexConfig, services: ServicesConfig
) -> Callable[[NDArray[np.float32], NDArray[np.float32], int], NDArray[np.int32]] | None:
    """Search by an index of this type with its search parameters.

    Args:
        config: section `build_index`.
        services: `cache_dir` holds the index for as long as it is needed.

    Returns:
        Items (N, D) in the order in which equal scores are put, queries (Q, D), both finite, and a depth K in; rows of
        the items (Q, K) out, best first, −1 where fewer were found. None where Milvus Lite has no index of this type.
        A call raises ServiceError where Milvus Lite cannot open its folder.
    """
    lite = services.model_copy(update={"milvus_uri": "trial.db"})
    inserted = config.model_copy(update={"bulk_folder": None})
    try:
        check_served(lite, inserted)
    except ConfigError:
        return None
    return partial(_search, inserted, lite)


def _search(
    config: IndexConfig,
    lite: ServicesConfig,
    vectors_ND: NDArray[np.float32],
    queries_QD: NDArray[np.float32],
    k: int,
) -> NDArray[np.int32]:
    found_QK = np.full((len(queries_QD), k), -1, dtype=np.int32)
    with scratch(Path(lite.cache_dir), "trial") as folder:
        placed = lite.model_copy(update={"milvus_uri": str(Path(folder) / lite.milvus_uri)})
        with opened(placed) as store:
            fill(store, _NAME, _stamp(config, vectors_ND), _content(vectors_ND), config)
            for start in range(0, len(queries_QD), _BATCH):
                answers = store.search(_NAME, queries_QD[start : start + _BATCH], k, config.search)
                for row, hits in enumerate(answers, start):
                    found_QK[row, : len(hits)] = [int(hit.item_id) for hit in hits]
    return found_QK


def _content(vectors_ND: NDArray[np.float32]) -> Content:
    """Vectors alone, named by their row; the names' order as text is that of the rows."""
    count = len(vectors_ND)
    return Content(
        [f"{row:09}" for row in range(count)], [""] * count, [""] * count, [0.0] * count, [""] * count, vectors_ND
    )


def _stamp(config: IndexConfig, vectors_ND: NDArray[np.float32]) -> Stamp:
    """That of a collection which is of no model and no snapshot."""
    rows, dim = vectors_ND.shape
    return Stamp(
        model_version=0,
        model_fingerprint="",
        run_id="",
        snapshot_fingerprint="",
        window_start="",
        window_end="",
        simulated=False,
        image_root=None,
        rows=rows,
        ids_fingerprint="",
        content_fingerprint="",
        dim=dim,
        index_type=config.type,
        search_params=dict(config.search),
        created="",
    )

"""Exact top-K with one rule for ties: score descending, then item id ascending.

Legend of the shape suffixes: Q requests, N items of the catalogue, D vector size, K depth. Items are named by their
position in the catalogue sorted by item id, so "smaller position" is "smaller id", and -1 means "nothing here".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ranking = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

EMPTY = -1
# Equal vectors may differ in the last bit of a blocked float32 product: candidates this close to the K-th score are
# scored again in float64 and rounded, so that equal items tie on every machine.
_SLACK = 1e-5
_DECIMALS = 7


def top_k(scores_N: npt.NDArray[Any], k: int, above: float | None = None) -> npt.NDArray[np.int64]:
    """Positions of the `k` best scores, best first, ties by position.

    Args:
        scores_N: one score per item, finite.
        k: how many to return; fewer come back when there are fewer items.
        above: leave out the items that score no more than this.
    """
    allowed = np.arange(len(scores_N)) if above is None else np.flatnonzero(scores_N > above)
    candidates = allowed[_near_top(scores_N[allowed], k, slack=0.0)]
    order = np.argsort(-scores_N[candidates], kind="stable")
    return candidates[order[:k]]


def exact_search(
    queries_QD: npt.NDArray[np.float32], items_ND: npt.NDArray[np.float32], k: int, block: int = 256
) -> Ranking:
    """Exact inner-product search by a blocked product; O(Q N D) time, `block` x N x 4 bytes of memory.

    Args:
        queries_QD: query vectors, finite.
        items_ND: item vectors in the order of item ids, finite.
        k: depth.
        block: queries per product.

    Returns:
        Positions of the best items (Q, K), best first, `EMPTY` where the catalogue has fewer than `k` items.
    """
    ranking_QK = np.full((len(queries_QD), k), EMPTY, dtype=np.int32)
    for query, scores_N in _dense_scores(queries_QD, items_ND, block):
        candidates = _near_top(scores_N, k, _SLACK)
        exact = np.einsum("nd,d->n", items_ND[candidates], queries_QD[query], dtype=np.float64)
        order = np.argsort(-np.round(exact, _DECIMALS), kind="stable")[:k]
        ranking_QK[query, : len(order)] = candidates[order]
    return ranking_QK


def fuse(rankings: list[Ranking], k: int, constant: int = 60) -> Ranking:
    """Reciprocal-rank fusion: an item's score is the sum over rankings of 1 / (constant + rank).

    Source: Cormack, Clarke and Büttcher, SIGIR 2009.
    """
    fused_QK = np.full((len(rankings[0]), k), EMPTY, dtype=np.int32)
    stacked = np.concatenate(rankings, axis=1)
    weights = np.concatenate([1.0 / (constant + 1 + np.arange(r.shape[1])) for r in rankings])
    for query, row in enumerate(stacked):
        items, where = np.unique(row, return_inverse=True)
        scores = np.round(np.bincount(where, weights=weights), 12)
        scores[items == EMPTY] = 0.0
        best = top_k(scores, k, above=0.0)
        fused_QK[query, : len(best)] = items[best]
    return fused_QK


def _dense_scores(
    queries_QD: npt.NDArray[np.float32], items_ND: npt.NDArray[np.float32], block: int
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    for start in range(0, len(queries_QD), block):
        yield from enumerate(queries_QD[start : start + block] @ items_ND.T, start)


def _near_top(scores_N: npt.NDArray[Any], k: int, slack: float) -> npt.NDArray[np.int64]:
    """Positions, ascending, of every score within `slack` of the k-th best."""
    count = len(scores_N)
    if k >= count:
        return np.arange(count)
    kth = np.partition(scores_N, count - k)[count - k]
    return np.flatnonzero(scores_N >= kth - slack)

"""Per-request retrieval metrics, vectorised over requests.

Only per-request values come out of here: averages are taken where they are needed, so that everything can be paired.

Legend of the shape suffixes: Q requests, K depth of a ranking.

| metric | of one request |
|---|---|
| `recall` | share of the relevant items that are in the top K |
| `precision` | share of the top K that is relevant |
| `rele` | mean gain of the top K; an item that nobody judged counts as 0 (the paper's relevance measure) |
| `ndcg` | discounted gain over that of the best possible ranking, linear gains, log2 discount |
| `mrr` | 1 / rank of the first relevant item, 0 where none is in the top K |
| `hit` | 1 where any relevant item is in the top K |

A ranking shorter than K is a ranking with nothing on the missing places. A value that is not defined (recall where no
item is relevant, nDCG where no item has a gain) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrse.evaluation.ranking import EMPTY, Floats, Ranking

METRICS = ("recall", "precision", "rele", "ndcg", "mrr", "hit")


@dataclass(frozen=True)
class Labels:
    """What each request was looking for.

    Attributes:
        keys: `request * items + item`, ascending, one per labelled pair.
        gains: the gain of each pair.
        items: the size of the catalogue.
        requests: the number of requests.
        relevant_from: a pair is relevant when its gain is at least this and above 0.
    """

    keys: npt.NDArray[np.int64]
    gains: Floats
    items: int
    requests: int
    relevant_from: float

    @classmethod
    def build(
        cls, pairs: Sequence[Sequence[int]], gains: Sequence[Sequence[float]], items: int, relevant_from: float = 0.0
    ) -> Labels:
        """From one list of item positions and one list of gains per request; an item is named once per request."""
        request = np.repeat(np.arange(len(pairs)), np.array([len(row) for row in pairs], dtype=np.int64))
        item = np.array([i for row in pairs for i in row], dtype=np.int64)
        gain = np.array([g for row in gains for g in row], dtype=np.float64)
        keys = request * items + item
        order = np.argsort(keys)
        return cls(keys[order], gain[order], items, len(pairs), relevant_from)

    @property
    def relevant_counts(self) -> npt.NDArray[np.int64]:
        """Number of relevant items of each request (Q,)."""
        relevant = self.is_relevant(self.gains)
        return np.bincount(self.keys[relevant] // self.items, minlength=self.requests)

    def is_relevant(self, gains: Floats) -> npt.NDArray[np.bool_]:
        """Which gains make an item relevant."""
        return (gains > 0.0) & (gains >= self.relevant_from)

    def look_up(self, ranking_QK: Ranking) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The gain on each place of a ranking (0 where unlabelled) and whether the place is labelled."""
        if len(self.keys) == 0:
            return np.zeros(ranking_QK.shape), np.zeros(ranking_QK.shape, dtype=bool)
        keys_QK = np.arange(self.requests)[:, None] * self.items + ranking_QK
        at_QK = np.minimum(np.searchsorted(self.keys, keys_QK), len(self.keys) - 1)
        labelled_QK = (self.keys[at_QK] == keys_QK) & (ranking_QK != EMPTY)
        return np.where(labelled_QK, self.gains[at_QK], 0.0), labelled_QK


def evaluate(ranking_QK: Ranking, labels: Labels, k: int) -> dict[str, Floats]:
    """Every metric of every request at depth `k`.

    Args:
        ranking_QK: item positions, best first; at least `k` places.
        labels: what the requests were looking for.
        k: depth.

    Returns:
        `METRICS` by name, each (Q,), NaN where the metric is not defined.

    Raises:
        ValueError: the ranking is shallower than `k`.
    """
    if ranking_QK.shape[1] < k:
        raise ValueError(f"metrics at {k} need {k} ranked items, got {ranking_QK.shape[1]}")
    gains_QK, _ = labels.look_up(ranking_QK[:, :k])
    relevant_QK = labels.is_relevant(gains_QK)
    hits_Q = relevant_QK.sum(axis=1)
    first_Q = relevant_QK.argmax(axis=1)
    return {
        "recall": _ratio(hits_Q, labels.relevant_counts),
        "precision": hits_Q / k,
        "rele": gains_QK.sum(axis=1) / k,
        "ndcg": _ratio(_discounted(gains_QK), _ideal(labels, k)),
        "mrr": np.where(hits_Q > 0, 1.0 / (first_Q + 1), 0.0),
        "hit": (hits_Q > 0).astype(np.float64),
    }


def labelled_share(ranking_QK: Ranking, labels: Labels, k: int) -> Floats:
    """Share of the top `k` that anyone labelled (Q,): how much of a judged figure rests on judgments at all."""
    _, labelled_QK = labels.look_up(ranking_QK[:, :k])
    share_Q: Floats = labelled_QK.mean(axis=1)
    return share_Q


def _discounted(gains_QK: Floats) -> Floats:
    discounted: Floats = gains_QK @ (1.0 / np.log2(np.arange(gains_QK.shape[1]) + 2.0))
    return discounted


def _ideal(labels: Labels, k: int) -> Floats:
    """Discounted gain of the best possible top `k` (Q,)."""
    request = labels.keys // labels.items
    order = np.lexsort((-labels.gains, request))
    request, gains = request[order], labels.gains[order]
    rank = np.arange(len(request)) - np.searchsorted(request, request)
    kept = rank < k
    discounted = gains[kept] / np.log2(rank[kept] + 2.0)
    return np.bincount(request[kept], weights=discounted, minlength=labels.requests).astype(np.float64)


def _ratio(top_Q: npt.NDArray[Any], bottom_Q: npt.NDArray[Any]) -> Floats:
    ratio_Q: Floats = np.divide(top_Q, bottom_Q, out=np.full(len(bottom_Q), np.nan), where=bottom_Q > 0)
    return ratio_Q

"""Systems at work on a window: rankings by exact search, and their per-request metrics.

Cost: encoding the catalogue dominates (about 1,200 items/s on one busy core); exact search of 20,000 requests over
50,000 items takes under a minute and one block of scores of memory.

Legend of the shape suffixes: Q requests, N items of the catalogue, D vector size, K depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mrse.evaluation.gate import Scored
from mrse.evaluation.lexical import BM25
from mrse.evaluation.metrics import Labels, evaluate, labelled_share
from mrse.evaluation.ranking import EMPTY, Floats, Ranking, exact_search, fuse
from mrse.evaluation.window import Asked
from mrse.layout import CLEAN, PROFILES
from mrse.model.arrays import EncodedCatalogue, History, HistoryBank
from mrse.model.retriever import Retriever, load_catalogue
from mrse.progress import say

EXPORTED = 20  # depth of the lists that an online experiment gets
JUDGED = ("rele_at_10", "precision_at_10", "recall_at_10", "recall_at_100")


@dataclass(frozen=True)
class Result:
    """One system's answers to the requests of one source.

    Attributes:
        scored: its metrics.
        ranking_QK: its lists.
        scores_QK: scores of the first `EXPORTED` places, NaN where there is nothing; None of a fusion, which has none.
        queries_QD: the requests in a model's space; None of what is no model.
    """

    scored: Scored
    ranking_QK: Ranking
    scores_QK: Floats | None = None
    queries_QD: npt.NDArray[np.float32] | None = None


def depths(k: int) -> list[int]:
    """The depths that every report shows, and the gate's own."""
    return sorted({10, 100, k})


def score(name: str, asked: Asked, ranking_QK: Ranking, k: int) -> Result:
    """Every metric at every depth for each request, as `recall_at_50` and so on."""
    values = values_at(asked, ranking_QK, depths(k))
    values["labelled_at_10"] = labelled_share(ranking_QK, asked.labels, 10)
    return Result(Scored(name, asked.hash, asked.request_ids, values), ranking_QK)


def values_at(asked: Asked, ranking_QK: Ranking, of_depths: Sequence[int]) -> dict[str, Floats]:
    """Every metric at these depths for each request (Q,).

    `ordered_recall` is recall of what was ordered, NaN where nothing was.
    """
    ordered = Labels.build(asked.ordered, [[1.0] * len(items) for items in asked.ordered], asked.labels.items)
    values: dict[str, Floats] = {}
    for depth in of_depths:
        found = evaluate(ranking_QK, asked.labels, depth)
        values |= {f"{metric}_at_{depth}": per_request for metric, per_request in found.items()}
        values[f"ordered_recall_at_{depth}"] = evaluate(ranking_QK, ordered, depth)["recall"]
    return values


def score_bm25(name: str, asked: Asked, bm25: BM25, k: int) -> Result:
    """The lexical baseline on the requests of one source."""
    ranking_QK, scores = bm25.rank(asked.queries, max(depths(k)))
    scores_QK = np.full((len(asked), EXPORTED), np.nan)
    for row, found in enumerate(scores):
        scores_QK[row, : len(found)] = found[:EXPORTED]
    return replace(score(name, asked, ranking_QK, k), scores_QK=scores_QK)


def score_fusion(name: str, asked: Asked, parts: Sequence[Result], k: int) -> Result:
    """Reciprocal-rank fusion of other systems' answers."""
    return score(name, asked, fuse([part.ranking_QK for part in parts], max(depths(k))), k)


class Embedded:
    """A model with the catalogue in its space.

    Args:
        name: what reports call it.
        retriever: the model.
        workspace: the folder that holds `data/`.
        cache_dir: of image features.
        asof: the instant from which item profiles are taken.
    """

    def __init__(
        self, name: str, retriever: Retriever, workspace: Path, cache_dir: Path, asof: datetime | None
    ) -> None:
        self.name = name
        self._retriever = retriever
        folders = workspace / CLEAN, workspace / PROFILES
        say(f"scoring: embedding the catalogue with {name}")
        catalogue = load_catalogue(retriever, *folders, workspace, cache_dir, asof)
        self._items = _by_id(retriever.encode_catalogue(catalogue))
        self._bank = HistoryBank(self._items.item_ids, self._items.bank)

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """The catalogue in the model's space (N, D), by id."""
        return self._items.vectors

    def encode(self, queries: Sequence[str], histories: Sequence[History | None]) -> npt.NDArray[np.float32]:
        """Requests in the model's space (Q, D)."""
        return self._retriever.encode_queries(queries, histories, self._bank)

    def search(self, queries_QD: npt.NDArray[np.float32], k: int) -> Ranking:
        """Exact search; what is not finite counts as 0."""
        return exact_search(np.nan_to_num(queries_QD), np.nan_to_num(self.vectors), k)

    def score(self, asked: Asked, k: int) -> Result:
        """Answers to the requests of one source; NaN metrics where a vector is not finite."""
        if not len(asked):
            return score(self.name, asked, np.empty((0, max(depths(k))), dtype=np.int32), k)
        queries_QD = self.encode(asked.queries, asked.histories)
        finite_Q = np.isfinite(queries_QD).all(axis=1) & np.isfinite(self.vectors).all()
        result = score(self.name, asked, self.search(queries_QD, max(depths(k))), k)
        values = {name: np.where(finite_Q, value, np.nan) for name, value in result.scored.values.items()}
        scores_QK = self._scores(queries_QD, result.ranking_QK[:, :EXPORTED])
        return Result(replace(result.scored, values=values), result.ranking_QK, scores_QK, queries_QD)

    def _scores(self, queries_QD: npt.NDArray[np.float32], ranking_QK: Ranking) -> Floats:
        """Inner products of the listed items, place by place, so that memory stays that of the queries."""
        columns = [np.einsum("qd,qd->q", queries_QD, self.vectors[items], dtype=np.float64) for items in ranking_QK.T]
        return np.where(ranking_QK == EMPTY, np.nan, np.stack(columns, axis=1))


def _by_id(encoded: EncodedCatalogue) -> EncodedCatalogue:
    """The same catalogue in ascending order of ids, which is what ties are broken by."""
    order = sorted(range(len(encoded.item_ids)), key=encoded.item_ids.__getitem__)
    return replace(
        encoded,
        item_ids=[encoded.item_ids[at] for at in order],
        vectors=encoded.vectors[order],
        bank=encoded.bank[order],
        preferences=encoded.preferences[order],
    )

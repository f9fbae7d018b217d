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

from mrse.evaluation.gate import Scored
from mrse.evaluation.lexical import BM25
from mrse.evaluation.metrics import evaluate, labelled_share
from mrse.evaluation.ranking import Ranking, exact_search, fuse
from mrse.evaluation.window import Asked
from mrse.layout import CLEAN, PROFILES
from mrse.model.arrays import EncodedCatalogue, HistoryBank
from mrse.model.retriever import Retriever, load_catalogue
from mrse.progress import say

JUDGED = ("rele_at_10", "precision_at_10", "recall_at_10", "recall_at_100")


@dataclass(frozen=True)
class Result:
    """One system's answers to the requests of one source."""

    scored: Scored
    ranking_QK: Ranking


def depths(k: int) -> list[int]:
    """The depths that every report shows, and the gate's own."""
    return sorted({10, 100, k})


def score(name: str, asked: Asked, ranking_QK: Ranking, k: int) -> Result:
    """Every metric at every depth for each request, as `recall_at_50` and so on."""
    values = {
        f"{metric}_at_{depth}": per_request
        for depth in depths(k)
        for metric, per_request in evaluate(ranking_QK, asked.labels, depth).items()
    }
    values["labelled_at_10"] = labelled_share(ranking_QK, asked.labels, 10)
    return Result(Scored(name, asked.hash, asked.request_ids, values), ranking_QK)


def score_bm25(name: str, asked: Asked, bm25: BM25, k: int) -> Result:
    """The lexical baseline on the requests of one source."""
    ranking_QK, _ = bm25.rank(asked.queries, max(depths(k)))
    return score(name, asked, ranking_QK, k)


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

    def score(self, asked: Asked, k: int) -> Result:
        """Answers to the requests of one source; NaN metrics where a vector is not finite."""
        if not len(asked):
            return score(self.name, asked, np.empty((0, max(depths(k))), dtype=np.int32), k)
        queries_QD = self._retriever.encode_queries(asked.queries, asked.histories, self._bank)
        items_ND = self._items.vectors
        finite_Q = np.isfinite(queries_QD).all(axis=1) & np.isfinite(items_ND).all()
        ranking_QK = exact_search(np.nan_to_num(queries_QD), np.nan_to_num(items_ND), max(depths(k)))
        result = score(self.name, asked, ranking_QK, k)
        values = {name: np.where(finite_Q, value, np.nan) for name, value in result.scored.values.items()}
        return replace(result, scored=replace(result.scored, values=values))


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

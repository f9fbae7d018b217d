"""Hard negatives where the log has none: items that the model ranks high for a query and that nobody chose for it.

The model mines for itself (ANCE, Xiong et al. 2021). The ranks before `mine.first` are left alone: what the model puts
first is too often right and only not chosen yet (RocketQA, Qu et al. 2021).

Shapes: M examples, B rows of a batch, X mined (query, profile cut) pairs, W ranks mined, G hard negatives of the log,
K hard negatives wanted, N items, D size of the vectors, E experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrse.config import LossConfig
from mrse.model.encode import ItemQueries, fuse_catalogue, inference
from mrse.model.history import Memory
from mrse.model.towers import Mrse
from mrse.training.data import Examples, Ints
from mrse.training.sampling import MINED, pick_hard
from mrse.training.search import nearest

_QUERIES, _ITEMS = 64, 2048


@dataclass(frozen=True)
class Mined:
    """What one refresh of the banks found.

    Attributes:
        pair_X: numbers of the (query, profile cut) pairs, ascending.
        item_XW: items at the ranks `mine.first` to `mine.last`, best first; -1 where one, or its twin, is chosen.
    """

    pair_X: Ints
    item_XW: Ints

    def of(self, pair_B: Ints) -> Ints:
        """The items of some pairs, `(B, W)`; -1 for a pair that was not mined."""
        if len(self.pair_X) == 0:
            return np.full((len(pair_B), self.item_XW.shape[1]), -1, dtype=np.int64)
        place_B = np.minimum(np.searchsorted(self.pair_X, pair_B), len(self.pair_X) - 1)
        found_B = self.pair_X[place_B] == pair_B
        return np.where(found_B[:, None], self.item_XW[place_B], -1)


class Miner:
    """Mines for the examples that lack some; a pair sees the item profiles of its own cut, so none shows the future."""

    def __init__(self, loss: LossConfig, examples: Examples, twin_N: Ints) -> None:
        """Args: twin_N: equal numbers are items that nothing tells apart."""
        self._ranks = loss.mine
        self._wanted = loss.hard_negatives
        self._twin_N = twin_N
        both_M2 = np.stack([examples.query_M, examples.epoch_M], axis=1)
        pairs, self._pair_M = np.unique(both_M2, axis=0, return_inverse=True)
        self._query_X, self._epoch_X = pairs[:, 0], pairs[:, 1]
        self._lacking_M = (examples.hard_MK >= 0).sum(axis=1) < self._wanted
        # By anybody: the log does not say that a shopper passed over an item which only the model ranks high.
        order = np.argsort(examples.query_M, kind="stable")
        self._chosen = twin_N[examples.item_M[order]]
        self._starts = np.searchsorted(examples.query_M[order], np.arange(int(examples.query_M.max(initial=-1)) + 2))

    def lacking(self, rows: Ints) -> Ints:
        """The distinct pairs of those example rows that have too few hard negatives of the log."""
        return np.unique(self._pair_M[rows[self._lacking_M[rows]]])

    def mine(
        self,
        model: Mrse,
        items_NEH: Tensor,
        queries_QEH: Tensor,
        profiles: Callable[[int], ItemQueries],
        pair_X: Ints,
    ) -> Mined:
        """Rank the catalogue for some pairs, as asked by nobody known. Costs per cut the fusion of all items (about
        100,000 items/s), per pair N x D multiplications in float64.

        Args:
            model: as it is.
            items_NEH, queries_QEH: its banks.
            profiles: item profiles by cut.
            pair_X: from `lacking`.
        """
        item_XW = np.full((len(pair_X), self._ranks.last - self._ranks.first + 1), -1, dtype=np.int64)
        for epoch in np.unique(self._epoch_X[pair_X]):
            item_ND, _ = fuse_catalogue(model, items_NEH, profiles(int(epoch)), queries_QEH, _ITEMS)
            places = np.flatnonzero(self._epoch_X[pair_X] == epoch)
            for start in range(0, len(places), _QUERIES):
                rows = places[start : start + _QUERIES]
                query_B = self._query_X[pair_X[rows]]
                ranked_BW = self._ranked(
                    model, queries_QEH[torch.from_numpy(query_B).to(model.device)].float(), item_ND
                )
                item_XW[rows, : ranked_BW.shape[1]] = self._without_chosen(query_B, ranked_BW)
        return Mined(pair_X, item_XW)

    def fill(self, hard_BK: Ints, log_BG: Ints, rows_B: Ints, mined: Mined, seed: int, step: int) -> Ints:
        """Mined items at random in the free places of each row.

        Args:
            hard_BK: hard negatives of the log in use, -1 where a row has fewer.
            log_BG: all that the log has; none of them is drawn twice.
            rows_B: example rows.
            mined: from the last refresh.
            seed, step: what the choice follows from.

        Returns:
            `(B, K)` with K = `hard_negatives` or as many as there are, those of the log first, -1 in places left free.
        """
        mined_BW = mined.of(self._pair_M[rows_B])
        new_BW = np.where((mined_BW[:, :, None] == log_BG[:, None, :]).any(axis=2), -1, mined_BW)
        both = np.concatenate([hard_BK, pick_hard(new_BW, self._wanted, seed, step, MINED)], axis=1)
        order = np.argsort(both < 0, axis=1, kind="stable")[:, : self._wanted]
        return np.take_along_axis(both, order, axis=1)

    def _ranked(self, model: Mrse, own_BEH: Tensor, item_ND: Tensor) -> Ints:
        nobody = torch.zeros(len(own_BEH), 1, dtype=torch.long, device=own_BEH.device)
        memory = Memory(torch.zeros_like(own_BEH)[:, None], nobody > 0, nobody, nobody)
        with inference(model):
            query_BD = model.fuse_queries(own_BEH, memory).vector_BD
        ranked: Ints = nearest(query_BD, item_ND, self._ranks.last).cpu().numpy()[:, self._ranks.first - 1 :]
        return ranked

    def _without_chosen(self, query_B: Ints, item_BW: Ints) -> Ints:
        kept_BW = item_BW.copy()
        for row, query in enumerate(query_B):
            chosen = self._chosen[self._starts[query] : self._starts[query + 1]]
            kept_BW[row, np.isin(self._twin_N[item_BW[row]], chosen)] = -1
        return kept_BW

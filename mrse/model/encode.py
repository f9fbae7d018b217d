"""Whole catalogues through the model, without gradients: banks of expert outputs, then final vectors.

All is computed, and stays, on the device that the model is on.

A bank is what every other item, query or shopper needs of an item: its expert outputs. Cost on two cores: about 3,000
items/s into a bank, about 100,000 items/s from a bank to final vectors.

Shapes: N items, Q distinct queries, B rows of a batch, K remembered queries of an item, E experts, H hidden, D dim,
T image tokens, V image feature size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mrse.model.arrays import batches_of_like_size
from mrse.model.history import Memory
from mrse.model.inputs import Texts, TextTable
from mrse.model.towers import Mrse

_EVERY = slice(None)
_STEADY_ROWS, _STEADY_WORDS = 64, 64


@dataclass(frozen=True)
class Pictures:
    """Image features of items.

    Attributes:
        row_N: row of each item's picture in `array_PTV`; -1: no picture.
        array_PTV: float16 features of distinct pictures, often memory-mapped.
    """

    row_N: NDArray[np.int64]
    array_PTV: NDArray[np.float16]

    def batch(self, rows_B: NDArray[np.int64]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Features `(B, T, V)` and which rows have a picture; (None, None) when none has."""
        picture_B = self.row_N[rows_B]
        pictured_B = picture_B >= 0
        if not pictured_B.any():
            return None, None
        features_BTV = self.array_PTV[np.where(pictured_B, picture_B, picture_B[pictured_B][0])].astype(np.float32)
        return torch.from_numpy(features_BTV), torch.from_numpy(pictured_B)

    def sample(self, count: int) -> Tensor:
        """Evenly spaced pictures, at most `count`, `(P, T, V)`."""
        rows = np.linspace(0, len(self.array_PTV) - 1, min(count, len(self.array_PTV))).astype(np.int64)
        return torch.from_numpy(self.array_PTV[rows])


@dataclass(frozen=True)
class ItemQueries:
    """The queries that led to each item.

    Attributes:
        query_NK: rows of the query bank; -1 is padding.
        weight_NK: their weights.
    """

    query_NK: NDArray[np.int64]
    weight_NK: NDArray[np.float32]

    @classmethod
    def none(cls, items: int) -> ItemQueries:
        """No item has a history."""
        return cls(np.full((items, 1), -1, dtype=np.int64), np.zeros((items, 1), dtype=np.float32))

    def memory(self, rows_B: NDArray[np.int64], bank_QEH: Tensor) -> Memory:
        """What the items at `rows_B` remember."""
        query_BK = torch.from_numpy(self.query_NK[rows_B]).to(bank_QEH.device)
        if len(bank_QEH) == 0:  # no item has a history: every place is padding
            bank_QEH = bank_QEH.new_zeros(1, *bank_QEH.shape[1:])
        return Memory(
            memory_BMEH=looked_up(bank_QEH, query_BK),
            known_BM=query_BK >= 0,
            weight_BM=torch.from_numpy(self.weight_NK[rows_B]).to(bank_QEH.device),
        )


def looked_up(bank_NEH: Tensor, row_BM: Tensor) -> Tensor:
    """A bank's rows in float32, `(B, M, E, H)`; any row where the number is negative (padding)."""
    # Indexing by a matrix takes four times as long.
    rows_XEH = bank_NEH.index_select(0, row_BM.clamp(min=0).flatten())
    return rows_XEH.float().view(*row_BM.shape, *bank_NEH.shape[1:])


@contextmanager
def inference(model: Mrse) -> Iterator[None]:
    """No gradients and no dropout inside; the mode is put back after."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


def item_bank(model: Mrse, texts: TextTable, pictures: Pictures, batch_size: int, rows: slice = _EVERY) -> Tensor:
    """Expert outputs of every item, or of some rows of them, float16 `(N, E, H)`."""

    def encode(rows_B: NDArray[np.int64]) -> Tensor:
        return model.encode_items(texts.batch(rows_B), *pictures.batch(rows_B))

    # Pictured items apart: they have more tokens.
    return _bank(model, texts.sizes_N + texts.length * (pictures.row_N >= 0), encode, batch_size, rows)


def query_bank(model: Mrse, texts: TextTable, batch_size: int, rows: slice = _EVERY) -> Tensor:
    """Expert outputs of every distinct query, or of some rows of them, float16 `(Q, E, H)`."""
    return _bank(model, texts.sizes_N, lambda rows_B: model.encode_texts(texts.batch(rows_B)), batch_size, rows)


def steady_bank(model: Mrse, texts: TextTable, pictures: Pictures | None) -> Tensor:
    """Expert outputs of items, or with `pictures` None of queries, float16 `(N, E, H)`, each whatever else is there.

    The bits of a product hang on its shape. So a batch is of texts of one length, all with a picture or none, its rows
    are always as many (too few are repeated), and its words are padded. Takes half as long again as `item_bank`.
    """
    kind_N = texts.sizes_N if pictures is None else 2 * texts.sizes_N + (pictures.row_N >= 0)
    shape = len(kind_N), len(model.experts.names), model.config.hidden
    bank = torch.zeros(shape, dtype=torch.float16, device=model.device)
    with inference(model):
        for kind in np.unique(kind_N):
            same_N = np.flatnonzero(kind_N == kind)
            for start in range(0, len(same_N), _STEADY_ROWS):
                rows_B = same_N[start : start + _STEADY_ROWS]
                full_B = np.resize(rows_B, _STEADY_ROWS)
                batch = _steady(texts.batch(full_B), texts.length)
                out_BEH = (
                    model.encode_texts(batch)
                    if pictures is None
                    else model.encode_items(batch, *pictures.batch(full_B))
                )
                bank[torch.from_numpy(rows_B).to(model.device)] = out_BEH[: len(rows_B)].to(torch.float16)
    return bank


def _steady(texts: Texts, length: int) -> Texts:
    """As many places for words as a text may have, and distinct words rounded up, so that products keep their bits."""
    return replace(
        texts,
        words_BW=F.pad(texts.words_BW, (0, length - texts.words_BW.shape[1])),
        grams_UG=F.pad(texts.grams_UG, (0, 0, 0, -len(texts.grams_UG) % _STEADY_WORDS)),
    )


def fuse_catalogue(
    model: Mrse, bank_NEH: Tensor, queries: ItemQueries, bank_QEH: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Final vectors `(N, D)` and preferences `(N, E)` of every item."""
    N = len(bank_NEH)
    vector_ND = torch.zeros(N, model.config.dim, device=model.device)
    preference_NE = torch.zeros(N, len(model.experts.names), device=model.device)
    with inference(model):
        for start in range(0, N, batch_size):
            rows = slice(start, min(start + batch_size, N))
            memory = queries.memory(np.arange(rows.start, rows.stop), bank_QEH)
            fused = model.fuse_items(bank_NEH[rows].float(), memory)
            vector_ND[rows], preference_NE[rows] = fused.vector_BD, fused.preference_BE
    return vector_ND, preference_NE


def _bank(
    model: Mrse,
    sizes_N: NDArray[np.int64],
    encode: Callable[[NDArray[np.int64]], Tensor],
    batch_size: int,
    rows: slice,
) -> Tensor:
    numbers = np.arange(len(sizes_N))[rows]
    shape = len(numbers), len(model.experts.names), model.config.hidden
    bank = torch.zeros(shape, dtype=torch.float16, device=model.device)
    with inference(model):
        for places_B in batches_of_like_size(sizes_N[rows], batch_size):
            bank[torch.from_numpy(places_B).to(model.device)] = encode(numbers[places_B]).to(torch.float16)
    return bank

"""What the encoders read, as NumPy arrays: texts as token and n-gram ids, histories as bank rows.

No torch in here: an exported encoder (`mrse.model.exported`) serves without it.

Shapes: N texts or items, B rows of a batch, L word pieces, W words, U distinct words, G n-grams of a word, M items of a
history, Q distinct queries, K queries of an item, E experts, H hidden, D size of the final vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mrse.errors import DataError
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer, normalise, split_words

GRAMS = 16
ACTIONS = ("click", "add_to_cart", "order")
AGE_BUCKETS = 14
_COUNTED = 65_536  # texts whose words are counted at once


@dataclass(frozen=True)
class TextArrays:
    """A batch of texts, int64 ids.

    Attributes:
        tokens_BL: word-piece ids; `[CLS]` first, so no row is empty.
        inside_BL: which places hold a piece (the rest is padding).
        words_BW: rows of `grams_UG`; 0 is padding, and a text may have no word at all.
        grams_UG: n-gram ids of the batch's distinct words; row 0 and id 0 are padding.
    """

    tokens_BL: NDArray[np.int64]
    inside_BL: NDArray[np.bool_]
    words_BW: NDArray[np.int64]
    grams_UG: NDArray[np.int64]


class TokenisedTexts:
    """Texts of a shop, tokenised up front (about 50,000 titles/s); batches are array gathers."""

    def __init__(
        self, tokens_NL: NDArray[np.int32], pad_id: int, words_NW: NDArray[np.int32], grams_UG: NDArray[np.int32]
    ) -> None:
        self._tokens_NL = tokens_NL
        self._inside_NL = tokens_NL != pad_id
        self._inside_NL[:, 0] = True
        self._words_NW = words_NW
        self._grams_UG = grams_UG
        self.sizes_N: NDArray[np.int64] = self._inside_NL.sum(axis=1)
        self.length = tokens_NL.shape[1]

    @classmethod
    def build(cls, texts: Sequence[str], tokenizer: Tokenizer, hasher: SubwordHasher, length: int) -> Self:
        """Tokenise texts.

        Args:
            texts: N texts as people wrote them.
            tokenizer: for the word pieces.
            hasher: for the n-grams of the words.
            length: most word pieces and most words kept of a text.
        """
        index: dict[str, int] = {}
        words_NW = np.zeros((len(texts), length), dtype=np.int32)
        longest = 1
        for row, text in enumerate(texts):
            ids = [index.setdefault(word, len(index) + 1) for word in split_words(text)[:length]]
            words_NW[row, : len(ids)] = ids
            longest = max(longest, len(ids))
        grams_UG = np.zeros((len(index) + 1, GRAMS), dtype=np.int32)
        if index:
            grams_UG[1:] = hasher.encode_words(list(index), GRAMS)
        return cls(tokenizer.encode(texts, length), tokenizer.pad_id, words_NW[:, :longest], grams_UG)

    def __len__(self) -> int:
        return len(self._tokens_NL)

    def word_counts(self, buckets: int) -> NDArray[np.int64]:
        """In how many texts each whole word occurs, by its n-gram id, `(buckets + 1,)`."""
        count_R = np.zeros(buckets + 1, dtype=np.int64)
        for start in range(0, len(self), _COUNTED):
            whole_NW = self._grams_UG[self._words_NW[start : start + _COUNTED], 0].astype(np.int64)
            pairs = np.unique(np.arange(len(whole_NW))[:, None] * (buckets + 1) + whole_NW)
            count_R += np.bincount(pairs % (buckets + 1), minlength=buckets + 1)
        return count_R

    def arrays(self, rows_B: NDArray[np.int64]) -> TextArrays:
        """The texts at `rows_B`, cut to the longest of them."""
        inside_BL = self._inside_NL[rows_B]
        pieces = int(self.sizes_N[rows_B].max(initial=1))
        words_BW = self._words_NW[rows_B]
        used = max(1, int((words_BW > 0).sum(axis=1).max(initial=1)))
        distinct, places = np.unique(words_BW[:, :used], return_inverse=True)
        if len(distinct) and distinct[0] == 0:
            distinct = distinct[1:]
        else:
            places = places + 1
        grams_UG = np.concatenate([self._grams_UG[:1], self._grams_UG[distinct]])
        return TextArrays(
            tokens_BL=self._tokens_NL[rows_B, :pieces].astype(np.int64),
            inside_BL=np.ascontiguousarray(inside_BL[:, :pieces]),
            words_BW=places.reshape(len(rows_B), used).astype(np.int64),
            grams_UG=grams_UG.astype(np.int64),
        )

    def whole(self) -> TextArrays:
        """All texts as one batch."""
        pieces = int(self.sizes_N.max(initial=1))
        return TextArrays(
            tokens_BL=self._tokens_NL[:, :pieces].astype(np.int64),
            inside_BL=np.ascontiguousarray(self._inside_NL[:, :pieces]),
            words_BW=self._words_NW.astype(np.int64),
            grams_UG=self._grams_UG.astype(np.int64),
        )

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], TextArrays]]:
        """All texts, a batch with its rows at a time; few texts are one batch, which costs no gather."""
        if 0 < len(self) <= batch_size // 2:
            yield np.arange(len(self)), self.whole()
            return
        for rows_B in batches_of_like_size(self.sizes_N, batch_size):
            yield rows_B, self.arrays(rows_B)


@dataclass(frozen=True)
class Catalogue:
    """Items ready to be embedded; row i of everything is item i.

    Attributes:
        image_row: row of `image_features`, -1 without a picture.
        image_features: float16 `(pictures, tokens, features)`.
        queries, query_weights: what led to the item, heaviest first; may be empty.
    """

    item_ids: list[str]
    titles: list[str]
    categories: list[str]
    image_row: NDArray[np.int64]
    image_features: NDArray[np.float16]
    queries: list[list[str]]
    query_weights: list[list[float]]


@dataclass(frozen=True)
class EncodedCatalogue:
    """Items as vectors.

    Attributes:
        vectors: float32 `(N, D)`, L2-normalised.
        bank: float16 `(N, E, H)`: what the query side needs of an item for histories.
        preferences: float32 `(N, E)`: how much each expert counts for the item; rows sum to 1.
    """

    item_ids: list[str]
    vectors: NDArray[np.float32]
    bank: NDArray[np.float16]
    preferences: NDArray[np.float32]


@dataclass(frozen=True)
class History:
    """What a shopper engaged with, newest first; three lists of one length.

    Cut as `build_profiles` cuts it: the newest of any action, then older carts and orders.
    """

    item_ids: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    ages_hours: list[float] = field(default_factory=list)


class HistoryBank:
    """Item representations for shopper histories, by item id."""

    def __init__(self, item_ids: Sequence[str], array: NDArray[np.float16]) -> None:
        """Args: item_ids: N distinct ids; array: float16 `(N, E, H)` (`EncodedCatalogue.bank`)."""
        if len(item_ids) != len(array):
            raise ValueError(f"{len(item_ids)} ids for {len(array)} rows")
        self.item_ids = list(item_ids)
        self.array = array
        self._row = {item: row for row, item in enumerate(self.item_ids)}

    def row(self, item_id: str) -> int | None:
        """The item's row; None for an unknown item."""
        return self._row.get(item_id)

    def save(self, folder: Path) -> None:
        """Write `history_bank.safetensors` and `history_ids.parquet`."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "history_bank.safetensors.partial"
        save_file({"bank": np.ascontiguousarray(self.array)}, partial)
        partial.replace(folder / "history_bank.safetensors")
        partial = folder / "history_ids.parquet.partial"
        pq.write_table(pa.table({"item_id": pa.array(self.item_ids, pa.string())}), partial, compression="zstd")
        partial.replace(folder / "history_ids.parquet")

    @classmethod
    def load(cls, folder: Path) -> HistoryBank:
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing or broken.
        """
        try:
            bank = load_file(folder / "history_bank.safetensors")["bank"]
        except (OSError, KeyError, SafetensorError) as error:
            raise DataError(f"{folder / 'history_bank.safetensors'}: cannot be read: {error}") from None
        try:
            ids = pq.read_table(folder / "history_ids.parquet").column("item_id").to_pylist()
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise DataError(f"{folder / 'history_ids.parquet'}: cannot be read: {error}") from None
        return cls(ids, bank)


@dataclass(frozen=True)
class ShopperArrays:
    """Shoppers' histories, padded to the longest (at least one place).

    Attributes:
        memory_BMEH: float16 bank rows; any row where `known_BM` is False.
        known_BM: which places are filled.
        action_BM, age_BM: int64 `action_code` and `age_bucket`.
    """

    memory_BMEH: NDArray[np.float16]
    known_BM: NDArray[np.bool_]
    action_BM: NDArray[np.int64]
    age_BM: NDArray[np.int64]

    @classmethod
    def build(
        cls, histories: Sequence[History | None], bank: HistoryBank | None, length: int, experts: int, hidden: int
    ) -> ShopperArrays:
        """Look histories up; items that the bank lacks are skipped, and without a bank nobody is known.

        Args:
            histories: B of them; None: nobody.
            bank: rows of E = `experts` times H = `hidden`.
            length: most items read of a history, its newest; as many as in training (`model.history_length`).
            experts, hidden: the sizes to use where there is no bank.
        """
        known = [_known(history, bank, length) for history in histories]
        M = max([1, *(len(entries) for entries in known)])
        row_BM = np.full((len(known), M), -1, dtype=np.int64)
        action_BM, age_BM = np.zeros_like(row_BM), np.zeros_like(row_BM)
        for place, entries in enumerate(known):
            for column, (row, action, age) in enumerate(entries):
                row_BM[place, column], action_BM[place, column], age_BM[place, column] = row, action, age
        rows_NEH = np.zeros((1, experts, hidden), dtype=np.float16)
        if bank is not None and len(bank.array):
            rows_NEH = bank.array
        return cls(rows_NEH[np.maximum(row_BM, 0)], row_BM >= 0, action_BM, age_BM)


@dataclass(frozen=True)
class QueryArrays:
    """The queries that led to items.

    Attributes:
        distinct: Q normalised queries.
        query_NK: rows of `distinct`; -1 is padding.
        weight_NK: their weights, float32.
    """

    distinct: list[str]
    query_NK: NDArray[np.int64]
    weight_NK: NDArray[np.float32]

    @classmethod
    def build(cls, queries: Sequence[Sequence[str]], weights: Sequence[Sequence[float]]) -> QueryArrays:
        """From a list of queries and one of weights per item (`Catalogue`)."""
        distinct: dict[str, int] = {}
        K = max([1, *(len(asked) for asked in queries)])
        query_NK = np.full((len(queries), K), -1, dtype=np.int64)
        weight_NK = np.zeros(query_NK.shape, dtype=np.float32)
        for row, (asked, counts) in enumerate(zip(queries, weights, strict=True)):
            for place, (query, weight) in enumerate(zip(asked, counts, strict=True)):
                query_NK[row, place] = distinct.setdefault(normalise(query), len(distinct))
                weight_NK[row, place] = weight
        return cls(list(distinct), query_NK, weight_NK)


def batches_of_like_size(sizes_N: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of one size where that costs few batches more: no time goes into padding.

    A batch ends when it is full, and at a change of size once it is half full. Equal inputs make equal batches.
    """
    order_N = np.argsort(sizes_N, kind="stable")
    change_N = np.flatnonzero(np.diff(sizes_N[order_N])) + 1
    start = 0
    while start < len(order_N):
        stop = min(start + batch_size, len(order_N))
        changes = change_N[(change_N >= start + max(1, batch_size // 2)) & (change_N < stop)]
        stop = int(changes[-1]) if len(changes) else stop
        yield order_N[start:stop]
        start = stop


def action_code(action: str) -> int:
    """The action's embedding row; 0 for an unknown one."""
    return ACTIONS.index(action) + 1 if action in ACTIONS else 0


def age_bucket(hours: float) -> int:
    """The age's embedding row: one per doubling of hours, 0 below one hour, the last from 341 days on.

    Old ages are told apart coarsely: one, two and four weeks, but not two and three.

    >>> [age_bucket(h) for h in (0.0, 1.0, 24.0, 10_000.0)]
    [0, 1, 4, 13]
    """
    return min(AGE_BUCKETS - 1, int(math.log2(1.0 + max(0.0, hours))))


def item_text(title: str, category: str | None) -> str:
    """What the text experts read of an item: its title, then its category path.

    >>> item_text("Red shirt", "Apparel > Shirts")
    'Red shirt Apparel Shirts'
    """
    return f"{title} {category.replace('>', ' ')}".replace("   ", " ") if category else title


def _known(history: History | None, bank: HistoryBank | None, length: int) -> list[tuple[int, int, int]]:
    if history is None or bank is None:
        return []
    found = []
    entries = list(zip(history.item_ids, history.actions, history.ages_hours, strict=True))
    for item, action, age in entries[:length]:
        row = bank.row(item)
        if row is not None:
            found.append((row, action_code(action), age_bucket(age)))
    return found

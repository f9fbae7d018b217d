"""Texts as arrays: tokenised once for a whole shop, then gathered by row into batches.

Shapes: N texts, B texts of a batch, L word pieces, W words, U distinct words, G n-grams of a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer, split_words

GRAMS = 16


@dataclass(frozen=True)
class Texts:
    """A batch of texts, as the experts read it.

    Attributes:
        tokens_BL: word-piece ids; `[CLS]` first, so no row is empty.
        inside_BL: which places hold a piece (the rest is padding).
        words_BW: rows of `grams_UG`; 0 is padding, and a text may have no word at all.
        grams_UG: n-gram ids of the batch's distinct words; row 0 and id 0 are padding.
    """

    tokens_BL: Tensor
    inside_BL: Tensor
    words_BW: Tensor
    grams_UG: Tensor

    def __len__(self) -> int:
        return len(self.tokens_BL)


def concatenated(first: Texts, second: Texts) -> Texts:
    """Two batches as one, padded to the longer."""
    pieces = max(first.tokens_BL.shape[1], second.tokens_BL.shape[1])
    words = max(first.words_BW.shape[1], second.words_BW.shape[1])
    distinct = len(first.grams_UG)
    moved_BW = torch.where(second.words_BW > 0, second.words_BW + distinct - 1, 0)
    return Texts(
        tokens_BL=torch.cat([_widened(part.tokens_BL, pieces) for part in (first, second)]),
        inside_BL=torch.cat([_widened(part.inside_BL, pieces) for part in (first, second)]),
        words_BW=torch.cat([_widened(part, words) for part in (first.words_BW, moved_BW)]),
        grams_UG=torch.cat([first.grams_UG, second.grams_UG[1:]]),
    )


def _widened(x_BL: Tensor, length: int) -> Tensor:
    return F.pad(x_BL, (0, length - x_BL.shape[1]))


class TextTable:
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

    @classmethod
    def build(cls, texts: Sequence[str], tokenizer: Tokenizer, hasher: SubwordHasher, length: int) -> TextTable:
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
            grams_UG[1:] = hasher.hash_words(list(index), GRAMS)
        return cls(tokenizer.encode(texts, length), tokenizer.pad_id, words_NW[:, :longest], grams_UG)

    def __len__(self) -> int:
        return len(self._tokens_NL)

    def word_counts(self, buckets: int) -> NDArray[np.int64]:
        """In how many texts each whole word occurs, by its n-gram id, `(buckets + 1,)`."""
        whole_NW = self._grams_UG[self._words_NW, 0].astype(np.int64)
        pairs = np.unique(np.arange(len(self))[:, None] * (buckets + 1) + whole_NW)
        return np.bincount(pairs % (buckets + 1), minlength=buckets + 1)

    def batch(self, rows_B: NDArray[np.int64]) -> Texts:
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
        return Texts(
            tokens_BL=torch.from_numpy(self._tokens_NL[rows_B, :pieces].astype(np.int64)),
            inside_BL=torch.from_numpy(np.ascontiguousarray(inside_BL[:, :pieces])),
            words_BW=torch.from_numpy(places.reshape(len(rows_B), used).astype(np.int64)),
            grams_UG=torch.from_numpy(grams_UG.astype(np.int64)),
        )


def item_text(title: str, category: str | None) -> str:
    """What the text experts read of an item: its title, then its category path.

    >>> item_text("Red shirt", "Apparel > Shirts")
    'Red shirt Apparel Shirts'
    """
    return f"{title} {category.replace('>', ' ')}".replace("   ", " ") if category else title

"""Texts as tensors: tokenised once for a whole shop, then gathered by row into batches.

Shapes: N texts, B texts of a batch, L word pieces, W words, U distinct words, G n-grams of a word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mrse.model.arrays import TokenisedTexts


@dataclass(frozen=True)
class Texts:
    """A batch of texts, as the experts read it.

    Attributes:
        tokens_BL, inside_BL, words_BW, grams_UG: see `TextArrays`.
    """

    tokens_BL: Tensor
    inside_BL: Tensor
    words_BW: Tensor
    grams_UG: Tensor

    def __len__(self) -> int:
        return len(self.tokens_BL)

    def to(self, device: torch.device) -> Texts:
        """The same on a device."""
        return replace(self, **{name: x.to(device, non_blocking=True) for name, x in vars(self).items()})

    def rows(self, start: int, stop: int) -> Texts:
        """Some rows, cut to the longest of them and to the words that occur there; for all rows the batch as it is."""
        if stop - start == len(self):
            return self
        inside_BL, words_BW = self.inside_BL[start:stop], self.words_BW[start:stop]
        used_X = inside_BL.any(dim=0).nonzero()
        pieces = 1 + int(used_X.max()) if len(used_X) else 1
        # A zero in front: padding keeps row 0, also where every row is full.
        distinct_U, place_P = torch.unique(F.pad(words_BW.flatten(), (1, 0)), return_inverse=True)
        return Texts(
            tokens_BL=self.tokens_BL[start:stop, :pieces],
            inside_BL=inside_BL[:, :pieces],
            words_BW=place_P[1:].view(words_BW.shape),
            grams_UG=self.grams_UG[distinct_U],
        )


def concatenated(first: Texts, second: Texts) -> Texts:
    """Two batches as one, padded to the longer."""
    if not len(first) or not len(second):
        return first if len(first) else second
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


class TextTable(TokenisedTexts):
    """Tokenised texts whose batches are tensors."""

    def batch(self, rows_B: NDArray[np.int64]) -> Texts:
        """The texts at `rows_B`, cut to the longest of them."""
        arrays = self.arrays(rows_B)
        return Texts(
            tokens_BL=torch.from_numpy(arrays.tokens_BL),
            inside_BL=torch.from_numpy(arrays.inside_BL),
            words_BW=torch.from_numpy(arrays.words_BW),
            grams_UG=torch.from_numpy(arrays.grams_UG),
        )

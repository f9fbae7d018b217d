"""Pairs that a shop's own text gives for nothing, and what training hides so that no expert leans on one thing.

Shapes: B texts, L word pieces, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrse.model.inputs import Texts

_TYPO_SHARE = 0.15
_MAX_WORDS = 5
_SHORTEST_TYPO = 4
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def pseudo_query(words: Sequence[str], rng: np.random.Generator) -> str:
    """A query that the item with these words should be found by: a few of its words, sometimes misspelt.

    Half are runs of words, half are words picked from anywhere in their order.
    """
    if not words:
        return ""
    count = int(rng.integers(1, min(_MAX_WORDS, len(words)) + 1))
    if rng.random() < 0.5:
        start = int(rng.integers(0, len(words) - count + 1))
        picked = list(words[start : start + count])
    else:
        picked = [words[place] for place in np.sort(rng.choice(len(words), size=count, replace=False))]
    return " ".join(_typo(word, rng) if rng.random() < _TYPO_SHARE else word for word in picked)


def vague_query(query: str, rng: np.random.Generator) -> str:
    """The query with about half of its words, at least one, in their order: a vaguer wish of the same shopper."""
    words = query.split()
    keep = rng.random(len(words)) < 0.5
    if words and not keep.any():
        keep[rng.integers(len(words))] = True
    return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)


def vague_pairs(
    queries: Sequence[str], known_B: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> dict[int, str]:
    """Vaguer queries of a share of the rows whose shopper is known, by row; none for a query that lost no word."""
    rows = np.flatnonzero(known_B & (rng.random(len(known_B)) < share)).tolist()
    made = {row: vague_query(queries[row], rng) for row in rows}
    return {row: query for row, query in made.items() if query != queries[row]}


def _typo(word: str, rng: np.random.Generator) -> str:
    if len(word) < _SHORTEST_TYPO:
        return word
    place = int(rng.integers(1, len(word) - 1))
    kind = int(rng.integers(0, 4))
    if kind == 0:
        return word[:place] + word[place + 1 :]
    if kind == 1:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    letter = word[place] if kind == 2 else _LETTERS[int(rng.integers(0, len(_LETTERS)))]
    return word[:place] + letter + word[place + (kind == 3) :]


def hide_words(texts: Texts, share: float) -> Texts:
    """Hide a share of the word pieces from the transformers and of the words from FtAtt, by torch's generator; `[CLS]`
    stays, and the words of a text that would lose all of them.
    """
    if share == 0.0:
        return texts
    keep_BL = torch.rand(texts.inside_BL.shape) >= share
    keep_BL[:, 0] = True
    words_BW = torch.where(torch.rand(texts.words_BW.shape) >= share, texts.words_BW, 0)
    words_BW = torch.where((words_BW > 0).any(dim=1, keepdim=True), words_BW, texts.words_BW)
    return replace(texts, inside_BL=texts.inside_BL & keep_BL, words_BW=words_BW)


def drop_modalities(texts: Texts, pictured_B: Tensor, share: float) -> tuple[Texts, Tensor]:
    """Take the picture from a share of the pictured items, and the text from as many others.

    Returns:
        The texts for VBert, where the chosen items' pieces are hidden, and which rows still show a picture.
    """
    if share == 0.0:
        return texts, pictured_B
    draw_B = torch.rand(len(pictured_B))
    blind_B = pictured_B & (draw_B < share)
    mute_B = pictured_B & (draw_B >= share) & (draw_B < 2 * share)
    inside_BL = texts.inside_BL & ~mute_B[:, None]
    inside_BL[:, 0] = True
    return replace(texts, inside_BL=inside_BL), pictured_B & ~blind_B

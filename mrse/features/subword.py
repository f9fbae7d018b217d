"""FastText-style subword ids: each word as hashed character n-grams, so that a typo keeps most of a word's parts.

After Bojanowski et al. 2017 (FastText), which the FtAtt expert of arXiv 2408.14968 pools by attention.
Shapes: N texts, W words, G grams; U new words, C characters of the longest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrse.errors import ConfigError, DataError
from mrse.features.text import split_words
from mrse.jsonfile import write_json

_FNV_OFFSET = np.uint32(2166136261)
_FNV_PRIME = np.uint32(16777619)
# `normalise` drops control characters, so that no n-gram starts with this and a whole word has a hash of its own.
_WHOLE_WORD = np.uint32(1)
_MAX_WORD_CHARS = 64
_MAX_CACHED_WORDS = 500_000


class SubwordHasher:
    """Words to bucket ids of their character n-grams; the same in every process and on every machine.

    A word `shirt` is written `<shirt>`; slot 0 of its row is the whole word, then come its n-grams, short ones first,
    each hashed by FNV-1a over code points into `1..buckets`. Where a word has more n-grams than slots the longest ones
    go, so that short n-grams, which survive a typo, cover the whole word. Words are hashed once and then looked up.
    """

    def __init__(self, buckets: int, min_n: int = 3, max_n: int = 5) -> None:
        """Set the sizes.

        Args:
            buckets: number of ids; an embedding table needs `buckets + 1` rows, row 0 for padding.
            min_n: characters in the shortest n-gram, `<` and `>` included.
            max_n: characters in the longest.
        """
        if buckets < 1 or not 1 <= min_n <= max_n:
            raise ConfigError(
                f"build_features: subword_buckets = {buckets}, subword_min_n = {min_n}, subword_max_n = {max_n}: "
                "needs buckets >= 1 and 1 <= min_n <= max_n"
            )
        self.buckets, self.min_n, self.max_n = buckets, min_n, max_n
        self._caches: dict[int, _WordCache] = {}
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str], words: int, grams: int = 16) -> NDArray[np.int32]:
        """Bucket ids of the first words of each text. About 1 million words/s once the words are known.

        Args:
            texts: N texts, as people wrote them.
            words: W, words kept of each.
            grams: G, ids kept of each word, the whole word included.

        Returns:
            `(N, W, G)`; 0 is padding.
        """
        split = [split_words(text)[:words] for text in texts]
        with self._lock:
            cache = self._known(split, grams)
            index_NW = np.zeros((len(texts), words), dtype=np.int64)
            for row, parts in zip(index_NW, split, strict=True):
                row[: len(parts)] = [cache.index[word] for word in parts]
            return cache.table[index_NW]

    def encode_words(self, words: Sequence[str], grams: int) -> NDArray[np.int32]:
        """`hash_words` through the cache, `(U, G)`."""
        with self._lock:
            cache = self._known([words], grams)
            return cache.table[[cache.index[word] for word in words]]

    def _known(self, split: Sequence[Sequence[str]], grams: int) -> _WordCache:
        """The cache, with all of these words in it; the lock is held."""
        cache = self._caches.get(grams)
        if cache is None:
            cache = self._caches[grams] = _WordCache(grams)
        new = list(dict.fromkeys(word for parts in split for word in parts if word not in cache.index))
        if len(new) + len(cache.index) > _MAX_CACHED_WORDS:
            cache.clear()
            new = list(dict.fromkeys(word for parts in split for word in parts))
        if new:
            cache.add(new, self.hash_words(new, cache.grams))
        return cache

    def hash_words(self, words: Sequence[str], grams: int) -> NDArray[np.int32]:
        """Bucket ids of single words, without the cache.

        Args:
            words: U normalised words without control characters.
            grams: G, ids kept of each.

        Returns:
            `(U, G)`; slot 0 is the whole word, 0 is padding.
        """
        framed = [f"<{word[:_MAX_WORD_CHARS]}>" for word in words]
        sizes_U = np.fromiter((len(word) for word in framed), dtype=np.int64, count=len(framed))
        width = int(sizes_U.max(initial=1))
        chars_UC = np.array(framed, dtype=f"U{width}").view(np.uint32).reshape(len(framed), width)
        hashes = [_hash_whole(chars_UC, sizes_U)[:, None]]
        valid = [np.ones((len(framed), 1), dtype=bool)]
        for n in range(self.min_n, min(self.max_n, width) + 1):
            starts = width - n + 1
            hash_US = np.full((len(framed), starts), _FNV_OFFSET, dtype=np.uint32)
            for place in range(n):
                hash_US = (hash_US ^ chars_UC[:, place : place + starts]) * _FNV_PRIME
            hashes.append(hash_US)
            valid.append(np.arange(starts) + n <= sizes_U[:, None])
        valid_UA = np.concatenate(valid, axis=1)
        ids_UA = np.where(valid_UA, np.concatenate(hashes, axis=1) % np.uint32(self.buckets) + np.uint32(1), 0)
        order_UG = np.argsort(~valid_UA, axis=1, kind="stable")[:, :grams]
        ids_UG = np.zeros((len(framed), grams), dtype=np.int32)
        ids_UG[:, : order_UG.shape[1]] = np.take_along_axis(ids_UA, order_UG, axis=1)
        return ids_UG

    def save(self, path: Path | str) -> None:
        """Write `subword.json`."""
        write_json(Path(path), {"buckets": self.buckets, "min_n": self.min_n, "max_n": self.max_n})

    @classmethod
    def load(cls, path: Path | str) -> SubwordHasher:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or lacks a size.
        """
        try:
            sizes = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(int(sizes["buckets"]), int(sizes["min_n"]), int(sizes["max_n"]))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; build_features writes it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a subword.json: {error!r}") from None


class _WordCache:
    """Rows of known words for one number of grams; row 0 is padding."""

    def __init__(self, grams: int) -> None:
        self.grams = grams
        self.clear()

    def clear(self) -> None:
        self.index: dict[str, int] = {}
        self.table = np.zeros((1, self.grams), dtype=np.int32)
        self._room = np.zeros((1024, self.grams), dtype=np.int32)

    def add(self, words: list[str], rows_UG: NDArray[np.int32]) -> None:
        used = len(self.index) + 1
        need = used + len(words)
        if need > len(self._room):
            grown = np.zeros((max(need, 2 * len(self._room)), self.grams), dtype=np.int32)
            grown[:used] = self._room[:used]
            self._room = grown
        self._room[used:need] = rows_UG
        self.index.update(zip(words, range(used, need), strict=True))
        self.table = self._room[:need]


def _hash_whole(chars_UC: NDArray[np.uint32], sizes_U: NDArray[np.int64]) -> NDArray[np.uint32]:
    hash_U = (np.full(len(chars_UC), _FNV_OFFSET, dtype=np.uint32) ^ _WHOLE_WORD) * _FNV_PRIME
    for place in range(chars_UC.shape[1]):
        hash_U = np.where(place < sizes_U, (hash_U ^ chars_UC[:, place]) * _FNV_PRIME, hash_U)
    return hash_U

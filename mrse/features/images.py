"""Pictures of items to frozen features, each picture encoded once in its life.

A model's package carries the encoder that it was trained on, and every stage that embeds items (train, gate,
build_index) asks here for the features of that very encoder.

Cost, compact default encoder at 64 x 64 on 2 CPU cores: about 1,500 new pictures/s; known ones are read and hashed.
Shapes: N items, P distinct pictures, T tokens, V width of a token, H and W pixels.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mrse.data.images import MAX_PIXELS, ImageProblem, ImageStore, decode
from mrse.features.encoder import ImageEncoder
from mrse.features.image_cache import FeatureCache
from mrse.progress import track

__all__ = ["MAX_PIXELS", "THREADS", "ImageEncoder", "ImageFeatures", "image_features"]

_BATCH = 256
_SHARD = 2048
THREADS = min(8, os.cpu_count() or 1)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFeatures:
    """Features of items' pictures.

    Attributes:
        row: `(N,)` int64, the item's row in `array`; -1 when it has no usable picture.
        array: `(P, T, V)` float16, mapped from disk, one row per distinct picture in order of first use.
        content_hash: N sha256 hex digests of the pictures' bytes; None where `row` is -1.
        problems: how many items have a picture that cannot be used, by reason.
        encoded: pictures that had to be encoded; the others were known.
    """

    row: NDArray[np.int64]
    array: NDArray[np.float16]
    content_hash: list[str | None]
    problems: dict[str, int]
    encoded: int


def image_features(
    encoder: ImageEncoder,
    refs: Sequence[str | None],
    store: ImageStore,
    cache_dir: Path,
    max_pixels: int = MAX_PIXELS,
    *,
    out: Path | None = None,
) -> ImageFeatures:
    """Features of items' pictures through one frozen encoder, from the cache where they are known.

    Args:
        encoder: the frozen encoder.
        refs: N names in `store`; None for an item without a picture.
        store: where the pictures are.
        cache_dir: where features stay between runs (`services.cache_dir`); safe to share and safe to delete.
        max_pixels: larger pictures count as `too_large`.
        out: where to write `array` as `.npy`; by default a file that vanishes with the result.

    Returns:
        Rows, array and counts. A picture that cannot be read is row -1 and a count, never an error.
    """
    cache = FeatureCache(cache_dir / "image_features", encoder.fingerprint, encoder.tokens, encoder.dim)
    places = [place for place, ref in enumerate(refs) if ref is not None]
    named = [ref for ref in refs if ref is not None]
    job = _Job(encoder, cache, max_pixels)
    job.run(store, named)

    rows: dict[bytes, int] = {}
    row = np.full(len(refs), -1, dtype=np.int64)
    content_hash: list[str | None] = [None] * len(refs)
    for place, content in zip(places, job.contents, strict=True):
        if content is not None and content not in job.broken:
            row[place] = rows.setdefault(content, len(rows))
            content_hash[place] = content.hex()
    problems = job.unread + Counter(job.broken[content] for content in job.contents if content in job.broken)
    array_PTV = _gather(cache, list(rows), out, cache_dir)
    return ImageFeatures(row, array_PTV, content_hash, dict(sorted(problems.items())), job.encoded)


class _Job:
    """One pass over pictures: read, hash, and encode those that the cache does not know."""

    def __init__(self, encoder: ImageEncoder, cache: FeatureCache, max_pixels: int) -> None:
        self._encoder = encoder
        self._cache = cache
        self._max_pixels = max_pixels
        self._seen: set[bytes] = set()
        self._waiting: list[tuple[list[bytes], NDArray[np.float16]]] = []
        self.contents: list[bytes | None] = []
        self.unread: Counter[str] = Counter()
        self.broken: dict[bytes, str] = {}
        self.encoded = 0

    def run(self, store: ImageStore, refs: Sequence[str]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            decoding: list[tuple[bytes, Future[Pixels]]] = []
            ready: list[tuple[bytes, Future[Pixels]]] = []
            for content, data in self._new_pictures(store, refs):
                decoding.append((content, pool.submit(self._pixels, data)))
                if len(decoding) == _BATCH:  # the threads decode this batch while the one before is encoded
                    self._encode(ready)
                    ready, decoding = decoding, []
            self._encode(ready)
            self._encode(decoding)
        self._flush()

    def _new_pictures(self, store: ImageStore, refs: Sequence[str]) -> Iterator[tuple[bytes, bytes]]:
        for _, data in track(store.read_many(refs), "image features", total=len(refs), unit="picture"):
            if isinstance(data, ImageProblem):
                self.unread[data.reason] += 1
                self.contents.append(None)
                continue
            content = hashlib.sha256(data).digest()
            self.contents.append(content)
            if content not in self._seen and content not in self._cache:
                self._seen.add(content)
                yield content, data

    def _pixels(self, data: bytes) -> Pixels:
        return self._encoder.pixels(decode(data, self._max_pixels))

    def _encode(self, batch: list[tuple[bytes, Future[Pixels]]]) -> None:
        contents: list[bytes] = []
        pixels: list[Pixels] = []
        for content, future in batch:
            try:
                pixels.append(future.result())
                contents.append(content)
            except ImageProblem as problem:
                self.broken[content] = problem.reason
        if not contents:
            return
        self._waiting.append((contents, self._encoder.encode_pixels(np.stack(pixels))))
        self.encoded += len(contents)
        if sum(len(done) for done, _ in self._waiting) >= _SHARD:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            contents = [content for done, _ in self._waiting for content in done]
            self._cache.add(contents, np.concatenate([features for _, features in self._waiting]))
            self._waiting = []


def _gather(cache: FeatureCache, contents: list[bytes], out: Path | None, scratch: Path) -> NDArray[np.float16]:
    if out is not None:
        return cache.gather(contents, out)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="image-array-") as folder:
        return cache.gather(contents, Path(folder) / "array.npy")  # the mapping outlives the name

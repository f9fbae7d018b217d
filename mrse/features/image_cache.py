"""Features of pictures on disk, kept across runs by (encoder, content of the picture).

One folder per encoder, holding shards that are only ever added: each is written under another name and then renamed,
so a kill leaves whole shards, and two processes (or pods on a shared volume) can add at once without a lock. A shard
that is damaged all the same is ignored, and its pictures are encoded again.

Shapes: P pictures, T tokens, V width of a token; S pictures in one shard.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

HASH_BYTES = 32
_KEY = f"S{HASH_BYTES}"
# Encoders of the champion and of the newest challengers; older ones are dropped when a new one comes.
_KEPT_ENCODERS = 8


class FeatureCache:
    """The features of one encoder.

    Args:
        root: the folder that holds all encoders' features.
        fingerprint: the encoder's.
        tokens: T.
        dim: V.
    """

    def __init__(self, root: Path, fingerprint: str, tokens: int, dim: int) -> None:
        self._folder = root / fingerprint[:32]
        self._shape = (tokens, dim)
        self._folder.mkdir(parents=True, exist_ok=True)
        os.utime(self._folder)
        _forget_oldest(root)
        self._shards: list[Path] = []
        self._hashes = np.zeros(0, dtype=_KEY)
        self._shard_of = np.zeros(0, dtype=np.int32)
        self._row_of = np.zeros(0, dtype=np.int32)
        found = [
            (shard, hashes) for shard in sorted(self._folder.glob("*.safetensors")) if (hashes := self._read(shard))
        ]
        self._index(found)

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, content: bytes) -> bool:
        """Whether the picture with this sha256 digest is here."""
        key = np.array(content, dtype=_KEY)  # drops trailing zeros, as the index does
        place = int(np.searchsorted(self._hashes, key))
        return place < len(self._hashes) and bool(self._hashes[place] == key)

    def add(self, contents: Sequence[bytes], features_STV: NDArray[np.float16]) -> None:
        """Keep the features of some pictures, in one move.

        Args:
            contents: S sha256 digests.
            features_STV: `(S, T, V)`, in the same order.
        """
        digests = np.frombuffer(b"".join(contents), dtype=np.uint8).reshape(-1, HASH_BYTES)
        shard = self._folder / f"{uuid.uuid4().hex}.safetensors"
        partial = shard.with_suffix(".partial")
        save_file({"hashes": digests.copy(), "features": features_STV}, partial)
        partial.replace(shard)
        self._index([(shard, list(contents))])

    def gather(self, contents: Sequence[bytes], out: Path) -> NDArray[np.float16]:
        """Write the features of some pictures as one array file, and map it into memory.

        Args:
            contents: P sha256 digests, all of them here.
            out: the `.npy` file to write, in one move; read shard by shard, so memory stays that of one shard.

        Returns:
            `(P, T, V)`, read-only.
        """
        partial = out.with_name(out.name + ".partial")
        array_PTV = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(len(contents), *self._shape))
        places = np.searchsorted(self._hashes, np.array(contents, dtype=_KEY))
        shard_of_P, row_of_P = self._shard_of[places], self._row_of[places]
        order = np.argsort(shard_of_P, kind="stable")
        bounds = np.flatnonzero(np.diff(shard_of_P[order], prepend=-1))
        for rows in np.split(order, bounds[1:]) if contents else []:
            with safe_open(self._shards[shard_of_P[rows[0]]], framework="np") as shard:
                array_PTV[rows] = shard.get_tensor("features")[row_of_P[rows]]
        array_PTV.flush()
        del array_PTV
        partial.replace(out)
        mapped: NDArray[np.float16] = np.load(out, mmap_mode="r")
        return mapped

    def _index(self, shards: list[tuple[Path, list[bytes]]]) -> None:
        hashes, shard_of, row_of = [self._hashes], [self._shard_of], [self._row_of]
        for shard, contents in shards:
            hashes.append(np.array(contents, dtype=_KEY))
            shard_of.append(np.full(len(contents), len(self._shards), dtype=np.int32))
            row_of.append(np.arange(len(contents), dtype=np.int32))
            self._shards.append(shard)
        self._hashes, first = np.unique(np.concatenate(hashes), return_index=True)
        self._shard_of = np.concatenate(shard_of)[first]
        self._row_of = np.concatenate(row_of)[first]

    def _read(self, shard: Path) -> list[bytes]:
        """The digests of a shard; none when it is damaged or of another shape."""
        try:
            with safe_open(shard, framework="np") as opened:
                shape = tuple(opened.get_slice("features").get_shape())
                digests = opened.get_tensor("hashes")
        except (SafetensorError, OSError):
            return []
        if shape != (len(digests), *self._shape):
            return []
        return [row.tobytes() for row in digests]


def _forget_oldest(root: Path) -> None:
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-_KEPT_ENCODERS]:
        shutil.rmtree(folder, ignore_errors=True)

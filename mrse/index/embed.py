"""The catalogue as vectors, a shard at a time: a build that was killed, or meets few changed items, embeds the rest.

An item's shard follows from its id, a shard's name from everything that its vectors follow from (model, device, and all
that the model reads of the shard's items). A shard that is found under its name is read, any other is computed, always
by the same call on the same inputs; so what was read is, bit for bit, what a full build would have computed.

Cost: one changed item costs one shard (`build_index.shard_items`). Kept on disk, in `services.cache_dir`: for each item
4 bytes per dimension and 2 per expert output, 1.8 GB for a million items of the default model; as much for each other
model of the last day. Builds may share the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mrse.errors import IndexFailed
from mrse.model.arrays import Catalogue, EncodedCatalogue
from mrse.model.retriever import Retriever
from mrse.progress import say, track

_ARRAYS = ("vectors", "bank", "preferences")
_ABANDONED = 24 * 3600.0  # seconds; what no build has touched for this long is nobody's work any more


def embed(
    retriever: Retriever, catalogue: Catalogue, device: torch.device, shard_items: int, cache_dir: Path
) -> EncodedCatalogue:
    """Embed a catalogue; row i of the answer is item i.

    Args:
        retriever: on `device`.
        shard_items: about how many items a shard has.
        cache_dir: gets `embedded/<model>/`, in which the shards of this catalogue replace those of any other. Other
            models' folders are deleted a day after their last build.

    Raises:
        IndexFailed: the catalogue has no items, or a shard cannot be written.
    """
    count = len(catalogue.item_ids)
    if count == 0:
        raise IndexFailed("there are no items to index; data/clean/items.parquet is empty")
    folder = cache_dir / "embedded" / retriever.fingerprint[:16]
    _claim(folder)
    shards = list(_shards(catalogue.item_ids, shard_items))
    say(f"embedding {count} items in {len(shards)} shard(s)")
    parts, names = [], set()
    for rows in track(shards, "embedding", unit="shard"):
        part = _taken(catalogue, rows)
        path = folder / f"{_name(part, retriever.fingerprint, device)}.safetensors"
        parts.append(_read(path) or _compute(retriever, part, path))
        names.add(path.name)
    _forget(folder, names)
    order = np.argsort(np.concatenate(shards), kind="stable")
    return EncodedCatalogue(
        catalogue.item_ids, *(np.concatenate([part[name] for part in parts])[order] for name in _ARRAYS)
    )


def _claim(folder: Path) -> None:
    """Make the folder, and show other builds that it is in use."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    except OSError as error:
        raise IndexFailed(f"{folder}: cannot be written: {error}; services.cache_dir names its place") from None


def _shards(item_ids: list[str], shard_items: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each shard that has any. Their number is a power of two: it changes when the catalogue doubles."""
    shards = 1 << max(0, (len(item_ids) - 1) // shard_items).bit_length()
    digests = b"".join(hashlib.blake2b(item_id.encode(), digest_size=8).digest() for item_id in item_ids)
    shard_N = np.frombuffer(digests, dtype="<u8") % np.uint64(shards)
    for shard in range(shards):
        rows = np.flatnonzero(shard_N == shard)
        if len(rows):
            yield rows


def _taken(catalogue: Catalogue, rows: NDArray[np.int64]) -> Catalogue:
    """Some items of a catalogue, with the pictures of all."""
    lists = {
        field.name: [getattr(catalogue, field.name)[row] for row in rows]
        for field in fields(Catalogue)
        if field.name not in ("image_row", "image_features")
    }
    return Catalogue(image_row=catalogue.image_row[rows], image_features=catalogue.image_features, **lists)


def _name(part: Catalogue, fingerprint: str, device: torch.device) -> str:
    """sha256 over what the vectors of a shard follow from."""
    texts = [part.item_ids, part.titles, part.categories, part.queries, part.query_weights]
    digest = hashlib.sha256(json.dumps([fingerprint, device.type, torch.__version__, *texts], default=float).encode())
    pictured = part.image_row >= 0
    digest.update(pictured.tobytes())
    digest.update(np.ascontiguousarray(part.image_features[part.image_row[pictured]]).tobytes())
    return digest.hexdigest()[:32]


def _read(path: Path) -> dict[str, NDArray[np.generic]] | None:
    """A shard that an earlier build computed; None where there is none or it is damaged."""
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError):
        return None


def _compute(retriever: Retriever, part: Catalogue, path: Path) -> dict[str, NDArray[np.generic]]:
    encoded = retriever.encode_catalogue(part)
    arrays: dict[str, NDArray[np.generic]] = {name: np.ascontiguousarray(getattr(encoded, name)) for name in _ARRAYS}
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")  # another build may compute the same shard
    try:
        save_file(arrays, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise IndexFailed(f"{path}: cannot be written: {error}; is the disk of services.cache_dir full?") from None
    return arrays


def _forget(folder: Path, names: set[str]) -> None:
    """Delete this model's other shards, and once it is a day old what another build may have been at work on."""
    for shard in folder.glob("*.safetensors"):
        if shard.name not in names:
            shard.unlink(missing_ok=True)
    for partial in filter(_abandoned, folder.glob("*.partial")):
        partial.unlink(missing_ok=True)
    for other in filter(_abandoned, folder.parent.iterdir()):
        shutil.rmtree(other, ignore_errors=True)


def _abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except FileNotFoundError:  # another build was faster
        return False

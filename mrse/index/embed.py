"""The catalogue as vectors: a build that was killed, or meets few changed items, embeds the rest alone.

What the experts make of an item hangs on its title, category and picture, and of a query that led to it on its words:
`Retriever.steady_item_parts` computes the same bits whatever else it is given. So these parts are kept by a hash of all
that they follow from (model, device, torch, content), and only what has no part yet is computed. Fusing the parts to
vectors is done for the whole catalogue, so that every vector is, bit for bit, that of a full build: with nothing
changed it all takes 7% of the time (docs/index.md).

Kept on disk, in `services.cache_dir`: for each item and each query 2 bytes per expert output and 16 for the hash, 0.8
GB for a million of the default model; as much for each other model of the last day. Builds may share the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mrse.errors import IndexFailed
from mrse.model.arrays import Catalogue, EncodedCatalogue, QueryArrays
from mrse.model.retriever import Retriever
from mrse.progress import say, track

_NAME_BYTES = 16
_ABANDONED = 24 * 3600.0  # seconds; what no build has touched for this long is nobody's work any more

Compute = Callable[[list[int]], NDArray[np.float16]]


def embed(
    retriever: Retriever, catalogue: Catalogue, device: torch.device, shard_items: int, cache_dir: Path
) -> EncodedCatalogue:
    """Embed a catalogue; row i of the answer is item i.

    Args:
        retriever: on `device`.
        shard_items: how many items are computed, and kept, at a time.
        cache_dir: gets `embedded/<model>/`, in which the parts of this catalogue replace those of any other. Other
            models' folders are deleted a day after their last build.

    Raises:
        IndexFailed: the catalogue has no items, or parts cannot be written.
    """
    if not catalogue.item_ids:
        raise IndexFailed("there are no items to index; data/clean/items.parquet is empty")
    folder = cache_dir / "embedded" / retriever.fingerprint[:16]
    _claim(folder)
    about = [retriever.fingerprint, device.type, torch.__version__]
    asked = QueryArrays.build(catalogue.queries, catalogue.query_weights)
    bank_NEH = _parts(
        folder / "items",
        _item_names(about, catalogue),
        lambda rows: retriever.steady_item_parts(_taken(catalogue, rows)),
        shard_items,
    )
    bank_QEH = _parts(
        folder / "queries",
        [_name([*about, query]) for query in asked.distinct],
        lambda rows: retriever.steady_query_parts([asked.distinct[row] for row in rows]),
        shard_items,
    )
    _forget(folder)
    return retriever.fuse_items(catalogue.item_ids, asked, bank_NEH, bank_QEH)


def _claim(folder: Path) -> None:
    """Make the folder, and show other builds that it is in use."""
    try:
        for kind in ("items", "queries"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    except OSError as error:
        raise IndexFailed(f"{folder}: cannot be written: {error}; services.cache_dir names its place") from None


def _item_names(about: list[str], catalogue: Catalogue) -> list[bytes]:
    pictures = (catalogue.image_features[row].tobytes() if row >= 0 else b"" for row in catalogue.image_row)
    texts = zip(catalogue.titles, catalogue.categories, pictures, strict=True)
    return [_name([*about, title, category], picture) for title, category, picture in texts]


def _name(what: list[str], picture: bytes = b"") -> bytes:
    """A hash of what a part follows from."""
    return hashlib.blake2b(json.dumps(what).encode() + picture, digest_size=_NAME_BYTES).digest()


def _taken(catalogue: Catalogue, rows: Sequence[int]) -> Catalogue:
    """Some items of a catalogue, with the pictures of all."""
    lists = {
        field.name: [getattr(catalogue, field.name)[row] for row in rows]
        for field in fields(Catalogue)
        if field.name not in ("image_row", "image_features")
    }
    return Catalogue(image_row=catalogue.image_row[rows], image_features=catalogue.image_features, **lists)


def _parts(folder: Path, names: list[bytes], compute: Compute, at_once: int) -> NDArray[np.float16]:
    """The parts of what has these names, `(N, E, H)`: read where they are kept, else computed by rows and kept."""
    kept, blocks = _read(folder)
    known = set(kept)
    missing = list({name: row for row, name in enumerate(names) if name not in known}.values())
    say(f"embedding {len(missing)} of {len(names)} {folder.name}")
    for start in track(range(0, len(missing), at_once), f"embedding {folder.name}", unit="shard"):
        rows = missing[start : start + at_once]
        blocks.append(compute(rows))
        kept += [names[row] for row in rows]
        _write(folder, kept[-len(rows) :], blocks[-1])
    whole = np.concatenate(blocks) if blocks else compute([])
    place = {name: row for row, name in enumerate(kept)}
    if missing or len(place) != len(set(names)) or len(blocks) > 1:
        distinct = list(dict.fromkeys(names))
        file = _write(folder, distinct, whole[[place[name] for name in distinct]])
        for other in set(folder.glob("*.safetensors")) - {file}:
            other.unlink(missing_ok=True)
    return whole[[place[name] for name in names]]


def _read(folder: Path) -> tuple[list[bytes], list[NDArray[np.float16]]]:
    """Names and parts that earlier builds kept; a damaged file counts for nothing."""
    names: list[bytes] = []
    blocks = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            block = load_file(path)
        except (OSError, SafetensorError):
            continue
        names += block["names"].view(f"V{_NAME_BYTES}").ravel().tolist()
        blocks.append(block["parts"])
    return names, blocks


def _write(folder: Path, names: list[bytes], parts: NDArray[np.float16]) -> Path:
    """Keep parts under their names, in a file of its own."""
    written = uuid.uuid4().hex
    partial, path = folder / f"{written}.partial", folder / f"{written}.safetensors"
    named = np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), _NAME_BYTES)
    try:
        save_file({"names": named, "parts": np.ascontiguousarray(parts)}, partial)
        return partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise IndexFailed(f"{path}: cannot be written: {error}; is the disk of services.cache_dir full?") from None


def _forget(folder: Path) -> None:
    """Delete what a killed build left half written and what other models kept, once it is a day old."""
    for partial in filter(_abandoned, folder.rglob("*.partial")):
        partial.unlink(missing_ok=True)
    for other in filter(_abandoned, folder.parent.iterdir()):
        shutil.rmtree(other, ignore_errors=True)


def _abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except FileNotFoundError:  # another build was faster
        return False

"""The work of `build_features`: tokeniser, subword sizes, frozen image encoder and image features in one folder.

Cost, in seconds of one core: 5,000 pictures of 64 x 64 take 75, of which about 65 pre-train the encoder (its steps do
not grow with the catalogue); each 10,000 pictures more take 15. Peak memory 840 MiB, 1.4 GiB at 44,000 pictures.
A given encoder, or no pictures: no pre-training.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrse.config import FeaturesConfig
from mrse.data.contract import read_items, read_meta, write_parquet
from mrse.data.images import ImageProblem, ImageStore, decode
from mrse.device import pick
from mrse.errors import DataError
from mrse.features.encoder import ImageEncoder
from mrse.features.images import MAX_PIXELS, THREADS, image_features
from mrse.features.preprocess import Preprocessing
from mrse.features.pretrain import pretrain
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.jsonfile import write_json
from mrse.progress import track

# More pictures teach a compact ViT nothing in so few steps, and would cost memory (12 KiB each at 64 x 64).
_MAX_PRETRAIN_PICTURES = 50_000
_CHUNK = 256


def build_features(
    config: FeaturesConfig, clean: Path, profiles: Path, workspace: Path, cache_dir: Path, out: Path
) -> dict[str, Any]:
    """Write everything that turns texts and pictures into the model's inputs.

    Args:
        config: `build_features` of `params.yaml`.
        clean: `data/clean`.
        profiles: `data/profiles`, of which the queries asked before the test days and the training examples are read.
        workspace: what local picture paths are relative to.
        cache_dir: where image features stay between runs.
        out: the folder to write (`data/features`), replaced whole.

    Returns:
        What `features.json` holds.

    Raises:
        ConfigError: a named encoder cannot be loaded or does not fit, or the device is not there.
        DataError: a table or the place of the pictures cannot be read.
    """
    items = read_items(clean).select(["item_id", "title", "category", "image"])
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    tokenizer = _tokenizer(config, items, profiles / "queries.parquet")
    tokenizer.save(partial)
    SubwordHasher(config.subword_buckets, config.subword_min_n, config.subword_max_n).save(partial / "subword.json")

    pictures = _write_images(config, items, clean, profiles / "examples.parquet", workspace, cache_dir, partial)
    facts = {
        "items": items.num_rows,
        "vocab_size": tokenizer.vocab_size,
        "text_encoder": config.text_encoder,
    } | pictures
    write_json(partial / "features.json", facts)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return facts


def _tokenizer(config: FeaturesConfig, items: pa.Table, queries: Path) -> Tokenizer:
    if config.text_encoder is not None:
        return Tokenizer.from_pretrained(config.text_encoder)
    return Tokenizer.train(vocabulary_texts(items, _read(queries, "query", "requests")), config.vocab_size)


def vocabulary_texts(items: pa.Table, queries: pa.Table) -> Iterator[str]:
    """The shop's own texts: titles, categories, and each query as often as the logarithm of its requests.

    Args:
        items: columns `title` and `category`.
        queries: columns `query` and `requests`; only what was asked before the test days.
    """
    asked = zip(queries["query"].to_pylist(), queries["requests"].to_pylist(), strict=True)
    return chain(
        items["title"].to_pylist(),
        (category for category in items["category"].to_pylist() if category),
        chain.from_iterable(repeat(query, int(requests).bit_length()) for query, requests in asked),
    )


def _read(path: Path, *columns: str) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run build_profiles first") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise DataError(f"{path}: not a table with the columns {', '.join(columns)}: {error}") from None


def _write_images(
    config: FeaturesConfig, items: pa.Table, clean: Path, examples: Path, workspace: Path, cache_dir: Path, out: Path
) -> dict[str, Any]:
    """Write the index, the array and, where at least one picture can be used, the encoder."""
    refs = items["image"].to_pylist()
    facts = {"images": 0, "items_with_image_ref": len(refs) - refs.count(None), "items_with_image": 0}
    if not facts["items_with_image_ref"]:
        _write_index(items, np.full(len(refs), -1), [None] * len(refs), out)
        np.save(out / "image_features.npy", _no_features(config))
        return facts | {"unusable_images": {}, "image_encoder": None}

    store = ImageStore(read_meta(clean).image_root, workspace)
    encoder, pretrained_on = _encoder(config, items, examples, store)
    features = image_features(encoder, refs, store, cache_dir, out=out / "image_features.npy")
    _write_index(items, features.row, features.content_hash, out)
    facts |= {"images": len(features.array), "items_with_image": int((features.row >= 0).sum())}
    if not facts["images"]:
        return facts | {"unusable_images": features.problems, "image_encoder": None}
    encoder.save(out / "image_encoder")
    about = {
        "name": config.image_encoder.name,
        "fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
        "tokens": encoder.tokens,
        "pretrained_on": pretrained_on,
    }
    return facts | {"unusable_images": features.problems, "image_encoder": about}


def _write_index(items: pa.Table, row_N: NDArray[np.int64], content_hash: Sequence[str | None], out: Path) -> None:
    columns = {
        "item_id": items["item_id"],
        "content_hash": pa.array(content_hash, pa.string()),
        "row": pa.array(row_N, pa.int64()),
    }
    write_parquet(pa.table(columns), out / "image_index.parquet")


def _no_features(config: FeaturesConfig) -> NDArray[np.float16]:
    settings = config.image_encoder
    return np.zeros((0, settings.tokens, settings.dim + settings.colour_levels**3), dtype=np.float16)


def _encoder(config: FeaturesConfig, items: pa.Table, examples: Path, store: ImageStore) -> tuple[ImageEncoder, int]:
    """The named encoder, or one pre-trained here; and the number of pictures it was pre-trained on."""
    settings, device = config.image_encoder, pick(config.device)
    if settings.name is not None:
        return ImageEncoder.load(settings.name, settings.tokens, settings.colour_levels, device), 0
    pictured = items.filter(pc.is_valid(items["image"]))
    most = min(_MAX_PRETRAIN_PICTURES, settings.pretrain_steps * settings.pretrain_batch)
    if pictured.num_rows > most:
        chosen = np.random.default_rng(config.seed).choice(pictured.num_rows, most, replace=False)
        pictured = pictured.take(np.sort(chosen))
    pixels_PSSC, usable = _pictures(pictured["image"].to_pylist(), store, settings.image_size)
    pictured = pictured.take(pa.array(usable, pa.int64()))
    categories = [category or "" for category in pictured["category"].to_pylist()]
    titles, queries = pictured["title"].to_pylist(), _training_queries(examples, pictured["item_id"])
    return pretrain(pixels_PSSC, titles, categories, queries, settings, config.seed, device), len(usable)


def _training_queries(examples: Path, item_ids: pa.ChunkedArray) -> list[list[str]]:
    """For each item the distinct queries of its training examples, sorted; later splits are not read."""
    rows = _read(examples, "split", "query", "item_id")
    pairs = rows.filter(pc.equal(rows["split"], "train")).select(["item_id", "query"]).group_by(["item_id", "query"])
    found: dict[str, list[str]] = {item: [] for item in item_ids.to_pylist()}
    for item, query in sorted(zip(*(column.to_pylist() for column in pairs.aggregate([]).columns), strict=True)):
        if item in found:
            found[item].append(query)
    return list(found.values())


def _pictures(refs: Sequence[str], store: ImageStore, size: int) -> tuple[NDArray[np.uint8], list[int]]:
    """The pictures that can be used, `(P, S, S, 3)`, and their places in `refs`."""
    preprocessing = Preprocessing.squeeze(size)

    def pixels(data: bytes | ImageProblem) -> NDArray[np.uint8] | None:
        if isinstance(data, ImageProblem):
            return None
        try:
            return preprocessing.pixels(decode(data, MAX_PIXELS))
        except ImageProblem:
            return None  # counted with its reason when the features are made

    pixels_PSSC = np.empty((len(refs), size, size, 3), dtype=np.uint8)
    usable: list[int] = []
    with ThreadPoolExecutor(THREADS) as pool:
        read = track(store.read_many(refs), "reading pictures", total=len(refs), unit="picture")
        for start, chunk in zip(range(0, len(refs), _CHUNK), _chunks(read), strict=True):
            for place, picture in enumerate(pool.map(pixels, chunk), start):
                if picture is not None:
                    pixels_PSSC[len(usable)] = picture
                    usable.append(place)
    return pixels_PSSC[: len(usable)], usable


def _chunks(read: Iterator[tuple[int, bytes | ImageProblem]]) -> Iterator[list[bytes | ImageProblem]]:
    while chunk := [data for _, data in islice(read, _CHUNK)]:
        yield chunk

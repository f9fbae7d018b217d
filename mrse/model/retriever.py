"""The trained model as one self-contained folder: embed a catalogue, embed queries.

The query side splits for an embed producer: `query_parts` (per query) and `shopper_memory` (per shopper) can be
computed ahead; `fuse` is the small rest.

Shapes: N items, Q queries, M items of a history, E experts, H hidden, D size of the final vectors.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mrse.config import ModelConfig
from mrse.data.contract import read_items, read_meta
from mrse.data.images import ImageStore
from mrse.errors import ConfigError, DataError
from mrse.features.encoder import ImageEncoder
from mrse.features.images import image_features
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer, normalise
from mrse.jsonfile import read_json, write_json
from mrse.model.arrays import (
    Catalogue,
    EncodedCatalogue,
    History,
    HistoryBank,
    QueryArrays,
    ShopperArrays,
    item_text,
)
from mrse.model.encode import ItemQueries, Pictures, fuse_catalogue, inference, item_bank, query_bank, steady_bank
from mrse.model.history import Memory
from mrse.model.inputs import TextTable
from mrse.model.towers import Fused, Mrse
from mrse.profiles import tables

_FORMAT = 3


class Retriever:
    """A model with everything it needs to read texts and pictures.

    Attributes:
        model: the towers.
        dim: size of the final vectors.
        experts: names of the experts, in the order of banks and preferences.
        assets: the folder that holds `tokenizer.json`, `subword.json` and `image_encoder/`.
    """

    def __init__(self, model: Mrse, assets: Path, settings: dict[str, Any], fingerprint: str = "") -> None:
        """Use `create` or `load`."""
        self.model = model
        self.assets = assets
        self.settings = settings
        self.dim = model.config.dim
        self.experts = model.experts.names
        self._fingerprint = fingerprint
        self.tokenizer = Tokenizer.load(assets / "tokenizer.json")
        self.hasher = SubwordHasher.load(assets / "subword.json")

    @classmethod
    def create(cls, config: ModelConfig, features: Path, text_encoder: str | None = None) -> Retriever:
        """A new model over what `build_features` made; weights from torch's generator.

        Args:
            config: sizes and switches.
            features: `data/features`.
            text_encoder: a Hugging Face encoder by name or folder, in place of Light-Bert's own layers.
        """
        tokens, dim = _image_shape(features) if config.images and (features / "image_encoder").is_dir() else (1, 1)
        settings = {
            "format": _FORMAT,
            "model": config.model_dump(mode="json"),
            "vocab_size": Tokenizer.load(features / "tokenizer.json").vocab_size,
            "buckets": SubwordHasher.load(features / "subword.json").buckets,
            "image_dim": dim,
            "image_tokens": tokens,
            "text_encoder": None,
        }
        encoder = None
        if text_encoder is not None and config.experts.light_bert:
            encoder = _pretrained_encoder(text_encoder)
            settings["text_encoder"] = encoder.config.to_dict()  # type: ignore[operator, union-attr]
        return cls(_build(settings, encoder), features, settings)

    @classmethod
    def load(cls, folder: Path) -> Retriever:
        """Read a package.

        Raises:
            DataError: a file is missing, broken, or does not fit the others.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise DataError(f"{folder}: no model here (config.json is missing); the train stage writes it")
        try:
            settings = read_json(folder / "config.json")
        except ValueError as error:
            raise DataError(f"{folder / 'config.json'}: not JSON: {error}") from None
        if settings.get("format") != _FORMAT:
            raise DataError(
                f"{folder / 'config.json'}: model format {settings.get('format')}, this code reads {_FORMAT}"
            )
        try:
            encoder = _encoder_from_config(settings["text_encoder"]) if settings["text_encoder"] else None
            model = _build(settings, encoder)
            model.load_state_dict(_read(folder / "model.safetensors"))
        except (KeyError, RuntimeError, ValidationError) as error:
            raise DataError(f"{folder}: config.json and model.safetensors do not fit: {error}") from None
        model.eval()
        return cls(model, folder, settings, package_fingerprint(folder))

    def to(self, device: torch.device) -> Self:
        """Move the model itself. Arrays come back to the CPU; tensors (`query_parts`, `fuse`) stay on the device."""
        self.model.to(device)
        return self

    def save(self, folder: Path) -> None:
        """Write the package beside `folder`, then put it in its place; it says nothing of the device."""
        folder = Path(folder)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in ("tokenizer.json", "subword.json"):
            shutil.copyfile(self.assets / name, partial / name)
        if (self.assets / "image_encoder").is_dir():
            shutil.copytree(self.assets / "image_encoder", partial / "image_encoder")
        write_json(partial / "config.json", self.settings)
        _write(partial / "model.safetensors", {k: v.cpu().contiguous() for k, v in self.model.state_dict().items()})
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
        self.assets = folder
        self._fingerprint = package_fingerprint(folder)

    @property
    def fingerprint(self) -> str:
        """sha256 of the package's files."""
        if not self._fingerprint:
            raise ValueError("a model has a fingerprint once it is saved or loaded")
        return self._fingerprint

    def image_encoder(self) -> ImageEncoder:
        """The frozen encoder of the package, where the model is."""
        return ImageEncoder.load(self.assets / "image_encoder", device=self.model.device)

    @property
    def reads_images(self) -> bool:
        """Whether pictures make a difference to this model; a shop without any has no image encoder."""
        has_encoder = (self.assets / "image_encoder").is_dir()
        return self.model.config.images and "vbert" in self.experts and has_encoder

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def item_texts(self, titles: Sequence[str], categories: Sequence[str | None]) -> TextTable:
        """Items' texts, tokenised."""
        texts = [item_text(title, category) for title, category in zip(titles, categories, strict=True)]
        return TextTable.build(texts, self.tokenizer, self.hasher, self.model.config.title_length)

    def query_texts(self, queries: Sequence[str]) -> TextTable:
        """Queries, tokenised."""
        return TextTable.build(queries, self.tokenizer, self.hasher, self.model.config.query_length)

    def encode_catalogue(self, catalogue: Catalogue, batch_size: int = 128) -> EncodedCatalogue:
        """Embed items. Deterministic. Larger batches leave the cache and are slower on a CPU."""
        texts = self.item_texts(catalogue.titles, catalogue.categories)
        bank_NEH = item_bank(self.model, texts, self._pictures(catalogue), batch_size)
        asked = QueryArrays.build(catalogue.queries, catalogue.query_weights)
        bank_QEH = query_bank(self.model, self.query_texts(asked.distinct), batch_size)
        return self._fuse_items(catalogue.item_ids, asked, bank_NEH, bank_QEH, batch_size)

    def steady_item_parts(self, catalogue: Catalogue) -> NDArray[np.float16]:
        """The items' expert outputs `(N, E, H)`: those of an item hang on its text and picture, not on its company."""
        texts = self.item_texts(catalogue.titles, catalogue.categories)
        return steady_bank(self.model, texts, self._pictures(catalogue)).cpu().numpy()

    def steady_query_parts(self, queries: Sequence[str]) -> NDArray[np.float16]:
        """The same of queries, `(Q, E, H)`."""
        return steady_bank(self.model, self.query_texts(queries), None).cpu().numpy()

    def fuse_items(
        self, item_ids: list[str], asked: QueryArrays, bank_NEH: NDArray[np.float16], bank_QEH: NDArray[np.float16]
    ) -> EncodedCatalogue:
        """Items' parts and those of the queries that led to them (`asked.distinct`) to final vectors."""
        item_NEH, query_QEH = (torch.from_numpy(bank).to(self.model.device) for bank in (bank_NEH, bank_QEH))
        return self._fuse_items(item_ids, asked, item_NEH, query_QEH)

    def _fuse_items(
        self, item_ids: list[str], asked: QueryArrays, bank_NEH: Tensor, bank_QEH: Tensor, batch_size: int = 128
    ) -> EncodedCatalogue:
        queries = ItemQueries(asked.query_NK, asked.weight_NK)
        vector_ND, preference_NE = fuse_catalogue(self.model, bank_NEH, queries, bank_QEH, 4 * batch_size)
        return EncodedCatalogue(item_ids, *(x.cpu().numpy() for x in (vector_ND, bank_NEH, preference_NE)))

    def _pictures(self, catalogue: Catalogue) -> Pictures:
        """Those of a catalogue, none for a model that reads none."""
        if self.reads_images:
            return Pictures(catalogue.image_row, catalogue.image_features)
        return Pictures(np.full(len(catalogue.item_ids), -1, dtype=np.int64), catalogue.image_features)

    def encode_queries(
        self,
        queries: Sequence[str],
        histories: Sequence[History | None] | None = None,
        bank: HistoryBank | None = None,
        batch_size: int = 256,
    ) -> NDArray[np.float32]:
        """Embed queries, float32 `(Q, D)`, L2-normalised.

        Args:
            queries: as shoppers typed them; case does not matter, an empty one is allowed.
            histories: one per query or None; None: nobody is known.
            bank: where the items of the histories are looked up; items it lacks are skipped.
            batch_size: queries encoded at once.
        """
        return self._fuse_queries(queries, histories, bank, batch_size)[0]

    def preferences(
        self,
        queries: Sequence[str],
        histories: Sequence[History | None] | None = None,
        bank: HistoryBank | None = None,
        batch_size: int = 256,
    ) -> list[dict[str, float]]:
        """How much each expert counts for each query, by the expert's name; sums to 1."""
        shares_QE = self._fuse_queries(queries, histories, bank, batch_size)[1]
        return [dict(zip(self.experts, map(float, row), strict=True)) for row in shares_QE]

    def query_parts(self, queries: Sequence[str], batch_size: int = 256) -> Tensor:
        """The query half: expert outputs, float16 `(Q, E, H)`, of the queries alone."""
        return query_bank(self.model, self.query_texts(queries), batch_size)

    def shopper_memory(self, histories: Sequence[History | None], bank: HistoryBank | None) -> Memory:
        """The shopper half: the bank's rows, actions and ages of each history's newest `model.history_length` items."""
        model = self.model.config
        arrays = ShopperArrays.build(histories, bank, model.history_length, len(self.experts), model.hidden)
        memory = Memory(
            memory_BMEH=torch.from_numpy(arrays.memory_BMEH).float(),
            known_BM=torch.from_numpy(arrays.known_BM),
            action_BM=torch.from_numpy(arrays.action_BM),
            age_BM=torch.from_numpy(arrays.age_BM),
        )
        return memory.to(self.model.device)

    def fuse(self, query_BEH: Tensor, memory: Memory | None) -> Fused:
        """Both halves to final vectors; the only work of a request whose halves are at hand.

        Args:
            query_BEH: of `query_parts`, on the model's device.
            memory: of `shopper_memory`; None only for a model without `user_history`.

        Raises:
            ValueError: the model reads histories and there is no memory. One for nobody known is empty, not None.
        """
        with inference(self.model):
            return self.model.fuse_queries(query_BEH.float(), memory)

    def _fuse_queries(
        self,
        queries: Sequence[str],
        histories: Sequence[History | None] | None,
        bank: HistoryBank | None,
        batch_size: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if histories is not None and len(histories) != len(queries):
            raise ValueError(f"{len(histories)} histories for {len(queries)} queries")
        distinct: dict[str, int] = {}
        place = np.array([distinct.setdefault(normalise(query), len(distinct)) for query in queries], dtype=np.int64)
        parts_UEH = self.query_parts(list(distinct), batch_size)
        vectors = np.zeros((len(queries), self.dim), dtype=np.float32)
        shares = np.zeros((len(queries), len(self.experts)), dtype=np.float32)
        for start in range(0, len(queries), batch_size):
            rows = slice(start, start + batch_size)
            known = [None] * len(place[rows]) if histories is None else histories[rows]
            own_BEH = parts_UEH[torch.from_numpy(place[rows]).to(self.model.device)]
            fused = self.fuse(own_BEH, self.shopper_memory(known, bank))
            vectors[rows], shares[rows] = fused.vector_BD.cpu().numpy(), fused.preference_BE.cpu().numpy()
        return vectors, shares


def load_catalogue(
    retriever: Retriever,
    clean: Path,
    profiles: Path,
    workspace: Path,
    cache_dir: Path,
    asof: datetime | None = None,
) -> Catalogue:
    """A shop's items as a model reads them.

    Args:
        retriever: its own frozen encoder reads the pictures, through the cache.
        clean: `data/clean`.
        profiles: `data/profiles`.
        workspace: what relative image roots start from.
        cache_dir: of image features, by encoder and content hash.
        asof: item profiles are the newest not after this; None: the newest.
    """
    items = read_items(clean)
    ids: list[str] = items.column("item_id").to_pylist()
    row = np.full(len(ids), -1, dtype=np.int64)
    array = np.zeros((0, retriever.settings["image_tokens"], retriever.settings["image_dim"]), dtype=np.float16)
    if retriever.reads_images:
        store = ImageStore(read_meta(clean).image_root, workspace)
        pictures = image_features(retriever.image_encoder(), items.column("image").to_pylist(), store, cache_dir)
        row, array = pictures.row, pictures.array
    queries, weights = _profile_queries(profiles, ids, asof)
    return Catalogue(
        item_ids=ids,
        titles=items.column("title").to_pylist(),
        categories=[category or "" for category in items.column("category").to_pylist()],
        image_row=row,
        image_features=array,
        queries=queries,
        query_weights=weights,
    )


def package_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of a package's files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _profile_queries(
    profiles: Path, ids: list[str], asof: datetime | None
) -> tuple[list[list[str]], list[list[float]]]:
    table = tables.read(profiles / "items.parquet", ["item_id", "asof", "queries", "query_weights"])
    if asof is not None:
        table = table.filter(pc.less_equal(table.column("asof"), pa.scalar(asof, table.schema.field("asof").type)))
    # Sorted by (item_id, asof): the last row of an item wins.
    newest: dict[str, int] = {item: row for row, item in enumerate(table.column("item_id").to_pylist())}
    queries: list[list[str]] = table.column("queries").to_pylist()
    weights: list[list[float]] = table.column("query_weights").to_pylist()
    rows = [newest.get(item) for item in ids]
    return (
        [[] if row is None else queries[row] or [] for row in rows],
        [[] if row is None else weights[row] or [] for row in rows],
    )


def _build(settings: dict[str, Any], encoder: nn.Module | None) -> Mrse:
    return Mrse(
        ModelConfig.model_validate(settings["model"]),
        settings["vocab_size"],
        settings["buckets"],
        settings["image_dim"],
        settings["image_tokens"],
        encoder,
    )


def _image_shape(features: Path) -> tuple[int, int]:
    encoder = ImageEncoder.load(features / "image_encoder")
    return encoder.tokens, encoder.dim


def _pretrained_encoder(name: str) -> nn.Module:
    from transformers import AutoModel  # slow to import and needed only with a Hugging Face encoder

    try:
        encoder: nn.Module = AutoModel.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"build_features: text_encoder = {name!r}: the model cannot be loaded: {error}") from None
    return encoder


def _encoder_from_config(config: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel  # slow to import and needed only with a Hugging Face encoder

    settings = {key: value for key, value in config.items() if key != "model_type"}
    encoder: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model(config["model_type"], **settings)
    )
    return encoder


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial)
    partial.replace(path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None

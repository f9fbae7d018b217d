"""Encoders that `mrse.model.export` wrote, run by ONNX Runtime: no torch, no class of the model, nothing unpickled.

    from mrse.model.arrays import History, HistoryBank
    from mrse.model.exported import ExportedQueryEncoder

    encoder = ExportedQueryEncoder.load("exported", threads=1)
    vectors_QD = encoder.encode(["red shirt", "boots"])  # float32, rows of length 1

    bank = HistoryBank.load("models/index/serving")  # what the pipeline's index was built with
    shopper = History(["i0000532"], ["click"], [3.0])  # items, actions, hours ago; newest first
    vectors_QD = encoder.encode(["red shirt", "boots"], [shopper, None], bank)

Shapes: Q queries, N items, B rows of a batch, M remembered things, E experts, H hidden, T image tokens, V image feature
size, D size of the final vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mrse.errors import DataError
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.jsonfile import read_json
from mrse.model.arrays import (
    Catalogue,
    EncodedCatalogue,
    History,
    HistoryBank,
    QueryArrays,
    ShopperArrays,
    TokenisedTexts,
    batches_of_like_size,
    item_text,
)

FORMAT = 1
QUERY_GRAPH, ITEM_GRAPH, SETTINGS = "query.onnx", "item.onnx", "export.json"
# More rows do not fit a core's cache: 64 texts are fastest.
_BATCH = 64


class _Graph:
    """One ONNX file, the readers of its texts, and its sizes."""

    def __init__(self, folder: Path, name: str, threads: int) -> None:
        self.settings = _settings(folder)
        self.tokenizer = Tokenizer.load(folder / "tokenizer.json")
        self.hasher = SubwordHasher.load(folder / "subword.json")
        self.experts: tuple[str, ...] = tuple(self.settings["experts"])
        self.hidden: int = self.settings["hidden"]
        self.dim: int = self.settings["dim"]
        self._session = _session(folder / name, threads)

    def texts(self, texts: Sequence[str], length: str) -> TokenisedTexts:
        """Tokenised, as long as the model takes; `length` is the setting's name."""
        return TokenisedTexts.build(texts, self.tokenizer, self.hasher, self.settings[length])

    def room(self, item_ids: list[str], rows: int) -> EncodedCatalogue:
        """Zeros for the outputs of so many rows."""
        return EncodedCatalogue(
            item_ids=item_ids,
            vectors=np.zeros((rows, self.dim), dtype=np.float32),
            bank=np.zeros((rows, len(self.experts), self.hidden), dtype=np.float16),
            preferences=np.zeros((rows, len(self.experts)), dtype=np.float32),
        )

    def run(self, inputs: dict[str, NDArray[Any]], into: EncodedCatalogue, rows_B: NDArray[np.int64]) -> None:
        """Put the outputs for one batch of inputs into their rows."""
        outputs: tuple[NDArray[Any], ...] = (into.vectors, into.preferences, into.bank)
        for output, computed in zip(outputs, self._session.run(None, inputs), strict=True):
            output[rows_B] = computed


class ExportedQueryEncoder:
    """Queries and shoppers to vectors, as `Retriever.encode_queries` does.

    Attributes:
        dim: D.
        fingerprint: of the model package that was exported; an index is stamped with it.
    """

    def __init__(self, graph: _Graph) -> None:
        """Use `load`."""
        self._graph = graph
        self.dim = graph.dim
        self.fingerprint: str = graph.settings["fingerprint"]

    @classmethod
    def load(cls, folder: Path | str, threads: int = 1) -> ExportedQueryEncoder:
        """Open what `export_encoders` wrote.

        Args:
            folder: with `query.onnx`, `tokenizer.json`, `subword.json` and `export.json`.
            threads: of one call; a service with many requests at once is best with 1.

        Raises:
            DataError: a file is missing, broken, or of another format.
        """
        return cls(_Graph(Path(folder), QUERY_GRAPH, threads))

    def encode(
        self,
        queries: Sequence[str],
        histories: Sequence[History | None] | None = None,
        bank: HistoryBank | None = None,
    ) -> NDArray[np.float32]:
        """Embed queries, float32 `(Q, D)`, L2-normalised.

        Args:
            queries: as shoppers typed them; case does not matter, an empty one is allowed.
            histories: one per query or None; None: nobody is known.
            bank: where the items of the histories are looked up; items it lacks are skipped.
        """
        return self._encode(queries, histories, bank).vectors

    def parts(self, queries: Sequence[str]) -> NDArray[np.float16]:
        """Expert outputs of the queries alone, `(Q, E, H)`: what items remember of the queries that led to them."""
        return self._encode(queries, None, None).bank

    def _encode(
        self, queries: Sequence[str], histories: Sequence[History | None] | None, bank: HistoryBank | None
    ) -> EncodedCatalogue:
        if histories is not None and len(histories) != len(queries):
            raise ValueError(f"{len(histories)} histories for {len(queries)} queries")
        graph = self._graph
        encoded = graph.room([], len(queries))
        for rows_B, texts in graph.texts(queries, "query_length").batches(_BATCH):
            known = [None if histories is None else histories[row] for row in rows_B]
            length = graph.settings["history_length"]
            shoppers = ShopperArrays.build(known, bank, length, len(graph.experts), graph.hidden)
            graph.run(vars(texts) | vars(shoppers), encoded, rows_B)
        return encoded


class ExportedItemEncoder:
    """Items to vectors, as `Retriever.encode_catalogue` does."""

    def __init__(self, graph: _Graph) -> None:
        """Use `load`."""
        self._graph = graph

    @classmethod
    def load(cls, folder: Path | str, threads: int = 1) -> ExportedItemEncoder:
        """Open what `export_encoders` wrote; see `ExportedQueryEncoder.load`."""
        return cls(_Graph(Path(folder), ITEM_GRAPH, threads))

    def encode(self, catalogue: Catalogue, queries: ExportedQueryEncoder) -> EncodedCatalogue:
        """Embed items.

        Args:
            catalogue: the items; pictures are left out where the model reads none.
            queries: of the same export, for the queries that led to the items.
        """
        graph = self._graph
        titles = [item_text(*pair) for pair in zip(catalogue.titles, catalogue.categories, strict=True)]
        texts = graph.texts(titles, "title_length")
        asked = QueryArrays.build(catalogue.queries, catalogue.query_weights)
        bank_QEH = np.concatenate([queries.parts(asked.distinct), graph.room([], 1).bank])  # -1, padding, is the last
        encoded = graph.room(catalogue.item_ids, len(titles))
        for rows_B in batches_of_like_size(texts.sizes_N, _BATCH):
            query_BM = asked.query_NK[rows_B]
            inputs = vars(texts.arrays(rows_B)) | {
                "memory_BMEH": bank_QEH[query_BM],
                "known_BM": query_BM >= 0,
                "weight_BM": asked.weight_NK[rows_B],
            }
            if graph.settings["reads_images"]:
                inputs |= _pictures(catalogue, rows_B, graph.settings)
            graph.run(inputs, encoded, rows_B)
        return encoded


def _pictures(catalogue: Catalogue, rows_B: NDArray[np.int64], settings: dict[str, Any]) -> dict[str, NDArray[Any]]:
    picture_B = catalogue.image_row[rows_B]
    pictured_B = picture_B >= 0
    shape = (len(rows_B), settings["image_tokens"], settings["image_dim"])
    images_BTV = np.zeros(shape, dtype=np.float16)
    images_BTV[pictured_B] = catalogue.image_features[picture_B[pictured_B]]
    return {"images_BTV": images_BTV, "pictured_B": pictured_B}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        raise DataError(f"{folder}: no exported encoders here ({SETTINGS} is missing); `mrse export` writes them")
    try:
        settings: dict[str, Any] = read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if settings.get("format") != FORMAT:
        raise DataError(f"{path}: format {settings.get('format')}, this code reads {FORMAT}; export the model again")
    return settings


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise DataError(f"{path}: no such file; `mrse export` writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the C++ library's errors share no narrower base
        raise DataError(f"{path}: cannot be read: {error}") from None

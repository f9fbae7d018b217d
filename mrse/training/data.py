"""What `build_profiles` and `build_features` wrote, as arrays of row numbers: ids and texts are looked up once.

Shapes: N items, Q distinct queries, M examples or requests, L remembered items, K hard negatives, R relevant items.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mrse.data.contract import read_items
from mrse.errors import DataError
from mrse.features.text import normalise
from mrse.model.arrays import action_code, age_bucket, item_text
from mrse.model.encode import ItemQueries, Pictures
from mrse.model.inputs import TextTable
from mrse.model.retriever import Retriever
from mrse.profiles import tables

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Value = TypeVar("Value", np.int64, np.float32, np.float64)


@dataclass(frozen=True)
class Shoppers:
    """Histories, newest first.

    Attributes:
        item_ML: item rows, -1 is padding (and items that are no longer sold).
        action_ML: `action_code` of each.
        age_ML: `age_bucket` of each.
    """

    item_ML: Ints
    action_ML: Ints
    age_ML: Ints


@dataclass(frozen=True)
class Examples:
    """Training examples.

    Attributes:
        query_M: query rows.
        item_M: item rows of the positives.
        asker_M: who asks what: equal numbers are the same query by the same shopper (or by nobody known).
        weight_M: mean 1.
        hard_MK: item rows, -1 is padding.
        epoch_M: which item profiles the example may see; -1: none.
        judged_M: whether people's judgments say so, and not the log.
        shoppers: histories before the example.
    """

    query_M: Ints
    item_M: Ints
    asker_M: Ints
    weight_M: Floats
    hard_MK: Ints
    epoch_M: Ints
    judged_M: NDArray[np.bool_]
    shoppers: Shoppers

    def __len__(self) -> int:
        return len(self.query_M)


@dataclass(frozen=True)
class Requests:
    """Validation requests.

    Attributes:
        query_M: query rows.
        relevant: item rows of each request's relevant items.
        epoch_M: which item profiles the request may see; -1: none.
        shoppers: histories before the request.
    """

    query_M: Ints
    relevant: list[Ints]
    epoch_M: Ints
    shoppers: Shoppers

    def __len__(self) -> int:
        return len(self.query_M)


@dataclass(frozen=True)
class Shop:
    """Everything training reads.

    Attributes:
        item_ids: N ids.
        category_N: equal numbers are items of one category.
        item_strings: N texts as the experts read them (`item_text`).
        query_strings: Q normalised queries.
        item_texts, query_texts: tokenised.
        pictures: image features of the items.
        profiles: the queries that led to each item, one entry per cut time, oldest first.
        examples, requests: of the train and the valid split.
        dropped: rows that could not be used, by reason.
    """

    item_ids: list[str]
    category_N: Ints
    item_strings: list[str]
    query_strings: list[str]
    item_texts: TextTable
    query_texts: TextTable
    pictures: Pictures
    profiles: list[ItemQueries]
    examples: Examples
    requests: Requests
    dropped: dict[str, int]

    def item_queries(self, epoch: int) -> ItemQueries:
        """Item profiles of one cut time; `epoch` -1: before the first."""
        return self.profiles[epoch] if epoch >= 0 else ItemQueries.none(len(self.item_ids))


def load_shop(
    retriever: Retriever, features: Path, clean: Path, profiles: Path, relevant_grade: float, max_requests: int
) -> Shop:
    """Read and index everything. Costs about 3 s for 5,000 items and 30,000 examples.

    Args:
        retriever: its tokenisers.
        features: `data/features`.
        clean: `data/clean`.
        profiles: `data/profiles`.
        relevant_grade: judged items at or above this grade are relevant.
        max_requests: at most so many validation requests, evenly spaced.

    Raises:
        DataError: a file is missing or does not fit the contract, or the catalogue is empty.
    """
    items = read_items(clean)
    ids = items.column("item_id").combine_chunks()
    if len(ids) == 0:
        raise DataError(f"{clean / 'items.parquet'}: no items")
    titles = items.column("title").to_pylist()
    categories = items.column("category").to_pylist()
    examples = tables.read(profiles / "examples.parquet", split="train")
    requests = tables.read(profiles / "requests.parquet", split="valid")
    profile_table = tables.read(profiles / "items.parquet", ["item_id", "asof", "queries", "query_weights"])
    queries = _Index()
    asofs = profile_table.column("asof").unique().sort()
    length = retriever.model.config.history_length
    example_rows = _examples(examples, ids, asofs, queries, length)
    request_rows, dropped = _requests(requests, ids, asofs, queries, length, relevant_grade, max_requests)
    item_profiles = _profiles(profile_table, ids, asofs, queries)
    return Shop(
        item_ids=ids.to_pylist(),
        category_N=_categories(items.column("category")),
        item_strings=[item_text(title, category) for title, category in zip(titles, categories, strict=True)],
        query_strings=queries.texts,
        item_texts=retriever.item_texts(titles, categories),
        query_texts=retriever.query_texts(queries.texts),
        pictures=_pictures(retriever, features, ids),
        profiles=item_profiles,
        examples=example_rows[0],
        requests=request_rows,
        dropped=example_rows[1] | dropped,
    )


def _categories(categories: pa.ChunkedArray) -> Ints:
    encoded = pc.fill_null(categories, "").combine_chunks().dictionary_encode()
    codes: Ints = encoded.indices.to_numpy().astype(np.int64)
    return codes


class _Index:
    """Distinct normalised texts, numbered as they come."""

    def __init__(self) -> None:
        self._row: dict[str, int] = {}

    def rows(self, texts: pa.ChunkedArray) -> Ints:
        """The number of each text; only the distinct ones become Python's."""
        distinct = texts.unique()
        row_U = np.array([self._row.setdefault(normalise(t), len(self._row)) for t in distinct.to_pylist()], np.int64)
        found: Ints = row_U[pc.index_in(texts, value_set=distinct).to_numpy()] if len(row_U) else row_U
        return found

    @property
    def texts(self) -> list[str]:
        return list(self._row) or [""]


def _examples(
    table: pa.Table, ids: pa.Array, asofs: pa.Array, queries: _Index, history_length: int
) -> tuple[Examples, dict[str, int]]:
    item_M = _rows(table.column("item_id"), ids)
    sold = item_M >= 0
    dropped = {"examples_of_unknown_items": int((~sold).sum())}
    table, item_M = table.filter(pa.array(sold)), item_M[sold]
    query_M = queries.rows(table.column("query"))
    users = table.column("user_id").to_pylist()
    askers: dict[tuple[int, str | None], int] = {}
    pairs = zip(query_M.tolist(), users, strict=True)
    weight_M = table.column("weight").to_numpy().astype(np.float32)
    examples = Examples(
        query_M=query_M,
        item_M=item_M,
        asker_M=np.array([askers.setdefault(pair, len(askers)) for pair in pairs], dtype=np.int64),
        weight_M=weight_M / max(float(weight_M.mean()), 1e-12) if len(weight_M) else weight_M,
        hard_MK=_padded(table.column("hard_negatives"), _rows(_flat(table, "hard_negatives"), ids), -1),
        epoch_M=_rows(table.column("profile_asof"), asofs),
        judged_M=table.column("action").is_null().to_numpy(),
        shoppers=_shoppers(table, ids, history_length),
    )
    return examples, dropped


def _requests(
    table: pa.Table,
    ids: pa.Array,
    asofs: pa.Array,
    queries: _Index,
    history_length: int,
    grade: float,
    most: int,
) -> tuple[Requests, dict[str, int]]:
    judged = pc.equal(table.column("source"), "judgments").to_numpy()
    relevant_M = _padded(table.column("relevant"), _rows(_flat(table, "relevant"), ids), -1)
    gain_M = _padded(table.column("gains"), _flat(table, "gains").to_numpy().astype(np.float64), 0.0)
    bar_M1 = np.where(judged, grade, 1e-9)[:, None]
    keep_MR = (relevant_M >= 0) & (gain_M >= bar_M1)
    usable = np.flatnonzero(keep_MR.any(axis=1))
    dropped = {"requests_without_relevant_items": int(len(table) - len(usable))}
    if len(usable) > most:
        usable = usable[np.linspace(0, len(usable) - 1, most).astype(np.int64)]
    table = table.take(pa.array(usable))
    requests = Requests(
        query_M=queries.rows(table.column("query")),
        relevant=[np.unique(relevant_M[row][keep_MR[row]]) for row in usable],
        epoch_M=_rows(table.column("profile_asof"), asofs),
        shoppers=_shoppers(table, ids, history_length),
    )
    return requests, dropped


def _profiles(table: pa.Table, ids: pa.Array, asofs: pa.Array, queries: _Index) -> list[ItemQueries]:
    query_PK = _padded(table.column("queries"), queries.rows(_flat(table, "queries")), -1)
    weight_PK = _padded(table.column("query_weights"), _flat(table, "query_weights").to_numpy().astype(np.float32), 0.0)
    item_P = _rows(table.column("item_id"), ids)
    epoch_P = _rows(table.column("asof"), asofs)
    profiles = []
    for epoch in range(len(asofs)):
        rows = np.flatnonzero((epoch_P == epoch) & (item_P >= 0))
        query_NK = np.full((len(ids), query_PK.shape[1]), -1, dtype=np.int64)
        weight_NK = np.zeros(query_NK.shape, dtype=np.float32)
        query_NK[item_P[rows]] = query_PK[rows]
        weight_NK[item_P[rows]] = weight_PK[rows]
        profiles.append(ItemQueries(query_NK, weight_NK))
    return profiles


def _shoppers(table: pa.Table, ids: pa.Array, length: int) -> Shoppers:
    actions = _flat(table, "hist_actions").to_pylist()
    ages = _flat(table, "hist_ages").to_pylist()
    codes = np.array([action_code(action) for action in actions], dtype=np.int64)
    buckets = np.array([age_bucket(age) for age in ages], dtype=np.int64)
    return Shoppers(
        item_ML=_padded(table.column("hist_items"), _rows(_flat(table, "hist_items"), ids), -1)[:, :length],
        action_ML=_padded(table.column("hist_actions"), codes, 0)[:, :length],
        age_ML=_padded(table.column("hist_ages"), buckets, 0)[:, :length],
    )


def _pictures(retriever: Retriever, features: Path, ids: pa.Array) -> Pictures:
    row_N = np.full(len(ids), -1, dtype=np.int64)
    if not retriever.reads_images:
        return Pictures(row_N, np.zeros((0, 1, 1), dtype=np.float16))
    try:
        index = pq.read_table(features / "image_index.parquet", columns=["item_id", "row"])
        array = np.load(features / "image_features.npy", mmap_mode="r")
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"{features}: image features cannot be read: {error}; build_features writes them") from None
    item = _rows(index.column("item_id"), ids)
    row_N[item[item >= 0]] = index.column("row").to_numpy()[item >= 0]
    return Pictures(row_N, array)


def _rows(values: pa.Array | pa.ChunkedArray, ids: pa.Array) -> Ints:
    found = pc.fill_null(pc.index_in(values.cast(ids.type), value_set=ids), -1)
    rows: Ints = found.to_numpy().astype(np.int64)
    return rows


def _flat(table: pa.Table, column: str) -> pa.ChunkedArray:
    return pc.list_flatten(table.column(column))


def _padded(lists: pa.ChunkedArray, flat: NDArray[Value], fill: float) -> NDArray[Value]:
    """Lists of unequal length as one matrix; `flat` holds their values in order."""
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    width = max(1, int(sizes.max(initial=1)))
    matrix = np.full((len(sizes), width), fill, dtype=flat.dtype)
    matrix[np.arange(width) < sizes[:, None]] = flat
    return matrix

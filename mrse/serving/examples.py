"""Example searches that show what the index does: frequent queries, and one vague query for two different shoppers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mrse.errors import DataError
from mrse.serving.recall import Reader

_SHOPPERS = 200
_RECENT = 6


@dataclass(frozen=True)
class Question:
    """One example; `user` None: nobody is known. `recent` are the item ids that the shopper engaged with last."""

    text: str
    user: str | None = None
    recent: tuple[str, ...] = ()


def choose(reader: Reader, queries: Path, count: int = 3) -> list[Question]:
    """The `count` most frequent queries of two or more words that share no word, then a vague one for two shoppers.

    Args:
        reader: an open reader.
        queries: `data/profiles/queries.parquet`.

    Raises:
        DataError: the file is missing or holds no query.
    """
    try:
        table = pq.read_table(queries, columns=["query", "requests"])
    except OSError as error:
        raise DataError(f"{queries}: cannot be read ({error}); run the build_profiles stage first") from None
    table = table.sort_by([("requests", "descending"), ("query", "ascending")])
    frequent: list[str] = table.column("query").to_pylist()
    if not frequent:
        raise DataError(f"{queries} holds no query; give one: `mrse search QUERY`")
    return [*map(Question, _different(frequent, count)), *_two_tastes(reader, frequent)]


def _different(frequent: list[str], count: int) -> list[str]:
    chosen: list[str] = []
    used: set[str] = set()
    for query in frequent:
        words = set(query.split())
        if len(words) >= 2 and not words & used:
            chosen.append(query)
            used |= words
        if len(chosen) == count:
            return chosen
    return [*chosen, *(query for query in frequent if query not in chosen)][:count]


def _two_tastes(reader: Reader, frequent: list[str]) -> list[Question]:
    """The vague query for the two shoppers whom it means the most different things to; none where nobody is known."""
    vague = next((query for query in frequent if len(query.split()) == 1), None)
    shoppers = reader.pair.shoppers
    found = {user: shoppers.history(user) for user in shoppers.busiest(_SHOPPERS)}
    known = {user: history.item_ids for user, history in found.items() if history is not None and history.item_ids}
    users = list(known)
    if vague is None or len(users) < 2:
        return []
    vectors_UD = reader.pair.encode([vague] * len(users), users)
    similar_UU = vectors_UD @ vectors_UD.T
    first, second = np.unravel_index(int(np.argmin(similar_UU)), similar_UU.shape)
    return [Question(vague, user, tuple(known[user][:_RECENT])) for user in (users[first], users[second])]

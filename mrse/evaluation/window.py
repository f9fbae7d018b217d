"""The frozen window: which requests are asked, what is relevant to each, whose they are, and what was left out.

Legend of the shape suffixes: Q requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mrse.evaluation.metrics import Labels
from mrse.model.arrays import History
from mrse.profiles import tables

Source = Literal["events", "judgments"]
COLUMNS = [
    "split", "request_id", "source", "query", "user_id", "relevant", "gains", "hist_items", "hist_actions", "hist_ages",
    "profile_asof", "shown", "shown_actions",
]  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Requests of one source, in the order of the file.

    Attributes:
        source: where they come from.
        request_ids, queries, users, histories: column by column; a user is `None` where nobody is logged in.
        labels: what each request was looking for.
        relevant: positions of the relevant items of each request.
        ordered: those of them that were ordered from the page that was shown.
        clusters: the shopper of each request, or its query where no shopper is known (Q,).
        left_out: how many test requests were not asked, by reason.
        hash: sha256 over all of it and the catalogue's ids.
    """

    source: Source
    request_ids: list[str]
    queries: list[str]
    users: list[str | None]
    histories: list[History | None]
    labels: Labels
    relevant: list[list[int]]
    ordered: list[list[int]]
    clusters: npt.NDArray[np.int64]
    left_out: dict[str, int]
    hash: str

    def __len__(self) -> int:
        return len(self.request_ids)

    @property
    def lengths(self) -> list[int]:
        """Length of each request's history."""
        return [0 if history is None else len(history.item_ids) for history in self.histories]


@dataclass(frozen=True)
class Window:
    """The test requests of `data/profiles/requests.parquet`."""

    asked: dict[Source, Asked]
    asof: datetime | None


def read_window(profiles: Path, item_ids: Sequence[str], relevant_grade: float, most: int) -> Window:
    """Read and freeze the test requests.

    Args:
        profiles: `data/profiles`.
        item_ids: the catalogue, ascending.
        relevant_grade: a judged item is relevant from this grade on; an engaged one always is.
        most: at most so many requests per source, the same ones every time.

    Raises:
        DataError: the file is missing or lacks a column.
    """
    table = tables.read(profiles / "requests.parquet", COLUMNS, split="test")
    position = {item: at for at, item in enumerate(item_ids)}
    rows = table.to_pylist()
    known = [row["profile_asof"] for row in rows if row["profile_asof"] is not None]
    thresholds: dict[Source, float] = {"events": 0.0, "judgments": relevant_grade}
    asked = {
        source: _freeze(source, [row for row in rows if row["source"] == source], position, threshold, most)
        for source, threshold in thresholds.items()
    }
    # The oldest profiles serve every request: none then knows its own future.
    return Window(asked, min(known, default=None))


def _freeze(
    source: Source, rows: list[dict[str, Any]], position: Mapping[str, int], threshold: float, most: int
) -> Asked:
    usable = []
    unknown = 0
    for row in rows:
        gains = {i: g for i, g in zip(row["relevant"], row["gains"], strict=True) if i in position}
        unknown += len(row["relevant"]) - len(gains)
        if any(gain > 0 and gain >= threshold for gain in gains.values()):
            usable.append(row | {"wanted": {position[item]: float(gain) for item, gain in gains.items()}})
    kept = sample(usable, most)
    left_out = {
        "no relevant item in the catalogue": len(rows) - len(usable),
        "beyond gate.max_requests": len(usable) - len(kept),
        "relevant items that are not in the catalogue": unknown,
    }
    wanted = [row["wanted"] for row in kept]
    labels = Labels.build([list(w) for w in wanted], [list(w.values()) for w in wanted], len(position), threshold)
    return Asked(
        source=source,
        request_ids=[row["request_id"] for row in kept],
        queries=[row["query"] for row in kept],
        users=[row["user_id"] for row in kept],
        histories=[history_of(row) for row in kept],
        labels=labels,
        relevant=[[item for item, gain in w.items() if gain > 0 and gain >= threshold] for w in wanted],
        ordered=[_ordered(row, position) for row in kept],
        clusters=cluster_codes(kept),
        left_out={reason: count for reason, count in left_out.items() if count},
        hash=_hash(kept, position),
    )


def _ordered(row: dict[str, Any], position: Mapping[str, int]) -> list[int]:
    actions = dict(zip(row["shown"] or [], row["shown_actions"] or [], strict=True))
    return [position[item] for item, action in actions.items() if action == "order" and item in position]


def sample(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many rows, picked by a hash of their ids: the same ones on every machine and for every model."""
    if len(rows) <= most:
        return rows
    ordered = sorted(range(len(rows)), key=lambda at: hashlib.sha256(rows[at]["request_id"].encode()).digest())
    return [rows[at] for at in sorted(ordered[:most])]


def history_of(row: dict[str, Any]) -> History | None:
    """The history of a row of `requests.parquet`."""
    if not row["hist_items"]:
        return None
    return History(row["hist_items"], row["hist_actions"], row["hist_ages"])


def cluster_codes(rows: list[dict[str, Any]]) -> npt.NDArray[np.int64]:
    """The shopper of each row, or its query where no shopper is known, as numbers (Q,)."""
    codes: dict[tuple[str, str], int] = {}
    units = [("query", row["query"]) if row["user_id"] is None else ("user", row["user_id"]) for row in rows]
    return np.array([codes.setdefault(unit, len(codes)) for unit in units], dtype=np.int64)


def _hash(rows: list[dict[str, Any]], position: Mapping[str, int]) -> str:
    digest = hashlib.sha256("\n".join(position).encode())
    for row in rows:
        said = (row["request_id"], row["query"], row["user_id"], sorted(row["wanted"].items()), row["hist_items"])
        digest.update(json.dumps(said, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()

"""The pages that the shop showed in the test days, with a click or without, as the replay reads them.

`requests.parquet` holds only requests with an engagement; a page without one says as much about a ranking, so those are
read from the events. Their shoppers' histories are those of `users.parquet` before the page: what a shopper has put
behind more than a history's length of later engagements is lost from them.

Cost: one pass over the test days' events; memory is that of the sampled sessions' rows and of `users.parquet`.

Legend of the shape suffixes: P pages, L slots of a page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrse.data.contract import BATCH_ROWS, event_files
from mrse.evaluation.lexical import terms
from mrse.evaluation.ranking import EMPTY, Ranking
from mrse.evaluation.replay import Pages
from mrse.evaluation.window import cluster_codes, history_of, sample
from mrse.model.arrays import History
from mrse.profiles import tables

SLOTS = 20  # positions beyond are not replayed
_POPULARITY = (1, 3, 10, 30)
_SHOWN = ["shown", "shown_positions", "shown_propensities", "shown_actions"]
_ASKED = ["split", "request_id", "source", "query", "user_id", "hist_items", "hist_actions", "hist_ages"]
_LOGGED = ["event_time", "session_id", "user_id", "query", "item_id", "position", "action", "propensity"]


@dataclass(frozen=True)
class Log:
    """The pages and what was asked for each, column by column; ids are those of `requests.parquet`."""

    pages: Pages
    request_ids: list[str]
    queries: list[str]
    histories: list[History | None]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.queries)


def read_pages(clean: Path, profiles: Path, item_ids: Sequence[str], asof: datetime | None, most: int) -> Log:
    """Read the pages of the test days.

    Args:
        clean: `data/clean`.
        profiles: `data/profiles`.
        item_ids: the catalogue, ascending.
        asof: the start of the test days; None: the shop has no events, hence no pages.
        most: at most so many pages with an engagement, and the same share of those without.

    Raises:
        DataError: a file is missing or lacks a column.
    """
    position = {item: at for at, item in enumerate(item_ids)}
    rows: list[dict[str, Any]] = []
    if asof is not None:
        table = tables.read(profiles / "requests.parquet", [*_ASKED, *_SHOWN], split="test")
        engaged = table.filter(pc.equal(table["source"], "events")).to_pylist()
        kept = sample(engaged, most)
        share = len(kept) / len(engaged) if engaged else 1.0
        rows = [*kept, *_without_engagement(clean, profiles, asof, share)]
    usable = [row for row in rows if _is_usable(row)]
    left_out = {"pages without positions or propensities, or shown twice": len(rows) - len(usable)}
    return Log(
        pages=_arrange(usable, position),
        request_ids=[row["request_id"] for row in usable],
        queries=[row["query"] for row in usable],
        histories=[history_of(row) for row in usable],
        left_out={reason: count for reason, count in left_out.items() if count},
    )


class Cells:
    """The cell of the reward model that a (query, item) is in: how much of the query the text holds, how popular it is.

    Args:
        texts: title and category of each item.
        clicks: clicks of each item before the test days.
    """

    def __init__(self, texts: Sequence[str], clicks: npt.NDArray[np.int64]) -> None:
        self._texts = texts
        self._popularity = np.searchsorted(_POPULARITY, clicks, side="right")
        self._terms: dict[int, frozenset[str]] = {}

    def of(self, queries: Sequence[str], items_PL: Ranking) -> npt.NDArray[np.int64]:
        """Cells of a page's items for its query (P, L); 0 where there is none."""
        asked = {query: frozenset(terms(query)) for query in set(queries)}
        cells_PL = np.zeros(items_PL.shape, dtype=np.int64)
        for page, query in enumerate(queries):
            for slot, item in enumerate(items_PL[page].tolist()):
                if item != EMPTY:
                    cells_PL[page, slot] = 4 * self._popularity[item] + self._match(asked[query], item)
        return cells_PL

    def _match(self, asked: frozenset[str], item: int) -> int:
        """0: no word of the query; 1: up to a half; 2: more; 3: all."""
        if item not in self._terms:
            self._terms[item] = frozenset(terms(self._texts[item]))
        found = len(asked & self._terms[item])
        if found == 0:
            return 0
        return 3 if found == len(asked) else 1 + (2 * found > len(asked))


def _without_engagement(clean: Path, profiles: Path, asof: datetime, share: float) -> list[dict[str, Any]]:
    """Rows like those of `requests.parquet` for the (session, query) pairs that were shown a page and left it alone."""
    batches = list(_logged_rows(clean, asof, share))
    if not batches:
        return []
    table = pa.Table.from_batches(batches)
    engaged = pc.cast(pc.not_equal(table["action"], "impression"), pa.int8())
    keys = ["session_id", "query"]
    lists = [(name, "list") for name in ("item_id", "position", "propensity")]
    wanted = [("engaged", "max"), ("user_id", "max"), ("event_time", "min"), *lists]
    groups = table.append_column("engaged", engaged).group_by(keys, use_threads=False).aggregate(wanted)
    groups = groups.filter(pc.equal(groups["engaged_max"], 0)).sort_by([(key, "ascending") for key in keys])
    rows = groups.to_pylist()
    histories = _histories(profiles, {row["user_id_max"] for row in rows} - {None})
    return [_row(row, histories.get(row["user_id_max"], [])) for row in rows]


def _logged_rows(clean: Path, asof: datetime, share: float) -> Iterator[pa.RecordBatch]:
    """Rows with a query of the sampled sessions from `asof` on."""
    first = f"dt={asof.date().isoformat()}"
    for path in event_files(clean):
        if not first <= path.parent.name < "dt=_":  # rows without a time are in a folder of their own
            continue
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=_LOGGED):
                kept = pc.and_(pc.greater_equal(batch["event_time"], pa.scalar(asof)), pc.is_valid(batch["query"]))
                yield _sampled(batch.filter(kept), share)


def _sampled(batch: pa.RecordBatch, share: float) -> pa.RecordBatch:
    if share >= 1.0:
        return batch
    codes = batch["session_id"].dictionary_encode()
    within = pa.array([_place(name) < share for name in codes.dictionary.to_pylist()], pa.bool_())
    return batch.filter(within.take(codes.indices))


def request_id(session: str, query: str) -> str:
    """How `build_profiles` names a request of the test days."""
    return "e-" + hashlib.md5(f"test\n{session}\n{query}".encode(), usedforsecurity=False).hexdigest()[:16]


def _place(name: str) -> float:
    """Where a name falls between 0 and 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _histories(profiles: Path, users: set[str]) -> dict[str, list[tuple[str, str, datetime]]]:
    columns = ["user_id", "hist_items", "hist_actions", "hist_times"]
    table = tables.read(profiles / "users.parquet", columns)
    table = table.filter(pc.is_in(table["user_id"], pa.array(sorted(users), pa.string())))
    return {
        row["user_id"]: list(zip(row["hist_items"], row["hist_actions"], row["hist_times"], strict=True))
        for row in table.to_pylist()
    }


def _row(group: dict[str, Any], history: list[tuple[str, str, datetime]]) -> dict[str, Any]:
    at = group["event_time_min"]
    earlier = [(item, action, (at - when).total_seconds() / 3600.0) for item, action, when in history if when < at]
    items, actions, ages = ([entry[column] for entry in earlier] for column in range(3))
    return {
        "request_id": request_id(group["session_id"], group["query"]),
        "query": group["query"],
        "user_id": group["user_id_max"],
        "hist_items": items,
        "hist_actions": actions,
        "hist_ages": ages,
        "shown": group["item_id_list"],
        "shown_positions": group["position_list"],
        "shown_propensities": group["propensity_list"],
        "shown_actions": ["impression"] * len(group["item_id_list"]),
    }


def _is_usable(row: dict[str, Any]) -> bool:
    """One page, each slot with its position and its propensity."""
    positions, propensities = row["shown_positions"] or [], row["shown_propensities"] or []
    known = None not in positions and None not in propensities and len(set(positions)) == len(positions)
    return bool(positions) and known and min(positions) >= 1 and all(0.0 < value <= 1.0 for value in propensities)


def _arrange(rows: list[dict[str, Any]], position: dict[str, int]) -> Pages:
    items_PL = np.full((len(rows), SLOTS), EMPTY, dtype=np.int32)
    propensities_PL = np.ones((len(rows), SLOTS))
    clicked_PL, ordered_PL = np.zeros((2, len(rows), SLOTS), dtype=bool)
    for page, row in enumerate(rows):
        for item, place, propensity, action in zip(*(row[name] for name in _SHOWN), strict=True):
            if place <= SLOTS and item in position:
                items_PL[page, place - 1] = position[item]
                propensities_PL[page, place - 1] = propensity
                clicked_PL[page, place - 1] = action != "impression"
                ordered_PL[page, place - 1] = action == "order"
    lengths_P = np.array([min(SLOTS, max(row["shown_positions"])) for row in rows], dtype=np.int64)
    return Pages(items_PL, propensities_PL, clicked_PL, ordered_PL, lengths_P, cluster_codes(rows))

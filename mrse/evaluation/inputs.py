"""What an evaluation reads, apart from the models: catalogue, frozen requests, slices.

The gate and the ablations read it alike, so that their figures are of the same requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mrse.config import GateConfig
from mrse.data.contract import SnapshotMeta, read_items, read_meta
from mrse.evaluation.gate import Window as GateWindow
from mrse.evaluation.report import ItemTable
from mrse.evaluation.slices import CatalogueFacts, Requests, Slices, make_slices
from mrse.evaluation.window import Asked, Source, Window, read_window
from mrse.layout import CLEAN, PROFILES
from mrse.model.arrays import item_text
from mrse.profiles import tables


@dataclass(frozen=True)
class Inputs:
    """One workspace's held-out requests and what they are asked of.

    Attributes:
        items: the catalogue.
        meta: where the data comes from.
        window: the test requests of every source.
        source: the source whose requests decide.
        slices: masks over the deciding requests.
        query_counts: how often each query was asked before the test days.
        clicks: of each item before the test days; None without events.
    """

    items: ItemTable
    meta: SnapshotMeta
    window: Window
    source: Source
    slices: Slices
    query_counts: dict[str, int]
    clicks: npt.NDArray[np.int64] | None

    @property
    def asked(self) -> Asked:
        """The requests that decide."""
        return self.window.asked[self.source]

    @property
    def sources(self) -> dict[Source, Asked]:
        """Every source that has requests, and the deciding one even when it has none."""
        return {name: asked for name, asked in self.window.asked.items() if len(asked) or name == self.source}

    @property
    def gate_window(self) -> GateWindow:
        """The deciding requests as the rule sees them."""
        asked = self.asked
        return GateWindow(asked.hash, asked.request_ids, asked.clusters, self.slices)


def read_inputs(config: GateConfig, workspace: Path) -> Inputs:
    """Read and freeze.

    Args:
        config: section `gate`.
        workspace: the folder that holds `data/clean` and `data/profiles`.

    Raises:
        DataError: the catalogue or the requests are missing or unreadable.
    """
    clean, profiles = workspace / CLEAN, workspace / PROFILES
    items = _item_table(clean)
    window = read_window(profiles, items.ids, config.relevant_grade, config.max_requests)
    source: Source = "events" if len(window.asked["events"]) else "judgments"
    if config.requests != "auto":
        source = config.requests
    asked = window.asked[source]
    requests = Requests(asked.queries, asked.users, asked.lengths, asked.relevant, asked.ordered)
    clicks, counts = _clicks(profiles, items.ids, window), _query_counts(profiles)
    facts = CatalogueFacts(items.texts, items.has_image, clicks, items.categories)
    slices = make_slices(requests, facts, counts, config.vague_share)
    return Inputs(items, read_meta(clean), window, source, slices, counts, clicks)


def _item_table(clean: Path) -> ItemTable:
    table = read_items(clean).sort_by("item_id")
    columns: dict[str, list[Any]] = {
        name: table.column(name).to_pylist() for name in ("item_id", "title", "category", "price", "image")
    }
    texts = [item_text(t, c) for t, c in zip(columns["title"], columns["category"], strict=True)]
    return ItemTable(
        columns["item_id"], columns["title"], columns["category"], columns["price"], columns["image"], texts
    )


def _query_counts(profiles: Path) -> dict[str, int]:
    table = tables.read(profiles / "queries.parquet", ["query", "requests"])
    return dict(zip(table.column("query").to_pylist(), table.column("requests").to_pylist(), strict=True))


def _clicks(profiles: Path, item_ids: list[str], window: Window) -> npt.NDArray[np.int64] | None:
    """Clicks of each item before the test days; `None` without events. Rows are sorted by `asof`: the last counts."""
    if window.asof is None:
        return None
    table = tables.read(profiles / "items.parquet", ["item_id", "asof", "clicks"])
    known = {row["item_id"]: row["clicks"] for row in table.to_pylist() if row["asof"] <= window.asof}
    return np.array([known.get(item, 0) for item in item_ids], dtype=np.int64)

"""The golden requests: those of a shop's first window, kept as they were, so that slow decay is seen.

A window follows the shop: its requests, its shoppers and what they look for change with it. The golden requests do not.
They are frozen by the shop's first decision and live in MLflow (experiment `mrse-golden`), which every gate can read
wherever it runs. Each decision scores them by challenger, champion and BM25 over the catalogue of its own day; BM25,
which learns nothing, tells how much of a fall is the catalogue's.

Cost: encoding at most `MOST` queries per model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mrse import tracking
from mrse.config import GateConfig, ServicesConfig
from mrse.data.contract import SnapshotMeta, write_parquet
from mrse.errors import DataError
from mrse.evaluation.window import COLUMNS, Asked, Source, read_window, sample
from mrse.jsonfile import read_json, write_json
from mrse.layout import PROFILES
from mrse.profiles import tables

MOST = 2000
_ARTIFACT = "golden"  # folder among the artifacts of the one run
_FACTS, _REQUESTS = "golden.json", "requests.parquet"


@dataclass(frozen=True)
class Golden:
    """The golden requests as today's catalogue can be asked them.

    Attributes:
        asked: those of which a relevant item is still sold.
        facts: `shop`, `source`, `start` and `end` of the window that they were frozen from, `requests`, `sha256`.
    """

    asked: Asked
    facts: dict[str, Any]

    def seen_by(self, meta: SnapshotMeta) -> bool:
        """Whether a model of this window's data may have learned from the golden days themselves."""
        frozen: str = self.facts["end"]
        return self.facts["source"] == "events" and meta.start.isoformat() < frozen < meta.end.isoformat()


def find_golden(
    services: ServicesConfig,
    config: GateConfig,
    workspace: Path,
    source: Source,
    meta: SnapshotMeta,
    item_ids: list[str],
    folder: Path,
) -> Golden:
    """Fetch the shop's golden requests into `folder`, or freeze this window's where there are none yet.

    Args:
        services: where MLflow is.
        config: section `gate`.
        workspace: the folder that holds `data/profiles`.
        source: whose requests are frozen.
        meta: the window that they are frozen from.
        item_ids: the catalogue, ascending.
        folder: gets `requests.parquet` and `golden.json`.

    Raises:
        DataError: what MLflow holds is not what was frozen.
    """
    kept = _kept(services, meta.shop)
    if kept:
        tracking.download_artifacts(services, kept[0].run_id, _ARTIFACT, folder)
    else:
        _freeze(workspace / PROFILES, source, meta, folder)
    facts = read_json(folder / _FACTS)
    if _sha256(folder / _REQUESTS) != facts["sha256"]:
        raise DataError(f"the golden requests of MLflow run {kept[0].run_id} are not what was frozen: other sha256")
    asked = read_window(folder, item_ids, config.relevant_grade, MOST).asked[facts["source"]]
    return Golden(asked, facts)


def keep_golden(services: ServicesConfig, folder: Path) -> None:
    """Log the golden requests of `folder` where MLflow has none of their shop yet."""
    facts = read_json(folder / _FACTS)
    if facts["requests"] and not _kept(services, facts.get("shop", "")):
        tracking.log_record(services, tracking.GOLDEN, name="golden", tags=facts, metrics={}, artifacts=[folder])


def _kept(services: ServicesConfig, shop: str) -> list[tracking.Record]:
    """The run of this shop: another one's requests want items that this one does not sell."""
    records = tracking.list_records(services, tracking.GOLDEN)
    return [record for record in records if record.tags.get("shop", "") == shop]


def _freeze(profiles: Path, source: Source, meta: SnapshotMeta, folder: Path) -> None:
    table = tables.read(profiles / _REQUESTS, COLUMNS, split="test")
    rows = table.filter(pc.equal(table.column("source"), source)).to_pylist()
    kept = sample(rows, MOST)
    write_parquet(pa.Table.from_pylist(kept, table.schema), folder / _REQUESTS)
    facts = {"shop": meta.shop, "source": source, "start": meta.start.isoformat(), "end": meta.end.isoformat()}
    write_json(folder / _FACTS, facts | {"requests": len(kept), "sha256": _sha256(folder / _REQUESTS)})


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

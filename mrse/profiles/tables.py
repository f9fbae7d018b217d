"""Columns and types of the files that `build_profiles` writes (docs/contracts.md)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mrse.data.contract import TIME
from mrse.errors import DataError

_TEXTS = pa.list_(pa.string())
_FLOATS = pa.list_(pa.float32())
_HISTORY = {"hist_items": _TEXTS, "hist_actions": _TEXTS, "hist_ages": _FLOATS}

USERS = pa.schema(
    {
        "user_id": pa.string(),
        "hist_items": _TEXTS,
        "hist_actions": _TEXTS,
        "hist_times": pa.list_(TIME),
        "events": pa.int64(),
    }
)
ITEMS = pa.schema(
    {
        "item_id": pa.string(),
        "asof": TIME,
        "queries": _TEXTS,
        "query_weights": _FLOATS,
        "co_items": _TEXTS,
        "co_weights": _FLOATS,
        "popularity": pa.float64(),
        "impressions": pa.int64(),
        "clicks": pa.int64(),
        "orders": pa.int64(),
    }
)
EXAMPLES = pa.schema(
    {
        "split": pa.string(),
        "event_time": TIME,
        "session_id": pa.string(),
        "user_id": pa.string(),
        "query": pa.string(),
        "item_id": pa.string(),
        "action": pa.string(),
        "weight": pa.float32(),
        "hard_negatives": _TEXTS,
        **_HISTORY,
        "profile_asof": TIME,
    }
)
REQUESTS = pa.schema(
    {
        "split": pa.string(),
        "request_id": pa.string(),
        "source": pa.string(),
        "query": pa.string(),
        "user_id": pa.string(),
        "event_time": TIME,
        "relevant": _TEXTS,
        "gains": _FLOATS,
        **_HISTORY,
        "profile_asof": TIME,
        "shown": _TEXTS,
        "shown_positions": pa.list_(pa.int32()),
        "shown_propensities": pa.list_(pa.float64()),
        "shown_actions": _TEXTS,
    }
)
QUERIES = pa.schema({"query": pa.string(), "requests": pa.int64()})


def read(path: Path, columns: list[str] | None = None, split: str | None = None) -> pa.Table:
    """Read one of the files.

    Args:
        path: in `data/profiles`.
        columns: None: all.
        split: the rows of this split alone; None: all.

    Raises:
        DataError: it is missing or lacks a column; the message names the stage to run.
    """
    try:
        return pq.read_table(path, columns=columns, filters=None if split is None else [("split", "=", split)])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the build_profiles stage first") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable table ({error}); run build_profiles again") from None

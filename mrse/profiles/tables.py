"""Columns and types of the files that `build_profiles` writes (docs/contracts.md)."""

from __future__ import annotations

import pyarrow as pa

from mrse.data.contract import TIME

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

"""The tables that the suites look at: the contract's columns, and derived ones that make a rule one look-up.

Strings stay dictionaries, so that a text is judged once however many rows hold it; a batch of 400,000 events costs
about 0.1 s here. Derived columns:

| column | table | is |
|---|---|---|
| `<column>_text` | all | `fine`, `missing` (null or blank), `invalid_utf8`, `too_long` or `control_characters` |
| `newest_copy` | items | False for all but the newest usable row of an `item_id` |
| `item_known` | events, judgments | the item is in the clean catalogue |
| `first_copy` | events, judgments | False for a row that repeats an earlier one exactly |
| `was_shown` | events | for a click: the item was shown for that query in that session; null on days that log none |
| `was_clicked` | events | for an order: likewise clicked |
| `agrees` | judgments | False where the same query and item have different grades |

`was_shown` and `was_clicked` look at the whole batch of days and the hours before it, whichever event came first: the
clocks of clients and servers disagree, and two events in the wrong order are no reason to drop one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mrse.config import ValidateConfig
from mrse.data.contract import EVENTS

TEXT_STATES = ("fine", "missing", "invalid_utf8", "too_long", "control_characters")
_FINE, _MISSING, _INVALID, _TOO_LONG, _CONTROL = range(5)
_CONTROLS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"  # tabs and line ends are white space, not these
_DAY_US = 86_400_000_000

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
Codes = np.ndarray[tuple[int], np.dtype[np.int64]]
Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]


def items_frame(table: pa.Table, config: ValidateConfig) -> pd.DataFrame:
    """The frame of suite `items`; row i is row i of `table`."""
    frame = _base(table)
    limits = {"item_id": config.max_id_chars, "title": config.max_title_chars, "category": config.max_title_chars}
    for column, limit in limits.items():
        frame[f"{column}_text"] = text_states(table[column], limit, null_is_missing=column != "category")
    usable = (frame["title_text"] != "missing") & (frame["title_text"] != "invalid_utf8")
    frame["newest_copy"] = _newest_copy(frame, usable.to_numpy())
    return frame


def judgments_frame(table: pa.Table, known: pa.Array, config: ValidateConfig) -> pd.DataFrame:
    """The frame of suite `judgments`. `known` holds the ids of the clean catalogue."""
    frame = _base(table)
    frame["query_text"] = text_states(table["query"], config.max_query_chars)
    frame["item_id_text"] = text_states(table["item_id"], config.max_id_chars)
    frame["item_known"] = _known(table["item_id"], known)
    pair = frame.groupby(["query", "item_id"], observed=True, sort=False, dropna=False)["grade"]
    frame["agrees"] = (pair.transform("min") == pair.transform("max")) | frame["grade"].isna()
    frame["first_copy"] = ~frame.duplicated(["query", "item_id", "grade"])
    return frame


@dataclass
class Session:
    """What must be remembered from one batch of days to the next: sessions do not end at midnight.

    Attributes:
        impressions, clicks: hashes of (session, query, item) of the last hours of the previous batch.
    """

    hours: int = 6
    impressions: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    clicks: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))


def events_frame(table: pa.Table, known: pa.Array, config: ValidateConfig, session: Session) -> pd.DataFrame:
    """The frame of suite `events` for whole days of events.

    Args:
        table: the events of one or several whole days, strings as dictionaries, oldest day first.
        known: the ids of the clean catalogue.
        config: limits of lengths.
        session: carried from batch to batch; updated in place.
    """
    frame = _base(table)
    limits = {"session_id": config.max_id_chars, "item_id": config.max_id_chars, "query": config.max_query_chars}
    for column, limit in limits.items():
        frame[f"{column}_text"] = text_states(table[column], limit)
    frame["user_id_text"] = text_states(table["user_id"], config.max_id_chars, null_is_missing=False)
    frame["item_known"] = _known(table["item_id"], known)
    frame["first_copy"] = _first_copy(table)
    frame["was_shown"], frame["was_clicked"] = _funnel(table, frame, session)
    return frame


def text_states(column: pa.ChunkedArray, max_chars: int, null_is_missing: bool = True) -> pd.Categorical[str]:
    """Judge every text of a column: one of `TEXT_STATES`, or null for a null when `null_is_missing` is False."""
    values, codes = dictionary(column)
    of_value = np.append(_judge(values, max_chars), _MISSING if null_is_missing else -1)
    return pd.Categorical.from_codes(of_value[codes], categories=pd.Index(TEXT_STATES))


def clean_text(column: pa.ChunkedArray, max_chars: int) -> pa.ChunkedArray:
    """The outcome `cleaned`: control characters become spaces, and text beyond `max_chars` is cut off."""
    spaced = pc.replace_substring_regex(column.cast(pa.string()), _CONTROLS, " ")
    return pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(spaced, 0, max_chars))


def dictionary(column: pa.ChunkedArray) -> tuple[pa.Array, Codes]:
    """The distinct values of a string column and each row's place among them; -1 (the last) for null."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array = encoded.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # a table without rows
        return pa.array([], pa.string()), np.empty(0, np.int64)
    codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
    return array.dictionary, codes.astype(np.int64, copy=False)


def value_hashes(values: pa.Array) -> Hashes:
    """A 64-bit hash per text, the same in every process; the last one, where code -1 points, is the hash of null."""
    hashed = pd.util.hash_array(values.to_numpy(zero_copy_only=False), categorize=False)
    return np.append(hashed, np.uint64(0x9E3779B97F4A7C15))


def combine(parts: Iterable[Hashes]) -> Hashes:
    """One hash per row from the hashes of several columns."""
    parts = list(parts)
    total = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        total = (total ^ part) * np.uint64(0x100000001B3)
        total ^= total >> np.uint64(29)
    return total


def row_hashes(table: pa.Table, columns: Iterable[str]) -> Hashes:
    """A 64-bit hash per row over some columns."""
    return combine(_column_hashes(table[name]) for name in columns)


def days_of(column: pa.ChunkedArray, start_us: int) -> Codes:
    """The day of each time, counted from `start_us`; null counts as a day before the window."""
    micros = pc.fill_null(column.cast(pa.int64()), start_us - _DAY_US)
    days: Codes = (micros.to_numpy() - start_us) // _DAY_US
    return days


def _base(table: pa.Table) -> pd.DataFrame:
    """The table's columns. A NaN becomes infinity, for pandas takes NaN for null and ranges let null pass."""
    for place, column in enumerate(table.schema):
        if pa.types.is_floating(column.type):
            values = table.column(place).cast(pa.float64())
            values = pc.if_else(pc.is_nan(values), np.inf, values)
            table = table.set_column(place, column.name, values)
        if pa.types.is_integer(column.type):  # Great Expectations compares other numbers one by one
            table = table.set_column(place, column.name, table.column(place).cast(pa.float64(), safe=False))
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _judge(values: pa.Array, max_chars: int) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    control = pc.match_substring_regex(values, _CONTROLS)
    plain = pc.replace_substring_regex(values, _CONTROLS, " ") if pc.any(control).as_py() else values
    states = np.full(len(values), _FINE, np.int8)
    states[_np(control)] = _CONTROL
    states[_np(pc.greater(pc.utf8_length(values), max_chars))] = _TOO_LONG
    states[_np(pc.match_substring(values, "\ufffd"))] = _INVALID
    states[_np(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(plain)), 0))] = _MISSING
    return states


def _np(mask: pa.Array) -> Mask:
    values: Mask = mask.to_numpy(zero_copy_only=False).astype(bool)
    return values


def _newest_copy(frame: pd.DataFrame, usable: Mask) -> Mask:
    """True for the newest usable row of each id, and for rows that other rules judge."""
    judged = pd.DataFrame({"item_id": frame["item_id"], "at": frame["updated_at"], "row": np.arange(len(frame))})
    judged = judged[usable & frame["item_id"].notna().to_numpy()]
    newest = judged.sort_values(["at", "row"], ascending=[False, True], na_position="last", kind="stable")
    repeated = newest.loc[newest["item_id"].duplicated(), "row"].to_numpy()
    mask = np.ones(len(frame), bool)
    mask[repeated] = False
    return mask


def _known(column: pa.ChunkedArray, known: pa.Array) -> Mask:
    values, codes = dictionary(column)
    of_value = np.append(_np(pc.is_in(values, value_set=known)), True)  # a null id has a reason of its own
    return of_value[codes]


def _first_copy(table: pa.Table) -> Mask:
    """False for exact repeats. Hashes find the few suspects; only those are compared in full."""
    names = EVENTS.names
    suspects = np.flatnonzero(pd.Series(row_hashes(table, names)).duplicated(keep=False).to_numpy())
    mask = np.ones(table.num_rows, bool)
    if len(suspects):
        rows = table.select(names).take(pa.array(suspects)).to_pandas()
        mask[suspects[rows.astype(object).duplicated().to_numpy()]] = False
    return mask


def _column_hashes(column: pa.ChunkedArray) -> Hashes:
    if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
        values, codes = dictionary(column)
        return value_hashes(values)[codes]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return pd.util.hash_array(column.to_numpy())


def _funnel(table: pa.Table, frame: pd.DataFrame, session: Session) -> tuple[pd.Series, pd.Series]:
    """`was_shown` and `was_clicked`: True, False, or null where the rule says nothing about the row."""
    keys = row_hashes(table, ("session_id", "query", "item_id"))
    action = frame["action"].to_numpy()
    impression, click, order = (action == name for name in ("impression", "click", "order"))
    shown_keys = np.concatenate([session.impressions, keys[impression]])
    clicked_keys = np.concatenate([session.clicks, keys[click]])
    days = days_of(table["event_time"], 0)
    logged = np.isin(days, np.unique(days[impression]))  # a day without impressions cannot tell
    shown = _where(click & logged, keys, shown_keys)
    clicked = _where(order & np.isin(days, np.unique(days[click])), keys, clicked_keys)
    recent = _recent(table, session.hours)
    session.impressions, session.clicks = np.unique(keys[impression & recent]), np.unique(keys[click & recent])
    return shown, clicked


def _where(rows: Mask, keys: Hashes, seen: Hashes) -> pd.Series:
    result = np.full(len(keys), -1, np.int8)
    result[rows] = pd.Series(keys[rows]).isin(seen)
    return pd.Series(pd.Categorical.from_codes(result, categories=pd.Index([False, True], dtype=object)))


def _recent(table: pa.Table, hours: int) -> Mask:
    micros = pc.fill_null(table["event_time"].cast(pa.int64()), 0).to_numpy()
    recent: Mask = micros >= (micros.max(initial=0) - hours * 3_600_000_000)
    return recent

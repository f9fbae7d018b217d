"""What validation costs beside a bare pandas scan with the same checks, and whether its memory grows with the days.

    python benchmarks/validation.py [--rows-per-day 700000] [--days 2]

Both sides read the same Parquet once, check the same things and count the rows that break each rule; validation also
writes the clean tables, the quarantine and the report. Each measurement is a process of its own; imports do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mrse import config
from mrse.data import contract

START = datetime(2025, 3, 1, tzinfo=UTC)
ITEMS, USERS, QUERIES = 40_000, 20_000, 5_000
LISTED = 24  # impressions per request
_CONTROLS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
_TEXTS = {"session_id": 256, "query": 1000, "item_id": 256, "user_id": 256}


def make_shop(folder: Path, rows_per_day: int, days: int) -> None:
    """A snapshot with requests of 24 impressions and a few clicks; 0.1% of the rows break a rule."""
    ids = np.array([f"item{n:06d}" for n in range(ITEMS)])
    titles = [f"Blue cotton shirt number {n}" for n in range(ITEMS)]
    items = pa.table({"item_id": ids, "title": titles, "price": np.full(ITEMS, 9.5)})
    empty = {"category": pa.nulls(ITEMS, pa.string()), "image": pa.nulls(ITEMS, pa.string())}
    items = pa.table(
        {**{c: items[c] for c in items.column_names}, **empty, "updated_at": pa.nulls(ITEMS, contract.TIME)}
    )
    contract.write_parquet(items.select(contract.ITEMS.names).cast(contract.ITEMS), folder / "items.parquet")
    contract.write_parquet(contract.JUDGMENTS.empty_table(), folder / "judgments.parquet")
    rows = 0
    for day in range(days):
        table = _day(day, rows_per_day, ids)
        at = START + timedelta(days=day)
        rows += contract.write_parquet(table, folder / "events" / f"dt={at:%Y-%m-%d}" / "part-0.parquet")
    meta = contract.SnapshotMeta(
        source="files",
        start=START,
        end=START + timedelta(days=days),
        simulated=True,
        note="Made by a benchmark.",
        rows={"items": ITEMS, "events": rows, "judgments": 0},
        fingerprint="",
    )
    contract.write_meta(folder, meta)


def _day(day: int, rows: int, ids: np.ndarray) -> pa.Table:
    random = np.random.default_rng(day)
    requests = rows // LISTED
    request = np.repeat(np.arange(requests), LISTED)
    place = np.tile(np.arange(1, LISTED + 1), requests)
    second = (
        np.sort(random.integers(0, 86_000, requests)) * 1_000_000 + int(START.timestamp() * 1e6) + day * 86_400_000_000
    )
    clicked = random.random(len(request)) < 0.04
    user = random.integers(0, USERS, requests)
    query = np.minimum(random.zipf(1.3, requests), QUERIES) - 1
    item = random.integers(0, ITEMS, len(request))
    position = place.astype(np.int32)
    position[random.random(len(position)) < 0.001] = -1
    shown = {
        "event_time": second[request],
        "session_id": np.char.add(f"d{day}s", (request // 3).astype(str)),
        "user_id": np.char.add("u", user[request].astype(str)),
        "query": np.char.add("blue cotton shirt ", query[request].astype(str)),
        "item_id": ids[item],
        "position": position,
        "action": np.full(len(request), "impression", dtype="<U10"),
        "relevance": random.random(len(request)),
        "propensity": np.clip(1.0 / place, 0.01, 1.0),
    }
    clicks = {name: values[clicked] for name, values in shown.items()}
    clicks |= {"event_time": clicks["event_time"] + 5_000_000, "action": np.full(int(clicked.sum()), "click")}
    columns = {name: np.concatenate([shown[name], clicks[name]]) for name in shown}
    table = pa.table(columns).cast(contract.EVENTS)
    return table.sort_by([(key, "ascending") for key in contract.SORT_KEYS["events"]])


def scan_with_pandas(folder: Path, days: int) -> dict[str, int]:
    """The checks of suite `events`, the plain way: one day after the other, one expression per rule."""
    items = pd.read_parquet(folder / "items.parquet")
    for column, limit in {"item_id": 256, "title": 2000, "category": 2000}.items():
        _texts(items[column], limit)
    items["item_id"].duplicated().sum()
    known = set(items["item_id"])
    start, stop = pd.Timestamp(START), pd.Timestamp(START + timedelta(days=days))
    found: dict[str, int] = {}
    for path in contract.event_files(folder):
        events = pd.read_parquet(path)
        bad = {
            f"{column} {rule}": mask for column, limit in _TEXTS.items() for rule, mask in _texts(events[column], limit)
        }
        bad["no time"] = events["event_time"].isna()
        bad["outside"] = ~((events["event_time"] >= start) & (events["event_time"] < stop))
        bad["unknown item"] = ~events["item_id"].isin(known)
        bad["action"] = ~events["action"].isin(contract.ACTIONS)
        bad["position"] = events["position"] < 1
        bad["relevance"] = ~(events["relevance"].isna() | events["relevance"].between(0, 1))
        bad["propensity"] = ~(events["propensity"].isna() | events["propensity"].between(0, 1, inclusive="right"))
        bad["repeat"] = events.duplicated()
        bad["never shown"] = _unmatched(events, "click", "impression")
        bad["never clicked"] = _unmatched(events, "order", "click")
        for rule, mask in bad.items():
            found[rule] = found.get(rule, 0) + int(mask.sum())
        events["user_id"].value_counts(dropna=False)
        events["action"].value_counts()
    return {rule: count for rule, count in found.items() if count}


def _texts(column: pd.Series, limit: int) -> list[tuple[str, pd.Series]]:
    return [
        ("missing", column.isna() | (column.str.strip() == "")),
        ("too long", column.str.len() > limit),
        ("invalid", column.str.contains("\ufffd", regex=False, na=False)),
        ("control", column.str.contains(_CONTROLS, na=False)),
    ]


def _unmatched(events: pd.DataFrame, later: str, earlier: str) -> pd.Series:
    keys = ["session_id", "query", "item_id"]
    rows = events.loc[events["action"] == later, keys]
    seen = events.loc[events["action"] == earlier, keys].drop_duplicates()
    return rows.merge(seen, on=keys, how="left", indicator=True)["_merge"] == "left_only"


def _measure(what: str, folder: Path, days: int) -> None:
    """Run one side in this process and print seconds and peak memory as JSON."""
    if what == "pandas":
        started = time.perf_counter()
        scan_with_pandas(folder / "data" / "snapshot", days)
    else:
        from mrse.validation.run import validate_logs

        end = f"{START + timedelta(days=days):%Y-%m-%d}"
        params = {
            "snapshot": {"source": "files", "end": end, "days": days, "files": {"items": "items"}},
            "build_profiles": {"warmup_days": 0, "valid_days": 0, "test_days": 1},
            "services": {"state_dir": "state"},
        }
        started = time.perf_counter()
        validate_logs(config.parse(params), folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def _run(what: str, folder: Path, days: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, "--folder", str(folder), "--days", str(days)]
    environment = os.environ | {"MRSE_QUIET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _compare(rows_per_day: int, days: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shop(folder / "data" / "snapshot", rows_per_day, days)
        rows = sum(pq.read_metadata(path).num_rows for path in contract.event_files(folder / "data" / "snapshot"))
        best = {
            what: min((_run(what, folder, days) for _ in range(repeats)), key=lambda run: run["seconds"])
            for what in ("pandas", "validation")
        }
    plain, ours = best["pandas"], best["validation"]
    ratio = ours["seconds"] / plain["seconds"]
    print(
        f"{days:>4} {rows:>12,} {plain['seconds']:>10.2f} {ours['seconds']:>13.2f} {ratio:>7.2f}"
        f" {plain['peak_mib']:>12.0f} {ours['peak_mib']:>16.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows-per-day", type=int, nargs="+", default=[20_000, 700_000])
    parser.add_argument("--days", type=int, nargs="+", default=[2, 14])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--measure", choices=["pandas", "validation"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        _measure(arguments.measure, arguments.folder, arguments.days[0])
        return
    print("days       events   pandas s  validation s   ratio   pandas MiB   validation MiB")
    for rows_per_day in arguments.rows_per_day:
        for days in arguments.days:
            _compare(rows_per_day, days, arguments.repeats)


if __name__ == "__main__":
    main()

"""How fast `build_profiles` is, beside hand-written DuckDB SQL and plain pandas that make the same files.

    python benchmarks/profiles.py                 10 million events: ours and SQL; 1 million: ours and pandas
    python benchmarks/profiles.py --events 1e6 --pandas-events 1e5
    python benchmarks/profiles.py --days 7 28     peak memory of ours at these numbers of days, equal events per day

Every measurement is a process of its own (wall time, CPU time, peak memory), on every core of the machine. All versions
write sorted Parquet, and the benchmark fails when their rows differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mrse.config import ProfilesConfig
from mrse.data import contract
from mrse.profiles import tables
from mrse.profiles.build import build_profiles
from mrse.profiles.split import Split, split_window

START = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = ProfilesConfig(warmup_days=3)  # leaves a training day in a window of 7
TABLES = ("users", "items", "examples", "requests", "queries")
SHOWN = 18  # impressions of a session


def generate(folder: Path, days: int, per_day: int, shoppers: int, items: int, seed: int = 0) -> int:
    """A log with skewed queries and items, one query per session, day by day. Returns the number of events."""
    rng = np.random.default_rng(seed)
    ids = np.array([f"item-{number:06d}" for number in range(items)])
    table = pa.Table.from_pydict({"item_id": ids, "title": ids})
    empty = {name: pa.nulls(items, contract.ITEMS.field(name).type) for name in contract.ITEMS.names[2:]}
    for name, column in empty.items():
        table = table.append_column(name, column)
    contract.write_parquet(table, folder / "items.parquet")
    sessions = per_day // 20
    total = sum(_day(folder, rng, day, sessions, shoppers, ids) for day in range(days))
    drawn = zip(rng.integers(0, 500, 10_000).tolist(), rng.integers(0, items, 10_000).tolist(), strict=True)
    pairs = sorted(set(drawn))
    grades = rng.choice([0.0, 0.5, 1.0], len(pairs))
    rows = sorted((f"query words {q}", str(ids[i]), grade) for (q, i), grade in zip(pairs, grades, strict=True))
    columns = dict(zip(contract.JUDGMENTS.names, map(list, zip(*rows, strict=True)), strict=True))
    contract.write_parquet(pa.table(columns, contract.JUDGMENTS), folder / "judgments.parquet")
    meta = {"source": "files", "simulated": True, "note": "benchmark", "rows": {}, "fingerprint": "none"}
    contract.write_meta(folder, contract.SnapshotMeta(start=START, end=START + timedelta(days=days), **meta))
    return total


def _day(folder: Path, rng: np.random.Generator, day: int, sessions: int, shoppers: int, ids: np.ndarray) -> int:
    user, anonymous = rng.integers(0, shoppers, sessions), rng.random(sessions) < 0.3
    begin = rng.integers(0, 86_300_000_000, sessions)
    query = rng.zipf(1.3, sessions) % 20_000
    shape = (sessions, SHOWN)
    item = (rng.zipf(1.2, shape) * 7919 + query[:, None] * 31) % len(ids)
    position = np.tile(np.arange(1, SHOWN + 1), (sessions, 1))
    relevance = rng.random(shape)
    click = rng.random(shape) < 0.25 / np.sqrt(position)
    cart = click & (rng.random(shape) < 0.2)
    order = cart & (rng.random(shape) < 0.5)
    actions = ((np.ones(shape, bool), 0), (click, 10), (cart, 30), (order, 60))
    parts = []
    for (mask, seconds), action in zip(actions, contract.ACTIONS, strict=True):
        session = np.nonzero(mask)[0]
        seen = np.full(len(session), action == "impression")
        parts.append(
            {
                "event_time": begin[session] + seconds * 1_000_000,
                "session": session,
                "item": item[mask],
                "position": position[mask],
                "relevance": np.where(seen, relevance[mask], np.nan),
                "action": np.full(len(session), action),
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    session, first = columns["session"], int((START + timedelta(days=day)).timestamp() * 1e6)
    table = pa.table(
        {
            "event_time": pa.array(columns["event_time"] + first, contract.TIME),
            "session_id": pa.array(np.char.add(f"s{day:03d}-", session.astype(str))),
            "user_id": pa.array(np.char.add("u", user[session].astype(str)), mask=anonymous[session]),
            "query": pa.array(np.char.add("query words ", query[session].astype(str))),
            "item_id": pa.array(ids[columns["item"]]),
            "position": pa.array(columns["position"], pa.int32()),
            "action": pa.array(columns["action"]),
            "relevance": pa.array(columns["relevance"], mask=np.isnan(columns["relevance"])),
            "propensity": pa.array(1.0 / columns["position"]),
        }
    )
    table = table.sort_by([(name, "ascending") for name in contract.SORT_KEYS["events"]])
    name = f"dt={START + timedelta(days=day):%Y-%m-%d}"
    return contract.write_parquet(table, folder / "events" / name / "part-0.parquet", contract.EVENTS)


def run_ours(clean: Path, out: Path) -> None:
    """The stage itself."""
    build_profiles(clean, out, CONFIG)


def run_sql(clean: Path, out: Path) -> None:
    """The same files from one hand-written script."""
    meta = contract.read_meta(clean)
    split = split_window(meta.start, meta.end, CONFIG)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as spill:
        settings = {"memory_limit": CONFIG.memory_limit, "temp_directory": spill, "preserve_insertion_order": False}
        connection = duckdb.connect(config=settings)
        connection.execute("SET TimeZone = 'UTC'")
        values = {
            "clean": clean,
            "out": out,
            "start": split.start,
            "train": split.train_start,
            "valid": split.valid_start,
            "test": split.test_start,
            "end": split.end,
            "valid_asof": split.valid_asof,
            "cuts": ", ".join(f"(TIMESTAMP '{cut}')" for cut in split.cuts),
            "test_hash": f"{int(CONFIG.judged_test_share * 16**8):08x}",
            "held_hash": f"{int((CONFIG.judged_test_share + CONFIG.judged_valid_share) * 16**8):08x}",
            **CONFIG.model_dump(),
        }
        for statement in SQL.format(**values).split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.close()


SQL = """
CREATE TEMP VIEW events AS
SELECT event_time::TIMESTAMP AS ts, event_time, session_id, user_id, query, item_id, position, relevance, propensity,
    CASE action WHEN 'impression' THEN 0 WHEN 'click' THEN 1 WHEN 'add_to_cart' THEN 2 WHEN 'order' THEN 3 END AS rank
FROM read_parquet('{clean}/events/*/*.parquet', hive_partitioning = false)
WHERE event_time >= TIMESTAMPTZ '{start}+00' AND event_time < TIMESTAMPTZ '{end}+00';

CREATE TEMP TABLE known AS
SELECT item_id, (row_number() OVER (ORDER BY item_id))::INTEGER AS code FROM read_parquet('{clean}/items.parquet');

CREATE TEMP TABLE sessions AS
SELECT session_id, min(ts) AS started FROM events GROUP BY 1;

CREATE TEMP TABLE item_days AS
SELECT item_id, ts::DATE AS day, count(*) FILTER (rank = 0) AS impressions, count(*) FILTER (rank = 1) AS clicks,
    count(*) FILTER (rank = 2) AS carts, count(*) FILTER (rank = 3) AS orders
FROM events GROUP BY 1, 2;

CREATE TEMP TABLE engaged AS
SELECT e.ts, e.ts::DATE AS day, e.session_id, e.user_id, s.started,
    CASE WHEN trim(e.query) = '' THEN NULL ELSE e.query END AS query, e.item_id, k.code, e.position, e.rank
FROM events e JOIN known k USING (item_id) JOIN sessions s USING (session_id) WHERE e.rank > 0;

CREATE TEMP TABLE grades AS
SELECT *, CASE WHEN digits < '{test_hash}' THEN 'test' WHEN digits < '{held_hash}' THEN 'valid' ELSE 'train' END AS part
FROM (
    SELECT query, item_id, max(grade) AS grade, md5(lower(trim(query)))[1:8] AS digits
    FROM read_parquet('{clean}/judgments.parquet') SEMI JOIN known USING (item_id)
    WHERE trim(query) <> '' GROUP BY 1, 2);

CREATE TEMP TABLE lows AS
SELECT * FROM grades WHERE grade <= {negative_grade}
QUALIFY row_number() OVER (PARTITION BY query ORDER BY grade, item_id) <= 2 * {hard_negatives};

CREATE TEMP TABLE decay AS
SELECT day::DATE AS day, cut,
    pow(0.5, (date_diff('day', day, cut) - 1) / {popularity_half_life_days}) AS decay
FROM generate_series(TIMESTAMP '{start}', TIMESTAMP '{end}' - INTERVAL 1 DAY, INTERVAL 1 DAY) days(day),
    (VALUES {cuts}) cuts(cut) WHERE day < cut;

CREATE TEMP TABLE made AS
WITH firsts AS (
    SELECT user_id, session_id, item_id, min(ts) FILTER (rank = 1) AS click, min(ts) FILTER (rank = 2) AS cart,
        min(ts) FILTER (rank = 3) AS ordered
    FROM engaged WHERE user_id IS NOT NULL GROUP BY ALL)
SELECT user_id, session_id, item_id, 'click' AS action, click AS ts, least(TIMESTAMP '{end}', cart, ordered) AS until
FROM firsts WHERE click < least(TIMESTAMP '{end}', cart, ordered)
UNION ALL SELECT user_id, session_id, item_id, 'add_to_cart', cart, least(TIMESTAMP '{end}', ordered)
FROM firsts WHERE cart < least(TIMESTAMP '{end}', ordered)
UNION ALL SELECT user_id, session_id, item_id, 'order', ordered, TIMESTAMP '{end}'
FROM firsts WHERE ordered IS NOT NULL;

CREATE TEMP TABLE labels AS
WITH rows AS (
    SELECT *, CASE WHEN ts < TIMESTAMP '{valid}' THEN 'train' WHEN ts < TIMESTAMP '{test}' THEN 'valid'
        ELSE 'test' END AS split
    FROM engaged WHERE query IS NOT NULL AND ts >= TIMESTAMP '{train}')
SELECT split, session_id, query, item_id, code, max(rank) AS rank, min(ts) AS first, max(position) AS deepest,
    max(user_id) AS user_id, any_value(started) AS started,
    coalesce(min(ts) FILTER (rank = 3), min(ts) FILTER (rank = 2), min(ts) FILTER (rank = 1)) AS ts
FROM rows GROUP BY split, session_id, query, item_id, code;

CREATE TEMP TABLE groups AS
SELECT row_number() OVER () AS grp, * FROM (
    SELECT split, session_id, query, max(user_id) AS user_id, any_value(started) AS started,
        min(first) AS first, max(deepest) AS deepest
    FROM labels GROUP BY split, session_id, query);

CREATE TEMP TABLE positives AS
SELECT l.* EXCLUDE (first, deepest, user_id), g.user_id, g.grp
FROM labels l JOIN groups g USING (split, session_id, query);

CREATE TEMP TABLE past AS
WITH moments AS (
    SELECT user_id, started AS ts FROM groups WHERE user_id IS NOT NULL
    UNION SELECT user_id, TIMESTAMP '{end}' FROM engaged WHERE user_id IS NOT NULL),
ranked AS (
    SELECT m.user_id, m.ts AS moment, e.item_id, e.action, e.ts, e.session_id,
        row_number() OVER (PARTITION BY m.user_id, m.ts ORDER BY e.ts DESC, e.item_id, e.session_id) AS place
    FROM moments m JOIN made e ON m.user_id = e.user_id AND e.ts < m.ts AND e.until >= m.ts),
kept AS (
    SELECT *, place <= {history_length} AS recent, action <> 'click' AS strong FROM ranked
    QUALIFY recent OR strong
        AND row_number() OVER (PARTITION BY user_id, moment, recent, strong ORDER BY place) <= {long_history})
SELECT user_id, moment, list(item_id ORDER BY place) AS hist_items, list(action ORDER BY place) AS hist_actions,
    list(ts ORDER BY place) AS hist_times
FROM kept GROUP BY 1, 2;

COPY (
    SELECT user_id, coalesce(hist_items, []) AS hist_items, coalesce(hist_actions, []) AS hist_actions,
        coalesce(list_transform(hist_times, lambda t: t::TIMESTAMPTZ), []) AS hist_times, events
    FROM (SELECT user_id, count(*) AS events FROM events WHERE user_id IS NOT NULL GROUP BY 1)
    LEFT JOIN (SELECT * FROM past WHERE moment = TIMESTAMP '{end}') USING (user_id)
    ORDER BY user_id
) TO '{out}/users.parquet' (COMPRESSION zstd);

CREATE TEMP TABLE baskets AS
SELECT *, row_number() OVER (PARTITION BY shopper ORDER BY ts, code) AS place FROM (
    SELECT coalesce('u' || user_id, 's' || session_id) AS shopper, code, min(ts) AS ts, min(day) AS day
    FROM engaged GROUP BY 1, 2);

CREATE TEMP TABLE shoppers AS
SELECT code, cut, sum(n) AS shoppers
FROM (SELECT code, day, count(*) AS n FROM baskets GROUP BY 1, 2) JOIN decay USING (day) GROUP BY 1, 2;

COPY (
    WITH pairs AS (
        SELECT least(l.code, r.code) AS a, greatest(l.code, r.code) AS b, l.day, count(*) AS n
        FROM baskets l JOIN baskets r
            ON l.shopper = r.shopper AND r.place < l.place AND r.place >= l.place - {co_window}
        GROUP BY 1, 2, 3),
    summed AS (SELECT a, b, cut, sum(n) AS n FROM pairs JOIN decay USING (day) GROUP BY 1, 2, 3),
    both_ways AS (SELECT a, b, cut, n FROM summed UNION ALL SELECT b, a, cut, n FROM summed),
    near AS (
        SELECT a, b, p.cut, (n / sqrt(x.shoppers::DOUBLE * y.shoppers::DOUBLE))::FLOAT AS weight,
            row_number() OVER (PARTITION BY a, p.cut ORDER BY weight DESC, b) AS place
        FROM both_ways p JOIN shoppers x ON x.code = a AND x.cut = p.cut JOIN shoppers y ON y.code = b AND y.cut = p.cut
        QUALIFY place <= {co_items}),
    neighbours AS (
        SELECT k.item_id, cut, list(o.item_id ORDER BY place) AS co_items, list(weight ORDER BY place) AS co_weights
        FROM near JOIN known k ON k.code = a JOIN known o ON o.code = b GROUP BY 1, 2),
    query_days AS (
        SELECT item_id, query, day, sum(CASE rank WHEN 1 THEN 1.0 WHEN 2 THEN 2.0 ELSE 3.0 END)::DOUBLE AS gain
        FROM engaged WHERE query IS NOT NULL GROUP BY 1, 2, 3),
    weighed AS (
        SELECT item_id, cut, query, (sum(round(gain * decay * 1e6)) / 1e6)::FLOAT AS weight,
            row_number() OVER (PARTITION BY item_id, cut ORDER BY weight DESC, query) AS place
        FROM query_days JOIN decay USING (day) GROUP BY 1, 2, 3 QUALIFY place <= {item_queries}),
    led AS (
        SELECT item_id, cut, list(query ORDER BY place) AS queries, list(weight ORDER BY place) AS query_weights
        FROM weighed GROUP BY 1, 2),
    counted AS (
        SELECT item_id, cut,
            sum(round((clicks + 2.0 * carts + 3.0 * orders)::DOUBLE * decay * 1e6)) / 1e6 AS popularity,
            sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks, sum(orders)::BIGINT AS orders
        FROM item_days SEMI JOIN known USING (item_id) JOIN decay USING (day) GROUP BY 1, 2)
    SELECT item_id, cut::TIMESTAMPTZ AS "asof", coalesce(queries, []) AS queries,
        coalesce(query_weights, []) AS query_weights, coalesce(co_items, []) AS co_items,
        coalesce(co_weights, []) AS co_weights, popularity, impressions, clicks, orders
    FROM counted LEFT JOIN led USING (item_id, cut) LEFT JOIN neighbours USING (item_id, cut)
    ORDER BY item_id, cut
) TO '{out}/items.parquet' (COMPRESSION zstd);

CREATE TEMP TABLE negatives AS
WITH asked AS (
    SELECT * FROM groups WHERE split <> 'test'
        AND query NOT IN (SELECT query FROM grades WHERE part <> 'train')),
passed AS (
    SELECT grp, code, min(relevance) AS relevance, min(e.position) AS position
    FROM events e JOIN asked g ON g.session_id = e.session_id AND g.query = e.query
        AND g.split = CASE WHEN e.ts < TIMESTAMP '{valid}' THEN 'train' ELSE 'valid' END
    JOIN known USING (item_id)
    ANTI JOIN (SELECT query, item_id FROM grades WHERE part = 'train'
        AND (grade >= {positive_grade} OR grade <= {negative_grade})) t ON t.query = e.query AND t.item_id = e.item_id
    WHERE rank = 0 AND e.event_time >= TIMESTAMPTZ '{train}+00' AND e.event_time < TIMESTAMPTZ '{test}+00'
        AND (relevance < {low_relevance} OR e.position < deepest)
    GROUP BY 1, 2),
found AS (
    SELECT grp, code, CASE WHEN relevance < {low_relevance} THEN 1 ELSE 2 END AS tier,
        CASE WHEN relevance < {low_relevance} THEN relevance ELSE position END AS score FROM passed
    UNION ALL
    SELECT grp, code, 0, grade FROM asked JOIN lows USING (query) JOIN known USING (item_id) WHERE part = 'train'),
ranked AS (
    SELECT grp, code, row_number() OVER (PARTITION BY grp ORDER BY tier, score, code) AS place
    FROM found ANTI JOIN positives USING (grp, code) QUALIFY place <= {hard_negatives})
SELECT grp, list(item_id ORDER BY place) AS hard_negatives FROM ranked JOIN known USING (code) GROUP BY 1;

COPY (
    SELECT split, ts::TIMESTAMPTZ AS event_time, session_id, p.user_id, query, item_id,
        CASE rank WHEN 1 THEN 'click' WHEN 2 THEN 'add_to_cart' ELSE 'order' END AS action, rank::FLOAT AS weight,
        coalesce(hard_negatives, []) AS hard_negatives, coalesce(hist_items, []) AS hist_items,
        coalesce(hist_actions, []) AS hist_actions,
        coalesce(list_transform(hist_times, lambda t: (date_diff('microsecond', t, ts) / 3.6e9)::FLOAT), [])
            AS hist_ages,
        (SELECT max(cut) FROM (VALUES {cuts}) cuts(cut) WHERE cut <= ts)::TIMESTAMPTZ AS profile_asof
    FROM positives p LEFT JOIN negatives USING (grp)
    LEFT JOIN past h ON h.user_id = p.user_id AND h.moment = p.started WHERE split <> 'test'
    UNION ALL
    SELECT part, NULL, NULL, NULL, query, item_id, NULL, grade::FLOAT, coalesce(items[1:{hard_negatives}], []),
        [], [], [], TIMESTAMPTZ '{valid_asof}+00'
    FROM grades
    LEFT JOIN (SELECT query, list(item_id ORDER BY grade, item_id) AS items FROM lows GROUP BY 1) USING (query)
    WHERE grade >= {positive_grade} AND part <> 'test'
    ORDER BY split, event_time, session_id, query, item_id
) TO '{out}/examples.parquet' (COMPRESSION zstd);

COPY (
    WITH relevant AS (
        SELECT grp, list(item_id ORDER BY rank DESC, item_id) AS relevant,
            list(rank::FLOAT ORDER BY rank DESC, item_id) AS gains FROM positives WHERE split <> 'train' GROUP BY 1),
    rows AS (
        SELECT g.grp, e.item_id, e.position, e.propensity, e.ts,
            CASE p.rank WHEN 1 THEN 'click' WHEN 2 THEN 'add_to_cart' WHEN 3 THEN 'order'
                ELSE 'impression' END AS action
        FROM events e JOIN groups g ON g.session_id = e.session_id AND g.query = e.query
            AND g.split = CASE WHEN e.ts < TIMESTAMP '{test}' THEN 'valid' ELSE 'test' END
        SEMI JOIN known ON known.item_id = e.item_id
        LEFT JOIN positives p ON p.grp = g.grp AND p.item_id = e.item_id
        WHERE e.rank = 0 AND e.event_time >= TIMESTAMPTZ '{valid}+00'),
    shown AS (
        SELECT grp, min(ts) AS first_shown, list(item_id ORDER BY position, item_id, ts) AS shown,
            list(position ORDER BY position, item_id, ts) AS shown_positions,
            list(propensity ORDER BY position, item_id, ts) AS shown_propensities,
            list(action ORDER BY position, item_id, ts) AS shown_actions FROM rows GROUP BY 1),
    behaved AS (SELECT *, least(first, coalesce(first_shown, first)) AS ts
        FROM groups JOIN relevant USING (grp) LEFT JOIN shown USING (grp) WHERE split <> 'train')
    SELECT split, 'e-' || md5(split || chr(10) || session_id || chr(10) || query)[1:16] AS request_id,
        'events' AS source, query, b.user_id, ts::TIMESTAMPTZ AS event_time, relevant, gains,
        coalesce(hist_items, []) AS hist_items, coalesce(hist_actions, []) AS hist_actions,
        coalesce(list_transform(hist_times, lambda t: (date_diff('microsecond', t, ts) / 3.6e9)::FLOAT), [])
            AS hist_ages,
        CASE split WHEN 'test' THEN TIMESTAMPTZ '{test}+00' ELSE TIMESTAMPTZ '{valid_asof}+00' END AS profile_asof,
        coalesce(shown, []) AS shown, coalesce(shown_positions, []) AS shown_positions,
        coalesce(shown_propensities, []) AS shown_propensities, coalesce(shown_actions, []) AS shown_actions
    FROM behaved b LEFT JOIN past h ON h.user_id = b.user_id AND h.moment = b.started
    UNION ALL
    SELECT part, 'j-' || md5(query)[1:16], 'judgments', query, NULL, NULL, list(item_id ORDER BY grade DESC, item_id),
        list(grade::FLOAT ORDER BY grade DESC, item_id), [], [], [],
        CASE part WHEN 'test' THEN TIMESTAMPTZ '{test}+00' ELSE TIMESTAMPTZ '{valid_asof}+00' END, [], [], [], []
    FROM grades WHERE part <> 'train' GROUP BY query, part
    ORDER BY split, request_id
) TO '{out}/requests.parquet' (COMPRESSION zstd);

COPY (
    SELECT query, count(*) AS requests
    FROM (SELECT DISTINCT query, session_id FROM events WHERE event_time < TIMESTAMPTZ '{test}+00')
    WHERE trim(query) <> '' GROUP BY 1 ORDER BY 1
) TO '{out}/queries.parquet' (COMPRESSION zstd);
"""


def run_pandas(clean: Path, out: Path) -> None:
    """The same files as one would write them with pandas: the whole log in memory, merges and group-bys."""
    meta = contract.read_meta(clean)
    split = split_window(meta.start, meta.end, CONFIG)
    out.mkdir(parents=True, exist_ok=True)
    known = contract.read_items(clean).to_pandas()[["item_id"]].sort_values("item_id")
    known["code"] = np.arange(len(known))
    events = pd.concat(pd.read_parquet(file) for file in contract.event_files(clean))
    events["ts"] = events.pop("event_time").dt.tz_localize(None)
    events = events[(events.ts >= split.start) & (events.ts < split.end)]
    events["day"] = events.ts.dt.floor("D")
    events["rank"] = events.pop("action").map({name: rank for rank, name in enumerate(contract.ACTIONS)})
    started = events.groupby("session_id").ts.min().rename("started")
    engaged = events[events["rank"] > 0].drop(columns=["relevance", "propensity"])
    engaged = engaged.merge(known, on="item_id").merge(started, on="session_id")
    engaged.loc[engaged["query"].str.strip() == "", "query"] = None
    grades = _pandas_grades(clean, known)
    lows = grades[grades.grade <= CONFIG.negative_grade].sort_values(["query", "grade", "item_id"])
    lows = lows.groupby("query").head(2 * CONFIG.hard_negatives)
    groups, positives = _pandas_labels(engaged, split)
    past = _pandas_past(engaged, groups, split)
    _pandas_write(_pandas_users(events, past, split), out / "users.parquet", tables.USERS)
    _pandas_write(_pandas_items(events, engaged, known, split), out / "items.parquet", tables.ITEMS)
    negatives = _pandas_negatives(events, groups, positives, grades, lows, known, split)
    examples = _pandas_examples(positives, negatives, past, grades, lows, split)
    _pandas_write(examples, out / "examples.parquet", tables.EXAMPLES)
    requests = _pandas_requests(events, groups, positives, past, grades, known, split)
    _pandas_write(requests, out / "requests.parquet", tables.REQUESTS)
    asked = events.loc[events.ts < split.test_start, ["query", "session_id"]].drop_duplicates()
    asked = asked[asked["query"].str.strip() != ""].groupby("query").size().rename("requests").reset_index()
    _pandas_write(asked.sort_values("query"), out / "queries.parquet", tables.QUERIES)


NAMES = pd.Series(contract.ACTIONS)
GROUP = ["split", "session_id", "query"]


def _pandas_write(frame: pd.DataFrame, path: Path, schema: pa.Schema) -> None:
    frame = frame.copy()
    for field in schema:
        if pa.types.is_list(field.type):
            frame[field.name] = [value if isinstance(value, list) else [] for value in frame[field.name]]
        elif field.type == contract.TIME:
            frame[field.name] = pd.to_datetime(frame[field.name]).dt.tz_localize("UTC")
    contract.write_parquet(pa.Table.from_pandas(frame, schema, preserve_index=False), path)


def _pandas_grades(clean: Path, known: pd.DataFrame) -> pd.DataFrame:
    grades = contract.read_judgments(clean).to_pandas().merge(known, on="item_id")
    grades = grades[grades["query"].str.strip() != ""]
    digits = grades["query"].map(lambda text: int(hashlib.md5(text.strip().lower().encode()).hexdigest()[:8], 16))
    held_out = digits < int((CONFIG.judged_test_share + CONFIG.judged_valid_share) * 16**8)
    test = digits < int(CONFIG.judged_test_share * 16**8)
    grades["part"] = np.where(test, "test", np.where(held_out, "valid", "train"))
    return grades


def _pandas_split(times: pd.Series, split: Split) -> np.ndarray:
    return np.where(times < split.valid_start, "train", np.where(times < split.test_start, "valid", "test"))


def _pandas_labels(engaged: pd.DataFrame, split: Split) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = engaged[engaged["query"].notna() & (engaged.ts >= split.train_start)].copy()
    rows["split"] = _pandas_split(rows.ts, split)
    best = rows.sort_values(["rank", "ts"], ascending=[False, True]).drop_duplicates([*GROUP, "item_id"])
    groups = rows.groupby(GROUP, as_index=False).agg(
        user_id=("user_id", "first"), started=("started", "first"), first=("ts", "min"), deepest=("position", "max")
    )
    groups["grp"] = np.arange(len(groups))
    positives = best.drop(columns=["user_id", "started"]).merge(groups[[*GROUP, "grp", "user_id", "started"]], on=GROUP)
    return groups, positives


def _pandas_past(engaged: pd.DataFrame, groups: pd.DataFrame, split: Split) -> pd.DataFrame:
    known = engaged[engaged.user_id.notna()]
    made = known.sort_values("ts").drop_duplicates(["user_id", "session_id", "item_id", "rank"])
    made = made.sort_values(
        ["user_id", "session_id", "item_id", "ts", "rank"], ascending=[True, True, True, False, False]
    )
    keys = ["user_id", "session_id", "item_id"]
    made["until"] = split.end
    stronger = {rank: made[made["rank"] == rank].set_index(keys).ts for rank in (2, 3)}
    for rank in (2, 3):
        later = made[keys].join(stronger[rank].rename("later"), on=keys).later
        made["until"] = made["until"].where(~((made["rank"] < rank) & (later < made.until)), later)
    made = made[made.ts < made.until][[*keys, "rank", "ts", "until"]]
    moments = groups.loc[groups.user_id.notna(), ["user_id", "started"]].rename(columns={"started": "moment"})
    shoppers = pd.DataFrame({"user_id": known.user_id.unique(), "moment": split.end})
    moments = pd.concat([moments, shoppers]).drop_duplicates()
    pairs = moments.merge(made, on="user_id")
    pairs = pairs[(pairs.ts < pairs.moment) & (pairs.until >= pairs.moment)]
    pairs = pairs.sort_values(
        ["user_id", "moment", "ts", "item_id", "session_id"], ascending=[True, True, False, True, True]
    )
    recent = pairs.groupby(["user_id", "moment"]).cumcount() < CONFIG.history_length
    older = pairs[~recent & (pairs["rank"] > 1)].groupby(["user_id", "moment"]).head(CONFIG.long_history)
    pairs = pd.concat([pairs[recent], older])
    pairs["action"] = pairs["rank"].map(NAMES)
    lists = pairs.groupby(["user_id", "moment"]).agg(
        hist_items=("item_id", list), hist_actions=("action", list), hist_times=("ts", list)
    )
    return lists.reset_index()


def _pandas_users(events: pd.DataFrame, past: pd.DataFrame, split: Split) -> pd.DataFrame:
    counts = events.groupby("user_id").size().rename("events").reset_index()
    return counts.merge(past[past.moment == split.end], on="user_id", how="left").sort_values("user_id")


def _pandas_items(events: pd.DataFrame, engaged: pd.DataFrame, known: pd.DataFrame, split: Split) -> pd.DataFrame:
    weights = engaged["rank"].map({1: 1.0, 2: 2.0, 3: 3.0})
    engaged = engaged.assign(gain=weights)
    engaged["shopper"] = ("u" + engaged.user_id).fillna("s" + engaged.session_id)
    baskets = engaged.sort_values("ts").drop_duplicates(["shopper", "code"])[["shopper", "code", "ts", "day"]]
    baskets = baskets.sort_values(["shopper", "ts", "code"])
    baskets["place"] = baskets.groupby("shopper").cumcount()
    pairs = baskets.merge(baskets, on="shopper", suffixes=("", "_earlier"))
    gap = pairs.place - pairs.place_earlier
    pairs = pairs[(gap > 0) & (gap <= CONFIG.co_window)]
    seen = events[events.item_id.isin(known.item_id)]
    names = known.set_index("code").item_id
    frames = [_pandas_cut(cut, seen, engaged, baskets, pairs, names) for cut in split.cuts]
    return pd.concat(frames).sort_values(["item_id", "asof"])


def _pandas_cut(
    cut: datetime,
    seen: pd.DataFrame,
    engaged: pd.DataFrame,
    baskets: pd.DataFrame,
    pairs: pd.DataFrame,
    names: pd.Series,
) -> pd.DataFrame:
    seen, engaged, baskets, pairs = (frame[frame.day < cut] for frame in (seen, engaged, baskets, pairs))
    counts = pd.crosstab(seen.item_id, seen["rank"]).reindex(columns=range(4), fill_value=0)
    counts.columns = ["impressions", "clicks", "carts", "orders"]
    days = engaged.groupby(["item_id", "query", "day"], as_index=False).gain.sum()
    days["decay"] = 0.5 ** (((cut - days.day).dt.days - 1) / CONFIG.popularity_half_life_days)
    days["weight"] = (days.gain * days.decay * 1e6).round()
    totals = engaged.groupby(["item_id", "day"], as_index=False).gain.sum()
    decay = 0.5 ** (((cut - totals.day).dt.days - 1) / CONFIG.popularity_half_life_days)
    popularity = ((totals.gain * decay * 1e6).round()).groupby(totals.item_id).sum() / 1e6
    led = (days.groupby(["item_id", "query"]).weight.sum() / 1e6).astype("float32").reset_index()
    led = led.sort_values(["item_id", "weight", "query"], ascending=[True, False, True])
    led = led.groupby("item_id").head(CONFIG.item_queries).groupby("item_id")
    led = led.agg(queries=("query", list), query_weights=("weight", list))
    shoppers = baskets.groupby("code").size().astype(float)
    counted = pairs.groupby(["code", "code_earlier"]).size().rename("n").reset_index()
    mirrored = counted.rename(columns={"code": "code_earlier", "code_earlier": "code"})
    near = pd.concat([counted, mirrored]).groupby(["code", "code_earlier"], as_index=False).n.sum()
    product = near.code.map(shoppers) * near.code_earlier.map(shoppers)
    near["weight"] = (near.n / np.sqrt(product)).astype("float32")
    near = near.sort_values(["code", "weight", "code_earlier"], ascending=[True, False, True])
    near = near.groupby("code").head(CONFIG.co_items)
    near["co"], near["item_id"] = near.code_earlier.map(names), near.code.map(names)
    near = near.groupby("item_id").agg(co_items=("co", list), co_weights=("weight", list))
    frame = counts.join(led).join(near).join(popularity.rename("popularity"))
    frame["popularity"] = frame.popularity.fillna(0.0)
    return frame.reset_index().assign(asof=cut)


def _pandas_negatives(
    events: pd.DataFrame,
    groups: pd.DataFrame,
    positives: pd.DataFrame,
    grades: pd.DataFrame,
    lows: pd.DataFrame,
    known: pd.DataFrame,
    split: Split,
) -> pd.Series:
    held_out = grades.loc[grades.part != "train", "query"].unique()
    groups = groups[(groups.split != "test") & ~groups["query"].isin(held_out)]
    rows = events[(events["rank"] == 0) & (events.ts >= split.train_start) & (events.ts < split.test_start)].copy()
    rows["split"] = _pandas_split(rows.ts, split)
    rows = rows.drop(columns="user_id").merge(groups, on=GROUP).merge(known, on="item_id")
    rows = rows[(rows.relevance < CONFIG.low_relevance) | (rows.position < rows.deepest)]
    settled = grades[
        (grades.part == "train") & ((grades.grade >= CONFIG.positive_grade) | (grades.grade <= CONFIG.negative_grade))
    ]
    rows = rows.merge(settled[["query", "item_id", "grade"]], on=["query", "item_id"], how="left")
    rows = rows[rows.grade.isna()].groupby(["grp", "code"], as_index=False).agg({"relevance": "min", "position": "min"})
    low = rows.relevance < CONFIG.low_relevance
    rows["tier"], rows["score"] = np.where(low, 1, 2), np.where(low, rows.relevance, rows.position)
    judged = groups[["grp", "query"]].merge(lows[lows.part == "train"], on="query").assign(tier=0)
    judged = judged.rename(columns={"grade": "score"})
    found = pd.concat([rows, judged])[["grp", "code", "tier", "score"]]
    found = found.merge(positives[["grp", "code", "item_id"]], on=["grp", "code"], how="left")
    found = found[found.item_id.isna()].sort_values(["grp", "tier", "score", "code"])
    found = found.groupby("grp").head(CONFIG.hard_negatives).drop(columns="item_id").merge(known, on="code", how="left")
    found = found.sort_values(["grp", "tier", "score", "code"])
    return found.groupby("grp").item_id.agg(list).rename("hard_negatives")


def _pandas_history(rows: pd.DataFrame, past: pd.DataFrame) -> pd.DataFrame:
    past = past.rename(columns={"moment": "started"})
    rows = rows.merge(past, on=["user_id", "started"], how="left")
    rows["hist_ages"] = [
        [(at - time) / pd.Timedelta(hours=1) for time in times] if isinstance(times, list) else []
        for at, times in zip(rows.ts, rows.hist_times, strict=True)
    ]
    return rows


def _pandas_examples(
    positives: pd.DataFrame,
    negatives: pd.Series,
    past: pd.DataFrame,
    grades: pd.DataFrame,
    lows: pd.DataFrame,
    split: Split,
) -> pd.DataFrame:
    rows = positives[positives.split != "test"].merge(negatives, on="grp", how="left")
    rows = _pandas_history(rows, past).assign(event_time=lambda frame: frame.ts)
    rows["action"], rows["weight"] = rows["rank"].map(NAMES), rows["rank"].astype("float32")
    cuts = np.array(split.cuts, dtype="datetime64[us]")
    rows["profile_asof"] = cuts[np.searchsorted(cuts, rows.ts.to_numpy(dtype="datetime64[us]"), side="right") - 1]
    judged = grades[(grades.grade >= CONFIG.positive_grade) & (grades.part != "test")]
    pools = (
        lows.groupby("query").item_id.agg(lambda items: list(items)[: CONFIG.hard_negatives]).rename("hard_negatives")
    )
    judged = judged.merge(pools, on="query", how="left").rename(columns={"part": "split", "grade": "weight"})
    judged["profile_asof"] = split.valid_asof
    return pd.concat([rows, judged]).sort_values(["split", "event_time", "session_id", "query", "item_id"])


def _pandas_requests(
    events: pd.DataFrame,
    groups: pd.DataFrame,
    positives: pd.DataFrame,
    past: pd.DataFrame,
    grades: pd.DataFrame,
    known: pd.DataFrame,
    split: Split,
) -> pd.DataFrame:
    groups, positives = groups[groups.split != "train"], positives[positives.split != "train"]
    ordered = positives.sort_values(["grp", "rank", "item_id"], ascending=[True, False, True])
    ordered = ordered.assign(gain=ordered["rank"].astype(float))
    relevant = ordered.groupby("grp").agg(relevant=("item_id", list), gains=("gain", list))
    rows = events[(events["rank"] == 0) & (events.ts >= split.valid_start) & events.item_id.isin(known.item_id)].copy()
    rows["split"] = _pandas_split(rows.ts, split)
    rows = rows.drop(columns=["user_id", "rank"]).merge(groups[[*GROUP, "grp"]], on=GROUP)
    rows = rows.merge(positives[["grp", "item_id", "rank"]], on=["grp", "item_id"], how="left")
    rows["action"] = rows["rank"].fillna(0).astype(int).map(NAMES)
    rows = rows.sort_values(["grp", "position", "item_id", "ts"])
    shown = rows.groupby("grp").agg(
        first_shown=("ts", "min"),
        shown=("item_id", list),
        shown_positions=("position", list),
        shown_propensities=("propensity", list),
        shown_actions=("action", list),
    )
    rows = groups.merge(relevant, on="grp").merge(shown, on="grp", how="left")
    rows["ts"] = rows[["first", "first_shown"]].min(axis=1)
    rows = _pandas_history(rows, past).assign(event_time=lambda frame: frame.ts, source="events")
    texts = (rows.split + "\n" + rows.session_id + "\n" + rows["query"]).map(_pandas_digest)
    rows["request_id"] = "e-" + texts
    judged = grades[grades.part != "train"].sort_values(["query", "grade", "item_id"], ascending=[True, False, True])
    judged = judged.groupby(["part", "query"]).agg(relevant=("item_id", list), gains=("grade", list)).reset_index()
    judged = judged.rename(columns={"part": "split"}).assign(source="judgments")
    judged["request_id"] = "j-" + judged["query"].map(_pandas_digest)
    both = pd.concat([rows, judged])
    both["profile_asof"] = np.where(
        both.split == "test", pd.Timestamp(split.test_start), pd.Timestamp(split.valid_asof)
    )
    for name in ("shown", "shown_positions", "shown_propensities", "shown_actions"):
        both[name] = both[name].astype(object)
    return both.sort_values(["split", "request_id"])


def _pandas_digest(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()[:16]


def assert_equal(one: Path, other: Path) -> None:
    """Fail unless both folders hold the same rows in the same order."""
    for name in TABLES:
        left, right = (pq.read_table(folder / f"{name}.parquet") for folder in (one, other))
        assert left.num_rows == right.num_rows, (name, left.num_rows, right.num_rows)
        for column in left.schema.names:
            same = left[column].combine_chunks().equals(right[column].cast(left[column].type).combine_chunks())
            assert same, f"{name}.{column} differs between {one} and {other}"


VERSIONS = {"ours": run_ours, "sql": run_sql, "pandas": run_pandas}


def measure(version: str, folder: Path) -> dict[str, float]:
    """Run one version in a process of its own: wall seconds, CPU seconds, peak MiB."""
    command = [sys.executable, __file__, "--run", version, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def run_one(version: str, folder: Path) -> None:
    started = time.perf_counter()
    VERSIONS[version](folder / "clean", folder / version)
    print(json.dumps({"wall": time.perf_counter() - started, "cpu": time.process_time(), "peak": _peak_mib()}))


def _peak_mib() -> float:
    """Peak memory of this process. Not `getrusage`: a child inherits the peak of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def compare(events: int, other: str, work: Path) -> None:
    """Ours beside another version on one log of about `events` events over 14 days."""
    folder = work / f"{events}-{other}"
    total = generate(folder / "clean", 14, events // 14, shoppers=max(events // 50, 1), items=max(events // 100, 100))
    figures = {version: measure(version, folder) for version in ("ours", other)}
    assert_equal(folder / "ours", folder / other)
    for version, row in figures.items():
        print(
            f"{total:>11,} events  {version:7} {row['wall']:7.1f} s wall {row['cpu']:7.1f} s CPU {row['peak']:6.0f} MiB"
        )
    wall, cpu = (figures[other][name] / figures["ours"][name] for name in ("wall", "cpu"))
    print(f"{total:>11,} events  {other} / ours: {wall:.2f} by wall, {cpu:.2f} by CPU; the files are equal", flush=True)


def grow(days: list[int], per_day: int, work: Path) -> None:
    """Peak memory of ours as the number of days grows and the events of a day stay the same."""
    for number in days:
        folder = work / f"days-{number}"
        total = generate(folder / "clean", number, per_day, shoppers=per_day // 4, items=per_day // 8)
        row = measure("ours", folder)
        print(
            f"{number:>3} days {total:>11,} events  {row['wall']:7.1f} s wall  peak {row['peak']:.0f} MiB", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, default=1e7, help="events of the comparison with SQL; 0: none")
    parser.add_argument("--pandas-events", type=float, default=1e6, help="events of that with pandas; 0: none")
    parser.add_argument("--days", type=int, nargs="*", default=[], help="measure memory at these numbers of days")
    parser.add_argument("--per-day", type=int, default=360_000, help="events of a day, with --days")
    parser.add_argument("--run", choices=VERSIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_one(arguments.run, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as work:
        if arguments.days:
            grow(arguments.days, arguments.per_day, Path(work))
            return
        for events, other in ((arguments.events, "sql"), (arguments.pandas_events, "pandas")):
            if events:
                compare(int(events), other, Path(work))


if __name__ == "__main__":
    main()

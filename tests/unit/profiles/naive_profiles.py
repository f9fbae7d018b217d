"""What `build_profiles` must give, written a second time as plain loops over plain rows. Slow and obvious on purpose.

Also helpers that write a small shop to disk and read the results back.
"""

import hashlib
import math
from collections import defaultdict
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrse.config import ProfilesConfig
from mrse.data import contract
from mrse.profiles.build import build_profiles

Row = dict[str, Any]
RANK = {"impression": 0, "click": 1, "add_to_cart": 2, "order": 3}
ACTION = {rank: action for action, rank in RANK.items()}
DAY = timedelta(days=1)


def write_shop(folder: Path, start: datetime, end: datetime, items: list[str], events: list[Row], grades: list[Row]):
    """Write clean tables; rows may leave optional columns out."""
    rows = [{"item_id": item, "title": item} for item in sorted(items)]
    contract.write_parquet(pa.Table.from_pylist(rows, contract.ITEMS), folder / "items.parquet")
    for old in contract.event_files(folder):
        old.unlink()
    days = defaultdict(list)
    for event in events:
        days[event["event_time"].date()].append(event)
    for day, rows in days.items():
        table = pa.Table.from_pylist(rows, contract.EVENTS)
        contract.write_parquet(table, folder / f"events/dt={day}/part-0.parquet")
    contract.write_parquet(pa.Table.from_pylist(grades, contract.JUDGMENTS), folder / "judgments.parquet")
    meta = contract.SnapshotMeta(
        source="files", start=start, end=end, simulated=True, note="test", rows={}, fingerprint="none"
    )
    contract.write_meta(folder, meta)


def run(folder: Path, config: ProfilesConfig) -> tuple[dict[str, list[Row]], Row]:
    """Run the stage on `folder/clean`; the written tables as rows, and the report."""
    report = build_profiles(folder / "clean", folder / "profiles", config)
    return {path.stem: pq.read_table(path).to_pylist() for path in (folder / "profiles").glob("*.parquet")}, report


class Naive:
    """The same results from the definitions in docs/profiles.md."""

    def __init__(self, start, end, items, events, grades, config: ProfilesConfig):
        self.config, self.items = config, set(items)
        self.start, self.end = start, end
        self.train_start = start + config.warmup_days * DAY
        self.test_start = end - config.test_days * DAY
        self.valid_start = self.test_start - config.valid_days * DAY
        step, cut, self.cuts = config.refresh_days * DAY, self.train_start, []
        while cut < self.test_start:
            self.cuts.append(cut)
            cut += step
        self.cuts += [self.test_start, end]
        self.log = [e for e in events if start <= e["event_time"] < end]
        self.known = [e for e in self.log if e["item_id"] in self.items]
        self.has_events = bool(events)
        self.sessions = {}
        for e in self.log:
            began = self.sessions.get(e["session_id"], e["event_time"])
            self.sessions[e["session_id"]] = min(began, e["event_time"])
        self.grades = {(g["query"], g["item_id"]): g["grade"] for g in grades if g["item_id"] in self.items}

    def history(self, user, at):
        """Strongest action per (session, item) before `at`, newest first: the newest, then carts and orders."""
        best = {}
        for e in self.known:
            if user is None or e.get("user_id") != user or e["event_time"] >= at or RANK[e["action"]] == 0:
                continue
            key, found = (e["session_id"], e["item_id"]), (-RANK[e["action"]], e["event_time"])
            best[key] = min(best.get(key, found), found)
        found = [(time, item, session, ACTION[-rank]) for (session, item), (rank, time) in best.items()]
        found.sort(key=lambda entry: (-entry[0].timestamp(), entry[1], entry[2]))
        recent, older = found[: self.config.history_length], found[self.config.history_length :]
        found = recent + [entry for entry in older if entry[3] != "click"][: self.config.long_history]
        return [item for _, item, _, _ in found], [action for *_, action in found], [time for time, *_ in found]

    def split(self, at):
        if at < self.train_start:
            return None
        return "train" if at < self.valid_start else "valid" if at < self.test_start else "test"

    def asof(self, at):
        return max(cut for cut in self.cuts if cut <= at)

    def part(self, query):
        place = int(hashlib.md5(query.strip().lower().encode()).hexdigest()[:8], 16) / 16**8
        if place < self.config.judged_test_share:
            return "test"
        return "valid" if place < self.config.judged_test_share + self.config.judged_valid_share else "train"

    def users(self):
        rows = {}
        for e in self.log:
            if (user := e.get("user_id")) is not None:
                rows[user] = rows.get(user, 0) + 1
        return [
            dict(zip(("user_id", "hist_items", "hist_actions", "hist_times", "events"), row, strict=True))
            for row in ((user, *self.history(user, self.end), rows[user]) for user in sorted(rows))
        ]

    def groups(self):
        groups = defaultdict(list)
        for e in self.known:
            if (part := self.split(e["event_time"])) and e["query"].strip():
                groups[part, e["session_id"], e["query"]].append(e)
        return {key: rows for key, rows in groups.items() if any(RANK[e["action"]] for e in rows)}

    @staticmethod
    def asker(rows):
        users = [e["user_id"] for e in rows if RANK[e["action"]] and e.get("user_id") is not None]
        return max(users, default=None)

    @staticmethod
    def engaged(rows):
        best = {}
        for e in rows:
            if RANK[e["action"]]:
                found = (-RANK[e["action"]], e["event_time"])
                best[e["item_id"]] = min(best.get(e["item_id"], found), found)
        return {item: (ACTION[-rank], time) for item, (rank, time) in best.items()}

    def lows(self, query, part):
        low = [
            (grade, item)
            for (q, item), grade in self.grades.items()
            if q == query and grade <= self.config.negative_grade and self.part(q) == part
        ]
        return [item for _, item in sorted(low)[: 2 * self.config.hard_negatives]]

    def negatives(self, query, rows):
        c = self.config
        if any(q == query for q, _ in self.grades) and self.part(query) != "train":
            return []
        engaged = self.engaged(rows)
        positions = [e["position"] for e in rows if RANK[e["action"]] and e.get("position") is not None]
        found = {item: (0, self.grades[query, item]) for item in self.lows(query, "train")}
        low, skipped = {}, {}
        for e in rows:
            grade = self.grades.get((query, e["item_id"]), 0.5 * (c.negative_grade + c.positive_grade))
            if RANK[e["action"]] or not c.negative_grade < grade < c.positive_grade:
                continue
            if e.get("relevance") is not None and e["relevance"] < c.low_relevance:
                low[e["item_id"]] = min(low.get(e["item_id"], 1.0), e["relevance"])
            if e.get("position") is not None and positions and e["position"] < max(positions):
                skipped[e["item_id"]] = min(skipped.get(e["item_id"], math.inf), e["position"])
        for tier, scores in ((1, low), (2, skipped)):
            for item, score in scores.items():
                found.setdefault(item, (tier, score))
        order = sorted((key, item) for item, key in found.items() if item not in engaged)
        return [item for _, item in order[: c.hard_negatives]]

    def examples(self):
        made = []
        for (part, session, query), rows in self.groups().items():
            if part == "test":
                continue
            user, began = self.asker(rows), self.sessions[session]
            items, actions, times = self.history(user, began)
            for item, (action, at) in self.engaged(rows).items():
                made.append(
                    {
                        "split": part,
                        "event_time": at,
                        "session_id": session,
                        "user_id": user,
                        "query": query,
                        "item_id": item,
                        "action": action,
                        "weight": self.config.action_weights[action],
                        "hard_negatives": self.negatives(query, rows),
                        "hist_items": items,
                        "hist_actions": actions,
                        "hist_ages": [(at - time) / timedelta(hours=1) for time in times],
                        "profile_asof": self.asof(at),
                    }
                )
        made.sort(key=lambda r: (r["split"], r["event_time"], r["session_id"], r["query"], r["item_id"]))
        graded = [
            {
                "split": self.part(query),
                **dict.fromkeys(("event_time", "session_id", "user_id", "action")),
                "query": query,
                "item_id": item,
                "weight": grade,
                "hard_negatives": self.lows(query, self.part(query))[: self.config.hard_negatives],
                **{name: [] for name in ("hist_items", "hist_actions", "hist_ages")},
                "profile_asof": self.asof(self.valid_start) if self.has_events else None,
            }
            for (query, item), grade in sorted(self.grades.items())
            if grade >= self.config.positive_grade and self.part(query) != "test"
        ]
        return sorted(made + graded, key=lambda row: row["split"])

    def requests(self):
        made = []
        frozen = {"valid": self.asof(self.valid_start), "test": self.test_start}
        for (part, session, query), rows in self.groups().items():
            if part == "train":
                continue
            user, began = self.asker(rows), self.sessions[session]
            items, actions, times = self.history(user, began)
            at = min(e["event_time"] for e in rows if RANK[e["action"]] or e["action"] == "impression")
            engaged = self.engaged(rows)
            weights = self.config.action_weights
            gains = sorted((-weights[action], item) for item, (action, _) in engaged.items())
            shown = [e for e in rows if not RANK[e["action"]]]
            shown.sort(key=lambda e: (math.inf if e.get("position") is None else e["position"], e["item_id"]))
            made.append(
                {
                    "split": part,
                    "source": "events",
                    "query": query,
                    "user_id": user,
                    "event_time": at,
                    "relevant": [item for _, item in gains],
                    "gains": [-gain for gain, _ in gains],
                    "hist_items": items,
                    "hist_actions": actions,
                    "hist_ages": [(at - time) / timedelta(hours=1) for time in times],
                    "profile_asof": frozen[part],
                    "shown": [e["item_id"] for e in shown],
                    "shown_positions": [e.get("position") for e in shown],
                    "shown_propensities": [e.get("propensity") for e in shown],
                    "shown_actions": [engaged.get(e["item_id"], ("impression",))[0] for e in shown],
                }
            )
        judged = defaultdict(list)
        for (query, item), grade in self.grades.items():
            if self.part(query) != "train":
                judged[query].append((-grade, item))
        for query, graded in judged.items():
            graded.sort()
            made.append(
                {
                    "split": self.part(query),
                    "source": "judgments",
                    "query": query,
                    "user_id": None,
                    "event_time": None,
                    "relevant": [item for _, item in graded],
                    "gains": [-grade for grade, _ in graded],
                    **{name: [] for name in ("hist_items", "hist_actions", "hist_ages", "shown")},
                    **{name: [] for name in ("shown_positions", "shown_propensities", "shown_actions")},
                    "profile_asof": frozen[self.part(query)] if self.has_events else None,
                }
            )
        return made

    def queries(self):
        asked = {(e["query"], e["session_id"]) for e in self.log if e["event_time"] < self.test_start}
        counts = defaultdict(int)
        for query, _ in asked:
            if query.strip():
                counts[query] += 1
        return [{"query": query, "requests": counts[query]} for query in sorted(counts)]

    def item_counts(self):
        """(item, asof) to popularity, impressions, clicks, orders."""
        counts = {}
        for cut in self.cuts:
            for e in self.known:
                if e["event_time"] < cut:
                    row = counts.setdefault((e["item_id"], cut), [0.0, 0, 0, 0])
                    row[0] += self.decayed(e, cut)
                    row[1] += e["action"] == "impression"
                    row[2] += e["action"] == "click"
                    row[3] += e["action"] == "order"
        return counts

    def item_queries(self):
        """(item, asof) to every query that led to it and its weight."""
        weights = defaultdict(lambda: defaultdict(float))
        for cut in self.cuts:
            for e in self.known:
                if RANK[e["action"]] and e["event_time"] < cut and e["query"].strip():
                    weights[e["item_id"], cut][e["query"]] += self.decayed(e, cut)
        return weights

    def decayed(self, e, cut):
        if not RANK[e["action"]]:
            return 0.0
        last_day_is_0 = (cut - self.start) // DAY - (e["event_time"] - self.start) // DAY - 1
        return self.config.action_weights[e["action"]] * 0.5 ** (last_day_is_0 / self.config.popularity_half_life_days)

    def item_neighbours(self):
        """(item, asof) to every co-engaged item and its cosine."""
        weights = defaultdict(dict)
        for cut in self.cuts:
            baskets = defaultdict(dict)
            for e in self.known:
                if RANK[e["action"]] and e["event_time"] < cut:
                    user = e.get("user_id")
                    basket = baskets[("user", user) if user is not None else ("session", e["session_id"])]
                    basket[e["item_id"]] = min(basket.get(e["item_id"], e["event_time"]), e["event_time"])
            single, both = defaultdict(int), defaultdict(int)
            for basket in baskets.values():
                order = sorted(basket, key=lambda item: (basket[item], item))
                for place, item in enumerate(order):
                    single[item] += 1
                    for earlier in order[max(0, place - self.config.co_window) : place]:
                        both[item, earlier] += 1
                        both[earlier, item] += 1
            for (left, right), count in both.items():
                weights[left, cut][right] = count / math.sqrt(single[left] * single[right])
        return weights


def is_top(values: list[str], weights: list[float], wanted: dict[str, float], length: int) -> bool:
    """True when the list holds the `length` heaviest of `wanted`, heaviest first, ties in the order of the values."""
    if len(values) != min(length, len(wanted)) or len(set(values)) != len(values):
        return False
    close = all(math.isclose(wanted[v], w, rel_tol=1e-4, abs_tol=2e-6) for v, w in zip(values, weights, strict=True))
    heaviest = sorted(wanted.values(), reverse=True)[:length]
    heavy = all(math.isclose(a, b, rel_tol=1e-4, abs_tol=2e-6) for a, b in zip(weights, heaviest, strict=True))
    pairs = list(zip(values, weights, strict=True))
    return close and heavy and all((-a[1], a[0]) < (-b[1], b[0]) for a, b in pairwise(pairs))

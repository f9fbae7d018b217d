"""A shop of a few items and a model that needs no training, for the tests of the index and of serving.

`FakeRetriever` stands in for the trained model: words are hashed to fixed directions, a history leans the query towards
its items. Its package is one file, so two seeds are two models. Run as a program, it is a stage that can be killed at a
chosen call: `python -m tests.fake_shop swap WORKSPACE --kill-at Store.point`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mrse import config, tracking
from mrse.data.contract import SnapshotMeta, fingerprint, write_meta, write_parquet
from mrse.jsonfile import read_json, write_json
from mrse.model.arrays import Catalogue, EncodedCatalogue, History, HistoryBank
from mrse.model.retriever import package_fingerprint

DIM = 16
END = datetime(2026, 3, 15, tzinfo=UTC)
ITEMS = [
    ("a1", "red dress", "Clothing > Dresses", 30.0, "a1.png"),
    ("a2", "blue dress", "Clothing > Dresses", None, None),
    ("b1", "red shirt", "Clothing > Shirts", 10.0, "b1.png"),
    ("b2", "blue shirt", None, 12.0, None),
    ("c1", "leather boots", "Shoes", 80.0, "c1.png"),
    ("c2", "leather boots", "Shoes", 80.0, None),
]


class FakeRetriever:
    """As much of `mrse.model.retriever.Retriever` as index and serving use."""

    dim = DIM

    def __init__(self, seed: int, fingerprint: str) -> None:
        self.seed, self.fingerprint = seed, fingerprint

    @classmethod
    def load(cls, folder: Path) -> FakeRetriever:
        return cls(json.loads((folder / "config.json").read_text())["seed"], package_fingerprint(folder))

    def to(self, device: torch.device) -> FakeRetriever:
        return self

    def steady_item_parts(self, catalogue: Catalogue) -> np.ndarray:
        return self._texts(catalogue.titles)[:, None, :]

    def steady_query_parts(self, queries) -> np.ndarray:
        return np.zeros((len(queries), 1, DIM), np.float32)

    def fuse_items(self, item_ids, asked, bank_NEH, bank_QEH) -> EncodedCatalogue:
        return EncodedCatalogue(
            item_ids, bank_NEH[:, 0], bank_NEH.astype(np.float16), np.ones((len(item_ids), 1), np.float32)
        )

    def encode_queries(self, queries, histories=None, bank: HistoryBank | None = None, batch_size=256):
        vectors = self._texts(queries)
        for row, history in enumerate(histories or []):
            known = [bank.row(i) for i in (history.item_ids if history else []) if bank.row(i) is not None]
            if known:
                vectors[row] += 0.5 * bank.array[known].astype(np.float32).mean(axis=(0, 1))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _texts(self, texts) -> np.ndarray:
        vectors = np.stack([sum((self._word(w) for w in text.lower().split()), np.zeros(DIM)) + 1e-3 for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def _word(self, word: str) -> np.ndarray:
        return _direction(self.seed, word)


@lru_cache(maxsize=100_000)
def _direction(seed: int, word: str) -> np.ndarray:
    digest = hashlib.sha256(f"{seed} {word}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).normal(size=DIM)


def fake_catalogue(retriever, clean, profiles, workspace, cache_dir, asof=None) -> Catalogue:
    """Stands in for `load_catalogue`: titles alone."""
    items = pq.read_table(clean / "items.parquet")
    ids, count = items.column("item_id").to_pylist(), items.num_rows
    none = np.full(count, -1), np.zeros((0, 1, 1), np.float16)
    return Catalogue(ids, items.column("title").to_pylist(), [""] * count, *none, [[]] * count, [[]] * count)


def patches() -> list:
    """What to patch so that the stages use the fake model."""
    return [
        mock.patch("mrse.index.build.Retriever", FakeRetriever),
        mock.patch("mrse.index.build.load_catalogue", fake_catalogue),
        mock.patch("mrse.serving.recall.Retriever", FakeRetriever),
    ]


def open_shop(workspace: Path, items=ITEMS) -> None:
    """Write `data/clean` and `data/profiles`."""
    clean, profiles = workspace / "data/clean", workspace / "data/profiles"
    columns = [[item[i] for item in items] for i in range(5)]
    table = {name: pa.array(columns[i], pa.string()) for i, name in enumerate(("item_id", "title"))}
    table["category"] = pa.array(columns[2], pa.string())
    table["price"] = pa.array(columns[3], pa.float64())
    table["image"] = pa.array(columns[4], pa.string())
    table["updated_at"] = pa.nulls(len(items), pa.timestamp("us", tz="UTC"))
    write_parquet(pa.table(table), clean / "items.parquet")
    write_meta(
        clean,
        SnapshotMeta(
            source="marketplace",
            start=END - timedelta(days=14),
            end=END,
            simulated=True,
            note="simulated",
            rows={"items": len(items), "events": 0, "judgments": 0},
            fingerprint=fingerprint([clean / "items.parquet"]),
            image_root=None,
        ),
    )
    time = pa.timestamp("us", tz="UTC")
    users = {
        "user_id": pa.array(["dresser", "shirty"]),
        "hist_items": pa.array([["a2", "gone"], ["b2"]]),
        "hist_actions": pa.array([["click", "order"], ["click"]]),
        "hist_times": pa.array([[END - timedelta(hours=3), END - timedelta(days=1)], [END]], pa.list_(time)),
        "events": pa.array([2, 1]),
    }
    write_parquet(pa.table(users), profiles / "users.parquet")
    requests = {
        "split": pa.array(["test", "test", "valid"]),
        "request_id": pa.array(["r1", "r2", "r3"]),
        "query": pa.array(["red dress", "shirt", "boots"]),
        "hist_items": pa.array([["a2"], None, None], pa.list_(pa.string())),
        "hist_actions": pa.array([["click"], None, None], pa.list_(pa.string())),
        "hist_ages": pa.array([[1.0], None, None], pa.list_(pa.float32())),
    }
    write_parquet(pa.table(requests), profiles / "requests.parquet")
    queries = {"query": ["blue", "leather boots", "red dress", "shirt"], "requests": [9, 5, 7, 8]}
    write_parquet(pa.table(queries), profiles / "queries.parquet")


def train_challenger(workspace: Path, services: config.ServicesConfig, seed: int, outcome: str = "PROMOTE") -> int:
    """What `train` and `gate` leave behind; the version."""
    package = workspace / "models/challenger"
    package.mkdir(parents=True, exist_ok=True)
    (package / "config.json").write_text(json.dumps({"seed": seed}))
    registered = tracking.log_training_run(
        services,
        params={"seed": seed},
        metrics={"recall": 0.5},
        curves={},
        package=package,
        tags={"data_start": "2026-03-01", "data_end": "2026-03-15"},
        fingerprint=package_fingerprint(package),
    )
    write_json(workspace / "models/challenger.json", registered)
    decide(workspace, outcome)
    return int(registered["version"])


def decide(workspace: Path, outcome: str) -> None:
    """Write `reports/decision.json` about `models/challenger.json`."""
    primary = {"metric": "recall@50", "lift": 0.0123}
    decision = {"outcome": outcome, "reasons": ["because"], "primary": primary}
    decision["challenger"] = read_json(workspace / "models/challenger.json")
    write_json(workspace / "reports/decision.json", decision)


def log_decision(services: config.ServicesConfig, version: int, outcome: str, day: str = "2026-03-15", **tags) -> None:
    """Keep a decision in the history, as the gate does."""
    about = {"id": f"{version} {outcome} {day}", "outcome": outcome, "code": "no_proven_lift", "reason": "No gain."}
    about |= {"version": str(version), "fingerprint": "f00d", "reference_name": "champion", "metric": "recall_at_50"}
    about |= {"window_hash": day, "window_start": "2026-03-01", "window_end": day, "champion_version": "1"}
    about |= {"simulated": "True", "golden_sha256": "beef", "golden_seen": "False", **tags}
    figures = {
        "lift": 0.012,
        "lower": -0.003,
        "upper": 0.027,
        "mde": 0.02,
        "challenger": 0.512,
        "reference": 0.5,
        "alpha": 0.05,
    }
    golden = {"golden.champion": 0.48, "golden.challenger": 0.49, "golden.bm25": 0.3}
    metrics = {**figures, **golden}
    tracking.log_record(services, tracking.DECISIONS, name=day, tags=about, metrics=metrics)


def params_for(services: config.ServicesConfig, **sections) -> config.Params:
    """Parameters for a shop that has six items."""
    raw = {"snapshot": {"end": END.date().isoformat()}, "build_index": {"verify": {"recall_k": [3]}}, **sections}
    return config.parse({**raw, "services": services.model_dump()})


def history(*item_ids: str) -> History:
    """A history of clicks an hour ago."""
    return History(list(item_ids), ["click"] * len(item_ids), [1.0] * len(item_ids))


def main() -> None:
    """Run a stage; with `--kill-at`, die by SIGKILL at that call of the library."""
    from mrse.index.build import build
    from mrse.index.swap import swap

    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=("build", "swap"))
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--kill-at")
    arguments = parser.parse_args()
    active = patches()
    if arguments.kill_at:

        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        active.append(mock.patch(arguments.kill_at, die))
    for patch in active:
        patch.start()
    services = config.ServicesConfig().resolved()
    {"build": build, "swap": swap}[arguments.stage](params_for(services), arguments.workspace)


if __name__ == "__main__":
    main()

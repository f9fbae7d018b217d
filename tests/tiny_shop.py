"""A shop of 128 items whose colour is in the picture features and in half of the titles, and whose shoppers each love
one colour: what the tests of model and training learn from in seconds.

`write_shop` lays out `clean/`, `profiles/` and `features/` as the stages before `train` do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from mrse.config import TrainConfig
from mrse.data import contract
from mrse.features.encoder import ImageEncoder
from mrse.features.preprocess import Preprocessing
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.jsonfile import write_json
from mrse.model.arrays import Catalogue
from mrse.profiles import tables

COLOURS = ("red", "blue", "green", "black")
TYPES = ("shirt", "dress", "boots", "jacket")
BRANDS = ("acme", "zeno", "lumen", "orbit")
TOKENS, WIDTH = 2, 16
ASOF = datetime(2026, 3, 5, tzinfo=UTC)
WHEN = datetime(2026, 3, 6, tzinfo=UTC)


def items(pictures: bool = True) -> list[dict[str, Any]]:
    """Two of each colour, type and brand; the second does not name its colour."""
    rows = []
    for colour in COLOURS:
        for kind in TYPES:
            for brand in BRANDS:
                for tells in (True, False):
                    title = f"{brand} {colour} {kind}" if tells else f"{brand} {kind}"
                    name = f"{kind}-{colour}-{brand}-{'told' if tells else 'untold'}"
                    image = f"{name}.png" if pictures else None
                    rows.append({"item_id": name, "title": title, "category": f"Wear > {kind}", "image": image})
    return sorted(rows, key=lambda row: row["item_id"])


def picture_features(rows: list[dict[str, Any]]) -> np.ndarray:
    """What a good frozen encoder would say: the colour is plain to see, the type is a little blurred."""
    rng = np.random.default_rng(5)
    array = rng.normal(0, 0.05, (len(rows), TOKENS, WIDTH))
    for place, row in enumerate(rows):
        kind, colour = row["item_id"].split("-")[:2]
        array[place, :, COLOURS.index(colour)] += 1.0
        array[place, :, 4 + TYPES.index(kind)] += 0.5
    return array.astype(np.float16)


def write_shop(
    folder: Path, *, pictures: bool = True, users: bool = True, events: bool = True, hard: bool = True
) -> None:
    """Write everything that `train` reads; switches leave out what a shop may lack."""
    rows = items(pictures)
    _write_clean(folder / "clean", rows)
    _write_features(folder / "features", rows, pictures)
    examples, requests = _behaviour(rows, users, events, hard)
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    _table(examples, tables.EXAMPLES, folder / "profiles/examples.parquet")
    _table(requests, tables.REQUESTS, folder / "profiles/requests.parquet")
    _table(_item_profiles(rows) if events else [], tables.ITEMS, folder / "profiles/items.parquet")


def config(**changes: Any) -> TrainConfig:
    """Small and quick; `changes` by section: `config(model={"images": False}, seed=3)`."""
    base: dict[str, Any] = {
        "align_steps": 60,
        "fuse_steps": 100,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "bank_refresh_steps": 50,
        "eval_every": 50,
        "checkpoint_every": 20,
        "precision": "float32",
        "valid_k": 8,
        "min_rank": 2.0,
    }
    model = {"dim": 32, "hidden": 32, "heads": 2, "layers": 1, "query_length": 10, "title_length": 12}
    loss = {"catalogue_negatives": 32}
    base["model"] = model | changes.pop("model", {})
    base["loss"] = loss | changes.pop("loss", {})
    return TrainConfig.model_validate(base | changes)


def catalogue(pictures: bool = True) -> Catalogue:
    """The shop as a model reads it, without item histories."""
    rows = items(pictures)
    return Catalogue(
        item_ids=[row["item_id"] for row in rows],
        titles=[row["title"] for row in rows],
        categories=[row["category"] for row in rows],
        image_row=np.arange(len(rows)) if pictures else np.full(len(rows), -1),
        image_features=picture_features(rows),
        queries=[[] for _ in rows],
        query_weights=[[] for _ in rows],
    )


def _behaviour(rows: list[dict[str, Any]], users: bool, events: bool, hard: bool) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(3)
    by_colour = {c: [r["item_id"] for r in rows if r["item_id"].split("-")[1] == c] for c in COLOURS}
    examples, requests = [], []
    for number in range(1200):
        user = int(rng.integers(40))
        loved = COLOURS[user % len(COLOURS)]
        kind = TYPES[int(rng.integers(len(TYPES)))]
        vague = users and rng.random() < 0.4
        colour = loved if vague else COLOURS[int(rng.integers(len(COLOURS)))]
        good = [i for i in by_colour[colour] if i.startswith(kind)]
        bad = [i for c in COLOURS if c != colour for i in by_colour[c] if i.startswith(kind)]
        known = [str(i) for i in rng.choice(by_colour[loved], 5, replace=False)] if users else []
        row = {
            "split": "train" if number < 1050 else "valid",
            "event_time": WHEN,
            "session_id": f"s{number}",
            "user_id": f"u{user}" if users else None,
            "query": kind if vague else f"{colour} {kind}",
            "item_id": str(rng.choice(good)),
            "action": "click",
            "weight": float(rng.choice([1.0, 2.0])),
            "hard_negatives": [str(i) for i in rng.choice(bad, int(rng.integers(0, 3)), replace=False)] if hard else [],
            "hist_items": known,
            "hist_actions": ["click"] * len(known),
            "hist_ages": [1.0 + 10 * place for place in range(len(known))],
            "profile_asof": ASOF if events and number % 5 else None,
        }
        if number < 1050:
            examples.append(row)
        else:
            keys = (
                "split",
                "query",
                "user_id",
                "event_time",
                "hist_items",
                "hist_actions",
                "hist_ages",
                "profile_asof",
            )
            request = {key: row[key] for key in keys}
            source = "events" if events else "judgments"
            requests.append(
                request | {"request_id": f"r{number}", "source": source, "relevant": good, "gains": [1.0] * len(good)}
            )
    return examples, requests


def _item_profiles(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    profiles = []
    for row in rows[::2]:  # half of the items have been found before
        kind, colour = row["item_id"].split("-")[:2]
        queries = [f"{colour} {kind}", kind]
        profiles.append({"item_id": row["item_id"], "asof": ASOF, "queries": queries, "query_weights": [3.0, 1.0]})
    return profiles


def _write_clean(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    _table(rows, contract.ITEMS, folder / "items.parquet")
    _table([], contract.JUDGMENTS, folder / "judgments.parquet")
    meta = contract.SnapshotMeta(
        source="files",
        start=datetime(2026, 3, 1, tzinfo=UTC),
        end=datetime(2026, 3, 15, tzinfo=UTC),
        simulated=False,
        note="a tiny shop for tests",
        rows={"items": len(rows), "events": 0, "judgments": 0},
        fingerprint="0" * 64,
    )
    contract.write_meta(folder, meta)


def _write_features(folder: Path, rows: list[dict[str, Any]], pictures: bool) -> None:
    folder.mkdir(parents=True)
    texts = [row["title"] for row in rows] + [f"{colour} {kind}" for colour in COLOURS for kind in TYPES]
    Tokenizer.train(texts, 300).save(folder / "tokenizer.json")
    SubwordHasher(2000).save(folder / "subword.json")
    write_json(folder / "features.json", {"text_encoder": None})
    if not pictures:
        return
    encoder().save(folder / "image_encoder")
    np.save(folder / "image_features.npy", picture_features(rows))
    index = pa.table({"item_id": [row["item_id"] for row in rows], "row": pa.array(range(len(rows)), pa.int64())})
    pq.write_table(index, folder / "image_index.parquet")


def write_text_encoder(folder: Path, vocabulary: int, **changes: Any) -> str:
    """A tiny untrained BERT as Hugging Face lays it out; its folder. `changes`: of its configuration."""
    settings: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    } | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = transformers.BertConfig(vocab_size=vocabulary, **settings)
        model = transformers.BertModel(shape, add_pooling_layer=False)
    model.save_pretrained(folder)
    return str(folder)


def encoder() -> ImageEncoder:
    """A tiny untrained ViT."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = transformers.ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        )
        model = transformers.ViTModel(settings, add_pooling_layer=False)
    return ImageEncoder(model, Preprocessing.squeeze(16), TOKENS, colour_levels=0)


def _table(rows: list[Any], schema: pa.Schema, path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema), path)

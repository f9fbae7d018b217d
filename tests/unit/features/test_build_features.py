from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from PIL import Image
from pydantic import ValidationError

from mrse.config import FeaturesConfig, ImageEncoderConfig
from mrse.data.contract import ITEMS, SnapshotMeta, write_meta, write_parquet
from mrse.errors import ConfigError, DataError
from mrse.features.build import build_features, vocabulary_texts
from mrse.features.images import ImageEncoder
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer

DAY = datetime(2026, 3, 1, tzinfo=UTC)
CONFIG = FeaturesConfig(
    vocab_size=300,
    image_encoder=ImageEncoderConfig(
        image_size=16, patch_size=8, dim=8, depth=1, heads=2, tokens=2, colour_levels=2, pretrain_steps=2
    ),
)


def make_shop(workspace: Path, images: list[str | None]) -> None:
    rows = [
        {"item_id": f"i{place}", "title": f"Red shirt {place}", "category": "A > B" if place else None, "image": image}
        for place, image in enumerate(images)
    ]
    write_parquet(pa.Table.from_pylist(rows, schema=ITEMS), workspace / "data/clean/items.parquet")
    meta = SnapshotMeta(
        source="files", start=DAY, end=DAY, simulated=False, note="", rows={}, fingerprint="", image_root="pictures"
    )
    write_meta(workspace / "data/clean", meta)
    queries = pa.table({"query": ["red shirt"], "requests": pa.array([3], pa.int64())})
    write_parquet(queries, workspace / "data/profiles/queries.parquet")
    asked = [
        ("train", "red shirt", "i0"),
        ("train", "red shirt", "i0"),
        ("train", "a shirt", "i0"),
        ("valid", "x", "i1"),
    ]
    examples = pa.table(dict(zip(("split", "query", "item_id"), zip(*asked, strict=True), strict=True)))
    write_parquet(examples, workspace / "data/profiles/examples.parquet")
    (workspace / "pictures").mkdir()
    for seed in range(3):
        (workspace / f"pictures/{seed}.png").write_bytes(png(seed))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 12, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def run(workspace: Path, config: FeaturesConfig = CONFIG) -> dict:
    data = workspace / "data"
    return build_features(config, data / "clean", data / "profiles", workspace, workspace / "cache", data / "features")


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_three_items_give_the_contracts_files(tmp_path: Path) -> None:
    make_shop(tmp_path, ["0.png", None, "1.png"])
    facts = run(tmp_path)
    out = tmp_path / "data/features"
    assert set(contents(out)) == {
        "features.json",
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "image_encoder/preprocessor_config.json",
        "image_features.npy",
        "image_index.parquet",
        "subword.json",
        "tokenizer.json",
    }
    assert pq.read_table(out / "image_index.parquet").to_pylist() == [
        {"item_id": "i0", "content_hash": hashlib.sha256(png(0)).hexdigest(), "row": 0},
        {"item_id": "i1", "content_hash": None, "row": -1},
        {"item_id": "i2", "content_hash": hashlib.sha256(png(1)).hexdigest(), "row": 1},
    ]
    encoder = ImageEncoder.load(out / "image_encoder")
    expected = encoder.encode([Image.open(io.BytesIO(png(seed))) for seed in (0, 1)])
    np.testing.assert_allclose(np.load(out / "image_features.npy"), expected, atol=2e-3)
    assert SubwordHasher.load(out / "subword.json").buckets == CONFIG.subword_buckets
    assert Tokenizer.load(out).vocab_size == facts["vocab_size"]
    assert facts == json.loads((out / "features.json").read_text())
    assert facts["image_encoder"]["fingerprint"] == encoder.fingerprint
    assert (facts["items"], facts["images"], facts["items_with_image"]) == (3, 2, 2)
    assert facts["image_encoder"]["pretrained_on"] == 2


def test_a_second_run_writes_equal_bytes(tmp_path: Path) -> None:
    make_shop(tmp_path, ["0.png", "gone.png", "1.png"])
    facts = run(tmp_path)
    first = contents(tmp_path / "data/features")
    (tmp_path / "data/features/stale.txt").write_text("left over")
    run(tmp_path)
    assert contents(tmp_path / "data/features") == first
    assert facts["unusable_images"] == {"missing": 1}


@pytest.mark.parametrize("images", [[None, None], ["gone.png", None]])
def test_without_a_usable_picture_there_is_no_encoder(tmp_path: Path, images: list[str | None]) -> None:
    make_shop(tmp_path, images)
    facts = run(tmp_path)
    out = tmp_path / "data/features"
    assert not (out / "image_encoder").exists()
    assert np.load(out / "image_features.npy").shape == (0, 2, 8 + 8)
    assert pq.read_table(out / "image_index.parquet")["row"].to_pylist() == [-1, -1]
    assert facts["images"] == 0 and facts["image_encoder"] is None
    assert facts["unusable_images"] == ({"missing": 1} if images[0] else {})


def test_a_named_encoder_is_taken_as_it_is(tmp_path: Path) -> None:
    make_shop(tmp_path, ["0.png", "1.png"])
    run(tmp_path)
    (tmp_path / "data/features/image_encoder").rename(tmp_path / "given")
    given = ImageEncoderConfig(name=str(tmp_path / "given"), tokens=5, colour_levels=2)
    facts = run(tmp_path, FeaturesConfig(vocab_size=300, image_encoder=given))
    assert facts["image_encoder"]["pretrained_on"] == 0 and facts["image_encoder"]["name"] == given.name
    assert np.load(tmp_path / "data/features/image_features.npy").shape == (2, 5, 8 + 8)
    weights = "model.safetensors"
    assert (tmp_path / "data/features/image_encoder" / weights).read_bytes() == (
        tmp_path / "given" / weights
    ).read_bytes()


def test_a_named_text_encoder_is_recorded_for_the_model(tmp_path: Path) -> None:
    make_shop(tmp_path, [None])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"]
    transformers.BertTokenizerFast(vocab={word: place for place, word in enumerate(words)}).save_pretrained(
        tmp_path / "bert"
    )
    facts = run(tmp_path, CONFIG.model_copy(update={"text_encoder": str(tmp_path / "bert")}))
    assert facts["text_encoder"] == str(tmp_path / "bert") and facts["vocab_size"] == 6


def test_vocabulary_comes_from_titles_categories_and_queries() -> None:
    items = pa.table({"title": ["Red shirt", "Boots"], "category": ["A > B", None]})
    queries = pa.table({"query": ["often", "once"], "requests": [9, 1]})
    assert list(vocabulary_texts(items, queries)) == ["Red shirt", "Boots", "A > B", *["often"] * 4, "once"]


def test_missing_and_broken_queries_say_so(tmp_path: Path) -> None:
    make_shop(tmp_path, [None])
    path = tmp_path / "data/profiles/queries.parquet"
    pq.write_table(pa.table({"query": ["a"]}), path)
    with pytest.raises(DataError, match=r"queries\.parquet"):
        run(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"queries\.parquet"):
        run(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="run build_profiles first"):
        run(tmp_path)


def test_a_failed_run_keeps_the_last_result(tmp_path: Path) -> None:
    make_shop(tmp_path, ["0.png"])
    run(tmp_path)
    first = contents(tmp_path / "data/features")
    bad = CONFIG.model_copy(update={"image_encoder": ImageEncoderConfig(name=str(tmp_path / "nothing"))})
    with pytest.raises(ConfigError, match="nothing"):
        run(tmp_path, bad)
    assert contents(tmp_path / "data/features") == first


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"image_encoder": {"tokens": 4}}, "1 . a square"),
        ({"image_encoder": {"image_size": 65}}, "multiple of patch_size"),
        ({"image_encoder": {"heads": 3}}, "multiple of heads"),
        ({"image_encoder": {"colour_levels": 1}}, "a palette of one colour"),
        ({"subword_min_n": 6}, "above subword_max_n"),
        ({"vocab_size": 100}, "300"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(section: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeaturesConfig(**section)

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrse.config import ImageEncoderConfig
from mrse.data.images import ImageStore
from mrse.features import image_cache, images
from mrse.features.image_cache import FeatureCache
from mrse.features.images import ImageEncoder, ImageFeatures, image_features
from mrse.features.pretrain import pretrain

TINY = ImageEncoderConfig(
    image_size=16, patch_size=8, dim=8, depth=1, heads=2, tokens=2, colour_levels=0, pretrain_steps=0
)


class CountingEncoder(ImageEncoder):
    """Counts the pictures that really pass the model."""

    passed = 0

    def encode_pixels(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        self.passed += len(pixels_BHWC)
        return super().encode_pixels(pixels_BHWC)


@pytest.fixture
def encoder(tmp_path: Path) -> CountingEncoder:
    return make_encoder(tmp_path / "encoder", 0)


def make_encoder(folder: Path, seed: int) -> CountingEncoder:
    pretrain(np.zeros((0, 16, 16, 3), np.uint8), [], [], [], TINY, seed).save(folder)
    encoder = CountingEncoder.load(folder)
    assert isinstance(encoder, CountingEncoder)
    return encoder


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(png(seed))
    return folder


def compute(encoder: ImageEncoder, refs: list[str | None], pictures: Path, cache: str = "cache") -> ImageFeatures:
    return image_features(encoder, refs, ImageStore(str(pictures)), pictures.parent / cache)


def test_rows_are_the_encoders_own_features(encoder: CountingEncoder, pictures: Path) -> None:
    result = compute(encoder, ["2.png", None, "0.png"], pictures)
    assert result.row.tolist() == [0, -1, 1] and result.row.dtype == np.int64
    assert result.array.shape == (2, 2, 8) and result.array.dtype == np.float16
    expected = encoder.encode([Image.open(io.BytesIO(png(seed))) for seed in (2, 0)])
    np.testing.assert_allclose(result.array, expected, atol=2e-3)
    assert result.content_hash[1] is None and len(result.content_hash[0] or "") == 64


def test_a_second_run_encodes_nothing(encoder: CountingEncoder, pictures: Path) -> None:
    refs = [f"{seed}.png" for seed in range(6)]
    first = compute(encoder, refs, pictures)
    assert (encoder.passed, first.encoded) == (6, 6)
    second = compute(encoder, refs[::-1], pictures)
    assert (encoder.passed, second.encoded) == (6, 0)
    assert (second.array == first.array[::-1]).all()
    (pictures / "new.png").write_bytes(png(99))
    assert compute(encoder, [*refs, "new.png"], pictures).encoded == 1
    assert encoder.passed == 7


def test_equal_bytes_share_one_row(encoder: CountingEncoder, pictures: Path) -> None:
    (pictures / "copy.png").write_bytes(png(1))
    result = compute(encoder, ["1.png", "0.png", "copy.png", "1.png"], pictures)
    assert result.row.tolist() == [0, 1, 0, 0]
    assert encoder.passed == 2 == len(result.array)


def test_pictures_that_cannot_be_used_are_counted_by_reason(encoder: CountingEncoder, pictures: Path) -> None:
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "text.png").write_bytes(b"not a picture")
    (pictures / "same-text.png").write_bytes(b"not a picture")
    (pictures / "cut.png").write_bytes(png(3)[:200])
    refs = ["0.png", "gone.png", "empty.png", "text.png", "same-text.png", "cut.png", None, "1.png"]
    result = compute(encoder, refs, pictures)
    assert result.row.tolist() == [0, -1, -1, -1, -1, -1, -1, 1]
    assert [name is None for name in result.content_hash] == [False] + [True] * 6 + [False]
    cut = result.problems.pop("truncated", 0) + result.problems.pop("unreadable", 0)
    assert (result.problems, cut) == ({"empty": 1, "missing": 1, "not_an_image": 2}, 1)


def test_too_large_pictures_are_not_decoded(encoder: CountingEncoder, pictures: Path) -> None:
    result = image_features(encoder, ["0.png"], ImageStore(str(pictures)), pictures.parent / "cache", max_pixels=100)
    assert result.problems == {"too_large": 1} and encoder.passed == 0


def test_no_pictures_give_an_empty_array(encoder: CountingEncoder, pictures: Path) -> None:
    result = compute(encoder, [None, None], pictures)
    assert result.array.shape == (0, 2, 8) and result.row.tolist() == [-1, -1] and result.problems == {}


def test_another_encoder_has_features_of_its_own(encoder: CountingEncoder, pictures: Path, tmp_path: Path) -> None:
    other = make_encoder(tmp_path / "other", 1)
    first, second = (compute(each, ["0.png"], pictures) for each in (encoder, other))
    assert other.passed == 1 and (first.array != second.array).any()
    assert compute(encoder, ["0.png"], pictures).encoded == 0


def test_a_written_array_is_a_plain_npy_file(encoder: CountingEncoder, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "image_features.npy"
    result = image_features(encoder, ["0.png"], ImageStore(str(pictures)), tmp_path / "cache", out=out)
    assert (np.load(out, mmap_mode="r") == result.array).all()
    assert not list(tmp_path.glob("*.partial"))


def test_the_array_without_a_file_leaves_nothing_behind(encoder: CountingEncoder, pictures: Path) -> None:
    result = compute(encoder, ["0.png"], pictures)
    assert [path.name for path in (pictures.parent / "cache").iterdir()] == ["image_features"]
    assert np.isfinite(result.array).all()


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_damaged_shard_is_encoded_again(
    encoder: CountingEncoder, pictures: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_BATCH", 2)
    monkeypatch.setattr(images, "_SHARD", 2)
    refs = [f"{seed}.png" for seed in range(6)]
    first = np.array(compute(encoder, refs, pictures).array)
    shards = sorted((pictures.parent / "cache").rglob("*.safetensors"))
    assert len(shards) == 3
    data = shards[1].read_bytes()
    shards[1].write_bytes({"cut": data[:-10], "empty": b"", "noise": os.urandom(len(data))}[damage])
    result = compute(encoder, refs, pictures)
    assert result.encoded == 2
    np.testing.assert_allclose(result.array, first, atol=2e-3)


def test_an_interrupted_run_goes_on_where_it_stopped(
    encoder: CountingEncoder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_BATCH", 2)
    monkeypatch.setattr(images, "_SHARD", 2)
    refs = [f"{seed}.png" for seed in range(6)]
    whole = encoder.encode_pixels

    def stop_in_the_third_batch(pixels: np.ndarray) -> np.ndarray:
        if encoder.passed == 4:
            raise KeyboardInterrupt
        return whole(pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoder, "encode_pixels", stop_in_the_third_batch)
        compute(encoder, refs, pictures)
    shard = next((pictures.parent / "cache").rglob("*.safetensors"))
    shard.with_name("half-written.partial").write_bytes(shard.read_bytes()[:50])
    result = compute(encoder, refs, pictures)
    assert result.encoded == 2 and (result.row == np.arange(6)).all()


def test_cache_finds_digests_that_end_in_zeros(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "f" * 64, tokens=1, dim=2)
    contents = [b"\x01" * 31 + b"\0", b"\0" * 32, b"\x02" * 32]
    features = np.arange(6, dtype=np.float16).reshape(3, 1, 2)
    cache.add(contents, features)
    again = FeatureCache(tmp_path, "f" * 64, tokens=1, dim=2)
    for opened in (cache, again):
        assert len(opened) == 3 and all(content in opened for content in contents)
        assert b"\x03" * 32 not in opened
        assert (opened.gather(contents[::-1], tmp_path / "out.npy") == features[::-1]).all()


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    digests = [bytes([place]) * 32 for place in range(1, 41)]

    def write(part: int) -> None:
        cache = FeatureCache(tmp_path, "f" * 64, tokens=1, dim=1)
        for place in range(part * 10, part * 10 + 20):  # halves overlap
            cache.add([digests[place % 40]], np.full((1, 1, 1), place % 40, np.float16))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    cache = FeatureCache(tmp_path, "f" * 64, tokens=1, dim=1)
    assert cache.gather(digests, tmp_path / "out.npy").ravel().tolist() == list(range(40))


def test_shards_of_another_shape_are_ignored(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "f" * 64, tokens=1, dim=2).add([b"\x01" * 32], np.zeros((1, 1, 2), np.float16))
    assert len(FeatureCache(tmp_path, "f" * 64, tokens=1, dim=3)) == 0


def test_only_the_newest_encoders_are_kept(tmp_path: Path) -> None:
    for place in range(image_cache._KEPT_ENCODERS + 2):
        FeatureCache(tmp_path, f"{place:064x}"[::-1], tokens=1, dim=1)
        os.utime(tmp_path / f"{place:064x}"[::-1][:32], (place + 1, place + 1))
    FeatureCache(tmp_path, f"{1:064x}"[::-1], tokens=1, dim=1)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == image_cache._KEPT_ENCODERS
    assert f"{1:064x}"[::-1][:32] in kept

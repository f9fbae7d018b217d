from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from mrse.config import ImageEncoderConfig
from mrse.errors import ConfigError
from mrse.features.encoder import ImageEncoder
from mrse.features.preprocess import Preprocessing
from mrse.features.pretrain import augment, multi_positive_nce, pretrain

SMALL = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SETTINGS = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 3,
}


def picture(seed: int, size: tuple[int, int] = (40, 56)) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (7, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def saved_model(folder: Path, settings: dict | None = None, **config: int) -> Path:
    torch.manual_seed(0)
    model = transformers.ViTModel(
        transformers.ViTConfig(**{**SMALL, "patch_size": 8, **config}), add_pooling_layer=False
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings or SETTINGS))
    return folder


def test_a_named_model_gives_its_own_class_token_and_patch_averages(tmp_path: Path) -> None:
    folder = saved_model(tmp_path)
    images = [picture(0), picture(1)]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model(**processor(images, return_tensors="pt")).last_hidden_state
    patches = hidden[:, 1:].reshape(2, 2, 2, 2, 2, 16)  # row half, row, column half, column of the 4 x 4 grid
    expected = torch.cat([hidden[:, :1], patches.mean((2, 4)).reshape(2, 4, 16)], dim=1)

    encoder = ImageEncoder.load(folder, colour_levels=0)
    features = encoder.encode(images)
    assert features.shape == (2, 5, 16) and features.dtype == np.float16
    assert (encoder.dim, encoder.tokens) == (16, 5)
    np.testing.assert_allclose(features, expected.numpy(), atol=5e-3)
    with_colours = ImageEncoder.load(folder, colour_levels=3)
    assert with_colours.dim == 16 + 27
    np.testing.assert_allclose(with_colours.encode(images)[:, :, :16], features, atol=2e-3)


def test_it_is_frozen(tmp_path: Path) -> None:
    encoder = ImageEncoder.load(saved_model(tmp_path))
    assert not encoder._model.training
    assert not any(weight.requires_grad for weight in encoder._model.parameters())


def test_save_and_load_keep_outputs_and_fingerprint(tmp_path: Path) -> None:
    encoder = ImageEncoder.load(saved_model(tmp_path / "model"), tokens=2, colour_levels=2)
    encoder.save(tmp_path / "saved")
    again = ImageEncoder.load(tmp_path / "saved")
    assert (again.tokens, again.dim) == (2, 16 + 8) and again.fingerprint == encoder.fingerprint
    assert (again.encode([picture(3)]) == encoder.encode([picture(3)])).all()
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
    again.save(tmp_path / "twice")
    for name in names:
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_transformers_loads_what_was_saved(tmp_path: Path) -> None:
    pretrain(np.zeros((0, 32, 32, 3), np.uint8), [], [], [], tiny(pretrain_steps=0), seed=0).save(tmp_path)
    assert isinstance(transformers.AutoModel.from_pretrained(tmp_path), transformers.ViTModel)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor(picture(0), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("what", ["weights", "tokens", "mean", "colours"])
def test_whatever_changes_the_features_changes_the_fingerprint(tmp_path: Path, what: str) -> None:
    encoder = ImageEncoder.load(saved_model(tmp_path))
    if what == "weights":
        model = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False)
        with torch.no_grad():
            model.layernorm.bias[0] += 1e-6
        model.save_pretrained(tmp_path)
    if what == "mean":
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS | {"image_mean": [0.4, 0.5, 0.61]}))
    changes = {"tokens": {"tokens": 2}, "colours": {"colour_levels": 4}}
    other = ImageEncoder.load(tmp_path, **changes.get(what, {}))
    assert other.fingerprint != encoder.fingerprint


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    saved_model(tmp_path)
    before = torch.random.get_rng_state()
    ImageEncoder.load(tmp_path)
    assert (torch.random.get_rng_state() == before).all()


def test_other_families_clip_dinov2_swin(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**SMALL, "patch_size": 8, "num_channels": 3},
            text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                         "vocab_size": 10},
        )
    )  # fmt: skip
    registers = transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SMALL, patch_size=8, num_register_tokens=3, mlp_ratio=2)
    )
    swin = transformers.SwinModel(
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
        )
    )
    for name, model, dim, prefix in (("clip", clip, 16, 1), ("dino", registers, 16, 4), ("swin", swin, 16, 0)):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
        encoder = ImageEncoder.load(tmp_path / name, colour_levels=0)
        assert encoder._prefix == prefix, name
        features = encoder.encode([picture(0), picture(1)])
        assert features.shape == (2, 5, dim), name
        assert np.isfinite(features).all() and (features[0] != features[1]).any(), name
        encoder.save(tmp_path / f"{name}-saved")
        again = ImageEncoder.load(tmp_path / f"{name}-saved")
        assert again.fingerprint == encoder.fingerprint, name
        assert (again.encode([picture(0), picture(1)]) == features).all(), name


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, (90, 60)),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}, (60, 90)),
        ({"size": 32}, (90, 60)),
        ({"size": {"height": 32, "width": 32}, "do_normalize": False}, (32, 32)),
    ],
)
def test_pixels_agree_with_the_models_own_processor(settings: dict, size: tuple[int, int]) -> None:
    kind = "CLIPImageProcessor" if "do_center_crop" in settings else "ViTImageProcessor"
    raw = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 2} | settings
    image = picture(5, size)
    theirs = getattr(transformers, kind + "Pil").from_dict(dict(raw))(image, return_tensors="np")["pixel_values"][0]
    prepared = Preprocessing.parse(raw, "test")
    ours = prepared.pixels(image) * np.array(prepared.scale) - np.array(prepared.shift)
    np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs, atol=0.03)


def test_models_that_cannot_serve_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ImageEncoder.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="tokens = 4 is not 1"):
        ImageEncoder.load(saved_model(tmp_path / "vit"), tokens=4)
    with pytest.raises(ConfigError, match="colour_levels = 1 is neither"):
        ImageEncoder.load(tmp_path / "vit", colour_levels=1)
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(SETTINGS | {"size": {"height": 48, "width": 48}}))
    with pytest.raises(ConfigError, match="does not work on"):
        ImageEncoder.load(tmp_path / "vit")
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(SETTINGS | {"size": {"longest_edge": 48}}))
    with pytest.raises(ConfigError, match="no height and width"):
        ImageEncoder.load(tmp_path / "vit")
    (tmp_path / "vit/preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ImageEncoder.load(tmp_path / "vit")


def test_a_text_model_or_missing_weights_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(**small, vocab_size=10)).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert/preprocessor_config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(ConfigError, match="takes input_ids"):
        ImageEncoder.load(tmp_path / "bert")
    folder = saved_model(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ConfigError, match="incomplete"):
        ImageEncoder.load(folder)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = saved_model(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*safetensors"):
        ImageEncoder.load(folder)


def tiny(**changes: int) -> ImageEncoderConfig:
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "dim": 24,
        "depth": 1,
        "heads": 2,
        "pretrain_steps": 40,
        "colour_levels": 0,
    }
    return ImageEncoderConfig(**{**sizes, "pretrain_batch": 24, **changes})


COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}


def shop(rows: int, seed: int = 0) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Squares of a colour in a random place on white; two titles in three name the colour."""
    random = np.random.default_rng(seed)
    pixels = np.full((rows, 32, 32, 3), 255, np.uint8)
    names = [list(COLOURS)[place] for place in random.integers(0, len(COLOURS), rows)]
    for row, name in zip(pixels, names, strict=True):
        top, left = random.integers(0, 16, 2)
        row[top : top + 14, left : left + 14] = np.clip(random.normal(COLOURS[name], 25, (14, 14, 3)), 0, 255)
    titles = [f"{name} shirt" if place % 3 else "shirt" for place, name in enumerate(names)]
    return pixels, titles, ["Apparel > Shirts"] * rows, names


def test_pretraining_is_equal_for_an_equal_seed() -> None:
    pixels, titles, categories, _ = shop(30)
    one, two, other = (
        pretrain(pixels, titles, categories, [[]] * len(titles), tiny(pretrain_steps=3), seed) for seed in (1, 1, 2)
    )
    assert one.fingerprint == two.fingerprint != other.fingerprint


def separation(encoder: ImageEncoder, pixels: np.ndarray, names: list[str]) -> float:
    """Variance between colours over variance within one, of the class token."""
    vectors = encoder.encode([Image.fromarray(row) for row in pixels])[:, 0].astype(np.float64)
    groups = [vectors[[name == colour for name in names]] for colour in COLOURS]
    within = np.mean([group.var(0).sum() for group in groups])
    return float(np.var([group.mean(0) for group in groups], axis=0).sum() / within)


def test_pretraining_teaches_what_titles_say() -> None:
    pixels, titles, categories, names = shop(300)
    untrained, trained = (
        pretrain(pixels, titles, categories, [[]] * len(titles), config, seed=0)
        for config in (tiny(pretrain_steps=0), tiny())
    )
    assert separation(trained, pixels, names) > 2 * separation(untrained, pixels, names)


def test_queries_teach_what_no_title_says() -> None:
    pixels, _, categories, names = shop(300)
    untold = ["shirt"] * len(pixels)
    # Every second item was never asked for.
    asked = [[f"{name} shirt", name] if place % 2 else [] for place, name in enumerate(names)]
    without, with_queries = (
        pretrain(pixels, untold, categories, queries, tiny(), seed=0) for queries in ([[]] * len(pixels), asked)
    )
    assert separation(with_queries, pixels, names) > 2 * separation(without, pixels, names)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_tiny_catalogue_is_enough(rows: int) -> None:
    pixels, titles, categories, _ = shop(rows)
    encoder = pretrain(pixels, titles, categories, [[]] * len(titles), tiny(pretrain_steps=2), seed=0)
    assert np.isfinite(encoder.encode([picture(0)])).all()


def test_multi_positive_nce_against_a_loop() -> None:
    torch.manual_seed(0)
    left, right = (torch.nn.functional.normalize(torch.randn(5, 3), dim=1) for _ in range(2))
    group, scale = torch.tensor([0, 1, 0, 2, 1]), torch.tensor(7.0)
    total = 0.0
    for one, other in ((left, right), (right, left)):
        for row in range(5):
            shares = (scale * one[row] @ other.T).softmax(0)
            total -= float(shares[group == group[row]].log().mean()) / 10
    assert multi_positive_nce(left, right, group, scale).item() == pytest.approx(total, rel=1e-5)


def test_equal_titles_do_not_push_each_other_away() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    apart, together = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    scale = torch.tensor(50.0)
    loss = multi_positive_nce(vectors, vectors, together, scale)
    assert loss < multi_positive_nce(vectors, vectors, apart, scale) + 1e-6
    pulled = vectors.clone().requires_grad_()
    torch.autograd.backward(multi_positive_nce(pulled, vectors, together, scale))
    assert pulled.grad is not None and pulled.grad.abs().max() < 1e-3


def test_augmentation_keeps_hues() -> None:
    flat = torch.tensor([0.8, 0.2, 0.4])[None, :, None, None].expand(16, 3, 32, 32)
    changed = augment(flat, torch.Generator().manual_seed(0))
    ratio = changed / flat
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio))
    assert 0.9 <= ratio.min() < ratio.max() <= 1.1

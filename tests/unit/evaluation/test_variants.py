"""Variants of the training: which are chosen, what they change, and one clear error where they do not fit."""

import re

import pyarrow.parquet as pq
import pytest

from mrse.config import DataChange, changed, parse
from mrse.errors import ConfigError
from mrse.evaluation.variants import full_model, make_variant, shortened, write_profiles
from mrse.profiles import tables
from tests import tiny_shop

VARIANTS = {
    "inputs": {"no_images": {"model.images": False}, "history_2": {"model.history_length": 2}},
    "experts": {
        "wide": {"model.experts.ftatt": False, "model.hidden": "match"},
        "no_vbert": {"model.experts.vbert": False},
        "dense": {"model.experts.ftatt": False, "model.transformer_hidden": None, "model.hidden": "match"},
    },
    "wrong": {
        "typo": {"model.imagez": False},
        "heads": {"model.heads": 5},
        "share": {"data.examples_share": 2},
        "what": {"data.nonsense": 1},
    },
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    tiny_shop.write_shop(folder, pictures=False)
    return folder


@pytest.fixture(scope="module")
def params():
    train = tiny_shop.config().model_dump(mode="json")
    return parse({"snapshot": {"end": "2026-03-15"}, "train": train, "ablate": {"variants": VARIANTS}})


def test_names_and_groups_are_chosen_in_the_order_of_the_parameters(params):
    assert params.ablate.choose(["no_vbert", "inputs"]) == {
        "no_images": "inputs", "history_2": "inputs", "no_vbert": "experts",
    }  # fmt: skip
    assert len(params.ablate.choose([])) == 9
    assert params.ablate.choose(["full"]) == {}


def test_an_unknown_name_is_one_error_that_lists_the_known(params):
    with pytest.raises(ConfigError) as caught:
        params.ablate.choose(["no_images", "no_imagez"])
    message = str(caught.value)
    assert "no variant or group 'no_imagez' in ablate.variants" in message and "\n" not in message
    assert "experts: wide, no_vbert, dense" in message


def test_a_variant_changes_what_it_says_and_nothing_else(params, shop):
    full = full_model(params, shop / "features")
    variant = make_variant(params, "inputs", "no_images", full, shop / "features")
    expected = full.train.model_dump() | {"model": full.train.model.model_dump() | {"images": False}}
    assert variant.train.model_dump() == expected
    assert variant.data == DataChange()
    assert full.train == params.train


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("typo", "params.yaml: ablate.variants.wrong.typo: model.imagez: unknown key"),
        ("heads", "params.yaml: ablate.variants.wrong.heads: model: hidden = 32 is not a multiple of heads = 5"),
        ("share", "params.yaml: ablate.variants.wrong.share: data: examples_share: Input should be less than"),
        ("what", "params.yaml: ablate.variants.wrong.what: data: nonsense: unknown key"),
    ],
)
def test_a_variant_that_does_not_fit_is_named(params, shop, name, says):
    full = full_model(params, shop / "features")
    with pytest.raises(ConfigError, match=re.escape(says)):
        make_variant(params, "wrong", name, full, shop / "features")


def test_match_finds_the_hidden_size_with_as_many_parameters(params, shop):
    full = full_model(params, shop / "features")
    wide = make_variant(params, "experts", "wide", full, shop / "features")
    heads, hidden = full.train.model.heads, wide.train.model.hidden
    assert hidden > full.train.model.hidden and hidden % heads == 0
    distance = abs(wide.parameters - full.parameters)
    for other in (hidden - heads, hidden + heads):
        train = changed(wide.train, {"model.hidden": other}, "here")
        beside = full_model(params.model_copy(update={"train": train}), shop / "features")
        assert abs(beside.parameters - full.parameters) > distance
    smaller = make_variant(params, "experts", "no_vbert", full, shop / "features")
    assert smaller.parameters < full.parameters and smaller.train.model.hidden == full.train.model.hidden


def test_a_transformer_of_a_width_of_its_own_is_let_grow(params, shop):
    narrow = changed(params.train, {"model.transformer_hidden": 16}, "here")
    narrowed = params.model_copy(update={"train": narrow})
    full = full_model(narrowed, shop / "features")
    held, dense = (make_variant(narrowed, "experts", name, full, shop / "features") for name in ("wide", "dense"))
    assert held.train.model.transformer_width == 16 < dense.train.model.transformer_width == dense.train.model.hidden
    assert dense.train.model.hidden < held.train.model.hidden


def test_a_share_of_the_steps(params):
    train = params.train
    assert (train.align_steps, train.fuse_steps) == (60, 100)
    half, least = shortened(train, 0.5), shortened(train, 0.001)
    assert (half.align_steps, half.fuse_steps) == (30, 50)
    assert (least.align_steps, least.fuse_steps) == (0, 1)
    assert shortened(train, 1.0) == train


def test_fewer_examples_are_nested_and_leave_the_rest_alone(shop, tmp_path):
    examples = pq.read_table(shop / "profiles/examples.parquet")
    kept = {}
    for share in (0.25, 0.5):
        write_profiles(DataChange(examples_share=share), shop / "profiles", tmp_path / str(share))
        table = tables.read(tmp_path / str(share) / "examples.parquet")
        kept[share] = set(table.column("session_id").to_pylist())
        assert len(table) == pytest.approx(share * len(examples), rel=0.15)
    assert kept[0.25] < kept[0.5]
    for name in ("requests", "items"):
        assert pq.read_table(tmp_path / f"0.5/{name}.parquet") == pq.read_table(shop / f"profiles/{name}.parquet")

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from mrse.data import contract
from mrse.errors import ConfigError, DataError
from mrse.features.text import Tokenizer
from mrse.index.embed import _taken
from mrse.jsonfile import read_json, write_json
from mrse.model.arrays import History, HistoryBank, action_code, age_bucket
from mrse.model.retriever import Retriever, load_catalogue
from tests import tiny_shop

QUERIES = ["red shirt", "blue boots for men and women", "", "RED  Shirt"]


@pytest.fixture(scope="module")
def package(fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "challenger"
    Retriever(fresh.model, fresh.assets, fresh.settings).save(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(fresh):
    return fresh.encode_catalogue(tiny_shop.catalogue())


@pytest.fixture(scope="module")
def bank(encoded):
    return HistoryBank(encoded.item_ids, encoded.bank)


def history(bank, *places):
    return History([bank.item_ids[p] for p in places], ["click"] * len(places), [1.0] * len(places))


def test_a_package_gives_back_the_same_vectors(package, fresh, encoded, bank):
    loaded = Retriever.load(package)
    again = loaded.encode_catalogue(tiny_shop.catalogue())
    assert np.array_equal(again.vectors, encoded.vectors) and np.array_equal(again.bank, encoded.bank)
    histories = [history(bank, 0, 1), None, None, None]
    assert np.array_equal(
        loaded.encode_queries(QUERIES, histories, bank), fresh.encode_queries(QUERIES, histories, bank)
    )


def test_a_package_holds_all_it_needs_and_nothing_pickled(package):
    names = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    needed = {"config.json", "model.safetensors", "tokenizer.json", "subword.json"}
    assert needed < names and "image_encoder/model.safetensors" in names
    assert all(name.endswith((".json", ".safetensors")) for name in names)


def test_the_fingerprint_is_of_the_files(package, tmp_path):
    first = Retriever.load(package)
    first.save(tmp_path / "copy")
    assert Retriever.load(tmp_path / "copy").fingerprint == first.fingerprint == Retriever.load(package).fingerprint
    settings = read_json(tmp_path / "copy/config.json")
    write_json(tmp_path / "copy/config.json", settings | {"note": "changed"})
    assert Retriever.load(tmp_path / "copy").fingerprint != Retriever.load(package).fingerprint


def test_steady_parts_are_the_same_bits_in_any_company(fresh, encoded):
    catalogue = tiny_shop.catalogue()
    words = [title.lower() for title in catalogue.titles]
    items, queries = fresh.steady_item_parts(catalogue), fresh.steady_query_parts(words)
    order = np.random.default_rng(0).permutation(len(words))
    for rows in (order, order[:1], order[1:8], order[8:]):
        assert np.array_equal(fresh.steady_item_parts(_taken(catalogue, rows)), items[rows])
        assert np.array_equal(fresh.steady_query_parts([words[row] for row in rows]), queries[rows])
    assert np.allclose(items, encoded.bank, atol=2e-3)
    assert np.allclose(queries, fresh.query_parts(words).numpy(), atol=2e-3)
    assert fresh.steady_query_parts([]).shape == (0, *queries.shape[1:])


def test_vectors_are_unit_and_deterministic_whatever_the_batch(fresh, encoded, bank):
    assert encoded.vectors.dtype == np.float32 and encoded.bank.dtype == np.float16
    assert np.allclose(np.linalg.norm(encoded.vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(encoded.preferences.sum(axis=1), 1, atol=1e-5)
    again = fresh.encode_catalogue(tiny_shop.catalogue())
    assert np.array_equal(again.vectors, encoded.vectors)
    small = fresh.encode_catalogue(tiny_shop.catalogue(), batch_size=7)
    # float16 banks may round a last bit the other way
    assert np.allclose(small.vectors, encoded.vectors, atol=2e-3)
    histories = [history(bank, 3), None, history(bank, 1, 2), None]
    one_by_one = fresh.encode_queries(QUERIES, histories, bank, batch_size=1)
    assert np.allclose(one_by_one, fresh.encode_queries(QUERIES, histories, bank), atol=1e-3)


def test_case_and_spaces_never_matter(fresh):
    vectors = fresh.encode_queries(QUERIES)
    assert np.array_equal(vectors[0], vectors[3])


def test_histories_move_queries_and_unknown_items_are_skipped(fresh, bank):
    plain = fresh.encode_queries(["shirt"] * 3)
    known = history(bank, 5, 9)
    padded = History(["nobody-sells-this", *known.item_ids], ["click"] * 3, [0.5, 1.0, 1.0])
    moved = fresh.encode_queries(["shirt"] * 3, [known, padded, History()], bank)
    assert not np.allclose(moved[0], plain[0], atol=1e-4)
    assert np.allclose(moved[0], moved[1], atol=1e-5)
    assert np.allclose(moved[2], plain[2], atol=1e-5)


def test_no_more_of_a_history_is_read_than_in_training(fresh, bank):
    """The newest `history_length` items, sold or not, as training cuts them."""
    newest = history(bank, *range(30))
    longer = history(bank, *range(30), *range(60, 90))
    assert fresh.model.config.history_length == 30
    assert fresh.shopper_memory([longer], bank).known_BM.shape == (1, 30)
    cut, whole = (fresh.encode_queries(["shirt"], [known], bank) for known in (newest, longer))
    assert np.array_equal(cut, whole)
    shorter = fresh.encode_queries(["shirt"], [history(bank, *range(29))], bank)
    assert not np.allclose(cut, shorter, atol=1e-6)
    gone = History(["gone", *longer.item_ids], ["click", *longer.actions], [0.0, *longer.ages_hours])
    assert np.allclose(fresh.encode_queries(["shirt"], [gone], bank), shorter, atol=1e-6)


def test_an_order_older_than_many_clicks_is_read(package, fresh, bank):
    """It stands behind them, as `build_profiles` keeps it; the ablation `no_long_history` reads up to there."""
    clicks = history(bank, *range(20))
    order = History([*clicks.item_ids, bank.item_ids[50]], [*clicks.actions, "order"], [*clicks.ages_hours, 336.0])
    memory = fresh.shopper_memory([order], bank)
    assert memory.known_BM.tolist() == [[True] * 21]
    assert (memory.action_BM[0, 20], memory.age_BM[0, 20]) == (action_code("order"), age_bucket(336.0))
    long, newest = (fresh.encode_queries(["shirt"], [known], bank) for known in (order, clicks))
    assert not np.allclose(long, newest, atol=1e-6)
    short = Retriever.load(package)
    short.model.config = short.model.config.model_copy(update={"history_length": 20})
    assert np.array_equal(short.encode_queries(["shirt"], [order], bank), newest)


def test_a_history_without_a_bank_is_nobody(fresh, bank):
    assert np.allclose(fresh.encode_queries(["shirt"], [history(bank, 1)], None), fresh.encode_queries(["shirt"]))
    with pytest.raises(ValueError, match="1 histories for 2 queries"):
        fresh.encode_queries(["a", "b"], [None], bank)


def test_the_halves_computed_apart_give_the_whole(fresh, bank):
    """What an embed producer does: query parts once, shopper parts once, every pairing by the small fusion."""
    queries, shoppers = ["red shirt", "boots"], [history(bank, 1, 2), None, history(bank, 7)]
    parts, memory = fresh.query_parts(queries), fresh.shopper_memory(shoppers, bank)
    for q in range(2):
        fused = fresh.fuse(parts[q].expand(3, -1, -1), memory).vector_BD.numpy()
        assert np.allclose(fused, fresh.encode_queries([queries[q]] * 3, shoppers, bank), atol=1e-5)


def test_preferences_are_readable(fresh, bank):
    rows = fresh.preferences(["red shirt", "boots"], [None, history(bank, 2)], bank)
    assert [set(row) for row in rows] == [{"vbert", "ftatt", "light_bert"}] * 2
    assert all(sum(row.values()) == pytest.approx(1.0, abs=1e-5) for row in rows)


def test_queries_that_led_to_an_item_move_it(fresh, encoded):
    catalogue = tiny_shop.catalogue()
    catalogue.queries[0], catalogue.query_weights[0] = ["red party wear", "Boots"], [2.0, 1.0]
    moved = fresh.encode_catalogue(catalogue)
    assert not np.allclose(moved.vectors[0], encoded.vectors[0], atol=1e-4)
    assert np.allclose(moved.vectors[1:], encoded.vectors[1:], atol=1e-5)
    assert np.array_equal(moved.bank, encoded.bank)


def test_an_empty_catalogue_and_no_queries_are_fine(fresh):
    empty = tiny_shop.catalogue()
    nothing = type(empty)([], [], [], np.zeros(0, np.int64), empty.image_features, [], [])
    assert fresh.encode_catalogue(nothing).vectors.shape == (0, fresh.dim)
    assert fresh.encode_queries([]).shape == (0, fresh.dim)


def test_the_bank_is_saved_and_read(bank, tmp_path):
    bank.save(tmp_path)
    again = HistoryBank.load(tmp_path)
    assert again.item_ids == bank.item_ids and np.array_equal(again.array, bank.array)
    assert again.row("no such item") is None and again.row(bank.item_ids[4]) == 4
    (tmp_path / "history_ids.parquet").unlink()
    with pytest.raises(DataError, match="history_ids"):
        HistoryBank.load(tmp_path)
    with pytest.raises(ValueError, match="2 ids"):
        HistoryBank(["a", "b"], bank.array[:1])


def test_a_broken_package_is_one_clear_error(package, tmp_path):
    with pytest.raises(DataError, match="no model here"):
        Retriever.load(tmp_path)
    Retriever.load(package).save(tmp_path / "m")
    (tmp_path / "m/model.safetensors").write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot be read"):
        Retriever.load(tmp_path / "m")
    Retriever.load(package).save(tmp_path / "n")
    settings = read_json(tmp_path / "n/config.json")
    settings["model"]["hidden"] = 64
    write_json(tmp_path / "n/config.json", settings)
    with pytest.raises(DataError, match="do not fit"):
        Retriever.load(tmp_path / "n")
    write_json(tmp_path / "n/config.json", settings | {"format": 99})
    with pytest.raises(DataError, match="format 99"):
        Retriever.load(tmp_path / "n")


def test_an_unsaved_model_has_no_fingerprint(fresh):
    with pytest.raises(ValueError, match="once it is saved"):
        _ = Retriever(fresh.model, fresh.assets, fresh.settings).fingerprint


def test_the_catalogue_comes_with_pictures_and_the_profiles_of_its_time(fresh, tiny, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shown = tiny_shop.items()[3]["image"]
    Image.new("RGB", (16, 16), (200, 0, 0)).save(folder / shown)
    clean = tmp_path / "clean"
    clean.mkdir()
    (clean / "items.parquet").write_bytes((tiny / "clean/items.parquet").read_bytes())
    meta = json.loads((tiny / "clean/snapshot.json").read_text()) | {"image_root": str(folder)}
    contract.write_meta(clean, contract.SnapshotMeta.model_validate(meta))
    found = load_catalogue(fresh, clean, tiny / "profiles", tmp_path, tmp_path / "cache")
    assert found.item_ids == [row["item_id"] for row in tiny_shop.items()]
    assert (found.image_row >= 0).nonzero()[0].tolist() == [3]
    assert found.image_features.shape == (1, tiny_shop.TOKENS, tiny_shop.WIDTH)
    assert found.queries[0] == ["black boots", "boots"] and found.query_weights[0] == [3.0, 1.0]
    assert found.queries[1] == []
    early = load_catalogue(
        fresh, clean, tiny / "profiles", tmp_path, tmp_path / "cache", asof=tiny_shop.ASOF.replace(day=4)
    )
    assert early.queries[0] == []
    assert fresh.encode_catalogue(found).vectors.shape == (128, fresh.dim)


def test_a_shop_without_pictures_needs_no_image_encoder(tmp_path):
    tiny_shop.write_shop(tmp_path, pictures=False)
    retriever = Retriever.create(tiny_shop.config().model, tmp_path / "features")
    assert not retriever.reads_images
    found = load_catalogue(retriever, tmp_path / "clean", tmp_path / "profiles", tmp_path, tmp_path / "cache")
    assert (found.image_row == -1).all()
    retriever.save(tmp_path / "model")
    assert Retriever.load(tmp_path / "model").encode_catalogue(found).vectors.shape == (128, 32)


def test_a_given_text_encoder_takes_the_place_of_the_layers(tiny, tmp_path):
    vocabulary = Tokenizer.load(tiny / "features/tokenizer.json").vocab_size
    settings = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    given = transformers.BertModel(settings, add_pooling_layer=False)
    given.save_pretrained(tmp_path / "bert")
    retriever = Retriever.create(tiny_shop.config().model, tiny / "features", str(tmp_path / "bert"))
    weights = retriever.model.experts.each["light_bert"].encoder.state_dict()
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(weights[word], given.state_dict()[word])
    retriever.model.eval()
    before = retriever.encode_queries(["red shirt"])
    retriever.save(tmp_path / "model")
    (tmp_path / "bert").rename(tmp_path / "gone")  # the package needs nothing but itself
    assert np.allclose(Retriever.load(tmp_path / "model").encode_queries(["red shirt"]), before, atol=1e-6)
    with pytest.raises(ConfigError, match="text_encoder"):
        Retriever.create(tiny_shop.config().model, tiny / "features", str(tmp_path / "bert"))

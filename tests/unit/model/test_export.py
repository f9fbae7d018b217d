"""The exported encoders say what the model says, whatever is there and whatever is missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from mrse import cli
from mrse.errors import DataError
from mrse.jsonfile import read_json, write_json
from mrse.model.arrays import History, HistoryBank
from mrse.model.export import export_encoders
from mrse.model.exported import ExportedItemEncoder, ExportedQueryEncoder
from mrse.model.retriever import Retriever
from tests import tiny_shop

QUERIES = ["red shirt", "blue boots for men and women", "", "!!!", "RED  Shirt", "a" * 500]
CLOSE = 1e-4
ROOT = Path(__file__).parents[3]


def asked_for(catalogue):
    """The catalogue with queries that led to some of its items."""
    catalogue.queries[3], catalogue.query_weights[3] = ["red party wear", "Boots"], [2.0, 1.0]
    catalogue.queries[9], catalogue.query_weights[9] = ["boots"], [5.0]
    return catalogue


@pytest.fixture(scope="module")
def exported(fresh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    saved = Retriever(fresh.model, fresh.assets, fresh.settings)
    saved.save(folder / "model")
    arguments = ["--params", str(ROOT / "params.yaml"), "export", str(folder / "exported"), "--model"]
    done = CliRunner().invoke(cli.app, [*arguments, str(folder / "model")], catch_exceptions=False)
    assert done.exit_code == 0 and f"holds the encoders of model {saved.fingerprint[:12]}" in done.stdout
    return folder / "exported"


@pytest.fixture(scope="module")
def queries(exported):
    return ExportedQueryEncoder.load(exported)


@pytest.fixture(scope="module")
def encoded(fresh):
    return fresh.encode_catalogue(asked_for(tiny_shop.catalogue()))


@pytest.fixture(scope="module")
def bank(encoded):
    return HistoryBank(encoded.item_ids, encoded.bank)


def histories(bank):
    known = History(bank.item_ids[:3], ["click", "order", "wish"], [0.5, 30.0, 1e6])
    gone = History(["nobody-sells-this"], ["click"], [1.0])
    return [known, None, History(bank.item_ids[5:6], ["add_to_cart"], [2.0]), gone, History(), known]


def test_queries_alone(fresh, queries):
    assert np.abs(queries.encode(QUERIES) - fresh.encode_queries(QUERIES)).max() < CLOSE
    assert np.abs(queries.parts(QUERIES).astype(np.float32) - fresh.query_parts(QUERIES).float().numpy()).max() < 1e-3


def test_queries_of_known_shoppers(fresh, queries, bank):
    expected = fresh.encode_queries(QUERIES, histories(bank), bank)
    assert np.abs(queries.encode(QUERIES, histories(bank), bank) - expected).max() < CLOSE
    assert np.abs(expected - fresh.encode_queries(QUERIES)).max() > 100 * CLOSE, "histories matter"


def test_a_long_history_is_cut_as_the_model_cuts_it(fresh, queries, bank):
    long = History(bank.item_ids[:50], ["click"] * 50, [float(place) for place in range(50)])
    cut = History(long.item_ids[:30], long.actions[:30], long.ages_hours[:30])
    assert np.array_equal(queries.encode(["shirt"], [long], bank), queries.encode(["shirt"], [cut], bank))
    assert np.abs(queries.encode(["shirt"], [long], bank) - fresh.encode_queries(["shirt"], [long], bank)).max() < CLOSE


@pytest.mark.parametrize("query", QUERIES)
def test_one_query_at_a_time(fresh, queries, bank, query):
    one = histories(bank)[:1]
    assert np.abs(queries.encode([query], one, bank) - fresh.encode_queries([query], one, bank)).max() < CLOSE


def test_more_queries_than_a_batch_keep_their_places(fresh, queries, bank):
    many = [f"{colour} {kind} {number}" for number in range(6) for colour in ("red", "") for kind in QUERIES]
    known = (histories(bank) * 12)[: len(many)]
    expected = fresh.encode_queries(many, known, bank)
    assert np.abs(queries.encode(many, known, bank) - expected).max() < CLOSE


def test_nothing_asked_and_too_few_histories(queries):
    assert queries.encode([]).shape == (0, queries.dim)
    with pytest.raises(ValueError, match="1 histories for 2 queries"):
        queries.encode(["a", "b"], [None])


def test_items_with_and_without_pictures_and_queries(exported, queries, fresh, encoded):
    items = ExportedItemEncoder.load(exported)
    catalogue = asked_for(tiny_shop.catalogue())
    got = items.encode(catalogue, queries)
    assert got.item_ids == encoded.item_ids
    assert np.abs(got.vectors - encoded.vectors).max() < CLOSE
    assert np.abs(got.preferences - encoded.preferences).max() < CLOSE
    assert np.abs(got.bank.astype(np.float32) - encoded.bank.astype(np.float32)).max() < 1e-3
    catalogue.image_row[::3] = -1
    some = fresh.encode_catalogue(catalogue)
    assert np.abs(items.encode(catalogue, queries).vectors - some.vectors).max() < CLOSE
    assert np.abs(some.vectors - encoded.vectors).max() > 100 * CLOSE, "pictures matter"
    bare = tiny_shop.catalogue(pictures=False)
    assert np.abs(items.encode(bare, queries).vectors - fresh.encode_catalogue(bare).vectors).max() < CLOSE


@pytest.mark.slow
def test_a_model_with_mechanisms_off(tiny, tmp_path):
    off = {"experts": {"ftatt": False}, "images": False, "user_history": False, "preferences": False}
    torch.manual_seed(2)
    retriever = Retriever.create(tiny_shop.config(model=off).model, tiny / "features")
    retriever.save(tmp_path / "model")
    export_encoders(retriever, tmp_path / "exported")
    queries = ExportedQueryEncoder.load(tmp_path / "exported")
    assert np.abs(queries.encode(QUERIES) - retriever.encode_queries(QUERIES)).max() < CLOSE
    catalogue = asked_for(tiny_shop.catalogue())
    got = ExportedItemEncoder.load(tmp_path / "exported").encode(catalogue, queries)
    assert np.abs(got.vectors - retriever.encode_catalogue(catalogue).vectors).max() < CLOSE


@pytest.mark.slow
def test_items_in_eight_bits_are_nearly_the_same(exported, queries, encoded, tmp_path):
    export_encoders(Retriever.load(exported.parent / "model"), tmp_path / "small", int8_items=True)
    operations = {node.op_type for node in onnx.load(tmp_path / "small/item.onnx").graph.node}
    assert "MatMulInteger" in operations and "Gemm" not in operations
    got = ExportedItemEncoder.load(tmp_path / "small").encode(asked_for(tiny_shop.catalogue()), queries)
    assert (got.vectors * encoded.vectors).sum(axis=1).min() > 0.999
    same = ExportedQueryEncoder.load(tmp_path / "small").encode(QUERIES)
    assert np.array_equal(same, queries.encode(QUERIES))


def test_an_export_is_five_files_and_names_its_model(exported, queries):
    assert {path.name for path in exported.iterdir()} == {
        "query.onnx",
        "item.onnx",
        "tokenizer.json",
        "subword.json",
        "export.json",
    }
    assert queries.fingerprint == Retriever.load(exported.parent / "model").fingerprint


def test_serving_needs_no_torch(exported, queries):
    code = (
        "import sys; from mrse.model.exported import ExportedQueryEncoder as E;"
        f"print(float(E.load({str(exported)!r}).encode(['red shirt'])[0, 0]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value, torch_loaded = done.stdout.split()
    assert float(value) == pytest.approx(float(queries.encode(["red shirt"])[0, 0]), abs=1e-6)
    assert torch_loaded == "False"


def test_a_broken_export_is_one_clear_error(exported, tmp_path):
    with pytest.raises(DataError, match="no exported encoders here"):
        ExportedQueryEncoder.load(tmp_path)
    for name in ("tokenizer.json", "subword.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    settings = read_json(exported / "export.json")
    write_json(tmp_path / "export.json", settings)
    with pytest.raises(DataError, match=r"query.onnx: no such file"):
        ExportedQueryEncoder.load(tmp_path)
    (tmp_path / "query.onnx").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"query.onnx: cannot be read"):
        ExportedQueryEncoder.load(tmp_path)
    write_json(tmp_path / "export.json", settings | {"format": 99})
    with pytest.raises(DataError, match="format 99"):
        ExportedQueryEncoder.load(tmp_path)

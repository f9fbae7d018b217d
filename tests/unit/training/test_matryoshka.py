import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from mrse.model.loss import mnsce
from mrse.model.matryoshka import prefix
from mrse.model.retriever import History, HistoryBank, Retriever
from mrse.training import steps as steps_module
from mrse.training.data import load_shop
from mrse.training.search import nearest
from mrse.training.train import train
from mrse.training.valid import recalls
from tests import tiny_shop


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


def test_a_prefix_is_a_unit_vector_of_the_first_dimensions():
    x = F.normalize(torch.randn(7, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    cut = prefix(x, 5)
    for row in range(7):
        length = sum(float(value) ** 2 for value in x[row, :5]) ** 0.5
        assert cut[row].tolist() == pytest.approx([float(value) / length for value in x[row, :5]], rel=1e-5)
    assert torch.allclose(prefix(x, 12), x)
    for size in (0, 13):
        with pytest.raises(ValueError, match=f"no prefix of {size}"):
            prefix(x, size)


def test_the_loss_is_the_weighted_mean_over_sizes(tiny, monkeypatch):
    torch.manual_seed(0)
    config = tiny_shop.config(loss={"matryoshka": [4, 16], "matryoshka_weight": 0.5, "beta": 0.0})
    retriever = Retriever.create(config.model, tiny / "features")
    shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    steps = steps_module.Steps(config, retriever, shop)
    calls = []

    def seen(query, candidates, *rest):
        calls.append((query.detach(), candidates.detach(), rest))
        return mnsce(query, candidates, *rest)

    monkeypatch.setattr(steps_module, "mnsce", seen)
    parts = {name: float(value.detach()) for name, value in steps.fuse(0, steps.refresh()).items()}
    (whole, fresh, fresh_rest), (_, banked, banked_rest) = calls[:2]
    by_size = {}
    for size in (4, 16, 32):
        cut = [F.normalize(x[:, :size], dim=1) for x in (whole, fresh, banked)]
        both = mnsce(cut[0], cut[1], *fresh_rest), mnsce(cut[0], cut[2], *banked_rest)
        by_size[size] = float(sum(both)) / 2
        assert parts[f"mnsce_{size}"] == pytest.approx(by_size[size], rel=1e-5)
    assert by_size[4] > by_size[16] > by_size[32]
    assert parts["mnsce"] == pytest.approx((by_size[32] + 0.5 * by_size[4] + 0.5 * by_size[16]) / 2.0, rel=1e-5)
    assert parts["loss"] == parts["mnsce"]


def recall_at(package, requests, size):
    """Recall at 8 of a package's vectors cut to a size, measured from outside."""
    retriever = Retriever.load(package)
    encoded = retriever.encode_catalogue(tiny_shop.catalogue())
    histories = [History(r["hist_items"], r["hist_actions"], r["hist_ages"]) for r in requests]
    asked = retriever.encode_queries(
        [r["query"] for r in requests], histories, HistoryBank(encoded.item_ids, encoded.bank)
    )
    row = {item: place for place, item in enumerate(encoded.item_ids)}
    top = nearest(prefix(torch.from_numpy(asked), size), prefix(torch.from_numpy(encoded.vectors), size), 8).numpy()
    found = recalls(top, [[row[item] for item in r["relevant"]] for r in requests])
    return sum(found) / len(found)


def test_a_prefix_keeps_more_of_the_recall_when_trained_for_it(tiny, tmp_path):
    requests = pq.read_table(tiny / "profiles/requests.parquet").to_pylist()
    inputs = [tiny / name for name in ("features", "clean", "profiles")]
    recall = {}
    for name, sizes in (("plain", []), ("nested", [4])):
        config = tiny_shop.config(
            align_steps=15,
            fuse_steps=100,
            eval_every=100,
            keep="last",
            loss={"matryoshka": sizes},
            model={"item_history": False},
        )
        report = train(config, *inputs, tiny, tmp_path / name, None)
        recall[name] = {size: recall_at(tmp_path / name, requests, size) for size in (4, 32)}
    assert report.metrics["recall_4"] == pytest.approx(recall["nested"][4], abs=0.02)
    assert recall["nested"][4] > recall["plain"][4] + 0.05
    assert recall["nested"][32] > recall["plain"][32] - 0.1

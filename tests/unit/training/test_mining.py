import numpy as np
import pytest
import torch

from mrse.config import LossConfig
from mrse.model.encode import fuse_catalogue, inference
from mrse.model.retriever import Retriever
from mrse.training import steps as steps_module
from mrse.training.data import Examples, Shoppers, load_shop
from mrse.training.mining import Mined, Miner
from mrse.training.train import train
from tests import tiny_shop

MINE = {"mine": {"first": 3, "last": 40}, "hard_negatives": 3}
QUICK = {"align_steps": 3, "fuse_steps": 9, "eval_every": 3, "bank_refresh_steps": 4, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_shop.write_shop(folder)
    return folder


@pytest.fixture(scope="module")
def steps(tiny):
    torch.manual_seed(0)
    config = tiny_shop.config(**QUICK, loss=MINE)
    retriever = Retriever.create(config.model, tiny / "features")
    shop = load_shop(retriever, tiny / "features", tiny / "clean", tiny / "profiles", 0.7, 1000)
    return steps_module.Steps(config, retriever, shop)


def naive_ranking(steps, banks, query, epoch):
    """All items for one query of nobody known, by a sort in Python."""
    model = steps.model
    items, _ = fuse_catalogue(model, banks.items_NEH, steps.shop.item_queries(epoch), banks.queries_QEH, 16)
    memory = steps.batches._retriever.shopper_memory([None], None)
    with inference(model):
        asked = model.fuse_queries(banks.queries_QEH[query][None].float(), memory).vector_BD[0].double()
    scores = [round(float(item.double() @ asked), 7) for item in items]
    return sorted(range(len(items)), key=lambda row: (-scores[row], row))


def test_mined_items_are_those_ranks_without_what_anybody_chose(steps):
    examples, shop = steps.shop.examples, steps.shop
    banks = steps.refresh()
    first = next(n for n in range(9) if len({steps.batches.sampler.draw(step).epoch for step in range(n, n + 4)}) == 2)
    mined = steps.mine(banks, first)
    drawn = np.concatenate([steps.batches.sampler.draw(step).example_rows for step in range(first, first + 4)])
    lacking = [row for row in drawn if (examples.hard_MK[row] >= 0).sum() < 3]
    assert len(lacking) > 100
    texts = shop.item_strings
    rankings = {}
    some = lacking[:: len(lacking) // 25]
    for row, found in zip(some, mined.of(steps.batches.miner._pair_M[some]), strict=True):
        key = int(examples.query_M[row]), int(examples.epoch_M[row])
        if key not in rankings:
            rankings[key] = naive_ranking(steps, banks, *key)
        chosen = examples.item_M[examples.query_M == key[0]]
        twins = {(texts[item], shop.pictures.row_N[item]) for item in chosen}
        for rank, item in enumerate(rankings[key][2:40]):
            banned = (texts[item], shop.pictures.row_N[item]) in twins
            assert found[rank] == (-1 if banned else item), (key, rank)
    assert len({epoch for _, epoch in rankings}) == 2


def test_only_what_the_coming_steps_lack_is_mined(steps):
    mined = steps.mine(steps.refresh(), 3)
    drawn = np.concatenate([steps.batches.sampler.draw(step).example_rows for step in range(3, 7)])
    lacking = drawn[(steps.shop.examples.hard_MK[drawn] >= 0).sum(axis=1) < 3]
    assert mined.pair_X.tolist() == sorted(set(steps.batches.miner._pair_M[lacking].tolist()))
    assert (mined.of(np.array([10**6])) == -1).all()


def examples(hard):
    count = len(hard)
    zeros, none = np.zeros(count, dtype=np.int64), np.full((count, 1), -1, dtype=np.int64)
    return Examples(
        query_M=np.arange(count),
        item_M=zeros,
        asker_M=zeros,
        weight_M=np.ones(count, dtype=np.float32),
        hard_MK=np.array(hard),
        epoch_M=zeros,
        judged_M=np.zeros(count, dtype=bool),
        shoppers=Shoppers(none, none, none),
    )


def test_free_places_are_filled_and_the_logs_come_first():
    log = np.array([[7, 8, 9], [7, -1, -1], [-1, -1, -1], [-1, -1, -1]])
    miner = Miner(LossConfig.model_validate(MINE), examples(log), np.arange(50))
    mined = Mined(np.array([0, 1, 2]), np.array([[20, 21, 22, 23], [20, 7, -1, 23], [20, 21, 22, 23]]))
    rows = np.arange(4)

    def filled(seed, step):
        return miner.fill(log[:, :2], log, rows, mined, seed, step)

    first = filled(0, 5)
    assert first.shape == (4, 3)
    assert first[0, :2].tolist() == [7, 8] and first[0, 2] in (20, 21, 22, 23)
    assert first[1, 0] == 7 and sorted(first[1, 1:]) == [20, 23]  # 7 is not drawn twice
    assert len(set(first[2])) == 3 and set(first[2]) < {20, 21, 22, 23}
    assert first[3].tolist() == [-1, -1, -1]  # not mined
    assert np.array_equal(first, filled(0, 5))
    assert any(not np.array_equal(first, filled(0, step)) for step in range(6, 12))


def run(folder, out, config, cache_dir=None):
    return train(config, *(folder / name for name in ("features", "clean", "profiles")), folder, out, cache_dir)


def test_a_shop_without_hard_negatives_learns_from_mined_ones(tmp_path):
    tiny_shop.write_shop(tmp_path, events=False, hard=False)
    without = run(tmp_path, tmp_path / "a", tiny_shop.config(**QUICK))
    mining = run(tmp_path, tmp_path / "b", tiny_shop.config(**QUICK, loss=MINE))
    assert without.losses[-1][1]["hnst"] == 0.0
    assert mining.losses[-1][1]["hnst"] > 0.0
    assert without.fingerprint != mining.fingerprint


def test_a_killed_run_goes_on_with_what_was_mined(tiny, tmp_path, monkeypatch):
    """Killed between two refreshes: what the checkpoint holds must be what an unbroken run still uses."""
    config = tiny_shop.config(**QUICK, loss=MINE)
    whole = run(tiny, tmp_path / "whole", config)
    real = steps_module.Steps.fuse

    def stop(self, step, banks):
        if step == 6:
            raise KeyboardInterrupt
        return real(self, step, banks)

    monkeypatch.setattr(steps_module.Steps, "fuse", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "broken", config, tmp_path / "cache")
    monkeypatch.undo()
    resumed = run(tiny, tmp_path / "broken", config, tmp_path / "cache")
    assert resumed.resumed_from == 5
    assert resumed.fingerprint == whole.fingerprint and resumed.losses == whole.losses


def test_without_examples_nothing_is_mined():
    miner = Miner(LossConfig.model_validate(MINE), examples(np.zeros((0, 1), dtype=np.int64)), np.arange(5))
    assert len(miner.lacking(np.zeros(0, dtype=np.int64))) == 0

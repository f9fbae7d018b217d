"""Embedding: what was computed is read again bit for bit, and only what changed is computed anew."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mrse.errors import IndexFailed
from mrse.index.embed import embed
from mrse.model.arrays import Catalogue
from tests.fake_shop import FakeRetriever

COUNT = 60
CPU = torch.device("cpu")


class Counting(FakeRetriever):
    """Remembers which items it embedded."""

    def __init__(self, seed=1, fingerprint="f" * 64, stop_after=None):
        super().__init__(seed, fingerprint)
        self.seen, self.stop_after = [], stop_after

    def steady_item_parts(self, catalogue):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += catalogue.item_ids
        return super().steady_item_parts(catalogue)


@pytest.fixture
def catalogue():
    ids = [f"i{number:03}" for number in range(COUNT)]
    row = np.arange(COUNT) % 7 - 1
    features = np.arange(6 * 4, dtype=np.float16).reshape(6, 2, 2)
    return Catalogue(ids, [f"title {i}" for i in ids], [""] * COUNT, row, features, [["q"]] * COUNT, [[0.5]] * COUNT)


def same(one, other):
    return one.item_ids == other.item_ids and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("vectors", "bank", "preferences")
    )


def test_vectors_are_put_together_in_the_order_of_the_items(catalogue, tmp_path):
    retriever = FakeRetriever(1, "f" * 64)
    embedded = embed(retriever, catalogue, CPU, 7, tmp_path)
    assert embedded.item_ids == catalogue.item_ids
    assert np.array_equal(embedded.vectors, retriever.steady_item_parts(catalogue)[:, 0])


def test_a_killed_embedding_goes_on_where_it_was(catalogue, tmp_path):
    first, second = Counting(stop_after=20), Counting()
    with pytest.raises(KeyboardInterrupt):
        embed(first, catalogue, CPU, 7, tmp_path / "a")
    resumed = embed(second, catalogue, CPU, 7, tmp_path / "a")
    assert 20 <= len(first.seen) < COUNT and sorted(first.seen + second.seen) == catalogue.item_ids
    assert same(resumed, embed(Counting(), catalogue, CPU, 7, tmp_path / "b"))


def test_few_changed_items_cost_themselves_and_give_the_bits_of_a_full_build(catalogue, tmp_path):
    embed(Counting(), catalogue, CPU, 7, tmp_path / "a")
    row = catalogue.image_row.copy()
    row[20] = -1
    titles = [*catalogue.titles[:-1], "another title"]
    changed = replace(catalogue, titles=titles, image_row=row)
    changed = replace(changed, item_ids=["h999", *catalogue.item_ids[1:]])  # one deleted, one new
    incremental = Counting()
    embedded = embed(incremental, changed, CPU, 7, tmp_path / "a")
    assert sorted(incremental.seen) == ["i020", "i059"], "h999 has the words and the picture of the item that went"
    assert same(embedded, embed(Counting(), changed, CPU, 7, tmp_path / "b"))
    files = [[load_file(path) for path in (tmp_path / where).rglob("items/*")] for where in "ab"]
    assert [len(found) for found in files] == [1, 1]
    assert [sorted(map(bytes, file["names"])) for file in files[0]] == [
        sorted(map(bytes, file["names"])) for file in files[1]
    ], "what is not of this catalogue is forgotten"


def test_items_of_equal_words_and_pictures_are_embedded_once(catalogue, tmp_path):
    twice = replace(catalogue, titles=["the same"] * COUNT, image_row=np.full(COUNT, -1))
    retriever = Counting()
    assert len(np.unique(embed(retriever, twice, CPU, 7, tmp_path).vectors, axis=0)) == 1
    assert len(retriever.seen) == 1


def test_another_model_and_a_damaged_file_are_computed_anew(catalogue, tmp_path):
    embed(Counting(), catalogue, CPU, 7, tmp_path)
    other = Counting(seed=2, fingerprint="e" * 64)
    embed(other, catalogue, CPU, 7, tmp_path)
    assert len(other.seen) == COUNT
    (damaged,) = (tmp_path / "embedded" / ("e" * 16) / "items").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = Counting(seed=2, fingerprint="e" * 64)
    embed(again, catalogue, CPU, 7, tmp_path)
    assert len(again.seen) == COUNT and not damaged.exists()


def test_a_build_leaves_what_another_may_be_using_and_forgets_it_when_it_is_a_day_old(catalogue, tmp_path):
    first, second = Counting(), Counting(seed=2, fingerprint="e" * 64)
    embed(first, catalogue, CPU, 7, tmp_path)
    partial = tmp_path / "embedded" / ("e" * 16) / "x.partial"
    partial.parent.mkdir()
    partial.touch()
    embed(second, catalogue, CPU, 7, tmp_path)
    again = Counting()
    embed(again, catalogue, CPU, 7, tmp_path)
    assert again.seen == [] and partial.exists()
    yesterday = time.time() - 25 * 3600
    for path in (partial, tmp_path / "embedded" / ("f" * 16)):
        os.utime(path, (yesterday, yesterday))
    embed(Counting(seed=2, fingerprint="e" * 64, stop_after=0), catalogue, CPU, 7, tmp_path)
    assert [folder.name for folder in (tmp_path / "embedded").iterdir()] == ["e" * 16]
    assert not partial.exists()


def test_a_model_in_use_counts_as_such_however_old_its_shards_are(catalogue, tmp_path):
    old = tmp_path / "embedded" / ("f" * 16)
    embed(Counting(), catalogue, CPU, 7, tmp_path)
    os.utime(old, (0, 0))

    class Beside(Counting):
        def steady_item_parts(self, part):
            if not self.seen:  # the other model's build ends while this one is on its way
                embed(Counting(seed=2, fingerprint="e" * 64), catalogue, CPU, 7, tmp_path)
            return super().steady_item_parts(part)

    changed = replace(catalogue, titles=[*catalogue.titles[:-1], "another title"])
    embed(Beside(), changed, CPU, 7, tmp_path)
    assert old.is_dir()


def test_no_items_and_a_full_disk_are_one_error(catalogue, tmp_path, monkeypatch):
    nothing = Catalogue([], [], [], np.zeros(0, np.int64), np.zeros((0, 1, 1), np.float16), [], [])
    with pytest.raises(IndexFailed, match="no items to index"):
        embed(Counting(), nothing, CPU, 7, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "file").touch()
    with pytest.raises(IndexFailed, match=r"file/embedded/f+: cannot be written"):
        embed(Counting(), catalogue, CPU, 7, tmp_path / "file")
    monkeypatch.setattr("mrse.index.embed.save_file", full)
    with pytest.raises(IndexFailed, match=r"cannot be written.*No space left"):
        embed(Counting(), catalogue, CPU, 7, tmp_path)

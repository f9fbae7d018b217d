"""The throwaway index: the rows of the nearest items, nothing left behind, and none where Milvus Lite has none."""

import numpy as np

from mrse.config import IndexConfig, ServicesConfig
from mrse.index.trial import trial


def test_a_flat_trial_finds_what_exact_search_finds_and_goes_away(tmp_path):
    generator = np.random.default_rng(0)
    items, queries = (generator.standard_normal((count, 8)).astype(np.float32) for count in (40, 300))
    search = trial(IndexConfig(type="FLAT", bulk_folder="/import"), ServicesConfig(cache_dir=str(tmp_path / "cache")))
    assert search is not None
    found = search(items, queries, 5)
    assert found.tolist() == np.argsort(-(queries @ items.T), axis=1, kind="stable")[:, :5].tolist()
    assert search(items[:3], queries[:2], 5)[:, 3:].tolist() == [[-1, -1], [-1, -1]]
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_index_that_milvus_lite_lacks_cannot_be_tried():
    assert trial(IndexConfig(type="DISKANN"), ServicesConfig()) is None

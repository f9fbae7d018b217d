"""Batches of like size, whole tables and query lists against their plain counterparts."""

import subprocess
import sys

import numpy as np
import pytest

from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.model.arrays import QueryArrays, TokenisedTexts, batches_of_like_size

TEXTS = ["red shirt", "a blue cotton shirt", "", "!!!", "red"]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("distinct", [1, 4, 300])
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(batch_size, distinct):
    sizes = np.random.default_rng(0).integers(1, 1 + distinct, 300)
    batches = list(batches_of_like_size(sizes, batch_size))
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert len(batches) <= 2 * -(-300 // batch_size) + 1


def test_large_groups_of_one_size_are_not_mixed():
    sizes = np.repeat([3, 9, 5], 100)
    mixed = [batch for batch in batches_of_like_size(sizes, 32) if len(set(sizes[batch])) > 1]
    assert len(mixed) <= 2
    assert list(batches_of_like_size(np.zeros(0, dtype=np.int64), 8)) == []


def test_the_whole_table_is_the_batch_of_all_rows():
    tokenizer = Tokenizer.train(TEXTS, 300)
    table = TokenisedTexts.build(TEXTS, tokenizer, SubwordHasher(500), 12)
    whole, batch = table.whole(), table.arrays(np.arange(len(TEXTS)))
    assert np.array_equal(whole.tokens_BL, batch.tokens_BL) and np.array_equal(whole.inside_BL, batch.inside_BL)
    assert np.array_equal(whole.grams_UG[whole.words_BW], batch.grams_UG[batch.words_BW])


def test_queries_of_items_are_counted_once_each():
    arrays = QueryArrays.build([["Red  shirt", "boots"], [], ["red shirt"]], [[2.0, 1.0], [], [3.0]])
    assert arrays.distinct == ["red shirt", "boots"]
    assert arrays.query_NK.tolist() == [[0, 1], [-1, -1], [0, -1]]
    assert arrays.weight_NK.tolist() == [[2.0, 1.0], [0.0, 0.0], [3.0, 0.0]]


def test_arrays_need_no_torch():
    code = "import sys, mrse.model.arrays; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

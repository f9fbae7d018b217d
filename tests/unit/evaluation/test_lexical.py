"""The lexical baseline: right order, ties by id, and not a straw man."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mrse.evaluation.lexical import BM25, stem, terms
from mrse.model.arrays import item_text

SHARED = Path(os.environ.get("MRSE_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("shirts", "shirt"), ("dresses", "dress"), ("dress", "dress"), ("batteries", "battery"), ("ties", "tie"),
        ("watches", "watch"), ("boxes", "box"), ("shoes", "shoe"), ("bus", "bus"), ("gas", "gas"), ("iris", "iris"),
        ("brushes", "brush"), ("blouses", "blouse"), ("jeans", "jean"),
    ],
)  # fmt: skip
def test_plurals_meet_their_singular(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_terms_part_numbers_from_letters_and_fold_case() -> None:
    assert terms("6in. Red-SHIRTS 12V") == ["6", "in", "red", "shirt", "12", "v"]


def test_the_better_match_comes_first_and_strangers_stay_out() -> None:
    bm25 = BM25(["c", "a", "b"], ["blue shirt", "red shirt", "green hat"])
    ids, scores = bm25.search(["red shirts", "sofa", ""], k=5)
    assert ids == [["a", "c"], [], []]
    assert scores[0][0] > scores[0][1] > 0


def test_equal_texts_tie_by_id_whatever_the_order_they_came_in() -> None:
    ids = [f"{i:03}" for i in range(60)]
    shuffled = list(np.random.default_rng(0).permutation(ids))
    found, _ = BM25(shuffled, ["red shirt"] * 60).search(["shirt"], k=10)
    assert found == [ids[:10]]


def test_rare_words_weigh_more() -> None:
    bm25 = BM25(list("abcd"), ["red shirt", "red shirt", "paisley shirt", "red hat"])
    assert bm25.search(["red paisley"], 1)[0] == [["c"]]


def test_items_without_any_word() -> None:
    assert BM25(["a"], [" - "]).search(["red"], 3)[0] == [[]]


def test_category_is_searched() -> None:
    bm25 = BM25(["a", "b"], [item_text("Aria", "Apparel > Shirts"), item_text("Aria", None)])
    assert bm25.search(["shirt"], 3)[0] == [["a"]]


@pytest.mark.skipif(not (SHARED / "homedepot").is_dir(), reason=f"real judgments are not at {SHARED}")
def test_the_baseline_is_as_strong_as_published_ones_on_real_judgments() -> None:
    items = pq.read_table(SHARED / "homedepot" / "items.parquet").to_pydict()
    judged: dict[str, set[str]] = {}
    for row in pq.read_table(SHARED / "homedepot" / "judgments.parquet").to_pylist():
        if row["grade"] >= 0.75:
            judged.setdefault(row["query"], set()).add(row["item_id"])
    queries = sorted(judged)[::20]
    found, _ = BM25(items["item_id"], items["title"]).search(queries, k=100)
    recall = np.mean([len(judged[q] & set(ids)) / len(judged[q]) for q, ids in zip(queries, found, strict=True)])
    assert recall > 0.74

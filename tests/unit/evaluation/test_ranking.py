"""Exact top-K against a naive sort, ties above all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrse.evaluation.ranking import EMPTY, exact_search, fuse, top_k


def naive(scores: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 35))
def test_top_k_is_a_sort_by_score_then_position(scores: list[int], k: int) -> None:
    values = np.array(scores, dtype=np.float32)
    assert top_k(values, k).tolist() == naive(values, k)


def test_top_k_leaves_out_what_scores_too_little() -> None:
    assert top_k(np.array([0.0, 2.0, 0.0, 1.0]), 3, above=0.0).tolist() == [1, 3]


def test_exact_search_equals_a_sort_of_float64_scores() -> None:
    generator = np.random.default_rng(0)
    items = generator.standard_normal((200, 16)).astype(np.float32)
    queries = generator.standard_normal((40, 16)).astype(np.float32)
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    expected = [naive(np.round(row, 7), 10) for row in scores]
    assert exact_search(queries, items, 10, block=7).tolist() == expected


def test_equal_items_tie_by_position_wherever_they_stand() -> None:
    generator = np.random.default_rng(1)
    one = generator.standard_normal((1, 128)).astype(np.float32)
    items = np.concatenate([one * 0.5, np.repeat(one, 100, axis=0), one * 0.9])
    found = exact_search(np.repeat(one, 3, axis=0), items, 101)
    assert found.tolist() == [[*range(1, 101), 101]] * 3


def test_a_small_catalogue_leaves_places_empty() -> None:
    found = exact_search(np.ones((1, 2), np.float32), np.ones((2, 2), np.float32), 4)
    assert found.tolist() == [[0, 1, EMPTY, EMPTY]]


def test_fusion_sums_reciprocal_ranks() -> None:
    left = np.array([[5, 1, EMPTY]], dtype=np.int32)
    right = np.array([[1, 7, 5]], dtype=np.int32)
    # 1: 1/62 + 1/61; 5: 1/61 + 1/63; 7: 1/62
    assert fuse([left, right], 4).tolist() == [[1, 5, 7, EMPTY]]


def test_fusion_breaks_ties_by_position() -> None:
    left, right = np.array([[9, 4]], dtype=np.int32), np.array([[4, 9]], dtype=np.int32)
    assert fuse([left, right], 2).tolist() == [[4, 9]]


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_the_block_size_changes_nothing(block: int) -> None:
    generator = np.random.default_rng(2)
    items = generator.integers(0, 2, (50, 8)).astype(np.float32)
    queries = generator.integers(0, 2, (10, 8)).astype(np.float32)
    assert np.array_equal(exact_search(queries, items, 5, block), exact_search(queries, items, 5, 10))

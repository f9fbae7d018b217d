"""Slices on literal tables."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrse.config import SliceName
from mrse.evaluation.slices import (
    DEFINITIONS,
    CatalogueFacts,
    Requests,
    Slices,
    SpellingNeighbours,
    make_slices,
    traffic_bands,
    within_edits,
)

#          0                1               2                    3 (title forgot the colour)
TEXTS = ["Red shirt Tops", "Blue shirt Tops", "Green trousers Legs", "Shirt Tops"]
PICTURES = np.array([True, True, False, True])
CLICKS = np.array([5, 0, 3, 1])
CATEGORIES = ["Tops", "Tops", "Legs", None]


def slices(
    queries: list[str],
    relevant: list[list[int]],
    users: list[str | None] | None = None,
    histories: list[int] | None = None,
    counts: dict[str, int] | None = None,
    pictures: np.ndarray = PICTURES,
    clicks: np.ndarray | None = CLICKS,
    vague_share: float = 0.5,
    ordered: list[list[int]] | None = None,
) -> Slices:
    histories = histories or [1] * len(queries)
    requests = Requests(queries, users or ["u"] * len(queries), histories, relevant, ordered or [[]] * len(queries))
    return make_slices(requests, CatalogueFacts(TEXTS, pictures, clicks, CATEGORIES), counts or {}, vague_share)


def test_every_slice_is_defined_and_known_to_the_configuration() -> None:
    found = slices(["red shirt"], [[0]], counts={"red shirt": 3}, ordered=[[0]])
    assert set(DEFINITIONS) == set(get_args(SliceName)) == set(found.masks) - set(found.definitions)
    assert set(found.definitions) == {"category Tops"}
    assert found.unavailable == {"script": "all queries are in one script"}


def test_orders_and_categories() -> None:
    found = slices(["x", "y", "z"], [[0], [1, 2], [3]], ordered=[[], [2], []])
    assert found.masks["ordered"].tolist() == [False, True, False]
    assert found.masks["category Tops"].tolist() == [True, True, False]
    assert found.masks["category Legs"].tolist() == [False, True, False]
    assert slices(["x"], [[0]]).unavailable["ordered"] == "no order from a page is logged in the window"


def test_only_the_commonest_categories_become_slices() -> None:
    facts = CatalogueFacts(["x"] * 9, np.ones(9, bool), None, [f"c{at}" for at in range(9)])
    wanted = [[at] for at in range(9)] + [[8], [8], [7]]
    requests = Requests(["x"] * 12, [None] * 12, [0] * 12, wanted, [[]] * 12)
    assert list(make_slices(requests, facts, {}, 0.5).definitions) == [f"category c{at}" for at in (8, 7, 0, 1, 2)]


def test_scripts() -> None:
    found = slices(["red shirt", "красная shirt", "赤", "42"], [[0]] * 4)
    assert [name for name in found.masks if name.startswith("script")] == [
        "script cjk", "script cyrillic", "script latin", "script none",
    ]  # fmt: skip
    assert found.masks["script cyrillic"].tolist() == [False, True, False, False]


def test_traffic_is_cut_in_thirds() -> None:
    assert traffic_bands({"a": 40, "b": 30, "c": 20, "d": 10, "never": 0}) == {
        "a": "head", "b": "torso", "c": "tail", "d": "tail",
    }  # fmt: skip


def test_unseen_queries_are_tail() -> None:
    found = slices(["a", "b", "new"], [[0]] * 3, counts={"a": 5, "b": 3, "c": 1})
    assert [found.masks[name].tolist() for name in ("head", "torso", "tail")] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_shoppers() -> None:
    found = slices(["shirt"] * 3, [[0]] * 3, users=["u", "v", None], histories=[2, 0, 0])
    assert found.masks["known_shopper"].tolist() == [True, False, False]
    assert found.masks["new_shopper"].tolist() == [False, True, False]
    assert found.masks["anonymous"].tolist() == [False, False, True]


def test_cold_items_and_items_without_picture() -> None:
    found = slices(["x", "x", "x"], [[0], [0, 1], [2]])
    assert found.masks["cold_item"].tolist() == [False, True, False]
    assert found.masks["no_image"].tolist() == [False, False, True]


def test_typos_are_near_misses_of_catalogue_words() -> None:
    queries = ["red shrit", "red shirt", "red shirts", "red sofa", "gren troussers", "re shirt"]
    found = slices(queries, [[0]] * 6)
    assert found.masks["typo"].tolist() == [True, False, False, False, True, False]


def test_the_picture_tells_what_the_title_forgot() -> None:
    queries = ["red shirt", "red shirt", "rde shirt", "green trousers", "purple shirt", "blue trousers"]
    relevant = [[3], [0], [3], [2], [3], [2]]
    # forgotten; in the title; typo; in the title; no item is called purple; forgotten, but without a picture
    assert slices(queries, relevant).masks["picture"].tolist() == [True, False, False, False, False, False]


def test_taste_decides_where_every_word_is_everywhere() -> None:
    found = slices(["shirt", "shirt", "red shirt", "tops shirts", ""], [[0]] * 5, histories=[3, 0, 3, 3, 3])
    assert found.masks["taste"].tolist() == [True, False, False, True, False]


def test_lengths() -> None:
    found = slices(["a", "a b", "a b c", "a b c d", ""], [[0]] * 5)
    assert found.masks["short"].tolist() == [True, True, False, False, False]
    assert found.masks["long"].tolist() == [False, False, False, True, False]


def test_what_a_shop_cannot_have_is_unavailable_with_the_reason() -> None:
    found = slices(["red"], [[0]], users=[None], pictures=np.zeros(4, dtype=bool), clicks=None)
    assert found.unavailable == {
        "head": "there is no log of queries before the test days",
        "torso": "there is no log of queries before the test days",
        "tail": "there is no log of queries before the test days",
        "anonymous": "no request of the window names a shopper",
        "new_shopper": "no request of the window names a shopper",
        "known_shopper": "no request of the window names a shopper",
        "taste": "no request of the window names a shopper",
        "cold_item": "the shop has no click log",
        "no_image": "the catalogue has no pictures",
        "picture": "the catalogue has no pictures",
        "ordered": "no order from a page is logged in the window",
        "script": "all queries are in one script",
    }
    assert set(found.masks) - set(found.definitions) == {"typo", "short", "long"}


def distance(left: str, right: str) -> int:
    """Optimal string alignment by its recursive definition."""
    if not left or not right:
        return len(left) + len(right)
    options = [
        distance(left[:-1], right) + 1,
        distance(left, right[:-1]) + 1,
        distance(left[:-1], right[:-1]) + (left[-1] != right[-1]),
    ]
    if len(left) > 1 and len(right) > 1 and left[-2:] == right[-1] + right[-2]:
        options.append(distance(left[:-2], right[:-2]) + 1)
    return min(options)


short_words = st.text("abc", max_size=5)


@given(short_words, short_words, st.integers(0, 2))
def test_within_edits_is_the_distance(left: str, right: str, most: int) -> None:
    assert within_edits(left, right, most) == (distance(left, right) <= most)


@given(st.lists(st.text("abcd", min_size=3, max_size=10), min_size=1, max_size=20), st.text("abcd", max_size=11))
def test_neighbourhoods_find_what_comparing_with_all_finds(vocabulary: list[str], word: str) -> None:
    allowed = 0 if len(word) < 4 else 1 if len(word) < 8 else 2
    expected = len(word) >= 4 and any(within_edits(word, known, allowed) for known in vocabulary)
    assert SpellingNeighbours(vocabulary).close_to_known(word) == expected


@pytest.mark.parametrize("word", ["12v4", "abc", "sofa"])
def test_codes_and_short_words_are_no_misspellings(word: str) -> None:
    assert not SpellingNeighbours(["12v5", "abd", "shirt"]).close_to_known(word)

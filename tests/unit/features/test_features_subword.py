from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrse.errors import ConfigError, DataError
from mrse.features import subword
from mrse.features.subword import SubwordHasher
from mrse.features.text import split_words


def naive_fnv(text: str, start: int = 2166136261) -> int:
    value = start
    for char in text:
        value = (value ^ ord(char)) * 16777619 % 2**32
    return value


def naive_row(word: str, hasher: SubwordHasher, grams: int) -> list[int]:
    framed = f"<{word[:64]}>"
    pieces = [framed[at : at + n] for n in range(hasher.min_n, hasher.max_n + 1) for at in range(len(framed) - n + 1)]
    ids = [naive_fnv("\x01" + framed)] + [naive_fnv(piece) for piece in pieces]
    ids = [value % hasher.buckets + 1 for value in ids][:grams]
    return ids + [0] * (grams - len(ids))


def naive(texts: list[str], hasher: SubwordHasher, words: int, grams: int) -> np.ndarray:
    table = np.zeros((len(texts), words, grams), dtype=np.int32)
    for row, text in zip(table, texts, strict=True):
        for slot, word in zip(row, split_words(text), strict=False):
            slot[:] = naive_row(word, hasher, grams)
    return table


@given(st.lists(st.text(max_size=40), max_size=6), st.integers(1, 3), st.integers(0, 3), st.integers(1, 20))
def test_fast_equals_naive(texts: list[str], min_n: int, more: int, grams: int) -> None:
    hasher = SubwordHasher(997, min_n, min_n + more)
    assert (hasher.encode(texts, 4, grams) == naive(texts, hasher, 4, grams)).all()


def test_fnv_of_ascii_is_the_published_one() -> None:
    # Test vectors of the FNV authors for the 32-bit FNV-1a.
    assert naive_fnv("a") == 0xE40C292C and naive_fnv("foobar") == 0xBF9CF968
    row = SubwordHasher(2**31 - 1, 3, 3).hash_words(["a"], 4)[0]
    assert row[1] == naive_fnv("<a>") % (2**31 - 1) + 1


def test_shapes_padding_and_order() -> None:
    hasher = SubwordHasher(50_000)
    ids = hasher.encode(["red shirt", "", "one two three four"], words=3)
    assert ids.shape == (3, 3, 16) and ids.dtype == np.int32
    assert (ids[1] == 0).all() and (ids[0, 2] == 0).all()
    assert (ids[2, :, 0] > 0).all()
    assert ids.max() <= 50_000
    swapped = hasher.encode(["shirt red"], words=3)[0]
    assert (swapped[0] == ids[0, 1]).all() and (swapped[1] == ids[0, 0]).all()


def test_a_typo_keeps_most_of_a_word() -> None:
    hasher = SubwordHasher(50_000)
    right, typo, other = (set(row[row > 0]) for row in hasher.hash_words(["sneakers", "sneakres", "handbags"], 32))
    assert len(right & typo) >= 0.4 * len(right)
    assert len(right & other) <= 1


def test_long_words_lose_long_ngrams_first() -> None:
    word = "windbreakers"
    row = SubwordHasher(50_000).hash_words([word], 16)[0]
    short = [naive_fnv(f"<{word}>"[at : at + 3]) % 50_000 + 1 for at in range(len(word))]
    assert set(short) <= set(row.tolist())


def test_known_words_are_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = SubwordHasher(1000)
    first = hasher.encode(["red shirt"], 4)
    plain = hasher.hash_words(["shirt", "red"], 16)
    monkeypatch.setattr(hasher, "hash_words", lambda *_: pytest.fail("hashed again"))
    assert (hasher.encode(["shirt", "RED"], 4)[:, 0] == first[0, [1, 0]]).all()
    assert (hasher.encode_words(["shirt", "red"], 16) == plain).all()


def test_a_full_cache_starts_again_and_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subword, "_MAX_CACHED_WORDS", 3)
    hasher = SubwordHasher(1000)
    texts = ["a b c", "d e", "a d"]
    for text in texts:
        assert (hasher.encode([text], 3) == naive([text], hasher, 3, 16)).all()


def test_many_new_words_and_many_threads() -> None:
    hasher = SubwordHasher(5000)
    texts = [f"word{i} other{i % 37}" for i in range(3000)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: hasher.encode(texts[start : start + 100], 2, 8), range(0, 3000, 100)))
    assert (np.concatenate(parts) == naive(texts, hasher, 2, 8)).all()


def test_equal_in_every_process() -> None:
    program = "from mrse.features.subword import *; print(SubwordHasher(999).encode(['Red Shirt'], 2).tolist())"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == f"{SubwordHasher(999).encode(['red shirt'], 2).tolist()}\n"


def test_save_and_load(tmp_path: Path) -> None:
    SubwordHasher(77, 2, 4).save(tmp_path / "subword.json")
    loaded = SubwordHasher.load(tmp_path / "subword.json")
    assert (loaded.buckets, loaded.min_n, loaded.max_n) == (77, 2, 4)
    (tmp_path / "subword.json").write_text('{"buckets": 7}')
    with pytest.raises(DataError, match=r"not a subword\.json"):
        SubwordHasher.load(tmp_path / "subword.json")
    with pytest.raises(DataError, match="no such file"):
        SubwordHasher.load(tmp_path / "other.json")


@pytest.mark.parametrize(("buckets", "min_n", "max_n"), [(0, 3, 5), (10, 0, 5), (10, 4, 3)])
def test_impossible_sizes_are_refused(buckets: int, min_n: int, max_n: int) -> None:
    with pytest.raises(ConfigError, match="subword_min_n"):
        SubwordHasher(buckets, min_n, max_n)

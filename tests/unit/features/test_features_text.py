from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import models, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from mrse.errors import ConfigError, DataError
from mrse.features.text import Tokenizer, normalise, split_words

TITLES = ["Red Cotton Shirt", "Blue cotton shirt", "red leather boots", "Blue leather boots", "Red boots"] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red  Shirt", "red shirt"),
        ("  \tRED\n", "red"),
        ("Ｒｅｄ", "red"),  # full width
        ("Straße", "strasse"),
        ("CAFÉ", "café"),
        ("cafe\u0301", "café"),  # a combining accent
        ("re\u00add", "red"),  # a soft hyphen
        ("a\u200bb", "ab"),  # a zero-width space
        ("a\u00a0b", "a b"),
        ("a\x00\x1bb", "ab"),
        ("bad\ud800", "bad"),  # half a surrogate pair cannot be encoded
        ("", ""),
        ("½ L", "1⁄2 l"),
    ],
)
def test_normalise_folds_what_looks_or_means_the_same(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalise_twice_is_normalise_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    once.encode("utf-8")


def test_ascii_shortcut_equals_the_long_way() -> None:
    text = "Red  Shirt, 2XL!"
    assert normalise(text) + "é" == normalise(text + "é")


def test_words_keep_marks_and_lose_punctuation() -> None:
    assert split_words("Men's T-Shirt_2XL") == ["men", "s", "t", "shirt", "2xl"]
    assert split_words("लाल कमीज़") == ["लाल", "कमीज़"]
    assert split_words("?!") == []


def test_row_is_cls_pieces_sep_padding() -> None:
    tokenizer = Tokenizer.train(TITLES, 400)
    tokens = tokenizer.encode(["red", "", "red leather boots red leather boots"], 5)
    assert tokens.dtype == np.int32
    assert tokens[:, 0].tolist() == [tokenizer.cls_id] * 3
    assert tokens[1].tolist() == [tokenizer.cls_id, tokenizer.sep_id, 0, 0, 0]
    assert tokens[0, 2:].tolist() == [tokenizer.sep_id, 0, 0]
    assert tokens[2, 4] == tokenizer.sep_id and 0 not in tokens[2]
    assert tokenizer.pad_id == 0
    assert len({tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id}) == 3
    assert tokens.max() < tokenizer.vocab_size <= 400


def test_case_and_width_do_not_matter_and_no_script_is_unknown(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TITLES, 400)
    tokens = tokenizer.encode(["RED shirt", "ｒｅｄ shirt", "красный 紅 👕"], 32)
    assert (tokens[0] == tokens[1]).all()
    tokenizer.save(tmp_path)
    inner = Inner.from_file(str(tmp_path / "tokenizer.json"))
    assert inner.decode(tokens[2].tolist()).strip() == "красный 紅 👕"


def test_no_texts_and_a_length_that_is_too_small() -> None:
    tokenizer = Tokenizer.train(TITLES, 400)
    assert tokenizer.encode([], 8).shape == (0, 8)
    with pytest.raises(ValueError, match="length = 2"):
        tokenizer.encode(["red"], 2)


def test_a_megabyte_of_text_is_cut_before_it_is_tokenised() -> None:
    tokenizer = Tokenizer.train(TITLES, 400)
    long = tokenizer.encode(["red shirt " * 100_000], 8)
    assert (long == tokenizer.encode(["red shirt " * 20], 8)).all()


def test_equal_texts_give_an_equal_vocabulary_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from mrse.features.text import Tokenizer\n"
        f"Tokenizer.train({TITLES!r} + [f'item {{i}} {{i * 7919 % 997}}' for i in range(500)], 600).save(sys.argv[1])"
    )
    files = [tmp_path / f"{seed}.json" for seed in (1, 2)]
    for seed, file in enumerate(files, 1):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", program, str(file)], check=True, env=environment)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_saved_tokenizer_encodes_alike(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TITLES, 400)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.encode(TITLES, 9) == tokenizer.encode(TITLES, 9)).all()
    assert (loaded.vocab_size, loaded.sep_id) == (tokenizer.vocab_size, tokenizer.sep_id)


def test_missing_and_broken_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="vocab_size = 100 is too small"):
        Tokenizer.train(TITLES, 100)


def test_a_named_text_encoder_brings_its_own_tokeniser(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "shirt", "##s"]
    vocabulary = {word: place for place, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(tmp_path / "bert")
    tokenizer = Tokenizer.from_pretrained(str(tmp_path / "bert"))
    assert tokenizer.encode(["Red shirts"], 6).tolist() == [[2, 5, 6, 7, 3, 0]]
    assert tokenizer.vocab_size == 8
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode(["Red shirts"], 6).tolist() == [[2, 5, 6, 7, 3, 0]]


def test_padding_of_a_roberta_is_its_own(tmp_path: Path) -> None:
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "red": 5}
    inner = Inner(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.pad_id == 1
    assert tokenizer.encode(["red"], 5).tolist() == [[0, 5, 2, 1, 1]]


def test_a_text_encoder_that_cannot_serve_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_encoder"):
        Tokenizer.from_pretrained(str(tmp_path / "nothing"))
    inner = Inner(models.WordLevel({"red": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(tmp_path / "gpt")
    with pytest.raises(ConfigError, match="has no pad token"):
        Tokenizer.from_pretrained(str(tmp_path / "gpt"))

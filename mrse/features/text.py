"""Text to token ids: the one normalisation, and the word-piece tokeniser both towers share.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mrse.errors import ConfigError, DataError
from mrse.jsonfile import write_text

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

# Each special token under the names that the common families (BERT, RoBERTa, XLNet) give it.
_ALIASES = {
    "pad": (PAD, "<pad>"),
    "cls": (CLS, "<s>", "<cls>"),
    "sep": (SEP, "</s>", "<sep>"),
}
# A token covers a few characters; a text is cut here before it is tokenised, so that a megabyte title costs no more
# than a long one.
_MAX_CHARS_PER_TOKEN = 32
# The library holds a kilobyte or two of notes on a text; so many texts are tokenised at once.
_BLOCK = 16_384
_INVISIBLE = {"Cc", "Cf", "Cs"}
_ASCII_WORD = re.compile(r"[a-z0-9]+")


def normalise(text: str) -> str:
    """Fold a text to the one form that tokeniser, subwords and BM25 share.

    Compatibility forms (NFKC) and case are folded, control and format characters dropped, and runs of white space made
    one space. Accents are kept: they tell words apart in many languages. Applying it twice changes nothing.

    >>> normalise("  Red\\tSHIRT ")
    'red shirt'
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.lower().split())
    # Unicode 3.13, definition D146 (compatibility caseless match): folding and normalising disturb each other once.
    for _ in range(2):
        text = unicodedata.normalize("NFKC", text.casefold())
    spaced = "".join(_visible(char) for char in text)
    # A dropped character can bring a letter and its accent together.
    return " ".join(unicodedata.normalize("NFKC", spaced).split())


def _visible(char: str) -> str:
    if char.isspace():
        return " "
    return "" if unicodedata.category(char) in _INVISIBLE else char


def split_words(text: str) -> list[str]:
    """The words of a text: normalised runs of letters and digits.

    >>> split_words("Men's T-Shirt, 2XL")
    ['men', 's', 't', 'shirt', '2xl']
    """
    text = normalise(text)
    if text.isascii():
        return _ASCII_WORD.findall(text)
    return "".join(char if _in_word(char) else " " for char in text).split()


def _in_word(char: str) -> bool:
    # Marks belong to words: without them every vowel sign of an Indic script would be a word break.
    return char.isalnum() or unicodedata.category(char).startswith("M")


class Tokenizer:
    """Texts to padded token ids, `[CLS] pieces [SEP]`, over the `tokenizers` library (Rust, all cores).

    The shop's own vocabulary is a byte-level BPE: every script is covered, nothing is ever unknown, and equal texts
    give an equal vocabulary in every process (WordPiece training orders ties by a hash map). With a Hugging Face text
    encoder it is that model's own tokeniser. `normalise` comes first in both cases: case never changes a result.

    Attributes:
        vocab_size: number of ids; an embedding table needs as many rows.
        pad_id: the id of padding: 0 for the shop's own vocabulary, whatever the model uses otherwise (RoBERTa: 1).
        cls_id, sep_id: the ids around a text.
    """

    def __init__(self, inner: tokenizers.Tokenizer, where: str = "tokenizer") -> None:
        """Wrap a `tokenizers` object.

        Raises:
            ConfigError: it lacks one of the three special tokens that a BERT-like text encoder has.
        """
        inner.no_padding()
        inner.no_truncation()
        self._inner = inner
        self.pad_id = _special(inner, "pad", where)
        self.cls_id = _special(inner, "cls", where)
        self.sep_id = _special(inner, "sep", where)
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary from the shop's own texts. Costs about 1 s per 100,000 short texts.

        Args:
            texts: titles, categories and queries; repeats count.
            vocab_size: the most ids to make, special tokens and 256 bytes included; small shops get fewer.

        Raises:
            ConfigError: `vocab_size` has no room for the special tokens and the bytes.
        """
        specials = [PAD, UNK, CLS, SEP, MASK]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(specials) + len(alphabet):
            raise ConfigError(
                f"build_features: vocab_size = {vocab_size} is too small; "
                f"{len(specials) + len(alphabet)} ids are taken by the special tokens and the bytes"
            )
        inner = tokenizers.Tokenizer(models.BPE(unk_token=UNK))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=specials,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        inner.train_from_iterator((normalise(text) for text in texts), trainer)
        inner.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}",
            special_tokens=[(CLS, specials.index(CLS)), (SEP, specials.index(SEP))],
        )
        return cls(inner)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read what `save` wrote.

        Args:
            path: a `tokenizer.json`, or the folder that holds one.

        Raises:
            DataError: the file is missing or is no tokeniser.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"{file}: no such file; build_features writes it")
        try:
            inner = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust library raises bare Exception and nothing narrower
            raise DataError(f"{file}: not a tokenizer.json: {error}") from None
        return cls(inner, str(file))

    @classmethod
    def from_pretrained(cls, name: str) -> Tokenizer:
        """The tokeniser of a Hugging Face text encoder.

        Args:
            name: a model's name on the hub (its files are fetched or found in the local cache) or a folder.

        Raises:
            ConfigError: it cannot be loaded, or is not one of a BERT-like encoder.
        """
        from transformers import AutoTokenizer  # slow to import and needed only here

        try:
            inner = AutoTokenizer.from_pretrained(name, use_fast=True).backend_tokenizer
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"build_features: text_encoder = {name!r}: no tokeniser can be loaded: {error}") from None
        return cls(tokenizers.Tokenizer.from_str(inner.to_str()), f"text_encoder {name!r}")

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json` (`path` is the file, or an existing folder to put it in)."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        write_text(file, self._inner.to_str(pretty=True))

    def encode(self, texts: Sequence[str], length: int) -> NDArray[np.int32]:
        """Token ids of each text, cut and padded to one length.

        Args:
            texts: N texts, as people wrote them.
            length: L, `[CLS]` and `[SEP]` included; at least 3.

        Returns:
            `(N, L)`; each row is `[CLS] pieces [SEP]` and then `pad_id`. An empty text is `[CLS] [SEP]`.
        """
        if length < 3:
            raise ValueError(f"length = {length}: [CLS], one piece and [SEP] need 3")
        tokens_NL = np.full((len(texts), length), self.pad_id, dtype=np.int32)
        for start in range(0, len(texts), _BLOCK):
            self._encode_into(tokens_NL[start : start + _BLOCK], texts[start : start + _BLOCK], length)
        return tokens_NL

    def _encode_into(self, tokens_NL: NDArray[np.int32], texts: Sequence[str], length: int) -> None:
        cut = _MAX_CHARS_PER_TOKEN * length
        # Special tokens are set here and not by the library, whose truncation is a setting shared between threads.
        encodings = self._inner.encode_batch_fast([normalise(text[:cut]) for text in texts], add_special_tokens=False)
        pieces = [encoding.ids[: length - 2] for encoding in encodings]
        sizes_N = np.fromiter((len(ids) for ids in pieces), dtype=np.int64, count=len(pieces))
        place_L = np.arange(length)
        inside_NL = (place_L >= 1) & (place_L <= sizes_N[:, None])
        tokens_NL[inside_NL] = np.fromiter(chain.from_iterable(pieces), dtype=np.int32, count=int(sizes_N.sum()))
        tokens_NL[:, 0] = self.cls_id
        tokens_NL[np.arange(len(texts)), sizes_N + 1] = self.sep_id


def _special(inner: tokenizers.Tokenizer, role: str, where: str) -> int:
    for name in _ALIASES[role]:
        found = inner.token_to_id(name)
        if found is not None:
            return int(found)
    known = " or ".join(_ALIASES[role])
    raise ConfigError(f"{where}: has no {role} token ({known}); a BERT-like text encoder is needed")

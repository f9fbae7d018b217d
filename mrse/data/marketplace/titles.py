"""Titles as sellers write them: in any order, with attributes forgotten, misspelt, abbreviated and stuffed.

What a seller forgets is told by the picture alone. Everything follows from the item's own seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrse.data.marketplace import lexicon

# The attributes a seller may forget, with how much less often than a colour or a pattern that happens.
FORGETTABLE: dict[str, float] = {"colour": 1.0, "pattern": 1.0, "material": 1.0, "gender": 1.0, "brand": 0.3}
SYNONYM_SHARE = 0.3
ABBREVIATED_SHARE = 0.08
WRONG_STUFFING_SHARE = 0.4
PLAIN_SAID_SHARE = 0.25  # few sellers write "solid"

_ORDERS: tuple[tuple[str, ...], ...] = (
    ("brand", "gender", "colour", "pattern", "material", "type"),
    ("brand", "gender", "pattern", "colour", "material", "type"),
    ("brand", "model", "gender", "material", "type", "colour"),
    ("colour", "pattern", "material", "type", "gender", "brand"),
    ("gender", "filler", "pattern", "type", "material", "colour", "brand"),
    ("brand", "filler", "material", "pattern", "type", "gender", "colour"),
    ("filler", "colour", "pattern", "type", "brand", "gender"),
)
# The keys to the left and right on the keyboard.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _ROWS for i, key in enumerate(row)}


@dataclass(frozen=True)
class Noise:
    """How carelessly sellers write: shares of forgotten attributes, misspelt titles and stuffed titles."""

    forgotten: float
    misspelt: float
    stuffed: float


def write_title(attributes: Mapping[str, str], noise: Noise, seed: int) -> tuple[str, tuple[str, ...]]:
    """One seller's title for an item.

    Args:
        attributes: attribute name to its usual word: `type` always, the others where the item has them.
        noise: how carelessly it is written.
        seed: the item's own.

    Returns:
        The title and the names of the attributes that it does not tell.
    """
    dice = random.Random(seed)
    forgotten = tuple(name for name in FORGETTABLE if name in attributes and _forgets(name, attributes, noise, dice))
    words = {name: _word(name, value, dice) for name, value in attributes.items() if name not in forgotten}
    words["filler"] = dice.choice(lexicon.FILLERS)
    words["model"] = dice.choice(lexicon.MODELS)
    order = dice.choice(_ORDERS)
    left_out = tuple(name for name in attributes if name not in order and name not in forgotten)
    parts = [words[name] for name in (*order, *left_out) if name in words]
    if dice.random() < noise.misspelt:
        longest = max(range(len(parts)), key=lambda i: len(parts[i]))
        parts[longest] = misspell(parts[longest], dice)
    title = _style(" ".join(parts), dice)
    if dice.random() < noise.stuffed:
        title = f"{title} {_stuffing(dice)}"
    return title, forgotten


def misspell(text: str, dice: random.Random) -> str:
    """`text` with one slip of the finger in a longer word: a swap, a drop, a doubling or a neighbouring key."""
    words = text.split(" ")
    longer = [i for i, word in enumerate(words) if len(word) >= 4] or [
        max(range(len(words)), key=lambda i: len(words[i]))
    ]
    place = dice.choice(longer)
    for _ in range(8):
        wrong = _slip(words[place], dice)
        if wrong != words[place]:
            words[place] = wrong
            break
    return " ".join(words)


def _forgets(name: str, attributes: Mapping[str, str], noise: Noise, dice: random.Random) -> bool:
    if name == "pattern" and attributes[name] == "solid" and dice.random() >= PLAIN_SAID_SHARE:
        return True
    return dice.random() < noise.forgotten * FORGETTABLE[name]


def _word(name: str, value: str, dice: random.Random) -> str:
    forms = forms_of(name, value)
    word = dice.choice(forms[1:]) if len(forms) > 1 and dice.random() < SYNONYM_SHARE else forms[0]
    if dice.random() < ABBREVIATED_SHARE:
        return lexicon.ABBREVIATIONS.get(word, word)
    return word


def forms_of(name: str, value: str) -> Sequence[str]:
    """What people call this value of an attribute, the usual word first."""
    if name == "colour" and value in lexicon.COLOURS:
        return lexicon.COLOURS[value][0]
    if name == "pattern" and value in lexicon.PATTERNS:
        return lexicon.PATTERNS[value][0]
    if name == "gender" and value in lexicon.GENDERS:
        return lexicon.GENDERS[value][:3]
    if name == "type":
        return _TYPE_FORMS.get(value, (value,))
    return (value,)


_TYPE_FORMS = {kind.name: kind.forms for kind in lexicon.TYPES}


def _slip(word: str, dice: random.Random) -> str:
    if len(word) < 3:
        return word + word[-1]
    at = dice.randrange(1, len(word) - 1)
    kind = dice.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + dice.choice(_NEIGHBOURS.get(word[at].lower(), "e")) + word[at + 1 :]


def _style(title: str, dice: random.Random) -> str:
    shape = dice.random()
    if shape < 0.65:
        return " ".join(word if word[:1].isupper() else word.capitalize() for word in title.split(" "))
    if shape < 0.85:
        return title[:1].upper() + title[1:]
    return title.upper() if shape < 0.92 else title.lower()


def _stuffing(dice: random.Random) -> str:
    """Keywords that attract: praise, or colours and types that the item does not have."""
    if dice.random() >= WRONG_STUFFING_SHARE:
        return " ".join(dice.sample(lexicon.STUFFING, 2)).title()
    colours = dice.sample(tuple(lexicon.COLOURS), 2)
    return " ".join((*colours, dice.choice(lexicon.TYPES).name))

"""What shoppers ask: intents (attributes asked for), the words they put them in, and how well an item answers.

An intent is a row of codes in the order of `ATTRIBUTES`, −1 where nothing is asked. The same intent is worded in
several ways (synonyms, order, "men shirt" or "shirt for men"), the usual one most often, and sometimes mistyped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mrse.data.marketplace import draws
from mrse.data.marketplace.catalogue import ATTRIBUTES, Catalogue, Codes
from mrse.data.marketplace.titles import misspell

TYPE, GROUP = ATTRIBUTES.index("type"), ATTRIBUTES.index("group")
ASKABLE: tuple[str, ...] = ("colour", "pattern", "material", "brand", "gender", "usage")
_ASKABLE_ROWS = [ATTRIBUTES.index(name) for name in ASKABLE]

# What full queries name beside the type, with shares; where an item lacks an attribute, the rest is asked.
TEMPLATES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("colour",), 0.24),
    (("colour", "gender"), 0.08),
    (("pattern",), 0.08),
    (("colour", "pattern"), 0.17),
    (("colour", "material"), 0.07),
    (("brand",), 0.06),
    (("brand", "colour"), 0.06),
    (("material",), 0.04),
    (("pattern", "gender"), 0.04),
    (("usage",), 0.05),
    (("usage", "colour"), 0.05),
    (("colour", "pattern", "material"), 0.03),
    (("colour", "pattern", "gender"), 0.03),
)
GROUP_SHARE, GENDER_SHARE = 0.2, 0.12  # of vague queries: a whole group ("shoes"), or a type for a gender

WORDINGS = 6
TYPOS = 12
_TYPE_ONLY, _SAME_GROUP, _NEAR = 0.2, 0.1, 0.5


@dataclass(frozen=True)
class Question:
    """One intent as typed: its row of codes, which wording, and which slip of the finger (0: none)."""

    intent: tuple[int, ...]
    wording: int
    typo: int


@dataclass
class Wordings:
    """Texts of questions; equal questions give equal texts in every window."""

    catalogue: Catalogue
    seed: int
    _known: dict[Question, str] = field(default_factory=dict)

    def text(self, question: Question) -> str:
        """The text of a question."""
        text = self._known.get(question)
        if text is None:
            text = self._compose(question)
            if len(self._known) > 200_000:  # bounds the memory of very long windows
                self._known.clear()
            self._known[question] = text
        return text

    def _compose(self, question: Question) -> str:
        names = [self._forms(a, code)[0] for a, code in enumerate(question.intent) if code >= 0]
        dice = random.Random(draws.text_hash(f"{self.seed} {question.wording} {'/'.join(names)}"))
        words = {
            ATTRIBUTES[a]: self._word(self._forms(a, code), question.wording, dice)
            for a, code in enumerate(question.intent)
            if code >= 0
        }
        text = " ".join(words[name] for name in _order(words, question.wording, dice))
        if not question.typo:
            return text.lower()
        return misspell(text.lower(), random.Random(draws.text_hash(f"{self.seed} typo {question.typo} {text}")))

    def _forms(self, attribute: int, code: int) -> Sequence[str]:
        return self.catalogue.words[attribute][code]

    @staticmethod
    def _word(forms: Sequence[str], wording: int, dice: random.Random) -> str:
        """Wording 0 uses the usual words; the others use synonyms more often than not."""
        return forms[0] if wording == 0 or len(forms) == 1 or dice.random() < 0.35 else dice.choice(forms[1:])


def _order(words: dict[str, str], wording: int, dice: random.Random) -> list[str]:
    """ "men black striped cotton shirt" usually; otherwise sometimes "shirt black", always "… for men" at the end."""
    usual = ("brand", "gender", "usage", "colour", "pattern", "material", "type", "group")
    order = [name for name in usual if name in words]
    if wording and dice.random() < 0.25:
        dice.shuffle(order)
    if words.get("gender", "").startswith("for "):
        order.remove("gender")
        order.append("gender")
    return order


def grade(catalogue: Catalogue, intent: Codes | Sequence[int], items: draws.Int) -> npt.NDArray[np.float32]:
    """How well items answer an intent, by what they are and not by what their titles say.

    1: everything asked for; 0.2: the type alone; in between by the share of the other attributes that fit (a near
    colour counts half); 0.1: another type of the same group with all the other attributes; 0: anything else.

    Args:
        intent: one code per attribute, −1 where nothing is asked.
        items: rows of items, shape (M,).
    """
    codes = catalogue.codes_AN[:, items]
    asked = [a for a in _ASKABLE_ROWS if intent[a] >= 0]
    share = np.ones(len(items), dtype=np.float32)
    if asked:
        share = np.mean([_fit(catalogue, a, intent[a], codes[a]) for a in asked], axis=0, dtype=np.float32)
    right = np.ones(len(items), dtype=bool)
    related = np.zeros(len(items), dtype=bool)
    if intent[TYPE] >= 0:
        right = codes[TYPE] == intent[TYPE]
        related = (codes[GROUP] == catalogue.group_of_type[intent[TYPE]]) & (codes[GROUP] >= 0)
    elif intent[GROUP] >= 0:
        right = codes[GROUP] == intent[GROUP]
    by_type = _TYPE_ONLY + (1.0 - _TYPE_ONLY) * share**1.25
    return np.where(right, by_type, np.where(related & (share >= 1.0), _SAME_GROUP, 0.0)).astype(np.float32)


def _fit(catalogue: Catalogue, attribute: int, wanted: int, found: Codes) -> npt.NDArray[np.float32]:
    fit = (found == wanted).astype(np.float32)
    name = ATTRIBUTES[attribute]
    if name == "colour":
        fit = np.maximum(fit, _NEAR * (catalogue.near[attribute][wanted][found] & (found >= 0)))
    if name == "gender":
        unisex = np.array([*("unisex" in forms[0] for forms in catalogue.words[attribute]), False])
        fit = np.maximum(fit, unisex[found])
    return np.asarray(fit, dtype=np.float32)

"""Randomness that depends on names, not on order: seeded streams, and hashes that act as frozen dice.

A stream is seeded by (seed, what it is for, the day), so a day's draws do not depend on which window asked for them. A
hash gives the same value for the same pair, such as the relevance service's error on (query, item), wherever it is met.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Hash = npt.NDArray[np.uint64]

# What a stream is for. Values are part of the data: changing one changes every shop.
ITEMS: Final = 1
SHOPPERS: Final = 2
SESSIONS: Final = 3
SLATES: Final = 4
CLICKS: Final = 5
FASHION: Final = 6
TITLES: Final = 7
PICTURES: Final = 8
RANKER: Final = 9
RELEVANCE: Final = 10
JUDGES: Final = 11
BRAND_TASTE: Final = 12
TYPE_TASTE: Final = 13
BRAND_RANGE: Final = 15

_LOW = np.uint64(0xFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream(seed: int, purpose: int, day: int = 0) -> np.random.Generator:
    """A generator of its own for one purpose on one day."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, day])))


def scramble(x: Hash) -> Hash:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def hashed(*parts: int | np.integer | npt.NDArray[np.integer]) -> Hash:
    """A 64-bit hash of the parts, which broadcast against each other."""
    mixed: Hash = np.zeros(1, dtype=np.uint64)
    for part in parts:
        mixed = scramble((mixed + np.asarray(part).astype(np.uint64)) * np.uint64(3) + _GOLDEN)
    return mixed


def uniform(*parts: int | np.integer | npt.NDArray[np.integer]) -> Float:
    """Frozen uniform numbers in [0, 1) for the parts."""
    return np.asarray((hashed(*parts) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def gaussian(*parts: int | np.integer | npt.NDArray[np.integer]) -> Float:
    """Frozen, nearly normal numbers (mean 0, variance 1, within ±3.5): the sum of four frozen uniform ones."""
    return bell(hashed(*parts))


def bell(mixed: Hash) -> Float:
    """`gaussian` of hashes that are at hand."""
    total = (
        (mixed & _LOW) + (mixed >> np.uint64(16) & _LOW) + (mixed >> np.uint64(32) & _LOW) + (mixed >> np.uint64(48))
    )
    return np.asarray((total.astype(np.float64) / 65536.0 - 2.0) * np.sqrt(3.0), dtype=np.float64)


def text_hash(text: str) -> int:
    """A 63-bit hash of a text that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


def gumbel(draws: Float) -> Float:
    """Gumbel noise from uniform draws: the arg max of log-weights plus this samples by weight."""
    return np.asarray(-np.log(-np.log(np.clip(draws, 1e-12, 1 - 1e-12))), dtype=np.float64)

"""The shop's present ranker, and the exact probability of everything it shows.

For a query on a day the ranker orders candidates by lexical match, what the shop knows of their attributes, popularity
and a noise of the day. That order is fixed; a page is drawn from it:

* Positions 1-4, 5-10 and 11-20 are three *tiers*. The best s1 items form the pool of the first tier, the next s2 that
  of the second, the next s3 that of the third. A tier's positions are filled by a uniform random ordered sample of its
  pool.
* Every position is, independently with probability e (`exploration`), filled instead by the next of a uniform random
  ordered sample of the *exploration* pool: the EXPLORED items after the third tier.

Pools are disjoint, so no item is shown twice, and given (query, day, page length)
    P(item i is at position k) = (1 - e) / s_t   for i in the pool of the tier t of position k,
                               = e / s_e         for i in the exploration pool,
                               = 0               otherwise.
This is the `propensity` of every row: the full marginal, not an estimate. Vaguer queries have larger pools, as there
are more items to choose from.
Array names: Q unique queries, K ranked items per query, R requests, L slots of a page.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mrse.config import MarketplaceConfig
from mrse.data.marketplace import draws
from mrse.data.marketplace.catalogue import ATTRIBUTES, Catalogue, Codes
from mrse.data.marketplace.queries import ASKABLE, GROUP, TYPE, grade

SLOTS = 20
TIER_ENDS = (4, 10, 20)
EXPLORED = 120
_WIDTHS = (
    10.0,
    2.0,
    1.25,
)  # pool items per position, by the number of attributes asked for beside the type: 0, 1, more
_SMALL = 45  # with fewer candidates there is neither spread nor exploration
_RANKED = int(TIER_ENDS[-1] * _WIDTHS[0]) + EXPLORED
_SIBLINGS, _STRANGERS = 60, 60
_LOTS = draws.hashed(np.arange(_SIBLINGS + _STRANGERS))
_LEXICAL, _KNOWN, _POPULAR, _NOISE = 1.0, 0.8, 0.12, 0.30
_UNKNOWN_SHARE = 0.3  # (query, item) pairs whose attributes the shop does not know

_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Ranking:
    """The fixed order of a day for Q queries.

    Attributes:
        item_QK: rows of items, best first; −1 beyond `size_Q`.
        grade_QK: how well they answer.
        pool_Q4: sizes of the three tiers and of the exploration pool.
        explore_Q: the probability e; 0 where there are too few candidates.
    """

    item_QK: draws.Int
    grade_QK: npt.NDArray[np.float32]
    pool_Q4: draws.Int
    explore_Q: draws.Float


class Ranker:
    """The shop's ranker over the items listed before one day.

    Args:
        config: the shop.
        catalogue: all items; only those listed before `day` are candidates.
        day: proleptic ordinal.
        words: the shop's lexical index (`LexicalIndex`), shared by all days.
    """

    def __init__(self, config: MarketplaceConfig, catalogue: Catalogue, day: int, words: LexicalIndex) -> None:
        self._config, self._catalogue, self._day, self._words = config, catalogue, day, words
        self.listed = np.flatnonzero(catalogue.listed_N < day)
        self._by_type = _rows_by_code(catalogue.codes("type"), self.listed, catalogue.size("type"))
        self._by_group = _rows_by_code(catalogue.codes("group"), self.listed, catalogue.size("group"))
        self._log_popularity = np.log(catalogue.popularity_N)

    def rank(self, texts: list[str], intents: list[tuple[int, ...]]) -> Ranking:
        """Order the candidates of Q queries. About 0.3 ms per query.

        Args:
            texts: what was typed.
            intents: what was meant, one code per attribute.
        """
        item_QK = np.full((len(texts), _RANKED), -1, dtype=np.int64)
        grade_QK = np.zeros((len(texts), _RANKED), dtype=np.float32)
        pool_Q4 = np.zeros((len(texts), 4), dtype=np.int64)
        for q, (text, intent) in enumerate(zip(texts, intents, strict=True)):
            rows, grades = self._order(text, intent)
            pool_Q4[q] = pool_sizes(len(rows), sum(intent[ATTRIBUTES.index(name)] >= 0 for name in ASKABLE))
            shown = int(pool_Q4[q].sum())
            item_QK[q, :shown], grade_QK[q, :shown] = rows[:shown], grades[:shown]
        return Ranking(item_QK, grade_QK, pool_Q4, np.where(pool_Q4[:, 3] > 0, self._config.exploration, 0.0))

    def _order(self, text: str, intent: tuple[int, ...]) -> tuple[draws.Int, npt.NDArray[np.float32]]:
        query = draws.hashed(self._config.seed, draws.RANKER, draws.text_hash(text))
        rows = self._candidates(query, intent)
        grades = grade(self._catalogue, intent, rows)
        pair = draws.scramble(self._catalogue.hash_N[rows] ^ query)
        known = (pair & np.uint64(0xFFFF)) >= int(_UNKNOWN_SHARE * 0x10000)
        score = _LEXICAL * self._words.match(text, rows) + _KNOWN * np.where(known, grades, 0.3)
        score += _POPULAR * self._log_popularity[rows]
        score += _NOISE * draws.bell(draws.scramble(pair + np.uint64(self._day)))
        keep = min(len(rows), _RANKED)
        best = np.argpartition(-score, keep - 1)[:keep]
        best = best[np.lexsort((rows[best], -score[best]))]
        return rows[best], grades[best]

    def _candidates(self, query: draws.Hash, intent: tuple[int, ...]) -> draws.Int:
        """Everything of the type or group asked for, some of the type's group, and some of anything."""
        group = intent[GROUP] if intent[TYPE] < 0 else int(self._catalogue.group_of_type[intent[TYPE]])
        dice = draws.scramble(query + np.uint64(self._day) + _LOTS)
        sources = [self.listed[dice[:_STRANGERS] % np.uint64(len(self.listed))]]
        if intent[TYPE] >= 0:
            sources.append(self._by_type[intent[TYPE]])
        if group >= 0:
            whole = self._by_group[group]
            few = intent[TYPE] < 0 or len(whole) <= _SIBLINGS
            sources.append(whole if few else whole[dice[_STRANGERS:] % np.uint64(len(whole))])
        return np.unique(np.concatenate(sources))


class LexicalIndex:
    """Which share of a query's words, weighed by rarity, stands in a title.

    Args:
        titles: of all items.
        stock_N: the opening stock: rarity is that of its titles, so that a day does not depend on what is listed later.
    """

    def __init__(self, titles: list[str], stock_N: draws.Bool) -> None:
        postings: dict[str, list[int]] = {}
        for row, title in enumerate(titles):
            for word in set(_WORD.findall(title.lower())):
                postings.setdefault(word, []).append(row)
        self._postings = {word: np.array(rows) for word, rows in postings.items()}
        self._scores = np.zeros(len(titles))
        size = float(stock_N.sum())
        self._weights = {word: _rarity(size, float(stock_N[rows].sum())) for word, rows in self._postings.items()}
        self._unknown = _rarity(size, 0.0)

    def match(self, text: str, rows: draws.Int) -> draws.Float:
        """The matched share, 0 to 1, for the given rows of items. Cost: the postings of the query's words."""
        words = sorted(set(_WORD.findall(text)))
        total = 1e-9
        touched = []
        for word in words:
            posting = self._postings.get(word)
            weight = self._weights.get(word, self._unknown)
            total += weight
            if posting is not None:
                self._scores[posting] += weight
                touched.append(posting)
        matched = self._scores[rows] / total
        for posting in touched:
            self._scores[posting] = 0.0
        return np.asarray(matched)


def _rarity(size: float, found: float) -> float:
    return math.log(1.0 + size / (1.0 + found))


def pool_sizes(candidates: int, asked: int) -> tuple[int, int, int, int]:
    """Sizes of the three tiers' pools and of the exploration pool (module docstring).

    Args:
        candidates: how many items are ranked.
        asked: how many attributes the query names beside the type.
    """
    spans = [end - start for start, end in zip((0, *TIER_ENDS), TIER_ENDS, strict=False)]
    if candidates < _SMALL:
        left = [max(0, min(span, candidates - start)) for span, start in zip(spans, (0, *TIER_ENDS), strict=False)]
        return left[0], left[1], left[2], 0
    width = min(_WIDTHS[min(asked, len(_WIDTHS) - 1)], (candidates - SLOTS) / SLOTS)
    first, second, third = (int(span * width) for span in spans)
    return first, second, third, min(EXPLORED, candidates - first - second - third)


@dataclass(frozen=True)
class Pages:
    """What R requests were shown.

    Attributes:
        item_RL: rows of items, −1 beyond the page's end.
        grade_RL: how well they answer.
        propensity_RL: P(this item at this position), exact.
    """

    item_RL: draws.Int
    grade_RL: npt.NDArray[np.float32]
    propensity_RL: draws.Float


def draw_pages(ranking: Ranking, query_R: draws.Int, length_R: draws.Int, rng: np.random.Generator) -> Pages:
    """Draw a page for every request.

    Args:
        ranking: the fixed orders of the day.
        query_R: which query each request asks.
        length_R: page lengths, at most `SLOTS`.
        rng: used for uniform draws only.
    """
    pool_R4 = ranking.pool_Q4[query_R]
    start_R4 = np.cumsum(pool_R4, axis=1) - pool_R4
    shuffled_RK = _shuffle_within_pools(pool_R4, ranking.item_QK.shape[1], rng)
    slot_L = np.arange(SLOTS)
    tier_L = np.searchsorted(TIER_ENDS, slot_L, side="right")
    offset_L = slot_L - np.array((0, *TIER_ENDS))[tier_L]
    explored_RL = rng.random((len(query_R), SLOTS)) < ranking.explore_Q[query_R][:, None]
    place_RL = np.where(
        explored_RL, start_R4[:, 3:] + np.cumsum(explored_RL, axis=1) - 1, start_R4[:, tier_L] + offset_L
    )
    ranked_RL = np.take_along_axis(shuffled_RK, np.minimum(place_RL, shuffled_RK.shape[1] - 1), axis=1)
    filled_RL = explored_RL | (offset_L < pool_R4[:, tier_L])
    shown_RL = filled_RL & (slot_L < length_R[:, None])
    return Pages(
        item_RL=np.where(shown_RL, ranking.item_QK[query_R[:, None], ranked_RL], -1),
        grade_RL=ranking.grade_QK[query_R[:, None], ranked_RL],
        propensity_RL=_propensities(ranking, query_R, tier_L, explored_RL),
    )


def _shuffle_within_pools(pool_R4: draws.Int, width: int, rng: np.random.Generator) -> draws.Int:
    """Per request a permutation of 0..width-1 that moves ranks only within their pool."""
    pool_of_RK = (np.arange(width) >= np.cumsum(pool_R4, axis=1)[:, :, None]).sum(axis=1)
    return np.argsort(pool_of_RK + rng.random(pool_of_RK.shape), axis=1)


def _propensities(
    ranking: Ranking, query_R: draws.Int, tier_L: draws.Int, explored_RL: npt.NDArray[np.bool_]
) -> draws.Float:
    pool_R4 = np.maximum(ranking.pool_Q4[query_R], 1)
    explore_R1 = ranking.explore_Q[query_R][:, None]
    return np.asarray(np.where(explored_RL, explore_R1 / pool_R4[:, 3:], (1.0 - explore_R1) / pool_R4[:, tier_L]))


def _rows_by_code(codes_N: Codes, listed: draws.Int, size: int) -> list[draws.Int]:
    """The listed rows of every code, ascending."""
    order = np.argsort(codes_N[listed], kind="stable")
    bounds = np.searchsorted(codes_N[listed][order], np.arange(size + 1))
    return [np.sort(listed[order[a:b]]) for a, b in pairwise(bounds)]

"""A day in the shop: who comes, what they ask, what they are shown, and what they do with it.

A day's events are a function of (configuration, day): two windows agree on every day they share.
Array names: S sessions, R requests (one query of one session), L slots of a page, E events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrse.config import MarketplaceConfig
from mrse.data.marketplace import draws
from mrse.data.marketplace.catalogue import ATTRIBUTES, Catalogue
from mrse.data.marketplace.queries import (
    ASKABLE,
    GENDER_SHARE,
    GROUP,
    GROUP_SHARE,
    TEMPLATES,
    TYPE,
    TYPOS,
    WORDINGS,
    Question,
    Wordings,
)
from mrse.data.marketplace.ranker import SLOTS, LexicalIndex, Ranker, Ranking, draw_pages
from mrse.data.marketplace.shoppers import Fashion, Shoppers, fashion_of, taste, type_taste

# Codes of actions in alphabetical order, which is how the events of one instant are sorted.
ADD_TO_CART, CLICK, IMPRESSION, ORDER = range(4)

_EVENTS_PER_REQUEST = 16.0
_QUERIES_PER_SESSION = (0.60, 0.25, 0.10, 0.05)
_PAGE_LENGTHS = (12, 12, 12, 16, 20)
_SAME_TYPE = 0.65  # a later query of a session stays with the type of the one before it
_PLAIN_SAID = 0.1
_CONSIDERED = 12  # items a shopper has in mind, of which the one he likes best words his query
_WEEKDAYS = (0.95, 0.93, 0.95, 0.98, 1.02, 1.10, 1.07)
_HOURS = (2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 9, 10, 11, 10, 9, 9, 10, 11, 13, 15, 16, 14, 9, 5)
_LONGEST_SESSION_S = 2_700  # sessions start early enough to end on their day
_CHUNK = 2_048  # requests at once: bounds the memory of a page's arrays

_EXAMINATION = 0.45  # a shopper looks at position k with probability k ** -0.45
# Who named what he wants takes most of what fits; who did not is led by taste alone.
_LIKING_BIAS, _LIKING_SLOPE = -0.5, 2.6
_ASKED_BIAS, _ASKED_SLOPE = 2.4, 1.0
_PATIENCE = 2.8  # expected clicks on a page, at most
_CART, _ORDER = 0.22, 0.40
ORDERED = _CART * _ORDER  # share of the clicks that end in an order
_RELEVANCE_NOISE, _RELEVANCE_NULL = 0.08, 0.1


@dataclass(frozen=True)
class Requests:
    """What was asked on a day, in the order of time.

    Attributes:
        session_R: number of the session within the day; ascending with its start.
        user_R: row of the shopper.
        known_R: whether the shopper was logged in.
        second_R: seconds after midnight.
        length_R: page length.
        query_R: index into `texts` and `questions`.
        texts, questions: the day's unique queries.
    """

    session_R: draws.Int
    user_R: draws.Int
    known_R: draws.Bool
    second_R: draws.Float
    length_R: draws.Int
    query_R: draws.Int
    texts: list[str]
    questions: list[Question]


@dataclass(frozen=True)
class Events:
    """A part of a day's events as codes; `request_E` points into the day's `Requests`."""

    request_E: draws.Int
    microsecond_E: draws.Int
    item_E: draws.Int
    position_E: draws.Int
    action_E: draws.Int
    relevance_E: draws.Float
    propensity_E: draws.Float


class Shop:
    """The shop, ready to live any day before the end of a window.

    Args:
        config: the shop.
        catalogue: items listed before the window's end.
        shoppers: those who joined before it.
    """

    def __init__(self, config: MarketplaceConfig, catalogue: Catalogue, shoppers: Shoppers) -> None:
        self.config, self.catalogue, self.shoppers = config, catalogue, shoppers
        self._words = LexicalIndex(catalogue.titles, catalogue.listed_N < config.opens.toordinal())
        self._wordings = Wordings(catalogue, config.seed)
        self._plain = np.array([*("solid" in forms for forms in catalogue.words[_PATTERN]), False])

    def ask(self, day: int) -> Requests:
        """The requests of a day (a proleptic ordinal)."""
        rng = draws.stream(self.config.seed, draws.SESSIONS, day)
        fashion = fashion_of(self.config, self.catalogue, day)
        user_S, second_S, known_S, length_S, queries_S = self._sessions(rng, day)
        session_R = np.repeat(np.arange(len(user_S)), queries_S)
        nth_R = np.arange(len(session_R)) - np.repeat(np.cumsum(queries_S) - queries_S, queries_S)
        second_R = second_S[session_R] + 240.0 * nth_R + 180.0 * rng.random(len(session_R))
        type_R = self._types(rng, fashion, user_S, session_R, nth_R, day)
        user_R = user_S[session_R]
        target_R = self._targets(rng, fashion, user_R, type_R, day)
        questions = self._questions(rng, user_R, target_R)
        texts, query_R, unique = self._word_all(questions)
        kept = np.sort(np.unique(session_R * len(texts) + query_R, return_index=True)[1])  # no query twice in a session
        kept = kept[np.argsort(second_R[kept], kind="stable")]
        return Requests(
            session_R=session_R[kept],
            user_R=user_R[kept],
            known_R=known_S[session_R[kept]],
            second_R=second_R[kept],
            length_R=length_S[session_R[kept]],
            query_R=query_R[kept],
            texts=texts,
            questions=unique,
        )

    def rank(self, day: int, requests: Requests) -> Ranking:
        """The fixed order of the day for the day's unique queries."""
        ranker = Ranker(self.config, self.catalogue, day, self._words)
        return ranker.rank(requests.texts, [question.intent for question in requests.questions])

    def respond(self, day: int, requests: Requests, ranking: Ranking) -> Iterator[Events]:
        """What the shop showed and what the shoppers did, in chunks of requests."""
        slates = draws.stream(self.config.seed, draws.SLATES, day)
        clicks = draws.stream(self.config.seed, draws.CLICKS, day)
        fashion = fashion_of(self.config, self.catalogue, day)
        text_hash_Q = np.array([draws.text_hash(text) for text in requests.texts], dtype=np.int64)
        for start in range(0, len(requests.query_R), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(requests.query_R)))
            yield self._chunk(requests, ranking, fashion, rows, text_hash_Q, slates, clicks)

    # --- who comes and what they ask ---

    def _sessions(
        self, rng: np.random.Generator, day: int
    ) -> tuple[draws.Int, draws.Float, draws.Bool, draws.Int, draws.Int]:
        mean_queries = sum((n + 1) * share for n, share in enumerate(_QUERIES_PER_SESSION))
        wanted = self.config.events_per_day * _WEEKDAYS[(day - 1) % 7] / _EVENTS_PER_REQUEST / mean_queries
        count = max(1, round(wanted))
        active = int(np.searchsorted(self.shoppers.joined_U, day))
        cumulated = np.cumsum(self.shoppers.activity_U[:active])
        user_S = np.searchsorted(cumulated, rng.random(count) * cumulated[-1])
        hours = np.cumsum(_HOURS) / sum(_HOURS)
        of_day = np.interp(rng.random(count), np.concatenate([[0.0], hours]), np.arange(25) / 24.0)
        second_S = np.sort(of_day * (86_400 - _LONGEST_SESSION_S))
        known_S = rng.random(count) >= self.config.anonymous_sessions
        length_S = rng.choice(_PAGE_LENGTHS, count)
        queries_S = 1 + np.searchsorted(np.cumsum(_QUERIES_PER_SESSION)[:-1], rng.random(count), side="right")
        return user_S, second_S, known_S, length_S, queries_S

    def _types(
        self,
        rng: np.random.Generator,
        fashion: Fashion,
        user_S: draws.Int,
        session_R: draws.Int,
        nth_R: draws.Int,
        day: int,
    ) -> draws.Int:
        """The type each request is about: by stock, fashion and the shopper; sessions tend to stay with theirs."""
        codes = self.catalogue.codes("type")[self.catalogue.listed_N < day]
        stock = np.bincount(codes[codes >= 0], minlength=self.catalogue.size("type"))
        type_R = np.empty(len(session_R), dtype=np.int64)
        stays = rng.random(len(session_R)) < _SAME_TYPE
        noise = draws.stream(self.config.seed, draws.TYPE_TASTE, day)
        with np.errstate(divide="ignore"):
            base = 1.1 * np.log(stock.astype(np.float64)) + fashion.type_T[:-1]
        for start in range(0, len(session_R), _CHUNK):
            rows = slice(start, start + _CHUNK)
            liking = base + type_taste(self.config, self.catalogue, self.shoppers, user_S[session_R[rows]])
            type_R[rows] = np.argmax(liking + draws.gumbel(noise.random(liking.shape)), axis=1)
        for nth in range(1, len(_QUERIES_PER_SESSION)):
            follows = np.flatnonzero((nth_R == nth) & stays)
            type_R[follows] = type_R[follows - 1]
        return type_R

    def _targets(
        self, rng: np.random.Generator, fashion: Fashion, user_R: draws.Int, type_R: draws.Int, day: int
    ) -> draws.Int:
        """The item each shopper has in mind: the one he likes best of a few that are popular."""
        listed = np.flatnonzero(self.catalogue.listed_N < day)
        codes = self.catalogue.codes("type")[listed]
        order = listed[np.argsort(codes, kind="stable")]
        cumulated = np.concatenate([[0.0], np.cumsum(self.catalogue.popularity_N[order])])
        bounds = np.searchsorted(np.sort(codes), np.arange(self.catalogue.size("type") + 1))
        target_R = np.empty(len(user_R), dtype=np.int64)
        for start in range(0, len(user_R), _CHUNK):
            rows = slice(start, start + _CHUNK)
            low, high = cumulated[bounds[type_R[rows]]], cumulated[bounds[type_R[rows] + 1]]
            mass = low[:, None] + rng.random((len(low), _CONSIDERED)) * (high - low)[:, None]
            items = order[np.clip(np.searchsorted(cumulated, mass, side="right") - 1, 0, len(order) - 1)]
            liked = taste(self.config, self.catalogue, self.shoppers, fashion, user_R[rows], items)
            best = np.argmax(1.0 * liked + draws.gumbel(rng.random(items.shape)), axis=1)
            target_R[rows] = np.take_along_axis(items, best[:, None], axis=1)[:, 0]
        return target_R

    def _questions(self, rng: np.random.Generator, user_R: draws.Int, target_R: draws.Int) -> npt.NDArray[np.int32]:
        """Intent, wording and typo of every request, one row each: (R, attributes + 2)."""
        count = len(user_R)
        codes_RA = self.catalogue.codes_AN[:, target_R].T
        asked_RA = np.zeros(codes_RA.shape, dtype=bool)
        asked_RA[:, TYPE] = True
        vague_R = rng.random(count) < self._vague_share(self.shoppers.looks_U[user_R])
        template_R = rng.choice(len(TEMPLATES), count, p=_template_shares())
        for t, (names, _) in enumerate(TEMPLATES):
            columns = [ATTRIBUTES.index(name) for name in names]
            asked_RA[np.ix_(~vague_R & (template_R == t), columns)] = True
        plain_R = asked_RA[:, _PATTERN] & self._plain[codes_RA[:, _PATTERN]] & (rng.random(count) >= _PLAIN_SAID)
        asked_RA[plain_R, _PATTERN] = False  # few people ask for "solid"
        nothing_R = ~vague_R & ~((codes_RA >= 0) & asked_RA)[:, _ASKABLE].any(axis=1)
        asked_RA[nothing_R, ATTRIBUTES.index("colour")] = True
        self._ask_vaguely(rng.random(count), vague_R, codes_RA, asked_RA)
        wording_R = np.minimum(rng.geometric(0.5, count) - 1, WORDINGS - 1)
        typo_R = np.where(rng.random(count) < self.config.typo_query, np.minimum(rng.geometric(0.25, count), TYPOS), 0)
        intents = np.where(asked_RA, codes_RA, -1)
        return np.column_stack([intents, wording_R, typo_R]).astype(np.int32)

    def _vague_share(self, looks_R: draws.Float) -> draws.Float:
        """Vague askers are people of looks; the shares average to `vague_query`, as looks average to a half."""
        share = self.config.vague_query
        if share <= 0.5:
            return 2.0 * share * looks_R
        return 1.0 - 2.0 * (1.0 - share) * (1.0 - looks_R)

    def _ask_vaguely(
        self, u_R: draws.Float, vague_R: draws.Bool, codes_RA: npt.NDArray[np.int32], asked_RA: draws.Bool
    ) -> None:
        named = np.array([*(bool(forms) for forms in self.catalogue.words[GROUP]), False])
        group_R = vague_R & (u_R < GROUP_SHARE) & named[codes_RA[:, GROUP]]
        asked_RA[group_R, GROUP], asked_RA[group_R, TYPE] = True, False
        gender_R = vague_R & ~group_R & (u_R > 1.0 - GENDER_SHARE)
        asked_RA[gender_R, ATTRIBUTES.index("gender")] = True

    def _word_all(self, questions: npt.NDArray[np.int32]) -> tuple[list[str], draws.Int, list[Question]]:
        rows, of_R = np.unique(questions, axis=0, return_inverse=True)
        place: dict[str, int] = {}
        unique: list[Question] = []
        text_of = np.empty(len(rows), dtype=np.int64)
        for i, row in enumerate(rows.tolist()):
            question = Question(tuple(row[:-2]), row[-2], row[-1])
            text = self._wordings.text(question)
            text_of[i] = place.setdefault(text, len(place))
            if len(place) > len(unique):
                unique.append(question)
        return list(place), text_of[of_R.reshape(-1)], unique

    # --- what they are shown and what they do ---

    def click_chances(
        self,
        requests: Requests,
        fashion: Fashion,
        rows: draws.Int,
        item_RL: draws.Int,
        grade_RL: npt.NDArray[np.float32],
    ) -> draws.Float:
        """The probability of a click on every slot of some requests' pages, whoever made them.

        Args:
            requests: the day's requests.
            fashion: of the day (`fashion_of`).
            rows: which requests.
            item_RL: their pages, −1 where there is nothing.
            grade_RL: how well the items answer.
        """
        liked_RL = taste(self.config, self.catalogue, self.shoppers, fashion, requests.user_R[rows], item_RL)
        asked = np.array([any(q.intent[a] >= 0 for a in _ASKABLE) for q in requests.questions])
        asked_R1 = asked[requests.query_R[rows]][:, None]
        drive_RL = np.where(asked_R1, _ASKED_BIAS + _ASKED_SLOPE * liked_RL, _LIKING_BIAS + _LIKING_SLOPE * liked_RL)
        wanted_RL = np.clip(grade_RL, 0.05, 1.0) ** 1.3 / (1.0 + np.exp(-drive_RL))
        chance_RL: draws.Float = (item_RL >= 0) * wanted_RL * np.arange(1, SLOTS + 1) ** -_EXAMINATION
        # Who likes everything on a page still opens only a few items.
        chance_RL *= np.minimum(1.0, _PATIENCE / np.maximum(chance_RL.sum(axis=1, keepdims=True), 1e-9))
        return chance_RL

    def _chunk(
        self,
        requests: Requests,
        ranking: Ranking,
        fashion: Fashion,
        rows: draws.Int,
        text_hash_Q: draws.Int,
        slates: np.random.Generator,
        clicks: np.random.Generator,
    ) -> Events:
        query_R = requests.query_R[rows]
        pages = draw_pages(ranking, query_R, requests.length_R[rows], slates)
        shown_RL = pages.item_RL >= 0
        chance_RL = self.click_chances(requests, fashion, rows, pages.item_RL, pages.grade_RL)
        u = clicks.random((5, *chance_RL.shape))
        clicked_RL = u[0] < chance_RL
        carted_RL = clicked_RL & (u[1] < _CART)
        ordered_RL = carted_RL & (u[2] < _ORDER)
        # Seconds after the query: looking down the page, then reading the item's page, then paying.
        click_RL = 2.0 + 2.5 * np.arange(SLOTS) + 8.0 * u[3]
        cart_RL = click_RL + 10.0 + 60.0 * u[4]
        order_RL = cart_RL + 30.0 + 200.0 * u[3]
        parts = [
            _flat(IMPRESSION, shown_RL, np.zeros(shown_RL.shape)),
            _flat(CLICK, clicked_RL, click_RL),
            _flat(ADD_TO_CART, carted_RL, cart_RL),
            _flat(ORDER, ordered_RL, order_RL),
        ]
        r, slot, action, later = (np.concatenate(column) for column in zip(*parts, strict=True))
        item = pages.item_RL[r, slot]
        return Events(
            request_E=rows[r],
            microsecond_E=((requests.second_R[rows[r]] + later) * 1e6).astype(np.int64),
            item_E=item,
            position_E=slot + 1,
            action_E=action,
            relevance_E=self._relevance(text_hash_Q[query_R[r]], item, pages.grade_RL[r, slot]),
            propensity_E=pages.propensity_RL[r, slot],
        )

    def _relevance(self, text_hash: draws.Int, item: draws.Int, grade: npt.NDArray[np.float32]) -> draws.Float:
        """A relevance service's score: the same for the same (query, item), a little wrong, NaN where it has none."""
        pair = draws.hashed(self.config.seed, draws.RELEVANCE, text_hash, self.catalogue.hash_N[item])
        score = np.clip(grade + _RELEVANCE_NOISE * draws.gaussian(0, pair), 0.0, 1.0).round(3)
        return np.where(draws.uniform(1, pair) < _RELEVANCE_NULL, np.nan, score)


_PATTERN = ATTRIBUTES.index("pattern")
_ASKABLE = [ATTRIBUTES.index(name) for name in ASKABLE]


def _template_shares() -> draws.Float:
    shares = np.array([share for _, share in TEMPLATES])
    return np.asarray(shares / shares.sum())


def _flat(
    action: int, mask_RL: draws.Bool, later_RL: draws.Float
) -> tuple[draws.Int, draws.Int, draws.Int, draws.Float]:
    r, slot = np.nonzero(mask_RL)
    return r, slot, np.full(len(r), action), later_RL[r, slot]

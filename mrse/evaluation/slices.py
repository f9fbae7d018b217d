"""Slices of the evaluation window, from data alone, for any shop.

A slice is a mask over requests. One that the shop's data cannot define (no query log, no pictures, no shoppers) is not
empty but *unavailable*, with the reason: the gate treats the two differently from a slice that was looked for and found
small.

Legend of the shape suffixes: Q requests, N items of the catalogue.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from mrse.evaluation.lexical import terms

Mask = npt.NDArray[np.bool_]

DEFINITIONS: dict[str, str] = {
    "head": "the most asked queries, which together make the first third of the traffic before the test days",
    "torso": "the next third of that traffic",
    "tail": "the remaining queries, and every query that was not asked before the test days",
    "anonymous": "nobody is logged in",
    "new_shopper": "a logged-in shopper without any earlier click, cart or order",
    "known_shopper": "a logged-in shopper with at least one",
    "cold_item": "a relevant item had no click before the test days",
    "no_image": "a relevant item has no picture",
    "typo": "a word that no item has, within one edit (two from eight letters on) of a word that items have",
    "picture": "picture tells what the title forgot: no typo, and a relevant item with a picture lacks, in title and "
    "category, a query word that other items have",
    "taste": "taste decides: a known shopper, and every query word is in at least `gate.vague_share` of the catalogue",
    "short": "one or two words",
    "long": "four words or more",
    "ordered": "something was ordered from the page",
}
_CATEGORIES, _SCRIPTS = 5, 4  # at most so many slices by category and by script


@dataclass(frozen=True)
class Requests:
    """The evaluation requests, column by column, each of length Q.

    Attributes:
        queries: query texts.
        users: user ids, `None` where nobody is logged in.
        histories: number of earlier actions of the shopper.
        relevant: positions of the relevant items in the catalogue.
        ordered: positions of those that were ordered.
    """

    queries: Sequence[str]
    users: Sequence[str | None]
    histories: Sequence[int]
    relevant: Sequence[Sequence[int]]
    ordered: Sequence[Sequence[int]]


@dataclass(frozen=True)
class CatalogueFacts:
    """What slices need to know of the catalogue, each of length N.

    Attributes:
        texts: title and category.
        has_image: whether the item has a picture.
        clicks: clicks before the test days; `None` when the shop has no events.
        categories: the item's category, `None` where it has none.
    """

    texts: Sequence[str]
    has_image: Mask
    clicks: npt.NDArray[np.int64] | None
    categories: Sequence[str | None]


@dataclass
class Slices:
    """Masks by slice name, and the slices that this shop's data cannot define, with the reason.

    `definitions` are of the slices that only this shop has: those of its categories and of its queries' scripts.
    """

    masks: dict[str, Mask] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)


def make_slices(
    requests: Requests, catalogue: CatalogueFacts, query_counts: Mapping[str, int], vague_share: float
) -> Slices:
    """Every slice of `DEFINITIONS`, and those of the commonest categories and scripts.

    Args:
        requests: the evaluation requests.
        catalogue: facts about the items.
        query_counts: how often each query was asked before the test days; empty when there is no query log.
        vague_share: a word in at least this share of items is vague.
    """
    slices = Slices()
    documents = [frozenset(terms(text)) for text in catalogue.texts]
    frequency = Counter(term for document in documents for term in document)
    asked = {query: terms(query) for query in set(requests.queries)}
    _traffic(slices, requests.queries, query_counts)
    _shoppers(slices, requests)
    _items(slices, requests, catalogue)
    _words(slices, requests.queries, asked, frequency)
    _picture(slices, requests, catalogue, documents, asked, frequency)
    _taste(slices, requests, asked, frequency, vague_share * len(documents))
    _orders(slices, requests)
    _categories(slices, requests, catalogue.categories)
    _scripts(slices, requests.queries)
    return slices


def traffic_bands(query_counts: Mapping[str, int]) -> dict[str, str]:
    """`head`, `torso` or `tail` of each query that was asked: thirds of the traffic, most asked first, ties by text."""
    ordered = sorted((query for query, count in query_counts.items() if count > 0), key=lambda q: (-query_counts[q], q))
    total = sum(query_counts[query] for query in ordered)
    bands, before = {}, 0
    for query in ordered:
        bands[query] = "head" if 3 * before < total else "torso" if 3 * before < 2 * total else "tail"
        before += query_counts[query]
    return bands


class SpellingNeighbours:
    """Is a word within a small edit distance of a known one? Answered without comparing it with every known word.

    Two words within k edits (insertions, deletions, substitutions, swaps of neighbours) share a string that both reach
    by at most k deletions in their first letters; only words that share one are compared. One edit is allowed from four
    letters on, two from eight; words with digits are codes, not misspellings.

    Source: the SymSpell idea (Garbe 2012).
    """

    _PREFIX = 7

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self._by_deletion: dict[str, list[str]] = defaultdict(list)
        for word in vocabulary:
            if word.isalpha() and len(word) >= 3:
                for form in self._deletions(word, 2):
                    self._by_deletion[form].append(word)

    def close_to_known(self, word: str) -> bool:
        """Whether some known word is within the allowed number of edits."""
        if not word.isalpha() or len(word) < 4:
            return False
        allowed = 2 if len(word) >= 8 else 1
        candidates = {known for form in self._deletions(word, allowed) for known in self._by_deletion.get(form, ())}
        return any(within_edits(word, known, allowed) for known in candidates)

    def _deletions(self, word: str, most: int) -> Iterator[str]:
        prefix = word[: self._PREFIX]
        for deleted in range(min(most, len(prefix)) + 1):
            yield from {"".join(kept) for kept in combinations(prefix, len(prefix) - deleted)}


def within_edits(left: str, right: str, most: int) -> bool:
    """Whether the optimal-string-alignment distance (edits and swaps of neighbours) is at most `most`."""
    if abs(len(left) - len(right)) > most:
        return False
    before: list[int] = []
    last = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        row = [i]
        for j, b in enumerate(right, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1] <= most


def _traffic(slices: Slices, queries: Sequence[str], query_counts: Mapping[str, int]) -> None:
    bands = traffic_bands(query_counts)
    names = ("head", "torso", "tail")
    if not bands:
        slices.unavailable |= dict.fromkeys(names, "there is no log of queries before the test days")
        return
    band_Q = np.array([bands.get(query, "tail") for query in queries])
    slices.masks |= {name: band_Q == name for name in names}


def _shoppers(slices: Slices, requests: Requests) -> None:
    known_Q = np.array([user is not None for user in requests.users], dtype=bool)
    history_Q = np.array(requests.histories) > 0
    if not known_Q.any():
        reason = "no request of the window names a shopper"
        slices.unavailable |= dict.fromkeys(("anonymous", "new_shopper", "known_shopper"), reason)
        return
    slices.masks["anonymous"] = ~known_Q
    slices.masks["new_shopper"] = known_Q & ~history_Q
    slices.masks["known_shopper"] = known_Q & history_Q


def _items(slices: Slices, requests: Requests, catalogue: CatalogueFacts) -> None:
    if catalogue.clicks is None:
        slices.unavailable["cold_item"] = "the shop has no click log"
    else:
        slices.masks["cold_item"] = _any_relevant(requests, catalogue.clicks == 0)
    if not catalogue.has_image.any():
        slices.unavailable |= dict.fromkeys(("no_image", "picture"), "the catalogue has no pictures")
    else:
        slices.masks["no_image"] = _any_relevant(requests, ~catalogue.has_image)


def _words(
    slices: Slices, queries: Sequence[str], asked: Mapping[str, list[str]], frequency: Mapping[str, int]
) -> None:
    neighbours = SpellingNeighbours(frequency)
    unknown = {term for query_terms in asked.values() for term in query_terms if term not in frequency}
    misspelt = {term for term in unknown if neighbours.close_to_known(term)}
    has_typo = {query for query, query_terms in asked.items() if not misspelt.isdisjoint(query_terms)}
    slices.masks["typo"] = np.array([query in has_typo for query in queries], dtype=bool)
    length_Q = np.array([len(asked[query]) for query in queries])
    slices.masks["short"] = (length_Q >= 1) & (length_Q <= 2)
    slices.masks["long"] = length_Q >= 4


def _picture(
    slices: Slices,
    requests: Requests,
    catalogue: CatalogueFacts,
    documents: Sequence[frozenset[str]],
    asked: Mapping[str, list[str]],
    frequency: Mapping[str, int],
) -> None:
    if "picture" in slices.unavailable:
        return
    known = {
        query: frozenset(term for term in query_terms if term in frequency) for query, query_terms in asked.items()
    }
    forgot_Q = np.array(
        [
            any(catalogue.has_image[item] and not known[query] <= documents[item] for item in items)
            for query, items in zip(requests.queries, requests.relevant, strict=True)
        ],
        dtype=bool,
    )
    slices.masks["picture"] = forgot_Q & ~slices.masks["typo"]


def _taste(
    slices: Slices,
    requests: Requests,
    asked: Mapping[str, list[str]],
    frequency: Mapping[str, int],
    least: float,
) -> None:
    if "known_shopper" in slices.unavailable:
        slices.unavailable["taste"] = slices.unavailable["known_shopper"]
        return
    vague = {
        query
        for query, query_terms in asked.items()
        if query_terms and all(term in frequency and frequency[term] >= least for term in query_terms)
    }
    vague_Q = np.array([query in vague for query in requests.queries], dtype=bool)
    slices.masks["taste"] = vague_Q & slices.masks["known_shopper"]


def _orders(slices: Slices, requests: Requests) -> None:
    ordered_Q = np.array([bool(items) for items in requests.ordered], dtype=bool)
    if not ordered_Q.any():
        slices.unavailable["ordered"] = "no order from a page is logged in the window"
        return
    slices.masks["ordered"] = ordered_Q


def _categories(slices: Slices, requests: Requests, categories: Sequence[str | None]) -> None:
    """The categories that most requests want something of."""
    wanted = [{categories[item] for item in items} - {None} for items in requests.relevant]
    counts = Counter(name for names in wanted for name in names if name is not None)
    for name in sorted(counts, key=lambda name: (-counts[name], name))[:_CATEGORIES]:
        slices.masks[f"category {name}"] = np.array([name in names for names in wanted], dtype=bool)
        slices.definitions[f"category {name}"] = f"a relevant item is in category {name}"


def _scripts(slices: Slices, queries: Sequence[str]) -> None:
    """The scripts that most letters of a query are of, where there are several."""
    of_query = {query: script(query) for query in set(queries)}
    counts = Counter(of_query[query] for query in queries)
    if len(counts) < 2:
        slices.unavailable["script"] = "all queries are in one script"
        return
    for name in sorted(counts, key=lambda name: (-counts[name], name))[:_SCRIPTS]:
        slices.masks[f"script {name}"] = np.array([of_query[query] == name for query in queries], dtype=bool)
        slices.definitions[f"script {name}"] = f"most letters of the query are {name}"


def script(text: str) -> str:
    """The script of most letters of a text, the first of equals by name; `none` without letters.

    >>> script("blue кеды"), script("42")
    ('cyrillic', 'none')
    """
    names = Counter(unicodedata.name(letter, "unknown").split()[0].lower() for letter in text if letter.isalpha())
    return min(names, key=lambda name: (-names[name], name), default="none")


def _any_relevant(requests: Requests, of_item_N: Mask) -> Mask:
    return np.array([any(of_item_N[item] for item in items) for items in requests.relevant], dtype=bool)

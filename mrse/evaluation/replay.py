"""The log replayed as an experiment: what shoppers would have done with another ranking of the same pages.

A system's page for a request is its ranking, cut to the length of the page that was logged. Three figures of it:

* IMP, the impressions per page: known exactly, as the length is logged and only a short list leaves a slot empty;
* CTR, clicks per impression;
* GMV, the price of what is ordered, per page.

**Model of clicks** (position-based; Richardson et al., WWW 2007): P(click on item a at position k) = examination(k) x
attraction(request, a). **Bands**: runs of positions that the shop fills alike, so that an item is as likely at one as
at another; its probability of being in the band is then its logged propensity times the band's positions on the page.
Without bands each position is one, and the model says only that a click depends on the item and its position (the
item-position model; Li et al., "Offline evaluation of ranking policies with click models", KDD 2018).

For a logged item that the system puts on position r of the band that it was shown in, at position k,

    u = 1 / (propensity x positions of the band),   w = u x examination(r) / examination(k)

* **SNIPS** (Swaminathan and Joachims, NeurIPS 2015), band by band: (slots filled) x sum(w reward) / sum(u). A slot
  whose item the log never shows there counts as the band's covered slots do.
* **Doubly robust** (Dudik et al., ICML 2011): the reward model on the system's page + sum(w reward - u model). A slot
  that the log never covers counts as the model says. The model is examination x the mean attraction of the item's cell,
  fitted on other shoppers.
* **Naive**: the click rate where both happen to show the same item. It is wrong, and shows how much.

Examination is the click rate by position, which within a band differs by examination alone. It is taken from the same
log and held fixed in the resamples.

Cost: O(pages x slots^2), about 0.1 s for 20,000 pages, and the bootstrap.

Legend of the shape suffixes: P pages, L slots of a page, N items of the catalogue, F folds of shoppers, C cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrse.evaluation.bootstrap import Draws, Floats, estimate, resampled_sums
from mrse.evaluation.ranking import EMPTY, Ranking

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

FOLDS = 5
_PRIOR = 20.0  # examinations at the mean rate that a cell starts with
ASSUMPTIONS = (
    "The propensities are right: each is the probability with which the log showed the item at that position.",
    "A click depends on the item, the request and the position, not on what else is on the page.",
    "Within a band (gate.replay.bands) the log is as likely to show an item at one position as at another.",
    "The system's list is the page: no later ranker reorders it.",
    "SNIPS: slots that the log could not cover would do as well as the covered ones of their band. "
    "Doubly robust: as well as the reward model says.",
    "Histories of shoppers are as they were logged: what the system would have changed in them is left out.",
)


@dataclass(frozen=True)
class Pages:
    """Logged pages.

    Attributes:
        items_PL: what was shown, as positions in the catalogue; `EMPTY` beyond the page and where the item is not sold.
        propensities_PL: the probability of it; 1 where nothing is.
        clicked_PL, ordered_PL: what followed.
        lengths_P: number of slots of the page.
        clusters_P: the shopper, or the query where no shopper is known.
    """

    items_PL: Ranking
    propensities_PL: Floats
    clicked_PL: Flags
    ordered_PL: Flags
    lengths_P: Ints
    clusters_P: Ints

    def __len__(self) -> int:
        return len(self.items_PL)

    @property
    def inside_PL(self) -> Flags:
        """Which slots are on the page."""
        inside: Flags = np.arange(self.items_PL.shape[1]) < self.lengths_P[:, None]
        return inside


@dataclass(frozen=True)
class Settings:
    """How to estimate.

    Attributes:
        bands: last position of each band, ascending; positions after the last are bands of their own.
        max_weight: `u` is clipped here.
        alpha, resamples, seed, min_clusters: of the intervals.
    """

    bands: Sequence[int]
    max_weight: float
    alpha: float
    resamples: int
    seed: int
    min_clusters: int


@dataclass(frozen=True)
class Policy:
    """What one system puts on the pages, and which cell of the reward model each of these items is in (P, L)."""

    list_PL: Ranking
    cells_PL: Ints


@dataclass(frozen=True)
class Weights:
    """A system's weights of the logged slots (P, L), 0 where it does not put the item into the same band.

    Attributes:
        cover_PL: `u`, clipped.
        value_PL: `w`.
        rank_PL: the slot where the system puts the item.
        clipped: how many were clipped.
    """

    cover_PL: Floats
    value_PL: Floats
    rank_PL: Ints
    clipped: int


@dataclass(frozen=True)
class Reward:
    """What is counted: whether it happened, times what the item is worth, with its model.

    Attributes:
        got_PL: the logged reward.
        worth_N: 1 for a click; the price for an order.
        attraction_FC: `fit_cells` of whether it happened.
    """

    got_PL: Floats
    worth_N: Floats
    attraction_FC: Floats

    @classmethod
    def of(cls, pages: Pages, done_PL: Flags, worth_N: Floats, theta_L: Floats, cells_PL: Ints, cells: int) -> Reward:
        """Count and model one kind of reward."""
        happened_PL = done_PL.astype(np.float64)
        attraction_FC = fit_cells(pages, happened_PL, theta_L, cells_PL, cells)
        return cls(happened_PL * _of_item(worth_N, pages.items_PL), worth_N, attraction_FC)


def replay(
    pages: Pages,
    policies: Mapping[str, Policy],
    logged_cells_PL: Ints,
    items: int,
    prices_N: Floats | None,
    settings: Settings,
) -> dict[str, Any]:
    """IMP, CTR and GMV of two systems with intervals by shopper, and the lift of the first over the second.

    Args:
        pages: the log.
        policies: two systems' pages by name, first the one whose lift is asked for.
        logged_cells_PL: the reward model's cell of each logged item.
        items: size of the catalogue.
        prices_N: price of each item, NaN where unknown; None: no GMV.
        settings: see `Settings`.

    Returns:
        JSON-ready figures: `systems`, `lift`, `examination`, `assumptions`.
    """
    theta_L = examination(pages)
    bands_L, strata_L = _bands(pages.items_PL.shape[1], settings.bands)
    cells = 1 + max(int(c.max(initial=0)) for c in (logged_cells_PL, *(p.cells_PL for p in policies.values())))
    happened = {"clicks": (pages.clicked_PL, np.ones(items))}
    if prices_N is not None:
        happened["gmv"] = (pages.ordered_PL, np.nan_to_num(prices_N))
    rewards = {
        what: Reward.of(pages, done, worth, theta_L, logged_cells_PL, cells) for what, (done, worth) in happened.items()
    }
    columns: dict[str, Floats] = {"pages": np.ones(len(pages))}
    about = {}
    for name, policy in policies.items():
        policy = Policy(np.where(pages.inside_PL, policy.list_PL, EMPTY), policy.cells_PL)
        weights = weigh(pages, policy.list_PL, bands_L, theta_L, settings.max_weight)
        columns |= _columns(name, pages, policy, weights, strata_L, rewards, theta_L)
        about[name] = _about(pages, policy, weights)
    draws = resampled_sums(columns, pages.clusters_P, resamples=settings.resamples, seed=settings.seed)
    strata = int(strata_L.max(initial=0)) + 1
    statistics = {name: _statistics(name, strata, list(rewards)) for name in policies}
    one, other = policies
    return {
        "pages": len(pages),
        "clusters": draws.clusters,
        "slots": int(pages.lengths_P.sum()),
        "logged": _logged(pages, rewards),
        "systems": {name: about[name] | _estimates(draws, statistics[name], settings) for name in policies},
        "lift": _estimates(draws, _differences(statistics[one], statistics[other]), settings),
        "examination": [round(float(value), 6) for value in theta_L],
        "bands": list(settings.bands),
        "max_weight": settings.max_weight,
        "assumptions": list(ASSUMPTIONS),
    }


def examination(pages: Pages) -> Floats:
    """Click rate by position (L,): within a band, examination up to a factor."""
    shown_PL = pages.items_PL != EMPTY
    shown_L = shown_PL.sum(axis=0)
    rate_L: Floats = (pages.clicked_PL & shown_PL).sum(axis=0) / np.maximum(shown_L, 1)
    return rate_L


def weigh(pages: Pages, list_PL: Ranking, bands_L: Ints, theta_L: Floats, max_weight: float) -> Weights:
    """Weights of the logged slots for one system's pages (see the module's text)."""
    same_PLL = (pages.items_PL[:, :, None] == list_PL[:, None, :]) & (pages.items_PL != EMPTY)[:, :, None]
    rank_PL = same_PLL.argmax(axis=2)
    meets_PL = same_PLL.any(axis=2) & (bands_L[rank_PL] == bands_L)
    raw_PL = 1.0 / (pages.propensities_PL * _band_sizes(pages, bands_L))
    cover_PL = np.where(meets_PL, np.minimum(raw_PL, max_weight), 0.0)
    ratio_PL = np.divide(theta_L[rank_PL], theta_L, out=np.zeros(rank_PL.shape), where=theta_L > 0)
    clipped = int((meets_PL & (raw_PL > max_weight)).sum())
    return Weights(cover_PL, cover_PL * ratio_PL, rank_PL, clipped)


def fit_cells(pages: Pages, reward_PL: Floats, theta_L: Floats, cells_PL: Ints, cells: int) -> Floats:
    """Attraction of each cell for the pages of each fold of shoppers, from the other folds (F, C).

    A cell's attraction is its rewards over its examinations, drawn to the mean of all cells where it has few.
    """
    shown_PL = pages.items_PL != EMPTY
    fold_PL = np.broadcast_to((pages.clusters_P % FOLDS)[:, None], cells_PL.shape)
    keys = (fold_PL * cells + cells_PL)[shown_PL]

    def elsewhere(values_PL: Floats) -> Floats:
        own = np.bincount(keys, weights=values_PL[shown_PL], minlength=FOLDS * cells).reshape(FOLDS, cells)
        others: Floats = own.sum(axis=0) - own
        return others

    rewards, looks = elsewhere(reward_PL), elsewhere(np.broadcast_to(theta_L, cells_PL.shape))
    mean = rewards.sum(axis=1, keepdims=True) / np.maximum(looks.sum(axis=1, keepdims=True), 1e-12)
    attraction: Floats = (rewards + _PRIOR * mean) / (looks + _PRIOR)
    return attraction


def _bands(slots: int, ends: Sequence[int]) -> tuple[Ints, Ints]:
    """The band of each slot, and the stratum within which SNIPS normalises: the band, or the page without any bands."""
    inside = [end for end in ends if end < slots]
    edges = [0, *ends, *range(ends[-1] + 1 if ends else 1, slots + 1)]
    bands_L = np.searchsorted(np.array(edges[1:]), np.arange(slots), side="right")
    return bands_L, np.searchsorted(np.array(inside, dtype=np.int64), np.arange(slots), side="right")


def _band_sizes(pages: Pages, bands_L: Ints) -> Ints:
    """Positions of each slot's band that are on the page (P, L)."""
    same_LL = bands_L[:, None] == bands_L[None, :]
    sizes_PL: Ints = np.maximum(pages.inside_PL.astype(np.int64) @ same_LL.astype(np.int64), 1)
    return sizes_PL


def _of_item(values_N: Floats, items_PL: Ranking) -> Floats:
    of_item: Floats = np.where(items_PL != EMPTY, values_N[items_PL % len(values_N)], 0.0)
    return of_item


def _columns(
    name: str,
    pages: Pages,
    policy: Policy,
    weights: Weights,
    strata_L: Ints,
    rewards: Mapping[str, Reward],
    theta_L: Floats,
) -> dict[str, Floats]:
    """Per page: what SNIPS sums in each stratum, the doubly robust value of each reward, and the naive one's parts."""
    filled_PL = (policy.list_PL != EMPTY).astype(np.float64)
    meets_PL = weights.cover_PL > 0
    columns = {f"{name} met": meets_PL.sum(axis=1).astype(np.float64)}
    for stratum in range(int(strata_L.max(initial=0)) + 1):
        inside = strata_L == stratum
        columns[f"{name} filled {stratum}"] = filled_PL[:, inside].sum(axis=1)
        columns[f"{name} cover {stratum}"] = weights.cover_PL[:, inside].sum(axis=1)
        for what, reward in rewards.items():
            columns[f"{name} {what} {stratum}"] = (weights.value_PL * reward.got_PL)[:, inside].sum(axis=1)
    fold_P1 = (pages.clusters_P % FOLDS)[:, None]
    for what, reward in rewards.items():
        attraction_PL = reward.attraction_FC[fold_P1, policy.cells_PL]
        direct_PL = theta_L * attraction_PL * _of_item(reward.worth_N, policy.list_PL)
        expected_PL = np.take_along_axis(direct_PL, weights.rank_PL, axis=1)
        correction_PL = weights.value_PL * reward.got_PL - weights.cover_PL * expected_PL
        columns[f"{name} {what} dr"] = (direct_PL + correction_PL).sum(axis=1)
        columns[f"{name} {what} met"] = np.where(meets_PL, reward.got_PL, 0.0).sum(axis=1)
    return columns


Statistic = Callable[[Mapping[str, Floats]], Floats]


def _statistics(name: str, strata: int, rewards: Sequence[str]) -> dict[str, Statistic]:
    """Figures of one system as functions of the sums."""

    def impressions(s: Mapping[str, Floats]) -> Floats:
        filled: Floats = np.sum([s[f"{name} filled {stratum}"] for stratum in range(strata)], axis=0)
        return filled

    def snips(s: Mapping[str, Floats], what: str) -> Floats:
        total = np.zeros_like(s["pages"])
        for stratum in range(strata):
            filled, cover = s[f"{name} filled {stratum}"], s[f"{name} cover {stratum}"]
            total += np.where(filled > 0, filled * s[f"{name} {what} {stratum}"] / cover, 0.0)
        return total

    found: dict[str, Statistic] = {
        "imp": lambda s: impressions(s) / s["pages"],
        "ctr.snips": lambda s: snips(s, "clicks") / impressions(s),
        "ctr.dr": lambda s: s[f"{name} clicks dr"] / impressions(s),
        "ctr.naive": lambda s: s[f"{name} clicks met"] / s[f"{name} met"],
    }
    if "gmv" in rewards:
        found["gmv.snips"] = lambda s: snips(s, "gmv") / s["pages"]
        found["gmv.dr"] = lambda s: s[f"{name} gmv dr"] / s["pages"]
    return found


def _differences(one: Mapping[str, Statistic], other: Mapping[str, Statistic]) -> dict[str, Statistic]:
    return {key: lambda s, key=key: one[key](s) - other[key](s) for key in one}  # type: ignore[misc]


def _estimates(draws: Draws, statistics: Mapping[str, Statistic], settings: Settings) -> dict[str, Any]:
    return {
        key: asdict(estimate(draws, statistic, settings.alpha, settings.min_clusters))
        for key, statistic in statistics.items()
    }


def _about(pages: Pages, policy: Policy, weights: Weights) -> dict[str, Any]:
    """How much of the log speaks about a system."""
    cover = weights.cover_PL[weights.cover_PL > 0]
    filled = int((policy.list_PL != EMPTY).sum())
    return {
        "matched": len(cover),
        "effective": float(cover.sum() ** 2 / (cover**2).sum()) if len(cover) else 0.0,
        "covered": float(cover.sum() / filled) if filled else 0.0,
        "clipped": weights.clipped,
    }


def _logged(pages: Pages, rewards: Mapping[str, Reward]) -> dict[str, float]:
    """The same figures of the log itself, as they happened."""
    shown, count = max(1, int((pages.items_PL != EMPTY).sum())), max(1, len(pages))
    total = {what: float(reward.got_PL.sum()) for what, reward in rewards.items()}
    gmv = {"gmv": total["gmv"] / count} if "gmv" in total else {}
    return {"imp": shown / count, "ctr": total["clicks"] / shown, **gmv}

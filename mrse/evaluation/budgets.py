"""Guardrails that are not relevance: what a challenger may cost in variety, prices, health, time and memory.

| budget | figure | broken |
|---|---|---|
| `coverage` | share of the catalogue in anybody's top 10 | HOLD below its share of the champion's |
| `gini` | Gini index of the top 10's places over the catalogue | HOLD above the champion's plus it |
| `price` | mean log price of the top 10 | HOLD where the interval of its shift lies wholly beyond it |
| `rank` | effective rank of the item vectors | HOLD below its share of the champion's |
| `latency_p50`, `latency_p99` | milliseconds to encode one query | HOLD above its multiple of the champion's |
| `index_mib` | items x dims x 4 bytes | REJECT above it: it does not fit |

Coverage and Gini are facts about the lists of this window, not estimates: they have no interval.

Legend of the shape suffixes: Q requests, K depth of a list, N items of the catalogue, D vector size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from mrse.config import BudgetsConfig
from mrse.evaluation.bootstrap import Floats, Lift
from mrse.evaluation.gate import Reason
from mrse.evaluation.ranking import EMPTY, Ranking
from mrse.training.valid import effective_rank

TOP = 10
_SAMPLE = 4000
_REPEATS = 3
_UNNOTICED_MS = 1.0  # nobody notices less: the ratio of two smaller times is not judged


@dataclass(frozen=True)
class Health:
    """What can be said of item vectors without a query.

    Attributes:
        dims: their size.
        rank: effective rank of a sample; None where a vector is not finite.
        not_finite, not_unit: share of vectors with a value that is not finite, and whose length is not 1.
        mib: size of the index's vectors.
    """

    dims: int
    rank: float | None
    not_finite: float
    not_unit: float
    mib: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds to encode one query."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Sides:
    """What the budgets compare; a side is `None` where the system has no such figure, or there is no champion.

    Attributes:
        coverage, gini: challenger's and champion's.
        price: the shift of the mean log price; None where the catalogue has no prices.
        health: challenger's and champion's.
        latency: challenger's and champion's.
    """

    coverage: tuple[float, float | None]
    gini: tuple[float, float | None]
    price: Lift | None
    health: tuple[Health, Health | None]
    latency: tuple[Latency, Latency] | None


@dataclass(frozen=True)
class Budget:
    """One bound and what was found; `kept` is None where there is nothing to compare with or no bound."""

    name: str
    challenger: float | None
    champion: float | None
    bound: float | None
    kept: bool | None
    lower: float | None = None
    upper: float | None = None


def exposure(ranking_QK: Ranking, items: int) -> npt.NDArray[np.int64]:
    """How many places of everybody's top 10 each item has (N,)."""
    top = ranking_QK[:, :TOP]
    return np.bincount(top[top != EMPTY], minlength=items)


def coverage(exposure_N: npt.NDArray[np.int64]) -> float:
    """Share of the items that have any place.

    >>> coverage(np.array([3, 0, 1, 0]))
    0.5
    """
    return float((exposure_N > 0).mean()) if len(exposure_N) else 0.0


def gini(exposure_N: npt.NDArray[np.int64]) -> float:
    """Gini index of places over items: 0 when all have as many, near 1 when one has them all.

    >>> gini(np.array([2, 2, 2, 2])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered = np.sort(exposure_N).astype(np.float64)
    total, count = ordered.sum(), len(ordered)
    if total == 0:
        return 0.0
    return float(2.0 * (np.arange(1, count + 1) @ ordered) / (count * total) - (count + 1) / count)


def log_prices(ranking_QK: Ranking, prices_N: Floats) -> Floats:
    """Mean log price of each request's top 10 (Q,), NaN where none of it has a price."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs_N = np.where(prices_N > 0, np.log(prices_N), np.nan)
    top_QK = ranking_QK[:, :TOP]
    logs_QK = np.where(top_QK != EMPTY, logs_N[top_QK], np.nan)
    known_Q = np.isfinite(logs_QK).sum(axis=1)
    empty = np.full(len(logs_QK), np.nan)
    means_Q: Floats = np.divide(np.nansum(logs_QK, axis=1), known_Q, out=empty, where=known_Q > 0)
    return means_Q


def health(vectors_ND: npt.NDArray[np.float32]) -> Health:
    """Look at the item vectors; costs a singular value decomposition of at most 4,000 of them."""
    finite_N = np.isfinite(vectors_ND).all(axis=1)
    lengths_N = np.linalg.norm(np.nan_to_num(vectors_ND), axis=1)
    items, dims = vectors_ND.shape
    rows = np.linspace(0, items - 1, min(items, _SAMPLE)).astype(np.int64)
    rank = effective_rank(torch.from_numpy(np.ascontiguousarray(vectors_ND[rows]))) if finite_N.all() else None
    return Health(
        dims=dims,
        rank=rank,
        not_finite=float((~finite_N).mean()),
        not_unit=float((np.abs(lengths_N - 1.0) > 1e-3).mean()),
        mib=items * dims * 4 / 2**20,
    )


def latency(encoders: Sequence[Callable[[int], object]], queries: int) -> list[Latency]:
    """Time encoders of one query at a time, side by side, so that what disturbs the machine disturbs all of them.

    The fastest of three repetitions counts for a query: p99 is then of the slow queries, not of the busy moments.

    Args:
        encoders: each encodes the query of a number.
        queries: how many to encode; the first ones warm up and are encoded again.
    """
    for encode in encoders:
        for query in range(min(5, queries)):
            encode(query)
    best = np.full((len(encoders), queries), np.inf)
    for query in range(queries):
        for _ in range(_REPEATS):
            for at, encode in enumerate(encoders):
                start = time.perf_counter()
                encode(query)
                best[at, query] = min(best[at, query], time.perf_counter() - start)
    return [Latency(*(float(value) for value in np.quantile(1e3 * row, [0.5, 0.99]))) for row in best]


def confirmed(config: BudgetsConfig, measure: Callable[[], tuple[Latency, Latency]]) -> tuple[Latency, Latency]:
    """Challenger's and champion's times, taken again where they would break a budget: then the second ones count.

    A busy machine must not decide what goes live; what is slow is slow twice.
    """
    times = measure()
    return measure() if any(budget.kept is False for budget in _both_times(config, *times)) else times


def judge(config: BudgetsConfig, sides: Sides) -> tuple[list[Budget], list[Reason]]:
    """Every budget with what was found, and a reason for each that is broken."""
    budgets = list(_budgets(config, sides))
    return budgets, [_reason(budget) for budget in budgets if budget.kept is False]


def _budgets(config: BudgetsConfig, sides: Sides) -> Iterator[Budget]:
    yield _share("coverage", *sides.coverage, config.coverage)
    yield _gini(*sides.gini, config.gini)
    if sides.price is not None:
        yield _price(sides.price, sides.health[1] is not None, config.price)
    challenger, champion = sides.health
    if challenger.rank is not None:
        yield _share("rank", challenger.rank, None if champion is None else champion.rank, config.rank)
    if sides.latency is not None:
        yield from _both_times(config, *sides.latency)
    fits = None if config.index_mib is None else challenger.mib <= config.index_mib
    yield Budget("index_mib", challenger.mib, None if champion is None else champion.mib, config.index_mib, fits)


def _share(name: str, challenger: float, champion: float | None, least: float | None) -> Budget:
    kept = None if champion is None or least is None else challenger >= least * champion
    return Budget(name, challenger, champion, least, kept)


def _both_times(config: BudgetsConfig, challenger: Latency, champion: Latency) -> Iterator[Budget]:
    yield _times("latency_p50", challenger.p50, champion.p50, config.latency_p50)
    yield _times("latency_p99", challenger.p99, champion.p99, config.latency_p99)


def _times(name: str, challenger: float, champion: float, most: float | None) -> Budget:
    kept = None if most is None else challenger <= max(most * champion, _UNNOTICED_MS)
    return Budget(name, challenger, champion, most, kept)


def _gini(challenger: float, champion: float | None, rise: float | None) -> Budget:
    kept = None if champion is None or rise is None else challenger <= champion + rise
    return Budget("gini", challenger, champion, rise, kept)


def _price(shift: Lift, compared: bool, most: float | None) -> Budget:
    kept = None
    if compared and most is not None and shift.lower is not None and shift.upper is not None:
        kept = shift.lower <= most and shift.upper >= -most
    return Budget("price", shift.challenger, shift.reference, most, kept, shift.lower, shift.upper)


_BROKEN = {
    "coverage": "The top {top} show {challenger:.1%} of the catalogue, the champion's {champion:.1%}: "
    "less than {bound:g} times as much",
    "gini": "The places in the top {top} fall on fewer items: Gini index {challenger:.3f}, the champion's "
    "{champion:.3f}, a rise above {bound:g}",
    "price": "The mean log price of the top {top} shifts by [{lower:+.3f}, {upper:+.3f}], beyond {bound:g}",
    "rank": "The item vectors spread over {challenger:.1f} directions, the champion's over {champion:.1f}: "
    "less than {bound:g} times as many",
    "latency_p50": "A query takes {challenger:.2f} ms to encode, the champion {champion:.2f} ms (median): "
    "more than {bound:g} times as long",
    "latency_p99": "A slow query takes {challenger:.2f} ms to encode, the champion {champion:.2f} ms (p99): "
    "more than {bound:g} times as long",
    "index_mib": "The index takes {challenger:,.0f} MiB of vectors; there is room for {bound:,.0f}",
}


def _reason(budget: Budget) -> Reason:
    known = {key: value for key, value in asdict(budget).items() if isinstance(value, float)}
    message = _BROKEN[budget.name].format(top=TOP, **known) + f" (gate.budgets.{budget.name})."
    return Reason("budget_broken", "REJECT" if budget.name == "index_mib" else "HOLD", message, None, known)

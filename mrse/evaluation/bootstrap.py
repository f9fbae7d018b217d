"""Paired cluster bootstrap of mean differences, all slices and metrics on the same resamples.

A shopper's requests resemble each other, so whole shoppers are drawn, not requests: an interval that resamples requests
is too narrow when few shoppers make many of them.

* **Draws.** Each cluster is drawn Poisson(1) times per resample, the usual stand-in for drawing C out of C with
  replacement (Hanley and MacGibbon 2006; Chamandy et al. 2012): draws are then independent, so they run in blocks.
* **Statistic.** A mean over requests is a ratio of two sums over clusters, so a resample is one product of draws with
  per-cluster sums.
* **Interval.** Expanded percentile interval (Hesterberg 2015, section 5.3): the percentile interval at a level widened
  by Student's t and by sqrt(C / (C - 1)), which the plain one lacks when clusters are few.

Cost: O(resamples x clusters x statistics); 10,000 resamples of 20,000 clusters and 14 statistics take 1.3 s, and the
memory is one block.

Legend of the shape suffixes: R resamples, C clusters, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, factorial, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MIN_CLUSTERS = 5
_BLOCK_CELLS = 4_000_000
_POWER = 0.8
_SMALLEST_TAIL = 1e-12
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Pair:
    """Two systems' values on the same requests, NaN where a request does not count."""

    challenger: Floats
    reference: Floats


@dataclass(frozen=True)
class Lift:
    """A paired difference with its interval. `None` stands for a number that the data cannot give.

    Attributes:
        requests, clusters: how many of each the figures rest on.
        challenger, reference: the two means.
        lift, lower, upper: the difference and its interval at level 1 - alpha.
        relative, relative_lower, relative_upper: the same over the reference's mean.
        mde: the smallest true lift that this window would have shown (and passed `delta`) with power 0.8.
        p: the smallest alpha at which the interval leaves zero out (two-sided), as far as the resamples can tell.
    """

    requests: int
    clusters: int
    challenger: float | None
    reference: float | None
    lift: float | None
    lower: float | None
    upper: float | None
    relative: float | None
    relative_lower: float | None
    relative_upper: float | None
    mde: float | None
    p: float | None


def paired_lifts(
    pairs: Mapping[str, Pair],
    clusters: npt.NDArray[np.int64],
    *,
    alpha: float,
    resamples: int,
    seed: int,
    min_clusters: int = MIN_CLUSTERS,
    delta: float = 0.0,
) -> dict[str, Lift]:
    """Lift and interval of each pair, all from the same resamples.

    Args:
        pairs: per-request values (Q,) by name; a request with NaN on either side is left out of that pair.
        clusters: the cluster of each request (Q,), any integers.
        alpha: the interval has level 1 - alpha.
        resamples: number of resamples.
        seed: equal seeds give equal intervals.
        min_clusters: with fewer clusters no interval is given; at least `MIN_CLUSTERS`.
        delta: the lift that `mde` must also pass.

    Returns:
        One `Lift` per pair.
    """
    if not pairs:
        return {}
    codes = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    total = int(codes.max(initial=-1)) + 1
    sums_CS = np.concatenate([_cluster_sums(pair, codes, total) for pair in pairs.values()], axis=1)
    drawn_RS = _resample(sums_CS, resamples, seed)
    lifts = {}
    for position, name in enumerate(pairs):
        columns = slice(3 * position, 3 * position + 3)
        lifts[name] = _lift(sums_CS[:, columns], drawn_RS[:, columns], alpha, min_clusters, delta)
    return lifts


def mean_intervals(
    values: Mapping[str, Floats],
    clusters: npt.NDArray[np.int64],
    *,
    alpha: float,
    resamples: int,
    seed: int,
    min_clusters: int = MIN_CLUSTERS,
) -> dict[str, Lift]:
    """Means with intervals: the lift over a system that always scores 0."""
    pairs = {name: Pair(value, np.where(np.isnan(value), np.nan, 0.0)) for name, value in values.items()}
    return paired_lifts(pairs, clusters, alpha=alpha, resamples=resamples, seed=seed, min_clusters=min_clusters)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for their number: the chance that any that is then at most alpha is an error is at most alpha,
    however the tests depend on each other.

    Source: Holm 1979, the step-down form of Bonferroni.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'c': 0.04, 'b': 0.5}
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t to three digits from four degrees of freedom on.

    Source: the Cornish-Fisher expansion, Abramowitz and Stegun 26.7.5.
    """
    z = _NORMAL.inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))


def _cluster_sums(pair: Pair, codes: npt.NDArray[np.int64], total: int) -> Floats:
    """Per cluster: sum of the differences, sum of the reference's values, number of requests (C, 3)."""
    difference = pair.challenger - pair.reference
    counts = ~np.isnan(difference)
    columns = (np.where(counts, difference, 0.0), np.where(counts, pair.reference, 0.0), counts.astype(float))
    return np.stack([np.bincount(codes, weights=column, minlength=total) for column in columns], axis=1)


def _resample(sums_CS: Floats, resamples: int, seed: int) -> Floats:
    """Sums of each resample (R, S)."""
    generator = np.random.default_rng(seed)
    clusters = len(sums_CS)
    rows = max(1, min(resamples, _BLOCK_CELLS // max(1, clusters)))
    table = _poisson_table()
    drawn_RS = np.empty((resamples, sums_CS.shape[1]))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        uniform = generator.integers(0, len(table), size=(stop - start, clusters), dtype=np.uint16)
        drawn_RS[start:stop] = table[uniform].astype(np.float64) @ sums_CS
    return drawn_RS


def _poisson_table() -> npt.NDArray[np.uint8]:
    """Poisson(1) counts in proportion to their probability, one per 16-bit number: a draw is one look-up."""
    size = 2**16
    cumulative = np.cumsum([exp(-1.0) / factorial(count) for count in range(12)])
    return np.searchsorted(cumulative, (np.arange(size) + 0.5) / size).astype(np.uint8)


def _lift(sums_C3: Floats, drawn_R3: Floats, alpha: float, min_clusters: int, delta: float) -> Lift:
    difference, reference, count = (float(total) for total in sums_C3.sum(axis=0))
    clusters = int((sums_C3[:, 2] > 0).sum())
    if count == 0:
        return Lift(0, 0, *[None] * 10)
    relative = difference / reference if reference > 0 else None
    known = (int(count), clusters, (reference + difference) / count, reference / count, difference / count)
    if clusters < min_clusters:
        return Lift(*known, None, None, relative, None, None, None, None)
    drawn_R3 = drawn_R3[drawn_R3[:, 2] > 0]
    lifts_R = drawn_R3[:, 0] / drawn_R3[:, 2]
    lower, upper = _expanded_percentile(lifts_R, clusters, alpha)
    relative_lower, relative_upper = None, None
    if relative is not None and (drawn_R3[:, 1] > 0).all():
        ratios_R = drawn_R3[:, 0] / drawn_R3[:, 1]
        relative_lower, relative_upper = _expanded_percentile(ratios_R, clusters, alpha)
    error = float(lifts_R.std()) * sqrt(clusters / (clusters - 1))
    mde = _detectable(error, alpha, delta)
    return Lift(*known, lower, upper, relative, relative_lower, relative_upper, mde, _p_value(lifts_R, clusters))


def _expanded_percentile(values_R: Floats, clusters: int, alpha: float) -> tuple[float, float]:
    tail = _NORMAL.cdf(student_quantile(alpha / 2, clusters - 1) * sqrt(clusters / (clusters - 1)))
    lower, upper = np.quantile(values_R, [tail, 1.0 - tail])
    return float(lower), float(upper)


def _p_value(values_R: Floats, clusters: int) -> float:
    """Two-sided p-value of "the mean is zero" that agrees with `_expanded_percentile`."""
    beyond = min(int((values_R <= 0).sum()), int((values_R >= 0).sum()))
    tail = min(0.5, (beyond + 1) / (len(values_R) + 1))
    quantile = _NORMAL.inv_cdf(tail) * sqrt((clusters - 1) / clusters)
    low, high = _SMALLEST_TAIL, 0.5
    for _ in range(50):  # Student's distribution function, by halving: its quantile grows with the probability
        middle = (low + high) / 2
        below = student_quantile(middle, clusters - 1) < quantile
        low, high = (middle, high) if below else (low, middle)
    return min(1.0, 2.0 * high)


def _detectable(error: float, alpha: float, delta: float) -> float:
    """Smallest true lift whose estimate clears both zero (with its interval) and `delta` four times in five."""
    return max(_NORMAL.inv_cdf(1.0 - alpha / 2) * error, delta) + _NORMAL.inv_cdf(_POWER) * error


@dataclass(frozen=True)
class Draws:
    """Sums of columns over requests: of all of them (1,), and of each resample (R,), by column."""

    totals: Mapping[str, Floats]
    drawn: Mapping[str, Floats]
    clusters: int


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; `None` stands for a number that the data cannot give."""

    value: float | None
    lower: float | None
    upper: float | None


def resampled_sums(
    columns: Mapping[str, Floats], clusters: npt.NDArray[np.int64], *, resamples: int, seed: int
) -> Draws:
    """What any function of sums takes its interval from, such as a ratio of two weighted sums.

    Args:
        columns: finite values (Q,) by name.
        clusters: the cluster of each request (Q,), any integers.
        resamples: number of resamples.
        seed: equal seeds give equal draws.
    """
    codes = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    total = int(codes.max(initial=-1)) + 1
    sums = [np.bincount(codes, weights=column, minlength=total) for column in columns.values()]
    sums_CS = np.stack(sums, axis=1).astype(np.float64)
    drawn_RS = _resample(sums_CS, resamples, seed)
    totals = {name: sums_CS[:, [at]].sum(axis=0) for at, name in enumerate(columns)}
    return Draws(totals, {name: drawn_RS[:, at] for at, name in enumerate(columns)}, total)


def estimate(
    draws: Draws, statistic: Callable[[Mapping[str, Floats]], Floats], alpha: float, min_clusters: int = MIN_CLUSTERS
) -> Estimate:
    """A statistic of the sums with its interval; none with few clusters, or where a resample does not define it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(draws.totals)[0])
        values_R = statistic(draws.drawn)
    if not np.isfinite(value):
        return Estimate(None, None, None)
    if draws.clusters < min_clusters or not np.isfinite(values_R).all():
        return Estimate(value, None, None)
    return Estimate(value, *_expanded_percentile(values_R, draws.clusters, alpha))

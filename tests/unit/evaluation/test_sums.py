"""Intervals of any function of sums: a ratio as a plain count gives it, the same interval as that of a mean."""

import numpy as np
import pytest

from mrse.evaluation.bootstrap import Pair, estimate, paired_lifts, resampled_sums

SETTINGS = {"resamples": 400, "seed": 3}


def requests() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.random(200), generator.integers(0, 9, 200).astype(float), generator.integers(0, 40, 200)


def test_a_weighted_mean_is_that_of_a_plain_count() -> None:
    value, weight, clusters = requests()
    draws = resampled_sums({"w": weight, "wx": weight * value}, clusters, **SETTINGS)
    found = estimate(draws, lambda sums: sums["wx"] / sums["w"], 0.05)
    assert draws.clusters == len(set(clusters.tolist()))
    assert found.value == pytest.approx(sum(w * x for w, x in zip(weight, value, strict=True)) / sum(weight))
    assert found.lower is not None and found.upper is not None and found.lower < found.value < found.upper


def test_a_mean_has_the_interval_that_paired_lifts_gives_it() -> None:
    value, _, clusters = requests()
    draws = resampled_sums({"n": np.ones(200), "x": value}, clusters, **SETTINGS)
    found = estimate(draws, lambda sums: sums["x"] / sums["n"], 0.05)
    lift = paired_lifts({"x": Pair(value, np.zeros(200))}, clusters, alpha=0.05, **SETTINGS)["x"]
    assert (found.value, found.lower, found.upper) == pytest.approx((lift.lift, lift.lower, lift.upper))


def test_what_the_data_cannot_give_is_none() -> None:
    value, _, clusters = requests()
    rare = np.where(clusters == 0, 1.0, 0.0)
    draws = resampled_sums({"rare": rare, "none": np.zeros(200), "x": rare * value}, clusters, **SETTINGS)
    assert estimate(draws, lambda sums: sums["x"] / sums["none"], 0.05).value is None
    undefined = estimate(draws, lambda sums: sums["x"] / sums["rare"], 0.05)  # some resamples lack the one shopper
    assert undefined.value is not None and undefined.lower is None
    few = resampled_sums({"x": value}, np.zeros(200, int), **SETTINGS)
    assert estimate(few, lambda sums: sums["x"], 0.05).upper is None

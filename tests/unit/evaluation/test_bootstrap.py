"""The cluster bootstrap against theory, a naive resampling, and the failure that it exists to prevent."""

import numpy as np
import pytest

from mrse.evaluation.bootstrap import Lift, Pair, holm, mean_intervals, paired_lifts, student_quantile


def lift_of(challenger: np.ndarray, reference: np.ndarray, clusters: np.ndarray, **settings: float) -> Lift:
    options = {"alpha": 0.05, "resamples": 2000, "seed": 0, **settings}
    return paired_lifts({"x": Pair(challenger, reference)}, clusters, **options)["x"]  # type: ignore[arg-type]


def correlated(generator: np.random.Generator, shoppers: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences with mean 0 that a shopper's requests share, and the shopper of each."""
    clusters = np.repeat(np.arange(shoppers), each)
    shared = np.repeat(generator.normal(size=shoppers), each)
    return shared + 0.5 * generator.normal(size=shoppers * each), clusters


def test_the_interval_is_that_of_theory_for_independent_requests() -> None:
    generator = np.random.default_rng(0)
    reference, gain = generator.random(4000), generator.normal(0.02, 0.3, 4000)
    lift = lift_of(reference + gain, reference, np.arange(4000), resamples=10_000)
    error = gain.std() / np.sqrt(4000)
    assert lift.lift == pytest.approx(gain.mean())
    assert lift.lower == pytest.approx(gain.mean() - 1.96 * error, abs=0.1 * error)
    assert lift.upper == pytest.approx(gain.mean() + 1.96 * error, abs=0.1 * error)
    assert lift.mde == pytest.approx((1.96 + 0.8416) * error, rel=0.05)


def test_the_interval_is_that_of_a_naive_resampling_of_shoppers() -> None:
    generator = np.random.default_rng(1)
    difference, clusters = correlated(generator, 60, 5)
    sums = np.array([difference[clusters == c].sum() for c in range(60)])
    drawn = generator.integers(0, 60, (4000, 60))
    naive = np.quantile(sums[drawn].sum(axis=1) / 300, [0.025, 0.975])
    lift = lift_of(difference, np.zeros(300), clusters, resamples=4000)
    assert [lift.lower, lift.upper] == pytest.approx(naive, abs=0.04)


def test_shoppers_are_covered_where_requests_are_not() -> None:
    generator = np.random.default_rng(2)
    covered = {"shopper": 0, "request": 0}
    for seed in range(150):
        difference, clusters = correlated(generator, 40, 10)
        for name, unit in (("shopper", clusters), ("request", np.arange(len(clusters)))):
            lift = lift_of(difference, np.zeros(len(difference)), unit, resamples=400, seed=seed)
            covered[name] += lift.lower <= 0.0 <= lift.upper  # type: ignore[operator]
    assert covered["shopper"] / 150 >= 0.90
    assert covered["request"] / 150 <= 0.70


def test_few_shoppers_get_a_wide_interval_not_an_overconfident_one() -> None:
    generator = np.random.default_rng(3)
    inside = 0
    for seed in range(200):
        difference, clusters = correlated(generator, 10, 3)
        lift = lift_of(difference, np.zeros(30), clusters, resamples=400, seed=seed)
        inside += lift.lower <= 0.0 <= lift.upper  # type: ignore[operator]
    assert inside / 200 >= 0.90


def test_uneven_shoppers_weigh_by_their_requests() -> None:
    lift = lift_of(np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4), np.array([7, 7, 7, 9]))
    assert (lift.lift, lift.clusters, lift.requests, lift.lower) == (0.75, 2, 4, None)


def test_equal_systems_give_exactly_zero() -> None:
    values = np.random.default_rng(4).random(500)
    lift = lift_of(values, values.copy(), np.arange(500))
    assert (lift.lift, lift.lower, lift.upper, lift.relative) == (0.0, 0.0, 0.0, 0.0)


def test_a_slice_is_the_same_alone_or_beside_others() -> None:
    generator = np.random.default_rng(5)
    one, other = Pair(generator.random(80), generator.random(80)), Pair(generator.random(80), generator.random(80))
    settings = {"alpha": 0.05, "resamples": 300, "seed": 1}
    together = paired_lifts({"a": one, "b": other}, np.arange(80) // 2, **settings)  # type: ignore[arg-type]
    alone = paired_lifts({"b": other}, np.arange(80) // 2, **settings)["b"]  # type: ignore[arg-type]
    assert together["b"].lower == pytest.approx(alone.lower, abs=1e-12)


def test_equal_seeds_agree_and_others_differ() -> None:
    generator = np.random.default_rng(6)
    args = (generator.random(50), generator.random(50), np.arange(50))
    assert lift_of(*args, seed=1) == lift_of(*args, seed=1)
    assert lift_of(*args, seed=1) != lift_of(*args, seed=2)


def test_requests_without_a_value_are_left_out_on_both_sides() -> None:
    nan = np.nan
    lift = lift_of(np.array([1.0, nan, 1.0, 0.0]), np.array([0.0, 0.0, nan, 0.0]), np.arange(4))
    assert (lift.requests, lift.challenger, lift.reference) == (2, 0.5, 0.0)
    assert lift.relative is None


def test_nothing_to_average() -> None:
    lift = lift_of(np.full(3, np.nan), np.zeros(3), np.arange(3))
    assert lift.requests == 0 and lift.lift is None and lift.lower is None


def test_one_shopper_has_a_lift_but_no_interval() -> None:
    lift = lift_of(np.ones(30), np.zeros(30), np.zeros(30, dtype=int))
    assert lift.lift == 1.0 and lift.lower is None and lift.mde is None


def test_the_relative_lift_is_over_the_reference() -> None:
    generator = np.random.default_rng(7)
    reference = generator.random(1000)
    lift = lift_of(reference * 1.1, reference, np.arange(1000))
    assert lift.relative == pytest.approx(0.1)
    assert [lift.relative_lower, lift.relative_upper] == pytest.approx([0.1, 0.1])


def test_a_mean_has_an_interval_too() -> None:
    values = np.random.default_rng(8).random(400)
    mean = mean_intervals({"m": values}, np.arange(400), alpha=0.05, resamples=1000, seed=0)["m"]
    assert mean.challenger == pytest.approx(values.mean())
    assert mean.lower < values.mean() < mean.upper  # type: ignore[operator]


@pytest.mark.parametrize(("freedom", "expected"), [(4, 2.776), (9, 2.262), (30, 2.042), (10_000, 1.960)])
def test_the_t_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=0.004)


def test_the_detectable_effect_is_detected_four_times_in_five() -> None:
    generator = np.random.default_rng(9)
    mde = lift_of(generator.normal(size=300), np.zeros(300), np.arange(300)).mde
    assert mde is not None
    found = sum(
        lift_of(generator.normal(mde, 1.0, 300), np.zeros(300), np.arange(300), resamples=300).lower > 0  # type: ignore[operator]
        for _ in range(200)
    )
    assert 0.70 <= found / 200 <= 0.90


@pytest.mark.parametrize("shoppers", [12, 400])
def test_the_p_value_is_the_level_at_which_the_interval_touches_zero(shoppers: int) -> None:
    generator = np.random.default_rng(10)
    gain = generator.normal(size=shoppers)
    gain += 1.5 / np.sqrt(shoppers) - gain.mean()
    arguments = (gain, np.zeros(shoppers), np.arange(shoppers))
    p = lift_of(*arguments, resamples=20_000).p
    assert p is not None and 0.001 < p < 0.5
    assert lift_of(*arguments, resamples=20_000, alpha=1.1 * p).lower > 0  # type: ignore[operator]
    assert lift_of(*arguments, resamples=20_000, alpha=0.9 * p).lower < 0  # type: ignore[operator]


def test_p_values_of_equal_systems_are_uniform_and_never_zero() -> None:
    generator = np.random.default_rng(12)
    samples = enumerate(generator.normal(size=(500, 60)))
    found = [lift_of(gain, np.zeros(60), np.arange(60), resamples=500, seed=seed).p for seed, gain in samples]
    assert 0.025 <= np.mean(np.array(found) <= 0.05) <= 0.075
    assert np.quantile(found, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.06)
    assert lift_of(np.ones(60), np.zeros(60), np.arange(60), resamples=500).p == pytest.approx(2 / 501, rel=0.5)
    assert lift_of(np.zeros(60), np.zeros(60), np.arange(60), resamples=500).p == pytest.approx(1.0)


def test_holm_is_the_textbook_example() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {} and holm({"x": 0.7, "y": 0.9}) == {"x": 1.0, "y": 1.0}

"""Budgets: each figure against a plain count, and each bound kept, broken, off and without a champion."""

from dataclasses import replace

import numpy as np
import pytest

from mrse.config import BudgetsConfig
from mrse.evaluation.bootstrap import Lift
from mrse.evaluation.budgets import (
    Budget,
    Health,
    Latency,
    Sides,
    confirmed,
    coverage,
    exposure,
    gini,
    health,
    judge,
    latency,
    log_prices,
)  # fmt: skip
from mrse.evaluation.ranking import EMPTY

GOOD = Health(dims=8, rank=6.0, not_finite=0.0, not_unit=0.0, mib=10.0)
KNOWN = {
    "requests": 100,
    "clusters": 50,
    "challenger": 2.0,
    "reference": 2.0,
    "lift": 0.0,
    "lower": -0.01,
    "upper": 0.01,
}
SHIFT = Lift(**dict.fromkeys(Lift.__dataclass_fields__) | KNOWN)
SIDES = Sides((0.5, 0.5), (0.6, 0.6), SHIFT, (GOOD, GOOD), (Latency(4.0, 8.0), Latency(4.0, 8.0)))


def test_exposure_coverage_and_gini_are_those_of_a_plain_count() -> None:
    generator = np.random.default_rng(0)
    ranking = np.array([generator.permutation(30)[:12] for _ in range(7)], dtype=np.int32)
    ranking[0, 4:] = EMPTY
    counts = [sum(item in row[:10].tolist() for row in ranking) for item in range(30)]
    found = exposure(ranking, 30)
    assert found.tolist() == counts
    assert coverage(found) == pytest.approx(sum(count > 0 for count in counts) / 30)
    pairs = sum(abs(a - b) for a in counts for b in counts)
    assert gini(found) == pytest.approx(pairs / (2 * 30 * sum(counts)))
    assert (coverage(np.zeros(0, int)), gini(np.zeros(4, int))) == (0.0, 0.0)


def test_prices_are_means_of_what_is_known() -> None:
    prices = np.array([1.0, np.e, 0.0, np.nan])
    rankings = np.array([[0, 1, 2], [2, 3, EMPTY]], dtype=np.int32)
    assert log_prices(rankings, prices) == pytest.approx([0.5, np.nan], nan_ok=True)


def test_the_health_of_vectors() -> None:
    eye = np.eye(4, dtype=np.float32)
    assert health(eye) == Health(4, pytest.approx(4.0), 0.0, 0.0, 4 * 4 * 4 / 2**20)
    broken = eye.copy()
    broken[0], broken[1] = np.nan, 2.0 * broken[1]
    found = health(broken)
    assert (found.rank, found.not_finite, found.not_unit) == (None, 0.25, 0.5)


def test_encoders_are_timed_in_turns() -> None:
    calls: list[tuple[str, int]] = []
    fast, slow = latency([lambda query: calls.append(("a", query)), lambda query: calls.append(("b", query))], 8)
    timed = calls[10:]
    assert [name for name, _ in timed] == ["a", "b"] * 24 and [query for _, query in timed[::6]] == list(range(8))
    assert 0.0 < fast.p50 <= fast.p99 and 0.0 < slow.p50 <= slow.p99


QUICK, SLOW = (Latency(4.0, 8.0), Latency(4.0, 8.0)), (Latency(4.0, 80.0), Latency(4.0, 8.0))


@pytest.mark.parametrize(
    ("taken", "counts"),
    [([QUICK], QUICK), ([SLOW, QUICK], QUICK), ([SLOW, SLOW], SLOW)],
    ids=["in time", "a busy moment", "slow"],
)
def test_times_that_would_hold_a_challenger_up_are_taken_again(taken, counts) -> None:
    left = iter(taken)
    assert confirmed(BudgetsConfig(), lambda: next(left)) == counts
    assert list(left) == [], "and times that are kept are not"


def test_times_without_a_budget_are_taken_once() -> None:
    left = iter([SLOW])
    assert confirmed(BudgetsConfig(latency_p50=None, latency_p99=None), lambda: next(left)) == SLOW


BROKEN = {
    "coverage": replace(SIDES, coverage=(0.39, 0.5)),
    "gini": replace(SIDES, gini=(0.66, 0.6)),
    "price": replace(SIDES, price=replace(SHIFT, lower=-0.5, upper=-0.3)),
    "rank": replace(SIDES, health=(replace(GOOD, rank=2.9), GOOD)),
    "latency_p50": replace(SIDES, latency=(Latency(6.1, 8.0), Latency(4.0, 8.0))),
    "latency_p99": replace(SIDES, latency=(Latency(4.0, 16.1), Latency(4.0, 8.0))),
    "index_mib": replace(SIDES, health=(replace(GOOD, mib=5000.0), GOOD)),
}


def test_kept_budgets_give_no_reason() -> None:
    budgets, reasons = judge(BudgetsConfig(), SIDES)
    assert reasons == [] and [budget.name for budget in budgets] == list(BROKEN)
    assert all(budget.kept for budget in budgets)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_budget_holds_or_rejects_unless_it_is_off(name: str) -> None:
    budgets, reasons = judge(BudgetsConfig(), BROKEN[name])
    assert [budget.name for budget in budgets if budget.kept is False] == [name]
    assert [(reason.code, reason.outcome) for reason in reasons] == [
        ("budget_broken", "REJECT" if name == "index_mib" else "HOLD")
    ]
    assert f"gate.budgets.{name}" in reasons[0].message
    assert judge(BudgetsConfig(**{name: None}), BROKEN[name])[1] == []


def test_without_a_champion_only_the_size_is_judged() -> None:
    alone = Sides((0.1, None), (0.9, None), replace(SHIFT, lower=1.0, upper=2.0), (replace(GOOD, rank=1.0), None), None)
    budgets, reasons = judge(BudgetsConfig(), alone)
    assert reasons == [] and [b.name for b in budgets if b.kept is not None] == ["index_mib"]
    assert Budget("coverage", 0.1, None, 0.8, None) in budgets


def test_a_price_shift_that_may_be_small_and_a_time_that_nobody_notices_are_kept() -> None:
    assert judge(BudgetsConfig(), replace(SIDES, price=replace(SHIFT, lower=0.1, upper=0.6)))[1] == []
    assert judge(BudgetsConfig(), replace(SIDES, latency=(Latency(0.9, 0.9), Latency(0.1, 0.1))))[1] == []

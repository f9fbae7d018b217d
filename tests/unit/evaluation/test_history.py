"""The history's arithmetic on literal decisions: looks, the same decision, the lines of the chart and the page."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mrse.evaluation.history import Decided, Forced, identity, look_of, overridden, override_of
from mrse.evaluation.history_page import NAMES, Point, chart, lines, render

WINDOW, GOLDEN, BM25 = NAMES


def decided(day: int, version: int, champion: int | None, outcome: str = "PROMOTE", **changes: Any) -> Decided:
    given: dict[str, Any] = {
        "run_id": f"run{day}",
        "made": datetime(2026, 3, day, 2, tzinfo=UTC),
        "id": f"id{day}",
        "outcome": outcome,
        "code": "proven_lift",
        "reason": "The gain is proven.",
        "version": version,
        "fingerprint": f"f{version}",
        "champion_version": champion,
        "reference_name": "bm25" if champion is None else "champion",
        "window_hash": f"w{day}",
        "window_start": f"2026-02-{day:02}T00:00:00+00:00",
        "window_end": f"2026-03-{day:02}T00:00:00+00:00",
        "shop": "a shop",
        "simulated": True,
        "metric": "recall_at_50",
        "figures": {
            "challenger": 0.5 + day / 100,
            "reference": 0.4,
            "lift": 0.1,
            "lower": 0.05,
            "upper": 0.15,
            "mde": 0.02,
            "alpha": 0.05,
        },
        "golden": {"challenger": 0.6, "champion": 0.55, "bm25": 0.3},
        "golden_seen": False,
        "forced": None,
    }
    return Decided(**{**given, **changes})


def test_a_window_counts_the_challengers_that_it_judged() -> None:
    past = [decided(1, 1, None), decided(1, 2, 1, window_hash="w1"), decided(2, 3, 1), decided(1, 1, 2)]
    assert [look_of(past, "w1", fingerprint) for fingerprint in ("f1", "f2", "f9")] == [1, 2, 3]
    assert look_of(past, "w2", "f9") == 2 and look_of(past, "w3", "f9") == 1 and look_of([], "w1", "f1") == 1


def test_a_decision_is_the_same_for_the_same_models_requests_settings_and_outcome() -> None:
    decision: dict[str, Any] = {
        "challenger": {"fingerprint": "a"},
        "champion": None,
        "window": {"hash": "w"},
        "config": {"k": 5},
        "outcome": "HOLD",
    }
    same = identity(decision)
    assert identity({**decision, "sentence": "other words"}) == same
    others = [
        {"champion": {"fingerprint": "b"}},
        {"window": {"hash": "x"}},
        {"config": {"k": 6}},
        {"outcome": "REJECT"},
    ]
    assert len({same, *(identity({**decision, **other}) for other in others)}) == 5


def test_an_override_leaves_what_the_rule_said_beside_it() -> None:
    forced = Forced("Ada", "the supplier changed", "2026-03-15T08:00:00+00:00")
    ruled = {"outcome": "HOLD", "reasons": [{"code": "no_proven_lift"}], "sentence": "HOLD: no gain."}
    found = overridden(ruled, forced)
    assert (found["outcome"], found["forced"]["outcome"]) == ("PROMOTE", "HOLD")
    assert found["sentence"] == "PROMOTE, forced by Ada (the supplier changed). The rule says HOLD: no gain."
    assert [reason["code"] for reason in found["reasons"]] == ["forced", "no_proven_lift"]
    past = [decided(1, 1, None, "HOLD"), decided(2, 1, None, "HOLD", forced=forced)]
    assert override_of(past, "id2") == forced and override_of(past, "id1") is None


def test_the_lines_follow_the_champion_from_the_first_model_on() -> None:
    past = [
        decided(1, 1, None),
        decided(2, 2, 1, "HOLD", golden_seen=True),
        decided(3, 3, 1, golden_seen=True),
        decided(4, 4, 3, "HOLD", figures={}, golden={"bm25": 0.3}),
        decided(5, 5, 3),
    ]
    found = lines(past)
    assert found[WINDOW] == [
        Point(f"2026-03-0{day}", value) for day, value in ((1, 0.51), (2, 0.4), (3, 0.4), (5, 0.4))
    ]
    assert [(point.value, point.hollow) for point in found[GOLDEN]] == [
        (0.6, False),  # the first model stands for the champion
        (0.55, False),
        (0.55, False),
        (0.55, True),  # version 3 learned while the golden days were in its data
    ]
    assert [point.value for point in found[BM25]] == [0.3] * 5


@pytest.mark.parametrize(
    "changes",
    [
        {"champion": None, "outcome": "REJECT"},  # nothing went live
        {"champion": 1, "reference_name": "bm25"},  # the champion could not be read
    ],
)
def test_a_day_without_a_champion_has_no_point(changes: dict[str, Any]) -> None:
    found = lines([decided(1, 2, **changes)])
    assert found[WINDOW] == [] and found[GOLDEN] == [] and len(found[BM25]) == 1


def test_a_day_judged_twice_and_another_metric_do_not_mix() -> None:
    past = [decided(1, 1, None, metric="ndcg_at_10"), decided(2, 2, 1), decided(2, 3, 1, golden={"champion": 0.7})]
    found = lines(past)
    assert [point.value for point in found[GOLDEN]] == [0.7]


def test_the_chart_keeps_days_apart_by_their_dates() -> None:
    drawn = chart({"x": [Point("2026-03-01", 0.5), Point("2026-03-02", 0.7), Point("2026-03-11", 0.6)]})
    (first, second, last) = drawn["lines"][0]["points"]
    assert (first["x"], last["x"]) == (drawn["left"], drawn["right"])
    assert second["x"] - first["x"] == pytest.approx((last["x"] - first["x"]) / 10, abs=0.1)
    assert second["y"] < last["y"] < first["y"]


def test_a_chart_of_nothing_and_of_one_day() -> None:
    assert chart({"x": []})["lines"][0]["points"] == []
    (point,) = chart({"x": [Point("2026-03-01", 0.5)]})["lines"][0]["points"]
    assert 48 < point["x"] < 708


def test_the_page_is_of_one_shop() -> None:
    page = render([decided(1, 1, None), decided(2, 2, None, shop="another shop"), decided(3, 3, 1)])
    assert "version 3" in page and "version 1" in page and "version 2" not in page


def test_the_page_tells_every_decision_and_escapes_what_people_write() -> None:
    forced = Forced("<b>Ada</b>", "prices & titles", "2026-03-02T08:00:00+00:00")
    page = render([decided(1, 1, None), decided(2, 2, 1, "HOLD", forced=forced)])
    assert page.index("version 2") < page.index("version 1"), "newest first"
    assert "PROMOTE, forced by &lt;b&gt;Ada&lt;/b&gt; over HOLD" in page and "prices &amp; titles" in page
    assert page.count("+0.100 [+0.050, +0.150] recall@50 over") == 2
    assert "(95% interval); the window could have shown 0.020" in page and "Simulated data." in page

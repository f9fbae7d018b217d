"""What the gate's page makes of figures."""

import numpy as np
import pytest

from mrse.evaluation.ranking import EMPTY
from mrse.evaluation.report import forest, listed


def slice_of(lower: float, upper: float, claimed: bool) -> dict[str, object]:
    claims = {"improved": claimed and lower > 0, "worsened": claimed and upper < 0}
    return {"lift": (lower + upper) / 2, "lower": lower, "upper": upper, "requests": 50, **claims}


@pytest.mark.parametrize(
    ("figures", "tone"),
    [
        (slice_of(0.01, 0.05, True), "gain"),
        (slice_of(0.01, 0.05, False), "open"),  # alone it would be one, among so many it may be chance
        (slice_of(-0.02, 0.05, False), "open"),
        (slice_of(-0.05, -0.01, True), "loss"),
        (slice_of(-0.05, -0.01, False), "open"),
        (slice_of(-0.05, -0.01, False) | {"lower": None, "upper": None}, "unknown"),
    ],
)
def test_a_slice_is_coloured_where_its_change_holds_among_all_slices(figures, tone) -> None:
    whole = {"lift": 0.02, "lower": 0.01, "upper": 0.03, "requests": 100}
    decision = {"primary": whole, "slices": {"tail": figures}, "guardrails": {}, "definitions": {}}
    first, second = forest(decision)["rows"]
    assert (first["tone"], second["tone"]) == ("gain", tone)


def test_a_guardrail_is_red_where_the_rule_says_so() -> None:
    whole = {"lift": 0.02, "lower": 0.01, "upper": 0.03, "requests": 100}
    for margin, tone in ((0.005, "loss"), (0.02, "open")):
        decision = {"primary": whole, "slices": {"tail": slice_of(-0.05, -0.01, False)}, "definitions": {}}
        assert forest(decision | {"guardrails": {"tail": margin}})["rows"][1]["tone"] == tone


def test_a_list_shows_its_first_hit_however_late() -> None:
    ranking_K = np.array([7, 3, 9, 1, 4, 8, 2, 5, EMPTY])
    first_six = [(1, 7), (2, 3), (3, 9), (4, 1), (5, 4), (6, 8)]
    assert listed(ranking_K, {4, 5}) == first_six
    assert listed(ranking_K, {5}) == [*first_six[:5], (8, 5)]
    assert listed(ranking_K, {6}) == first_six
    assert listed(ranking_K[6:], set()) == [(1, 2), (2, 5)]

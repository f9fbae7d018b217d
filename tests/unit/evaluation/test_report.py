"""What the gate's page makes of figures."""

import pytest

from mrse.evaluation.report import forest


def slice_of(lower: float, upper: float, improved: bool) -> dict[str, object]:
    return {"lift": (lower + upper) / 2, "lower": lower, "upper": upper, "improved": improved, "requests": 50}


@pytest.mark.parametrize(
    ("figures", "tone"),
    [
        (slice_of(0.01, 0.05, True), "gain"),
        (slice_of(0.01, 0.05, False), "open"),  # alone it would be one, among so many it may be chance
        (slice_of(-0.02, 0.05, False), "open"),
        (slice_of(-0.05, -0.01, False), "loss"),
        (slice_of(-0.05, -0.01, False) | {"lower": None, "upper": None}, "unknown"),
    ],
)
def test_a_slice_is_green_where_its_gain_holds_among_all_slices(figures, tone) -> None:
    whole = {"lift": 0.02, "lower": 0.01, "upper": 0.03, "requests": 100}
    decision = {"primary": whole, "slices": {"tail": figures}, "guardrails": {}, "definitions": {}}
    first, second = forest(decision)["rows"]
    assert (first["tone"], second["tone"]) == ("gain", tone)

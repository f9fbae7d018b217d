"""How figures are written for people."""

from mrse.evaluation.wording import change, level, made_up, plain, shown, signed


def test_figures_have_three_digits_a_true_minus_and_a_dash_for_none() -> None:
    assert (signed(-0.0123), signed(0.5), signed(None)) == ("−0.012", "+0.500", "–")
    assert (plain(0.5), plain(None)) == ("0.500", "–")
    assert change(-0.1, -0.15, 0.05) == "−0.100 [−0.150, +0.050]"
    assert change(-0.1, None, None) == "−0.100 [too few shoppers]"
    assert (level(0.05), level(0.05 / 3)) == ("95%", "98.33%")
    assert shown("recall_at_50") == "recall@50"
    assert (made_up("Simulated: all is made up."), made_up("From files.")) == ("All is made up.", "From files.")

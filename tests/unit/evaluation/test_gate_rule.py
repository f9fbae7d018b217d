"""The gate tested on itself: A/A pairs, planted effects, and every way in which results can be wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mrse.config import GateConfig
from mrse.errors import ConfigError
from mrse.evaluation.gate import (
    Reason,
    Scored,
    SliceClaim,
    Verdict,
    Window,
    alpha_of_look,
    decide,
    slice_claims,
    slice_lifts,
)
from mrse.evaluation.slices import Slices

METRIC = "recall_at_50"


def settings(**changes: Any) -> GateConfig:
    return GateConfig.model_validate({"resamples": 300, "delta": 0.0, "guardrails": {}, **changes})


def window(requests: int, shoppers: int | None = None, **masks: np.ndarray) -> Window:
    clusters = np.arange(requests) % (shoppers or requests)
    return Window("cafe", [f"r{i}" for i in range(requests)], clusters, Slices(masks, {"taste": "no shopper is known"}))


def scored(name: str, values: np.ndarray) -> Scored:
    return Scored(name, "cafe", [f"r{i}" for i in range(len(values))], {METRIC: values})


def judge(
    challenger: np.ndarray, reference: np.ndarray, config: GateConfig | None = None, where: Window | None = None
) -> Verdict:
    where = where or window(len(challenger))
    pair = scored("challenger", challenger), scored("champion", reference)
    return decide(config or settings(), where, *pair, "champion", METRIC)


def codes(verdict: Verdict) -> list[str]:
    return [reason.code for reason in verdict.reasons]


def coin(generator: np.random.Generator, chance: float, requests: int = 400) -> np.ndarray:
    return (generator.random(requests) < chance).astype(float)


def test_two_equal_models_are_promoted_no_more_often_than_alpha() -> None:
    generator = np.random.default_rng(0)
    outcomes = []
    for _ in range(300):
        taste = np.repeat(generator.normal(size=50), 8)  # what a shopper's requests share
        pair = (taste + generator.normal(size=400) for _ in range(2))
        outcomes.append(judge(*pair, where=window(400)).outcome)
    # 5% of 300 and two standard errors; the rule is one-sided in a two-sided interval, so 2.5% is expected.
    assert outcomes.count("PROMOTE") <= 15
    assert outcomes.count("REJECT") <= 15


def test_equal_models_whose_shoppers_differ_are_not_promoted_either() -> None:
    generator = np.random.default_rng(1)
    promoted = 0
    for _ in range(200):
        luck = np.tile(generator.normal(size=40), 10)  # a shopper's requests win or lose together
        difference = luck + 0.3 * generator.normal(size=400)
        promoted += judge(difference, np.zeros(400), where=window(400, shoppers=40)).outcome == "PROMOTE"
    assert promoted <= 10


def test_a_planted_regression_beyond_the_detectable_effect_is_never_promoted_and_mostly_rejected() -> None:
    generator = np.random.default_rng(2)
    outcomes = []
    for _ in range(100):
        noise = judge(coin(generator, 0.5), coin(generator, 0.5)).primary
        assert noise is not None and noise.mde is not None
        outcomes.append(judge(coin(generator, 0.5 - 1.2 * noise.mde), coin(generator, 0.5)).outcome)
    assert "PROMOTE" not in outcomes
    assert outcomes.count("REJECT") >= 80


def test_a_planted_gain_beyond_the_detectable_effect_is_promoted() -> None:
    generator = np.random.default_rng(3)
    outcomes = []
    for _ in range(100):
        noise = judge(coin(generator, 0.5), coin(generator, 0.5)).primary
        assert noise is not None and noise.mde is not None
        outcomes.append(judge(coin(generator, 0.5 + 1.2 * noise.mde), coin(generator, 0.5)).outcome)
    assert outcomes.count("PROMOTE") >= 80


def test_a_gain_below_delta_holds() -> None:
    generator = np.random.default_rng(4)
    reference = generator.random(400)
    verdict = judge(reference + 0.004, reference, settings(delta=0.005))
    assert (verdict.outcome, codes(verdict)) == ("HOLD", ["lift_below_delta"])


def test_all_ties_hold() -> None:
    verdict = judge(np.ones(400), np.ones(400))
    assert (verdict.outcome, codes(verdict)) == ("HOLD", ["no_proven_lift"])


def test_a_clear_loss_is_rejected_with_its_numbers() -> None:
    generator = np.random.default_rng(5)
    verdict = judge(coin(generator, 0.2), coin(generator, 0.6))
    assert (verdict.outcome, codes(verdict)) == ("REJECT", ["worse_than_reference"])
    numbers = verdict.reasons[0].numbers
    assert numbers is not None and numbers["upper"] < 0


def test_the_first_run_says_that_there_is_no_champion() -> None:
    pair = scored("challenger", np.ones(400)), scored("BM25", np.zeros(400))
    verdict = decide(settings(), window(400), *pair, "bm25", METRIC)
    assert (verdict.outcome, codes(verdict)) == ("PROMOTE", ["proven_lift", "first_run"])


def better(requests: int = 400) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(6)
    return coin(generator, 0.8, requests), coin(generator, 0.3, requests)


def test_a_guardrail_that_holds_lets_the_challenger_through() -> None:
    where = window(400, head=np.arange(400) < 200)
    verdict = judge(*better(), settings(guardrails={"head": 0.02}), where)
    assert (verdict.outcome, codes(verdict)) == ("PROMOTE", ["proven_lift", "guardrail_held"])


def test_a_guardrail_proven_harmed_rejects_a_better_challenger() -> None:
    tail = np.arange(400) < 80
    challenger, reference = better()
    challenger[tail], reference[tail] = 0.0, 1.0
    verdict = judge(challenger, reference, settings(guardrails={"tail": 0.02}), window(400, tail=tail))
    assert verdict.outcome == "REJECT"
    assert [(r.code, r.slice) for r in verdict.reasons] == [("guardrail_harmed", "tail"), ("proven_lift", None)]


def test_a_guardrail_whose_harm_cannot_be_excluded_holds() -> None:
    generator = np.random.default_rng(7)
    tail = np.arange(400) < 80
    challenger, reference = better()
    challenger[tail], reference[tail] = coin(generator, 0.5, 80), coin(generator, 0.5, 80)
    verdict = judge(challenger, reference, settings(guardrails={"tail": 0.02}), window(400, tail=tail))
    assert (verdict.outcome, codes(verdict)[0]) == ("HOLD", "guardrail_not_excluded")


@pytest.mark.parametrize("size", [0, 49])
def test_a_guardrail_too_small_to_tell_holds(size: int) -> None:
    where = window(400, head=np.arange(400) < size)
    verdict = judge(*better(), settings(guardrails={"head": 0.02}, min_slice=50), where)
    assert (verdict.outcome, codes(verdict)) == ("HOLD", ["guardrail_too_small", "proven_lift"])


def test_a_guardrail_of_few_shoppers_holds() -> None:
    where = window(400, shoppers=40, head=np.arange(400) % 40 < 5)
    verdict = judge(*better(), settings(guardrails={"head": 0.02}, min_slice=10), where)
    assert codes(verdict)[0] == "guardrail_too_small"


def test_a_guardrail_that_the_shop_cannot_have_holds_unless_it_is_marked() -> None:
    verdict = judge(*better(), settings(guardrails={"taste": 0.02}))
    assert (verdict.outcome, codes(verdict)) == ("HOLD", ["guardrail_unavailable", "proven_lift"])
    assert "no shopper is known" in verdict.reasons[0].message
    marked = judge(*better(), settings(guardrails={"taste": 0.02}, not_applicable=["taste"]))
    assert (marked.outcome, codes(marked)) == ("PROMOTE", ["proven_lift", "guardrail_not_applicable"])


def test_marking_a_guardrail_does_not_silence_one_that_can_be_measured() -> None:
    tail = np.arange(400) < 80
    challenger, reference = better()
    challenger[tail], reference[tail] = 0.0, 1.0
    config = settings(guardrails={"tail": 0.02}, not_applicable=["tail"])
    assert judge(challenger, reference, config, window(400, tail=tail)).outcome == "REJECT"


def test_an_unknown_guardrail_is_a_configuration_error() -> None:
    from mrse.config import parse

    with pytest.raises(ConfigError, match=r"gate\.guardrails\.haed"):
        parse({"snapshot": {"end": "2026-03-15"}, "gate": {"guardrails": {"haed": 0.02}}})


def no_metric(it: Scored) -> Scored:
    return replace(it, values={"mrr_at_50": it.values[METRIC]})


def fewer_requests(it: Scored) -> Scored:
    return replace(it, request_ids=it.request_ids[:-1], values={METRIC: it.values[METRIC][:-1]})


def other_requests(it: Scored) -> Scored:
    return replace(it, request_ids=[*it.request_ids[:-1], "stranger"])


def fewer_values(it: Scored) -> Scored:
    return replace(it, values={METRIC: it.values[METRIC][:-1]})


def one_nan(it: Scored) -> Scored:
    return replace(it, values={METRIC: np.concatenate([[np.nan], it.values[METRIC][1:]])})


def one_infinite(it: Scored) -> Scored:
    return replace(it, values={METRIC: np.concatenate([[np.inf], it.values[METRIC][1:]])})


def other_window(it: Scored) -> Scored:
    return replace(it, window="beef")


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (no_metric, "missing_metric"),
        (fewer_requests, "missing_requests"),
        (other_requests, "missing_requests"),
        (fewer_values, "missing_requests"),
        (one_nan, "not_finite"),
        (one_infinite, "not_finite"),
        (other_window, "window_mismatch"),
    ],
)
def test_results_that_cannot_be_trusted_are_rejected(side: int, spoil: Callable[[Scored], Scored], code: str) -> None:
    pair = [scored("challenger", better()[0]), scored("champion", better()[1])]
    pair[side] = spoil(pair[side])
    verdict = decide(settings(), window(400), pair[0], pair[1], "champion", METRIC)
    assert (verdict.outcome, codes(verdict), verdict.primary) == ("REJECT", [code], None)
    assert verdict.reasons[0].message.startswith(("Challenger", "Champion"))


def test_a_small_window_holds() -> None:
    verdict = judge(*better(99), settings(min_requests=100))
    assert (verdict.outcome, codes(verdict)) == ("HOLD", ["too_few_requests"])


def test_an_empty_window_holds() -> None:
    verdict = judge(np.empty(0), np.empty(0))
    assert (verdict.outcome, codes(verdict)) == ("HOLD", ["too_few_requests"])


def test_a_window_of_one_shopper_holds() -> None:
    verdict = judge(*better(), where=window(400, shoppers=1))
    assert (verdict.outcome, codes(verdict)) == ("HOLD", ["too_few_clusters"])
    assert verdict.primary is not None and verdict.primary.lower is None


def test_a_concern_from_before_scoring_counts() -> None:
    concern = Reason("champion_unreadable", "HOLD", "The champion cannot be read.")
    pair = scored("challenger", better()[0]), scored("BM25", better()[1])
    verdict = decide(settings(), window(400), *pair, "bm25", METRIC, [concern])
    assert (verdict.outcome, codes(verdict)[0]) == ("HOLD", "champion_unreadable")


def test_reasons_are_data() -> None:
    assert judge(np.ones(400), np.ones(400)).reasons[0].as_dict() == {
        "code": "no_proven_lift",
        "outcome": "HOLD",
        "message": "No gain over champion is shown: +0.0000 [+0.0000, +0.0000]; "
        "this window could have shown a gain of 0.0000.",
        "numbers": {"lift": 0.0, "lower": 0.0, "upper": 0.0},
    }


def test_a_slice_of_equal_models_is_rarely_claimed_to_have_improved() -> None:
    generator = np.random.default_rng(8)
    claimed, lost, uncorrected = 0, 0, 0
    for _ in range(200):
        where = window(400, **{f"s{at}": generator.random(400) < 0.2 for at in range(13)})
        lifts = slice_lifts(settings(resamples=1000), where, generator.normal(size=400), generator.normal(size=400))
        slices = {name: lift for name, lift in lifts.items() if name != "all"}
        claims = slice_claims(slices, 0.05).values()
        claimed += any(claim.improved for claim in claims)
        lost += any(claim.worsened for claim in claims)
        uncorrected += any(lift.lower > 0 for lift in slices.values())  # type: ignore[operator]
    assert claimed / 200 <= 0.05 and lost / 200 <= 0.05
    assert uncorrected / 200 >= 0.15, "what the correction is for"


def test_a_slice_that_did_improve_is_claimed_with_its_adjusted_level() -> None:
    generator = np.random.default_rng(9)
    better = np.arange(400) < 80
    difference = 0.3 * generator.normal(size=400) + better
    lifts = slice_lifts(settings(), window(400, better=better, other=~better), difference, np.zeros(400))
    slices = {name: lift for name, lift in lifts.items() if name != "all"}
    claims = slice_claims(slices, 0.05)
    assert claims["better"].improved and not claims["other"].improved and not claims["better"].worsened
    turned = slice_lifts(settings(), window(400, better=better, other=~better), -difference, np.zeros(400))
    assert slice_claims({name: turned[name] for name in slices}, 0.05)["better"].worsened
    assert claims["better"].p == pytest.approx(2 * slices["better"].p)  # type: ignore[operator]


def test_a_slice_without_an_interval_is_claimed_nothing_of() -> None:
    where = window(400, few=np.arange(400) < 3)
    lifts = slice_lifts(settings(), where, np.ones(400), np.zeros(400))
    assert slice_claims({"few": lifts["few"]}, 0.05)["few"] == SliceClaim(None, False, False)


def test_the_levels_of_all_looks_at_a_window_add_up_to_alpha() -> None:
    chances = [alpha_of_look(0.05, look) / 2 for look in range(1, 2000)]
    assert alpha_of_look(0.05, 1) == 0.05 and chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(0.05, abs=1e-4) and sum(chances) < 0.05


def test_ten_equal_challengers_of_one_window_rarely_put_one_through() -> None:
    generator = np.random.default_rng(10)
    through = {"looks count": 0, "looks forgotten": 0}
    for _ in range(100):
        champion = generator.normal(size=400)
        pairs = [(generator.normal(size=400), champion) for _ in range(10)]
        spent = [settings(resamples=1000, alpha=alpha_of_look(0.05, look)) for look in range(1, 11)]
        through["looks count"] += any(
            judge(*pair, config).outcome == "PROMOTE" for pair, config in zip(pairs, spent, strict=True)
        )
        through["looks forgotten"] += any(judge(*pair).outcome == "PROMOTE" for pair in pairs)
    assert through["looks count"] <= 9
    assert through["looks forgotten"] >= 12

"""Counterfactual estimates against a plain loop over the formulas, and against a simulated log whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from mrse.evaluation.ranking import EMPTY
from mrse.evaluation.replay import FOLDS, Pages, Policy, Settings, examination, fit_cells, replay

SLOTS, TIERS, POOL = 8, (0, 3, 8), (0, 9, 24, 44)  # two bands; two pools of their own and one of exploration
ITEMS = POOL[-1]
EXPLORE = 0.2
SETTINGS = Settings(bands=(3, 8), max_weight=1e9, alpha=0.05, resamples=300, seed=0, min_clusters=5)


class Shop:
    """Pages drawn as the simulated marketplace draws them, clicked by position x attraction."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.theta = np.arange(1, SLOTS + 1) ** -0.5
        # What the log rarely shows is better than what it shows: the naive estimate must fall short.
        self.attraction = np.concatenate([generator.uniform(0.1, 0.3, POOL[2]), generator.uniform(0.4, 0.8, 20)])
        self.buys, self.prices = generator.uniform(0.2, 0.5, ITEMS), generator.uniform(1.0, 9.0, ITEMS)

    def log(self, pages: int, shoppers: int, seed: int) -> Pages:
        generator = np.random.default_rng(seed)
        items = np.empty((pages, SLOTS), np.int32)
        propensities = np.empty((pages, SLOTS))
        for band in range(2):
            places = np.arange(TIERS[band], TIERS[band + 1])
            size = POOL[band + 1] - POOL[band]
            drawn = generator.permuted(np.tile(np.arange(POOL[band], POOL[band + 1]), (pages, 1)), axis=1)
            items[:, places] = drawn[:, : len(places)]
            propensities[:, places] = (1 - EXPLORE) / size
        explored = generator.random((pages, SLOTS)) < EXPLORE
        rest = generator.permuted(np.tile(np.arange(POOL[2], POOL[3]), (pages, 1)), axis=1)[:, :SLOTS]
        items = np.where(explored, rest, items).astype(np.int32)
        propensities = np.where(explored, EXPLORE / (POOL[3] - POOL[2]), propensities)
        lengths = generator.choice([6, 8], pages)
        inside = np.arange(SLOTS) < lengths[:, None]
        clicked = inside & (generator.random(items.shape) < self.theta * self.attraction[items])
        ordered = clicked & (generator.random(items.shape) < self.buys[items])
        clusters = generator.integers(0, shoppers, pages)
        return Pages(
            np.where(inside, items, EMPTY).astype(np.int32), np.where(inside, propensities, 1.0), clicked, ordered,
            lengths, clusters,
        )  # fmt: skip

    def policy(self, pages: Pages, seed: int, explored: int) -> Policy:
        """A list per page: items of the right pools, some of them from the exploration pool."""
        generator = np.random.default_rng(seed)
        first = generator.permuted(np.tile(np.arange(POOL[0], POOL[1]), (len(pages), 1)), axis=1)[:, :3]
        second = generator.permuted(np.tile(np.arange(POOL[1], POOL[2]), (len(pages), 1)), axis=1)[:, :5]
        listed = np.concatenate([first, second], axis=1).astype(np.int32)
        rare = generator.permuted(np.tile(np.arange(POOL[2], POOL[3]), (len(pages), 1)), axis=1)
        listed[:, :explored] = rare[:, :explored]
        return Policy(listed, cells(listed))

    def truth(self, pages: Pages, policy: Policy) -> dict[str, float]:
        expected = np.where(pages.inside_PL, self.theta * self.attraction[policy.list_PL], 0.0)
        bought = expected * self.buys[policy.list_PL] * self.prices[policy.list_PL]
        return {"ctr": expected.sum() / pages.inside_PL.sum(), "gmv": bought.sum() / len(pages)}


def cells(items: np.ndarray) -> np.ndarray:
    return np.where(items == EMPTY, 0, np.searchsorted(POOL, items, side="right") % 3).astype(np.int64)


def estimates(
    shop: Shop, pages: Pages, one: Policy, other: Policy, settings: Settings = SETTINGS, prices: bool = True
) -> dict:
    policies = {"one": one, "other": other}
    return replay(pages, policies, cells(pages.items_PL), ITEMS, shop.prices if prices else None, settings)


def naive_loop(shop: Shop, pages: Pages, policy: Policy, cap: float) -> dict[str, float]:
    """The formulas of the module, item by item."""
    theta = examination(pages)
    band = [0] * 3 + [1] * 5
    sums = {b: {"filled": 0.0, "u": 0.0, "clicks": 0.0, "gmv": 0.0} for b in (0, 1)}
    dr, met, met_clicks = {"clicks": 0.0, "gmv": 0.0}, 0, 0
    model = {
        "clicks": fit_cells(pages, pages.clicked_PL.astype(float), theta, cells(pages.items_PL), 3),
        "gmv": fit_cells(pages, pages.ordered_PL.astype(float), theta, cells(pages.items_PL), 3),
    }
    for page in range(len(pages)):
        length, fold = int(pages.lengths_P[page]), int(pages.clusters_P[page]) % FOLDS
        listed = policy.list_PL[page][:length].tolist()
        attraction = {what: [model[what][fold, cells(np.array(item))] for item in listed] for what in model}
        q = {
            "clicks": [theta[r] * attraction["clicks"][r] for r in range(length)],
            "gmv": [theta[r] * attraction["gmv"][r] * shop.prices[listed[r]] for r in range(length)],
        }
        for what in dr:
            dr[what] += sum(q[what])
        for r in range(length):
            sums[band[r]]["filled"] += 1
        for k in range(length):
            item = int(pages.items_PL[page, k])
            if item not in listed or band[listed.index(item)] != band[k]:
                continue
            r = listed.index(item)
            size = sum(band[j] == band[k] for j in range(length))
            u = min(1.0 / (pages.propensities_PL[page, k] * size), cap)
            w = u * theta[r] / theta[k]
            got = {"clicks": float(pages.clicked_PL[page, k]), "gmv": pages.ordered_PL[page, k] * shop.prices[item]}
            sums[band[k]]["u"] += u
            met, met_clicks = met + 1, met_clicks + got["clicks"]
            for what in dr:
                sums[band[k]][what] += w * got[what]
                dr[what] += w * got[what] - u * q[what][r]
    impressions = sum(s["filled"] for s in sums.values())
    snips = {what: sum(s["filled"] * s[what] / s["u"] for s in sums.values()) for what in dr}
    return {
        "imp": impressions / len(pages),
        "ctr.snips": snips["clicks"] / impressions,
        "ctr.dr": dr["clicks"] / impressions,
        "ctr.naive": met_clicks / met,
        "gmv.snips": snips["gmv"] / len(pages),
        "gmv.dr": dr["gmv"] / len(pages),
    }


@pytest.mark.parametrize("cap", [1e9, 5.0])
def test_estimates_equal_a_plain_loop_over_the_formulas(cap: float) -> None:
    shop = Shop(0)
    pages = shop.log(120, 30, 1)
    one, other = shop.policy(pages, 2, 2), shop.policy(pages, 3, 0)
    found = estimates(shop, pages, one, other, replace(SETTINGS, max_weight=cap, resamples=100))
    for name, policy in (("one", one), ("other", other)):
        got = {key: found["systems"][name][key]["value"] for key in naive_loop(shop, pages, policy, cap)}
        assert got == pytest.approx(naive_loop(shop, pages, policy, cap))
    lift = {key: found["systems"]["one"][key]["value"] - found["systems"]["other"][key]["value"] for key in got}
    assert {key: found["lift"][key]["value"] for key in lift} == pytest.approx(lift)
    assert (found["systems"]["one"]["clipped"] > 0) == (cap == 5.0)


def test_fitted_cells_know_only_other_shoppers() -> None:
    shop = Shop(0)
    pages = shop.log(200, 10, 1)
    theta, codes, clicked = examination(pages), cells(pages.items_PL), pages.clicked_PL.astype(float)
    before = fit_cells(pages, clicked, theta, codes, 3)
    after = fit_cells(
        pages, np.where((pages.clusters_P % FOLDS == 2)[:, None], 1.0 - clicked, clicked), theta, codes, 3
    )
    assert np.allclose(before[2], after[2]) and not np.allclose(before[1], after[1])


def test_the_intervals_cover_the_truth_where_the_naive_one_misses_it() -> None:
    trials, inside, misses = 200, dict.fromkeys(("ctr.snips", "ctr.dr", "gmv.snips", "gmv.dr"), 0), []
    lift_inside = 0
    shop = Shop(4)
    for trial in range(trials):
        pages = shop.log(1500, 400, 10 + trial)
        one, other = shop.policy(pages, 1000 + trial, 3), shop.policy(pages, 3000 + trial, 0)
        found = estimates(shop, pages, one, other, replace(SETTINGS, seed=trial))
        truth, reference = shop.truth(pages, one), shop.truth(pages, other)
        for key in inside:
            figure = found["systems"]["one"][key]
            inside[key] += figure["lower"] <= truth[key[:3]] <= figure["upper"]
        lift = found["lift"]["ctr.dr"]
        lift_inside += lift["lower"] <= truth["ctr"] - reference["ctr"] <= lift["upper"]
        misses.append(
            [found["systems"]["one"][key]["value"] / truth["ctr"] - 1 for key in ("ctr.snips", "ctr.dr", "ctr.naive")]
        )
    snips, doubly, naive = np.mean(misses, axis=0)
    assert all(count / trials >= 0.90 for count in inside.values()), inside
    assert lift_inside / trials >= 0.90
    assert abs(snips) < 0.02 and abs(doubly) < 0.02 and abs(naive) > 0.1

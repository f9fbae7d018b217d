"""Small versions of `benchmarks/gate.py`: the rule on rankings that were damaged, improved or merely shaken."""

import numpy as np
import pytest

from benchmarks import gate as simulation
from benchmarks.gate import Effect, Stand
from mrse.config import GateConfig
from mrse.evaluation.metrics import Labels

CONFIG = GateConfig(resamples=300, guardrails={"tail": 0.02}, min_slice=20)
Shop = tuple[Stand, np.ndarray, tuple[np.ndarray, np.ndarray]]


def stand() -> Stand:
    """400 requests of 100 shoppers, each for two of 300 items; a third of the requests are the tail."""
    generator = np.random.default_rng(0)
    items = generator.standard_normal((300, 16))
    wanted = [[int(i) for i in generator.permutation(300)[:2]] for _ in range(400)]
    queries = items[[row[0] for row in wanted]] + 0.8 * items[[row[1] for row in wanted]]
    queries += 0.7 * generator.standard_normal(queries.shape)
    unit = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (queries, items)]
    labels = Labels.build(wanted, [[1.0, 1.0]] * 400, 300)
    return Stand(labels, np.arange(400) % 100, {"tail": np.arange(400) % 3 == 0}, *unit, k=5)


@pytest.fixture(scope="module")
def shop() -> Shop:
    """The window, the model's recall, and the twin's vectors."""
    it = stand()
    return it, it.recall(it.queries_QD, it.items_ND), simulation.twin(it, np.random.default_rng(1))


def test_equal_models_of_real_rankings_are_promoted_no_more_often_than_alpha(shop: Shop) -> None:
    window, base, rival = shop
    generator = np.random.default_rng(2)
    found = simulation.equal_models(CONFIG, window, base, window.recall(*rival), 100, generator)
    assert found["requests that differ"] > 0.1, "or there is nothing to be wrong about"
    assert found["promoted"] <= 0.06 and found["rejected"] <= 0.06


@pytest.mark.parametrize("what", ["5% of the items' vectors shuffled", "index without 5% of its rows"])
def test_damaged_rankings_are_never_promoted(shop: Shop, what: str) -> None:
    window, base, rival = shop
    generator = np.random.default_rng(3)
    effects = simulation.damages(window, rival, base, generator, variants=4)
    assert all(effect.true < 0 for effect in effects[what])
    found = simulation.caught(CONFIG, window, effects[what], base, 30, generator)
    assert found["larger"] >= 3 and found["promoted"] == 0


def test_a_broken_slice_is_caught_although_the_whole_gains(shop: Shop) -> None:
    window, base, _ = shop
    effect = simulation.broken_slice(window, "tail", 0.2, base, base, np.random.default_rng(4))
    assert (effect.values - base).mean() > 0.01 and effect.true < -0.05
    found = simulation.caught(CONFIG, window, [effect], base, 20, np.random.default_rng(5))
    assert (found["larger"], found["promoted"]) == (20, 0)


def test_a_gain_of_the_printed_size_is_proven_as_often_as_promised(shop: Shop) -> None:
    window, base, rival = shop
    found = simulation.power(CONFIG, window, base, window.recall(*rival), 1.0, 150, np.random.default_rng(6))
    assert 0.68 <= found["lift proven"] <= 0.92


def test_the_effect_planted_is_the_effect_known(shop: Shop) -> None:
    window, base, _ = shop
    more = simulation.found_more(window, base, 1.0, np.random.default_rng(7))
    assert Effect.of(more, base).true == pytest.approx(np.mean(base < 1.0) / 2)

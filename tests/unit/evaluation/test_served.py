"""Answers through an index beside exact ones: a loss that is planted is the loss that is shown."""

import numpy as np
import pytest

from mrse.config import GateConfig
from mrse.errors import ServiceError
from mrse.evaluation import served as module
from mrse.evaluation.metrics import Labels
from mrse.evaluation.ranking import EMPTY, exact_search
from mrse.evaluation.scoring import Result, score
from mrse.evaluation.served import ask, compare
from mrse.evaluation.window import Asked

CONFIG = GateConfig(k=20, resamples=300)
ITEMS, REQUESTS = 200, 60


def asked() -> Asked:
    generator = np.random.default_rng(1)
    wanted = [[int(item)] for item in generator.integers(0, ITEMS, REQUESTS)]
    return Asked(
        source="events",
        request_ids=[f"r{at}" for at in range(REQUESTS)],
        queries=["q"] * REQUESTS,
        users=[None] * REQUESTS,
        histories=[None] * REQUESTS,
        labels=Labels.build(wanted, [[1.0]] * REQUESTS, ITEMS),
        relevant=wanted,
        ordered=[[]] * REQUESTS,
        clusters=np.arange(REQUESTS),
        left_out={},
        hash="cafe",
    )


def model(window: Asked) -> tuple[np.ndarray, Result]:
    """Item vectors, and a model whose queries are the wanted items, shaken."""
    generator = np.random.default_rng(2)
    items = generator.standard_normal((ITEMS, 16)).astype(np.float32)
    queries = items[[row[0] for row in window.relevant]] + 0.5 * generator.standard_normal((REQUESTS, 16))
    queries = queries.astype(np.float32)
    found = score("the challenger", window, exact_search(queries, items, 100), CONFIG.k)
    return items, Result(found.scored, found.ranking_QK, queries_QD=queries)


def by_exact_search(items_ND: np.ndarray, queries_QD: np.ndarray, k: int) -> np.ndarray:
    """An index that loses nothing."""
    return exact_search(queries_QD, items_ND, k)


def without_every_second(items_ND: np.ndarray, queries_QD: np.ndarray, k: int) -> np.ndarray:
    """An index that lost the items of odd rows."""
    return 2 * exact_search(queries_QD, items_ND[::2], k)


def test_an_exact_index_costs_nothing_and_a_leaky_one_what_it_lost() -> None:
    window = asked()
    items, result = model(window)
    bm25 = score("BM25", window, np.full((REQUESTS, 100), EMPTY, dtype=np.int32), CONFIG.k)
    results = {"challenger": result, "champion": result, "bm25": bm25}
    whole = ask(by_exact_search, items, result, CONFIG.k)
    leaky = ask(without_every_second, items, result, CONFIG.k)
    assert whole is not None and leaky is not None
    found = compare(CONFIG, window, {"challenger": leaky, "champion": whole}, results, "champion")
    assert found is not None and found["requests"] == REQUESTS
    challenger, champion = (found["systems"][name] for name in ("challenger", "champion"))
    assert champion["found"] == 1.0 and 0.3 < challenger["found"] < 0.7
    exact = result.scored.values["recall_at_20"]
    odd = np.array([row[0] % 2 == 1 for row in window.relevant])
    recall = challenger["metrics"]["recall_at_20"]
    assert recall["exact"] == pytest.approx(exact.mean())
    assert recall["served"] <= exact[~odd].sum() / REQUESTS + 0.05 and recall["upper"] < 0
    assert {row["difference"] for row in champion["metrics"].values()} <= {0.0, None}
    assert found["lift"]["lift"] == pytest.approx(recall["difference"]), "the champion loses nothing"
    alone = compare(CONFIG, window, {"challenger": leaky}, results, "bm25")
    assert alone is not None and alone["lift"]["lift"] == pytest.approx(recall["served"])
    assert "recall_at_100" not in challenger["metrics"], "the index was asked for 20"


def test_many_requests_are_asked_in_part_and_the_others_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    window = asked()
    items, result = model(window)
    some = ask(by_exact_search, items, result, CONFIG.k)
    assert some is not None and len(some.rows) == 10
    found = compare(CONFIG, window, {"challenger": some}, {"challenger": result, "bm25": result}, "bm25")
    assert found is not None and found["requests"] == 10 and found["systems"]["challenger"]["found"] == 1.0


def test_what_cannot_be_asked_is_not_measured() -> None:
    window = asked()
    items, result = model(window)
    assert ask(by_exact_search, np.full_like(items, np.nan), result, CONFIG.k) is None
    assert ask(by_exact_search, items, Result(result.scored, result.ranking_QK), CONFIG.k) is None
    assert compare(CONFIG, window, {}, {"challenger": result}, "bm25") is None


def test_an_index_that_fails_stops_no_decision(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(items_ND: np.ndarray, queries_QD: np.ndarray, k: int) -> np.ndarray:
        raise ServiceError("no space left on device")

    assert ask(failing, *model(asked()), CONFIG.k) is None
    assert "no space left on device" in "".join(capsys.readouterr())

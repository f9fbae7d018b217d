"""Vectorised metrics against a naive reference and against ir-measures."""

import json
import math
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrse.evaluation.metrics import METRICS, Labels, evaluate, labelled_share
from mrse.evaluation.ranking import EMPTY, top_k

ITEMS = 12
request_labels = st.dictionaries(st.integers(0, ITEMS - 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=6)
rankings = st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=8)


def naive(ranking: list[int], gains: dict[int, float], k: int, threshold: float) -> dict[str, float]:
    relevant = {item for item, gain in gains.items() if gain > 0 and gain >= threshold}
    top = ranking[:k]
    hits = [item in relevant for item in top]
    found = [gains.get(item, 0.0) for item in top]
    best = sorted(gains.values(), reverse=True)[:k]
    ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))
    return {
        "recall": sum(hits) / len(relevant) if relevant else math.nan,
        "precision": sum(hits) / k,
        "rele": sum(found) / k,
        "ndcg": sum(g / math.log2(r + 2) for r, g in enumerate(found)) / ideal if ideal else math.nan,
        "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        "hit": float(any(hits)),
    }


def build(labels: list[dict[int, float]], threshold: float = 0.0) -> Labels:
    return Labels.build([list(row) for row in labels], [list(row.values()) for row in labels], ITEMS, threshold)


def padded(rows: list[list[int]], depth: int) -> np.ndarray:
    return np.array([row + [EMPTY] * (depth - len(row)) for row in rows], dtype=np.int32).reshape(len(rows), depth)


@given(
    st.lists(st.tuples(request_labels, rankings), min_size=1, max_size=6),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.5, 0.7]),
)
def test_metrics_equal_the_naive_reference(
    requests: list[tuple[dict[int, float], list[int]]], k: int, threshold: float
) -> None:
    labels = build([gains for gains, _ in requests], threshold)
    values = evaluate(padded([ranking for _, ranking in requests], 8), labels, k)
    assert set(values) == set(METRICS)
    for row, (gains, ranking) in enumerate(requests):
        expected = naive(ranking, gains, k, threshold)
        got = {name: float(values[name][row]) for name in METRICS}
        assert got == pytest.approx(expected, nan_ok=True)


def test_metrics_equal_ir_measures_ties_included() -> None:
    generator = np.random.default_rng(0)
    k, depth, requests, items = 5, 20, 60, 40
    gains = [
        {int(i): float(generator.integers(0, 4)) for i in generator.permutation(items)[:8]} for _ in range(requests)
    ]
    for row in gains:
        row[next(iter(row))] = 2.0
    scores = generator.integers(0, 6, (requests, items)).astype(np.float64)
    ranking = np.stack([top_k(row, depth) for row in scores]).astype(np.int32)
    labels = Labels.build([list(g) for g in gains], [list(g.values()) for g in gains], items, 2.0)
    ours = evaluate(ranking, labels, k)
    # trec_eval breaks ties by document name, descending; our rule is ascending, so the run states it in its scores.
    run = [
        ir_measures.ScoredDoc(f"{q:03}", str(item), float(depth - rank))
        for q, row in enumerate(ranking)
        for rank, item in enumerate(row)
    ]
    qrels = [ir_measures.Qrel(f"{q:03}", str(i), int(g)) for q, row in enumerate(gains) for i, g in row.items()]
    measures = {
        "recall": ir_measures.R(rel=2) @ k,
        "precision": ir_measures.P(rel=2) @ k,
        "ndcg": ir_measures.nDCG @ k,
        "mrr": ir_measures.RR(rel=2) @ k,
        "hit": ir_measures.Success(rel=2) @ k,
    }
    theirs = {(m.measure, m.query_id): m.value for m in ir_measures.iter_calc(list(measures.values()), qrels, run)}
    for name, measure in measures.items():
        expected = [theirs[(measure, f"{q:03}")] for q in range(requests)]
        assert ours[name] == pytest.approx(expected), name


def test_metrics_equal_those_of_ranx_ties_included() -> None:
    """`ranx.json` holds twelve requests and what ranx says of them: its names are recall@5-l2, precision@5-l2, ndcg@5,
    mrr@5-l2 and hit_rate@5-l2. It was asked once: it compiles itself for minutes and brings forty packages along."""
    case = json.loads((Path(__file__).parent / "ranx.json").read_text())
    k, items = case["k"], len(case["scores"][0])
    assert any(len(set(row)) < len(row) for row in case["scores"]), "there are ties"
    ranking = np.stack([top_k(np.array(row, dtype=np.float64), k) for row in case["scores"]]).astype(np.int32)
    pairs = [[int(item) for item in row] for row in case["grades"]]
    labels = Labels.build(pairs, [list(row.values()) for row in case["grades"]], items, case["relevant_from"])
    ours = evaluate(ranking, labels, k)
    for name, theirs in case["values"].items():
        assert ours[name] == pytest.approx(theirs, abs=1e-7), name


def test_items_that_nobody_judged_count_as_zero_and_are_told() -> None:
    labels = build([{0: 1.0, 1: 0.5}])
    ranking = padded([[0, 7, 1, 8]], 4)
    assert evaluate(ranking, labels, 4)["rele"][0] == pytest.approx(1.5 / 4)
    assert labelled_share(ranking, labels, 4)[0] == 0.5


def test_an_empty_place_is_never_a_hit() -> None:
    # -1 on the second request would be the last item of the first one, were it not for the check.
    labels = build([{ITEMS - 1: 1.0}, {0: 1.0}])
    assert evaluate(padded([[], []], 3), labels, 3)["hit"].tolist() == [0.0, 0.0]


def test_no_labels_at_all() -> None:
    values = evaluate(padded([[1, 2]], 2), build([{}]), 2)
    assert math.isnan(values["recall"][0]) and values["precision"][0] == 0.0


def test_a_shallow_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="metrics at 5 need 5 ranked items, got 3"):
        evaluate(padded([[1]], 3), build([{1: 1.0}]), 5)

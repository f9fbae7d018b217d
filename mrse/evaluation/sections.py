"""The parts of `decision.json` that explain and do not decide: all metrics, judgments, the replayed log, the lists.

Cost: encoding the pages without an engagement, and three more bootstraps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from mrse.config import GateConfig
from mrse.evaluation.bootstrap import Floats, Lift, Pair, estimate, mean_intervals, paired_lifts, resampled_sums
from mrse.evaluation.budgets import log_prices
from mrse.evaluation.contrast import found_elsewhere, interleave, overlap
from mrse.evaluation.inputs import Inputs
from mrse.evaluation.pages import SLOTS, Cells, Log
from mrse.evaluation.ranking import EMPTY, Ranking
from mrse.evaluation.replay import Policy, Settings, examination, replay
from mrse.evaluation.scoring import EXPORTED, JUDGED, Result, depths
from mrse.evaluation.window import Asked
from mrse.model.arrays import History

CHALLENGER, LEXICAL = "challenger", "bm25"
_METRICS = ("recall", "ordered_recall", "precision", "rele", "ndcg", "mrr", "hit")
_JUDGED = (*JUDGED, "labelled_at_10")
_PLACES = 10
Search = Callable[[Sequence[str], Sequence[History | None]], Ranking]


def metrics(config: GateConfig, asked: Asked, challenger: Result, reference: Result) -> dict[str, dict[str, Any]]:
    """Lift of every metric at every depth over the requests where it is defined on both sides."""
    names = [f"{metric}_at_{depth}" for metric in _METRICS for depth in depths(config.k)]
    one, other = challenger.scored.values, reference.scored.values
    lifts = paired_lifts({name: Pair(one[name], other[name]) for name in names}, asked.clusters, **_settings(config))
    return {name: asdict(lift) for name, lift in lifts.items()}


def judged(config: GateConfig, inputs: Inputs, results: Mapping[str, Result]) -> dict[str, Any] | None:
    """What people's judgments say, query by query, whichever requests decided.

    Args:
        config: section `gate`.
        inputs: what was asked.
        results: every system's answers to the judged queries.

    Returns:
        None where no query of the test share was judged.
    """
    asked = inputs.window.asked["judgments"]
    if not len(asked):
        return None
    values = {system: result.scored.values for system, result in results.items()}
    flat = {f"{system} {metric}": values[system][metric] for system in values for metric in _JUDGED}
    means = mean_intervals(flat, asked.clusters, **_settings(config))
    pairs = {metric: Pair(values[CHALLENGER][metric], values[LEXICAL][metric]) for metric in JUDGED}
    lifts = paired_lifts(pairs, asked.clusters, **_settings(config))
    systems = {
        system: {
            metric: {"mean": m.challenger, "lower": m.lower, "upper": m.upper}
            for metric in _JUDGED
            for m in [means[f"{system} {metric}"]]
        }
        for system in values
    }
    return {
        "queries": len(asked),
        "left_out": asked.left_out,
        "relevant_grade": config.relevant_grade,
        "hash": asked.hash,
        "systems": systems,
        "lift_over_bm25": {metric: asdict(lift) for metric, lift in lifts.items()},
        "by_traffic": _by_traffic(config, inputs, asked, values),
    }


def _by_traffic(
    config: GateConfig, inputs: Inputs, asked: Asked, values: Mapping[str, Mapping[str, Floats]]
) -> dict[str, Any] | None:
    """Rele@10 with each query weighed by how often it was asked before the test days; None where none of them was."""
    asked_Q = np.array([inputs.query_counts.get(query, 0) for query in asked.queries], dtype=np.float64)
    if not asked_Q.any() or not all(np.isfinite(of["rele_at_10"]).all() for of in values.values()):
        return None
    columns = {"asked": asked_Q} | {name: asked_Q * of["rele_at_10"] for name, of in values.items()}
    draws = resampled_sums(columns, asked.clusters, resamples=config.resamples, seed=config.seed)

    def weighed(name: str) -> dict[str, float | None]:
        found = estimate(draws, lambda sums: sums[name] / sums["asked"], config.alpha, config.min_clusters)
        return asdict(found)

    lift = estimate(
        draws, lambda sums: (sums[CHALLENGER] - sums[LEXICAL]) / sums["asked"], config.alpha, config.min_clusters
    )
    return {
        "queries": int((asked_Q > 0).sum()),
        "systems": {name: weighed(name) for name in values},
        "lift_over_bm25": asdict(lift),
    }


def page_lists(log: Log, asked: Asked, ranking_QK: Ranking, search: Search) -> Ranking:
    """A system's answer to each page of the log (P, L): taken from its ranking where the request is in it."""
    row_of = {request: row for row, request in enumerate(asked.request_ids)}
    rows_P = np.array([row_of.get(name, -1) for name in log.request_ids], dtype=np.int64)
    lists_PL = np.full((len(log), SLOTS), EMPTY, dtype=np.int32)
    lists_PL[rows_P >= 0] = ranking_QK[rows_P[rows_P >= 0], :SLOTS]
    rest = np.flatnonzero(rows_P < 0)
    if len(rest):
        found = search([log.queries[page] for page in rest], [log.histories[page] for page in rest])
        lists_PL[rest] = found[:, :SLOTS]
    return lists_PL


def experiment(
    config: GateConfig, inputs: Inputs, log: Log, lists: Mapping[str, Ranking], challenger: Result, reference: Result
) -> dict[str, Any]:
    """The replayed log, a simulated interleaving, and how far apart the two systems' lists are.

    Args:
        config: section `gate`.
        inputs: what was asked.
        log: the pages of the test days.
        lists: the challenger's and the reference's answers to these pages, in this order.
        challenger, reference: their answers to the deciding requests.
    """
    return {
        "replay": replay_log(config, inputs, log, lists),
        "interleaving": _interleaving(config, inputs.asked, log, challenger, reference),
        "lists": _lists(config, inputs.asked, log, lists, challenger, reference),
    }


def replay_log(config: GateConfig, inputs: Inputs, log: Log, lists: Mapping[str, Ranking]) -> dict[str, Any] | None:
    """`replay` of two systems' answers to the pages; None where there are no pages to replay."""
    if not len(log) or inputs.clicks is None:
        return None
    cells = Cells(inputs.items.texts, inputs.clicks)
    policies = {name: Policy(list_PL, cells.of(log.queries, list_PL)) for name, list_PL in lists.items()}
    settings = Settings(bands=config.replay.bands, max_weight=config.replay.max_weight, **_settings(config))
    prices = inputs.items.price_values
    logged = cells.of(log.queries, log.pages.items_PL)
    found = replay(log.pages, policies, logged, len(inputs.items.ids), prices, settings)
    return found | {"left_out": log.left_out}


def _interleaving(
    config: GateConfig, asked: Asked, log: Log, challenger: Result, reference: Result
) -> dict[str, Any] | None:
    if not len(asked):
        return None
    looks = _looks(log)
    found = interleave(challenger.ranking_QK, reference.ranking_QK, asked.labels, looks, config.seed)
    means = mean_intervals({"wins": found.wins, "losses": found.losses}, asked.clusters, **_settings(config))
    preference = paired_lifts({"of": Pair(found.wins, found.losses)}, asked.clusters, **_settings(config))["of"]
    return {
        "wins": means["wins"].challenger,
        "ties": float(found.ties.mean()),
        "losses": means["losses"].challenger,
        "preference": {"value": preference.lift, "lower": preference.lower, "upper": preference.upper},
        "examination": looks,
        "examination_from": "log" if len(log) else "discount",
    }


def _looks(log: Log) -> list[float]:
    """Examination of the first places: the log's click rate by position over that of the first, or nDCG's discount."""
    theta_L = examination(log.pages)[:_PLACES] if len(log) else np.zeros(_PLACES)
    if theta_L[0] == 0:
        theta_L = 1.0 / np.log2(np.arange(_PLACES) + 2.0)
    return [round(float(min(1.0, value / theta_L[0])), 6) for value in theta_L]


def _lists(
    config: GateConfig, asked: Asked, log: Log, lists: Mapping[str, Ranking], challenger: Result, reference: Result
) -> dict[str, Any]:
    one, other = challenger.ranking_QK, reference.ranking_QK
    values = {f"overlap_at_{depth}": overlap(one, other[:, :depth], depth) for depth in sorted({_PLACES, config.k})}
    values["found_only_by_challenger"] = found_elsewhere(one, other, asked.labels, config.k)
    values["found_only_by_reference"] = found_elsewhere(other, one, asked.labels, config.k)
    figures = mean_intervals(values, asked.clusters, **_settings(config))
    shown = {
        f"shown_at_{_PLACES}.{name}": overlap(list_PL, log.pages.items_PL, _PLACES) for name, list_PL in lists.items()
    }
    if len(log):
        figures |= mean_intervals(shown, log.pages.clusters_P, **_settings(config))
    return {
        name: {"value": lift.challenger, "lower": lift.lower, "upper": lift.upper, "requests": lift.requests}
        for name, lift in figures.items()
    }


def price_shift(config: GateConfig, inputs: Inputs, one_QK: Ranking, other_QK: Ranking) -> Lift | None:
    """Difference of the mean log price of the top 10 on the deciding requests; None without prices."""
    prices_N = inputs.items.price_values
    if prices_N is None:
        return None
    pair = Pair(log_prices(one_QK, prices_N), log_prices(other_QK, prices_N))
    return paired_lifts({"price": pair}, inputs.asked.clusters, **_settings(config))["price"]


def online_lists(inputs: Inputs, results: Mapping[str, Result]) -> pa.Table:
    """The ranked lists of some systems for an online interleaving experiment, one row per listed item.

    Returns:
        Columns request_id, query, system, rank (from 1), item_id, score (the system's own), in the order of the
        requests.
    """
    asked = inputs.asked
    parts = []
    for system, result in results.items():
        top_QK = result.ranking_QK[:, :EXPORTED]
        rows, places = np.nonzero(top_QK != EMPTY)
        scores_QK = np.full(top_QK.shape, np.nan) if result.scores_QK is None else result.scores_QK
        parts.append(
            pa.table(
                {
                    "request_id": pa.array(asked.request_ids, pa.string()).take(pa.array(rows)),
                    "query": pa.array(asked.queries, pa.string()).take(pa.array(rows)),
                    "system": pa.array([system] * len(rows), pa.string()),
                    "rank": pa.array(places + 1, pa.int32()),
                    "item_id": pa.array(inputs.items.ids, pa.string()).take(pa.array(top_QK[rows, places])),
                    "score": pa.array(scores_QK[rows, places], pa.float64(), from_pandas=True),
                }
            )
        )
    return pa.concat_tables(parts)


def _settings(config: GateConfig) -> dict[str, Any]:
    return {
        "alpha": config.alpha,
        "resamples": config.resamples,
        "seed": config.seed,
        "min_clusters": config.min_clusters,
    }

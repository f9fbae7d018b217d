"""What the shop would be served: the models' answers through an approximate index, beside those of exact search.

The gate decides by exact search, so that a decision is about the model. The live index is approximate and finds less;
here an index of the configured kind is built of each model's vectors and asked the same requests.

Legend of the shape suffixes: Q requests, N items of the catalogue, D vector size, K depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrse.config import GateConfig
from mrse.errors import ServiceError
from mrse.evaluation.bootstrap import Lift, Pair, paired_lifts
from mrse.evaluation.contrast import overlap
from mrse.evaluation.ranking import EMPTY, Ranking
from mrse.evaluation.scoring import Result, depths, values_at
from mrse.evaluation.sections import CHALLENGER
from mrse.evaluation.window import Asked
from mrse.progress import say

MOST = 1000  # requests that are asked through the index
_LIFT = "lift"
METRICS = ("recall", "ordered_recall", "rele", "ndcg", "mrr", "hit")

Trial = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32], int], Ranking]
"""Items (N, D), queries (Q, D) and a depth in, rows of the items (Q, K) out: `mrse.index.trial.trial`."""


@dataclass(frozen=True)
class Served:
    """One model's answers through the index.

    Attributes:
        rows: which of the Q requests were asked.
        ranking_QK: the answers, empty where a request was not asked.
    """

    rows: npt.NDArray[np.int64]
    ranking_QK: Ranking


def ask(trial: Trial, vectors_ND: npt.NDArray[np.float32], result: Result, k: int) -> Served | None:
    """Ask an index of one model's items evenly spread requests.

    Returns:
        None without requests, of vectors that are not finite, and where the index fails: it decides nothing, so it
        must not stop a decision.
    """
    queries_QD = result.queries_QD
    if queries_QD is None or not (np.isfinite(queries_QD).all() and np.isfinite(vectors_ND).all()):
        return None
    rows = np.unique(np.linspace(0, len(queries_QD) - 1, min(len(queries_QD), MOST)).astype(np.int64))
    ranking_QK = np.full((len(queries_QD), k), EMPTY, dtype=np.int32)
    try:
        ranking_QK[rows] = trial(vectors_ND, queries_QD[rows], k)
    except ServiceError as error:
        say(f"the index could not be asked: {error}")
        return None
    return Served(rows, ranking_QK)


def compare(
    config: GateConfig, asked: Asked, served: Mapping[str, Served], results: Mapping[str, Result], reference: str
) -> dict[str, Any] | None:
    """What the index costs each model, and the challenger's lift as it would be served.

    Args:
        config: section `gate`.
        asked: the deciding requests.
        served: answers through the index by model, to the same requests.
        results: answers of exact search by system.
        reference: `champion`, or `bm25`, which needs no index and is served as it is.

    Returns:
        None where the challenger was not asked.
    """
    if CHALLENGER not in served:
        return None
    rows = served[CHALLENGER].rows
    shown = [depth for depth in depths(config.k) if depth <= config.k]  # the index was asked for no more
    through = {name: values_at(asked, it.ranking_QK, shown) for name, it in served.items()}
    exact = {name: result.scored.values for name, result in results.items()}
    pairs = {
        f"{name} {metric}": Pair(through[name][metric][rows], exact[name][metric][rows])
        for name in served
        for metric in (f"{metric}_at_{depth}" for metric in METRICS for depth in shown)
    }
    primary = f"{config.primary}_at_{config.k}"
    standing = through.get(reference, exact[reference])[primary][rows]
    lifts = paired_lifts(
        pairs | {_LIFT: Pair(through[CHALLENGER][primary][rows], standing)},
        asked.clusters[rows],
        alpha=config.alpha,
        resamples=config.resamples,
        seed=config.seed,
        min_clusters=config.min_clusters,
    )
    return {
        "requests": len(rows),
        "k": config.k,
        "reference_name": reference,
        "lift": asdict(lifts.pop(_LIFT)),
        "systems": {name: _system(name, it, results[name], lifts) for name, it in served.items()},
    }


def _system(name: str, served: Served, exact: Result, lifts: Mapping[str, Lift]) -> dict[str, Any]:
    """`found`: the share of exact search's first items that the index finds too; `metrics`: through it, exactly, the
    difference and its interval."""
    found_QK, exact_QK = served.ranking_QK[served.rows], exact.ranking_QK[served.rows, : served.ranking_QK.shape[1]]
    metrics = {
        key.removeprefix(f"{name} "): {
            "served": lift.challenger,
            "exact": lift.reference,
            "difference": lift.lift,
            "lower": lift.lower,
            "upper": lift.upper,
        }
        for key, lift in lifts.items()
        if key.startswith(f"{name} ")
    }
    return {"found": float(overlap(exact_QK, found_QK, exact_QK.shape[1]).mean()), "metrics": metrics}

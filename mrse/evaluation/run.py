"""The gate as a stage: challenger, champion and BM25 on the same frozen window, one decision, one report.

Reads `models/challenger*`, `data/clean`, `data/profiles` and the registry of models; writes `reports/decision.json`,
`reports/gate.json`, `reports/gate/index.html` and `data/gate/per_query.parquet`.

Cost: two encodings of the catalogue and of the requests, plus a minute; memory is that of the catalogue's vectors and
one block of scores.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mrse.config import GateConfig, Params
from mrse.data.contract import write_parquet
from mrse.device import pick
from mrse.evaluation import gate
from mrse.evaluation.bootstrap import Lift, Pair, mean_intervals, paired_lifts
from mrse.evaluation.champion import Champion, find_champion, scratch
from mrse.evaluation.gate import Kind, Reason, Verdict
from mrse.evaluation.inputs import Inputs, read_inputs
from mrse.evaluation.lexical import BM25
from mrse.evaluation.report import Evidence, write_report
from mrse.evaluation.scoring import JUDGED, Embedded, Result, score_bm25, score_fusion
from mrse.evaluation.slices import DEFINITIONS
from mrse.evaluation.window import Source
from mrse.jsonfile import read_handed, write_json
from mrse.layout import CHALLENGER_JSON, CHALLENGER_PACKAGE, DECISION, GATE_REPORT
from mrse.model.retriever import Retriever
from mrse.training.lineage import lineage

CHALLENGER, CHAMPION, LEXICAL, FUSION = "challenger", "champion", "bm25", "challenger+bm25"
_CALLED = {CHALLENGER: "the challenger", CHAMPION: "the champion", LEXICAL: "BM25", FUSION: "the fusion with BM25"}
_TOP = 10
Results = dict[str, dict[Source, Result]]


def run_gate(params: Params, workspace: Path) -> dict[str, Any]:
    """Compare, decide, write.

    Args:
        params: sections `gate` and `services`.
        workspace: the folder that holds `data/` and `models/`.

    Returns:
        The content of `reports/decision.json`.

    Raises:
        DataError: the challenger, the catalogue or the requests are missing or unreadable. A champion that cannot be
            read is no error but a HOLD.
    """
    config = params.gate
    services = params.services.under(workspace)
    cache = Path(services.cache_dir)
    inputs = read_inputs(config, workspace)
    challenger = read_handed(workspace / CHALLENGER_JSON, "train")
    with scratch(cache) as folder:
        champion = find_champion(services, Path(folder))
        results = _score(config, inputs, champion, workspace, cache)
    verdict, kind = _decide(config, inputs, _concerns(champion, challenger), results)
    decision = _decision(config, inputs, challenger, champion, results, verdict, kind, workspace)
    _write(config, inputs, results, decision, kind, workspace)
    return decision


def sentence(decision: Mapping[str, Any]) -> str:
    """The decision in one sentence that claims no more than was measured."""
    primary = decision["primary"]
    what = {
        "PROMOTE": "PROMOTE: the challenger is worth an online A/B test",
        "HOLD": "HOLD: nothing shows that the challenger is worth an online A/B test",
        "REJECT": "REJECT: the challenger is not worth an online A/B test",
    }[decision["outcome"]]
    if decision["outcome"] != "PROMOTE" or primary["lift"] is None:
        return f"{what}. {decision['reasons'][0]['message']}"
    over = "the champion" if primary["reference_name"] == CHAMPION else "BM25 (there is no champion yet)"
    metric = primary["metric"].replace("_at_", "@")
    return (
        f"{what}: {metric} {primary['challenger']:.3f} against {primary['reference']:.3f} of {over}, "
        f"{primary['lift']:+.3f} [{primary['lower']:+.3f}, {primary['upper']:+.3f}]."
    )


def _score(config: GateConfig, inputs: Inputs, champion: Champion, workspace: Path, cache: Path) -> Results:
    """Every system on every source."""
    asked = inputs.sources
    bm25 = BM25(inputs.items.ids, inputs.items.texts)
    results: Results = {LEXICAL: {s: score_bm25(_CALLED[LEXICAL], a, bm25, config.k) for s, a in asked.items()}}
    models = {CHALLENGER: Retriever.load(workspace / CHALLENGER_PACKAGE), CHAMPION: champion.retriever}
    for name, retriever in models.items():
        if retriever is not None:
            retriever = retriever.to(pick(config.device))
            embedded = Embedded(_CALLED[name], retriever, workspace, cache, inputs.window.asof)
            results[name] = {source: embedded.score(requests, config.k) for source, requests in asked.items()}
    for source, requests in asked.items():
        parts = [results[CHALLENGER][source], results[LEXICAL][source]]
        results.setdefault(FUSION, {})[source] = score_fusion(_CALLED[FUSION], requests, parts, config.k)
    return results


def _concerns(champion: Champion, challenger: Mapping[str, Any]) -> list[Reason]:
    """What speaks against a comparison of the two before any figure."""
    concerns = [] if champion.concern is None else [champion.concern]
    if champion.version is not None and champion.version["fingerprint"] == challenger["fingerprint"]:
        message = "The challenger is the champion: both packages have the same fingerprint."
        concerns.append(Reason("same_model", "HOLD", message))
    return concerns


def _decide(config: GateConfig, inputs: Inputs, concerns: list[Reason], results: Results) -> tuple[Verdict, Kind]:
    kind: Kind = "champion" if CHAMPION in results else "bm25"
    challenger, reference = (results[name][inputs.source].scored for name in (CHALLENGER, kind))
    return gate.decide(config, inputs.gate_window, challenger, reference, kind, _primary(config), concerns), kind


def _primary(config: GateConfig) -> str:
    return f"{config.primary}_at_{config.k}"


def _decision(
    config: GateConfig,
    inputs: Inputs,
    challenger: dict[str, Any],
    champion: Champion,
    results: Results,
    verdict: Verdict,
    kind: Kind,
    workspace: Path,
) -> dict[str, Any]:
    figures = _figures(verdict.primary)
    reference = {"metric": _primary(config), "reference_name": kind, "delta": config.delta, "alpha": config.alpha}
    decision: dict[str, Any] = {
        "outcome": verdict.outcome,
        "reasons": [reason.as_dict() for reason in verdict.reasons],
        "primary": figures | reference,
        "slices": {name: _figures(lift) for name, lift in sorted(verdict.slices.items())},
        "unavailable_slices": dict(sorted(inputs.slices.unavailable.items())),
        "definitions": DEFINITIONS,
        "guardrails": dict(sorted(config.guardrails.items())),
        "window": _window_facts(inputs),
        "challenger": challenger,
        "champion": champion.version,
        "baseline": _against(config, inputs, results, CHALLENGER, LEXICAL),
        "fusion": _against(config, inputs, results, FUSION, kind),
        "means": _means(inputs, results),
        "judged": _judged(config, inputs, results),
        "not_measured": _not_measured(inputs, champion),
        "lineage": _lineage(workspace),
        "config": config.model_dump(mode="json"),
    }
    return decision | {"sentence": sentence(decision)}


def _figures(lift: Lift | None) -> dict[str, Any]:
    names = Lift.__dataclass_fields__
    return dict.fromkeys(names) if lift is None else asdict(lift)


def _window_facts(inputs: Inputs) -> dict[str, Any]:
    asked, meta = inputs.asked, inputs.meta
    return {
        "hash": asked.hash,
        "source": asked.source,
        "requests": len(asked),
        "clusters": int(asked.clusters.max(initial=-1)) + 1,
        "left_out": asked.left_out,
        "profiles_asof": None if inputs.window.asof is None else inputs.window.asof.isoformat(),
        "start": meta.start.isoformat(),
        "end": meta.end.isoformat(),
        "catalogue_items": len(inputs.items.ids),
        "snapshot": meta.fingerprint,
        "data_source": meta.source,
        "simulated": meta.simulated,
        "note": meta.note,
    }


def _against(config: GateConfig, inputs: Inputs, results: Results, one: str, other: str) -> dict[str, Any]:
    """One system against another on the deciding requests, slice by slice; for the report, the gate does not look."""
    values = [results[name][inputs.source].scored.values[_primary(config)] for name in (one, other)]
    lifts = gate.slice_lifts(config, inputs.gate_window, *values)
    overall = lifts.pop(gate.ALL)
    slices = {name: _figures(lift) for name, lift in sorted(lifts.items())}
    return {"name": one, "reference_name": other, "primary": _figures(overall), "slices": slices}


def _means(inputs: Inputs, results: Results) -> dict[str, dict[str, float | None]]:
    """Mean of every metric of every system on the deciding requests."""
    return {
        system: {metric: _mean(values) for metric, values in by_source[inputs.source].scored.values.items()}
        for system, by_source in results.items()
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None


def _judged(config: GateConfig, inputs: Inputs, results: Results) -> dict[str, Any] | None:
    """What people's judgments say, query by query, whichever requests decided."""
    asked = inputs.window.asked["judgments"]
    if not len(asked):
        return None
    settings = {
        "alpha": config.alpha,
        "resamples": config.resamples,
        "seed": config.seed,
        "min_clusters": config.min_clusters,
    }
    values = {system: by_source["judgments"].scored.values for system, by_source in results.items()}
    flat = {f"{system} {metric}": values[system][metric] for system in values for metric in (*JUDGED, "labelled_at_10")}
    means = mean_intervals(flat, asked.clusters, **settings)  # type: ignore[arg-type]
    pairs = {metric: Pair(values[CHALLENGER][metric], values[LEXICAL][metric]) for metric in JUDGED}
    lifts = paired_lifts(pairs, asked.clusters, **settings)  # type: ignore[arg-type]
    systems = {
        system: {
            metric: {"mean": m.challenger, "lower": m.lower, "upper": m.upper}
            for metric in (*JUDGED, "labelled_at_10")
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
        "lift_over_bm25": {metric: _figures(lift) for metric, lift in lifts.items()},
    }


def _not_measured(inputs: Inputs, champion: Champion) -> list[str]:
    """What this decision does not rest on, and why."""
    notes = [f"Slice {name}: {why}." for name, why in sorted(inputs.slices.unavailable.items())]
    notes += [f"{count:,} {reason}." for reason, count in sorted(inputs.asked.left_out.items())]
    if champion.retriever is None:
        why = "there is none yet" if champion.concern is None else champion.concern.message
        notes.append(f"The lift over the champion: {why}.".replace("..", "."))
    if not len(inputs.window.asked["judgments"]):
        notes.append("Judged relevance: no judged query falls into the test share.")
    if inputs.source == "events":
        notes.append("What shoppers would do with items that they were never shown: a click can only fall on what was.")
    if inputs.meta.simulated:
        notes.append("Anything about real shoppers: these are simulated.")
    return notes


def _lineage(workspace: Path) -> dict[str, Any]:
    versions = {name: _version(name) for name in ("mrse", "torch", "numpy", "bm25s", "pyarrow")}
    packages = {name: found for name, found in versions.items() if found is not None}
    return {**lineage(workspace), "python": platform.python_version(), "packages": packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return None


def _write(
    config: GateConfig, inputs: Inputs, results: Results, decision: dict[str, Any], kind: Kind, workspace: Path
) -> None:
    per_query = workspace / "data/gate/per_query.parquet"
    write_parquet(_per_query(inputs, results), per_query)
    of_source = {system: by_source[inputs.source] for system, by_source in results.items()}
    evidence = Evidence(inputs.items, inputs.asked, inputs.slices, of_source[CHALLENGER], of_source[kind])
    write_report(workspace / GATE_REPORT, decision, evidence, inputs.meta.image_root, workspace)
    write_json(workspace / "reports/gate.json", flat_metrics(decision))
    # Last: who finds a decision finds all that it rests on.
    write_json(workspace / DECISION, decision)


def flat_metrics(decision: Mapping[str, Any]) -> dict[str, float | int | None]:
    """The figures of a decision for `dvc metrics show` and `diff`: one number per line."""
    primary = decision["primary"]
    metric = primary["metric"]
    flat = {name: primary[name] for name in ("lift", "lower", "upper", "relative", "mde", "requests")}
    flat["promoted"] = int(decision["outcome"] == "PROMOTE")
    for system, means in decision["means"].items():
        flat[metric if system == CHALLENGER else f"{system}.{metric}"] = means[metric]
    flat["lift_over_bm25"] = decision["baseline"]["primary"]["lift"]
    for name, figures in decision["slices"].items():
        flat |= {f"slice.{name}.{key}": figures[key] for key in ("lift", "lower", "requests")}
    for system, figures in (decision["judged"] or {"systems": {}})["systems"].items():
        prefix = "judged" if system == CHALLENGER else f"judged.{system}"
        flat |= {f"{prefix}.{name}": value["mean"] for name, value in figures.items()}
    return flat


def _per_query(inputs: Inputs, results: Results) -> pa.Table:
    """One row per deciding request, with every system's metrics and its first ids."""
    asked = inputs.asked
    names = sorted(inputs.slices.masks)
    columns: dict[str, Any] = {
        "request_id": pa.array(asked.request_ids, pa.string()),
        "source": pa.array([asked.source] * len(asked), pa.string()),
        "query": pa.array(asked.queries, pa.string()),
        "user_id": pa.array(asked.users, pa.string()),
        "cluster": pa.array(asked.clusters, pa.int64()),
        "relevant": pa.array([len(items) for items in asked.relevant], pa.int64()),
        "slices": pa.array(
            [[name for name in names if inputs.slices.masks[name][row]] for row in range(len(asked))],
            pa.list_(pa.string()),
        ),
    }
    for system, by_source in results.items():
        result = by_source[inputs.source]
        for metric, values in sorted(result.scored.values.items()):
            columns[f"{system}.{metric}"] = pa.array(values, pa.float64())
        top = [[inputs.items.ids[at] for at in row[:_TOP] if at >= 0] for row in result.ranking_QK]
        columns[f"{system}.top"] = pa.array(top, pa.list_(pa.string()))
    return pa.table(columns)

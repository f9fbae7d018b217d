"""The gate as a stage: challenger, champion and BM25 on the same frozen window, one decision, one report.

Reads `models/challenger*`, `data/clean`, `data/profiles` and the registry of models; writes `reports/decision.json`,
`reports/gate.json`, `reports/gate/index.html` and `data/gate/per_query.parquet`.

Cost: two encodings of the catalogue and of the requests, an index of each, plus a minute; memory is that of the
catalogue's vectors, one index and one block of scores.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrse.config import GateConfig, IndexConfig, Params
from mrse.data.contract import write_parquet
from mrse.device import pick
from mrse.evaluation import budgets, gate
from mrse.evaluation.bootstrap import Lift
from mrse.evaluation.budgets import Budget, Health, Latency, Sides
from mrse.evaluation.champion import Champion, find_champion
from mrse.evaluation.gate import Kind, Reason, Verdict
from mrse.evaluation.golden import Golden, find_golden
from mrse.evaluation.history import identity, look_of, overridden, override_of, read_history
from mrse.evaluation.inputs import Inputs, read_inputs
from mrse.evaluation.lexical import BM25
from mrse.evaluation.pages import SLOTS, Log, read_pages
from mrse.evaluation.ranking import Ranking
from mrse.evaluation.report import Evidence, write_report
from mrse.evaluation.scoring import Embedded, Result, score_bm25, score_fusion
from mrse.evaluation.sections import (
    CHALLENGER,
    LEXICAL,
    Search,
    experiment,
    judged,
    metrics,
    online_lists,
    page_lists,
    price_shift,
)
from mrse.evaluation.served import Served, Trial, ask, compare
from mrse.evaluation.slices import DEFINITIONS
from mrse.evaluation.window import Asked, Source
from mrse.evaluation.wording import level, shown
from mrse.jsonfile import read_handed, write_json
from mrse.layout import CHALLENGER_JSON, CHALLENGER_PACKAGE, CLEAN, DECISION, GATE_REPORT, PROFILES
from mrse.model.retriever import Retriever
from mrse.progress import say
from mrse.scratch import scratch
from mrse.training.lineage import lineage

CHAMPION, FUSION = "champion", "challenger+bm25"
_CALLED = {CHALLENGER: "the challenger", CHAMPION: "the champion", LEXICAL: "BM25", FUSION: "the fusion with BM25"}
GOLDEN_FOLDER = Path("data/gate/golden")
_TOP = 10
_TIMED = 150  # queries whose encoding is timed
_TOLD_BY_THE_EFFECT = {"proven_lift", "no_proven_lift", "worse_than_reference"}
Results = dict[str, dict[Source, Result]]


def run_gate(params: Params, workspace: Path, trial: Trial | None = None) -> dict[str, Any]:
    """Compare, decide, write.

    Args:
        params: sections `gate`, `build_index` (of which the report speaks) and `services`.
        workspace: the folder that holds `data/` and `models/`.
        trial: search by a throwaway index of the configured kind; None: the loss by it is not measured.

    Returns:
        The content of `reports/decision.json`.

    Raises:
        DataError: the challenger, the catalogue or the requests are missing or unreadable. A champion that cannot be
            read is no error but a HOLD.
    """
    services = params.services.under(workspace)
    cache = Path(services.cache_dir)
    inputs = read_inputs(params.gate, workspace)
    log = read_pages(
        workspace / CLEAN, workspace / PROFILES, inputs.items.ids, inputs.window.asof, params.gate.max_requests
    )
    challenger = read_handed(workspace / CHALLENGER_JSON, "train")
    past = read_history(services)
    look = look_of(past, inputs.asked.hash, challenger["fingerprint"])
    config = params.gate.model_copy(update={"alpha": gate.alpha_of_look(params.gate.alpha, look)})
    meta, ids = inputs.meta, inputs.items.ids
    golden = find_golden(services, config, workspace, inputs.source, meta, ids, workspace / GOLDEN_FOLDER)
    with scratch(cache, "gate") as folder:
        champion = find_champion(services, Path(folder))
        scored = _score(config, inputs, log, golden, champion, workspace, cache, trial)
    kept, broken = budgets.judge(config.budgets, _sides(config, inputs, scored))
    verdict, kind = _decide(config, inputs, [*_concerns(champion, challenger), *broken], scored.results)
    decision = _decision(config, inputs, challenger, champion, scored, verdict, kind, workspace)
    decision |= _explained(config, inputs, log, scored, kept)
    decision["served"] = _served(config, params.build_index, inputs, scored)
    decision |= {
        "golden": _golden_facts(config, inputs, golden, scored.golden),
        "look": {"number": look, "alpha": config.alpha, "of": params.gate.alpha},
        "config": params.gate.model_dump(mode="json"),
        "not_measured": _not_measured(inputs, champion, decision),
        "sentence": sentence(decision),
    }
    decision["id"] = identity(decision)
    forced = override_of(past, decision["id"])
    decision = decision if forced is None else overridden(decision, forced)
    _write(config, inputs, scored.results, decision, kind, workspace)
    return decision


def sentence(decision: Mapping[str, Any]) -> str:
    """The decision in words: the effect first, then what it means, claiming no more than was measured."""
    means = {
        "PROMOTE": "the challenger is worth an online A/B test",
        "HOLD": "nothing shows that the challenger is worth an online A/B test",
        "REJECT": "the challenger is not worth an online A/B test",
    }[decision["outcome"]]
    effect, worst = _effect(decision["primary"]), decision["reasons"][0]
    said = [means] if effect is None else [effect, means]
    why = "" if effect is not None and worst["code"] in _TOLD_BY_THE_EFFECT else f" {worst['message']}"
    return f"{decision['outcome']}: {'; '.join(said)}.{why}"


def _effect(primary: Mapping[str, Any]) -> str | None:
    """The lift, its interval, both means, and the smallest effect beside it; `None` where there is no interval."""
    if primary["lower"] is None:
        return None
    over = "the champion" if primary["reference_name"] == CHAMPION else "BM25 (there is no champion to compare with)"
    lift = f"{primary['lift']:+.3f} [{primary['lower']:+.3f}, {primary['upper']:+.3f}] ({level(primary['alpha'])})"
    means = f"{primary['challenger']:.3f} against {primary['reference']:.3f}"
    smallest = f"the window could have shown {primary['mde']:.3f}"
    return f"{shown(primary['metric'])} {lift} over {over}, {means}, where {smallest}"


@dataclass(frozen=True)
class _Scored:
    """Every system's answers, and what the models had to be at hand for.

    Attributes:
        results: by system and source.
        golden: of challenger, champion and BM25 on the golden requests.
        lists: answers of the challenger and the reference to the pages of the log.
        health: of the models' item vectors.
        latency: of challenger and champion; None without a champion or without requests.
        served: the models' answers to the deciding requests through an index.
    """

    results: Results
    golden: dict[str, Result]
    lists: dict[str, Ranking]
    health: dict[str, Health]
    latency: tuple[Latency, Latency] | None
    served: dict[str, Served]


def _score(
    config: GateConfig,
    inputs: Inputs,
    log: Log,
    golden: Golden,
    champion: Champion,
    workspace: Path,
    cache: Path,
    trial: Trial | None,
) -> _Scored:
    """Every system on every source."""
    asked = inputs.sources
    bm25 = BM25(inputs.items.ids, inputs.items.texts)
    results: Results = {LEXICAL: {s: score_bm25(_CALLED[LEXICAL], a, bm25, config.k) for s, a in asked.items()}}
    of_golden = {LEXICAL: score_bm25(_CALLED[LEXICAL], golden.asked, bm25, config.k)}
    models = {CHALLENGER: Retriever.load(workspace / CHALLENGER_PACKAGE), CHAMPION: champion.retriever}
    searches: dict[str, Search] = {LEXICAL: lambda queries, _: bm25.rank(queries, SLOTS)[0]}
    embedded: dict[str, Embedded] = {}
    for name, retriever in models.items():
        if retriever is not None:
            retriever = retriever.to(pick(config.device))
            model = embedded[name] = Embedded(_CALLED[name], retriever, workspace, cache, inputs.window.asof)
            results[name] = {source: model.score(requests, config.k) for source, requests in asked.items()}
            of_golden[name] = model.score(golden.asked, config.k)
            searches[name] = lambda queries, histories, model=model: model.search(  # type: ignore[misc]
                model.encode(queries, histories), SLOTS
            )
    for source, requests in asked.items():
        parts = [results[CHALLENGER][source], results[LEXICAL][source]]
        results.setdefault(FUSION, {})[source] = score_fusion(_CALLED[FUSION], requests, parts, config.k)
    compared = CHALLENGER, _reference(results)
    events = inputs.window.asked["events"]
    lists = {
        name: page_lists(log, events, results[name]["events"].ranking_QK, searches[name])
        for name in compared
        if "events" in asked
    }
    health = {name: budgets.health(model.vectors) for name, model in embedded.items()}
    of_source = {name: by_source[inputs.source] for name, by_source in results.items()}
    served = {} if trial is None else _through_index(trial, embedded, of_source, config.k)
    return _Scored(results, of_golden, lists, health, _latency(config, inputs.asked, embedded), served)


def _through_index(
    trial: Trial, embedded: Mapping[str, Embedded], results: Mapping[str, Result], k: int
) -> dict[str, Served]:
    """Each model's answers through an index of its own."""
    answers = {}
    for name, model in embedded.items():
        say(f"scoring: asking {_CALLED[name]} through an index")
        answers[name] = ask(trial, model.vectors, results[name], k)
    return {name: served for name, served in answers.items() if served is not None}


def _served(config: GateConfig, index: IndexConfig, inputs: Inputs, scored: _Scored) -> dict[str, Any] | None:
    """The metrics as they would be served, and by which index; None where that was not measured."""
    of_source = {name: by_source[inputs.source] for name, by_source in scored.results.items()}
    found = compare(config, inputs.asked, scored.served, of_source, _reference(scored.results))
    return None if found is None else {"index": index.model_dump(include={"type", "build", "search"}), **found}


def _reference(results: Results) -> Kind:
    return "champion" if CHAMPION in results else "bm25"


def _latency(config: GateConfig, asked: Asked, embedded: Mapping[str, Embedded]) -> tuple[Latency, Latency] | None:
    """Of challenger and champion on the same queries, evenly spread over the requests."""
    if CHAMPION not in embedded or not len(asked):
        return None
    rows = np.linspace(0, len(asked) - 1, min(len(asked), _TIMED)).astype(int)

    def encoder(model: Embedded) -> Callable[[int], object]:
        return lambda at: model.encode([asked.queries[rows[at]]], [asked.histories[rows[at]]])

    def measure() -> tuple[Latency, Latency]:
        sides = [encoder(embedded[name]) for name in (CHALLENGER, CHAMPION)]
        challenger, champion = budgets.latency(sides, len(rows))
        return challenger, champion

    return budgets.confirmed(config.budgets, measure)


def _sides(config: GateConfig, inputs: Inputs, scored: _Scored) -> Sides:
    """What the budgets compare, on the deciding requests."""
    items = len(inputs.items.ids)
    names = (CHALLENGER, _reference(scored.results))
    rankings = {name: scored.results[name][inputs.source].ranking_QK for name in names}
    places = {name: budgets.exposure(ranking_QK, items) for name, ranking_QK in rankings.items()}

    def pair(figure: Callable[[npt.NDArray[np.int64]], float]) -> tuple[float, float | None]:
        return figure(places[CHALLENGER]), figure(places[CHAMPION]) if CHAMPION in places else None

    return Sides(
        coverage=pair(budgets.coverage),
        gini=pair(budgets.gini),
        price=price_shift(config, inputs, *rankings.values()),
        health=(scored.health[CHALLENGER], scored.health.get(CHAMPION)),
        latency=scored.latency,
    )


def _concerns(champion: Champion, challenger: Mapping[str, Any]) -> list[Reason]:
    """What speaks against a comparison of the two before any figure."""
    concerns = [] if champion.concern is None else [champion.concern]
    if champion.version is not None and champion.version["fingerprint"] == challenger["fingerprint"]:
        message = "The challenger is the champion: both packages have the same fingerprint."
        concerns.append(Reason("same_model", "HOLD", message))
    return concerns


def _decide(config: GateConfig, inputs: Inputs, concerns: list[Reason], results: Results) -> tuple[Verdict, Kind]:
    kind = _reference(results)
    challenger, reference = (results[name][inputs.source].scored for name in (CHALLENGER, kind))
    return gate.decide(config, inputs.gate_window, challenger, reference, kind, _primary(config), concerns), kind


def _primary(config: GateConfig) -> str:
    return f"{config.primary}_at_{config.k}"


def _decision(
    config: GateConfig,
    inputs: Inputs,
    challenger: dict[str, Any],
    champion: Champion,
    scored: _Scored,
    verdict: Verdict,
    kind: Kind,
    workspace: Path,
) -> dict[str, Any]:
    results = scored.results
    figures = _figures(verdict.primary)
    reference = {"metric": _primary(config), "reference_name": kind, "delta": config.delta, "alpha": config.alpha}
    return {
        "outcome": verdict.outcome,
        "reasons": [reason.as_dict() for reason in verdict.reasons],
        "primary": figures | reference,
        "slices": _slices(config, verdict),
        "unavailable_slices": dict(sorted(inputs.slices.unavailable.items())),
        "definitions": DEFINITIONS | inputs.slices.definitions,
        "guardrails": dict(sorted(config.guardrails.items())),
        "window": _window_facts(inputs),
        "challenger": challenger,
        "champion": champion.version,
        "baseline": _against(config, inputs, results, CHALLENGER, LEXICAL),
        "fusion": _against(config, inputs, results, FUSION, kind),
        "means": _means(inputs, results),
        "lineage": _lineage(workspace),
    }


def _explained(config: GateConfig, inputs: Inputs, log: Log, scored: _Scored, kept: Sequence[Budget]) -> dict[str, Any]:
    """What decides nothing, the budgets' figures among it: their broken bounds are in the reasons."""
    asked, kind = inputs.asked, _reference(scored.results)
    of_source = {name: by_source[inputs.source] for name, by_source in scored.results.items()}
    sides = of_source[CHALLENGER], of_source[kind]
    of_judged = {name: by_source["judgments"] for name, by_source in scored.results.items() if "judgments" in by_source}
    return {
        "metrics": metrics(config, asked, *sides),
        "judged": judged(config, inputs, of_judged),
        "budgets": [asdict(budget) for budget in kept],
        "health": {name: asdict(health) for name, health in scored.health.items()},
        "experiment": experiment(config, inputs, log, scored.lists, *sides),
    }


def _slices(config: GateConfig, verdict: Verdict) -> dict[str, Any]:
    """Each slice's figures, and what may be claimed of it among so many (`p_adjusted`, `improved`, `worsened`)."""
    claims = gate.slice_claims(verdict.slices, config.alpha)
    return {
        name: _figures(lift)
        | {"p_adjusted": claims[name].p, "improved": claims[name].improved, "worsened": claims[name].worsened}
        for name, lift in sorted(verdict.slices.items())
    }


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
        "shop": meta.shop,
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


def _golden_facts(config: GateConfig, inputs: Inputs, golden: Golden, results: Mapping[str, Result]) -> dict[str, Any]:
    """The primary metric on the golden requests; `asked` of them still have a relevant item in the catalogue."""
    means = {system: _mean(result.scored.values[_primary(config)]) for system, result in results.items()}
    return golden.facts | {"asked": len(golden.asked), "seen": golden.seen_by(inputs.meta), "means": means}


def _not_measured(inputs: Inputs, champion: Champion, decision: Mapping[str, Any]) -> list[str]:
    """What this decision does not rest on, and why."""
    notes = [f"Slice {name}: {why}." for name, why in sorted(inputs.slices.unavailable.items())]
    notes += [f"{count:,} {reason}." for reason, count in sorted(inputs.asked.left_out.items())]
    if champion.retriever is None:
        why = "there is none yet" if champion.concern is None else champion.concern.message
        notes.append(f"The lift over the champion: {why}.".replace("..", "."))
    if not len(inputs.window.asked["judgments"]):
        notes.append("Judged relevance: no judged query falls into the test share.")
    if decision["experiment"]["replay"] is None:
        notes.append("Counterfactual CTR and GMV: no page of the test days has both positions and propensities.")
    if inputs.items.price_values is None:
        notes.append("Counterfactual GMV and the mix of prices: the catalogue has no prices.")
    if decision["served"] is None:
        notes.append("The loss by approximate search: there was no index to ask, it failed, or nothing could be asked.")
    else:
        notes.append(
            "The live index itself: it is built after the decision, and build_index compares its answers with exact "
            "ones before it may go live."
        )
    if inputs.source == "events":
        notes.append("What shoppers would do with items that they were never shown: a click can only fall on what was.")
    notes.append("The error rate over many nights: alpha holds for a window, however many challengers it judges.")
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
    compared = {CHALLENGER: of_source[CHALLENGER], kind: of_source[kind]}
    write_parquet(online_lists(inputs, compared), workspace / "data/gate/interleaving.parquet")
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
    if decision["served"] is not None:
        flat[f"served.{metric}"] = decision["served"]["systems"][CHALLENGER]["metrics"][metric]["served"]
        flat["served.lift"] = decision["served"]["lift"]["lift"]
    flat |= {f"budget.{budget['name']}": budget["challenger"] for budget in decision["budgets"]}
    replayed = decision["experiment"]["replay"]
    if replayed is not None:
        flat |= {
            f"replay.{name}": figures["value"]
            for name, figures in replayed["systems"][CHALLENGER].items()
            if isinstance(figures, Mapping)
        }
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

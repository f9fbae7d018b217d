"""All decisions of the gate, as MLflow keeps them (experiment `mrse-decisions`): the shops' history, how many
challengers a window has judged, and which decisions a person overrode.

A decision is one run: what it was about as tags, its figures as metrics, `decision.json` and the report as artifacts.
Nothing is taken away; an override adds tags. The same decision made again (`dvc repro` after a crash, or after an
override) is the same run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mrse import tracking
from mrse.config import ServicesConfig
from mrse.evaluation.wording import change, shown
from mrse.progress import say

_FIGURES = ("lift", "lower", "upper", "mde", "challenger", "reference", "requests", "alpha")
_GOLDEN = "golden."  # metrics: primary metric on the golden requests, by system
_WINDOW = ("window_hash", "window_start", "window_end")
_TEXTS = ("id", "outcome", "code", "reason", "fingerprint", "reference_name", "metric", *_WINDOW)
_TAGS = {*_TEXTS, "version", "simulated", "golden_seen"}


@dataclass(frozen=True)
class Forced:
    """An override: who wants the challenger live in spite of the rule, why, and since when (ISO, UTC)."""

    by: str
    reason: str
    at: str


@dataclass(frozen=True)
class Decided:
    """One decision.

    Attributes:
        run_id: its run in MLflow.
        made: when.
        id: see `identity`.
        outcome: what the rule said; `forced` may have overridden it.
        code, reason: of the worst one; the second in words.
        version, fingerprint: the challenger's.
        champion_version: the champion's, where there was one.
        reference_name: `champion` or `bm25`.
        window_hash, window_start, window_end: the frozen requests; dates are ISO.
        shop: whose window it was (`SnapshotMeta.shop`).
        simulated: whether the shop is.
        metric: the primary metric.
        figures: `lift`, `lower`, `upper`, `mde`, `challenger`, `reference`, `requests`, `alpha`, where there are any.
        golden: primary metric on the golden requests, by system; empty where it was not measured.
        golden_seen: whether the golden days were among this window's training data.
        forced: the override.
    """

    run_id: str
    made: datetime
    id: str
    outcome: str
    code: str
    reason: str
    version: int
    fingerprint: str
    champion_version: int | None
    reference_name: str
    window_hash: str
    window_start: str
    window_end: str
    shop: str
    simulated: bool
    metric: str
    figures: dict[str, float]
    golden: dict[str, float]
    golden_seen: bool
    forced: Forced | None

    @property
    def said(self) -> str:
        """The outcome, and the override where there is one."""
        return self.outcome if self.forced is None else f"PROMOTE, forced by {self.forced.by} over {self.outcome}"

    @property
    def effect(self) -> str:
        """The lift with its interval, in which metric and over whom; a dash where nothing could be compared."""
        if "lift" not in self.figures:
            return "–"
        lift = change(self.figures["lift"], self.figures.get("lower"), self.figures.get("upper"))
        return f"{lift} {shown(self.metric)} over {'BM25' if self.reference_name == 'bm25' else 'the champion'}"


def identity(decision: Mapping[str, Any]) -> str:
    """What makes two decisions the same: models, requests, settings and what the rule said; sha256, 16 digits."""
    champion = decision["champion"]
    said = (
        decision["challenger"]["fingerprint"],
        None if champion is None else champion["fingerprint"],
        decision["window"]["hash"],
        decision["config"],
        decision["outcome"],
    )
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def read_history(services: ServicesConfig) -> list[Decided]:
    """Every decision, oldest first; none where MLflow holds nothing yet. What is no decision of a gate, such as a run
    made by hand, is left out.

    Raises:
        ServiceError: MLflow does not answer.
    """
    records = tracking.list_records(services, tracking.DECISIONS)
    whole = [record for record in records if record.tags.keys() >= _TAGS]
    if len(whole) < len(records):
        say(f"{tracking.DECISIONS}: {len(records) - len(whole)} runs there are no decisions; left out")
    return [_decided(record) for record in whole]


def look_of(past: Sequence[Decided], window_hash: str, fingerprint: str) -> int:
    """Which challenger of a window this one is, from 1 on; judged again, it keeps its number."""
    judged = list(dict.fromkeys(each.fingerprint for each in past if each.window_hash == window_hash))
    return 1 + (judged.index(fingerprint) if fingerprint in judged else len(judged))


def override_of(past: Sequence[Decided], decision_id: str) -> Forced | None:
    """The override of exactly this decision."""
    return next((each.forced for each in past if each.id == decision_id and each.forced is not None), None)


def overridden(decision: dict[str, Any], forced: Forced) -> dict[str, Any]:
    """The decision with the override in front and what the rule said beside it."""
    ruled = decision["outcome"]
    message = f"Forced by {forced.by} on {forced.at[:10]}: {forced.reason}"
    reason = {"code": "forced", "outcome": "PROMOTE", "message": message}
    return decision | {
        "outcome": "PROMOTE",
        "reasons": [reason, *decision["reasons"]],
        "sentence": f"PROMOTE, forced by {forced.by} ({forced.reason}). The rule says {decision['sentence']}",
        "forced": {"by": forced.by, "reason": forced.reason, "at": forced.at, "outcome": ruled},
    }


def log_decision(services: ServicesConfig, decision: Mapping[str, Any], reports: Path) -> None:
    """Keep a decision for good; one that is kept already is left as it is.

    Args:
        services: where MLflow is.
        decision: the content of `decision.json`.
        reports: the folder with `decision.json` and `gate/`.
    """
    if any(each.id == decision["id"] for each in read_history(services)):
        return
    tracking.log_record(
        services,
        tracking.DECISIONS,
        name=f"version {decision['challenger']['version']}, {decision['window']['end'][:10]}",
        tags=_tags(decision),
        metrics=_metrics(decision),
        artifacts=[reports / "decision.json", reports / "gate"],
    )


def _tags(decision: Mapping[str, Any]) -> dict[str, str]:
    window = decision["window"]
    return {
        "id": decision["id"],
        "outcome": decision["outcome"],
        "code": decision["reasons"][0]["code"],
        "reason": decision["reasons"][0]["message"],
        "version": str(decision["challenger"]["version"]),
        "fingerprint": decision["challenger"]["fingerprint"],
        **({} if decision["champion"] is None else {"champion_version": str(decision["champion"]["version"])}),
        "reference_name": decision["primary"]["reference_name"],
        "metric": decision["primary"]["metric"],
        "window_hash": window["hash"],
        "window_start": window["start"],
        "window_end": window["end"],
        "shop": window["shop"],
        "simulated": str(window["simulated"]),
        "golden_sha256": decision["golden"]["sha256"],
        "golden_seen": str(decision["golden"]["seen"]),
    }


def _metrics(decision: Mapping[str, Any]) -> dict[str, float]:
    figures = {name: decision["primary"][name] for name in _FIGURES}
    figures |= {f"{_GOLDEN}{system}": mean for system, mean in decision["golden"]["means"].items()}
    return {name: value for name, value in figures.items() if value is not None}


def _decided(record: tracking.Record) -> Decided:
    tags, metrics = record.tags, record.metrics
    # Tags are written one by one: an override that was cut off is none, and is made again by the same command.
    whole = {"forced_by", "forced_reason", "forced_at"} <= tags.keys()
    forced = Forced(tags["forced_by"], tags["forced_reason"], tags["forced_at"]) if whole else None
    return Decided(
        run_id=record.run_id,
        made=record.made,
        version=int(tags["version"]),
        champion_version=int(tags["champion_version"]) if "champion_version" in tags else None,
        shop=tags.get("shop", ""),
        simulated=tags["simulated"] == "True",
        figures={name: metrics[name] for name in _FIGURES if name in metrics},
        golden={name.removeprefix(_GOLDEN): value for name, value in metrics.items() if name.startswith(_GOLDEN)},
        golden_seen=tags["golden_seen"] == "True",
        forced=forced,
        **{name: tags[name] for name in _TEXTS},
    )

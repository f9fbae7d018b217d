"""The model card: what the challenger is, what it was trained on, how good it is where, its limits, and how to load it.

After Mitchell et al., "Model Cards for Model Reporting" (2019). Every figure is read from what the stages wrote.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mrse import tracking
from mrse.config import ServicesConfig
from mrse.data.contract import read_meta
from mrse.errors import DataError
from mrse.evaluation.ablation import TABLE
from mrse.evaluation.wording import change, made_up, plain, shown
from mrse.jsonfile import read_handed, write_text
from mrse.layout import ABLATION, CARD, CHALLENGER_JSON, CHALLENGER_PACKAGE, CLEAN, DECISION
from mrse.model.history import ShopperHistory
from mrse.model.retriever import Retriever

_ARTIFACT = "card"


def write_card(workspace: Path) -> Path:
    """Write `reports/model-card.md` in one move; see `make_card`."""
    path = workspace / CARD
    write_text(path, make_card(workspace))
    return path


def log_card(services: ServicesConfig, workspace: Path) -> bool:
    """Add the card to the challenger's training run, as the artifact `card/model-card.md`.

    Args:
        services: where MLflow is.
        workspace: see `make_card`.

    Returns:
        False where MLflow does not know the challenger's version: the package came from elsewhere.

    Raises:
        ServiceError: MLflow does not answer.
    """
    version = read_handed(workspace / CHALLENGER_JSON, "train")
    known = tracking.get_version(services, version["version"])
    if known is None or known.fingerprint != version["fingerprint"]:
        return False
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CARD.name).write_text(make_card(workspace), encoding="utf-8")
        tracking.log_artifacts(services, version["run_id"], Path(folder), _ARTIFACT)
    return True


def make_card(workspace: Path) -> str:
    """The card of `models/challenger`, as Markdown.

    Args:
        workspace: a folder in which `train` and `gate` ran, and perhaps `mrse ablate`.

    Raises:
        DataError: a file of these stages is missing, or the decision is about another model.
    """
    decision = read_handed(workspace / DECISION, "gate")
    model = Retriever.load(workspace / CHALLENGER_PACKAGE)
    if decision["challenger"]["fingerprint"] != model.fingerprint:
        raise DataError(
            f"{workspace / DECISION} is about another model than {workspace / CHALLENGER_PACKAGE}; "
            "run the gate stage again (`dvc repro gate`)"
        )
    return (
        _environment()
        .get_template("card.md.j2")
        .render(
            d=decision,
            meta=read_meta(workspace / CLEAN),
            model=_facts(model),
            figures=_figures(decision),
            judged=_judged(decision),
            ablations=_ablations(workspace / ABLATION / TABLE, decision),
        )
    )


def _facts(model: Retriever) -> dict[str, Any]:
    config = model.model.config
    histories = {"shoppers' histories": config.user_history, "the queries that led to an item": config.item_history}
    reads = ["query text", "title and category", *(name for name, on in histories.items() if on)]
    return {
        "parameters": model.parameter_count,
        "mebibytes": sum(file.stat().st_size for file in model.assets.rglob("*") if file.is_file()) / 2**20,
        "dim": model.dim,
        "hidden": config.hidden,
        "experts": list(model.experts),
        "reads": [*reads, *(["pictures"] if model.reads_images else [])],
        "query_length": config.query_length,
        "title_length": config.title_length,
        "text_encoder": bool(model.settings["text_encoder"]),
        "silent_taste": _taste_is_silent(model),
    }


def _taste_is_silent(model: Retriever) -> bool:
    """Whether the shop's items were of no two categories (`Mrse.start_fusion`), so that nothing tells a taste."""
    history = model.model.query_tower.history
    return isinstance(history, ShopperHistory) and not bool(history.taste.metric_WW.any())


def _figures(decision: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Per slice, all requests first: the figures against the gate's reference and against BM25."""
    baseline = decision["baseline"]
    rows = [("all requests", decision["primary"], baseline["primary"])]
    names = [name for name in decision["definitions"] if name in decision["slices"]]
    return rows + [(name, decision["slices"][name], baseline["slices"][name]) for name in names]


def _judged(decision: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Per metric on judged queries: the challenger's mean and its lift over BM25."""
    judged = decision["judged"]
    if judged is None:
        return []
    return [(name, judged["systems"]["challenger"][name], lift) for name, lift in judged["lift_over_bm25"].items()]


def _ablations(path: Path, decision: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of the ablation table: empty where it is of other requests or another metric, None without a table."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    metric = decision["primary"]["metric"]
    if any(row["window"] != decision["window"]["hash"] or metric not in row for row in rows):
        return []
    return [
        {name: row[name] for name in ("variant", "failed", "seeds", "steps")}
        | {"mean": _number(row[metric])}
        | {name: _number(row[f"{metric}.{name}"]) for name in ("lift", "lower", "upper")}
        for row in rows
    ]


def _number(text: str) -> float | None:
    return float(text) if text else None


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mrse.evaluation", "."),
        autoescape=False,  # Markdown, and no page of ours shows it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"plain": plain, "shown": shown, "change": change, "made_up": made_up}
    return environment

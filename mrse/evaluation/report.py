"""The gate's report: one self-contained HTML file with pictures inline, readable on a phone and in print.

Cost: reading and shrinking the pictures of at most 40 queries' results, a few seconds.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from mrse.data.images import MAX_PIXELS, ImageProblem, ImageStore, decode
from mrse.evaluation.ranking import EMPTY, Floats
from mrse.evaluation.scoring import Result
from mrse.evaluation.slices import Slices
from mrse.evaluation.window import Asked
from mrse.jsonfile import write_text

EXAMPLES = 20
_SHOWN = 6
_BINS = 20
_THUMB = 72


@dataclass(frozen=True)
class ItemTable:
    """The catalogue in ascending order of ids; `texts` are the words that BM25 knows."""

    ids: list[str]
    titles: list[str]
    categories: list[str | None]
    prices: list[float | None]
    images: list[str | None]
    texts: list[str]

    @property
    def has_image(self) -> npt.NDArray[np.bool_]:
        """Which items name a picture (N,)."""
        return np.array([image is not None for image in self.images], dtype=bool)

    @property
    def price_values(self) -> Floats | None:
        """Prices (N,), NaN where unknown; None where the catalogue has none."""
        prices_N = np.array(self.prices, dtype=np.float64)  # None becomes NaN
        return prices_N if np.isfinite(prices_N).any() else None


@dataclass(frozen=True)
class Evidence:
    """What the report shows beside the figures of the decision."""

    items: ItemTable
    asked: Asked
    slices: Slices
    challenger: Result
    reference: Result


def write_report(
    path: Path, decision: Mapping[str, Any], evidence: Evidence, image_root: str | None, workspace: Path
) -> None:
    """Write the report in one move.

    Args:
        path: the HTML file.
        decision: the content of `decision.json`.
        evidence: rankings and catalogue.
        image_root: `image_root` of the snapshot.
        workspace: the folder that local pictures are relative to.
    """
    metric = decision["primary"]["metric"]
    changes_Q = _changes(evidence, metric)
    gained, lost = most_changed(evidence, metric)
    pictures = _thumbnails(evidence, [*gained, *lost], ImageStore(image_root, workspace))
    html = (
        _environment()
        .get_template("gate.html.j2")
        .render(
            d=decision,
            metric=metric.replace("_at_", "@"),
            forest=forest(decision),
            metrics=metric_table(decision["metrics"]),
            budgets=[budget_row(budget) for budget in decision["budgets"]],
            replayed=_replay_rows(decision["experiment"]["replay"], decision["primary"]["reference_name"]),
            changes=histogram(changes_Q),
            gained=[_example(evidence, row, metric, pictures) for row in gained],
            lost=[_example(evidence, row, metric, pictures) for row in lost],
        )
    )
    write_text(path, html)


def most_changed(evidence: Evidence, metric: str) -> tuple[list[int], list[int]]:
    """Rows of the requests that gained and lost most, each query once; equal changes are ordered by nDCG, then id."""
    changes_Q = _changes(evidence, metric)
    finer_Q = _changes(evidence, "ndcg_at_" + metric.split("_at_")[1])
    ids = evidence.asked.request_ids
    order = sorted(range(len(ids)), key=lambda row: (-changes_Q[row], -finer_Q[row], ids[row]))
    gained = _distinct(evidence, (row for row in order if changes_Q[row] > 0))
    lost = _distinct(evidence, (row for row in reversed(order) if changes_Q[row] < 0))
    return gained, lost


def forest(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Lifts with intervals as shares of one common axis: the whole window first, guardrails next, then other slices."""
    guardrails = decision["guardrails"]
    slices = decision["slices"]
    order = sorted(slices, key=lambda name: (name not in guardrails, name))
    rows: list[tuple[str, Mapping[str, Any], float | None]] = [("all requests", decision["primary"], None)]
    rows += [(name, slices[name], guardrails.get(name)) for name in order]
    drawn = [(label, figures, margin) for label, figures, margin in rows if figures["lower"] is not None]
    marks = [figures[key] for _, figures, _ in drawn for key in ("lower", "upper")]
    marks += [-margin for _, _, margin in drawn if margin is not None]
    low, high = min([0.0, *marks]), max([0.0, *marks])
    pad = 0.04 * (high - low) or 1.0
    low, span = float(low - pad), float(high - low + 2 * pad)

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return {
        "zero": place(0.0),
        "low": low + pad,
        "high": high,
        "rows": [
            {
                "label": label.replace("_", " "),
                "figures": figures,
                "margin": margin,
                "ends": None
                if figures["lower"] is None
                else [place(figures[key]) for key in ("lower", "lift", "upper")],
                "margin_at": None if margin is None else place(-margin),
                "tone": _tone(figures, margin),
                "definition": decision["definitions"].get(label, ""),
            }
            for label, figures, margin in rows
        ],
    }


def metric_table(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Lifts with one row per metric and one column per depth, in the order of the decision."""
    rows: dict[str, list[dict[str, Any]]] = {}
    depths: list[str] = []
    for key, figures in metrics.items():
        name, depth = key.split("_at_")
        rows.setdefault(name.replace("_", " "), []).append({**figures, "tone": _tone(figures, None)})
        depths = depths if depth in depths else [*depths, depth]
    return {"depths": depths, "rows": rows}


_BUDGETS: dict[str, tuple[str, str, str]] = {
    "coverage": ("catalogue in anybody's top 10", "{:.1%}", "at least {:g} × the champion's"),
    "gini": ("Gini index of exposure in the top 10", "{:.3f}", "at most {:g} above the champion's"),
    "price": ("mean log price of the top 10", "{:.3f}", "a shift of at most {:g}"),
    "rank": ("effective rank of the item vectors", "{:.1f}", "at least {:g} × the champion's"),
    "latency_p50": ("encoding a query, median (ms)", "{:.2f}", "at most {:g} × the champion's"),
    "latency_p99": ("encoding a query, p99 (ms)", "{:.2f}", "at most {:g} × the champion's"),
    "index_mib": ("size of the index's vectors (MiB)", "{:,.1f}", "at most {:,g}"),
}
_STATES = {True: "kept", False: "broken", None: "not judged"}


def budget_row(budget: Mapping[str, Any]) -> dict[str, str]:
    """One of the decision's budgets in words."""
    label, figure, bound = _BUDGETS[budget["name"]]

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else form.format(value)

    return {
        "label": label,
        "challenger": shown(budget["challenger"], figure),
        "champion": shown(budget["champion"], figure),
        "bound": shown(budget["bound"], bound),
        "state": _STATES[budget["kept"]],
    }


_REPLAYED = {
    "imp": ("IMP (impressions per page)", 2, "imp"),
    "ctr.snips": ("CTR, SNIPS", 4, "ctr"),
    "ctr.dr": ("CTR, doubly robust", 4, "ctr"),
    "ctr.naive": ("CTR, naive (wrong; for comparison)", 4, "ctr"),
    "gmv.snips": ("GMV per page, SNIPS", 2, "gmv"),
    "gmv.dr": ("GMV per page, doubly robust", 2, "gmv"),
}


def _replay_rows(replayed: Mapping[str, Any] | None, reference: str) -> list[dict[str, Any]]:
    """One row per counterfactual figure that the log could give."""
    if replayed is None:
        return []
    sides = replayed["systems"]["challenger"], replayed["systems"][reference]
    return [
        {
            "label": label,
            "digits": digits,
            "logged": replayed["logged"][logged],
            "challenger": sides[0][key],
            "reference": sides[1][key],
            "lift": replayed["lift"][key],
        }
        for key, (label, digits, logged) in _REPLAYED.items()
        if key in replayed["lift"]
    ]


def histogram(changes_Q: Floats) -> dict[str, Any]:
    """How many requests are better, the same and worse, and the bars of those that changed."""
    finite_Q = changes_Q[np.isfinite(changes_Q)]
    changed = finite_Q[finite_Q != 0]
    reach = float(np.abs(changed).max(initial=0.0)) or 1.0
    counts, edges = np.histogram(changed, bins=_BINS, range=(-reach, reach))
    tallest = max(1, int(counts.max()))
    return {
        "better": int((finite_Q > 0).sum()),
        "same": int((finite_Q == 0).sum()),
        "worse": int((finite_Q < 0).sum()),
        "reach": reach,
        "bars": [
            {"x": 100 * at / _BINS, "height": 100 * int(count) / tallest, "count": int(count), "gain": edges[at] >= 0}
            for at, count in enumerate(counts)
        ],
    }


def _tone(figures: Mapping[str, Any], margin: float | None) -> str:
    """A slice is a gain or a loss where that is still shown among so many slices (`improved`, `worsened`); a guardrail
    is a loss where the rule says so, which corrects nothing."""
    if figures["lower"] is None:
        return "unknown"
    if figures.get("improved", figures["lower"] > 0):
        return "gain"
    lost = figures["upper"] < -margin if margin is not None else figures.get("worsened", figures["upper"] < 0)
    return "loss" if lost else "open"


def _changes(evidence: Evidence, metric: str) -> Floats:
    values = [side.scored.values[metric] for side in (evidence.challenger, evidence.reference)]
    changes: Floats = values[0] - values[1]
    return changes


def _distinct(evidence: Evidence, rows: Iterable[int]) -> list[int]:
    """The first rows, each query once."""
    kept: dict[str, int] = {}
    for row in rows:
        if len(kept) == EXAMPLES:
            break
        kept.setdefault(evidence.asked.queries[row], row)
    return list(kept.values())


def _example(evidence: Evidence, row: int, metric: str, pictures: Mapping[int, str]) -> dict[str, Any]:
    asked = evidence.asked
    wanted = set(asked.relevant[row])
    sides = {
        name: {
            "value": float(side.scored.values[metric][row]),
            "first": _first_hit(side.ranking_QK[row].tolist(), wanted),
            "items": [_card(evidence, at, wanted, pictures, rank) for rank, at in listed(side.ranking_QK[row], wanted)],
        }
        for name, side in (("reference", evidence.reference), ("challenger", evidence.challenger))
    }
    best = asked.relevant[row][:_SHOWN]
    return {
        "query": asked.queries[row],
        "shopper": _shopper(asked, row),
        "slices": [name.replace("_", " ") for name, mask in sorted(evidence.slices.masks.items()) if mask[row]],
        "wanted": [_card(evidence, at, wanted, pictures) for at in best],
        "wanted_count": len(wanted),
        **sides,
    }


def _shopper(asked: Asked, row: int) -> str:
    if asked.users[row] is None:
        return "nobody logged in" if asked.source == "events" else "a judged query"
    return f"shopper with a history of {asked.lengths[row]}" if asked.histories[row] else "new shopper"


def _first_hit(ranking: list[int], wanted: set[int]) -> int | None:
    return next((place for place, item in enumerate(ranking, 1) if item in wanted), None)


def listed(ranking_K: npt.NDArray[np.integer[Any]], wanted: set[int]) -> list[tuple[int, int]]:
    """The first results with their ranks; the last is the first hit, where that comes later: it is what changed."""
    ranked = [(rank, int(at)) for rank, at in enumerate(ranking_K, 1) if at != EMPTY]
    hit = next((found for found in ranked if found[1] in wanted), None)
    late = [hit] if hit is not None and hit[0] > _SHOWN else []
    return ranked[: _SHOWN - len(late)] + late


def _card(evidence: Evidence, at: int, wanted: set[int], pictures: Mapping[int, str], rank: int = 0) -> dict[str, Any]:
    items = evidence.items
    late = rank if rank > _SHOWN else None
    return {
        "id": items.ids[at],
        "title": items.titles[at],
        "hit": at in wanted,
        "picture": pictures.get(at),
        "late": late,
    }


def _thumbnails(evidence: Evidence, rows: list[int], store: ImageStore) -> dict[int, str]:
    """Small pictures as data URIs by item position; a picture that cannot be read is left out."""
    relevant = {row: evidence.asked.relevant[row] for row in rows}
    sides = evidence.challenger, evidence.reference
    used = {
        at for row, wanted in relevant.items() for side in sides for _, at in listed(side.ranking_QK[row], set(wanted))
    }
    used |= {at for wanted in relevant.values() for at in wanted[:_SHOWN]}
    named = [(at, image) for at in sorted(used) if (image := evidence.items.images[at]) is not None]
    pictures = {}
    for place, data in store.read_many([image for _, image in named]):
        uri = None if isinstance(data, ImageProblem) else _data_uri(data)
        if uri is not None:
            pictures[named[place][0]] = uri
    return pictures


def _data_uri(data: bytes) -> str | None:
    try:
        picture = decode(data, MAX_PIXELS)
    except ImageProblem:
        return None
    picture.thumbnail((_THUMB, _THUMB))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mrse.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"signed": _signed, "plain": _plain, "percent": _percent, "title_of": _title_of, "capital": _capital}
    environment.filters |= filters
    environment.globals |= {"list_label": _list_label, "title_of": _title_of}
    return environment


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _plain(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}".replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _list_label(name: str, reference: str) -> str:
    """What a figure of the two lists is called in the report."""
    what, _, side = name.partition(".")
    if what.startswith("overlap_at_"):
        return f"overlap@{what.removeprefix('overlap_at_')}"
    if what.startswith("shown_at_"):
        return f"top {what.removeprefix('shown_at_')} of {_title_of(side)} that the page showed"
    side = "challenger" if what.endswith("challenger") else reference
    return f"relevant items that only {side} finds, of those the other lacks"


def _title_of(name: str) -> str:
    """How a system is called in the report."""
    known = {"challenger": "challenger", "champion": "champion", "bm25": "BM25"}
    return known.get(name, "challenger and BM25 fused")

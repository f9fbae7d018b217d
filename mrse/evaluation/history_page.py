"""The page of a shop's decisions: a chart of the champion over days, and every decision with its reason; one file.

The chart has the primary metric by the end of each decision's window, of the champion on the day's window and on the
golden requests, and BM25 on the golden requests, which tells what the catalogue alone does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mrse.config import ServicesConfig
from mrse.errors import DataError
from mrse.evaluation.history import Decided, read_history
from mrse.evaluation.wording import level, plain, shown
from mrse.jsonfile import write_text

_WIDTH, _HEIGHT = 720, 260  # of the drawing, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 32
_MOST_DAYS = 6  # that are labelled
_RUNGS = 4
NAMES = ("champion, the day's window", "champion, golden requests", "BM25, golden requests")


@dataclass(frozen=True)
class Point:
    """One value of a line; hollow where the model may have learned from the golden days."""

    day: str
    value: float
    hollow: bool = False


def write_history(services: ServicesConfig, path: Path) -> Path:
    """Write the page in one move.

    Raises:
        DataError: there is no decision yet.
        ServiceError: MLflow does not answer.
    """
    past = read_history(services)
    if not past:
        raise DataError("the gate has decided nothing yet; run it first (`dvc repro gate`)")
    write_text(path, render(past))
    return path


def render(past: Sequence[Decided]) -> str:
    """The page of the newest decision's shop; decisions are oldest first, at least one."""
    past = [each for each in past if each.shop == past[-1].shop]
    environment = Environment(
        loader=PackageLoader("mrse.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"level": level, "plain": plain, "shown": shown}
    page = environment.get_template("history.html.j2")
    return page.render(past=past[::-1], newest=past[-1], chart=chart(lines(past)))


def lines(past: Sequence[Decided]) -> dict[str, list[Point]]:
    """The values of each line, the last of each day, of the decisions that share the newest one's metric."""
    alike = {each.window_end[:10]: each for each in past if each.metric == past[-1].metric}
    seen = {each.version: each.golden_seen for each in past}
    found: dict[str, list[Point]] = {name: [] for name in NAMES}
    for day, each in sorted(alike.items()):
        side = _stands(each)
        if side is not None:
            figure, system, version = side
            _add(found[NAMES[0]], day, each.figures.get(figure))
            _add(found[NAMES[1]], day, each.golden.get(system), seen.get(version, False))
        _add(found[NAMES[2]], day, each.golden.get("bm25"))
    return found


def chart(found: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Where everything is drawn: days by their date, values from the smallest to the largest."""
    days = sorted({point.day for points in found.values() for point in points})
    values = [point.value for points in found.values() for point in points] or [0.0]
    pad = 0.1 * (max(values) - min(values)) or 0.05
    low, high = min(values) - pad, max(values) + pad
    first, last = (date.fromisoformat(day).toordinal() for day in (days[0], days[-1])) if days else (0, 0)

    def x(day: str) -> float:
        share = (date.fromisoformat(day).toordinal() - first) / (last - first) if last > first else 0.5
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    labelled = days[:: -(-len(days) // _MOST_DAYS)] if days else []
    rungs = [low + (high - low) * step / _RUNGS for step in range(_RUNGS + 1)]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "days": [{"x": x(day), "label": day} for day in labelled],
        "rungs": [{"y": y(rung), "label": plain(rung)} for rung in rungs],
        "lines": [
            {
                "name": name,
                "path": " ".join(f"{x(point.day)},{y(point.value)}" for point in points),
                "points": [
                    {"x": x(p.day), "y": y(p.value), "hollow": p.hollow, "title": f"{p.day}: {plain(p.value)}"}
                    for p in points
                ],
            }
            for name, points in found.items()
        ],
    }


def _stands(each: Decided) -> tuple[str, str, int] | None:
    """Whose values are the champion's: names among `figures` and `golden`, and the version.

    On the first day there is no champion; the challenger stands for it where it went live. A champion that could not be
    read has no value.
    """
    if each.champion_version is None:
        return ("challenger", "challenger", each.version) if each.said.startswith("PROMOTE") else None
    return ("reference", "champion", each.champion_version) if each.reference_name == "champion" else None


def _add(points: list[Point], day: str, value: float | None, hollow: bool = False) -> None:
    if value is not None:
        points.append(Point(day, value, hollow))

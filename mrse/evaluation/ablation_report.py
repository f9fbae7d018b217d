"""The ablations as one table (CSV and Markdown) and three figures (SVG): differences, sweeps of a
setting, and convergence of the losses.

Legend of the shape suffixes: S seeds, T evaluations during a training.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mrse.config import FULL
from mrse.evaluation.ablation import TABLE, Ablation, Compared
from mrse.evaluation.bootstrap import Lift
from mrse.evaluation.variants import DATA, Variant
from mrse.evaluation.wording import change, made_up, plain, shown, signed
from mrse.jsonfile import write_text

PAGE, DIFFERENCES, SWEEPS, CONVERGENCE = "ablation.md", "ablation.svg", "sweeps.svg", "convergence.svg"
_NDCG, _RELE = "ndcg_at_10", "judged.rele_at_10"
_INK, _SOFT, _LINE = "#1c2024", "#60646c", "#d9dce1"
_GAIN, _LOSS, _OPEN = "#18794e", "#c62a2f", "#60646c"
_LOSS_COLOURS = ("#0b68cb", "#ad5700", "#8e4ec6", "#18794e")
_PANELS = 4  # in a row
_STYLE: Any = {"svg.hashsalt": "mrse", "font.family": "DejaVu Sans", "font.size": 9, "text.color": _INK}


def write_ablation(ablation: Ablation, out: Path) -> list[Path]:
    """Write table and figures into a folder.

    Args:
        ablation: what was compared.
        out: the folder; older files of the same names are replaced.

    Returns:
        The files. There is no figure of differences without a scored variant, none of sweeps without a variant that
        changes one number alone, and none of convergence unless at least one part of the hybrid loss was trained alone
        and there are validation requests.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = {DIFFERENCES: differences(ablation), SWEEPS: sweeps(ablation), CONVERGENCE: convergence(ablation)}
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name in figures.keys() - drawn.keys():
        (out / name).unlink(missing_ok=True)
    with mpl.rc_context(_STYLE):
        for name, figure in drawn.items():
            picture = io.StringIO()
            figure.savefig(picture, format="svg", metadata={"Date": None}, bbox_inches="tight")
            write_text(out / name, picture.getvalue())
    write_text(out / TABLE, as_csv(ablation))
    write_text(out / PAGE, as_markdown(ablation, list(drawn)))
    return [out / name for name in (PAGE, TABLE, *drawn)]


def as_csv(ablation: Ablation) -> str:
    """One row per variant, the full model first; every metric and slice with its interval."""
    rows = [_flat(ablation, row) for row in (ablation.full, *ablation.rows)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_markdown(ablation: Ablation, figures: Sequence[str]) -> str:
    """The table for people, with what it rests on."""
    metric = shown(ablation.primary)
    asked, meta = ablation.inputs.asked, ablation.inputs.meta
    level = f"{1 - ablation.gate.alpha:.0%}"
    judged = _RELE in ablation.full.lifts
    head = ["variant", "changes", "parameters", "validation recall", metric, f"difference [{level}]", "single seeds"]
    head += ["nDCG@10", *(["Rele@10, judged"] if judged else []), "worst slice"]
    clusters, items = int(asked.clusters.max()) + 1, len(ablation.inputs.items.ids)
    lines = [
        "# Ablations",
        "",
        f"{len(asked):,} held-out requests ({asked.source}) of {clusters:,} shoppers or queries over {items:,} items, "
        f"{meta.start:%Y-%m-%d} to {meta.end:%Y-%m-%d}; {_steps(ablation.full):,} steps of training, seeds "
        f"{', '.join(map(str, ablation.seeds))}.",
        *([f"**Simulated data.** {made_up(meta.note)}"] if meta.simulated else []),
        "",
        "A difference is variant minus full model: paired by request, the seeds pooled, the interval resampling "
        "shoppers. It does not hold the chance in training itself: see what single seeds say. These are test requests: "
        "they explain the model; choose parameters by the validation recall.",
        "",
        _row(head),
        _row(["---"] * 2 + ["---:"] * (len(head) - 3) + ["---"]),
        *(_row(_cells(ablation, row, judged)) for row in (ablation.full, *ablation.rows)),
        "",
        *(f"![{name.removesuffix('.svg')}]({name})" for name in figures),
    ]
    return "\n".join(lines).rstrip() + "\n"


def in_short(ablation: Ablation) -> str:
    """The primary metric and its difference, a line per variant."""
    metric, rows = ablation.primary, [ablation.full, *ablation.rows]
    width = max(len(row.variant.name) for row in rows)
    lines = [f"{'':<{width}}  {shown(metric)}  minus the full model's"]
    for row in rows:
        if row.failed is not None:
            lines.append(f"{row.variant.name:<{width}}  training failed: {row.failed}")
            continue
        difference = "" if row is ablation.full else _interval(row.lifts[metric])
        mean = plain(row.lifts[metric].challenger)
        lines.append(f"{row.variant.name:<{width}}  {mean:<{len(metric)}}  {difference}".rstrip())
    return "\n".join(lines)


def differences(ablation: Ablation) -> Figure | None:
    """Each variant's difference in the primary metric, with interval and single seeds."""
    if all(row.failed is not None for row in ablation.rows):
        return None
    lines: list[str | Compared] = []
    for group in dict.fromkeys(row.variant.group for row in ablation.rows):
        lines += [group, *(row for row in ablation.rows if row.variant.group == group)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 0.9 + 0.26 * len(lines)))
        axes = figure.add_axes((0.24, 0.12, 0.46, 0.8))
        for place, line in enumerate(lines):
            if isinstance(line, str):
                axes.text(-0.5, place, line, transform=axes.get_yaxis_transform(), va="center", weight="bold")
            else:
                _draw_difference(axes, place, line, ablation.primary)
        axes.axvline(0.0, color=_SOFT, linewidth=0.8, zorder=0)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        metric = shown(ablation.primary)
        full = ablation.full.lifts[ablation.primary].challenger
        axes.set_xlabel(f"{metric} minus the full model's ({plain(full)}); ticks: single seeds", color=_SOFT)
        _tidy(axes)
        axes.grid(axis="x", color=_LINE, linewidth=0.6)
        axes.spines["left"].set_visible(False)
    return figure


def sweeps(ablation: Ablation) -> Figure | None:
    """The primary metric by every number that variants change alone, the full model's value among theirs: how it grows
    with the examples and the vectors, what length of history and which weights of the loss do.
    """
    found = _sweeps(ablation)
    if not found:
        return None
    rows = -(-len(found) // _PANELS)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 0.3 + 2.0 * rows), layout="constrained")
        panels = figure.subplots(rows, _PANELS, sharey=True, squeeze=False).flatten()
        for axes, (setting, points) in zip(panels, found.items(), strict=False):
            _draw_sweep(axes, setting, points, ablation.primary)
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        for axes in panels[::_PANELS]:
            axes.set_ylabel(shown(ablation.primary), color=_SOFT)
    return figure


def _sweeps(ablation: Ablation) -> dict[str, list[tuple[float, Compared]]]:
    """Per setting its values, ascending, and what was found at each."""
    alone = [row for row in ablation.rows if not row.failed and len(row.variant.changes) == 1]
    found: dict[str, list[tuple[float, Compared]]] = {}
    for setting in dict.fromkeys(setting for row in alone for setting in row.variant.changes):
        rows = [ablation.full, *(row for row in alone if setting in row.variant.changes)]
        points = [(_value(row.variant, setting), row) for row in rows]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in points):
            found[setting] = sorted(points, key=lambda point: point[0])
    return found


def _value(variant: Variant, setting: str) -> Any:
    of_data = setting.startswith(DATA)
    value: Any = variant.data if of_data else variant.train
    for name in setting.removeprefix(DATA).split("."):
        value = getattr(value, name)
    return value


def _draw_sweep(axes: Axes, setting: str, points: Sequence[tuple[float, Compared]], primary: str) -> None:
    """Places are even, whatever the values: sweeps mostly double."""
    lifts = [row.lifts[primary] for _, row in points]
    means = np.array([lift.challenger for lift in lifts], dtype=float)
    axes.plot(means, "-", color=_SOFT, linewidth=0.8, zorder=1)
    for place, ((_, row), lift) in enumerate(zip(points, lifts, strict=True)):
        colour = _INK if row.variant.name == FULL else _tone(lift)
        if None not in (lift.reference, lift.lower, lift.upper):
            ends = np.array([lift.lower, lift.upper], dtype=float) + float(lift.reference or 0.0)
            axes.plot([place, place], ends, color=colour, linewidth=2.2, zorder=2)
        axes.plot([place], means[place], "o", color=colour, markersize=5, zorder=3)
    axes.set_xticks(range(len(points)), [f"{value:g}" for value, _ in points])
    axes.set_xlabel(setting, color=_SOFT)
    axes.margins(x=0.15)
    _tidy(axes)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)


def convergence(ablation: Ablation) -> Figure | None:
    """Validation recall by step of the hybrid loss and of its parts alone: mean over the seeds, and their range."""
    alone = [row.variant for row in ablation.rows if _one_part(row)]
    curves = {v.name: ablation.curves[v.name] for v in (ablation.full.variant, *alone)}
    curves = {name: of_seeds for name, of_seeds in curves.items() if all(of_seeds)}
    if len(curves) < 2:
        return None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.5, 3.6))
        axes = figure.add_axes((0.1, 0.14, 0.86, 0.8))
        for colour, (name, of_seeds) in zip(_LOSS_COLOURS * len(curves), curves.items(), strict=False):
            steps = [step for step, _ in of_seeds[0]]
            recall_ST = np.array([[recall for _, recall in curve] for curve in of_seeds])
            label = "hybrid (full)" if name == FULL else name.replace("_", " ")
            line, front = ("-", 3) if name == FULL else ("--", 4)
            mean_T, low_T, high_T = recall_ST.mean(axis=0), recall_ST.min(axis=0), recall_ST.max(axis=0)
            axes.plot(steps, mean_T, line, marker="o", markersize=3.5, color=colour, label=label, zorder=front)
            axes.fill_between(steps, low_T, high_T, color=colour, alpha=0.1, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step of training; the first point is the end of phase 1 (align)", color=_SOFT)
        axes.set_ylabel(f"recall@{ablation.full.variant.train.valid_k}, validation", color=_SOFT)
        axes.legend(frameon=False, loc="best")
        _tidy(axes)
        axes.grid(color=_LINE, linewidth=0.6)
    return figure


def _one_part(row: Compared) -> bool:
    """Whether a variant trained one part of the hybrid loss alone, and nothing else was changed but weights of loss."""
    loss = row.variant.train.loss
    only_loss = set(row.variant.changes) <= {"loss.alpha", "loss.beta"}
    return row.failed is None and only_loss and (loss.alpha == 0 or loss.beta == 0)


def _draw_difference(axes: Axes, place: int, row: Compared, primary: str) -> None:
    beside = axes.get_yaxis_transform()
    axes.text(-0.47, place, row.variant.name, transform=beside, va="center")
    if row.failed is not None:
        axes.text(1.03, place, "training failed", transform=beside, va="center", color=_LOSS)
        return
    lift = row.lifts[primary]
    axes.text(1.03, place, _interval(lift), transform=beside, va="center", color=_tone(lift))
    if lift.lift is None:
        return
    axes.plot(row.by_seed, [place] * len(row.by_seed), "|", color=_SOFT, markersize=7, markeredgewidth=0.8, zorder=1)
    if lift.lower is not None and lift.upper is not None:
        axes.plot([lift.lower, lift.upper], [place, place], color=_tone(lift), linewidth=2.2, zorder=2)
    axes.plot([lift.lift], [place], "o", color=_tone(lift), markersize=5, zorder=3)


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_LINE)
    axes.tick_params(colors=_SOFT, labelsize=8, length=0)
    axes.set_axisbelow(True)


def _tone(lift: Lift) -> str:
    if lift.lower is None or lift.upper is None or lift.lower <= 0 <= lift.upper:
        return _OPEN
    return _GAIN if lift.lower > 0 else _LOSS


def _flat(ablation: Ablation, row: Compared) -> dict[str, Any]:
    variant = row.variant
    flat: dict[str, Any] = {
        "group": variant.group,
        "variant": variant.name,
        "changes": json.dumps(dict(variant.changes)),
        "window": ablation.inputs.asked.hash,
        "seeds": len(ablation.seeds),
        "steps": _steps(row),
        "parameters": variant.parameters,
        "failed": row.failed or "",
        "valid_recall": row.valid,
    }
    for name, lift in row.lifts.items():
        flat[name] = lift.challenger
        flat |= _figures(name, lift)
    flat |= {f"{ablation.primary}.seed{seed}": value for seed, value in zip(ablation.seeds, row.by_seed, strict=False)}
    for name, lift in row.slices.items():
        flat |= _figures(f"slice.{name}", lift) | {f"slice.{name}.requests": lift.requests}
    return flat


def _steps(row: Compared) -> int:
    return row.variant.train.align_steps + row.variant.train.fuse_steps


def _figures(name: str, lift: Lift) -> dict[str, float | None]:
    return {f"{name}.lift": lift.lift, f"{name}.lower": lift.lower, f"{name}.upper": lift.upper}


def _cells(ablation: Ablation, row: Compared, judged: bool) -> list[str]:
    variant = row.variant
    name = f"**{variant.name}**" if variant.name == FULL else variant.name
    cells = [name, _changes(variant.changes), f"{variant.parameters:,}", plain(row.valid)]
    metrics = [_NDCG, *([_RELE] if judged else [])]
    if row.failed is not None:
        return [*cells, f"training failed: {row.failed}", *[""] * (len(metrics) + 3)]
    means = [plain(row.lifts[metric].challenger) for metric in (ablation.primary, *metrics)]
    if variant.name == FULL:
        return [*cells, means[0], "", "", *means[1:], ""]
    differences = [f"{mean} ({signed(row.lifts[m].lift)})" for mean, m in zip(means[1:], metrics, strict=True)]
    seeds = f"{signed(min(row.by_seed))} to {signed(max(row.by_seed))}"
    return [*cells, means[0], _interval(row.lifts[ablation.primary]), seeds, *differences, _worst(row)]


def _worst(row: Compared) -> str:
    """The slice that falls most among those whose interval lies below zero."""
    fallen = {n: lift for n, lift in row.slices.items() if lift.lift is not None and lift.upper is not None}
    fallen = {name: lift for name, lift in fallen.items() if (lift.upper or 0.0) < 0}
    if not fallen:
        return ""
    name = min(fallen, key=lambda name: (fallen[name].lift or 0.0, name))
    return f"{name.replace('_', ' ')} {_interval(fallen[name])}"


def _changes(changes: Mapping[str, Any]) -> str:
    return "<br>".join(f"`{key}: {json.dumps(value).strip(chr(34))}`" for key, value in changes.items())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _interval(lift: Lift) -> str:
    return change(lift.lift, lift.lower, lift.upper)

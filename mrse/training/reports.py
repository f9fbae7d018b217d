"""Curves of a run as files that `dvc plots show` draws."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from mrse.training.train import Row, TrainReport


def write_curves(report: TrainReport, folder: Path) -> None:
    """Write `loss.csv` and `valid.csv`: `step`, then one column per value; a value that a step lacks is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "loss.csv", report.losses, "loss")
    _write(folder / "valid.csv", report.valid, "recall")


def _write(path: Path, rows: Sequence[Row], first: str) -> None:
    names = dict.fromkeys([first, *(name for _, values in rows for name in values)])
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["step", *names], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {"step": step} | {name: f"{value:.6g}" for name, value in values.items()} for step, values in rows
        )
    partial.replace(path)

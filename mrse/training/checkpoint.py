"""Checkpoints of a training run: one file, safetensors with a JSON header, nothing unpickled.

A run is known by a hash of its configuration, its inputs and its code; a killed run of the same hash goes on where it
stopped, a run with anything changed starts anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mrse.progress import say

_FILE = "checkpoint.safetensors"
_DAY_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on.

    Attributes:
        step: steps done.
        tensors: weights, optimiser moments, banks, best weights, by name.
        notes: what is no tensor (curves, best score); JSON.
    """

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, by the rest of their names."""
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


def run_key(config: str, files: list[Path]) -> str:
    """Hash of a configuration and of the content of files: inputs and sources. Costs about 1 s per GB."""
    digest = hashlib.sha256(config.encode())
    digest.update(torch.__version__.encode())
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (_FILE + ".partial")
    header = {"step": str(checkpoint.step), "notes": json.dumps(checkpoint.notes)}
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}, partial, metadata=header
    )
    partial.replace(folder / _FILE)


def load(folder: Path) -> Checkpoint | None:
    """Read the last checkpoint; None when there is none, or (said aloud) when it cannot be read."""
    file = folder / _FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
            return Checkpoint(int(header["step"]), tensors, json.loads(header["notes"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        say(f"train: {file} cannot be read ({error}); starting anew")
        return None


def clear(folder: Path) -> None:
    """Remove the checkpoints of one run; nothing happens when there are none."""
    shutil.rmtree(folder, ignore_errors=True)


def clear_abandoned(root: Path, but: str, days: float = 7.0) -> None:
    """Remove the checkpoints of runs that nobody went on with: a younger folder may be of a run that trains right now.

    Args:
        root: the folder of all runs.
        but: the run to keep, however old.
        days: since the last checkpoint.
    """
    if not root.is_dir():
        return
    oldest = time.time() - days * _DAY_SECONDS
    for folder in root.iterdir():
        if folder.name != but and _modified(folder) < oldest:
            shutil.rmtree(folder, ignore_errors=True)


def _modified(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # its own run has just removed it
        return math.inf

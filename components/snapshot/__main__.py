"""`python -m components.snapshot`: write `data/snapshot/`. Cost: about 3 s per million events on two cores."""

from __future__ import annotations

from pathlib import Path

from mrse import component
from mrse.config import Params
from mrse.data.sources import take_snapshot


def body(params: Params, workspace: Path) -> str:
    """Take the snapshot and say what it holds."""
    meta = take_snapshot(params, workspace)
    counts = ", ".join(f"{count:,} {table}" for table, count in meta.rows.items())
    kind = " (simulated)" if meta.simulated else ""
    return f"{counts} from {meta.source}{kind}, {meta.start:%Y-%m-%d} to {meta.end:%Y-%m-%d}"


if __name__ == "__main__":
    component.run("snapshot", body)

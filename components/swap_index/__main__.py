"""Put the verified collection live. See `mrse.index.swap`."""

from pathlib import Path

from mrse.component import run
from mrse.config import Params
from mrse.index.swap import swap


def body(params: Params, workspace: Path) -> str:
    """Move the alias, then MLflow's champion."""
    live = swap(params, workspace)
    if live["collection"] is None:
        return f"nothing is live: {live['reason']}"
    what = "live" if live["status"] == "swapped" else f"unchanged ({live['reason']}); live"
    return f"{what}: {live['collection']}, model version {live['version']}, since {live['since']}"


if __name__ == "__main__":
    run("swap_index", body)

"""Where the index stages read and write under a workspace (docs/contracts.md)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrse import jsonfile
from mrse.errors import IndexFailed

DECISION = Path("reports/decision.json")
CHALLENGER = Path("models/challenger.json")
CHALLENGER_PACKAGE = Path("models/challenger")
CLEAN = Path("data/clean")
PROFILES = Path("data/profiles")
INDEX_JSON = Path("models/index/index.json")
SERVING = Path("models/index/serving")
LIVE_JSON = Path("reports/live.json")


def serving_artifact(collection: str) -> str:
    """Where a collection's serving folder lies among the artifacts of its model's run."""
    return f"serving/{collection}"


def read_handed(workspace: Path, name: Path, stage: str) -> Any:
    """Read the JSON file that a stage hands on.

    Raises:
        DataError: it is missing or broken; the message names the stage to run.
    """
    return jsonfile.read_handed(workspace / name, stage)


def check_judged(decision: Mapping[str, Any], challenger: Mapping[str, Any]) -> None:
    """Whether a decision is about the challenger that lies there.

    Raises:
        IndexFailed: the gate judged another model.
    """
    judged = decision["challenger"]
    if judged["fingerprint"] != challenger["fingerprint"]:
        raise IndexFailed(
            f"the gate judged model version {judged['version']}, models/challenger.json names version "
            f"{challenger['version']}, which it has not judged; run the gate stage again"
        )

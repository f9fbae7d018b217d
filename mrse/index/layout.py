"""Where the index stages read and write under a workspace (docs/contracts.md)."""

from pathlib import Path

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

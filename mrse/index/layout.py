"""Where the index stages read and write under a workspace (docs/contracts.md)."""

from pathlib import Path
from typing import Any

from mrse.errors import DataError
from mrse.jsonfile import read_json

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
    try:
        return read_json(workspace / name)
    except FileNotFoundError:
        raise DataError(f"{workspace / name} is missing; run the {stage} stage first (`dvc repro {stage}`)") from None
    except ValueError as error:
        raise DataError(f"{workspace / name} is not JSON ({error}); run the {stage} stage again") from None

"""What the index stages make of what is handed to them."""

from collections.abc import Mapping
from typing import Any

from mrse.errors import IndexFailed
from mrse.layout import CHALLENGER_JSON


def serving_artifact(collection: str) -> str:
    """Where a collection's serving folder lies among the artifacts of its model's run."""
    return f"serving/{collection}"


def check_judged(decision: Mapping[str, Any], challenger: Mapping[str, Any]) -> None:
    """Whether a decision is about the challenger that lies there.

    Raises:
        IndexFailed: the gate judged another model.
    """
    judged = decision["challenger"]
    if judged["fingerprint"] != challenger["fingerprint"]:
        raise IndexFailed(
            f"the gate judged model version {judged['version']}, {CHALLENGER_JSON} names version "
            f"{challenger['version']}, which it has not judged; run the gate stage again"
        )

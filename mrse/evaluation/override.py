"""`mrse force`: a person puts a challenger live although the rule did not promote it.

An override is of one decision: the same models, requests and settings (`history.identity`). It is kept in MLflow, on
the model version and on the decision's run, before anything changes; the gate finds it there whenever it makes this
decision again. `reports/decision.json` of the workspace changes with it, so DVC runs the gate again, then `build_index`
and `swap_index`. There is no parameter for it: nothing that is set once can promote what comes next.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from mrse import tracking
from mrse.config import ServicesConfig
from mrse.errors import DataError
from mrse.evaluation.history import Decided, Forced, overridden, read_history
from mrse.jsonfile import read_handed, write_json
from mrse.layout import DECISION

_MAX_CHARS = 500


def force(services: ServicesConfig, workspace: Path, version: int, reason: str, by: str) -> str:
    """Override the newest decision about a model version.

    Args:
        services: where MLflow is.
        workspace: its `reports/decision.json` changes where it is this decision.
        version: the model version.
        reason: why, for good.
        by: the name of who answers for it.

    Returns:
        What was done and what to do next.

    Raises:
        DataError: no reason or name, no decision about this version, or nothing to override.
        ServiceError: MLflow does not answer.
    """
    forced = Forced(_said("name (--by)", by), _said("reason (--reason)", reason), _now())
    decided = _newest(read_history(services), version)
    tags = {f"forced_{key}": value for key, value in asdict(forced).items()}
    tracking.tag_version(services, version, {**tags, "forced_over": decided.outcome})
    tracking.tag_record(services, decided.run_id, tags)  # last: from here on the override holds
    done = f"Version {version} is promoted by {forced.by} over {decided.outcome}; the decision and this are kept."
    path = workspace / DECISION
    if path.is_file():
        decision = read_handed(path, "gate")
        if decision.get("id") == decided.id:
            write_json(path, overridden(decision, forced))
            return f"{done} `dvc repro` puts it live."
    return f"{done} It goes live when the gate decides this again where the version was trained."


def _newest(past: list[Decided], version: int) -> Decided:
    """The decision to override."""
    about = [each for each in past if each.version == version]
    if not about:
        raise DataError(f"the gate has not judged version {version}; run it first (`dvc repro gate`)")
    newest = about[-1]
    if newest.outcome == "PROMOTE":
        raise DataError(f"the gate itself promoted version {version}: there is nothing to force")
    if newest.forced is not None:
        raise DataError(f"version {version} was forced already, by {newest.forced.by} on {newest.forced.at[:10]}")
    return newest


def _said(what: str, text: str) -> str:
    text = " ".join(text.split())
    if not text:
        raise DataError(f"an override needs a {what}: it is kept for good")
    if len(text) > _MAX_CHARS:
        raise DataError(f"the {what} is longer than {_MAX_CHARS} characters")
    return text


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

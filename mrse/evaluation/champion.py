"""The model that is live now, or why it cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrse import tracking
from mrse.config import ServicesConfig
from mrse.errors import MrseError, ServiceError
from mrse.evaluation.gate import Reason
from mrse.model.retriever import Retriever


@dataclass(frozen=True)
class Champion:
    """The champion, `retriever` being `None` on the first run and where `concern` says why it cannot be read."""

    retriever: Retriever | None = None
    version: dict[str, Any] | None = None
    concern: Reason | None = None


def find_champion(services: ServicesConfig, folder: Path) -> Champion:
    """Ask the registry for the champion and fetch its package into `folder`.

    A champion that exists but cannot be read makes a HOLD: promoting would mean replacing it unseen.

    Raises:
        ServiceError: the registry does not answer. That is no result: a retry may find it well.
    """
    found = tracking.champion(services)
    if found is None:
        return Champion()
    version = {"model_name": found.name, "version": found.version, "run_id": found.run_id}
    version["fingerprint"] = found.fingerprint
    try:
        retriever = Retriever.load(tracking.download_package(services, found, folder / "champion"))
    except ServiceError:
        raise
    except (MrseError, OSError, ValueError) as error:
        return Champion(None, version, _unreadable(f"Champion {found.version} cannot be read: {error}"))
    if found.fingerprint and retriever.fingerprint != found.fingerprint:
        message = f"Champion {found.version} is not what was registered: its package has another fingerprint."
        return Champion(None, version, _unreadable(message))
    return Champion(retriever, version)


def _unreadable(message: str) -> Reason:
    return Reason("champion_unreadable", "HOLD", message)

"""Where a model comes from, as tags: the code's commit and the hashes of its data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from mrse.data.contract import read_meta
from mrse.layout import CLEAN, FEATURES, PROFILES

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_INPUTS = {path.as_posix() for path in (CLEAN, PROFILES, FEATURES)}


def lineage(workspace: Path) -> dict[str, str]:
    """Tags of a training run.

    Args:
        workspace: a folder with `data/clean`; with a `dvc.lock` when DVC runs the stages.

    Returns:
        `git_commit` (`MRSE_COMMIT`, else the workspace's where it is a checkout), `data_source`, `data_fingerprint`,
        `data_start`, `data_end`, `simulated`, and `dvc.<path>` with the hash of each input that `dvc.lock` knows.
    """
    meta = read_meta(workspace / CLEAN)
    tags = {
        "data_source": meta.source,
        "data_fingerprint": meta.fingerprint,
        "data_start": meta.start.isoformat(),
        "data_end": meta.end.isoformat(),
        "simulated": str(meta.simulated).lower(),
    }
    commit = os.environ.get("MRSE_COMMIT") or _git_commit(workspace)
    if commit is not None:
        tags["git_commit"] = commit
    return tags | {f"dvc.{path}": digest for path, digest in _dvc_hashes(workspace / "dvc.lock").items()}


def _git_commit(workspace: Path) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(
        [git, "-C", str(workspace), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )
    found = done.stdout.strip()
    return found if done.returncode == 0 and _COMMIT.fullmatch(found) else None


def _dvc_hashes(lock: Path) -> dict[str, str]:
    if not lock.is_file():
        return {}
    stages: dict[str, Any] = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages") or {}
    outs = [out for stage in stages.values() for out in stage.get("outs") or []]
    return {out["path"]: out["md5"] for out in outs if out.get("path") in _INPUTS and "md5" in out}

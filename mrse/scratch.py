"""Folders in the cache that go away with the run; what a killed run left goes a day later."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_ABANDONED = 24 * 3600.0  # seconds; pods share the cache, so whether a process still lives cannot be asked


def scratch(cache_dir: Path, name: str) -> tempfile.TemporaryDirectory[str]:
    """A new folder `<name>.*` under `cache_dir`; others of that name that nothing touched for a day are removed."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    for left in cache_dir.glob(f"{name}.*"):
        with suppress(FileNotFoundError):  # its own run has just removed it
            if left.is_dir() and left.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=cache_dir, prefix=f"{name}.")

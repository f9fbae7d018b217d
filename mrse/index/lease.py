"""One swap at a time: a lease, a small file under `services.state_dir`.

The lease names its holder and expires, so that a killed swap blocks nobody for long: on the same machine a dead
holder's lease is taken over at once, elsewhere when it has run out. Pipelines that share a Milvus server must share
the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mrse.errors import IndexFailed


@dataclass(frozen=True)
class Lease:
    """A lease that is held; `check` before every step that others would see."""

    path: Path
    token: str

    def check(self) -> None:
        """Raise IndexFailed when the lease ran out and somebody else took it."""
        with _locked(self.path) as handle:
            if _read(handle).get("token") != self.token:
                raise IndexFailed(f"the swap took longer than its lease and another one began ({self.path}); run again")


@contextmanager
def lease(state_dir: Path, seconds: int) -> Iterator[Lease]:
    """Hold the lease for at most `seconds`.

    Raises:
        IndexFailed: another live process holds it; the message says which one and until when.
    """
    path = state_dir / "swap.lease"
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    with _locked(path) as handle:
        current = _read(handle)
        if _is_held(current):
            left = current["expires"] - time.time()
            raise IndexFailed(
                f"process {current['pid']} on {current['host']} is swapping the index; its lease {path} runs out in "
                f"{left:.0f} s"
            )
        mine = {"token": token, "pid": os.getpid(), "host": socket.gethostname(), "expires": time.time() + seconds}
        _write(handle, mine)
    try:
        yield Lease(path, token)
    finally:
        with _locked(path) as handle:
            if _read(handle).get("token") == token:
                _write(handle, {})


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("a+", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle


def _read(handle: IO[str]) -> dict[str, Any]:
    handle.seek(0)
    try:
        value = json.loads(handle.read() or "{}")
    except ValueError:  # killed while writing: whoever wrote it holds nothing
        return {}
    return value if isinstance(value, dict) else {}


def _write(handle: IO[str], value: dict[str, Any]) -> None:
    handle.seek(0)
    handle.truncate()
    json.dump(value, handle)
    handle.flush()


def _is_held(current: dict[str, Any]) -> bool:
    if not current or current["expires"] <= time.time():
        return False
    return current["host"] != socket.gethostname() or _alive(int(current["pid"]))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

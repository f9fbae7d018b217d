"""Real processes that train together, forked from one that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["mrse.training.train", "tests.tiny_shop"])
_LIMIT_S = 120.0


def together(
    size: int, log: Path, work: Callable[..., None], *args: Any, timeout_s: float = 60.0
) -> tuple[list[int], list[str]]:
    """Run `work(world, *args)` on `size` processes, as a launcher would start them; `timeout_s` as in `joined`.

    Returns:
        The exit codes (a signal is negative) and what each wrote to stderr; a process that hangs is ended, and fails.
    """
    log.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    processes = [
        _FORKS.Process(target=_one, args=(rank, size, port, log / f"{rank}.err", timeout_s, work, args))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_LIMIT_S)
        process.kill()
        process.join()
    return [process.exitcode for process in processes], [(log / f"{rank}.err").read_text() for rank in range(size)]


def _one(
    rank: int, size: int, port: int, log: Path, timeout_s: float, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    import torch

    from mrse.errors import MrseError
    from mrse.training.distributed import joined

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.pop("MRSE_QUIET", None)
    torch.set_num_threads(1)
    try:
        with joined(timeout_s) as world:
            work(world, *args)
    except MrseError as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

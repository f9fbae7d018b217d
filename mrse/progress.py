"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere, nothing with `-q`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_PLAIN_INTERVAL_S = 10.0


def quiet() -> bool:
    """True when the user asked for silence (`-q` sets `MRSE_QUIET=1`, which stages inherit)."""
    return os.environ.get("MRSE_QUIET", "") not in ("", "0")


def say(message: str) -> None:
    """Print one line of progress to stderr, unless `-q` was given."""
    if not quiet():
        print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield `items` while showing how many are done, how fast, and how long it will take.

    Args:
        items: anything iterable.
        what: the label, such as `"embedding items"`.
        total: the number of items where `items` has no length.
        unit: what one item is called.
    """
    terminal = sys.stderr.isatty()
    yield from tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        file=sys.stderr,
        disable=quiet(),
        mininterval=0.1 if terminal else _PLAIN_INTERVAL_S,
        ncols=None if terminal else 100,
        ascii=not terminal,
        leave=terminal,
    )

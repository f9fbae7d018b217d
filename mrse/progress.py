"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere, nothing with `-q`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
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
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=unit, file=sys.stderr, disable=quiet(), leave=False)
        return
    total = len(items) if total is None and isinstance(items, Sized) else total
    started = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= _PLAIN_INTERVAL_S:
            said = now
            say(_line(what, unit, done, total, now - started))


def _line(what: str, unit: str, done: int, total: int | None, seconds: float) -> str:
    """One plain line of progress.

    >>> _line("embedding items", "item", 500, 2000, 10.0)
    'embedding items: 500 of 2,000 (25%), 50.0 item/s, 30 s left'
    """
    rate = done / seconds
    if total is None:
        return f"{what}: {done:,}, {rate:.1f} {unit}/s"
    return (
        f"{what}: {done:,} of {total:,} ({done / total:.0%}), {rate:.1f} {unit}/s, {(total - done) / rate:.0f} s left"
    )

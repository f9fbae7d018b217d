"""Can every picture be decoded? About 44,000 small JPEGs take some seconds on two cores.

An item whose picture cannot be used stays, without it; the reason is counted and the row quarantined as it was.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mrse.data.images import ImageProblem, ImageStore, decode
from mrse.progress import track

_PER_TASK = 64
_IN_FLIGHT = 4

Picture = tuple[int, bytes | ImageProblem]


def problems(refs: list[str], store: ImageStore, max_pixels: int) -> dict[str, str]:
    """The pictures that cannot be used.

    Args:
        refs: names of pictures (`items.image`); each different one is read once.
        store: where they are.
        max_pixels: larger pictures are refused unread.

    Returns:
        Name to reason (`mrse.data.images.Reason`).
    """
    unique = sorted(set(refs))
    found: dict[str, str] = {}
    pictures = track(store.read_many(unique), "checking pictures", total=len(unique), unit="img")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[Future[list[tuple[int, str]]]] = deque()
        for group in _groups(pictures):
            waiting.append(pool.submit(_check, group, max_pixels))
            if len(waiting) >= _IN_FLIGHT:
                found.update((unique[place], reason) for place, reason in waiting.popleft().result())
        for task in waiting:
            found.update((unique[place], reason) for place, reason in task.result())
    return found


def _groups(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    group: list[Picture] = []
    for picture in pictures:
        group.append(picture)
        if len(group) == _PER_TASK:
            yield group
            group = []
    yield group


def _check(group: list[Picture], max_pixels: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for place, data in group:
        try:
            if isinstance(data, ImageProblem):
                raise data
            decode(data, max_pixels)
        except ImageProblem as problem:
            found.append((place, problem.reason))
    return found

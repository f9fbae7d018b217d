"""Which examples, made-up pairs and negatives a step sees: a pure function of (seed, step), so a resumed run goes on
exactly as an unbroken one.

Shapes: M examples, B rows of a batch, C candidates, K hard negatives, N items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrse.training.data import Examples, Floats, Ints

# Streams of random numbers, so that no two choices of a step are one.
_ORDER, _SELF, _CATALOGUE, LOGGED, PSEUDO, MINED, VAGUE = range(7)


@dataclass(frozen=True)
class Draw:
    """What one step works on.

    Attributes:
        example_rows: rows of the examples, all with the same item profiles in view.
        self_items: items to make pairs from.
        epoch: the item profiles in view; -1: none.
    """

    example_rows: Ints
    self_items: Ints
    epoch: int


class Sampler:
    """Batches of examples. Each batch is of one profile cut, so that no candidate shows a later profile than another
    (an item could be told by how rich its profile is) and none shows the future.

    Judgments name many items for a query and no shopper: beside a log they would drown it. A pass takes every example
    of the log, and of the judged ones so many that they keep to their share, others in each pass. A log that fills no
    batch bounds nothing: its few rows would come again in every pass, and most of the judged ones in none.

    Attributes:
        rate_M: in which share of the passes each example is drawn.
        logged, judged: how many examples of the log, and judged ones, a pass takes.
    """

    def __init__(
        self, examples: Examples, items: int, batch_size: int, self_pairs: float, judged_share: float, seed: int
    ) -> None:
        self._epoch_M = examples.epoch_M
        self._items = items
        self._self = min(items, round(batch_size * self_pairs)) if len(examples) else min(items, batch_size)
        self._real = max(1, batch_size - self._self)
        self._seed = seed
        self._groups = list(_groups(examples, _judged_rate(examples.judged_M, judged_share, self._real)))
        self.rate_M = np.zeros(len(examples))
        for group in self._groups:
            self.rate_M[group.rows] = group.taken / len(group.rows)
        self.logged, self.judged = (
            sum(group.taken for group in self._groups if group.judged == judged) for judged in (False, True)
        )
        self._epochs = np.unique([group.epoch for group in self._groups])
        taken = (sum(group.taken for group in self._groups if group.epoch == epoch) for epoch in self._epochs)
        self._per_pass = sum(-(-count // self._real) for count in taken)
        self._pass = -1
        self._batches: list[Ints] = []

    def draw(self, step: int) -> Draw:
        """The batch of a step."""
        rng = np.random.default_rng([self._seed, _SELF, step])
        self_items = rng.choice(self._items, size=self._self, replace=False).astype(np.int64)
        if self._per_pass == 0:
            return Draw(np.zeros(0, dtype=np.int64), self_items, -1)
        number, place = divmod(step, self._per_pass)
        if number != self._pass:
            self._batches, self._pass = self._shuffled(number), number
        rows = self._batches[place]
        return Draw(rows, self_items, int(self._epoch_M[rows[0]]))

    def _shuffled(self, number: int) -> list[Ints]:
        rng = np.random.default_rng([self._seed, _ORDER, number])
        batches = []
        for epoch in self._epochs:
            of_epoch = (group for group in self._groups if group.epoch == epoch)
            rows = np.concatenate([rng.permutation(group.rows)[: group.taken] for group in of_epoch])
            batches += np.array_split(rng.permutation(rows), -(-len(rows) // self._real))
        return [batches[place] for place in rng.permutation(len(batches))]


@dataclass(frozen=True)
class _Group:
    """Examples of one profile cut, all of them from the log or all judged; `taken` of them are drawn in each pass."""

    epoch: int
    judged: bool
    rows: Ints
    taken: int


def _groups(examples: Examples, judged_rate: float) -> Iterator[_Group]:
    for epoch in np.unique(examples.epoch_M):
        for judged in (False, True):
            rows = np.flatnonzero((examples.epoch_M == epoch) & (examples.judged_M == judged))
            taken = math.ceil(len(rows) * (judged_rate if judged else 1.0))
            if taken:
                yield _Group(int(epoch), judged, rows, taken)


def _judged_rate(judged_M: NDArray[np.bool_], share: float, batch: int) -> float:
    """In which share of the passes a judged example may be drawn, so that they are at most `share` of a pass; 1 where
    the log has fewer than `batch` examples."""
    judged = int(judged_M.sum())
    logged = len(judged_M) - judged
    if logged < batch or share == 1.0 or judged * (1.0 - share) <= share * logged:
        return 1.0
    return share * logged / ((1.0 - share) * judged)


def catalogue_items(seed: int, step: int, items: int, count: int) -> Ints:
    """Uniform draws from the catalogue, without repeats, `(min(count, items),)`."""
    rng = np.random.default_rng([seed, _CATALOGUE, step])
    return rng.choice(items, size=min(count, items), replace=False).astype(np.int64)


def pick_hard(hard_BK: Ints, count: int, seed: int, step: int, stream: int = LOGGED) -> Ints:
    """`count` known hard negatives of each row at random, `(B, min(count, K))`, -1 where a row has fewer."""
    rng = np.random.default_rng([seed, stream, step])
    order = np.argsort(np.where(hard_BK >= 0, rng.random(hard_BK.shape), 2.0), axis=1)[:, :count]
    picked: Ints = np.take_along_axis(hard_BK, order, axis=1)
    return picked


def log_q(item_counts_N: NDArray[np.float64], items_C: Ints, real: int, self_made: int, drawn: int) -> Floats:
    """Log of how often each candidate is expected in a step's sample.

    A step holds `real` positives, drawn by how often an item is a positive, and `self_made` + `drawn` items drawn
    uniformly (mixed negative sampling, Yang et al. 2020).

    Args:
        item_counts_N: how many examples of a pass each item is the positive of.
        items_C: candidates.
    """
    by_log_C = item_counts_N[items_C] / max(1.0, float(item_counts_N.sum()))
    expected_C = real * by_log_C + (self_made + drawn) / len(item_counts_N)
    logs: Floats = np.log(np.maximum(expected_C, 1e-9)).astype(np.float32)
    return logs


class Exclusions:
    """Which candidates are no negatives of a query: its asker's other known positives, and twins of its positive."""

    def __init__(self, examples: Examples, twin_N: Ints) -> None:
        """Args: twin_N: equal numbers are items that nothing tells apart."""
        self._twin_N = twin_N
        order = np.argsort(examples.asker_M, kind="stable")
        self._items = examples.item_M[order]
        askers = int(examples.asker_M.max(initial=-1)) + 1
        self._starts = np.searchsorted(examples.asker_M[order], np.arange(askers + 1))

    def mask(self, asker_B: Ints, target_B: Ints, items_C: Ints) -> NDArray[np.bool_]:
        """`(B, C)`; a query's own target is never excluded.

        Args:
            asker_B: askers of the queries; -1: nobody's known positives apply.
            target_B: column of each query's positive.
            items_C: candidates, each once.
        """
        rows_B = np.arange(len(asker_B))
        twin_C = self._twin_N[items_C]
        mask_BC: NDArray[np.bool_] = twin_C[None, :] == twin_C[target_B][:, None]
        order_C = np.argsort(items_C)
        known = np.flatnonzero(asker_B >= 0)
        sizes = (self._starts[1:] - self._starts[:-1])[asker_B[known]]
        rows = np.repeat(known, sizes)
        first = np.repeat(self._starts[asker_B[known]], sizes)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        items = self._items[first + within]
        columns = order_C[np.minimum(np.searchsorted(items_C[order_C], items), len(items_C) - 1)]
        found = items_C[columns] == items
        mask_BC[rows[found], columns[found]] = True
        mask_BC[rows_B, target_B] = False
        return mask_BC

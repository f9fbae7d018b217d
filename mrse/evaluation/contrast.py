"""Two systems' lists side by side: what they share, what only one of them finds, and a simulated interleaving.

Clicks favour what was shown, hence the incumbent. These figures say how far apart the lists are and how much of them
anybody could have clicked.

Legend of the shape suffixes: Q requests, K depth of a list, I repetitions of the interleaving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrse.evaluation.metrics import Labels
from mrse.evaluation.ranking import EMPTY, Floats, Ranking

_REPETITIONS = 10
_LIKED, _OTHER = 0.6, 0.03  # P(click | examined) of an item with the largest gain, and of one without a label


@dataclass(frozen=True)
class Interleaved:
    """Shares of the repetitions of each request that the challenger won, drew and lost, each (Q,)."""

    wins: Floats
    ties: Floats
    losses: Floats


def overlap(one_QK: Ranking, other_QK: Ranking, k: int) -> Floats:
    """Share of one's top `k` that the other holds anywhere (Q,)."""
    share_Q: Floats = _shared(one_QK[:, :k], other_QK).sum(axis=1) / k
    return share_Q


def found_elsewhere(one_QK: Ranking, other_QK: Ranking, labels: Labels, k: int) -> Floats:
    """Recall at `k` of one list on the relevant items that the other's top `k` lacks (Q,); NaN where it lacks none."""
    gains_QK, _ = labels.look_up(one_QK[:, :k])
    hits_QK = labels.is_relevant(gains_QK)
    other_gains_QK, _ = labels.look_up(other_QK[:, :k])
    missed_Q = labels.relevant_counts - labels.is_relevant(other_gains_QK).sum(axis=1)
    found_Q = (hits_QK & ~_shared(one_QK[:, :k], other_QK[:, :k])).sum(axis=1)
    recall_Q: Floats = np.divide(found_Q, missed_Q, out=np.full(len(missed_Q), np.nan), where=missed_Q > 0)
    return recall_Q


def _shared(one_QK: Ranking, other_QK: Ranking) -> npt.NDArray[np.bool_]:
    """Which items of one list are in the other (Q, K); column by column, so that memory stays that of the lists."""
    found = [(other_QK == column[:, None]).any(axis=1) & (column != EMPTY) for column in one_QK.T]
    shared_QK: npt.NDArray[np.bool_] = np.stack(found, axis=1)
    return shared_QK


def team_draft(
    one_QK: Ranking, other_QK: Ranking, length: int, generator: np.random.Generator
) -> tuple[Ranking, npt.NDArray[np.int8]]:
    """Team-draft interleaving of two lists of at least `length` places.

    The team with fewer items picks next, a coin decides when both have as many; it picks its best item that is not
    listed yet. A team with nothing left leaves its turn to the other.

    Source: Radlinski, Kurup and Joachims, CIKM 2008.

    Returns:
        The interleaved list (Q, length) and the team of each place: 0 the first, 1 the second, −1 nobody's.
    """
    lists_TQK = np.stack([one_QK[:, :length], other_QK[:, :length]])
    free_TQK = lists_TQK != EMPTY
    rows_Q = np.arange(lists_TQK.shape[1])
    listed_QL = np.full((len(rows_Q), length), EMPTY, dtype=np.int32)
    teams_QL = np.full((len(rows_Q), length), -1, dtype=np.int8)
    picks_TQ = np.zeros((2, len(rows_Q)), dtype=np.int64)
    for place in range(length):
        coin_Q = generator.random(len(rows_Q)) < 0.5
        turn_Q = np.where(picks_TQ[0] == picks_TQ[1], coin_Q, picks_TQ[0] > picks_TQ[1]).astype(np.int64)
        can_TQ = free_TQK.any(axis=2)
        turn_Q = np.where(can_TQ[turn_Q, rows_Q], turn_Q, 1 - turn_Q)
        best_Q = free_TQK[turn_Q, rows_Q].argmax(axis=1)
        picked_Q = np.where(can_TQ.any(axis=0), lists_TQK[turn_Q, rows_Q, best_Q], EMPTY)
        listed_QL[:, place] = picked_Q
        teams_QL[:, place] = np.where(picked_Q == EMPTY, -1, turn_Q)
        picks_TQ[turn_Q, rows_Q] += picked_Q != EMPTY
        free_TQK &= lists_TQK != picked_Q[None, :, None]
    return listed_QL, teams_QL


def interleave(
    one_QK: Ranking, other_QK: Ranking, labels: Labels, examination_L: Sequence[float], seed: int
) -> Interleaved:
    """Simulated team-draft experiments: clicks by position and label, credited to the team that brought the item.

    P(click) = examination(place) x attraction, from 0.03 for an item without a label to 0.6 for the request's largest
    gain. An item that nobody saw has no label, so the simulation inherits the labels' favour for the incumbent.

    Args:
        one_QK, other_QK: the two lists.
        labels: what the requests were looking for.
        examination_L: of each place; as many places are interleaved.
        seed: equal seeds give equal experiments.
    """
    generator = np.random.default_rng(seed)
    top_Q = np.ones(labels.requests)
    np.maximum.at(top_Q, labels.keys // labels.items, labels.gains)
    outcomes = np.zeros((3, labels.requests))
    for _ in range(_REPETITIONS):
        listed_QL, teams_QL = team_draft(one_QK, other_QK, len(examination_L), generator)
        gains_QL, _ = labels.look_up(listed_QL)
        attraction_QL = _OTHER + (_LIKED - _OTHER) * gains_QL / top_Q[:, None]
        clicked_QL = generator.random(listed_QL.shape) < np.asarray(examination_L) * attraction_QL
        lead_Q = (clicked_QL & (teams_QL == 0)).sum(axis=1) - (clicked_QL & (teams_QL == 1)).sum(axis=1)
        outcomes += [lead_Q > 0, lead_Q == 0, lead_Q < 0]
    wins, ties, losses = outcomes / _REPETITIONS
    return Interleaved(wins, ties, losses)

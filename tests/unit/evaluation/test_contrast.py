"""Two lists side by side, against counts by hand and a plain team draft."""

import numpy as np
import pytest

from mrse.evaluation.contrast import found_elsewhere, interleave, overlap, team_draft
from mrse.evaluation.metrics import Labels
from mrse.evaluation.ranking import EMPTY

ONE = np.array([[0, 1, 2, 3], [4, 5, EMPTY, EMPTY]], dtype=np.int32)
OTHER = np.array([[2, 7, 0, 8], [EMPTY] * 4], dtype=np.int32)


def test_overlap_counts_what_both_hold() -> None:
    assert overlap(ONE, OTHER, 4).tolist() == [0.5, 0.0]
    assert overlap(ONE, OTHER[:, :2], 2).tolist() == [0.0, 0.0]
    assert overlap(ONE, OTHER, 2).tolist() == [0.5, 0.0]


def test_recall_on_what_the_other_list_lacks() -> None:
    labels = Labels.build([[1, 2, 9], []], [[1.0, 1.0, 1.0], []], 10)
    # Of 1, 2 and 9 the other list holds 2; the first finds 1 of the other two. Nothing is wanted by the second request.
    assert found_elsewhere(ONE, OTHER, labels, 4) == pytest.approx([0.5, np.nan], nan_ok=True)
    assert found_elsewhere(OTHER, ONE, labels, 4) == pytest.approx([0.0, np.nan], nan_ok=True)


class Coins:
    """A generator whose coins are known."""

    def __init__(self, coins: list[float]) -> None:
        self.coins = coins

    def random(self, size: int) -> np.ndarray:
        return np.full(size, self.coins.pop(0))


def plain_draft(one: list[int], other: list[int], length: int, coins: list[float]) -> tuple[list[int], list[int]]:
    lists, listed, teams = (one, other), [], []
    for place in range(length):
        counts = teams.count(0), teams.count(1)
        turn = int(coins[place] < 0.5) if counts[0] == counts[1] else int(counts[0] > counts[1])
        left = [[item for item in side if item not in listed] for side in lists]
        turn = turn if left[turn] else 1 - turn
        if not left[turn]:
            break
        listed.append(left[turn][0])
        teams.append(turn)
    return listed, teams


def test_team_draft_is_the_published_one() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        one, other = (generator.permutation(9)[: generator.integers(0, 7)].tolist() for _ in range(2))
        coins = generator.random(6).tolist()
        pads = [np.array([side + [EMPTY] * (6 - len(side))], dtype=np.int32) for side in (one, other)]
        listed, teams = team_draft(*pads, 6, Coins(list(coins)))  # type: ignore[arg-type]
        expected, by = plain_draft(one, other, 6, coins)
        assert listed[0][: len(expected)].tolist() == expected and (listed[0][len(expected) :] == EMPTY).all()
        assert teams[0][: len(by)].tolist() == by and (teams[0][len(by) :] == -1).all()


def test_interleaving_prefers_the_list_with_the_wanted_items_and_neither_of_two_equal_ones() -> None:
    requests = 3000
    labels = Labels.build([[0, 1]] * requests, [[1.0, 1.0]] * requests, 40)
    good = np.tile(np.arange(10, dtype=np.int32), (requests, 1))
    bad = np.tile(np.arange(20, 30, dtype=np.int32), (requests, 1))
    examination = [place**-0.5 for place in range(1, 11)]
    found = interleave(good, bad, labels, examination, 0)
    assert (found.wins + found.ties + found.losses) == pytest.approx(np.ones(requests))
    assert found.wins.mean() > 0.5 > 0.2 > found.losses.mean()
    mirrored = interleave(bad, good, labels, examination, 0)
    assert mirrored.losses.mean() == pytest.approx(found.wins.mean(), abs=0.03)
    same = interleave(good, good, labels, examination, 1)
    assert abs(same.wins.mean() - same.losses.mean()) < 0.02

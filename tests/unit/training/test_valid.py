import numpy as np
import pytest
import torch

from mrse.errors import TrainingFailed
from mrse.training.valid import Scores, check_collapse, effective_rank, recalls


def test_recall_is_the_share_of_the_relevant_that_are_found():
    top = np.array([[4, 2, 9], [1, 2, 3]])
    assert recalls(top, [np.array([2, 9, 7, 8]), np.array([5])]) == [0.5, 0.0]


def test_effective_rank():
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1.0)
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1e-3, 1e-3]))) == pytest.approx(1.0, abs=1e-3)


def scores(rank=20.0, **shares):
    even = {"vbert": 0.5, "ftatt": 0.5}
    return Scores(0.4, rank, even, even | shares)


def test_collapse_stops_a_run():
    check_collapse(scores().flat(), 0.01, 4.0)
    with pytest.raises(TrainingFailed, match=r"expert ftatt collapsed: its mean preference over items is 0\.0040"):
        check_collapse(scores(ftatt=0.004, vbert=0.996).flat(), 0.01, 4.0)
    with pytest.raises(TrainingFailed, match=r"effective rank 1\.50, below train\.min_rank = 4\.0"):
        check_collapse(scores(rank=1.5).flat(), 0.01, 4.0)

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mrse.errors import TrainingFailed
from mrse.training.valid import Scores, alignment, check_collapse, effective_rank, recalls, uniformity


def test_recall_is_the_share_of_the_relevant_that_are_found():
    top = np.array([[4, 2, 9], [1, 2, 3]])
    assert recalls(top, [np.array([2, 9, 7, 8]), np.array([5])]) == [0.5, 0.0]


def test_effective_rank():
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1.0)
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1e-3, 1e-3]))) == pytest.approx(1.0, abs=1e-3)


def test_alignment_is_the_mean_squared_distance_from_what_is_relevant():
    generator = torch.Generator().manual_seed(0)
    queries, items = (F.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (3, 20))
    relevant = [np.array([4]), np.array([0, 7, 19]), np.array([2, 3])]
    naive = [
        np.mean([float(((query - items[row]) ** 2).sum()) for row in rows])
        for query, rows in zip(queries, relevant, strict=True)
    ]
    assert alignment(queries, items, relevant) == pytest.approx(naive, rel=1e-5)
    assert alignment(items[:1], items, [np.array([0])]) == pytest.approx([0.0], abs=1e-6)


def test_uniformity_is_its_formula():
    x = F.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    pairs = [math.exp(-2.0 * float(((x[i] - x[j]) ** 2).sum())) for i in range(30) for j in range(30) if i != j]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)


def test_uniformity_of_known_shapes():
    assert uniformity(F.normalize(torch.ones(10, 4), dim=1)) == pytest.approx(0.0, abs=1e-6)
    assert uniformity(torch.eye(6)) == pytest.approx(-4.0)
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(poles) == pytest.approx(-8.0)
    assert uniformity(torch.eye(6)[:1]) == 0.0


def scores(rank=20.0, spread=-3.0, **shares):
    even = {"vbert": 0.5, "ftatt": 0.5}
    return Scores(0.4, rank, spread, 0.8, even, even | shares)


def test_collapse_stops_a_run():
    bounds = 0.01, 4.0, -0.5
    check_collapse(scores().flat(), *bounds)
    with pytest.raises(TrainingFailed, match=r"expert ftatt collapsed: its mean preference over items is 0\.0040"):
        check_collapse(scores(ftatt=0.004, vbert=0.996).flat(), *bounds)
    with pytest.raises(TrainingFailed, match=r"effective rank 1\.50, below train\.min_rank = 4\.0"):
        check_collapse(scores(rank=1.5).flat(), *bounds)
    with pytest.raises(TrainingFailed, match=r"uniformity -0\.412, above train\.max_uniformity = -0\.5"):
        check_collapse(scores(spread=-0.412).flat(), *bounds)


def test_vectors_in_a_narrow_cone_have_collapsed_whatever_their_rank():
    """What effective rank alone overlooks: every direction is used, by a hair, and all cosines are near 1."""
    x = F.normalize(torch.ones(1, 32) + 0.1 * torch.randn(500, 32, generator=torch.Generator().manual_seed(2)), dim=1)
    centred = x - x.mean(dim=0)
    assert effective_rank(centred) > 20 and uniformity(x) > -0.1
    with pytest.raises(TrainingFailed, match="uniformity"):
        check_collapse(scores(spread=uniformity(x)).flat(), 0.01, 1.0, -0.5)


def test_a_row_of_scores_names_uniformity_and_alignment():
    row = scores(spread=-2.5).flat()
    assert (row["uniformity"], row["alignment"]) == (-2.5, 0.8)
    assert "alignment" not in Scores(None, 9.0, -2.0, None, {}, {}).flat()

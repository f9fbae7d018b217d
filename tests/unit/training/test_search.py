import numpy as np
import torch
from torch.nn import functional as F

from mrse.training.search import nearest


def naive(query, items, k):
    scores = [round(float(query.double() @ item.double()), 7) for item in items]
    return sorted(range(len(items)), key=lambda row: (-scores[row], row))[:k]


def test_nearest_is_a_sort_by_score_then_row():
    generator = torch.Generator().manual_seed(0)
    distinct = F.normalize(torch.randn(40, 24, generator=generator), dim=1)
    items = distinct[torch.randint(0, 40, (301,), generator=generator)]  # every item some seven times
    queries = F.normalize(torch.randn(9, 24, generator=generator), dim=1)
    for k in (1, 10, 50, 301):
        assert nearest(queries, items, k).tolist() == [naive(query, items, k) for query in queries]


def test_a_smaller_catalogue_gives_all_it_has():
    assert nearest(torch.eye(2), torch.eye(2), 5).tolist() == [[0, 1], [1, 0]]


def test_among_equal_items_the_first_ids_are_kept():
    """However many there are, and whatever kernel their columns fall into."""
    items = F.normalize(torch.ones(1, 33), dim=1).repeat(1003, 1)
    items[500] = -items[500]
    found = nearest(F.normalize(torch.ones(3, 33), dim=1), items, 1003).numpy()
    wanted = [*(row for row in range(1003) if row != 500), 500]
    assert np.array_equal(found, np.array([wanted] * 3))

"""Exact nearest items with one rule for ties: score descending, then item id ascending.

Shapes: B queries, N items, D size of the vectors, K depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Cosines are told apart to so much: equal items tie, whatever the last bits of a blocked product are.
_GRAINS = 1e7


def nearest(query_BD: Tensor, item_ND: Tensor, k: int) -> Tensor:
    """Rows of the `k` items of largest inner product, best first, ties by row. Holds B x N x 16 bytes.

    Args:
        query_BD: unit vectors.
        item_ND: unit vectors in the order of item ids (`contract.read_items` gives it); float64 saves a cast per call.
        k: depth; all items come back when there are fewer.

    Returns:
        int64 `(B, min(k, N))`.
    """
    items = len(item_ND)
    score_BN = (query_BD.double() @ item_ND.double().T).mul_(_GRAINS).round_().long()
    # One whole number per item, each different: the score, then how early the row is.
    key_BN = score_BN.mul_(items).add_(torch.arange(items - 1, -1, -1))
    return key_BN.topk(min(k, items), dim=1).indices

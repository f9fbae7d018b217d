"""Exact nearest items with one rule for ties: score descending, then item id ascending.

Shapes: B queries, N items, X items of a block, D size of the vectors, K depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Cosines are told apart to so much: equal items tie, whatever the last bits of a blocked product are.
_GRAINS = 1e7
_BLOCK = 65_536


def nearest(query_BD: Tensor, item_ND: Tensor, k: int) -> Tensor:
    """Rows of the `k` items of largest inner product, best first, ties by row. Holds float64 scores of one block.

    Args:
        query_BD: unit vectors.
        item_ND: unit vectors in the order of item ids (`contract.read_items` gives it).
        k: depth; all items come back when there are fewer.

    Returns:
        int64 `(B, min(k, N))`.
    """
    N = len(item_ND)
    exact_BD = query_BD.double()
    best_BK = torch.zeros(len(query_BD), 0, dtype=torch.int64, device=item_ND.device)
    for start in range(0, N, _BLOCK):
        block_XD = item_ND[start : start + _BLOCK].double()
        # One whole number per item, each different: the score, then how early the row is.
        key_BX = (exact_BD @ block_XD.T).mul_(_GRAINS).round_().long().mul_(N)
        key_BX += torch.arange(N - 1 - start, N - 1 - start - len(block_XD), -1, device=item_ND.device)
        best_BK = torch.cat([best_BK, key_BX], dim=1).topk(min(k, start + len(block_XD)), dim=1).values
    return N - 1 - best_BK.remainder(N)

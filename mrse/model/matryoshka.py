"""Short vectors out of long ones: the first dimensions alone, for an index that must be small.

A model trained with `loss.matryoshka` puts what matters most first (Kusupati et al. 2022).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def prefix(vector_ND: Tensor, size: int) -> Tensor:
    """The first `size` dimensions, L2-normalised again; queries and items must be cut alike.

    Args:
        vector_ND: final vectors.
        size: from 1 to D.

    Returns:
        `(N, size)`.

    Raises:
        ValueError: the vectors do not have so many dimensions.

    >>> import torch
    >>> prefix(torch.tensor([[3.0, 4.0, 12.0]]), 2)
    tensor([[0.6000, 0.8000]])
    """
    if not 1 <= size <= vector_ND.shape[1]:
        raise ValueError(f"vectors of {vector_ND.shape[1]} dimensions have no prefix of {size}")
    return F.normalize(vector_ND[:, :size], dim=1)

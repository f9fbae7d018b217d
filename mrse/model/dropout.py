"""Dropout whose random bits cost a fifth of torch's: on a CPU torch draws a double for each number that it may drop."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Module):
    """Zero a share of the numbers in training and scale the rest up to keep their mean (Srivastava et al. 2014).

    The bits follow from one draw of torch's generator on the CPU, so they come again wherever its state is put back;
    a GPU makes others of it than a CPU.
    """

    def __init__(self, share: float) -> None:
        """Args: share: of the numbers, at least 0 and below 1; kept to one part in 65,536."""
        super().__init__()
        self._dropped = round(share * _LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; as it is outside training."""
        if not self.training or self._dropped == 0:
            return x
        seed = int(torch.randint(2**62, ()))
        kept = self._kept_here(x, seed) if x.device.type == "cpu" else self._kept_there(x, seed)
        return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - self._dropped))

    def _kept_here(self, x: Tensor, seed: int) -> Tensor:
        bits = np.random.Generator(np.random.SFC64(seed))
        return torch.from_numpy(bits.integers(0, _LEVELS, size=tuple(x.shape), dtype=np.uint16) >= self._dropped)

    def _kept_there(self, x: Tensor, seed: int) -> Tensor:
        bits = torch.Generator(x.device).manual_seed(seed)
        return torch.randint(0, _LEVELS, x.shape, generator=bits, device=x.device, dtype=torch.int32) >= self._dropped

"""Large batches through the experts in chunks (GradCache, Gao et al. 2021).

A softmax over a batch needs every encoding at once, but not every activation. The encodings are kept; what lies inside
the experts is computed again, chunk by chunk and with the random bits of the first time, when the gradient of a chunk's
encodings has arrived. The gradient is that of the whole batch; memory for activations is that of one chunk, for about
a third more time in the experts.

Shapes: B rows, E experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(encode: Callable[[int, int], Tensor], start: int, stop: int, size: int, device: torch.device) -> Tensor:
    """Encode B rows, `start` to `stop`, at most `size` at once; 0: all at once.

    Args:
        encode: rows `start` to `stop` as `(stop - start, E, H)`; called again in the backward pass, so it must depend
            on nothing but them, the weights and torch's generators of the CPU and the device.
        size: rows of a chunk.
        device: where `encode` computes.

    Returns:
        `(B, E, H)`.
    """
    if size == 0 or stop - start <= size:
        return encode(start, stop)
    firsts = range(start, stop, size)
    return torch.cat([_encoded_twice(encode, first, min(first + size, stop), device) for first in firsts])


def _encoded_twice(encode: Callable[[int, int], Tensor], start: int, stop: int, device: torch.device) -> Tensor:
    # Torch puts back the random bits of the CPU and of those devices that it finds among the arguments.
    anchor = torch.empty(0, device=device)
    encoded: Tensor = checkpoint(lambda _: encode(start, stop), anchor, use_reentrant=False, preserve_rng_state=True)
    return encoded

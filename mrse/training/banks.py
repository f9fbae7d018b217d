"""Banks: what the experts said of the whole shop at the last refresh.

Shapes: B rows of a batch, M remembered items, N items, Q distinct queries, E experts, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrse.model.encode import looked_up
from mrse.model.history import Memory
from mrse.training.data import Ints, Shoppers
from mrse.training.mining import Mined


@dataclass
class Banks:
    """Expert outputs of every item and every query, refreshed now and then without gradient.

    Attributes:
        items_NEH, queries_QEH: float16, where the model is.
        mined: hard negatives found with them; None where mining is off.
    """

    items_NEH: Tensor
    queries_QEH: Tensor
    mined: Mined | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for a checkpoint."""
        named = {"items": self.items_NEH, "queries": self.queries_QEH}
        if self.mined is not None:
            named["mined_pairs"] = torch.from_numpy(self.mined.pair_X)
            named["mined_items"] = torch.from_numpy(self.mined.item_XW)
        return named

    @classmethod
    def of(cls, named: Mapping[str, Tensor], device: torch.device) -> Banks:
        """What `tensors` gave, on a device."""
        mined = None
        if "mined_pairs" in named:
            mined = Mined(named["mined_pairs"].numpy(), named["mined_items"].numpy())
        return cls(named["items"].to(device), named["queries"].to(device), mined)


def shopper_memory(shoppers: Shoppers, rows_B: Ints, banks: Banks) -> Memory:
    """What the shoppers at `rows_B` remember, from the bank, cut to the longest."""
    item_BM = shoppers.item_ML[rows_B]
    longest = 1 + int(np.flatnonzero((item_BM >= 0).any(axis=0)).max(initial=0))
    item_BM = item_BM[:, :longest]
    bank_NEH = banks.items_NEH
    return Memory(
        memory_BMEH=looked_up(bank_NEH, torch.from_numpy(item_BM).to(bank_NEH.device)),
        known_BM=torch.from_numpy(item_BM >= 0),
        action_BM=torch.from_numpy(shoppers.action_ML[rows_B, :longest]),
        age_BM=torch.from_numpy(shoppers.age_ML[rows_B, :longest]),
    ).to(bank_NEH.device)

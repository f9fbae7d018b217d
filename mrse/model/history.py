"""What history says: attention over the items a shopper engaged with and the taste they show, and attention over the
queries that led to an item.

Both read expert outputs from a bank, not raw text: an item that a thousand shoppers touched is encoded once
(arXiv 2408.14968, user portraits on the level of modalities).

Shapes: B rows, M remembered things, E experts, X = M * E, H hidden size, W = E * H.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrse.model.arrays import ACTIONS, AGE_BUCKETS

_USUAL_COUNTS = 2.0  # as many remembered things as the usual weighs
_ECHO = 0.3


@dataclass(frozen=True)
class Memory:
    """What a row remembers.

    Attributes:
        memory_BMEH: expert outputs of the remembered things.
        known_BM: which places are filled.
        action_BM: action codes (`action_code`); shoppers only.
        age_BM: age buckets (`age_bucket`); shoppers only.
        weight_BM: how much each thing counts, non-negative; items only.
    """

    memory_BMEH: Tensor
    known_BM: Tensor
    action_BM: Tensor | None = None
    age_BM: Tensor | None = None
    weight_BM: Tensor | None = None

    def to(self, device: torch.device) -> Memory:
        """The same on a device."""
        there = {name: x.to(device, non_blocking=True) for name, x in vars(self).items() if x is not None}
        return replace(self, **there)


class TargetAttention(nn.Module):
    """For each expert, attention of a target over a memory (Zhou et al. 2018), with an answer for "nothing fits"."""

    def __init__(self, experts: int, hidden: int) -> None:
        super().__init__()
        # Starts as plain similarity: a query for shirts looks at shirts.
        self.look_EHH = nn.Parameter(torch.eye(hidden).repeat(experts, 1, 1) * 4.0)
        self.nothing_logit_E = nn.Parameter(torch.zeros(experts))
        self.nothing_EH = nn.Parameter(torch.zeros(experts, hidden))

    def forward(self, target_BEH: Tensor, memory_BMEH: Tensor, bias_BME: Tensor, known_BM: Tensor) -> Tensor:
        """Summaries in the memory's own space, `(B, E, H)`; the learned "nothing" where no place is known."""
        look_BEH = torch.einsum("beh,ehk->bek", target_BEH, self.look_EHH)
        # Every expert's look at every expert's memory, of which its own is kept: products over the memory as it lies.
        # Expert by expert, or in bfloat16, it would first be copied, which takes longer.
        B, M, E, H = memory_BMEH.shape
        memory_BXH = memory_BMEH.reshape(B, M * E, H)
        own_E1E = torch.eye(E, dtype=memory_BMEH.dtype, device=memory_BMEH.device)[:, None]
        with _without_autocast(memory_BXH.device.type):
            score_BEME = (look_BEH.to(memory_BXH.dtype) @ memory_BXH.transpose(1, 2)).view(B, E, M, E)
        score_BME = (score_BEME * own_E1E).sum(dim=3).transpose(1, 2) + bias_BME
        score_BME = score_BME.masked_fill(~known_BM[:, :, None], float("-inf"))
        nothing_B1E = self.nothing_logit_E.expand(target_BEH.shape[0], 1, -1)
        share_BME = torch.cat([score_BME, nothing_B1E], dim=1).softmax(dim=1)
        return _summed(share_BME[:, :-1], memory_BMEH) + share_BME[:, -1, :, None] * self.nothing_EH


def _summed(share_BME: Tensor, memory_BMEH: Tensor) -> Tensor:
    """For each expert the sum of its memory by its shares, `(B, E, H)`; see `TargetAttention.forward`."""
    B, M, E, H = memory_BMEH.shape
    own_E1E = torch.eye(E, dtype=memory_BMEH.dtype, device=memory_BMEH.device)[:, None]
    share_BEME = share_BME.transpose(1, 2)[:, :, :, None] * own_E1E
    with _without_autocast(memory_BMEH.device.type):
        summed_BEH: Tensor = share_BEME.reshape(B, E, M * E) @ memory_BMEH.reshape(B, M * E, H)
    return summed_BEH


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Products in the precision of their numbers."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()  # an exported graph keeps no trace of it
    return torch.autocast(device_type, enabled=False)


class Taste(nn.Module):
    """What a shopper likes, whatever is asked for: how what was engaged with differs from the usual, of which only what
    sets things apart within their kind stays (`Mrse.start_fusion`).

    The metric (A.T @ A, of the map A onto what sets apart) is taken from the catalogue and not learned: logs are too
    short to learn it without learning them by heart.
    """

    metric_WW: Tensor
    usual_EH: Tensor

    def __init__(self, experts: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("usual_EH", torch.zeros(experts, hidden))
        self.register_buffer("metric_WW", torch.zeros(experts * hidden, experts * hidden))
        self.usual_logit_E = nn.Parameter(torch.full((experts,), _USUAL_COUNTS).log())

    def forward(self, memory_BMEH: Tensor, bias_BME: Tensor, known_BM: Tensor) -> Tensor:
        """`(B, E, H)`; zeros where no place is known. Few things say little: the mean is drawn towards the usual."""
        score_BME = bias_BME.masked_fill(~known_BM[:, :, None], float("-inf"))
        usual_B1E = self.usual_logit_E.expand(known_BM.shape[0], 1, -1)
        share_BME = torch.cat([score_BME, usual_B1E], dim=1).softmax(dim=1)[:, :-1]
        mean_BEH = _summed(share_BME, memory_BMEH) - share_BME.sum(dim=1)[:, :, None] * self.usual_EH
        return (mean_BEH.flatten(1) @ self.metric_WW).view_as(mean_BEH)


class ShopperHistory(nn.Module):
    """What the shopper's past adds to a query, per expert: what fits the query, and the taste, by action and age.

    Both are in the space of the query itself, and how much of them is added hangs on the query: a vague one leaves more
    to the past.
    """

    def __init__(self, experts: int, hidden: int, ages: bool = True) -> None:
        """Args: ages: whether ages count; otherwise their biases stay at zero."""
        super().__init__()
        self.attention = TargetAttention(experts, hidden)
        self.taste = Taste(experts, hidden)
        self.action = nn.Embedding(len(ACTIONS) + 1, 2 * experts)
        self.age = nn.Embedding(AGE_BUCKETS, 2 * experts)
        self.echo_E = nn.Parameter(torch.full((experts,), _ECHO))
        self.trust = nn.Linear(experts * hidden, 1)
        for layer in (self.action, self.age, self.trust):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.trust.bias)
        self.age.requires_grad_(ages)

    def forward(self, query_BEH: Tensor, memory: Memory) -> Tensor:
        """`(B, E, H)`."""
        if memory.action_BM is None or memory.age_BM is None:
            raise ValueError("a shopper's memory needs actions and ages")
        bias_BMX = self.action(memory.action_BM) + self.age(memory.age_BM)
        fit_BME, taste_BME = bias_BMX.chunk(2, dim=2)
        fitting_BEH = self.attention(query_BEH, memory.memory_BMEH, fit_BME, memory.known_BM)
        taste_BEH = self.taste(memory.memory_BMEH, taste_BME, memory.known_BM)
        trust_B11 = 2.0 * torch.sigmoid(self.trust(query_BEH.flatten(1)).float())[:, :, None]
        added_BEH: Tensor = trust_B11 * (self.echo_E[:, None] * fitting_BEH + taste_BEH)
        return added_BEH


class ItemHistory(nn.Module):
    """What an item was found by, per expert: the queries that led to it, weighed by how often."""

    def __init__(self, experts: int, hidden: int) -> None:
        super().__init__()
        self.attention = TargetAttention(experts, hidden)
        self.trust_E = nn.Parameter(torch.ones(experts))

    def forward(self, item_BEH: Tensor, memory: Memory) -> Tensor:
        """`(B, E, H)`."""
        if memory.weight_BM is None:
            raise ValueError("an item's memory needs weights")
        bias_BME = torch.log1p(memory.weight_BM)[:, :, None] * F.softplus(self.trust_E)
        out_BEH: Tensor = self.attention(item_BEH, memory.memory_BMEH, bias_BME, memory.known_BM)
        return out_BEH

"""The two towers: experts, histories, modality preferences, and the fusion into one vector (DSSM).

The query side comes in two halves that can be computed apart and ahead: the query part (`encode_texts`) and the shopper
part (a `Memory` of bank rows). Only `fuse_queries`, which is small, needs both.

Shapes: B rows, E experts, H hidden size, W = E * H, X as many as own and history are together, D size of the final
vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mrse.config import ModelConfig
from mrse.model.dropout import Dropout
from mrse.model.experts import Block, Experts, FtAtt, VBert
from mrse.model.history import ItemHistory, Memory, ShopperHistory
from mrse.model.inputs import Texts, TextTable

_PREFERENCE_HIDDEN = 32
_HISTORY_START, _TASTE_START = 0.3, 2.0
_RIDGE = 0.01


@dataclass(frozen=True)
class Fused:
    """Final vectors.

    Attributes:
        vector_BD: L2-normalised.
        preference_BE: how much each expert counted; rows sum to 1.
    """

    vector_BD: Tensor
    preference_BE: Tensor


class Preferences(nn.Module):
    """Softmax weights over the experts, from what each says of a row and its history (modality preferences)."""

    def __init__(self, experts: int, hidden: int) -> None:
        super().__init__()
        self.inner_EHK = nn.Parameter(torch.randn(experts, 2 * hidden, _PREFERENCE_HIDDEN) * (2 * hidden) ** -0.5)
        self.outer_EK = nn.Parameter(torch.zeros(experts, _PREFERENCE_HIDDEN))
        self.bias_E = nn.Parameter(torch.zeros(experts))

    def forward(self, own_BEH: Tensor, history_BEH: Tensor | None) -> Tensor:
        """`(B, E)`; starts uniform."""
        said_BEX = own_BEH if history_BEH is None else torch.cat([own_BEH, history_BEH], dim=2)
        inner_EXK = self.inner_EHK[:, : said_BEX.shape[2]]
        inner_BEK = torch.tanh(torch.einsum("bex,exk->bek", said_BEX, inner_EXK))
        return ((inner_BEK * self.outer_EK).sum(dim=2) + self.bias_E).softmax(dim=1)


class Fusion(nn.Module):
    """Expert outputs times preferences, with the history's, projected to one unit vector (DSSM, Huang et al. 2013).

    A shopper's history is in the space of the query and is added to it. An item's is concatenated, with a projection of
    its own that starts as a quiet echo of the item's: there is much to learn from, and its words are other people's.
    A linear part that starts from the principal directions of the aligned experts (`start_from`), and a residual part
    that starts at zero: fusing begins with what aligning has learned.
    """

    def __init__(self, experts: int, hidden: int, dim: int, dropout: float, concatenates: bool) -> None:
        super().__init__()
        width = experts * hidden
        self.own = nn.Linear(width, dim, bias=False)
        self.history = nn.Linear(width, dim, bias=False) if concatenates else None
        self.inner = nn.Linear(2 * width if concatenates else width, 2 * dim)
        self.outer = nn.Linear(2 * dim, dim)
        self.dropout = Dropout(dropout)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        nn.init.orthogonal_(self.own.weight)
        self.start_from(self.own.weight)

    @torch.no_grad()
    def start_from(self, directions_DW: Tensor) -> None:
        """Set the linear part, `(D, E * H)`."""
        self.own.weight.copy_(directions_DW)
        if self.history is not None:
            self.history.weight.copy_(_HISTORY_START * directions_DW)

    def forward(self, own_BEH: Tensor, history_BEH: Tensor | None, preference_BE: Tensor) -> Tensor:
        """`(B, D)`, L2-normalised."""
        if history_BEH is not None and self.history is None:
            own_BEH = own_BEH + history_BEH
        own_BW = (own_BEH * (own_BEH.shape[1] * preference_BE)[:, :, None]).flatten(1)
        linear_BD, said_BX = self.own(own_BW).float(), own_BW
        if history_BEH is not None and self.history is not None:
            history_BW = history_BEH.flatten(1)
            linear_BD, said_BX = linear_BD + self.history(history_BW), torch.cat([own_BW, history_BW], dim=1)
        return F.normalize(linear_BD + self.outer(self.dropout(F.gelu(self.inner(said_BX)))), dim=1)


class Tower(nn.Module):
    """One side after its experts: history, preferences, fusion."""

    def __init__(self, model: ModelConfig, experts: int, history: ShopperHistory | ItemHistory | None) -> None:
        super().__init__()
        self.history = history
        self.preferences = Preferences(experts, model.hidden) if model.preferences else None
        concatenates = isinstance(history, ItemHistory)
        self.fusion = Fusion(experts, model.hidden, model.dim, model.dropout, concatenates)

    def forward(self, own_BEH: Tensor, memory: Memory | None) -> Fused:
        """Fuse one side; `memory` is ignored where the history is switched off, and must be given otherwise."""
        history_BEH = None
        if self.history is not None:
            if memory is None:
                raise ValueError("a tower with a history needs a memory, which may be empty")
            history_BEH = self.history(own_BEH, memory)
        if self.preferences is not None:
            preference_BE = self.preferences(own_BEH, history_BEH)
        else:
            preference_BE = own_BEH.new_full(own_BEH.shape[:2], 1.0 / own_BEH.shape[1])
        return Fused(self.fusion(own_BEH, history_BEH, preference_BE), preference_BE)


class Mrse(nn.Module):
    """The whole model.

    Args:
        model: sizes and switches.
        vocab_size: word pieces.
        buckets: hashed n-grams.
        image_dim: V of the frozen image encoder.
        image_tokens: T of the frozen image encoder.
        text_encoder: a Hugging Face encoder in place of Light-Bert's own layers.
    """

    def __init__(
        self,
        model: ModelConfig,
        vocab_size: int,
        buckets: int,
        image_dim: int,
        image_tokens: int,
        text_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = model
        self.experts = Experts(model, vocab_size, buckets, image_dim, image_tokens, text_encoder)
        E, H = len(self.experts.names), model.hidden
        self.query_tower = Tower(model, E, ShopperHistory(E, H, model.history_ages) if model.user_history else None)
        self.item_tower = Tower(model, E, ItemHistory(E, H) if model.item_history else None)

    @property
    def device(self) -> torch.device:
        """Where the weights are. Texts and pictures are brought there; a bank and a `Memory` must be there."""
        return self.experts.tower_TEHH.device

    def fit_shop(self, texts: TextTable, sample_PTV: Tensor) -> None:
        """Take from a shop what needs no learning: how rare its words are, how its image features spread.

        Args:
            texts: the items' texts.
            sample_PTV: image features of some of its pictures; may be none.
        """
        for module in self.modules():
            if isinstance(module, VBert):
                module.fit_pictures(sample_PTV)
            if isinstance(module, FtAtt):
                count_R = torch.from_numpy(texts.word_counts(len(module.log_rarity_R) - 1))
                module.fit_words(count_R, len(texts))

    def compile_layers(self) -> None:
        """Compile the transformer layers (torch.compile, of any size); what a package holds stays the same."""
        for module in self.modules():
            if isinstance(module, Block):
                module.compile(dynamic=True)

    def encode_texts(self, texts: Texts) -> Tensor:
        """The query part: expert outputs of queries, `(B, E, H)`. A query has no picture."""
        # The shape, since len() would fix the number in an exported graph.
        return self.encode(texts, texts.tokens_BL.shape[0], None, None)

    def encode_items(self, texts: Texts, images_BTV: Tensor | None, pictured_B: Tensor | None) -> Tensor:
        """Expert outputs of items, `(B, E, H)`; see `Experts.forward`."""
        return self.encode(texts, 0, images_BTV, pictured_B)

    def encode(
        self,
        texts: Texts,
        queries: int,
        images_ITV: Tensor | None,
        pictured_I: Tensor | None,
        vbert_texts: Texts | None = None,
    ) -> Tensor:
        """Expert outputs of queries, then items, in one pass, `(B, E, H)`; see `Experts.forward`."""
        if not self.config.images:
            images_ITV = pictured_I = None
        out_BEH: Tensor = self.experts(
            texts.to(self.device),
            queries,
            None if images_ITV is None else images_ITV.to(self.device, non_blocking=True),
            None if pictured_I is None else pictured_I.to(self.device, non_blocking=True),
            None if vbert_texts is None else vbert_texts.to(self.device),
        )
        return out_BEH

    def fuse_queries(self, query_BEH: Tensor, memory: Memory | None) -> Fused:
        """Query part and shopper part to final vectors."""
        fused: Fused = self.query_tower(query_BEH, memory)
        return fused

    def fuse_items(self, item_BEH: Tensor, memory: Memory | None) -> Fused:
        """Item part and the queries that led there to final vectors."""
        fused: Fused = self.item_tower(item_BEH, memory)
        return fused

    @torch.no_grad()
    def start_fusion(self, sample_BEH: Tensor, kind_B: Tensor) -> None:
        """Start both fusions from what the aligned experts say of a sample of items, `(B, E, H)`.

        The linear part: the D principal directions. Taste: what sets items apart from others of their kind, as what a
        shopper likes in shoes is not that they are shoes.

        Args:
            sample_BEH: expert outputs.
            kind_B: equal numbers are items of one kind; where all are equal, taste stays silent.
        """
        wide_BW = sample_BEH.flatten(1)
        _, vectors_WW = torch.linalg.eigh(wide_BW.T @ wide_BW)
        directions_DW = vectors_WW.T.flip(0)[: self.config.dim]
        if len(directions_DW) < self.config.dim:
            directions_DW = F.pad(directions_DW, (0, 0, 0, self.config.dim - len(directions_DW)))
        self.query_tower.fusion.start_from(directions_DW)
        self.item_tower.fusion.start_from(directions_DW)
        history = self.query_tower.history
        if isinstance(history, ShopperHistory) and len(torch.unique(kind_B)) > 1:
            history.taste.usual_EH.copy_(sample_BEH.mean(dim=0))
            apart_WW = set_apart(wide_BW, kind_B)
            # The map once for what is remembered and once, transposed, for the items that it will be compared with.
            history.taste.metric_WW.copy_(_TASTE_START * apart_WW.T @ apart_WW)


def set_apart(wide_BW: Tensor, kind_B: Tensor) -> Tensor:
    """What sets things apart from the mean of their kind, as a linear map of what is said of them, `(W, W)`: ridge
    regression. Directions that only tell kinds from each other go to zero.

    Args:
        wide_BW: what is said of B things.
        kind_B: equal numbers are things of one kind.
    """
    _, kind_B = torch.unique(kind_B, return_inverse=True)
    count_K1 = kind_B.bincount()[:, None]
    mean_KW = wide_BW.new_zeros(len(count_K1), wide_BW.shape[1]).index_add_(0, kind_B, wide_BW) / count_K1
    centred_BW = wide_BW - wide_BW.mean(dim=0)
    gram_WW = centred_BW.T @ centred_BW
    gram_WW.diagonal().add_(_RIDGE * gram_WW.diagonal().mean())
    map_WW: Tensor = torch.linalg.solve(gram_WW, centred_BW.T @ (wide_BW - mean_KW[kind_B])).T
    return map_WW

"""Scores during training: recall on the validation requests by exact search (ties by item id), and signs of collapse.

Shapes: M requests, N items, D size of the vectors, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mrse.errors import TrainingFailed
from mrse.model.encode import fuse_catalogue, inference
from mrse.model.matryoshka import prefix
from mrse.training.banks import Banks, shopper_memory
from mrse.training.data import Ints
from mrse.training.search import nearest
from mrse.training.steps import Steps

_BATCH = 64
_SAMPLE = 2048
_RANK, _UNIFORMITY = "effective_rank", "uniformity"
_QUERY_SHARE, _ITEM_SHARE = "query_share_", "item_share_"


@dataclass(frozen=True)
class Scores:
    """One evaluation.

    Attributes:
        recall: mean share of a request's relevant items among its k nearest; None without requests.
        rank: effective rank of the item vectors.
        uniformity: of the item vectors; see `uniformity`.
        alignment: mean of `alignment` over the requests; None without requests.
        query_share, item_share: mean preference of each expert, by name; queries only where there are requests.
        prefix_recall: as `recall`, of vectors cut to each size in `loss.matryoshka`.
    """

    recall: float | None
    rank: float
    uniformity: float
    alignment: float | None
    query_share: dict[str, float]
    item_share: dict[str, float]
    prefix_recall: dict[int, float] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """As one row of metrics."""
        row = {} if self.recall is None else {"recall": self.recall}
        row |= {f"recall_{size}": recall for size, recall in self.prefix_recall.items()}
        row |= {_RANK: self.rank, _UNIFORMITY: self.uniformity}
        row |= {} if self.alignment is None else {"alignment": self.alignment}
        row |= {_QUERY_SHARE + name: share for name, share in self.query_share.items()}
        return row | {_ITEM_SHARE + name: share for name, share in self.item_share.items()}


def evaluate(steps: Steps, banks: Banks, k: int) -> Scores:
    """Score the model as it is. Costs about 0.2 s per 1,000 requests over 5,000 items, on fresh banks."""
    shop, model = steps.shop, steps.model
    requests = shop.requests
    # The oldest profiles that any request may see: never too new for one.
    epoch = int(requests.epoch_M.min(initial=len(shop.profiles) - 1))
    item_ND, share_NE = fuse_catalogue(model, banks.items_NEH, shop.item_queries(epoch), banks.queries_QEH, 2048)
    sample_S = torch.linspace(0, len(item_ND) - 1, min(len(item_ND), _SAMPLE)).long()
    sample_SD = item_ND[sample_S.to(item_ND.device)]
    shares, distances = [], []
    sizes = (*steps.config.loss.matryoshka, item_ND.shape[1])
    short = {size: item_ND if size == item_ND.shape[1] else prefix(item_ND, size) for size in sizes}
    hits: dict[int, list[float]] = {size: [] for size in sizes}
    with inference(model):
        for start in range(0, len(requests), _BATCH):
            rows_B = np.arange(start, min(start + _BATCH, len(requests)))
            own_BEH = banks.queries_QEH[torch.from_numpy(requests.query_M[rows_B]).to(model.device)].float()
            fused = model.fuse_queries(own_BEH, shopper_memory(requests.shoppers, rows_B, banks))
            relevant = [requests.relevant[row] for row in rows_B]
            for size in sizes:
                top_BK = nearest(prefix(fused.vector_BD, size), short[size], k).cpu().numpy()
                hits[size] += recalls(top_BK, relevant)
            distances += alignment(fused.vector_BD, item_ND, relevant)
            shares.append(fused.preference_BE)
    names = model.experts.names
    recall = {size: float(np.mean(found)) for size, found in hits.items() if found}
    return Scores(
        recall=recall.pop(sizes[-1], None),
        rank=effective_rank(sample_SD),
        uniformity=uniformity(sample_SD),
        alignment=float(np.mean(distances)) if distances else None,
        query_share=dict(zip(names, torch.cat(shares).mean(dim=0).tolist(), strict=True)) if shares else {},
        item_share=dict(zip(names, share_NE.mean(dim=0).tolist(), strict=True)),
        prefix_recall=recall,
    )


def recalls(top_BK: Ints, relevant: Sequence[Ints]) -> list[float]:
    """Share of each row's relevant items that are among its nearest."""
    return [float(np.isin(wanted, top).mean()) for top, wanted in zip(top_BK, relevant, strict=True)]


def alignment(query_BD: Tensor, item_ND: Tensor, relevant: Sequence[Ints]) -> list[float]:
    """Mean squared distance of each query from its relevant items: 0 is perfect, 2 is what unrelated vectors have
    (Wang and Isola 2020, with the exponent 2).

    Args:
        query_BD: unit vectors.
        item_ND: unit vectors.
        relevant: item rows of each query, at least one.
    """
    wanted_BD = torch.stack([item_ND[torch.from_numpy(rows).to(item_ND.device)].mean(dim=0) for rows in relevant])
    distances: list[float] = (2.0 - 2.0 * (query_BD * wanted_BD).sum(dim=1)).tolist()
    return distances


def uniformity(x_ND: Tensor) -> float:
    """How evenly unit vectors spread over the sphere: log of the mean over pairs of exp(-2 * squared distance) (Wang
    and Isola 2020). 0 when all are one point; the lower the better, about -4 when unrelated; 0 for fewer than two.
    """
    rows = len(x_ND)
    if rows < 2:
        return 0.0
    closeness_NN = torch.exp(4.0 * (x_ND.double() @ x_ND.double().T) - 4.0)
    pairs = (closeness_NN.sum() - closeness_NN.diagonal().sum()) / (rows * (rows - 1))
    return float(torch.log(pairs))


def effective_rank(x_ND: Tensor) -> float:
    """Over how many directions vectors spread: exp of the entropy of the squared singular values' shares (Roy and
    Vetterli 2007). 1 when all are parallel, D when they fill the space evenly.

    >>> round(effective_rank(torch.eye(4)), 3)
    4.0
    """
    share = torch.linalg.svdvals(x_ND.double()) ** 2
    share = share / share.sum().clamp(min=1e-12)
    share = share[share > 1e-12]
    return float(torch.exp(-(share * share.log()).sum()))


def check_collapse(row: Mapping[str, float], min_share: float, min_rank: float, max_uniformity: float) -> None:
    """Stop a run whose model has given up on an expert or maps all items to one place.

    Args:
        row: `Scores.flat` of the weights that are kept.
        min_share: smallest mean preference of an expert.
        min_rank: smallest effective rank of the item vectors.
        max_uniformity: largest uniformity of the item vectors.

    Raises:
        TrainingFailed: naming the expert and its share, the rank, or the uniformity.
    """
    for head, side in ((_QUERY_SHARE, "queries"), (_ITEM_SHARE, "items")):
        for key, share in row.items():
            if key.startswith(head) and share < min_share:
                name = key.removeprefix(head)
                raise TrainingFailed(
                    f"expert {name} collapsed: its mean preference over {side} is {share:.4f}, below "
                    f"train.min_expert_share = {min_share}; switch it off (train.model.experts.{name}) or train longer"
                )
    if row[_RANK] < min_rank:
        raise TrainingFailed(
            f"the item vectors collapsed: effective rank {row[_RANK]:.2f}, below train.min_rank = {min_rank}; "
            "lower train.learning_rate or raise train.loss.catalogue_negatives"
        )
    if row[_UNIFORMITY] > max_uniformity:
        raise TrainingFailed(
            f"the item vectors collapsed: uniformity {row[_UNIFORMITY]:.3f}, above train.max_uniformity = "
            f"{max_uniformity} (0 is a single point); lower train.learning_rate or raise train.loss.catalogue_negatives"
        )

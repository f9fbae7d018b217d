"""The hybrid loss, alpha * MNSCE + beta * HNST (arXiv 2408.14968, section "Hybrid loss").

It knows embeddings and masks, no tower.

Shapes: B queries, C candidate items, K hard negatives of a query, D size of the vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mnsce(
    query_BD: Tensor,
    candidate_CD: Tensor,
    target_B: Tensor,
    temperature: float,
    log_q_C: Tensor | None = None,
    excluded_BC: Tensor | None = None,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy over mixed negatives: items of the batch and items drawn from the catalogue.

    Candidates are a sample. One that is drawn often would be pushed away too often, so the logarithm of how often a
    candidate is expected in the sample (`log_q_C`) is subtracted from its logit, the target's included; the loss then
    estimates the softmax over the whole catalogue (Yi et al. 2019; Yang et al. 2020 for mixed negatives).

    Args:
        query_BD: unit vectors.
        candidate_CD: unit vectors; each item once.
        target_B: the column of each query's positive.
        temperature: cosines are divided by it.
        log_q_C: log of each candidate's expected count in a sample; None: no correction.
        excluded_BC: candidates that are no negatives of a query, such as its other known positives; None: none.
        weight_B: weight of each query; None: all equal.

    Returns:
        A scalar, the weighted mean over the queries.

    Raises:
        ValueError: shapes do not fit, or (on a CPU) a query's own target is excluded.
    """
    B, C = len(query_BD), len(candidate_CD)
    if target_B.shape != (B,) or (log_q_C is not None and log_q_C.shape != (C,)):
        raise ValueError(f"targets {tuple(target_B.shape)} or logQ do not fit {B} queries and {C} candidates")
    logits_BC = query_BD @ candidate_CD.T / temperature
    if log_q_C is not None:
        logits_BC = logits_BC - log_q_C
    if excluded_BC is not None:
        if excluded_BC.shape != (B, C):
            raise ValueError(f"exclusions {tuple(excluded_BC.shape)} do not fit {B} queries and {C} candidates")
        # A GPU is not waited for: there such a query's loss is infinite.
        if excluded_BC.device.type == "cpu" and bool(excluded_BC[torch.arange(B), target_B].any()):
            raise ValueError("a query's own positive is excluded from its candidates")
        logits_BC = logits_BC.masked_fill(excluded_BC, float("-inf"))
    return _mean(F.cross_entropy(logits_BC, target_B, reduction="none"), weight_B)


def hnst(
    query_BD: Tensor,
    positive_BD: Tensor,
    negative_BKD: Tensor,
    known_BK: Tensor,
    margin: float,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Triplet loss (Schroff et al. 2015) over hard negatives: a positive must beat each by a margin of cosine.

    Args:
        query_BD: unit vectors.
        positive_BD: unit vectors.
        negative_BKD: unit vectors of items that were shown and passed over, or judged bad.
        known_BK: which of them exist; queries have different numbers, or none.
        margin: by how much a positive must win.
        weight_B: weight of each query; None: all equal.

    Returns:
        A scalar: the mean over a query's known negatives, then the weighted mean over the queries that have any;
        0 (with a zero gradient) when none has.

    Raises:
        ValueError: shapes do not fit.
    """
    if known_BK.shape != negative_BKD.shape[:2] or positive_BD.shape != query_BD.shape:
        raise ValueError(f"masks {tuple(known_BK.shape)} do not fit negatives {tuple(negative_BKD.shape)}")
    positive_B1 = (query_BD * positive_BD).sum(dim=1, keepdim=True)
    negative_BK = torch.einsum("bd,bkd->bk", query_BD, negative_BKD)
    short_BK = F.relu(margin - positive_B1 + negative_BK).masked_fill(~known_BK, 0.0)
    count_B = known_BK.sum(dim=1)
    has_B = (count_B > 0).to(short_BK.dtype)
    weight_B = has_B if weight_B is None else has_B * weight_B
    return (short_BK.sum(dim=1) / count_B.clamp(min=1) * weight_B).sum() / weight_B.sum().clamp(min=1e-12)


def _mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    if weight_B is None:
        return loss_B.mean()
    return (loss_B * weight_B).sum() / weight_B.sum().clamp(min=1e-12)

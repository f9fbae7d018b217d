"""The two kinds of step: align the experts, then train the fusion over them.

Shapes: B rows of a batch (examples, then self-made pairs), P distinct positives, C candidates (the positives, then
items drawn from the catalogue), K hard negatives of a row, J distinct ones of the batch, E experts, H hidden, D size of
the vectors, N items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrse.config import TrainConfig
from mrse.device import fast_at_bfloat16
from mrse.model.encode import item_bank, query_bank
from mrse.model.history import Memory
from mrse.model.inputs import Texts, concatenated
from mrse.model.loss import hnst, mnsce
from mrse.model.matryoshka import prefix
from mrse.model.retriever import Retriever
from mrse.training.augment import drop_modalities, hide_words
from mrse.training.banks import Banks, shopper_memory
from mrse.training.batches import Batch, Batches
from mrse.training.chunks import in_chunks
from mrse.training.data import Ints, Shop
from mrse.training.distributed import ALONE, World
from mrse.training.mining import Mined

_BANK_BATCH = 512
_FUSION_SAMPLE = 4096
_ROWS = 64


class Steps:
    """Losses of a step, from its number, on the device that the model is on."""

    def __init__(self, config: TrainConfig, retriever: Retriever, shop: Shop, world: World = ALONE) -> None:
        self.config = config
        self.world = world
        self.model = retriever.model
        self.shop = shop
        self.batches = Batches(config, retriever, shop)
        self._device = self.model.device
        self._bfloat16 = use_bfloat16(config.precision, self._device)

    def precision(self) -> AbstractContextManager[object]:
        """Where experts and fusion run: bfloat16 products where the device is fast at them, weights in float32."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16)

    def refresh(self) -> Banks:
        """New banks, every process its part. Costs about as much as 20 steps for 5,000 items."""
        shop, gather = self.shop, self.world.gather
        items, queries = self.world.share(len(shop.item_texts)), self.world.share(len(shop.query_texts))
        with self.precision():
            return Banks(
                gather(item_bank(self.model, shop.item_texts, shop.pictures, _BANK_BATCH, items)),
                gather(query_bank(self.model, shop.query_texts, _BANK_BATCH, queries)),
            )

    def start_fusion(self, banks: Banks) -> None:
        """Start the fusion from what the experts say of a sample of the items, of which the category is the kind."""
        rows = np.linspace(0, len(banks.items_NEH) - 1, _FUSION_SAMPLE).astype(np.int64)
        sample_BEH = banks.items_NEH[self._there(rows)].float()
        self.model.start_fusion(sample_BEH, self._there(self.shop.category_N[rows]))

    def mine(self, banks: Banks, step: int) -> Mined | None:
        """Hard negatives for the examples of the steps from `step` to the next refresh; None where mining is off."""
        miner = self.batches.miner
        if miner is None:
            return None
        end = min(step + self.config.bank_refresh_steps, self.config.align_steps + self.config.fuse_steps)
        drawn = (self.batches.sampler.draw(later).example_rows for later in range(step, end))
        pairs = miner.lacking(np.concatenate(list(drawn)))
        own = pairs[self.world.share(len(pairs))]
        found = miner.mine(self.model, banks.items_NEH, banks.queries_QEH, self.shop.item_queries, own)
        return Mined(pairs, self.world.gather(torch.from_numpy(found.item_XW)).numpy())

    def align(self, step: int) -> dict[str, Tensor]:
        """Phase 1: each expert alone matches queries and items by a softmax over the batch; their mean."""
        batch = self.batches.make(step, reads_shoppers=False)
        query_BEH, positive_PEH = self._encode(batch)
        target_B, weight_B = self._there(batch.target_B), self._there(batch.weight_B)
        log_q_P, excluded_BP = self._corrections(batch, batch.positives_P, 0)
        temperature = self.config.loss.temperature
        losses = {
            f"align_{name}": mnsce(
                query_BEH[:, place], positive_PEH[:, place], target_B, temperature, log_q_P, excluded_BP, weight_B
            )
            for place, name in enumerate(self.model.experts.names)
        }
        return {"loss": torch.stack(list(losses.values())).mean(), **losses}

    def fuse(self, step: int, banks: Banks) -> dict[str, Tensor]:
        """Phase 2: the hybrid loss on fused vectors.

        Catalogue draws, hard negatives and histories come from the bank: a stale negative costs a gather, a fresh one
        two transformers (cross-batch memory, Wang et al. 2020). A stale negative must only ever meet a stale positive,
        or telling old from new would be all that is learned. So MNSCE is the mean of two softmaxes: over the batch's
        own items, encoded anew with gradient, and over the same items and the catalogue draws as the bank knows them.
        """
        loss = self.config.loss
        batch = self.batches.make(step, reads_shoppers=True)
        query_BEH, positive_PEH = self._encode(batch)
        items_C = self.batches.candidates(batch)
        hard_J, place_BK = self.batches.hard(batch, banks.mined)
        with self.precision():
            fresh_PD, banked_CD, hard_JD = self._fuse_items(batch, positive_PEH, items_C, hard_J, banks)
            query_BD = self.model.fuse_queries(query_BEH, self._shopper_memory(batch, banks)).vector_BD
        parts: dict[str, Tensor] = {}
        if loss.alpha:
            pools = (fresh_PD, batch.positives_P, 0), (banked_CD, items_C, loss.catalogue_negatives)
            parts |= self._mnsce(query_BD, pools, batch)
        if loss.beta:
            parts["hnst"] = self._hnst(query_BD, banked_CD, hard_JD, place_BK, batch)
        beta = loss.beta * hard_share(self.config, step)
        total = loss.alpha * parts.get("mnsce", torch.zeros(())) + beta * parts.get("hnst", torch.zeros(()))
        return {"loss": total, **parts}

    def _mnsce(self, query_BD: Tensor, pools: Sequence[tuple[Tensor, Ints, int]], batch: Batch) -> dict[str, Tensor]:
        """MNSCE, the mean over pools of candidates; with `loss.matryoshka` the weighted mean of it on whole vectors
        (weight 1) and on their prefixes, and each of these by its size (Kusupati et al. 2022, equation 1).

        Args:
            query_BD: unit vectors.
            pools: unit vectors of candidates, their item rows, and how many of them were drawn from the catalogue.
            batch: whose queries they are.
        """
        loss, target_B, weight_B = self.config.loss, self._there(batch.target_B), self._there(batch.weight_B)
        corrections = [self._corrections(batch, items_C, drawn) for _, items_C, drawn in pools]

        def mean(asked_BD: Tensor, candidates: Sequence[Tensor]) -> Tensor:
            softmaxes = [
                mnsce(asked_BD, candidate_CD, target_B, loss.temperature, log_q_C, excluded_BC, weight_B)
                for candidate_CD, (log_q_C, excluded_BC) in zip(candidates, corrections, strict=True)
            ]
            return torch.stack(softmaxes).mean()

        candidates = [candidate_CD for candidate_CD, _, _ in pools]
        whole = mean(query_BD, candidates)
        if not loss.matryoshka:
            return {"mnsce": whole}
        short = {size: mean(prefix(query_BD, size), [prefix(c, size) for c in candidates]) for size in loss.matryoshka}
        weight = loss.matryoshka_weight
        total = (whole + weight * torch.stack(list(short.values())).sum()) / (1.0 + weight * len(short))
        by_size = {f"mnsce_{size}": value for size, value in (short | {query_BD.shape[1]: whole}).items()}
        return {"mnsce": total, **by_size}

    def _hnst(self, query_BD: Tensor, banked_CD: Tensor, hard_JD: Tensor, place_BK: Ints, batch: Batch) -> Tensor:
        """HNST between the positives and the hard negatives as the bank knows them."""
        if len(hard_JD) == 0:
            return query_BD.sum() * 0.0
        positive_BD, weight_B = banked_CD[self._there(batch.target_B)], self._there(batch.weight_B)
        negative_BKD, known_BK = hard_JD[self._there(np.maximum(place_BK, 0))], self._there(place_BK >= 0)
        return hnst(query_BD, positive_BD, negative_BKD, known_BK, self.config.loss.margin, weight_B)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the experts say of the queries, `(B, E, H)`, and of the positives, `(P, E, H)`, with gradient.

        Both in one pass: half as many operations, each on twice the rows, and the weights are cast once.
        """
        config, asked = self.config.model, len(batch.asked)
        queries = hide_words(batch.asked, config.word_dropout)
        titles = seen = hide_words(self.shop.item_texts.batch(batch.positives_P), config.word_dropout)
        images_PTV, pictured_P = self.shop.pictures.batch(batch.positives_P)
        if pictured_P is not None:
            seen, pictured_P = drop_modalities(titles, pictured_P, config.modality_dropout)

        def encode(of_queries: slice, of_items: slice) -> Tensor:
            shown, pictured = images_PTV, pictured_P
            if shown is not None and pictured is not None:
                shown, pictured = shown[of_items], pictured[of_items]
            asked_here = queries.rows(of_queries.start, of_queries.stop)
            said, meant = (
                concatenated(asked_here, part.rows(of_items.start, of_items.stop)) for part in (titles, seen)
            )
            return self._encode_rows(said, len(asked_here), shown, pictured, meant)

        with self.precision():
            query_UEH, positive_PEH = self.world.encode(encode, asked, len(titles))
        return query_UEH[self._there(batch.row_B)], positive_PEH

    def _encode_rows(
        self, texts: Texts, queries: int, images_ITV: Tensor | None, pictured_I: Tensor | None, seen: Texts
    ) -> Tensor:
        """See `Mrse.encode`; in chunks."""

        def encode(start: int, stop: int) -> Tensor:
            items = slice(max(0, start - queries), max(0, stop - queries))
            shown, pictured = images_ITV, pictured_I
            if shown is not None and pictured is not None:
                shown, pictured = shown[items], pictured[items]
            here = max(0, min(stop, queries) - start)
            return self.model.encode(texts.rows(start, stop), here, shown, pictured, seen.rows(start, stop))

        return in_chunks(encode, 0, len(texts), self.config.chunk_size, self._device)

    def _fuse_items(
        self, batch: Batch, positive_PEH: Tensor, items_C: Ints, hard_J: Ints, banks: Banks
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Final vectors of the positives encoded anew, and of candidates and hard negatives from the bank."""
        fresh, banked_end = len(batch.positives_P), len(batch.positives_P) + len(items_C)
        # Rounded up to a number of rows that comes again, as in `Packing`; what is more than asked for is dropped.
        more = -(banked_end + len(hard_J)) % _ROWS
        banked = np.concatenate([items_C, hard_J, items_C[:more]])
        own_BEH = torch.cat([positive_PEH, banks.items_NEH[self._there(banked)].float()])
        memory: Memory | None = None
        if self.config.model.item_history:
            queries = self.shop.item_queries(batch.draw.epoch)
            memory = self._forget(queries.memory(np.concatenate([batch.positives_P, banked]), banks.queries_QEH))
        vector_BD = self.model.fuse_items(own_BEH, memory).vector_BD
        return vector_BD[:fresh], vector_BD[fresh:banked_end], vector_BD[banked_end : banked_end + len(hard_J)]

    def _shopper_memory(self, batch: Batch, banks: Banks) -> Memory | None:
        if not self.config.model.user_history:
            return None
        real = shopper_memory(self.shop.examples.shoppers, batch.draw.example_rows, banks)
        rows = len(batch.draw.self_items)  # nobody asks a self-made query
        padded = {name: _padded(x, rows) for name, x in vars(real).items() if x is not None}
        return self._forget(replace(real, **padded), spared=batch.vague)

    def _forget(self, memory: Memory, spared: Iterable[int] = ()) -> Memory:
        """Some rows without their history; never the `spared` ones."""
        keep_B = torch.rand(len(memory.known_BM)) >= self.config.model.history_dropout
        keep_B[list(spared)] = True
        return replace(memory, known_BM=memory.known_BM & keep_B.to(self._device)[:, None])

    def _corrections(self, batch: Batch, items_C: Ints, drawn: int) -> tuple[Tensor | None, Tensor]:
        """What MNSCE must know of candidates: log Q, `(C,)`, and which are no negatives, `(B, C)`."""
        log_q_C = self.batches.log_q(batch, items_C, drawn)
        return None if log_q_C is None else self._there(log_q_C), self._there(self.batches.excluded(batch, items_C))

    def _there(self, array: NDArray[Any]) -> Tensor:
        """A small array on the model's device."""
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def hard_share(config: TrainConfig, step: int) -> float:
    """How much of beta counts at a step: `loss.hard_share`, in a straight line over the fuse phase (the ratio of hard
    to easy negatives, arXiv 2408.14968, section "Hybrid loss").
    """
    ramp = config.loss.hard_share
    done = (step - config.align_steps) / max(1, config.fuse_steps - 1)
    return ramp.start + (ramp.end - ramp.start) * min(1.0, max(0.0, done))


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to run the experts in bfloat16; `auto` asks the device."""
    return precision == "bfloat16" or (precision == "auto" and fast_at_bfloat16(device))


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows, *x.shape[1:])])

"""The two kinds of step: align the experts, then train the fusion over them.

Shapes: B rows of a batch (examples, then self-made pairs), P distinct positives, C candidates (the positives, then
items drawn from the catalogue), K hard negatives of a row, J distinct ones of the batch, E experts, H hidden, D size of
the vectors, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrse.config import TrainConfig
from mrse.device import fast_at_bfloat16
from mrse.features.text import split_words
from mrse.model.encode import ItemQueries, item_bank, looked_up, query_bank
from mrse.model.history import Memory
from mrse.model.inputs import concatenated
from mrse.model.loss import hnst, mnsce
from mrse.model.matryoshka import prefix
from mrse.model.retriever import Retriever
from mrse.training.augment import drop_modalities, hide_words, pseudo_query, vague_pairs
from mrse.training.chunks import in_chunks
from mrse.training.data import Ints, Shop, Shoppers
from mrse.training.distributed import ALONE, World
from mrse.training.mining import Mined, Miner
from mrse.training.sampling import PSEUDO, VAGUE, Draw, Exclusions, Sampler, catalogue_items, log_q, pick_hard

_BANK_BATCH = 512
_FUSION_SAMPLE = 4096
_ROWS = 64


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


@dataclass(frozen=True)
class Encoded:
    """What the experts say of a batch.

    Attributes:
        query_BEH: with gradient.
        positive_PEH: with gradient.
        positives_P: item rows, distinct.
        target_B: each row's place in `positives_P`.
    """

    query_BEH: Tensor
    positive_PEH: Tensor
    positives_P: Ints
    target_B: Ints


class Steps:
    """Losses of a step, from its number, on the device that the model is on.

    What a step works on is chosen on the CPU, so that every device is given the same.
    """

    def __init__(self, config: TrainConfig, retriever: Retriever, shop: Shop, world: World = ALONE) -> None:
        self.config = config
        self.world = world
        self.retriever = retriever
        self.model = retriever.model
        self.shop = shop
        shares = config.self_pairs, config.judged_share
        self.sampler = Sampler(shop.examples, len(shop.item_ids), config.batch_size, *shares, config.seed)
        rate_M: NDArray[np.float64] = self.sampler.rate_M
        self._counts_N = np.bincount(shop.examples.item_M, rate_M, len(shop.item_ids)).astype(np.float64)
        same_text = _numbered(shop.item_strings)
        self._twins_by_text = Exclusions(shop.examples, same_text)
        # For a query from the logs a picture can tell two equal titles apart; for one made from the title it cannot.
        same_item = same_text * (int(shop.pictures.row_N.max(initial=-1)) + 2) + shop.pictures.row_N + 1
        self._twins = Exclusions(shop.examples, same_item)
        mines = config.loss.mine.last > 0 and config.loss.beta > 0
        self._miner = Miner(config.loss, shop.examples, same_item) if mines else None
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
        if self._miner is None:
            return None
        end = min(step + self.config.bank_refresh_steps, self.config.align_steps + self.config.fuse_steps)
        rows = np.concatenate([self.sampler.draw(later).example_rows for later in range(step, end)])
        pairs = self._miner.lacking(rows)
        own = pairs[self.world.share(len(pairs))]
        found = self._miner.mine(self.model, banks.items_NEH, banks.queries_QEH, self.shop.item_queries, own)
        return Mined(pairs, self.world.gather(torch.from_numpy(found.item_XW)).numpy())

    def align(self, step: int) -> dict[str, Tensor]:
        """Phase 1: each expert alone matches queries and items by a softmax over the batch; their mean."""
        draw = self.sampler.draw(step)
        batch = self._encode(draw, step, {})  # no shopper is read who could tell what a vague query does not
        excluded_BP = self._excluded(draw, batch, batch.positives_P)
        log_q_P = self._log_q(draw, batch.positives_P, 0)
        losses = {
            f"align_{name}": mnsce(
                batch.query_BEH[:, place],
                batch.positive_PEH[:, place],
                self._there(batch.target_B),
                self.config.loss.temperature,
                log_q_P,
                excluded_BP,
                self._weights(draw),
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
        draw = self.sampler.draw(step)
        vague = self._vague(draw, step)
        batch = self._encode(draw, step, vague)
        positives_P, target_B = batch.positives_P, self._there(batch.target_B)
        drawn = catalogue_items(self.config.seed, step, len(self._counts_N), loss.catalogue_negatives)
        items_C = np.concatenate([positives_P, drawn[~np.isin(drawn, positives_P)]])
        hard_BK = self._hard(draw, step, banks.mined)
        hard_BK[list(vague)] = -1  # what the whole query does not want may be a good answer to fewer words
        hard_J = np.unique(hard_BK[hard_BK >= 0])
        with self.precision():
            fresh_PD, banked_CD, hard_JD = self._fuse_items(batch, items_C, hard_J, draw, banks)
            query_BD = self.model.fuse_queries(batch.query_BEH, self._shopper_memory(draw, banks, vague)).vector_BD
        weight_B = self._weights(draw)
        parts: dict[str, Tensor] = {}
        if loss.alpha:
            pools = (fresh_PD, positives_P, 0), (banked_CD, items_C, loss.catalogue_negatives)
            parts |= self._mnsce(query_BD, pools, draw, batch)
        if loss.beta and len(hard_J):
            known_BK = hard_BK >= 0
            negative_BKD = hard_JD[self._there(np.searchsorted(hard_J, np.where(known_BK, hard_BK, hard_J[0])))]
            known = self._there(known_BK)
            parts["hnst"] = hnst(query_BD, banked_CD[target_B], negative_BKD, known, loss.margin, weight_B)
        elif loss.beta:
            parts["hnst"] = query_BD.sum() * 0.0
        beta = loss.beta * hard_share(self.config, step)
        total = loss.alpha * parts.get("mnsce", torch.zeros(())) + beta * parts.get("hnst", torch.zeros(()))
        return {"loss": total, **parts}

    def _mnsce(
        self, query_BD: Tensor, pools: Sequence[tuple[Tensor, Ints, int]], draw: Draw, batch: Encoded
    ) -> dict[str, Tensor]:
        """MNSCE, the mean over pools of candidates; with `loss.matryoshka` the weighted mean of it on whole vectors
        (weight 1) and on their prefixes, and each of these by its size (Kusupati et al. 2022, equation 1).

        Args:
            query_BD: unit vectors.
            pools: unit vectors of candidates, their item rows, and how many of them were drawn from the catalogue.
        """
        loss, target_B, weight_B = self.config.loss, self._there(batch.target_B), self._weights(draw)
        masks = [
            (self._log_q(draw, items_C, drawn), self._excluded(draw, batch, items_C)) for _, items_C, drawn in pools
        ]

        def mean(asked_BD: Tensor, candidates: Sequence[Tensor]) -> Tensor:
            softmaxes = [
                mnsce(asked_BD, candidate_CD, target_B, loss.temperature, log_q_C, excluded_BC, weight_B)
                for candidate_CD, (log_q_C, excluded_BC) in zip(candidates, masks, strict=True)
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

    def _encode(self, draw: Draw, step: int, vague: Mapping[int, str]) -> Encoded:
        examples, config = self.shop.examples, self.config.model
        rng = np.random.default_rng([self.config.seed, PSEUDO, step])
        query_B = examples.query_M[draw.example_rows]
        made = [pseudo_query(split_words(self.shop.item_strings[item]), rng) for item in draw.self_items]
        made += vague.values()
        queries, query_place = np.unique(query_B, return_inverse=True)
        positives_P, target_B = np.unique(
            np.concatenate([examples.item_M[draw.example_rows], draw.self_items]), return_inverse=True
        )
        asked = self.shop.query_texts.batch(queries)
        if made:
            asked = concatenated(asked, self.retriever.query_texts(made).batch(np.arange(len(made))))
        # Rows of examples share the encoding of their query; what is made for this step has its own.
        place_X = len(queries) + np.arange(len(made))
        query_place[list(vague)] = place_X[len(draw.self_items) :]
        row_B = np.concatenate([query_place, place_X[: len(draw.self_items)]])
        asked = hide_words(asked, config.word_dropout)
        # Both sides under one roof: the weights are cast once.
        with self.precision():
            query_UEH = self._encode_shares(
                lambda start, stop: self.model.encode_texts(asked.rows(start, stop)), len(asked)
            )
            positive_PEH = self._encode_items(positives_P)
        return Encoded(query_UEH[self._there(row_B)], positive_PEH, positives_P, target_B)

    def _vague(self, draw: Draw, step: int) -> dict[int, str]:
        """By row: queries that lost words, so that the shopper must tell what they no longer do."""
        if not self.config.model.user_history:
            return {}
        examples, rows = self.shop.examples, draw.example_rows
        queries = [self.shop.query_strings[query] for query in examples.query_M[rows]]
        known_B = examples.shoppers.item_ML[rows].max(axis=1) >= 0
        rng = np.random.default_rng([self.config.seed, VAGUE, step])
        return vague_pairs(queries, known_B, self.config.vague_pairs, rng)

    def _encode_items(self, positives_P: Ints) -> Tensor:
        config = self.config.model
        texts = hide_words(self.shop.item_texts.batch(positives_P), config.word_dropout)
        images_PTV, pictured_P = self.shop.pictures.batch(positives_P)
        seen = texts
        if pictured_P is not None:
            seen, pictured_P = drop_modalities(texts, pictured_P, config.modality_dropout)

        def encode(start: int, stop: int) -> Tensor:
            images = None if images_PTV is None else images_PTV[start:stop]
            pictured = None if pictured_P is None else pictured_P[start:stop]
            return self.model.encode_items(texts.rows(start, stop), images, pictured, seen.rows(start, stop))

        return self._encode_shares(encode, len(positives_P))

    def _encode_shares(self, encode: Callable[[int, int], Tensor], rows: int) -> Tensor:
        """Every process its share of the rows, in chunks."""
        size, device = self.config.chunk_size, self._device
        return self.world.encode(lambda start, stop: in_chunks(encode, start, stop, size, device), rows)

    def _fuse_items(
        self, batch: Encoded, items_C: Ints, hard_J: Ints, draw: Draw, banks: Banks
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Final vectors of the positives encoded anew, and of candidates and hard negatives from the bank."""
        fresh, banked_end = len(batch.positives_P), len(batch.positives_P) + len(items_C)
        # Rounded up to a number of rows that comes again, as in `Packing`; what is more than asked for is dropped.
        more = -(banked_end + len(hard_J)) % _ROWS
        banked = np.concatenate([items_C, hard_J, items_C[:more]])
        own_BEH = torch.cat([batch.positive_PEH, banks.items_NEH[self._there(banked)].float()])
        memory: Memory | None = None
        if self.config.model.item_history:
            profiles: ItemQueries = self.shop.item_queries(draw.epoch)
            memory = self._forget(profiles.memory(np.concatenate([batch.positives_P, banked]), banks.queries_QEH))
        vector_BD = self.model.fuse_items(own_BEH, memory).vector_BD
        return vector_BD[:fresh], vector_BD[fresh:banked_end], vector_BD[banked_end : banked_end + len(hard_J)]

    def _shopper_memory(self, draw: Draw, banks: Banks, spared: Iterable[int]) -> Memory | None:
        if not self.config.model.user_history:
            return None
        real = shopper_memory(self.shop.examples.shoppers, draw.example_rows, banks)
        rows = len(draw.self_items)  # nobody asks a self-made query
        return self._forget(
            Memory(
                memory_BMEH=_padded(real.memory_BMEH, rows),
                known_BM=_padded(real.known_BM, rows),
                action_BM=_padded(real.action_BM, rows),
                age_BM=_padded(real.age_BM, rows),
            ),
            spared,
        )

    def _forget(self, memory: Memory, spared: Iterable[int] = ()) -> Memory:
        """Some rows without their history; never the `spared` ones."""
        keep_B = torch.rand(len(memory.known_BM)) >= self.config.model.history_dropout
        keep_B[list(spared)] = True
        return Memory(
            memory.memory_BMEH,
            memory.known_BM & keep_B.to(self._device)[:, None],
            memory.action_BM,
            memory.age_BM,
            memory.weight_BM,
        )

    def _hard(self, draw: Draw, step: int, mined: Mined | None) -> Ints:
        loss = self.config.loss
        if not loss.beta or not loss.hard_negatives:
            return np.full((len(draw.example_rows) + len(draw.self_items), 1), -1, dtype=np.int64)
        log_BG = self.shop.examples.hard_MK[draw.example_rows]
        real_BK = pick_hard(log_BG, loss.hard_negatives, self.config.seed, step)
        if self._miner is not None and mined is not None:
            real_BK = self._miner.fill(real_BK, log_BG, draw.example_rows, mined, self.config.seed, step)
        return np.concatenate([real_BK, np.full((len(draw.self_items), real_BK.shape[1]), -1, dtype=np.int64)])

    def _log_q(self, draw: Draw, items_C: Ints, drawn: int) -> Tensor | None:
        if not self.config.loss.logq:
            return None
        sizes = len(draw.example_rows), len(draw.self_items), min(drawn, len(self._counts_N))
        return self._there(log_q(self._counts_N, items_C, *sizes))

    def _excluded(self, draw: Draw, batch: Encoded, items_C: Ints) -> Tensor:
        real = len(draw.example_rows)
        nobody = np.full(len(draw.self_items), -1, dtype=np.int64)
        asker_B = self.shop.examples.asker_M[draw.example_rows]
        by_log = self._twins.mask(asker_B, batch.target_B[:real], items_C)
        by_text = self._twins_by_text.mask(nobody, batch.target_B[real:], items_C)
        return self._there(np.concatenate([by_log, by_text]))

    def _weights(self, draw: Draw) -> Tensor:
        real_B = self.shop.examples.weight_M[draw.example_rows]
        return self._there(np.concatenate([real_B, np.ones(len(draw.self_items), dtype=np.float32)]))

    def _there(self, array: NDArray[Any]) -> Tensor:
        """A small array on the model's device."""
        return torch.from_numpy(array).to(self._device, non_blocking=True)


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


def _padded(x: Tensor | None, rows: int) -> Tensor:
    assert x is not None
    return torch.cat([x, x.new_zeros(rows, *x.shape[1:])])


def _numbered(texts: Sequence[str]) -> Ints:
    number: dict[str, int] = {}
    numbers = (number.setdefault(text, len(number)) for text in texts)
    return np.fromiter(numbers, dtype=np.int64, count=len(texts))

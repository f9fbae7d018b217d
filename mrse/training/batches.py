"""What a step works on: chosen on the CPU and a function of (seed, step), so that every device and process is given the
same.

Shapes: B rows of a batch (examples, then self-made pairs), P distinct positives, C candidates, K hard negatives of a
row, J distinct ones of the batch, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrse.config import TrainConfig
from mrse.features.text import split_words
from mrse.model.inputs import Texts, concatenated
from mrse.model.retriever import Retriever
from mrse.training.augment import pseudo_query, vague_pairs
from mrse.training.data import Floats, Ints, Shop
from mrse.training.mining import Mined, Miner
from mrse.training.sampling import PSEUDO, VAGUE, Draw, Exclusions, Sampler, catalogue_items, log_q, pick_hard


@dataclass(frozen=True)
class Batch:
    """The pairs of one step.

    Attributes:
        step: its number.
        draw: the examples and the items that pairs are made from.
        asked: texts of the examples' distinct queries, then of those made for this step.
        row_B: each row's place in `asked`.
        positives_P: item rows, distinct.
        target_B: each row's place in `positives_P`.
        weight_B: what each row counts.
        vague: rows whose query lost words.
    """

    step: int
    draw: Draw
    asked: Texts
    row_B: Ints
    positives_P: Ints
    target_B: Ints
    weight_B: Floats
    vague: list[int]


class Batches:
    """Batches of pairs, and what a batch is held against.

    Attributes:
        sampler: of the examples.
        miner: None where mining is off.
    """

    def __init__(self, config: TrainConfig, retriever: Retriever, shop: Shop) -> None:
        self._config = config
        self._retriever = retriever
        self._shop = shop
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
        self.miner = Miner(config.loss, shop.examples, same_item) if mines else None

    def make(self, step: int, reads_shoppers: bool) -> Batch:
        """The batch of a step; where shoppers are read, some of their queries lose words."""
        examples, draw = self._shop.examples, self.sampler.draw(step)
        vague = self._vague(draw, step) if reads_shoppers else {}
        rng = np.random.default_rng([self._config.seed, PSEUDO, step])
        made = [pseudo_query(split_words(self._shop.item_strings[item]), rng) for item in draw.self_items]
        made += vague.values()
        queries, query_place = np.unique(examples.query_M[draw.example_rows], return_inverse=True)
        positives_P, target_B = np.unique(
            np.concatenate([examples.item_M[draw.example_rows], draw.self_items]), return_inverse=True
        )
        asked = self._shop.query_texts.batch(queries)
        if made:
            asked = concatenated(asked, self._retriever.query_texts(made).batch(np.arange(len(made))))
        # Rows of examples share the encoding of their query; what is made for this step has its own.
        place_X = len(queries) + np.arange(len(made))
        query_place[list(vague)] = place_X[len(draw.self_items) :]
        row_B = np.concatenate([query_place, place_X[: len(draw.self_items)]])
        self_made = np.ones(len(draw.self_items), dtype=np.float32)
        weight_B = np.concatenate([examples.weight_M[draw.example_rows], self_made])
        return Batch(step, draw, asked, row_B, positives_P, target_B, weight_B, list(vague))

    def candidates(self, batch: Batch) -> Ints:
        """The positives, then items drawn from the catalogue, `(C,)`, distinct."""
        count = self._config.loss.catalogue_negatives
        drawn = catalogue_items(self._config.seed, batch.step, len(self._counts_N), count)
        return np.concatenate([batch.positives_P, drawn[~np.isin(drawn, batch.positives_P)]])

    def hard(self, batch: Batch, mined: Mined | None) -> tuple[Ints, Ints]:
        """Hard negatives of the log and, where it has too few, mined ones; none of a vague query.

        Returns:
            Distinct item rows, `(J,)`, and the places of each row's own among them, `(B, K)`, -1 where it has fewer.
        """
        item_BK = self._hard_of_examples(batch, mined)
        item_BK[batch.vague] = -1  # what the whole query does not want may be a good answer to fewer words
        self_made = np.full((len(batch.draw.self_items), item_BK.shape[1]), -1, dtype=np.int64)
        item_BK = np.concatenate([item_BK, self_made])
        hard_J = np.unique(item_BK[item_BK >= 0])
        return hard_J, np.where(item_BK >= 0, np.searchsorted(hard_J, item_BK), -1)

    def _hard_of_examples(self, batch: Batch, mined: Mined | None) -> Ints:
        loss, rows, seed = self._config.loss, batch.draw.example_rows, self._config.seed
        if not loss.beta or not loss.hard_negatives:
            return np.full((len(rows), 1), -1, dtype=np.int64)
        log_BG = self._shop.examples.hard_MK[rows]
        item_BK = pick_hard(log_BG, loss.hard_negatives, seed, batch.step)
        if self.miner is None or mined is None:
            return item_BK
        return self.miner.fill(item_BK, log_BG, rows, mined, seed, batch.step)

    def log_q(self, batch: Batch, items_C: Ints, drawn: int) -> Floats | None:
        """See `sampling.log_q`; `drawn`: how many items were drawn from the catalogue. None where `logq` is off."""
        if not self._config.loss.logq:
            return None
        sizes = len(batch.draw.example_rows), len(batch.draw.self_items), min(drawn, len(self._counts_N))
        return log_q(self._counts_N, items_C, *sizes)

    def excluded(self, batch: Batch, items_C: Ints) -> NDArray[np.bool_]:
        """Which candidates are no negatives of a row, `(B, C)`."""
        real = len(batch.draw.example_rows)
        nobody = np.full(len(batch.draw.self_items), -1, dtype=np.int64)
        asker_B = self._shop.examples.asker_M[batch.draw.example_rows]
        by_log = self._twins.mask(asker_B, batch.target_B[:real], items_C)
        by_text = self._twins_by_text.mask(nobody, batch.target_B[real:], items_C)
        return np.concatenate([by_log, by_text])

    def _vague(self, draw: Draw, step: int) -> dict[int, str]:
        """By row: queries that lost words, so that the shopper must tell what they no longer do."""
        if not self._config.model.user_history:
            return {}
        examples, rows = self._shop.examples, draw.example_rows
        queries = [self._shop.query_strings[query] for query in examples.query_M[rows]]
        known_B = examples.shoppers.item_ML[rows].max(axis=1) >= 0
        rng = np.random.default_rng([self._config.seed, VAGUE, step])
        return vague_pairs(queries, known_B, self._config.vague_pairs, rng)


def _numbered(texts: Sequence[str]) -> Ints:
    number: dict[str, int] = {}
    numbers = (number.setdefault(text, len(number)) for text in texts)
    return np.fromiter(numbers, dtype=np.int64, count=len(texts))

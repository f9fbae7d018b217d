"""True grades for the queries that were asked most, by what items are, whoever asked."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mrse.config import MarketplaceConfig
from mrse.data.contract import JUDGMENTS
from mrse.data.marketplace import draws
from mrse.data.marketplace.catalogue import Catalogue
from mrse.data.marketplace.queries import Question, grade

JUDGED_QUERIES, JUDGED_TYPOS = 400, 120
GRADED_CAP, ZEROS = 300, 20
_KEPT, _PRUNE_AT = 20_000, 60_000


@dataclass
class QueryCounts:
    """How often each query was asked. Bounded: rare queries are forgotten when there are more than 60,000 of them."""

    _counts: Counter[str] = field(default_factory=Counter)
    _meant: dict[str, Question] = field(default_factory=dict)

    def add(self, texts: Sequence[str], questions: Sequence[Question], query_R: draws.Int) -> None:
        """Count one day's requests."""
        asked = np.bincount(query_R, minlength=len(texts)).tolist()
        for text, question, times in zip(texts, questions, asked, strict=True):
            self._counts[text] += times
            self._meant.setdefault(text, question)
        if len(self._counts) > _PRUNE_AT:
            kept = heapq.nsmallest(_KEPT, self._counts, key=self._rank)
            self._counts = Counter({text: self._counts[text] for text in kept})
            self._meant = {text: self._meant[text] for text in kept}

    def commonest(self) -> list[tuple[str, Question]]:
        """The queries to judge: the commonest without a typo, and the commonest with one."""
        ranked = sorted(self._counts, key=self._rank)
        clean = [text for text in ranked if not self._meant[text].typo][:JUDGED_QUERIES]
        typed = [text for text in ranked if self._meant[text].typo][:JUDGED_TYPOS]
        return [(text, self._meant[text]) for text in sorted(clean + typed)]

    def _rank(self, text: str) -> tuple[int, str]:
        return -self._counts[text], text


def judge(config: MarketplaceConfig, catalogue: Catalogue, queries: Sequence[tuple[str, Question]]) -> pa.Table:
    """Grades of items for queries, sorted by query and item.

    Per query all items of grade above 0, the best `GRADED_CAP` of them where there are more (equal grades by lot), and
    `ZEROS` items of grade 0.
    """
    texts: list[str] = []
    rows: list[draws.Int] = []
    grades: list[draws.Float] = []
    everything = np.arange(len(catalogue.item_ids))
    for text, question in queries:
        grade_N = grade(catalogue, question.intent, everything)
        lot_N = draws.uniform(config.seed, draws.JUDGES, draws.text_hash(text), catalogue.hash_N)
        order = np.lexsort((lot_N, -grade_N))
        positive = int(np.count_nonzero(grade_N))
        chosen = np.sort(np.concatenate([order[: min(positive, GRADED_CAP)], order[positive : positive + ZEROS]]))
        texts += [text] * len(chosen)
        rows.append(chosen)
        grades.append(grade_N[chosen].astype(np.float64).round(4))
    items = pa.array(catalogue.item_ids, pa.string()).take(pa.array(np.concatenate(rows)))
    return pa.table([pa.array(texts, pa.string()), items, pa.array(np.concatenate(grades))], schema=JUDGMENTS)

"""Examples and requests from people's judgments, which know no shopper and no time.

Queries, not rows, are divided into train, valid and test: by a hash of the query, so that a query stays where it is
from run to run, on any engine. Grades of a held-out query steer nothing in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from mrse.config import ProfilesConfig
from mrse.profiles.engine import Engine
from mrse.profiles.log import gather

_HASH_DIGITS = 8


@dataclass(frozen=True)
class Judged:
    """Judgments of known items.

    Attributes:
        grades: query, item_id, grade, part (train, valid or test).
        lows: per query the items of the lowest grades, at most twice as many as an example takes: query, part, item_id,
            grade.
    """

    grades: ir.Table
    lows: ir.Table


def read_judged(engine: Engine, judgments: ir.Table, items: ir.Table, config: ProfilesConfig) -> Judged:
    """Prepare the judgments; those of unknown items or with a blank query are left out."""
    usable = judgments.filter(judgments["query"].strip() != "").semi_join(items, "item_id")
    grades = usable.group_by("query", "item_id").agg(grade=usable.grade.max())
    grades = engine.keep(grades.mutate(part=part_of(grades["query"], config)))
    low = grades.filter(grades.grade <= config.negative_grade)
    place = ibis.row_number().over(group_by=low["query"], order_by=[low.grade, low.item_id])
    lows = low.mutate(place=place).filter(lambda table: table.place < 2 * config.hard_negatives).drop("place")
    return Judged(grades, engine.keep(lows))


def part_of(query: ir.StringValue, config: ProfilesConfig) -> ir.StringValue:
    """Train, valid or test: where the first digits of the query's MD5 fall. Case and outer spaces do not matter."""
    digits = query.strip().lower().hexdigest("md5").substr(0, _HASH_DIGITS)
    test = _threshold(config.judged_test_share)
    held_out = _threshold(config.judged_test_share + config.judged_valid_share)
    return ibis.cases((digits < test, "test"), (digits < held_out, "valid"), else_="train")


def _threshold(share: float) -> str:
    """Digits below which a share of all hashes lies: equally long hexadecimal texts compare like numbers."""
    return "g" if share >= 1.0 else f"{int(share * 16**_HASH_DIGITS):0{_HASH_DIGITS}x}"


def judged_examples(judged: Judged, config: ProfilesConfig) -> ir.Table:
    """Positives of the train and valid queries: split, query, item_id, weight, hard_negatives (null: none)."""
    positives = judged.grades.filter(judged.grades.grade >= config.positive_grade, judged.grades.part != "test")
    lows = judged.lows
    negatives = gather(lows, ("query",), {"grade": lows.grade, "low_items": lows.item_id})
    joined = positives.left_join(negatives.drop("grade"), "query")
    return joined.select(
        "query",
        "item_id",
        split=joined.part,
        weight=joined.grade.cast("float32"),
        hard_negatives=joined.low_items[: config.hard_negatives],
    )


def judged_requests(judged: Judged) -> ir.Table:
    """The held-out queries with all their judged items, best first: split, query, relevant, gains."""
    held_out = judged.grades.filter(judged.grades.part != "train")
    best_first = {"lost": -held_out.grade, "relevant": held_out.item_id, "gains": held_out.grade.cast("float32")}
    return gather(held_out, ("part", "query"), best_first).rename(split="part")

"""What is known of an item at a cut point: the queries that led to it, its neighbours, its popularity.

A profile with cut point `asof` is made from the days before `asof`, all of them whole. So everything is first summed
per day, and each day's sums then count for every later cut: the log is read once, not once per cut.

Decay works on whole days: what happened on the last day before `asof` weighs 1, and half as much one half-life
earlier. Sums are of whole millionths: exact in any order of adding, so equal logs give equal bytes on any number of
threads.
"""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from mrse.config import ProfilesConfig
from mrse.profiles.engine import Engine
from mrse.profiles.log import ENGAGEMENTS, NAIVE, Log, gain, gather, or_empty
from mrse.profiles.split import DAY, Split

_MILLIONTHS = 1e6
_KEYS = ("item_id", "asof")


def item_profiles(engine: Engine, log: Log, split: Split, config: ProfilesConfig) -> ir.Table:
    """One row per known item and cut point before which anything happened to it; columns as in `tables.ITEMS`."""
    cuts = engine.keep(cut_days(split, config.popularity_half_life_days))
    counted = _counts(log, cuts, config)
    queries = engine.keep(_queries(log, cuts, config)).select(
        "queries", "query_weights", queries_item="item_id", queries_asof="asof"
    )
    neighbours = engine.keep(_neighbours(engine, log, cuts, config)).select(
        "co_items", "co_weights", co_item="item_id", co_asof="asof"
    )
    joined = counted.left_join(queries, [("item_id", "queries_item"), ("asof", "queries_asof")])
    joined = joined.left_join(neighbours, [("item_id", "co_item"), ("asof", "co_asof")])
    lists = {name: or_empty(joined[name]) for name in ("queries", "query_weights", "co_items", "co_weights")}
    return joined.select(*_KEYS, **lists, **{name: joined[name] for name in _COUNTS}).order_by(*_KEYS)


_COUNTS = ("popularity", "impressions", "clicks", "orders")


def cut_days(split: Split, half_life_days: float) -> ir.Table:
    """Every day before every cut, with what the day weighs there: day, asof, decay."""
    rows = [
        {"day": day.date(), "asof": cut, "decay": 0.5 ** ((cut - day - DAY) / DAY / half_life_days)}
        for cut in split.cuts
        for day in split.days()
        if day < cut
    ]
    return ibis.memtable(rows, schema={"day": "date", "asof": NAIVE, "decay": "float64"})


def _counts(log: Log, cuts: ir.Table, config: ProfilesConfig) -> ir.Table:
    days = log.item_days.semi_join(log.items, "item_id").inner_join(cuts, "day")
    gains = sum(days[name].cast("float64") * config.action_weights[name] for name in ENGAGEMENTS)
    return days.group_by(*_KEYS).agg(
        popularity=_exact_sum(gains * days.decay),
        impressions=days.impressions.sum().cast("float64").cast("int64"),
        clicks=days["click"].sum().cast("float64").cast("int64"),
        orders=days["order"].sum().cast("float64").cast("int64"),
    )


def _queries(log: Log, cuts: ir.Table, config: ProfilesConfig) -> ir.Table:
    """The queries before an engagement, heaviest first: item_id, asof, queries, query_weights."""
    asked = log.engaged.filter(log.engaged["query"].notnull())
    days = asked.group_by("item_id", "query", "day").agg(gain=_exact_sum(gain(asked["rank"], config)))
    days = days.inner_join(cuts, "day")
    weighed = days.group_by("item_id", "asof", "query").agg(weight=_exact_sum(days.gain * days.decay).cast("float32"))
    return _heaviest(weighed, config.item_queries)


def _neighbours(engine: Engine, log: Log, cuts: ir.Table, config: ProfilesConfig) -> ir.Table:
    """Co-engaged items, nearest first: item_id, asof, co_items, co_weights.

    The weight of a pair is the cosine of their shoppers: those who engaged with both, over the root of the product of
    those who engaged with each. A session nobody logged in to is a shopper of its own.
    """
    firsts = engine.keep(_first_engagements(log.engaged))
    single = firsts.group_by("code", "day").agg(shoppers=firsts.count())
    shoppers = engine.keep(_before_cuts(single, cuts, ("code",), "shoppers"))
    pairs = _before_cuts(_pairs(firsts, config.co_window), cuts, ("left_code", "right_code"), "both")
    left = shoppers.select(left_code="code", asof="asof", left_shoppers="shoppers")
    right = shoppers.select(right_code="code", asof="asof", right_shoppers="shoppers")
    joined = pairs.inner_join(left, ["left_code", "asof"]).inner_join(right, ["right_code", "asof"])
    product = joined.left_shoppers * joined.right_shoppers
    near = joined.select("asof", "left_code", "right_code", weight=(joined.both / product.sqrt()).cast("float32"))
    mirrored = near.select("asof", "weight", left_code="right_code", right_code="left_code")
    near = near.union(mirrored.select(*near.columns))
    return _named(near, log.items, config.co_items)


def _named(near: ir.Table, items: ir.Table, length: int) -> ir.Table:
    """Cut to the nearest first, so that only what is kept is given its name."""
    rank = ibis.row_number().over(group_by=[near.left_code, near.asof], order_by=[near.weight.desc(), near.right_code])
    kept = near.mutate(place=rank).filter(lambda table: table.place < length)
    kept = kept.inner_join(items.select(right_code="code", co_item="item_id"), "right_code")
    named = {"place": kept.place, "co_items": kept.co_item, "co_weights": kept.weight}
    lists = gather(kept, ("left_code", "asof"), named)
    return lists.inner_join(items.select(left_code="code", item_id="item_id"), "left_code")


def _first_engagements(engaged: ir.Table) -> ir.Table:
    """When a shopper first engaged with an item, numbered in that order: shopper, code, day, place."""
    shopper = ibis.ifelse(engaged.user_id.isnull(), "s" + engaged.session_id, "u" + engaged.user_id)
    keyed = engaged.select("code", "at", "day", shopper=shopper)
    firsts = keyed.group_by("shopper", "code").agg(at=keyed.at.min(), day=keyed.day.min())
    place = ibis.row_number().over(group_by=firsts.shopper, order_by=[firsts.at, firsts.code])
    return firsts.select("shopper", "code", "day", place=place)


def _pairs(firsts: ir.Table, window: int) -> ir.Table:
    """Pairs of items of a shopper, and how many shoppers made the pair on which day: left_code < right_code, day, both.

    An item pairs with the `window` items that the shopper had engaged with just before it: a shopper with very many
    items costs no more than linear time, and a pair, once made, stays. Blocks of `window` turn "just before" into an
    equality join.
    """
    later = firsts.select("shopper", "code", "day", "place", block=firsts.place // window)
    earlier = later.select("shopper", "block", earlier_code="code", earlier_place="place")
    reach = earlier.union(earlier.mutate(block=earlier.block + 1))
    joined = later.inner_join(reach, ["shopper", "block"])
    gap = joined.place - joined.earlier_place
    near = joined.filter((gap > 0) & (gap <= window))
    ordered = near.select(
        "day",
        left_code=ibis.least(near.code, near.earlier_code),
        right_code=ibis.greatest(near.code, near.earlier_code),
    )
    return ordered.group_by("left_code", "right_code", "day").agg(both=ordered.count())


def _before_cuts(counts: ir.Table, cuts: ir.Table, keys: tuple[str, ...], name: str) -> ir.Table:
    """Counts by day summed up to every cut."""
    days = counts.inner_join(cuts, "day")
    return days.group_by(*keys, "asof").agg(**{name: days[name].cast("float64").sum()})


def _heaviest(weighed: ir.Table, length: int) -> ir.Table:
    """Lists of the `length` heaviest queries of an item at a cut; ties in the order of the texts."""
    order = [weighed.weight.desc(), weighed["query"]]
    place = ibis.row_number().over(group_by=[weighed.item_id, weighed.asof], order_by=order)
    kept = weighed.mutate(place=place).filter(lambda table: table.place < length)
    return gather(kept, _KEYS, {"place": kept.place, "queries": kept["query"], "query_weights": kept.weight})


def _exact_sum(amount: ir.FloatingValue) -> ir.FloatingValue:
    return (amount * _MILLIONTHS).round().cast("float64").sum() / _MILLIONTHS

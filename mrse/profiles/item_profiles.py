"""What is known of an item at a cut point: the queries that led to it, its neighbours, its popularity.

A profile with cut point `asof` is made from the days before `asof`, all of them whole. So everything is first summed
per day, and each day's sums then count for every later cut: the log is not read once per cut.

Decay works on whole days: what happened on the last day before `asof` weighs 1, and half as much one half-life
earlier. Sums are of whole millionths: exact in any order of adding, so equal logs give equal bytes on any number of
threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from mrse.config import ProfilesConfig
from mrse.profiles.engine import Engine
from mrse.profiles.log import ENGAGEMENTS, NAIVE, Log, gain, gather, or_empty
from mrse.profiles.split import DAY, Split

_MILLIONTHS = 1e6
_INSTANT = NAIVE.to_pyarrow()
_SLICE_ROWS = 5_000_000  # counts of a day or a pair, each once per later cut
_KEYS = ("code", "asof")


@dataclass(frozen=True)
class _Kept:
    """What every slice of the items is made from.

    Attributes:
        cuts: every day before every cut: day, asof, decay.
        later: every cut and those from it on: since, asof, number (0: the first cut of all).
        firsts: when a shopper first engaged with an item: shopper, code, since (the first cut after), place (0: the
            shopper's first item), block (places in blocks of `co_window`).
        shoppers: how many of them an item has had: code, since (the number of the first cut with any), counts (a list:
            at that cut and every later one).
    """

    cuts: ir.Table
    later: ir.Table
    firsts: ir.Table
    shoppers: ir.Table


def item_profiles(engine: Engine, log: Log, split: Split, config: ProfilesConfig) -> list[ir.Table]:
    """One row per known item and cut point before which anything happened to it; columns as in `tables.ITEMS`.

    In slices of the items, in the order of their ids: all that a slice needs is computed from what lies on disk, so the
    memory is that of a slice, whose size depends neither on the days nor on the items.
    """
    cuts = engine.put(cut_days(split, config.popularity_half_life_days))
    later = engine.put(_later(split))
    engaged = log.engaged.mutate(shopper=_shopper(log.engaged))
    since = cuts.group_by("day").agg(since=cuts.asof.min())
    parts = log.parts(engaged, engaged.shopper)
    firsts = engine.keep(*(_first_engagements(rows, since, config.co_window) for rows in parts))
    shoppers = engine.keep(*(_shoppers(rows, later) for rows in log.parts(firsts, firsts.code)))
    kept = _Kept(cuts, later, firsts, shoppers)
    # Kept first: the writer holds a row group, which the memory of the next slice would come on top of.
    slices = [engine.keep(_slice(log, kept, bounds, config)) for bounds in _slices(engine, log, kept)]
    return [rows.order_by("item_id", "asof") for rows in slices]


def _slices(engine: Engine, log: Log, kept: _Kept) -> list[tuple[int, int]]:
    """First and last codes of slices of about equal work."""
    cuts = kept.cuts.group_by("day").agg(cuts=kept.cuts.count())
    since = kept.later.group_by("since").agg(cuts=kept.later.count())
    days = log.item_days.filter(log.item_days.code.notnull()).select("code", "day", rows=ibis.literal(1))
    asked = log.engaged.select("code", "day", rows=ibis.literal(1))
    counted = [days.inner_join(cuts, "day"), asked.inner_join(cuts, "day"), kept.firsts.inner_join(since, "since")]
    rows = ibis.union(*(table.group_by("code").agg(rows=(table.rows * table.cuts).sum()) for table in counted))
    codes = rows.group_by("code").agg(rows=rows.rows.sum().cast("float64"))
    before = codes.rows.sum().over(order_by=codes.code, rows=(None, 0)) - codes.rows
    numbered = codes.select("code", number=(before / _SLICE_ROWS).floor())
    bounds = numbered.group_by("number").agg(first=numbered.code.min(), last=numbered.code.max()).order_by("number")
    return [(row["first"], row["last"]) for row in engine.fetch(bounds)] or [(0, 0)]


def _slice(log: Log, kept: _Kept, bounds: tuple[int, int], config: ProfilesConfig) -> ir.Table:
    """The profiles of the items from the first to the last code of a slice."""
    days, engaged = (rows.filter(rows.code.between(*bounds)) for rows in (log.item_days, log.engaged))
    counted = _counts(days, kept.cuts, config)
    queries = _queries(engaged, kept.cuts, config).select(
        "queries", "query_weights", queries_code="code", queries_asof="asof"
    )
    neighbours = _neighbours(kept, bounds, log.items, config).select(
        "co_items", "co_weights", co_code="code", co_asof="asof"
    )
    joined = counted.left_join(queries, [("code", "queries_code"), ("asof", "queries_asof")])
    joined = joined.left_join(neighbours, [("code", "co_code"), ("asof", "co_asof")]).inner_join(log.items, "code")
    lists = {name: or_empty(joined[name]) for name in ("queries", "query_weights", "co_items", "co_weights")}
    return joined.select("item_id", "asof", **lists, **{name: joined[name] for name in _COUNTS})


_COUNTS = ("popularity", "impressions", "clicks", "orders")


def cut_days(split: Split, half_life_days: float) -> pa.Table:
    """Every day before every cut, with what the day weighs there: day, asof, decay."""
    rows = [
        {"day": day.date(), "asof": cut, "decay": 0.5 ** ((cut - day - DAY) / DAY / half_life_days)}
        for cut in split.cuts
        for day in split.days()
        if day < cut
    ]
    return pa.Table.from_pylist(rows, pa.schema({"day": pa.date32(), "asof": _INSTANT, "decay": pa.float64()}))


def _later(split: Split) -> pa.Table:
    rows = [
        {"since": since, "asof": asof, "number": number}
        for since in split.cuts
        for number, asof in enumerate(split.cuts)
        if asof >= since
    ]
    return pa.Table.from_pylist(rows, pa.schema({"since": _INSTANT, "asof": _INSTANT, "number": pa.int32()}))


def _counts(days: ir.Table, cuts: ir.Table, config: ProfilesConfig) -> ir.Table:
    days = days.inner_join(cuts, "day")
    gains = sum(days[name].cast("float64") * config.action_weights[name] for name in ENGAGEMENTS)
    return days.group_by(*_KEYS).agg(
        popularity=_exact_sum(gains * days.decay),
        impressions=days.impressions.sum().cast("float64").cast("int64"),
        clicks=days["click"].sum().cast("float64").cast("int64"),
        orders=days["order"].sum().cast("float64").cast("int64"),
    )


def _queries(engaged: ir.Table, cuts: ir.Table, config: ProfilesConfig) -> ir.Table:
    """The queries before an engagement, heaviest first: code, asof, queries, query_weights."""
    asked = engaged.filter(engaged["query"].notnull())
    days = asked.group_by("code", "query", "day").agg(gain=_exact_sum(gain(asked["rank"], config)))
    days = days.inner_join(cuts, "day")
    weighed = days.group_by(*_KEYS, "query").agg(weight=_exact_sum(days.gain * days.decay).cast("float32"))
    return _heaviest(weighed, config.item_queries)


def _neighbours(kept: _Kept, bounds: tuple[int, int], items: ir.Table, config: ProfilesConfig) -> ir.Table:
    """Co-engaged items of the items of a slice, nearest first: code, asof, co_items, co_weights.

    The weight of a pair is the cosine of their shoppers: those who engaged with both, over the root of the product of
    those who engaged with each. A session nobody logged in to is a shopper of its own.
    """
    firsts = kept.firsts.filter(kept.firsts.code.between(*bounds))
    pairs = _running(_pairs(firsts, kept.firsts, config.co_window), ("code", "other"), "both")
    # Joined before a row stands for every cut, and as lists: rows of items and cuts would be many more on both sides.
    mine = kept.shoppers.select(mine="code", my_since="since", my_counts="counts")
    others = kept.shoppers.select(others="code", other_since="since", other_counts="counts")
    joined = pairs.left_join(mine, [("code", "mine")]).left_join(others, [("other", "others")])
    held = _held(joined, kept.later)
    product = held.my_counts[held.number - held.my_since] * held.other_counts[held.number - held.other_since]
    near = held.select(*_KEYS, "other", weight=(held.both / product.sqrt()).cast("float32"))
    return _named(near, items, config.co_items)


def _named(near: ir.Table, items: ir.Table, length: int) -> ir.Table:
    """Cut to the nearest first, so that only what is kept is given its name."""
    rank = ibis.row_number().over(group_by=[near.code, near.asof], order_by=[near.weight.desc(), near.other])
    kept = near.mutate(place=rank).filter(lambda table: table.place < length)
    kept = kept.inner_join(items.select(other="code", co_item="item_id"), "other")
    return gather(kept, _KEYS, {"place": kept.place, "co_items": kept.co_item, "co_weights": kept.weight})


def _shopper(engaged: ir.Table) -> ir.StringValue:
    return ibis.ifelse(engaged.user_id.isnull(), "s" + engaged.session_id, "u" + engaged.user_id)


def _first_engagements(engaged: ir.Table, since: ir.Table, window: int) -> ir.Table:
    """`_Kept.firsts`, and how many other items each pairs with (`rows`)."""
    firsts = engaged.group_by("shopper", "code").agg(at=engaged.at.min(), day=engaged.day.min())
    place = ibis.row_number().over(group_by=firsts.shopper, order_by=[firsts.at, firsts.code])
    placed = firsts.mutate(place=place, size=firsts.count().over(group_by=firsts.shopper))
    near = ibis.least(placed.place, window) + ibis.least(placed["size"] - 1 - placed.place, window)
    return placed.inner_join(since, "day").select(
        "shopper", "code", "since", "place", block=placed.place // window, rows=near
    )


def _pairs(mine: ir.Table, firsts: ir.Table, window: int) -> ir.Table:
    """How many shoppers made a pair of items, by the first cut after it was made: code, other, since, both.

    An item pairs with the `window` items that the shopper had engaged with just before it, and with the `window` just
    after: a shopper with very many items costs no more than linear time, and a pair, once made, stays. Blocks of
    `window` turn "just before and after" into an equality join.
    """
    mine = mine.select("shopper", "code", "since", "place", "block")
    reach = ibis.union(*(mine.mutate(block=mine.block + step) for step in (-1, 0, 1)))
    others = firsts.select("shopper", "block", other="code", other_since="since", other_place="place")
    joined = reach.inner_join(others, ["shopper", "block"])
    near = joined.filter(joined.place != joined.other_place, (joined.place - joined.other_place).abs() <= window)
    made = near.select("code", "other", since=ibis.greatest(near.since, near.other_since))
    return made.group_by("code", "other", "since").agg(both=made.count())


def _shoppers(firsts: ir.Table, later: ir.Table) -> ir.Table:
    """`_Kept.shoppers` of some items, all of whose first engagements are given."""
    made = firsts.group_by("code", "since").agg(shoppers=firsts.count())
    held = _held(_running(made, ("code",), "shoppers"), later)
    return gather(held, ("code",), {"number": held.number, "counts": held.shoppers}, since=held.number.min()).drop(
        "number"
    )


def _running(counts: ir.Table, keys: tuple[str, ...], name: str) -> ir.Table:
    """Counts by the first cut after, summed up: with `grown`, the cut at which the sum next grows (null: never)."""
    by = [counts[key] for key in keys]
    total = counts[name].cast("float64").sum().over(group_by=by, order_by=counts.since, rows=(None, 0))
    grown = counts.since.lead().over(group_by=by, order_by=counts.since)
    return counts.select(*keys, "since", grown=grown, **{name: total})


def _held(sums: ir.Table, later: ir.Table) -> ir.Table:
    """Running sums at every cut at which they hold, with asof and number; no sum is made once per cut."""
    held = sums.inner_join(later, "since")
    return held.filter(held.grown.isnull() | (held.asof < held.grown))


def _heaviest(weighed: ir.Table, length: int) -> ir.Table:
    """Lists of the `length` heaviest queries of an item at a cut; ties in the order of the texts."""
    order = [weighed.weight.desc(), weighed["query"]]
    place = ibis.row_number().over(group_by=[weighed.code, weighed.asof], order_by=order)
    kept = weighed.mutate(place=place).filter(lambda table: table.place < length)
    return gather(kept, _KEYS, {"place": kept.place, "queries": kept["query"], "query_weights": kept.weight})


def _exact_sum(amount: ir.FloatingValue) -> ir.FloatingValue:
    return (amount * _MILLIONTHS).round().cast("float64").sum() / _MILLIONTHS

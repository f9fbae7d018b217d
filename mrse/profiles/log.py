"""The log as the other modules of this room see it: times naive UTC, actions ranked, items known.

Legend of the columns that are added:
    at        event time, naive UTC
    day       its date
    rank      0 impression, 1 click, 2 add_to_cart, 3 order; above 0 is an engagement; null: unknown action
    code      number of the item in the order of item ids: grouping by it is cheaper than by the id, ties stay the same
    started   when the session's first event happened

What grows with the number of days is made in parts of so many events: by time where the result is read by time
(`Log.spans`, `Log.runs`), by a hash of the session or shopper where all of theirs is needed (`Log.parts`). Every part
costs a query, and the wider its rows the more memory: hence several sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import ibis
import ibis.expr.types as ir

from mrse.config import ProfilesConfig
from mrse.profiles.engine import Engine
from mrse.profiles.split import Split

Engagement = Literal["click", "add_to_cart", "order"]

# Weakest first: an action's rank is its place here, from 1.
ENGAGEMENTS: tuple[Engagement, ...] = ("click", "add_to_cart", "order")
STRONG = ENGAGEMENTS[1:]  # remembered over a long horizon
NAIVE = ibis.dtype("timestamp(6)")
_PART_EVENTS = 2_000_000
_SPAN_EVENTS = 1_000_000  # histories are laid out for a span at a time
_RUN_EVENTS = 250_000  # rows with histories are sorted a run at a time


@dataclass(frozen=True)
class Span:
    """The sessions whose first event lies in `[start, stop)`; all of their events lie in `[start, reach)`."""

    start: datetime
    stop: datetime
    reach: datetime

    def began(self, started: ir.TimestampValue) -> ir.BooleanValue:
        """Whether a session that started then is one of these."""
        return (started >= instant(self.start)) & (started < instant(self.stop))


@dataclass(frozen=True)
class Log:
    """The tables that everything else is made from; all but `raw` are kept.

    Attributes:
        raw: the clean events, straight from the files.
        items: the clean items: item_id, code.
        visits: when a session's events of a query happened, once per run of days: session_id, query, first, last.
        shoppers: user_id, events.
        item_days: what happened to an item on a day: code (null: unknown item), day, events, impressions, click,
            add_to_cart, order.
        engaged: the engagements with known items: at, day, session_id, user_id (null: not logged in), started,
            query (null when blank), item_id, code, position, rank.
        spans: every session is in exactly one of them, in the order of time.
        runs: the window in runs of days, from an instant until before another, shorter than spans.
        size: how many parts `parts` makes.
    """

    raw: ir.Table
    items: ir.Table
    visits: ir.Table
    shoppers: ir.Table
    item_days: ir.Table
    engaged: ir.Table
    spans: tuple[Span, ...]
    runs: Sequence[tuple[datetime, datetime]]
    size: int

    def between(self, start: datetime, end: datetime) -> ir.Table:
        """The events in `[start, end)`: at, day, session_id, user_id, query, item_id, position, rank, relevance,
        propensity."""
        return window_events(self.raw, start, end)

    def parts(self, rows: ir.Table, key: ir.Value) -> list[ir.Table]:
        """The rows in `size` parts, equal keys in the same part."""
        return _parts(rows, key, self.size)


def _parts(rows: ir.Table, key: ir.Value, count: int) -> list[ir.Table]:
    # Engines hash to different numbers, signed or not; which part a key is in changes no result.
    number = (key.hash() % count + count) % count
    return [rows.filter(number == part) for part in range(count)]


def read_log(engine: Engine, raw: ir.Table, items: ir.Table, split: Split, events: int) -> Log:
    """Prepare the log. Reads the events four times, each time only the columns needed; cost: linear in the events.

    Args:
        engine: holds the tables.
        raw: the clean events, whole history or window.
        items: the clean items.
        split: gives the window; events outside it are left out.
        events: about how many events there are.
    """
    code = ibis.row_number().over(order_by=items.item_id)
    coded = engine.keep(items.select("item_id", code=code.cast("int32")))
    size, spans, runs = (-(-max(events, 1) // each) for each in (_PART_EVENTS, _SPAN_EVENTS, _RUN_EVENTS))
    parts = [window_events(raw, start, stop) for start, stop in split.spans(size)]
    visits = engine.keep(*map(_visits, parts))
    sessions = engine.keep(*map(_sessions, _parts(visits, visits.session_id, size)))
    known = window_events(raw, split.start, split.end)
    known = known.filter(known.user_id.notnull())
    shoppers = engine.keep(known.group_by("user_id").agg(events=known.count()))
    item_days = engine.keep(*(_item_days(part, coded) for part in parts))
    engaged = engine.keep(*(_engaged(part, coded, sessions.drop("ended")) for part in parts))
    reaching = _spans(engine, sessions, split.spans(spans))
    return Log(raw, coded, visits, shoppers, item_days, engaged, reaching, split.spans(runs), size)


def _visits(events: ir.Table) -> ir.Table:
    return events.group_by("session_id", "query").agg(first=events.at.min(), last=events.at.max())


def _sessions(visits: ir.Table) -> ir.Table:
    return visits.group_by("session_id").agg(started=visits["first"].min(), ended=visits["last"].max())


def _item_days(events: ir.Table, items: ir.Table) -> ir.Table:
    counts = {name: (events["rank"] == rank).sum() for rank, name in enumerate(("impressions", *ENGAGEMENTS))}
    days = events.group_by("item_id", "day").agg(events=events.count(), **counts)
    return days.left_join(items.select("code", known="item_id"), [("item_id", "known")]).drop("item_id", "known")


def _spans(engine: Engine, sessions: ir.Table, bounds: Sequence[tuple[datetime, datetime]]) -> tuple[Span, ...]:
    """How far the sessions of a run of days reach is measured: one that never ends costs time, not correctness."""
    spans = [Span(start, stop, stop) for start, stop in bounds]
    ends = {str(place): sessions.ended.max(where=span.began(sessions.started)) for place, span in enumerate(spans)}
    (found,) = engine.fetch(sessions.aggregate(**ends))
    last = [found[str(place)] or span.start for place, span in enumerate(spans)]
    return tuple(
        replace(span, reach=max(span.stop, at + timedelta(microseconds=1)))
        for span, at in zip(spans, last, strict=True)
    )


def window_events(raw: ir.Table, start: datetime, end: datetime) -> ir.Table:
    """The events in `[start, end)` (naive UTC) with the columns of the legend.

    The filter is on the column as stored, so that an engine skips the files and row groups of other days.
    """
    first, stop = (ibis.literal(time.replace(tzinfo=UTC), type=raw.event_time.type()) for time in (start, end))
    inside = raw.filter(raw.event_time >= first, raw.event_time < stop)
    ranks = inside.action.cases(("impression", 0), *((name, rank) for rank, name in enumerate(ENGAGEMENTS, 1)))
    events = inside.mutate(at=inside.event_time.cast(NAIVE), rank=ranks).drop("event_time", "action")
    return events.mutate(day=events.at.date())


def _engaged(events: ir.Table, items: ir.Table, sessions: ir.Table) -> ir.Table:
    actions = events.filter(events["rank"] > 0)
    actions = actions.mutate(query=ibis.ifelse(actions["query"].strip() == "", ibis.null(str), actions["query"]))
    return actions.drop("relevance", "propensity").inner_join(items, "item_id").inner_join(sessions, "session_id")


def instant(time: datetime | None) -> ir.TimestampScalar:
    """A naive UTC time as a value; None as null."""
    return ibis.literal(time, type=NAIVE)


def action_name(rank: ir.IntegerValue) -> ir.StringValue:
    """The action of a rank."""
    return rank.cases(*enumerate(ENGAGEMENTS, 1), else_="impression")


def gain(rank: ir.IntegerValue, config: ProfilesConfig) -> ir.FloatingValue:
    """What an action of this rank weighs."""
    return rank.cases(*((number, config.action_weights[name]) for number, name in enumerate(ENGAGEMENTS, 1)))


def gather(rows: ir.Table, by: Sequence[str], fields: dict[str, ir.Value], **others: ir.Scalar) -> ir.Table:
    """Group rows and gather fields into parallel lists.

    The lists are gathered first and then sorted, because not every engine can gather in order.

    Args:
        rows: the table.
        by: its columns to group by.
        fields: the new columns, each with the value that it gathers. The lists are sorted by the first field, ties by
            the second, and so on; fields to sort by hold no nulls.
        others: further aggregates.
    """
    # In order first: a group's rows then come together, and its list grows in one go.
    ordered = rows.order_by(*by)
    grouped = ordered.group_by(*by).agg(gathered=ibis.struct(fields).collect().sort(), **others)
    columns = {name: _field(grouped.gathered, name) for name in fields}
    return grouped.select(*by, *others, **columns)


def _field(structs: ir.ArrayValue, name: str) -> ir.ArrayValue:
    return structs.map(lambda entry: entry[name])


def or_empty(lists: ir.ArrayValue) -> ir.ArrayValue:
    """An empty list instead of null."""
    return lists.fill_null(ibis.literal([], type=lists.type()))

"""What a shopper had engaged with before an instant.

The history at T is made from events strictly before T alone: per (session, item) the strongest action so far, newest
first, at most N. Two things make it linear in the log, however much one shopper does:

- An engagement that is later outdone (a click by an order) holds `until` then, so every (session, item) has at most
  three entries and exactly one is valid at any instant. The last 3N entries before T hold the newest N valid ones.
- Entries are numbered per shopper and gathered in blocks of 3N. Those 3N entries lie in at most two blocks, found by an
  equality join.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import ibis
import ibis.expr.types as ir

from mrse.profiles.engine import Engine
from mrse.profiles.log import ENGAGEMENTS, Log, action_name, instant, or_empty


def entries(known: ir.Table, end: datetime) -> ir.Table:
    """Known shoppers' engagements as history entries: user_id, session_id, item_id, action, at, until."""
    firsts = known.group_by("user_id", "session_id", "item_id").agg(
        **{name: known.at.min(where=known["rank"] == rank) for rank, name in enumerate(ENGAGEMENTS, 1)}
    )
    return ibis.union(*(_unbeaten(firsts, rank, end) for rank in range(1, len(ENGAGEMENTS) + 1)))


def _unbeaten(firsts: ir.Table, rank: int, end: datetime) -> ir.Table:
    """First actions of one kind that no stronger action had preceded; `until` is when one follows."""
    at = firsts[ENGAGEMENTS[rank - 1]]
    until = ibis.least(instant(end), *(firsts[name] for name in ENGAGEMENTS[rank:]))
    return firsts.filter(at < until).select(
        "user_id", "session_id", "item_id", action=action_name(ibis.literal(rank)), at=at, until=until
    )


@dataclass(frozen=True)
class Histories:
    """The histories of shoppers, not yet laid out: that takes much more memory than this.

    Attributes:
        moments: when a history is asked for, those without any left out: user_id, at, seen (entries before).
        blocks: user_id, block (its number), entries (newest first).
        length: N.
    """

    moments: ir.Table
    blocks: ir.Table
    length: int

    def before(self, moments: ir.Table) -> ir.Table:
        """The histories at some of `moments`: user_id, at, hist_items, hist_actions, hist_times.

        Newest first; ties by item, then session.
        """
        block = (moments.seen - 1) // _size(self.length)
        asked = moments.select("user_id", "at", block=block, previous=block - 1)
        older = self.blocks.select(older_user="user_id", previous="block", older="entries")
        found = asked.inner_join(self.blocks, ["user_id", "block"])
        found = found.left_join(older, [("user_id", "older_user"), "previous"])
        # Each cut by itself: lists of 3N structures are what this costs in memory.
        newer, older = (_valid(entries, found.at, self.length) for entries in (found.entries, found.older))
        both = ibis.ifelse(older.isnull(), newer, newer.concat(older))
        kept = found.select("user_id", "at", valid=both[: self.length])
        return kept.filter(kept.valid.length() > 0).select(
            "user_id",
            "at",
            hist_items=kept.valid.map(lambda entry: entry["item_id"]),
            hist_actions=kept.valid.map(lambda entry: entry["action"]),
            hist_times=kept.valid.map(lambda entry: entry["at"]),
        )


def _valid(entries: ir.ArrayValue, at: ir.TimestampValue, length: int) -> ir.ArrayValue:
    """The newest entries that hold at an instant."""
    return entries.filter(lambda entry: (entry["at"] < at) & (entry["until"] >= at))[:length]


def _size(length: int) -> int:
    """Entries of a block."""
    return len(ENGAGEMENTS) * length


def read_histories(engine: Engine, log: Log, moments: ir.Table, end: datetime, length: int) -> Histories:
    """Prepare the history of every shopper at every moment; cost: one sort of the engagements.

    Args:
        engine: holds the timeline and the blocks.
        log: the log.
        moments: (user_id, at), repeats allowed.
        end: the window's end.
        length: N, the longest history.
    """
    known = log.engaged.filter(log.engaged.user_id.notnull())
    shoppers = zip(log.parts(known, known.user_id), log.parts(moments, moments.user_id), strict=True)
    lines = [_timeline(entries(engaged, end), asked.distinct()) for engaged, asked in shoppers]
    line = engine.keep(*(rows.mutate(part=ibis.literal(part, type="int32")) for part, rows in enumerate(lines)))
    numbered = line.filter(line.entry == 1)
    blocks = (_blocks(numbered.filter(numbered.part == part), _size(length)) for part in range(len(lines)))
    asked = line.filter(line.entry == 0, line.seen > 0).select("user_id", "at", "seen")
    return Histories(asked, engine.keep(*blocks), length)


def _timeline(made: ir.Table, moments: ir.Table) -> ir.Table:
    """Entries and moments of a shopper in one line; `seen` counts the entries up to here.

    A moment sorts before the entries of the same instant: they are not its past.
    """
    nothing = {"session_id": ibis.null(str), "item_id": ibis.null(str), "action": ibis.null(str)}
    asked = moments.select("user_id", "at", until=instant(None), entry=ibis.literal(0), **nothing)
    both = ibis.union(made.mutate(entry=ibis.literal(1)), asked.select(*made.columns, "entry"))
    order = [both.at, both.entry, both.item_id.desc(), both.session_id.desc()]
    seen = both.entry.sum().over(group_by=both.user_id, order_by=order, rows=(None, 0))
    return both.mutate(seen=seen.cast("int32"))


def _blocks(numbered: ir.Table, size: int) -> ir.Table:
    """Entries in lists of `size` per shopper, newest first."""
    fields = {name: numbered[name] for name in ("item_id", "action", "at", "until")}
    newest_first = ibis.struct({"order": -numbered.seen, **fields})
    return numbered.group_by("user_id", block=(numbered.seen - 1) // size).agg(entries=newest_first.collect().sort())


def with_history(rows: ir.Table, past: ir.Table) -> ir.Table:
    """Add hist_items, hist_actions and hist_ages (hours before `at`) to rows with user_id, started and at."""
    past = past.select("hist_items", "hist_actions", "hist_times", hist_user="user_id", hist_started="at")
    joined = rows.left_join(past, [("user_id", "hist_user"), ("started", "hist_started")])
    ages = joined.hist_times.map(lambda time: _hours(joined.at, time))
    return joined.mutate(
        hist_items=or_empty(joined.hist_items), hist_actions=or_empty(joined.hist_actions), hist_ages=or_empty(ages)
    ).drop("hist_user", "hist_started", "hist_times")


def _hours(later: ir.TimestampValue, earlier: ir.TimestampValue) -> ir.FloatingValue:
    return (later.delta(earlier, unit="microsecond") / 3.6e9).cast("float32")

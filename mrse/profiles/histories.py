"""What a shopper had engaged with before an instant.

The history at T is made from events strictly before T alone: per (session, item) the strongest action so far, newest
first, at most N; and of the carts and orders that these N crowd out, the newest L. Two things make it linear in the
log, however much one shopper does:

- An engagement that is later outdone (a click by an order) holds `until` then, so every (session, item) has at most
  three entries and exactly one is valid at any instant. The last 3N entries before T hold the newest N valid ones.
- Entries are numbered per shopper and gathered in blocks of 3N. Those 3N entries lie in at most two blocks, found by an
  equality join.

Carts and orders are numbered and gathered once more, among themselves: each (session, item) has at most two such
entries, at most N of the valid ones are among the newest N of all, so the last 2(N + L) hold the L.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import ibis
import ibis.expr.types as ir

from mrse.config import ProfilesConfig
from mrse.profiles.engine import Engine
from mrse.profiles.log import ENGAGEMENTS, STRONG, Log, action_name, instant, or_empty


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
class Blocks:
    """Entries of one line per shopper in lists of equal size.

    Attributes:
        rows: user_id, block (its number), entries (newest first).
        size: entries of a block; as many before an instant lie in at most two blocks.
    """

    rows: ir.Table
    size: int

    def add_newest(self, moments: ir.Table, name: str, seen: str, length: int) -> ir.Table:
        """Add to moments, as `name`, the newest entries that hold at `at`.

        Args:
            moments: user_id, at, and the column `seen`.
            name: of the new column.
            seen: how many entries of this line lie before `at`.
            length: most entries; the last `size` before `at` hold as many.
        """
        block = (moments[seen] - 1) // self.size
        asked = moments.mutate(block=block, previous=block - 1)
        older = self.rows.select(older_user="user_id", previous="block", older="entries")
        found = asked.left_join(self.rows, ["user_id", "block"])
        found = found.left_join(older, [("user_id", "older_user"), "previous"])
        # Each cut by itself: lists of whole blocks are what this costs in memory.
        newer, older = (or_empty(_valid(entries, found.at, length)) for entries in (found.entries, found.older))
        return found.select(*moments.columns, **{name: newer.concat(older)[:length]})


def _valid(entries: ir.ArrayValue, at: ir.TimestampValue, length: int) -> ir.ArrayValue:
    """The newest entries that hold at an instant."""
    return entries.filter(lambda entry: (entry["at"] < at) & (entry["until"] >= at))[:length]


@dataclass(frozen=True)
class Histories:
    """The histories of shoppers, not yet laid out: that takes much more memory than this.

    Attributes:
        moments: when a history is asked for, those without any left out: user_id, at, seen and seen_strong (entries and
            carts and orders before).
        recent: all entries.
        strong: carts and orders; None where none is kept beyond the newest.
        length: N.
        long: L.
    """

    moments: ir.Table
    recent: Blocks
    strong: Blocks | None
    length: int
    long: int

    def before(self, moments: ir.Table) -> ir.Table:
        """The histories at some of `moments`: user_id, at, hist_items, hist_actions, hist_times.

        Newest first; ties by item, then session.
        """
        found = self.recent.add_newest(moments, "valid", "seen", self.length)
        if self.strong is not None:
            found = self.strong.add_newest(found, "strong", "seen_strong", self.length + self.long)
            found = found.mutate(valid=found.valid.concat(_older(found.strong, found.valid)[: self.long]))
        return found.select(
            "user_id",
            "at",
            hist_items=found.valid.map(lambda entry: entry["item_id"]),
            hist_actions=found.valid.map(lambda entry: entry["action"]),
            hist_times=found.valid.map(lambda entry: entry["at"]),
        )


def _older(entries: ir.ArrayValue, than: ir.ArrayValue) -> ir.ArrayValue:
    """Those that come after the last of others in the same line."""
    last = than[than.length() - 1]["order"]
    return entries.filter(lambda entry: entry["order"] > last)


def read_histories(engine: Engine, log: Log, moments: ir.Table, end: datetime, config: ProfilesConfig) -> Histories:
    """Prepare the history of every shopper at every moment; cost: one sort of the engagements.

    Args:
        engine: holds the timeline and the blocks.
        log: the log.
        moments: (user_id, at), repeats allowed.
        end: the window's end.
        config: gives N (`history_length`) and L (`long_history`).
    """
    known = log.engaged.filter(log.engaged.user_id.notnull())
    shoppers = zip(log.parts(known, known.user_id), log.parts(moments, moments.user_id), strict=True)
    lines = [_timeline(entries(engaged, end), asked.distinct()) for engaged, asked in shoppers]
    line = engine.keep(*(rows.mutate(part=ibis.literal(part, type="int32")) for part, rows in enumerate(lines)))
    parts = [line.filter(line.part == part, line.entry == 1) for part in range(len(lines))]
    length, long = config.history_length, config.long_history
    recent = _blocks(engine, parts, "seen", len(ENGAGEMENTS) * length)
    strong = None
    if long:
        parts = [rows.filter(rows.strong == 1) for rows in parts]
        strong = _blocks(engine, parts, "seen_strong", len(STRONG) * (length + long))
    asked = line.filter(line.entry == 0, line.seen > 0).select("user_id", "at", "seen", "seen_strong")
    return Histories(asked, recent, strong, length, long)


def _timeline(made: ir.Table, moments: ir.Table) -> ir.Table:
    """Entries and moments of a shopper in one line; `seen` and `seen_strong` count the entries up to here.

    A moment sorts before the entries of the same instant: they are not its past.
    """
    nothing = {"session_id": ibis.null(str), "item_id": ibis.null(str), "action": ibis.null(str)}
    asked = moments.select(
        "user_id", "at", until=instant(None), entry=ibis.literal(0), strong=ibis.literal(0), **nothing
    )
    made = made.mutate(entry=ibis.literal(1), strong=made.action.isin(STRONG).cast("int8"))
    both = ibis.union(made, asked.select(*made.columns))
    order = [both.at, both.entry, both.item_id.desc(), both.session_id.desc()]
    so_far = ibis.window(group_by=both.user_id, order_by=order, rows=(None, 0))
    seen, strong = (count.sum().over(so_far).cast("int32") for count in (both.entry, both.strong))
    return both.mutate(seen=seen, seen_strong=strong)


def _blocks(engine: Engine, parts: Sequence[ir.Table], seen: str, size: int) -> Blocks:
    return Blocks(engine.keep(*(_gathered(rows, rows[seen], size) for rows in parts)), size)


def _gathered(numbered: ir.Table, seen: ir.IntegerValue, size: int) -> ir.Table:
    """Entries in lists of `size` per shopper, newest first."""
    fields = {name: numbered[name] for name in ("item_id", "action", "at", "until")}
    newest_first = ibis.struct({"order": -numbered.seen, **fields})
    return numbered.group_by("user_id", block=(seen - 1) // size).agg(entries=newest_first.collect().sort())


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

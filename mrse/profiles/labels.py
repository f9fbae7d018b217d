"""What a shopper did with what they were shown for a query: positives, hard negatives, evaluation requests.

A group is one (split, session, query). A session that runs across the start of the validation or test days makes one
group on each side, each from its own events: neither learns of the other's future.
"""

from __future__ import annotations

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from mrse.config import ProfilesConfig
from mrse.profiles.engine import Engine
from mrse.profiles.judged import Judged
from mrse.profiles.log import ENGAGEMENTS, Log, Span, action_name, gain, gather, or_empty
from mrse.profiles.split import Split

_NOWHERE = 2**31 - 1  # sorts impressions of unknown position last
_SPAN_GROUPS = 2**40  # more than a span can have
_GROUP = ("split", "session_id", "query")


@dataclass(frozen=True)
class Labels:
    """Engagements after the warm-up, one row per (group, item).

    Attributes:
        groups: group (a number), split, session_id, query, user_id, started, first (the first engagement), deepest (the
            largest position engaged with).
        positives: group, item_id, code, rank (of the strongest action), at (when that was), and the group's split,
            session_id, query, user_id, started.
    """

    groups: ir.Table
    positives: ir.Table

    def of(self, span: Span) -> Labels:
        """Those of the sessions of a span."""
        groups, positives = (rows.filter(span.began(rows.started)) for rows in (self.groups, self.positives))
        return Labels(groups, positives)


def read_labels(engine: Engine, log: Log, split: Split) -> Labels:
    """Group the engagements that have a query; cost: linear in the engagements."""
    rows = log.engaged.filter(log.engaged["query"].notnull(), log.engaged.at >= split.train_start)
    rows = rows.mutate(split=split_of(rows.at, split))
    found = engine.keep(*(_positives(rows.filter(span.began(rows.started))) for span in log.spans))
    spans = [found.filter(span.began(found.started)) for span in log.spans]
    groups = engine.keep(*(_groups(positives, place) for place, positives in enumerate(spans)))
    numbers = [groups.filter(span.began(groups.started)).select(*_GROUP, "group", "user_id") for span in log.spans]
    kept = [rows.drop("first", "deepest", "user_id", *ENGAGEMENTS) for rows in spans]
    numbered = [rows.inner_join(number, _GROUP) for rows, number in zip(kept, numbers, strict=True)]
    return Labels(groups, engine.keep(*numbered))


def _positives(rows: ir.Table) -> ir.Table:
    times = {name: rows.at.min(where=rows["rank"] == rank) for rank, name in enumerate(ENGAGEMENTS, 1)}
    positives = rows.group_by(*_GROUP, "item_id", "code").agg(
        rank=rows["rank"].max(),
        first=rows.at.min(),
        deepest=rows.position.max(),
        user_id=rows.user_id.max(),
        started=rows.started.min(),
        **times,
    )
    return positives.mutate(at=ibis.coalesce(*(positives[name] for name in reversed(ENGAGEMENTS))))


def _groups(positives: ir.Table, place: int) -> ir.Table:
    """The groups of a span, numbered so that no other span has the same numbers."""
    groups = positives.group_by(*_GROUP).agg(
        user_id=positives.user_id.max(),
        started=positives.started.min(),
        first=positives["first"].min(),
        deepest=positives.deepest.max(),
    )
    return groups.mutate(group=ibis.row_number() + place * _SPAN_GROUPS)


def split_of(at: ir.TimestampValue, split: Split) -> ir.StringValue:
    """Train, valid or test of an instant after the warm-up."""
    return ibis.cases((at < split.valid_start, "train"), (at < split.test_start, "valid"), else_="test")


def event_examples(
    log: Log, labels: Labels, judged: Judged, span: Span, split: Split, config: ProfilesConfig
) -> ir.Table:
    """Training and validation examples from a span's events: positives with their hard negatives (null: none)."""
    labels = labels.of(span)
    negatives = _hard_negatives(log, labels, judged, span, split, config)
    positives = labels.positives.filter(labels.positives.split != "test")
    joined = positives.left_join(negatives.drop("place"), "group")
    return joined.select(
        "split",
        "session_id",
        "user_id",
        "started",
        "at",
        "query",
        "item_id",
        "hard_negatives",
        action=action_name(joined["rank"]),
        weight=gain(joined["rank"], config).cast("float32"),
    )


def _hard_negatives(
    log: Log, labels: Labels, judged: Judged, span: Span, split: Split, config: ProfilesConfig
) -> ir.Table:
    """At most `hard_negatives` items per group: judged low, then lowest relevance, then skipped above a click.

    A query whose judgments are held out lends none: its grades must steer nothing in training, and without them an item
    that was passed over may well be one that people find relevant.
    """
    held_out = judged.grades.filter(judged.grades.part != "train").select("query").distinct()
    groups = labels.groups.filter(labels.groups.split != "test").anti_join(held_out, "query")
    # From here on every judgment that a group's query meets is one of training.
    events = log.between(max(span.start, split.train_start), min(span.reach, split.test_start))
    found = _passed_over(events, log.items, groups, judged, split, config).union(_judged_low(log, groups, judged))
    found = found.anti_join(labels.positives.select("group", "code"), ["group", "code"])
    place = ibis.row_number().over(group_by=found.group, order_by=[found.tier, found.score, found.code])
    kept = found.mutate(place=place).filter(lambda table: table.place < config.hard_negatives)
    kept = kept.inner_join(log.items, "code")
    return gather(kept, ("group",), {"place": kept.place, "hard_negatives": kept.item_id})


def _judged_low(log: Log, groups: ir.Table, judged: Judged) -> ir.Table:
    lows = judged.lows.inner_join(log.items, "item_id")
    joined = groups.select("group", "query").inner_join(lows, "query")
    return joined.select("group", "code", tier=ibis.literal(0), score="grade")


def _passed_over(
    events: ir.Table, items: ir.Table, groups: ir.Table, judged: Judged, split: Split, config: ProfilesConfig
) -> ir.Table:
    """Items shown with a low relevance score (tier 1, by score) or above an engaged one (tier 2, by position)."""
    shown = events.filter(events["rank"] == 0)
    shown = shown.select("session_id", "query", "item_id", "position", "relevance", split=split_of(shown.at, split))
    joined = shown.inner_join(groups.select(*_GROUP, "group", "deepest"), _GROUP)
    low = joined.relevance < config.low_relevance
    passed = joined.filter(low | (joined.position < joined.deepest))
    grade = judged.grades.grade
    settled = judged.grades.filter((grade >= config.positive_grade) | (grade <= config.negative_grade))
    passed = passed.inner_join(items, "item_id").anti_join(settled, ["query", "item_id"])
    found = passed.group_by("group", "code").agg(relevance=passed.relevance.min(), position=passed.position.min())
    is_low = (found.relevance < config.low_relevance).fill_null(False)
    return found.select(
        "group",
        "code",
        tier=ibis.ifelse(is_low, 1, 2),
        score=ibis.ifelse(is_low, found.relevance, found.position.cast("float64")),
    )


def event_requests(log: Log, labels: Labels, span: Span, split: Split, config: ProfilesConfig) -> ir.Table:
    """A span's evaluation requests: one per group of the validation and test days, with what was shown and done."""
    labels = labels.of(span)
    groups = labels.groups.filter(labels.groups.split != "train")
    positives = labels.positives.filter(labels.positives.split != "train")
    gains = gain(positives["rank"], config).cast("float32")
    best_first = {"lost": -gains, "relevant": positives.item_id, "gains": gains}
    relevant = gather(positives, ("group",), best_first)
    events = log.between(max(span.start, split.valid_start), span.reach)
    shown = _shown(events, log.items, groups, positives, split)
    joined = groups.inner_join(relevant, "group").left_join(shown, "group")
    return joined.select(
        *_GROUP,
        "user_id",
        "started",
        "relevant",
        "gains",
        at=ibis.least(joined["first"], ibis.coalesce(joined.first_shown, joined["first"])),
        **{name: or_empty(joined[name]) for name in SHOWN},
    )


SHOWN = ("shown", "shown_positions", "shown_propensities", "shown_actions")


def _shown(events: ir.Table, items: ir.Table, groups: ir.Table, positives: ir.Table, split: Split) -> ir.Table:
    """Every impression of a group, by position (unknown last), with the strongest action that followed on its item."""
    rows = events.filter(events["rank"] == 0).semi_join(items, "item_id").mutate(split=split_of(events.at, split))
    rows = rows.drop("user_id", "rank").inner_join(groups.select(*_GROUP, "group"), _GROUP)
    rows = rows.left_join(positives.select("group", "item_id", "rank"), ["group", "item_id"])
    rows = rows.mutate(action=action_name(rows["rank"]))
    fields = {
        "shown_positions": rows.position.fill_null(_NOWHERE),
        "shown": rows.item_id,
        "at": rows.at,
        "shown_propensities": rows.propensity,
        "shown_actions": rows.action,
    }
    shown = gather(rows, ("group",), fields, first_shown=rows.at.min()).drop("at")
    return shown.mutate(shown_positions=shown.shown_positions.map(lambda position: position.nullif(_NOWHERE)))

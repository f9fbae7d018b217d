"""The stage `build_profiles`: from clean tables to profiles, examples and requests (docs/profiles.md).

Cost: the events are read a few times, only the columns needed, and never held; what is kept between steps lies on disk
and is linear in the log; memory is that of one part of the log or one slice of the items.
Everything is sorted and summed exactly, so equal inputs give equal bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from mrse.config import ProfilesConfig
from mrse.data import contract
from mrse.errors import DataError
from mrse.profiles import tables
from mrse.profiles.engine import Engine, duckdb
from mrse.profiles.histories import Histories, read_histories, with_history
from mrse.profiles.item_profiles import item_profiles
from mrse.profiles.judged import Judged, judged_examples, judged_requests, read_judged
from mrse.profiles.labels import SHOWN, Labels, event_examples, event_requests, read_labels
from mrse.profiles.log import NAIVE, Log, Span, instant, or_empty, read_log
from mrse.profiles.split import Split, split_window

_SORTED_USERS = 32_768  # so many users, with their histories, are sorted at a time


def build_profiles(clean: Path, out: Path, config: ProfilesConfig) -> dict[str, Any]:
    """Write `users`, `items`, `examples`, `requests`, `queries` as Parquet.

    Args:
        clean: the folder of clean tables (`data/clean`).
        out: the folder to write (`data/profiles`); files of an earlier run are replaced.
        config: how histories, profiles, examples and the split are made.

    Returns:
        The report (`profiles.json`): rows written, rows dropped by reason, the cut times.

    Raises:
        DataError: a table is missing or unreadable, the window is too short for the split, or no training example is
            left.
    """
    split = split_window(*_window(clean), config)
    files = contract.event_files(clean)
    read = sum(_rows(file) for file in files)
    with duckdb(config, out.parent) as engine:
        items = engine.put(contract.read_items(clean).select(["item_id"]))
        log = read_log(engine, engine.read(files, contract.EVENTS), items, split, read)
        grades = contract.read_judgments(clean).select(contract.JUDGMENTS.names)
        judged = read_judged(engine, engine.put(grades), log.items, config)
        labels = read_labels(engine, log, split)
        report = _report(engine, read, grades.num_rows, log, labels, judged, split, config)
        _require_examples(clean, report)
        histories = read_histories(engine, log, _moments(log, labels, split), split.end, config)
        has_events = bool(files)
        outputs = {
            "users": (_users(engine, log, histories, split), tables.USERS),
            "items": (item_profiles(engine, log, split, config), tables.ITEMS),
            "examples": (_examples(engine, log, labels, judged, histories, split, config, has_events), tables.EXAMPLES),
            "requests": (_requests(engine, log, labels, judged, histories, split, config, has_events), tables.REQUESTS),
            "queries": (_queries(engine, log, split), tables.QUERIES),
        }
        report["rows"] = {
            name: engine.write(parts, out / f"{name}.parquet", schema) for name, (parts, schema) in outputs.items()
        }
    return report


def _window(clean: Path) -> tuple[datetime, datetime]:
    meta = contract.read_meta(clean)
    return meta.start, meta.end


def _rows(file: Path) -> int:
    """The number of events in a file, once it is known to be what `validate_logs` writes."""
    try:
        found = pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error}); run validate_logs again") from None
    missing = [name for name in contract.EVENTS.names if name not in found.schema.names]
    if missing:
        raise DataError(f"{file}: events lacks column {', '.join(map(repr, missing))}; run validate_logs again")
    return int(found.num_rows)


def _moments(log: Log, labels: Labels, split: Split) -> ir.Table:
    """When histories are asked for: at the start of every session with a label, and of every shopper at the end."""
    sessions = labels.groups.select("user_id", at="started")
    shoppers = log.shoppers.select("user_id", at=instant(split.end))
    both = sessions.union(shoppers)
    return both.filter(both.user_id.notnull())


def _users(engine: Engine, log: Log, histories: Histories, split: Split) -> list[ir.Table]:
    """Every shopper who logged in, with the history as of the window's end; in parts, in the order of their ids."""
    shoppers, moments = log.shoppers, histories.moments
    place = ibis.row_number().over(order_by=shoppers.user_id)
    numbered = shoppers.select("user_id", number=place // _SORTED_USERS)
    bounds = numbered.group_by("number").agg(first=numbered.user_id.min(), last=numbered.user_id.max())
    ranges = [(row["first"], row["last"]) for row in engine.fetch(bounds.order_by("number"))]
    last = moments.filter(moments.at == split.end)
    return [
        _with_last(
            shoppers.filter(shoppers.user_id.between(*each)), last.filter(last.user_id.between(*each)), histories
        )
        for each in ranges or [("", "")]
    ]


def _with_last(shoppers: ir.Table, moments: ir.Table, histories: Histories) -> ir.Table:
    last = histories.before(moments).drop("at").rename(hist_user="user_id")
    joined = shoppers.left_join(last, [("user_id", "hist_user")])
    lists = {name: or_empty(joined[name]) for name in ("hist_items", "hist_actions", "hist_times")}
    return joined.mutate(**lists).order_by("user_id")


def _queries(engine: Engine, log: Log, split: Split) -> list[ir.Table]:
    """How many sessions asked a query before the test days."""
    asked = log.visits.filter(log.visits["first"] < split.test_start, log.visits["query"].strip() != "")
    pairs = (rows.select("query", "session_id").distinct() for rows in log.parts(asked, asked["query"]))
    return [engine.keep(*(rows.group_by("query").agg(requests=rows.count()) for rows in pairs)).order_by("query")]


def _examples(
    engine: Engine,
    log: Log,
    labels: Labels,
    judged: Judged,
    histories: Histories,
    split: Split,
    config: ProfilesConfig,
    has_events: bool,
) -> list[ir.Table]:
    spans = [span for span in log.spans if span.start < split.test_start]
    made = (event_examples(log, labels, judged, span, split, config) for span in spans)
    rows = engine.keep(*(_with_past(rows, histories, span) for rows, span in zip(made, spans, strict=True)))
    cut = _newest_cut(rows.at, split)
    behaved = rows.mutate(event_time=rows.at, hard_negatives=or_empty(rows.hard_negatives), profile_asof=cut)
    graded = judged_examples(judged, config)
    graded = graded.mutate(
        hard_negatives=or_empty(graded.hard_negatives),
        profile_asof=_frozen(split.valid_asof, has_events),
        **_nulls("event_time", "session_id", "user_id", "action", schema=tables.EXAMPLES),
        **_empty("hist_items", "hist_actions", "hist_ages", schema=tables.EXAMPLES),
    )
    train, valid = (behaved.filter(behaved.split == part) for part in ("train", "valid"))
    runs = [run for run in log.runs if run[1] > split.train_start and run[0] < split.test_start]
    parts = [
        *(_during(train, *run) for run in runs if run[0] < split.valid_start),
        graded.filter(graded.split == "train"),
        *(_during(valid, *run) for run in runs if run[1] > split.valid_start),
        graded.filter(graded.split == "valid"),
    ]
    return [rows.order_by("event_time", "session_id", "query", "item_id") for rows in parts]


def _during(rows: ir.Table, start: datetime, stop: datetime) -> ir.Table:
    return rows.filter(rows.at >= instant(start), rows.at < instant(stop))


def _requests(
    engine: Engine,
    log: Log,
    labels: Labels,
    judged: Judged,
    histories: Histories,
    split: Split,
    config: ProfilesConfig,
    has_events: bool,
) -> list[ir.Table]:
    spans = [span for span in log.spans if span.reach > split.valid_start]
    made = (event_requests(log, labels, span, split, config) for span in spans)
    rows = engine.keep(*(_with_past(rows, histories, span) for rows, span in zip(made, spans, strict=True)))
    behaved = rows.mutate(
        event_time=rows.at,
        source=ibis.literal("events"),
        request_id=request_name(rows),
        profile_asof=_request_cut(rows.split, split, has_events),
    )
    graded = judged_requests(judged)
    graded = graded.mutate(
        source=ibis.literal("judgments"),
        request_id="j-" + _digest(graded["query"]),
        profile_asof=_request_cut(graded.split, split, has_events),
        **_nulls("user_id", "event_time", schema=tables.REQUESTS),
        **_empty("hist_items", "hist_actions", "hist_ages", *SHOWN, schema=tables.REQUESTS),
    )
    parts = (rows.filter(rows.split == part) for part in ("test", "valid") for rows in (behaved, graded))
    return [rows.order_by("request_id") for rows in parts]


def request_name(rows: ir.Table) -> ir.StringValue:
    """The id of a request of the events, from its split, session and query (`mrse.evaluation.pages` names pages so)."""
    return "e-" + _digest(rows.split + "\n" + rows.session_id + "\n" + rows["query"])


def _with_past(rows: ir.Table, histories: Histories, span: Span) -> ir.Table:
    moments = histories.moments
    return with_history(rows, histories.before(moments.filter(span.began(moments.at))))


def _digest(text: ir.StringValue) -> ir.StringValue:
    return text.hexdigest("md5").substr(0, 16)


def _newest_cut(at: ir.TimestampValue, split: Split) -> ir.TimestampValue:
    newest_first = [(at >= cut, instant(cut)) for cut in reversed(split.cuts)]
    return ibis.cases(*newest_first, else_=instant(None))


def _request_cut(part: ir.StringValue, split: Split, has_events: bool) -> ir.TimestampValue:
    """The profiles of a served index are as old as the index: those known when the request's days began."""
    return ibis.ifelse(part == "test", _frozen(split.test_start, has_events), _frozen(split.valid_asof, has_events))


def _frozen(cut: datetime, has_events: bool) -> ir.TimestampScalar:
    return instant(cut if has_events else None)


def _nulls(*names: str, schema: pa.Schema) -> dict[str, ir.Scalar]:
    return {name: ibis.null(_naive(schema, name)) for name in names}


def _empty(*names: str, schema: pa.Schema) -> dict[str, ir.Scalar]:
    return {name: ibis.literal([], type=_naive(schema, name)) for name in names}


def _naive(schema: pa.Schema, name: str) -> ibis.DataType:
    found = schema.field(name).type
    return NAIVE if found == contract.TIME else ibis.DataType.from_pyarrow(found)


def _require_examples(clean: Path, report: dict[str, Any]) -> None:
    if report["examples"]["train"]:
        return
    dropped = "; ".join(
        f"{table}: " + ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        for table, reasons in report["dropped"].items()
    )
    raise DataError(
        f"{clean}: no usable training example: of {report['read']['events']:,} events and "
        f"{report['read']['judgments']:,} judgments none is an engagement with a known item for a query in the "
        f"training days, or a judgment of at least positive_grade for a training query. Dropped: {dropped}"
    )


def _report(
    engine: Engine,
    read: int,
    judgments: int,
    log: Log,
    labels: Labels,
    judged: Judged,
    split: Split,
    config: ProfilesConfig,
) -> dict[str, Any]:
    """Counts that add up: every event read is dropped for a reason, feeds profiles, or is an example or a label."""
    examples = _by_split(engine, labels.positives, "train", "valid", "test")
    graded = _by_split(engine, judged_examples(judged, config), "train", "valid")
    tested = _by_split(engine, labels.groups, "valid", "test")
    tested_grades = _by_split(engine, judged_requests(judged), "valid", "test")
    return {
        "read": {"events": read, "judgments": judgments},
        "examples": {part: examples[part] + graded[part] for part in graded},
        "examples_from_judgments": graded,
        "requests": {part: tested[part] + tested_grades[part] for part in tested},
        "requests_from_judgments": tested_grades,
        "dropped": {
            "events": _dropped_events(engine, read, log),
            "engagements": _dropped_engagements(engine, log, split, sum(examples.values())),
            "judgments": _dropped_judgments(engine, judgments, judged, config),
        },
        "split": {
            name: _iso(getattr(split, name)) for name in ("start", "train_start", "valid_start", "test_start", "end")
        },
        "cuts": [_iso(cut) for cut in split.cuts],
    }


def _by_split(engine: Engine, rows: ir.Table, *parts: str) -> dict[str, int]:
    counts = rows.aggregate(**{part: (rows.split == part).sum() for part in parts})
    return _integers(engine, counts)


def _dropped_events(engine: Engine, read: int, log: Log) -> dict[str, int]:
    days = log.item_days
    unknown = days.filter(days.code.isnull())
    inside = _integers(engine, days.aggregate(events=days.events.sum(), known_actions=_total(days)))
    return {
        "outside_window": read - inside["events"],
        "unknown_action": inside["events"] - inside["known_actions"],
        "unknown_item": _integers(engine, unknown.aggregate(events=_total(unknown)))["events"],
    }


def _total(days: ir.Table) -> ir.IntegerScalar:
    return (days.impressions + days.click + days.add_to_cart + days.order).sum()


def _dropped_engagements(engine: Engine, log: Log, split: Split, labels: int) -> dict[str, int]:
    """Engagements with known items that are no label of their own (they feed histories and profiles all the same)."""
    engaged = log.engaged
    early = engaged.at < split.train_start
    counts = _integers(
        engine,
        engaged.aggregate(
            events=engaged.count(),
            warm_up=early.sum(),
            no_query=(~early & engaged["query"].isnull()).sum(),
        ),
    )
    repeated = counts["events"] - counts["warm_up"] - counts["no_query"] - labels
    return {"warm_up": counts["warm_up"], "no_query": counts["no_query"], "weaker_or_repeated": repeated}


def _dropped_judgments(engine: Engine, read: int, judged: Judged, config: ProfilesConfig) -> dict[str, int]:
    grades = judged.grades
    middling = (grades.grade < config.positive_grade) & (grades.grade > config.negative_grade)
    counts = _integers(
        engine, grades.aggregate(usable=grades.count(), middling=((grades.part == "train") & middling).sum())
    )
    return {"unknown_item_or_no_query": read - counts["usable"], "neither_positive_nor_negative": counts["middling"]}


def _integers(engine: Engine, rows: ir.Table) -> dict[str, int]:
    (row,) = engine.fetch(rows)
    return {name: int(value or 0) for name, value in row.items()}


def _iso(time: datetime) -> str:
    return time.replace(tzinfo=UTC).isoformat()

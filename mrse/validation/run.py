"""`validate_logs`: snapshot in; clean tables, quarantined rows and a report out; or one clear reason to stop.

Cheap checks come first, so that a broken snapshot fails in seconds: file footers, items, judgments, events in batches
of whole days, then what the whole window must hold, drift, and last the pictures. Each column is read once. Memory is
that of the catalogue and one batch of days, whatever the number of days; time is 0.5 to 1.7 times that of a bare pandas
scan with the same checks (`benchmarks/validation.py`), plus some seconds to load Great Expectations.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrse.config import Params, ValidateConfig
from mrse.data import contract
from mrse.data.contract import ACTIONS, SORT_KEYS, SnapshotMeta
from mrse.data.images import ImageStore
from mrse.errors import DataError, ValidationFailed
from mrse.jsonfile import write_json
from mrse.layout import CLEAN, QUARANTINE, SNAPSHOT, VALIDATION_DOCS
from mrse.progress import say, track
from mrse.validation import docs, frames, statistics, suites
from mrse.validation.engine import Engine, Hit, SuiteRun
from mrse.validation.pictures import problems
from mrse.validation.quarantine import Quarantine, Tally, judge, plain_table, repair, rows_of

BATCH_ROWS = 400_000
_CLOCK_SKEW = timedelta(minutes=10)
_FEWEST_USERS = 4  # one user's share can be judged when an even share would be this many times smaller than the bound


@dataclass
class Run:
    """One run over one window.

    Attributes:
        meta: the snapshot's description.
        suites: everything that Great Expectations found.
        tallies: rows seen and set aside, by table; `images` counts pictures.
        clean_rows: rows that go on.
        days: per day of the window, the events logged: all, then one count per action.
        users: events per known user.
        notes: facts that are no failure.
    """

    config: ValidateConfig
    meta: SnapshotMeta
    workspace: Path
    state: Path
    engine: Engine
    suites: list[SuiteRun] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    clean_rows: dict[str, int] = field(default_factory=dict)
    items: pa.Table | None = None
    days: np.ndarray[tuple[int, int], np.dtype[np.int64]] = field(default_factory=lambda: np.zeros((0, 5), np.int64))
    users: dict[str, int] = field(default_factory=dict)
    null_users: int = 0
    shape: statistics.Statistics = field(default_factory=statistics.Statistics)
    drift: statistics.Drift | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def snapshot(self) -> Path:
        """`data/snapshot`."""
        return self.workspace / SNAPSHOT

    @property
    def fresh(self) -> Path:
        """Where the clean tables grow; it becomes `data/clean` in one move."""
        return self.workspace / CLEAN.with_name(".clean.tmp")

    @property
    def failures(self) -> list[str]:
        """Why the run must stop; empty when it need not."""
        return [failure for run in self.suites for failure in run.failures]

    @property
    def warnings(self) -> list[str]:
        """What the report should point at."""
        return [warning for run in self.suites for warning in run.warnings]

    def check(self, suite: Any, frame: pd.DataFrame, batch: str) -> list[Hit]:
        """Run a suite, keep its result, and return the rows that broke a rule."""
        self.suites.append(self.engine.run(suite, frame, batch))
        return self.suites[-1].hits


def validate_logs(params: Params, workspace: Path) -> str:
    """Check `data/snapshot`; write `data/clean`, `data/quarantine`, `reports/validation.json`, `reports/validation/`.

    Args:
        params: uses `validate_logs` and `services.state_dir`.
        workspace: the folder that holds `data/`.

    Returns:
        One sentence on what was found.

    Raises:
        DataError: a file is missing, unreadable or does not fit the contract.
        ValidationFailed: a critical expectation failed, too much was set aside, or drift passed its bound. The report
            is written all the same; `data/clean` is not.
    """
    snapshot = workspace / SNAPSHOT
    meta = contract.read_meta(snapshot)
    files = contract.event_files(snapshot)
    footers = [_open(path).metadata for path in files]
    run = Run(
        config=params.validate_logs,
        meta=meta,
        workspace=workspace,
        state=Path(workspace, params.services.state_dir, "statistics", f"{meta.source}-{meta.shop}"),
        engine=Engine(),
    )
    shutil.rmtree(run.fresh, ignore_errors=True)
    shutil.rmtree(workspace / QUARANTINE, ignore_errors=True)
    items, judgments = contract.read_items(snapshot), contract.read_judgments(snapshot)
    with Quarantine(workspace / QUARANTINE / "items.parquet", items.schema) as quarantine:
        steps: list[Callable[[], None]] = [
            lambda: _check_items(run, _sound(items, "items"), quarantine),
            lambda: _check_judgments(run, _sound(judgments, "judgments")),
            lambda: _check_events(run, files, [footer.num_rows for footer in footers]),
            lambda: _check_window(run),
            lambda: _check_drift(run),
            lambda: _check_pictures(run, quarantine),
        ]
        for step in steps:
            step()
            if run.failures:
                break
    if not run.failures:
        _publish(run)
    _report(run)
    if run.failures:
        raise ValidationFailed("; ".join(run.failures) + ". See reports/validation/index.html and data/quarantine/")
    statistics.save(run.shape, run.meta, run.state)
    return _summary(run)


def _check_items(run: Run, table: pa.Table, quarantine: Quarantine) -> None:
    say("checking items")
    tally = run.tallies.setdefault("items", Tally())
    hits = run.check(suites.items(), frames.items_frame(table, run.config), f"{table.num_rows:,} rows")
    verdict = judge(hits, table.num_rows, tally)
    quarantine.add(table, verdict.hits)
    limits = {"title": run.config.max_title_chars, "category": run.config.max_title_chars}
    clean = repair(table, verdict.hits, limits).filter(pa.array(verdict.keep))
    run.check(suites.catalogue(run.config), pd.DataFrame({"item_id": clean["item_id"].to_pandas()}), "after cleaning")
    _check_bounds(run, "items")
    run.items = clean
    run.shape.add_items(clean)


def _check_judgments(run: Run, table: pa.Table) -> None:
    tally = run.tallies.setdefault("judgments", Tally())
    path = run.workspace / QUARANTINE / "judgments.parquet"
    with Quarantine(path, table.schema) as quarantine:
        clean = table
        if table.num_rows:
            say("checking judgments")
            frame = frames.judgments_frame(table, _known(run), run.config)
            hits = run.check(suites.judgments(), frame, f"{table.num_rows:,} rows")
            verdict = judge(hits, table.num_rows, tally)
            quarantine.add(table, verdict.hits)
            clean = repair(table, verdict.hits, {"query": run.config.max_query_chars}).filter(pa.array(verdict.keep))
    _check_bounds(run, "judgments")
    run.clean_rows["judgments"] = contract.write_parquet(_sorted(clean, "judgments"), run.fresh / "judgments.parquet")


def _check_events(run: Run, files: list[Path], rows: list[int]) -> None:
    run.tallies["events"] = Tally()
    run.days = np.zeros(((run.meta.end - run.meta.start).days, 1 + len(ACTIONS)), np.int64)
    run.clean_rows["events"] = 0
    schema = _open(files[0]).schema_arrow if files else contract.EVENTS
    kinds = statistics.kinds(_items(run))
    session = frames.Session()
    now = None if run.meta.simulated else datetime.now(UTC) + _CLOCK_SKEW
    suite = suites.events(run.meta.start, run.meta.end, now)
    batches = list(_batches(files, rows))
    with Quarantine(run.workspace / QUARANTINE / "events.parquet", schema) as quarantine:
        for batch in track(batches, "checking events", unit="batch"):
            table, starts = _read_days(batch)
            frame = frames.events_frame(table, _known(run), run.config, session)
            hits = run.check(suite, frame, _batch_name(batch))
            del frame
            verdict = judge(hits, table.num_rows, run.tallies["events"])
            quarantine.add(table, verdict.hits)
            _count_days(run, table)
            clean = repair(table, verdict.hits, {"query": run.config.max_query_chars})
            _write_days(run, batch, clean, verdict.keep, verdict.hits, starts)
            clean = clean if verdict.keep.all() else clean.filter(pa.array(verdict.keep))
            run.shape.add_events(clean, kinds)
            _count_users(run, clean)
    _check_bounds(run, "events")


def _check_window(run: Run) -> None:
    """What all days together must hold."""
    if not run.tallies["events"].rows:
        run.notes.append("the shop has no events in this window")
        return
    run.check(suites.days(run.config, len(run.days)), _days_frame(run), "one row per day")
    known = sum(run.users.values())
    top = max(run.users.items(), key=lambda user: (user[1], user[0]), default=("", 0))
    comparable = len(run.users) * run.config.max_user_share >= _FEWEST_USERS
    if not known:
        run.notes.append("no event names a user: the shop has no shoppers to learn from")
    elif not comparable:
        run.notes.append(f"{len(run.users)} known users are too few to judge the share of one user")
    share = top[1] / known if known and comparable else None
    nulls = run.null_users / (run.null_users + known) if known else None
    what = "no user stands out" if share is None else f"user {top[0]!r} makes {share:.1%} of the events of known users"
    frame = pd.DataFrame({"what": [what], "top_user_share": [share], "null_user_share": [nulls]})
    numbers = frame.astype({"top_user_share": "float64", "null_user_share": "float64"})
    run.check(suites.shoppers(run.config), numbers, "the whole window")


def _check_drift(run: Run) -> None:
    run.drift = statistics.compare(run.shape, run.meta, run.state, run.config.drift)
    if not run.drift.changes:
        return
    changes = run.drift.changes
    frame = pd.DataFrame(
        {
            "what": [f"{c.name} ({c.measure} {c.distance:.3f}, bound {c.bound:g})" for c in changes],
            "distance": [c.distance for c in changes],
            "bound": [c.bound for c in changes],
        }
    )
    run.check(suites.drift(), frame, f"against the window that ended {run.drift.reference[:10]}")  # type: ignore[index]


def _check_pictures(run: Run, quarantine: Quarantine) -> None:
    """Decode every picture; items whose picture cannot be used go on without it. Writes the clean items."""
    items = _items(run)
    named = rows_of(pc.is_valid(items["image"]).to_numpy())
    if len(named):
        table = items.take(pa.array(named))
        refs = table["image"].to_pylist()
        found = problems(refs, ImageStore(run.meta.image_root, run.workspace), run.config.max_image_pixels)
        frame = pd.DataFrame({"image": refs, "image_problem": [found.get(ref) for ref in refs]})
        hits = run.check(suites.images(), frame, f"{len(refs):,} pictures")
        verdict = judge(hits, len(refs), run.tallies.setdefault("images", Tally()))
        quarantine.add(table, verdict.hits, [found.get(ref, "") for ref in refs])
        _check_bounds(run, "images")
        items = repair(items, [Hit(h.reason, h.outcome, h.column, named[h.rows]) for h in verdict.hits], {})
    run.clean_rows["items"] = contract.write_parquet(_sorted(items, "items"), run.fresh / "items.parquet")


def _check_bounds(run: Run, table: str) -> None:
    """Hold the share of rows set aside against `params.yaml`."""
    rows = _bounds(run.tallies[table], run.config)
    if not rows:
        return
    frame = pd.DataFrame(rows, columns=["reason", "share", "bound"])
    frame["what"] = [f"{table} {reason} {share:.2%} (bound {bound:.2%})" for reason, share, bound in rows]
    run.check(suites.bounds(), frame, table)


def _bounds(tally: Tally, config: ValidateConfig) -> list[tuple[str, float, float]]:
    """`(reason, share, bound)`: all removals together, each repair, and each reason with a bound of its own."""
    own, rows = config.max_quarantined_by_reason, []
    together, names = 0, []
    for reason, outcome, count in tally.flat():
        if reason in own:
            rows.append((reason, count / tally.rows, own[reason]))
        elif outcome == "removed":
            together += count
            names.append((count, reason))
        elif outcome != "kept":
            rows.append((reason, count / tally.rows, config.max_quarantined))
    if together:
        most = ", ".join(f"{reason} {count / tally.rows:.2%}" for count, reason in sorted(names, reverse=True)[:3])
        rows.append((f"removed ({most})", together / tally.rows, config.max_quarantined))
    return rows


def _publish(run: Run) -> None:
    """Describe the clean tables and move them to `data/clean` in one step."""
    rows = {name: run.clean_rows[name] for name in ("items", "events", "judgments")}
    mark = contract.fingerprint(contract.table_files(run.fresh), root=run.fresh)
    contract.write_meta(run.fresh, run.meta.model_copy(update={"rows": rows, "fingerprint": mark}))
    final = run.workspace / CLEAN
    shutil.rmtree(final, ignore_errors=True)
    run.fresh.rename(final)


def _report(run: Run) -> None:
    shutil.rmtree(run.fresh, ignore_errors=True)  # what a failed run had cleaned so far
    summary = report(run)
    write_json(run.workspace / "reports" / "validation.json", summary)
    docs.write(summary, run.suites, run.workspace / VALIDATION_DOCS)


def report(run: Run) -> dict[str, Any]:
    """`reports/validation.json`."""
    return {
        "status": "failed" if run.failures else "passed",
        "failures": run.failures,
        "warnings": run.warnings,
        "notes": run.notes,
        "window": {"start": run.meta.start.isoformat(), "end": run.meta.end.isoformat()},
        "source": run.meta.source,
        "simulated": run.meta.simulated,
        "tables": {name: _table_report(tally) for name, tally in run.tallies.items()},
        "clean_rows": run.clean_rows,
        "days": _days_report(run),
        "drift": _drift_report(run),
        "suites": [
            {
                "suite": found.suite,
                "batch": found.batch,
                "expectations": len(found.result.results),
                "failed": sum(not entry.success for entry in found.result.results),
            }
            for found in run.suites
        ],
    }


def _table_report(tally: Tally) -> dict[str, Any]:
    reasons: dict[str, dict[str, Any]] = {}
    for reason, outcome, count in tally.flat():
        reasons[reason] = {"outcome": outcome, "rows": count, "share": count / tally.rows}
    share = tally.removed / tally.rows if tally.rows else 0.0
    return {"rows": tally.rows, "removed": tally.removed, "removed_share": share, "reasons": reasons}


def _days_report(run: Run) -> list[dict[str, Any]]:
    if "events" not in run.tallies or not run.tallies["events"].rows:
        return []
    return [
        {"day": row.what, **{name: int(getattr(row, name)) for name in _DAY_COLUMNS}}
        for row in _counts_frame(run).itertuples()
    ]


def _drift_report(run: Run) -> dict[str, Any]:
    if run.drift is None:
        return {"reference": None, "note": "not reached", "changes": {}}
    changes = {c.name: {"measure": c.measure, "distance": c.distance, "bound": c.bound} for c in run.drift.changes}
    return {"reference": run.drift.reference, "note": run.drift.note, "changes": changes}


_DAY_COLUMNS = ("events", "impressions", "clicks", "add_to_carts", "orders")


def _counts_frame(run: Run) -> pd.DataFrame:
    days = [f"{run.meta.start + timedelta(days=number):%Y-%m-%d}" for number in range(len(run.days))]
    return pd.DataFrame({"what": days} | {name: run.days[:, place] for place, name in enumerate(_DAY_COLUMNS)})


def _days_frame(run: Run) -> pd.DataFrame:
    """The counts; a kind of action that the shop never logs is null, for it can be compared with nothing."""
    frame = _counts_frame(run).astype({name: "float64" for name in _DAY_COLUMNS})
    for name in _DAY_COLUMNS[1:]:
        if not frame[name].any():
            frame[name] = np.nan
            run.notes.append(f"the shop logs no {name}")
    return frame


def _count_days(run: Run, table: pa.Table) -> None:
    """Add a batch, as logged, to the counts per day."""
    days = frames.days_of(table["event_time"], int(run.meta.start.timestamp() * 1e6))
    values, codes = frames.dictionary(table["action"])
    place = {action: 1 + number for number, action in enumerate(ACTIONS)}
    actions = np.array([place.get(value, 0) for value in values.to_pylist()] + [0])[codes]
    inside = (days >= 0) & (days < len(run.days))
    width = 1 + len(ACTIONS)
    counts = np.bincount(days[inside] * width + actions[inside], minlength=len(run.days) * width)
    by_day = counts.reshape(len(run.days), width)
    by_day[:, 0] = by_day.sum(axis=1)
    run.days += by_day


def _count_users(run: Run, table: pa.Table) -> None:
    values, codes = frames.dictionary(table["user_id"])
    counts = np.bincount(codes + 1, minlength=len(values) + 1)
    run.null_users += int(counts[0])
    for user, count in zip(values.to_pylist(), counts[1:].tolist(), strict=True):
        run.users[user] = run.users.get(user, 0) + count


def _write_days(
    run: Run, files: list[Path], table: pa.Table, keep: frames.Mask, hits: list[Hit], starts: list[int]
) -> None:
    """Write the clean days of a batch. A day that nothing happened to is copied: its bytes are already right."""
    touched = ~keep
    for hit in hits:
        if hit.outcome in ("nulled", "cleaned"):
            touched[hit.rows] = True
    for path, start, stop in zip(files, starts[:-1], starts[1:], strict=True):
        target = run.fresh / path.relative_to(run.snapshot)
        if not keep[start:stop].any():
            continue
        run.clean_rows["events"] += int(keep[start:stop].sum())
        if touched[start:stop].any():
            day = table.slice(start, stop - start).filter(pa.array(keep[start:stop]))
            contract.write_parquet(_sorted(plain_table(day), "events"), target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _batches(files: list[Path], rows: list[int]) -> Iterator[list[Path]]:
    """Consecutive days of together at most `BATCH_ROWS` rows; a larger day is a batch of its own."""
    batch: list[Path] = []
    held = 0
    for path, count in zip(files, rows, strict=True):
        if batch and held + count > BATCH_ROWS:
            yield batch
            batch, held = [], 0
        batch.append(path)
        held += count
    if batch:
        yield batch


def _read_days(files: list[Path]) -> tuple[pa.Table, list[int]]:
    """The events of some days, strings as dictionaries, and the rows where each day starts and the last one ends."""
    tables = []
    for path in files:
        try:
            tables.append(_sound(_open(path, dictionaries=True).read(), "events"))
        except (pa.ArrowInvalid, OSError) as error:
            raise _unreadable(path, error) from None
    starts = np.cumsum([0, *(table.num_rows for table in tables)]).tolist()
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries(), starts


def _open(path: Path, dictionaries: bool = False) -> pq.ParquetFile:
    names = [field.name for field in contract.EVENTS if pa.types.is_string(field.type)]
    try:
        file = pq.ParquetFile(path, read_dictionary=names if dictionaries else None)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    for wanted in contract.EVENTS:
        found = file.schema_arrow.field(wanted.name).type if wanted.name in file.schema_arrow.names else None
        if found != wanted.type and not (found is not None and pa.types.is_dictionary(found)):
            raise DataError(
                f"{path}: events column {wanted.name!r} is {found or 'missing'}, wanted {wanted.type}; "
                "run the snapshot stage again"
            )
    return file


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable Parquet file ({error}); run the snapshot stage again")


def _sound(table: pa.Table, name: str) -> pa.Table:
    """The table with bytes that are not UTF-8 replaced by U+FFFD, which the suites then find."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return _mended(table, name)
    return table


def _mended(table: pa.Table, name: str) -> pa.Table:
    extras = [column for column in table.schema if column.name not in contract.SCHEMAS[name].names]
    schema = pa.schema([*contract.SCHEMAS[name], *extras])
    batches = [contract.conform(batch, schema, name) for batch in table.combine_chunks().to_batches()]
    mended = pa.Table.from_batches(batches, schema).select(table.column_names)
    for place, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            mended = mended.set_column(place, column.name, mended.column(place).dictionary_encode())
    return mended


def _sorted(table: pa.Table, name: str) -> pa.Table:
    return table.sort_by([(key, "ascending") for key in SORT_KEYS[name]])


def _items(run: Run) -> pa.Table:
    assert run.items is not None  # items are checked first
    return run.items


def _known(run: Run) -> pa.Array:
    return _items(run)["item_id"].combine_chunks()


def _batch_name(files: list[Path]) -> str:
    names = {f"dt={contract.NULL_DAY}": "rows without a time"}
    first, last = (names.get(path.parent.name, path.parent.name[3:]) for path in (files[0], files[-1]))
    return first if first == last else f"{first} to {last}"


def _summary(run: Run) -> str:
    parts = [f"{run.clean_rows[name]:,} {name}" for name in ("items", "events", "judgments")]
    removed = sum(tally.removed for tally in run.tallies.values())
    repaired = sum(n for tally in run.tallies.values() for _, how, n in tally.flat() if how in ("nulled", "cleaned"))
    warnings = f", {len(run.warnings)} warnings" if run.warnings else ""
    return f"{', '.join(parts)} are clean; {removed:,} rows removed, {repaired:,} values repaired{warnings}"

"""What is live and how it came to be, in words: true in every state, from nothing at all to a swap cut in half.

Milvus says what is live, MLflow which runs and versions there are; nothing is changed and nothing is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mrse import tracking
from mrse.config import ServicesConfig
from mrse.evaluation.history import Decided, read_history
from mrse.index.client import Stamp, Store, exists, opened
from mrse.index.swap import Live, look
from mrse.jsonfile import read_handed
from mrse.layout import CHALLENGER_JSON, DECISION


def describe(services: ServicesConfig, workspace: Path) -> str:
    """The answer of `mrse status`.

    Raises:
        ServiceError: a service does not answer.
        IndexFailed: the alias names a collection that MRSE did not build.
    """
    if not exists(services):
        return "\n".join([_row("live", _nothing(services)), *_newest(workspace, None)])
    with opened(services) as store:
        live = look(store, services)
        rows = None if live is None else store.count(live.collection)
        others = _others(store, live)
    if live is None or rows is None:
        return "\n".join([_row("live", _nothing(services)), *others, *_newest(workspace, None)])
    stamp = live.stamp
    simulated = ", simulated shoppers" if stamp.simulated else ""
    lines = [
        _row("live", f"{live.collection} since {stamp.since or 'unknown'}"),
        _row("model", f"version {stamp.model_version}, fingerprint {stamp.model_fingerprint[:12]}, run {stamp.run_id}"),
        _row(
            "data",
            f"{stamp.window_start[:10]} to {stamp.window_end[:10]}{simulated}, fingerprint "
            f"{stamp.snapshot_fingerprint[:12]}",
        ),
        _row("items", f"{rows:,}" if rows == stamp.rows else f"{rows:,}, but {stamp.rows:,} were verified: rebuild"),
        _row("index", f"{stamp.index_type} {stamp.search_params or ''}".rstrip()),
        _row("before", stamp.previous or "nothing"),
        _row("champion", _champion(live)),
        *_forced(services, live),
    ]
    return "\n".join([*lines, *others, *_newest(workspace, live)])


def table_of_runs(services: ServicesConfig, limit: int) -> str:
    """The answer of `mrse runs`."""
    found = tracking.list_runs(services, limit)
    if not found:
        return "no training run yet"
    live = _live_version(services)
    decided: dict[int, list[Decided]] = {}
    for each in reversed(read_history(services)):
        decided.setdefault(each.version, []).append(each)
    header = ("version", "started", "run", "window", "live", "lift", "decision")
    return _table([header, *(row for run in found for row in _run_rows(run, live, decided))])


def _run_rows(
    run: tracking.TrainingRun, live: int | None, decided: Mapping[int, Sequence[Decided]]
) -> list[tuple[str, ...]]:
    """One row for each decision about the run's version, newest first, or one that says there is none."""
    version = run.version
    window = " to ".join(run.tags[name][:10] for name in ("data_start", "data_end") if name in run.tags) or "-"
    told = (
        "-" if version is None else str(version.version),
        f"{run.started:%Y-%m-%d %H:%M}",
        run.run_id[:8],
        window,
        "live" if version is not None and version.version == live else "",
    )
    about = () if version is None else decided.get(version.version, ())
    if not about:
        return [(*told, "-", run.status.lower() if version is None else "not judged")]
    return [(*told, each.effect, f"{each.said} ({each.code})") for each in about]


def _live_version(services: ServicesConfig) -> int | None:
    if not exists(services):
        return None
    with opened(services) as store:
        collection = store.target()
        stamp = None if collection is None else store.stamp(collection)
    return None if stamp is None else stamp.model_version


def _nothing(services: ServicesConfig) -> str:
    champion = tracking.champion(services)
    if champion is None:
        return "nothing is live yet: no run of the pipeline has been promoted here"
    return (
        f"nothing is live, but MLflow's champion is version {champion.version}: its collection or alias was removed, "
        "or this is another Milvus; `mrse rollback --to VERSION` or `dvc repro --force build_index swap_index`"
    )


def _champion(live: Live) -> str:
    if not live.known:
        return f"MLflow does not know version {live.stamp.model_version}: it is not the store that this index came from"
    if live.champion == live.stamp.model_version:
        return f"version {live.champion}, as live"
    lag = "none" if live.champion is None else f"version {live.champion}"
    return f"{lag}, but live is version {live.stamp.model_version}: `mrse reconcile` mends it"


def _forced(services: ServicesConfig, live: Live) -> list[str]:
    """Who put the live version there in spite of the gate, where somebody did."""
    version = tracking.get_version(services, live.stamp.model_version)
    tags = {} if version is None else version.tags
    if "forced_over" not in tags:  # written last
        return []
    return [_row("forced", f"by {tags['forced_by']} over {tags['forced_over']}: {tags['forced_reason']}")]


def _others(store: Store, live: Live | None) -> list[str]:
    lines = []
    for name, stamp in store.collections().items():
        if live is None or name not in (live.collection, live.stamp.previous):
            lines.append(_row("also", f"{name}, {_fate(stamp)}"))
    return lines


def _fate(stamp: Stamp | None) -> str:
    if stamp is None:
        return "without a stamp"
    if stamp.state == "building":
        return f"not verified: being built, or left by a killed run ({stamp.created})"
    if stamp.state == "failed":
        return f"failed its verification, kept to be looked at ({stamp.created})"
    return f"kept to roll back to (was live {stamp.since})" if stamp.since else "verified, never live"


def _newest(workspace: Path, live: Live | None) -> list[str]:
    """The challenger that lies in the workspace, where it is not the one that is live."""
    if not (workspace / CHALLENGER_JSON).exists():
        return []
    version = int(read_handed(workspace / CHALLENGER_JSON, "train")["version"])
    if live is not None and version == live.stamp.model_version:
        return []
    decided = (workspace / DECISION).exists()
    outcome = read_handed(workspace / DECISION, "gate") if decided else {}
    if outcome.get("challenger", {}).get("version", version) != version:
        outcome = {}
    return [_row("newest", f"version {version}, {outcome.get('outcome', 'not judged yet')}")]


def _row(name: str, value: str) -> str:
    return f"{name:<10}{value}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)

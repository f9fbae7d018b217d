"""Live the days of a window in the simulated shop and write them down as a shop's tables.

Cost: about 20 s for the default size (5,000 items with pictures, 14 days, 300,000 events); memory is that of one day.
"""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrse.config import MarketplaceConfig
from mrse.data.contract import EVENTS, TIME, write_parquet
from mrse.data.marketplace.catalogue import ATTRIBUTES, Catalogue, open_catalogue
from mrse.data.marketplace.judging import QueryCounts, judge
from mrse.data.marketplace.pictures import draw_pictures
from mrse.data.marketplace.queries import ASKABLE
from mrse.data.marketplace.sessions import Events, Requests, Shop
from mrse.data.marketplace.shoppers import gather
from mrse.data.uris import resolve
from mrse.errors import ConfigError
from mrse.progress import track

_ACTIONS = ("add_to_cart", "click", "impression", "order")
_EPOCH = date(1970, 1, 1).toordinal()
_US_PER_DAY = 86_400_000_000


def simulate(config: MarketplaceConfig, start: datetime, end: datetime, folder: Path) -> None:
    """Write the shop's tables for the window `[start, end)`.

    Writes `items.parquet`, `events/dt=YYYY-MM-DD/part-0.parquet`, `judgments.parquet` and, where the catalogue is an
    invented one, `images.zip` with the pictures named by `items.image`. Also `truth/`: what is known only because the
    shop is simulated, for slicing an evaluation, never for a model. `truth/items.parquet` has `item_id`, one column per
    attribute, and `forgotten`: the attributes that the title does not tell.
    `truth/queries/dt=YYYY-MM-DD/part-0.parquet` has `query`, `typo`, `vague`, and `asks`: the attributes named beside
    the type.

    Args:
        config: the shop; equal configurations give equal bytes, and windows that overlap agree on the days they share.
        start, end: midnights (UTC), not before `config.opens`.
        folder: made when missing; what an earlier call wrote is replaced.

    Raises:
        ConfigError: the window is not of whole days, is empty, or begins before the shop opened.
        DataError: a given catalogue cannot be used.
    """
    days = _days(config, start, end)
    catalogue = open_catalogue(config, end.date())
    shop = Shop(config, catalogue, gather(config, catalogue, days.stop))
    _clear(folder)
    write_parquet(catalogue.table, folder / "items.parquet")
    write_parquet(_item_truth(catalogue), folder / "truth" / "items.parquet")
    counts = QueryCounts()
    for day in track(days, "simulating days", unit="day"):
        requests = shop.ask(day)
        counts.add(requests.texts, requests.questions, requests.query_R)
        events = list(shop.respond(day, requests, shop.rank(day, requests)))
        partition = f"dt={date.fromordinal(day)}/part-0.parquet"
        write_parquet(_event_table(catalogue, day, requests, events), folder / "events" / partition)
        write_parquet(_query_truth(requests), folder / "truth" / "queries" / partition)
    write_parquet(judge(config, catalogue, counts.commonest()), folder / "judgments.parquet")
    if not config.catalogue:
        draw_pictures(config, catalogue, folder / "images.zip")


def located(config: MarketplaceConfig, workspace: Path) -> MarketplaceConfig:
    """The same shop, its given catalogue found from any folder: a local path counts from the workspace."""
    if config.catalogue is None:
        return config
    return config.model_copy(update={"catalogue": resolve(config.catalogue, workspace)})


def _days(config: MarketplaceConfig, start: datetime, end: datetime) -> range:
    """The proleptic ordinals of the window's days."""
    for moment in (start, end):
        if moment.astimezone(UTC).time() != time():
            raise ConfigError(
                f"snapshot: the simulated shop lives whole days (UTC); {moment.isoformat()} is not midnight"
            )
    first, stop = (moment.astimezone(UTC).date().toordinal() for moment in (start, end))
    if first >= stop:
        raise ConfigError(f"snapshot: the window from {start.isoformat()} to {end.isoformat()} holds no day")
    if first < config.opens.toordinal():
        raise ConfigError(
            f"marketplace.opens: the shop opens on {config.opens}, after the window's first day "
            f"{date.fromordinal(first)}; open it earlier or move snapshot.end"
        )
    return range(first, stop)


def _clear(folder: Path) -> None:
    """Remove what an earlier call may have left, so that no day of another window stays."""
    for name in ("events", "truth"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "images.zip").unlink(missing_ok=True)


def _event_table(catalogue: Catalogue, day: int, requests: Requests, chunks: list[Events]) -> pa.Table:
    """A day's events in the contract's columns and order."""
    request_E = np.concatenate([chunk.request_E for chunk in chunks])
    microsecond_E = np.concatenate([chunk.microsecond_E for chunk in chunks])
    item_E = np.concatenate([chunk.item_E for chunk in chunks])
    position_E = np.concatenate([chunk.position_E for chunk in chunks])
    action_E = np.concatenate([chunk.action_E for chunk in chunks])
    session_E = requests.session_R[request_E]
    order = np.lexsort((action_E, item_E, position_E, session_E, microsecond_E))
    request_E, session_E = request_E[order], session_E[order]
    relevance_E = np.concatenate([chunk.relevance_E for chunk in chunks])[order]
    prefix = f"s{date.fromordinal(day):%Y%m%d}-"
    sessions = pa.array([f"{prefix}{n:06d}" for n in range(int(session_E.max()) + 1)], pa.string())
    users = pa.array([f"u{n:06d}" for n in range(int(requests.user_R.max()) + 1)], pa.string())
    user_E = pa.array(requests.user_R[request_E], mask=~requests.known_R[request_E])
    columns = {
        "event_time": pa.array((day - _EPOCH) * _US_PER_DAY + microsecond_E[order], TIME),
        "session_id": sessions.take(pa.array(session_E)),
        "user_id": users.take(user_E),
        "query": pa.array(requests.texts, pa.string()).take(pa.array(requests.query_R[request_E])),
        "item_id": pa.array(catalogue.item_ids, pa.string()).take(pa.array(item_E[order])),
        "position": pa.array(position_E[order].astype(np.int32)),
        "action": pa.array(_ACTIONS, pa.string()).take(pa.array(action_E[order])),
        "relevance": pa.array(relevance_E, mask=np.isnan(relevance_E)),
        "propensity": pa.array(np.concatenate([chunk.propensity_E for chunk in chunks])[order]),
    }
    return pa.table(columns, schema=EVENTS)


def _item_truth(catalogue: Catalogue) -> pa.Table:
    columns: dict[str, pa.Array] = {"item_id": pa.array(catalogue.item_ids, pa.string())}
    for name, values in zip(ATTRIBUTES, catalogue.words, strict=True):
        if values and name != "group":
            codes = catalogue.codes(name)
            usual = pa.array([forms[0] for forms in values], pa.string())
            columns[name] = usual.take(pa.array(codes, mask=codes < 0))
    columns["forgotten"] = pa.array([list(names) for names in catalogue.forgotten], pa.list_(pa.string()))
    return pa.table(columns)


def _query_truth(requests: Requests) -> pa.Table:
    asks = [
        [name for name in ASKABLE if question.intent[ATTRIBUTES.index(name)] >= 0] for question in requests.questions
    ]
    table = pa.table(
        {
            "query": pa.array(requests.texts, pa.string()),
            "typo": pa.array([question.typo > 0 for question in requests.questions]),
            "vague": pa.array([not set(names) - {"gender"} for names in asks]),
            "asks": pa.array(asks, pa.list_(pa.string())),
        }
    )
    return table.take(pc.sort_indices(table["query"]))

"""The expressions are not written for DuckDB alone: Ibis can say each of them in Spark's SQL too."""

from datetime import UTC, datetime, timedelta

import ibis
import pytest
from ibis.config import Config

from mrse.config import ProfilesConfig
from mrse.data import contract
from mrse.profiles import build
from mrse.profiles import log as log_module
from mrse.profiles.histories import read_histories
from mrse.profiles.item_profiles import item_profiles
from mrse.profiles.judged import read_judged
from mrse.profiles.labels import read_labels
from mrse.profiles.log import read_log
from mrse.profiles.split import split_window


class SparkOptions(Config):
    treat_nan_as_null: bool = False


class Recorder:
    """An engine that computes nothing: what it is asked to keep becomes a table of that shape."""

    def __init__(self) -> None:
        self.asked = []

    def put(self, table):
        return ibis.table(ibis.Schema.from_pyarrow(table.schema), name=f"put_{len(self.asked)}")

    def keep(self, *parts):
        self.asked += parts
        return ibis.table(parts[0].schema(), name=f"kept_{len(self.asked)}")

    def fetch(self, rows):
        self.asked.append(rows)
        return [dict.fromkeys(rows.columns)]


def test_every_expression_compiles_for_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ibis sets this option when the Spark backend is loaded, which needs Spark itself.
    monkeypatch.setattr(ibis.options, "pyspark", SparkOptions())
    config, engine = ProfilesConfig(), Recorder()
    start = datetime(2026, 3, 1, tzinfo=UTC)
    split = split_window(start, start + timedelta(days=14), config)
    schemas = {name: ibis.Schema.from_pyarrow(schema) for name, schema in contract.SCHEMAS.items()}
    raw, items, grades = (ibis.table(schemas[name], name=name) for name in ("events", "items", "judgments"))
    for name in ("_PART_EVENTS", "_SPAN_EVENTS", "_RUN_EVENTS"):
        monkeypatch.setattr(log_module, name, 1_000)
    log = read_log(engine, raw, items, split, events=3_000)
    assert len(log.spans) == 3
    judged = read_judged(engine, grades, log.items, config)
    labels = read_labels(engine, log, split)
    past = read_histories(engine, log, build._moments(log, labels, split), split.end, config)
    outputs = [
        *build._users(engine, log, past, split),
        *item_profiles(engine, log, split, config),
        *build._examples(engine, log, labels, judged, past, split, config, True),
        *build._requests(engine, log, labels, judged, past, split, config, True),
        *build._queries(engine, log, split),
    ]
    texts = [ibis.to_sql(rows, dialect="pyspark") for rows in [*engine.asked, *outputs]]
    assert len(texts) == len(engine.asked) + len(outputs) and all("SELECT" in text for text in texts)

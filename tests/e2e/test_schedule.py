"""The daily run as the scheduler's own clock starts it: nobody triggers anything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.conftest import TINY

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
from tests.e2e.airflow import Airflow, missing, wait

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() != "", reason=f"not installed: {missing()}"),
]
NIGHTLY = '"0 2 * * *"'
AHEAD = timedelta(minutes=3)  # longer than Airflow takes to start


class Night(Airflow):
    """Airflow a few minutes before the time of the daily run."""

    def check_out(self, params: dict[str, Any]) -> None:
        super().check_out(params)
        self.due = datetime.now(UTC).replace(second=0, microsecond=0) + AHEAD
        path = self.shop / "dags" / "mrse_daily.py"
        text = path.read_text()
        assert NIGHTLY in text
        path.write_text(text.replace(NIGHTLY, f'"{self.due.minute} {self.due.hour} * * *"'))


@pytest.fixture
def night(tmp_path: Any) -> Iterator[Night]:
    started = Night(tmp_path, TINY, AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE="True")
    try:
        yield started
    finally:
        started.stop()


def test_the_clock_starts_the_daily_run_and_it_goes_live(night: Night) -> None:
    assert datetime.now(UTC) < night.due, "it took Airflow too long to start"
    wait(lambda: bool(night.runs()))
    (run,) = night.runs()
    assert run == f"scheduled__{night.due.isoformat()}"
    assert set(night.finished(run).values()) == {"success"}
    assert night.conf(run) in ({}, None)
    assert night.result(run, "snapshot")
    assert "version 1" in night.live()
    assert night.runs() == [run], "once a day"

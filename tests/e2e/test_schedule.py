"""The daily run as the scheduler's own clock starts it: nobody triggers anything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import TINY

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
from tests.e2e.airflow import Airflow, missing, wait

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() != "", reason=f"not installed: {missing()}"),
]
SINCE, NIGHTLY = "datetime(2026, 1, 1, tzinfo=UTC)", '"0 2 * * *"'
AHEAD = timedelta(minutes=3)  # longer than Airflow takes to start


class Night(Airflow):
    """Airflow a few minutes before the time of the daily run."""

    def check_out(self, params: dict[str, Any]) -> None:
        super().check_out(params)
        self.due = datetime.now(UTC).replace(second=0, microsecond=0) + AHEAD
        path = self.shop / "dags" / "mrse_daily.py"
        text = path.read_text()
        assert SINCE in text and NIGHTLY in text
        # Begun today: else Airflow would start the run of the day before as soon as the DAG is unpaused.
        text = text.replace(SINCE, f"datetime({self.due:%Y, %-m, %-d}, tzinfo=UTC)")
        path.write_text(text.replace(NIGHTLY, f'"{self.due.minute} {self.due.hour} * * *"'))


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    started = Night(tmp_path, TINY, AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE="True")
    try:
        yield started
    finally:
        started.stop()


def test_the_clock_starts_the_daily_run_of_its_day_and_no_other(night: Night) -> None:
    assert datetime.now(UTC) < night.due, "it took Airflow too long to start"
    wait(lambda: bool(night.runs()))
    (run,) = night.runs()
    assert run == f"scheduled__{night.due.isoformat()}"
    states = night.finished(run)
    # The days that are simulated differ from night to night, and with them what the gate says.
    assert set(states.values()) <= {"success", "skipped"}, night.told(run)
    assert states["gate"] == states["file_run"] == "success"
    planned = yaml.safe_load(night.result(run, "plan")["params"])
    assert planned["snapshot"]["end"] == night.due.date().isoformat()
    assert night.runs() == [run]

"""The DAGs under Airflow's real scheduler, on a tiny shop: a killed task, a cleared day, parameters that are wrong."""

from __future__ import annotations

from typing import Any
from urllib.error import HTTPError

import pytest
import yaml

from tests.e2e.airflow import ROOT, Airflow

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
pytestmark = pytest.mark.slow

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
A_MINUTE_S = 60.0


def state(airflow: Airflow) -> tuple[str, list[tuple[str, str]]]:
    """What a run that changes nothing leaves as it is: what is live, and every model version with its run."""
    rows = [line.split() for line in airflow.mrse("runs").splitlines()[1:]]
    return airflow.live(), [(row[0], row[3]) for row in rows]


def test_a_killed_task_is_retried_and_the_day_goes_live(airflow: Airflow) -> None:
    assert set(airflow.states("first").values()) == {"success"}
    assert "train: killed by signal 9" in airflow.logs("first", "train")
    assert "mrse_v1_" in airflow.live()
    for stage in STAGES:
        told = airflow.result("first", stage)
        assert told["ran"]
        assert told["seconds"] > 0 and told["exchange_seconds"] > 0 and told["peak_mib"] > 0


def test_a_day_cleared_and_run_again_changes_nothing(airflow: Airflow) -> None:
    before = state(airflow)
    again = airflow.again("first")
    assert (again["build_index"], again["swap_index"], again["file_run"]) == ("skipped", "skipped", "success")
    assert [stage for stage in STAGES[: STAGES.index("gate")] if airflow.result("first", stage)["ran"]] == []
    assert state(airflow) == before


@pytest.mark.parametrize(
    ("conf", "reason"),
    [({"overrides": {"train.sed": 3}}, "train.sed"), ({"overides": {}}, "no such parameter: overides")],
)
def test_a_bad_parameter_is_one_message_and_nothing_else_runs(
    airflow: Airflow, conf: dict[str, Any], reason: str
) -> None:
    run = f"bad {reason}".replace(" ", "_").replace(":", "")
    states = airflow.day(run, **conf)
    assert states["plan"] == "failed"
    assert states["snapshot"] == "upstream_failed"
    assert reason in airflow.logs(run, "plan")
    assert airflow.seconds(run, "plan") < A_MINUTE_S


def test_a_bad_value_is_refused_by_the_form(airflow: Airflow) -> None:
    with pytest.raises(HTTPError) as refused:
        airflow.trigger("none", {"days": 0})
    assert "Invalid input for param days: 0 is less than the minimum of 1" in refused.value.read().decode()
    assert "none" not in airflow.runs()

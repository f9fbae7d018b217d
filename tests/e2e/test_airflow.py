"""The DAGs under Airflow's real scheduler, on a tiny shop: three days in a row with faults, a rollback, experiments."""

from __future__ import annotations

from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml

from tests.e2e.airflow import ROOT
from tests.e2e.conftest import THIRD_DAY, Shop

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
A_MINUTE_S = 60.0


def state(airflow: Shop) -> tuple[str, set[tuple[str, str]]]:
    """What a run that changes nothing leaves as it is: what is live, and every model version with its run."""
    rows = [line.split() for line in airflow.mrse("runs").splitlines()[1:]]
    return airflow.live(), {(row[0], row[3]) for row in rows}


def row(status: str, name: str) -> str:
    return next(line for line in status.splitlines() if line.startswith(name)).removeprefix(name).strip()


def test_the_champion_changes_when_it_should_and_holds_when_it_should(airflow: Shop, days: dict[str, str]) -> None:
    assert [airflow.result(day, "gate")["outcome"] for day in days] == ["PROMOTE", "PROMOTE", "HOLD"]
    assert [row(status, "live").split("_")[1] for status in days.values()] == ["v1", "v2", "v2"]
    assert [row(status, "champion")[:9] for status in days.values()] == ["version 1", "version 2", "version 2"]
    assert row(days["second"], "before") == row(days["first"], "live").split()[0]
    assert days[THIRD_DAY] == days["second"]
    assert airflow.updates("mrse_daily") == ["first", "second"]


@pytest.mark.parametrize(("day", "held"), [("first", False), ("second", False), (THIRD_DAY, True)])
def test_a_day_ends_well_and_a_hold_is_seen(airflow: Shop, days: dict[str, str], day: str, held: bool) -> None:
    skipped = {"build_index", "swap_index"} if held else set()
    states = airflow.states(day)
    assert {task for task, state in states.items() if state == "skipped"} == skipped
    assert {task for task, state in states.items() if state == "success"} == set(states) - skipped
    for stage in set(STAGES) - skipped:
        told = airflow.result(day, stage)
        assert told["ran"]
        assert told["seconds"] > 0 and told["exchange_seconds"] > 0 and told["peak_mib"] > 0


def test_a_killed_task_is_tried_again(airflow: Shop, days: dict[str, str]) -> None:
    assert airflow.reasons("first", "train") == ["train: killed by signal 9"]


@pytest.mark.parametrize(
    ("day", "task", "reason"),
    [
        ("second", "build_index", "build_index: Milvus at http://127.0.0.1:"),
        (THIRD_DAY, "snapshot", "snapshot: "),
        (THIRD_DAY, "train", "train: MLflow at http://127.0.0.1:"),
    ],
)
def test_what_cannot_be_reached_is_one_message_within_a_minute_and_mended_the_day_goes_on(
    airflow: Shop, days: dict[str, str], day: str, task: str, reason: str
) -> None:
    (told,) = airflow.reasons(day, task)
    assert told.startswith(reason)
    assert "does not answer" in told or told.endswith(f"(DVC remote: {airflow.shop}/.mrse/dvc-remote)")
    assert airflow.seconds(day, task) < A_MINUTE_S


def test_a_day_cleared_and_run_again_changes_nothing(airflow: Shop, days: dict[str, str]) -> None:
    before = state(airflow)
    again = airflow.again("second")
    assert (again["build_index"], again["swap_index"], again["file_run"]) == ("skipped", "skipped", "success")
    assert [stage for stage in STAGES[: STAGES.index("gate")] if airflow.result("second", stage)["ran"]] == []
    assert state(airflow) == before


def test_a_rollback_goes_back_and_forth(airflow: Shop, days: dict[str, str]) -> None:
    for run, conf, day in (("back", {}, "first"), ("forth", {"version": 2}, "second")):
        airflow.trigger(run, conf, "mrse_rollback")
        assert airflow.finished(run, "mrse_rollback") == {"rollback": "success"}
        status = airflow.live()
        assert row(status, "live").split()[0] == row(days[day], "live").split()[0]
        assert row(status, "champion") == row(days[day], "champion")
    assert airflow.updates("mrse_rollback") == ["back", "forth"]


def test_a_rollback_with_a_wrong_parameter_moves_nothing(airflow: Shop, days: dict[str, str]) -> None:
    before = airflow.live()
    airflow.trigger("wrong", {"verison": 1}, "mrse_rollback")
    assert airflow.finished("wrong", "mrse_rollback") == {"rollback": "failed"}
    assert airflow.reasons("wrong", "rollback", "mrse_rollback") == ["no such parameter: verison; there are version"]
    assert airflow.live() == before


def test_pods_without_an_image_are_one_message(airflow: Shop) -> None:
    airflow.unpause("in_pods")
    airflow.trigger("no_images", {"end": "2026-03-15"}, "in_pods")
    states = airflow.finished("no_images", "in_pods")
    assert (states["plan"], states["snapshot"], states["train"]) == ("success", "failed", "upstream_failed")
    reason = "snapshot: Airflow's variable mrse_images has no image of snapshot"
    assert airflow.reasons("no_images", "snapshot", "in_pods") == [reason]
    assert airflow.seconds("no_images", "snapshot", "in_pods") < A_MINUTE_S


@pytest.mark.parametrize(
    ("conf", "reason"),
    [({"overrides": {"train.sed": 3}}, "train.sed"), ({"overides": {}}, "no such parameter: overides")],
)
def test_a_bad_parameter_is_one_message_and_nothing_else_runs(airflow: Shop, conf: dict[str, Any], reason: str) -> None:
    run = f"bad {reason}".replace(" ", "_").replace(":", "")
    states = airflow.day(run, **conf)
    assert states["plan"] == "failed"
    assert states["snapshot"] == "upstream_failed"
    (told,) = airflow.reasons(run, "plan")
    assert reason in told
    assert airflow.seconds(run, "plan") < A_MINUTE_S


def test_a_bad_value_is_refused_by_the_form(airflow: Shop) -> None:
    with pytest.raises(HTTPError) as refused:
        airflow.trigger("none", {"days": 0})
    assert "Invalid input for param days: 0 is less than the minimum of 1" in refused.value.read().decode()
    assert "none" not in airflow.runs()


def test_experiments_end_in_a_report_with_mlflow(airflow: Shop, days: dict[str, str]) -> None:
    conf = {"end": "2026-03-16", "only": ["no_images", "mnsce_only"], "seeds": 1, "steps_share": 0.25}
    airflow.trigger("parts", conf, "mrse_experiments")
    assert set(airflow.finished("parts", "mrse_experiments").values()) == {"success"}
    told = airflow.result("parts", "report", "mrse_experiments")
    address = (
        f"{airflow.env['MLFLOW_TRACKING_URI']}/get-artifact?run_uuid={told['mlflow_run']}&path=ablation/ablation.csv"
    )
    with urlopen(address, timeout=60) as answer:
        table = answer.read().decode()
    assert all(name in table for name in ("full", "no_images", "mnsce_only"))
    assert told["mlflow_run"] in told["page"]


def test_experiments_without_a_variant_are_one_message(airflow: Shop, days: dict[str, str]) -> None:
    airflow.trigger("full", {"end": "2026-03-16", "only": ["full"]}, "mrse_experiments")
    states = airflow.finished("full", "mrse_experiments")
    assert (states["variants"], states["full"]) == ("failed", "upstream_failed")
    (told,) = airflow.reasons("full", "variants", "mrse_experiments")
    assert told.startswith("only: full is trained in any case")

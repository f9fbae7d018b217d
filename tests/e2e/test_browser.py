"""The UI in a real browser, as a person uses it: trigger a day by the form, watch it, open the gate report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.airflow import Airflow, wait

pytest.importorskip("airflow", reason="Airflow is not installed: pip install -c constraints.txt -e '.[airflow]'")
browser = pytest.importorskip("tests.e2e.browser", reason="websocket-client is not installed; it comes with Airflow")
pytestmark = pytest.mark.skipif(browser.program() is None, reason="no browser: apt-get install chromium")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[browser.Page]:
    opened = browser.Page(tmp_path / "profile")
    try:
        yield opened
    finally:
        opened.picture(tmp_path / "last.png")
        opened.close()


def log_in(page: browser.Page, airflow: Airflow) -> None:
    page.go(airflow.address)
    page.fill("input[name=username]", airflow.user)
    page.fill("input[name=password]", airflow.password)
    page.click("button[type=submit]")
    page.wait("!location.pathname.includes('login')")


def test_a_day_is_triggered_by_the_form_and_its_report_opened(
    airflow: Airflow, page: browser.Page, tmp_path: Path
) -> None:
    log_in(page, airflow)
    page.go(f"{airflow.address}/dags/mrse_daily")
    page.click("[data-testid=trigger-dag-button]")
    page.type_date("#element_end", "03162026")
    page.fill("[id='number-input:element_days'] input", "8")
    page.picture(tmp_path / "form.png")
    page.click("button", "Advanced Options")
    page.fill("input[name=dagRunId]", "by_form")
    page.click("[data-testid=trigger-dag-submit]")

    wait(lambda: "by_form" in airflow.runs())
    assert airflow.conf("by_form") == {"end": "2026-03-16", "days": 8, "overrides": {}, "force_because": None}
    page.go(f"{airflow.address}/dags/mrse_daily/runs/by_form")
    page.click("button[value=graph]")
    assert set(airflow.finished("by_form").values()) <= {"success", "skipped"}
    page.sees("Success")
    page.picture(tmp_path / "graph.png")

    page.go(f"{airflow.address}/dags/mrse_daily/runs/by_form/tasks/file_run/details")
    for name in ("MLflow run", "Data Docs", "Gate report"):
        page.sees(name)
    page.go(page.wait("[...document.querySelectorAll('a')].find(a => a.textContent.trim() === 'Gate report')?.href"))
    page.sees("pipeline/reports/gate/index.html")
    page.wait("!!document.querySelector('iframe')")
    page.picture(tmp_path / "report.png")

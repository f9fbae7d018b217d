"""Expectations of each severity, the extension point, and the report's pages."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
import pytest
from great_expectations.expectations.metadata_types import FailureSeverity

from mrse.errors import ValidationFailed
from mrse.validation import docs
from mrse.validation.engine import Engine, SuiteRun

FRAME = pd.DataFrame({"currency": ["EUR", "USD", None, "x" * 500], "price": [1.0, 2.0, 3.0, -1.0]})


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def _run(engine: Engine, *expectations: gxe.Expectation) -> SuiteRun:
    return engine.run(gx.ExpectationSuite(name="shop", expectations=list(expectations)), FRAME, "4 rows")


def test_a_plain_warning_removes_rows_with_a_reason_of_its_own(engine: Engine) -> None:
    rule = gxe.ExpectColumnValuesToBeInSet(column="currency", value_set=["EUR"], severity=FailureSeverity.WARNING)
    (hit,) = _run(engine, rule).hits
    assert (hit.reason, hit.outcome, hit.column) == ("currency_be_in_set", "removed", "currency")
    assert hit.rows.tolist() == [1, 3]


def test_info_only_counts(engine: Engine) -> None:
    rule = gxe.ExpectColumnValuesToNotBeNull(
        column="currency", severity=FailureSeverity.INFO, meta={"reason": "currency_missing"}
    )
    (hit,) = _run(engine, rule).hits
    assert (hit.reason, hit.outcome, hit.rows.tolist()) == ("currency_missing", "kept", [2])


def test_critical_is_a_failure_with_its_message(engine: Engine) -> None:
    rule = gxe.ExpectColumnMaxToBeBetween(column="price", max_value=2.0, meta={"message": "dear"})
    run = _run(engine, rule)
    assert run.failures == ["shop: dear (found 3.0)"]
    assert run.hits == []


def test_a_warning_about_the_whole_table_is_a_warning(engine: Engine) -> None:
    rule = gxe.ExpectColumnMeanToBeBetween(column="price", min_value=9.0, severity=FailureSeverity.WARNING)
    (warning,) = _run(engine, rule).warnings
    assert "expect_column_mean_to_be_between" in warning
    assert "column='price'" in warning


def test_an_expectation_that_cannot_be_evaluated_stops_the_run(engine: Engine) -> None:
    with pytest.raises(ValidationFailed, match="cannot be evaluated"):
        _run(engine, gxe.ExpectColumnValuesToNotBeNull(column="no_such_column", severity=FailureSeverity.WARNING))


def test_the_report_opens_from_disk_and_carries_no_long_value(engine: Engine, tmp_path: Path) -> None:
    rule = gxe.ExpectColumnValuesToBeInSet(column="currency", value_set=["EUR"], severity=FailureSeverity.WARNING)
    summary = {
        "status": "failed",
        "failures": ["days without events: 2025-03-02 <script>"],
        "warnings": [],
        "notes": [],
        "window": {"start": "2025-03-01", "end": "2025-03-03"},
        "source": "marketplace",
        "simulated": True,
        "tables": {
            "items": {
                "rows": 4,
                "removed": 2,
                "removed_share": 0.5,
                "reasons": {"currency_be_in_set": {"outcome": "removed", "rows": 2, "share": 0.5}},
            }
        },
        "clean_rows": {},
        "days": [],
        "drift": {"reference": None, "note": "not reached", "changes": {}},
        "suites": [{"suite": "shop", "batch": "4 rows", "expectations": 1, "failed": 1}],
    }
    docs.write(summary, [_run(engine, rule)], tmp_path / "validation")
    index = (tmp_path / "validation" / "index.html").read_text()
    page = (tmp_path / "validation" / "expectations" / "01-shop.html").read_text()
    assert "Simulated." in index
    assert "&lt;script&gt;" in index
    assert 'href="expectations/01-shop.html"' in index
    assert "USD" in page
    assert "x" * 100 not in page
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=\"https?://", index + page)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the network was touched: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rule = gxe.ExpectColumnValuesToNotBeNull(column="price", severity=FailureSeverity.WARNING)
    assert _run(Engine(), rule).hits == []

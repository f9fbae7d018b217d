"""Runs Great Expectations suites over frames and turns their results into rows to set aside and reasons to stop.

Great Expectations works in memory here: no project folder, no store, no usage statistics, no network. It costs about
12 ms per expectation and batch whatever the size, which is why events come in batches of several days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.core.batch_definition import BatchDefinition
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)
from great_expectations.data_context.types.base import ProgressBarsConfig

from mrse.errors import ValidationFailed

_SHOWN_VALUES = 10
_SHOWN_CHARS = 60

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Hit:
    """Rows of a frame that broke one rule.

    Attributes:
        outcome: `removed`, `nulled`, `cleaned`, or `kept` for rules of severity `info`.
        column: the contract's column that the rule is about.
        rows: places in the frame, ascending.
    """

    reason: str
    outcome: str
    column: str
    rows: Rows


@dataclass(frozen=True)
class SuiteRun:
    """One suite over one batch.

    Attributes:
        suite, batch: their names.
        result: what Great Expectations found, without the lists of rows.
        hits: rows to set aside or count, in the suite's order.
        failures: critical expectations that failed, one sentence each.
        warnings: other expectations about the whole table that failed.
    """

    suite: str
    batch: str
    result: ExpectationSuiteValidationResult
    hits: list[Hit]
    failures: list[str]
    warnings: list[str]


class Engine:
    """A Great Expectations context that lives in memory."""

    def __init__(self) -> None:
        context = gx.get_context(mode="ephemeral")
        context.enable_analytics(False)
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._source = context.data_sources.add_pandas("snapshot")
        self._batches: dict[str, BatchDefinition[Any]] = {}

    def run(self, suite: gx.ExpectationSuite, frame: pd.DataFrame, batch: str) -> SuiteRun:
        """Validate a frame whose row labels are 0..n-1.

        Args:
            suite: one of `mrse.validation.suites`.
            frame: what it looks at. A column `what` names the rows in messages.
            batch: what the frame holds, for the report.

        Raises:
            ValidationFailed: an expectation could not be evaluated, such as one that names an unknown column.
        """
        definition = self._batches.get(suite.name) or self._define(suite.name)
        result = definition.get_batch({"dataframe": frame}).validate(
            suite, result_format={"result_format": "COMPLETE", "partial_unexpected_count": _SHOWN_VALUES}
        )
        run = SuiteRun(suite.name, batch, result, [], [], [])
        for found in result.results:
            _raise_if_broken(suite.name, found)
            if not found.success:
                _sort_in(run, found, frame)
            _trim(found.result)
        return run

    def _define(self, name: str) -> BatchDefinition[Any]:
        definition = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("batch")
        self._batches[name] = definition
        return definition


def _sort_in(run: SuiteRun, found: ExpectationValidationResult, frame: pd.DataFrame) -> None:
    config = found.expectation_config
    assert config is not None  # every result of a suite has one
    rows = np.asarray(found.result.get("unexpected_index_list") or [], np.int64)
    severity = config.severity.value
    if severity == "critical":
        run.failures.append(f"{run.suite}: {_sentence(found, frame, rows)}")
    elif "message" in (config.meta or {}) or not len(rows):
        run.warnings.append(f"{run.suite}: {_sentence(found, frame, rows)}")
    else:
        run.hits.append(_hit(found, severity, np.sort(rows)))


def _hit(found: ExpectationValidationResult, severity: str, rows: Rows) -> Hit:
    config = found.expectation_config
    assert config is not None
    meta = config.meta or {}
    column = str(meta.get("column") or config.kwargs.get("column") or "")
    reason = str(meta.get("reason") or f"{column}_{config.type.removeprefix('expect_column_values_to_')}")
    outcome = "kept" if severity == "info" else str(meta.get("outcome") or "removed")
    return Hit(reason, outcome, column, rows)


def _sentence(found: ExpectationValidationResult, frame: pd.DataFrame, rows: Rows) -> str:
    config = found.expectation_config
    assert config is not None
    text = str((config.meta or {}).get("message") or f"{config.type} failed ({_arguments(config.kwargs)})")
    if "what" in frame and len(rows):
        names = [str(name) for name in frame["what"].iloc[rows[:5]]]
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        return f"{text}: {'; '.join(names)}{more}"
    if "observed_value" in found.result:
        return f"{text} (found {found.result['observed_value']})"
    return text


def _arguments(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in kwargs.items() if key != "batch_id")


def _raise_if_broken(suite: str, found: ExpectationValidationResult) -> None:
    """Great Expectations reports an expectation that it could not evaluate as one that failed; it is another matter."""
    info = found.exception_info or {}
    entries = [info] if "raised_exception" in info else list(info.values())
    for entry in entries:
        if not entry.get("raised_exception"):
            continue
        config = found.expectation_config
        name = f"{config.type} ({_arguments(config.kwargs)})" if config else "an expectation"
        raise ValidationFailed(f"suite {suite!r}: {name} cannot be evaluated: {entry['exception_message']}")


def _trim(result: dict[str, Any]) -> None:
    """Drop the lists with an entry per row, and cut long values: a report must not carry a title of 1 MB."""
    for key in ("unexpected_list", "unexpected_index_list", "unexpected_index_query", "partial_unexpected_index_list"):
        result.pop(key, None)
    if "partial_unexpected_list" in result:
        result["partial_unexpected_list"] = [_short(value) for value in result["partial_unexpected_list"]]
    for count in result.get("partial_unexpected_counts", []):
        if "value" in count:
            count["value"] = _short(count["value"])


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return value[:_SHOWN_CHARS] + "…"
    return value

# mypy: disable-error-code="attr-defined"
# Great Expectations re-exports its classes implicitly.
"""The expectation suites of `validate_logs`: this file is where a shop reads what is checked, and adds to it.

Each suite is a list of Great Expectations expectations over one table. Their `severity` decides what a failure does:

| severity | what a failure does |
|---|---|
| `critical` | the run stops with `meta["message"]` |
| `warning` | rows are quarantined with `meta["reason"]`; where the rule is about a whole table, the report warns |
| `info` | the rows stay as they are; they are counted under `meta["reason"]` |

`meta["outcome"]` is `removed` (the row leaves), `nulled` (the value of `meta["column"]` becomes null, the row stays) or
`cleaned` (control characters become spaces and overlong text is cut, the row stays). Without `meta`, rows are removed
and the reason is made of the column and the expectation's name, so a plain expectation is enough to add a rule:

    gxe.ExpectColumnValuesToBeInSet(column="currency", value_set=["EUR"], severity=FailureSeverity.WARNING)

The tables hold every column of the contract and every extra column, and the columns that `mrse.validation.frames`
derives (`query_text`, `item_known`, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import great_expectations as gx
import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from mrse.config import ValidateConfig
from mrse.data.contract import ACTIONS

Outcome = Literal["removed", "nulled", "cleaned"]

_CRITICAL, _WARNING, _INFO = FailureSeverity.CRITICAL, FailureSeverity.WARNING, FailureSeverity.INFO
_LARGEST = 1e12  # frames hold NaN as infinity (null is NaN there), so that a range sees both
_BAD_ID = ["too_long", "invalid_utf8", "control_characters"]


def items() -> gx.ExpectationSuite:
    """Rows of `items`."""
    return gx.ExpectationSuite(
        name="items",
        expectations=[
            *_id_rules("item_id"),
            _text("title", ["missing"], "title_missing"),
            _text("title", ["invalid_utf8"], "title_invalid_utf8"),
            _true("newest_copy", "item_id_duplicate", column_of_reason="item_id"),
            _text("title", ["too_long"], "title_too_long", "cleaned"),
            _text("title", ["control_characters"], "title_control_characters", "cleaned"),
            _text("category", _BAD_ID, "category_invalid", "cleaned"),
            _between("price", "price_invalid", "nulled", min_value=0, max_value=_LARGEST),
        ],
    )


def catalogue(config: ValidateConfig) -> gx.ExpectationSuite:
    """`items` as a whole, after its rows were cleaned."""
    fewest = gxe.ExpectTableRowCountToBeBetween(
        min_value=config.min_items,
        severity=_CRITICAL,
        meta={
            "message": f"fewer usable items than validate_logs.min_items = {config.min_items}; "
            "check the source, or lower it"
        },
    )
    return gx.ExpectationSuite(name="catalogue", expectations=[fewest])


def images() -> gx.ExpectationSuite:
    """Pictures of the items that name one: `image_problem` is null where the picture decodes."""
    readable = gxe.ExpectColumnValuesToBeNull(
        column="image_problem", severity=_WARNING, meta=_meta("image_unreadable", "nulled", "image")
    )
    return gx.ExpectationSuite(name="images", expectations=[readable])


def events(start: datetime, stop: datetime, now: datetime | None) -> gx.ExpectationSuite:
    """Rows of `events`.

    Args:
        start, stop: the window `[start, stop)`.
        now: later events are in the future; None for simulated events, whose clock is not ours.
    """
    future = [] if now is None else [_between("event_time", "event_in_future", "removed", max_value=now)]
    return gx.ExpectationSuite(
        name="events",
        expectations=[
            _not_null("event_time", "event_time_missing"),
            *future,
            _between("event_time", "event_outside_window", "removed", min_value=start, max_value=stop, strict_max=True),
            *_id_rules("session_id"),
            *_query_rules(),
            _text("item_id", ["missing"], "item_id_missing"),
            _true("item_known", "item_unknown", column_of_reason="item_id"),
            _not_null("action", "action_unknown"),
            _in_set("action", ACTIONS, "action_unknown"),
            _true("first_copy", "event_duplicate", column_of_reason="event_time"),
            _true("was_shown", "click_without_impression", column_of_reason="action"),
            _true("was_clicked", "order_without_click", severity=_INFO, column_of_reason="action"),
            _text("user_id", ["missing", *_BAD_ID], "user_id_invalid", "nulled"),
            _between("position", "position_invalid", "nulled", min_value=1),
            _between("relevance", "relevance_invalid", "nulled", min_value=0, max_value=1),
            _between("propensity", "propensity_invalid", "nulled", min_value=0, max_value=1, strict_min=True),
        ],
    )


def days(config: ValidateConfig, window_days: int) -> gx.ExpectationSuite:
    """One row per day of the window: `events`, `impressions`, `clicks`, `add_to_carts`, `orders`, as logged."""
    present = max(0.0, 1.0 - config.max_missing_days / window_days)
    return gx.ExpectationSuite(
        name="days",
        expectations=[
            gxe.ExpectColumnValuesToBeBetween(
                column="events",
                min_value=1,
                mostly=math.floor(present * 1e6) / 1e6,
                severity=_CRITICAL,
                meta={"message": f"days without events, more than max_missing_days = {config.max_missing_days}"},
            ),
            _at_least("impressions", "clicks", _CRITICAL, "days with more clicks than impressions"),
            _at_least("clicks", "add_to_carts", _WARNING, "days with more carts than clicks"),
            _at_least("clicks", "orders", _WARNING, "days with more orders than clicks"),
        ],
    )


def shoppers(config: ValidateConfig) -> gx.ExpectationSuite:
    """One row about the whole window: `top_user_share` and `null_user_share` of the events."""
    return gx.ExpectationSuite(
        name="shoppers",
        expectations=[
            gxe.ExpectColumnValuesToBeBetween(
                column="top_user_share",
                max_value=config.max_user_share,
                severity=_CRITICAL,
                meta={
                    "message": "one user makes more of the events than validate_logs.max_user_share = "
                    f"{config.max_user_share:g}; a robot, or a default id"
                },
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="null_user_share",
                max_value=config.max_null_user_share,
                severity=_WARNING,
                meta={
                    "message": f"more events without a user than max_null_user_share = {config.max_null_user_share:g}"
                },
            ),
        ],
    )


def judgments() -> gx.ExpectationSuite:
    """Rows of `judgments`."""
    return gx.ExpectationSuite(
        name="judgments",
        expectations=[
            *_query_rules(),
            _text("item_id", ["missing"], "item_id_missing"),
            _true("item_known", "item_unknown", column_of_reason="item_id"),
            _not_null("grade", "grade_invalid"),
            _between("grade", "grade_invalid", "removed", min_value=0, max_value=1),
            _true("agrees", "judgment_conflict", column_of_reason="grade"),
            _true("first_copy", "judgment_duplicate", column_of_reason="query"),
        ],
    )


def bounds() -> gx.ExpectationSuite:
    """One row per reason: what was set aside is at most what `params.yaml` allows."""
    return gx.ExpectationSuite(
        name="bounds",
        expectations=[
            _at_least("bound", "share", _CRITICAL, "more rows set aside than validate_logs.max_quarantined allows")
        ],
    )


def drift() -> gx.ExpectationSuite:
    """One row per distribution: its distance from the previous snapshot's is within the bound."""
    return gx.ExpectationSuite(
        name="drift",
        expectations=[
            _at_least("bound", "distance", _CRITICAL, "changed more since the previous snapshot than allowed")
        ],
    )


def _id_rules(column: str) -> list[Expectation]:
    return [_text(column, ["missing"], f"{column}_missing"), _text(column, _BAD_ID, f"{column}_invalid")]


def _query_rules() -> list[Expectation]:
    return [
        _text("query", ["missing"], "query_missing"),
        _text("query", ["too_long"], "query_too_long"),
        _text("query", ["invalid_utf8"], "query_invalid_utf8"),
        _text("query", ["control_characters"], "query_control_characters", "cleaned"),
    ]


def _meta(reason: str, outcome: Outcome, column: str) -> dict[str, str]:
    return {"reason": reason, "outcome": outcome, "column": column}


def _text(column: str, states: list[str], reason: str, outcome: Outcome = "removed") -> Expectation:
    return gxe.ExpectColumnValuesToNotBeInSet(
        column=f"{column}_text", value_set=states, severity=_WARNING, meta=_meta(reason, outcome, column)
    )


def _true(derived: str, reason: str, column_of_reason: str, severity: FailureSeverity = _WARNING) -> Expectation:
    return gxe.ExpectColumnValuesToBeInSet(
        column=derived, value_set=[True], severity=severity, meta=_meta(reason, "removed", column_of_reason)
    )


def _in_set(column: str, values: Sequence[str], reason: str) -> Expectation:
    return gxe.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), severity=_WARNING, meta=_meta(reason, "removed", column)
    )


def _not_null(column: str, reason: str) -> Expectation:
    return gxe.ExpectColumnValuesToNotBeNull(column=column, severity=_WARNING, meta=_meta(reason, "removed", column))


def _between(column: str, reason: str, outcome: Outcome, **limits: Any) -> Expectation:
    return gxe.ExpectColumnValuesToBeBetween(
        column=column, severity=_WARNING, meta=_meta(reason, outcome, column), **limits
    )


def _at_least(larger: str, smaller: str, severity: FailureSeverity, message: str) -> Expectation:
    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=larger,
        column_B=smaller,
        or_equal=True,
        ignore_row_if="either_value_is_missing",
        severity=severity,
        meta={"message": message},
    )

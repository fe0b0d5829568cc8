"""Which expectations set rows aside instead of blocking, and what a report says then."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.quality.compiler import tells_rows
from airflow_etl_provider.quality.report import Report
from airflow_etl_provider.quality.suite import (
    Expectation,
    OnFail,
    Severity,
    Suite,
    parse_suite,
)

#: How the types begin that look at rows one by one, whether SQL can say what they mean or not.
_OF_ROWS = (
    "expect_column_pair_values_",
    "expect_column_value_",
    "expect_column_values_",
    "expect_compound_",
    "expect_multicolumn_",
    "expect_select_",
)
#: And those among them that compare a row with the others.
_AMONG_OTHERS = (
    "expect_column_value_z_scores_to_be_less_than",
    "expect_column_values_to_not_be_outliers",
    "expect_column_values_to_be_decreasing",
    "expect_column_values_to_be_increasing",
)


def require_rows(suite: Suite) -> None:
    """:raises ConfigurationError: an expectation is to set rows aside, and its type tells none."""
    for number, expectation in enumerate(suite.expectations, start=1):
        if expectation.on_fail is OnFail.QUARANTINE and not tells_rows(expectation.type):
            raise ConfigurationError(
                f"suite {suite.name!r}, expectation {number} ({expectation.type}): on_fail quarantine sets rows "
                "aside, and an expectation of this type does not tell which rows fail",
                remedy="write on_fail: block, or say the same with an expectation about single rows.",
            )


def for_single_rows(suite: Suite) -> tuple[Expectation, ...]:
    """What every single row must satisfy, however many of a batch may break it: expectations about rows that block
    the batch or set the rows aside.

    Nothing that only many rows together say is asked of a few.
    """
    return tuple(
        replace(
            expectation,
            kwargs={name: value for name, value in expectation.kwargs.items() if name != "mostly"},
        )
        for expectation in suite.expectations
        if (expectation.severity is Severity.CRITICAL or expectation.on_fail is OnFail.QUARANTINE)
        and (tells_rows(expectation.type) or expectation.type.startswith(_OF_ROWS))
        and expectation.type not in _AMONG_OTHERS
    )


def suite_of_results(results: Sequence[Mapping[str, Any]], name: str) -> Suite | None:
    """The suite that a report's results are of; what this release does not know is left out."""
    found: list[Expectation] = []
    for result in results:
        with suppress(ConfigurationError):
            found.extend(parse_suite([result["expectation_config"]], name).expectations)
    return Suite(name, tuple(found)) if found else None


def quarantined(suite: Suite) -> list[int]:
    """The expectations, by their number, whose failing rows are set aside."""
    return [
        number
        for number, expectation in enumerate(suite.expectations)
        if expectation.on_fail is OnFail.QUARANTINE
    ]


def failed(report: Report, numbers: Collection[int]) -> list[int]:
    """Those of the expectations *numbers* that failed because of rows."""
    return [
        number
        for number in numbers
        if not report.results[number].success and report.results[number].exception is None
    ]


def combined(first: Report, rest: Report, set_aside: Collection[int]) -> Report:
    """The report of a batch from which rows were set aside.

    Of the expectations that did so it says what they found before, of all others what holds of the rest.

    :param first: of the whole batch.
    :param rest: of what remains of it.
    """
    return replace(
        rest,
        table=first.table,
        started_at=first.started_at,
        results=tuple(
            replace(before, set_aside=True) if number in set_aside and after.success else after
            for number, (before, after) in enumerate(zip(first.results, rest.results, strict=True))
        ),
    )

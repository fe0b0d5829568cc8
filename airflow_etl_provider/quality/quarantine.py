"""Which expectations set rows aside instead of blocking, and what a report says then."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.quality.plan import tells_rows
from airflow_etl_provider.quality.report import Report
from airflow_etl_provider.quality.suite import OnFail, Suite


def require_rows(suite: Suite) -> None:
    """:raises ConfigurationError: an expectation is to set rows aside, and its type tells none."""
    for number, expectation in enumerate(suite.expectations, start=1):
        if expectation.on_fail is OnFail.QUARANTINE and not tells_rows(expectation.type):
            raise ConfigurationError(
                f"suite {suite.name!r}, expectation {number} ({expectation.type}): on_fail quarantine sets rows "
                "aside, and an expectation of this type does not tell which rows fail",
                remedy="write on_fail: block, or say the same with an expectation about single rows.",
            )


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

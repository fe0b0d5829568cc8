"""Who judges a suite: SQL as far as it says exactly the same, Great Expectations the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.validate import Engine, ResultFormat
from airflow_etl_provider.quality.compiler import compiles
from airflow_etl_provider.quality.gallery import OWN_TYPES
from airflow_etl_provider.quality.report import ExpectationResult, Judged, Report
from airflow_etl_provider.quality.suite import Expectation, Suite


def audit(
    suite: Suite,
    engine: Engine,
    *,
    load_id: str,
    table: str,
    by_sql: Callable[[Sequence[Expectation]], Judged],
    by_gx: Callable[[Suite], Report],
    result_format: ResultFormat = ResultFormat.BASIC,
) -> Report:
    """Judge *suite*, each expectation once.

    :param by_sql: leaves what it cannot judge.
    :param by_gx: judges anything; not called where nothing is left to it.
    :raises ConfigurationError: ``engine="sql"``, and SQL cannot say what an expectation means.
    """
    started = datetime.now(UTC)
    own = [engine is not Engine.GX or e.type in OWN_TYPES for e in suite.expectations]
    judged = Judged(None, {}, {number: "engine='gx'" for number, sql in enumerate(own) if not sql})
    if any(own):
        found = by_sql([e for e, sql in zip(suite.expectations, own, strict=True) if sql])
        numbers = [number for number, sql in enumerate(own) if sql]
        judged = Judged(
            found.rows,
            {numbers[at]: result for at, result in found.results.items()},
            {**judged.left, **{numbers[at]: reason for at, reason in found.left.items()}},
        )
    results = {
        number: replace(result, engine=result.engine or "sql")
        for number, result in judged.results.items()
    }
    left = sorted(judged.left)
    if engine is Engine.SQL and left:
        raise _not_sql(suite, left[0], judged.left[left[0]])
    for number in [number for number in left if suite.expectations[number].type in OWN_TYPES]:
        # Nobody else has the type.
        results[number] = _not_evaluated(suite.expectations[number], judged.left[number])
        left.remove(number)
    rows = judged.rows
    if left:
        report = by_gx(Suite(suite.name, tuple(suite.expectations[number] for number in left)))
        results.update(zip(left, report.results, strict=True))
        rows = report.rows if rows is None else rows
    engines = [
        name for name, used in (("sql", judged.results), ("great_expectations", left)) if used
    ]
    return Report(
        load_id=load_id,
        engine="+".join(engines),
        table=table,
        rows=rows,
        results=tuple(
            _as_told(replace(results[number], on_fail=expectation.on_fail), result_format)
            for number, expectation in enumerate(suite.expectations)
        ),
        started_at=started,
        finished_at=datetime.now(UTC),
    )


def require_sql(suite: Suite) -> None:
    """:raises ConfigurationError: an expectation is of a type that SQL never judges."""
    for number, expectation in enumerate(suite.expectations):
        if not compiles(expectation.type):
            raise _not_sql(suite, number, "there is no exact SQL for this type")


def _not_sql(suite: Suite, number: int, reason: str) -> ConfigurationError:
    expectation = suite.expectations[number]
    return ConfigurationError(
        f"suite {suite.name!r}: {expectation.type} cannot be judged with engine='sql': {reason}",
        remedy="use engine='auto', which leaves it to Great Expectations.",
    )


def _not_evaluated(expectation: Expectation, reason: str) -> ExpectationResult:
    return ExpectationResult(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        success=False,
        column=", ".join(expectation.columns()) or None,
        exception=reason,
    )


def _as_told(result: ExpectationResult, result_format: ResultFormat) -> ExpectationResult:
    if result_format is ResultFormat.BASIC:
        return result
    return replace(
        result,
        element_count=None,
        unexpected_count=None,
        unexpected_percent=None,
        missing_count=None,
        observed_value=None,
        partial_unexpected_list=(),
        unexpected_index_list=(),
    )

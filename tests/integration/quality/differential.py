"""Both engines on the same rows, and every way in which what they say differs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.string import TextLoader

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres import catalog
from airflow_etl_provider.postgres.checks import failing_rows, judge
from airflow_etl_provider.postgres.session import Endpoint, connect
from airflow_etl_provider.quality.gx import GreatExpectationsAuditor
from airflow_etl_provider.quality.report import ExpectationResult
from airflow_etl_provider.quality.suite import Expectation, Suite

#: Where Great Expectations itself breaks, whatever the rows and the expectation are, SQL judges nevertheless.
_BREAKS = re.compile(
    # psycopg2, which it reads with, has no value for dates before Christ and after the year 9999.
    r"year -?\d+ is out of range"
    # It gives SQLAlchemy 2.1 a SELECT where that wants a FROM clause, for some expectations with a row condition.
    r"|FROM expression, such as a Table or alias\(\) object expected"
    # Names of columns: it counts in a column called _num_rows, and names parameters after columns.
    r"|^Label name _num_rows|syntax error at or near \"line"
)
#: It writes a condition on a column as text, and cannot read it where the name has quotes or line breaks.
_CANNOT_READ = re.compile(r"unable to parse condition: col\(")
#: What psycopg2 makes of infinite dates and moments.
_INFINITE = {
    "infinity": str(date.max),
    "-infinity": str(date.min),
    "9999-12-31 23:59:59.999999": str(date.max),
    "0001-01-01 00:00:00": str(date.min),
    "9999-12-31 23:59:59.999999+00": str(date.max),
    "0001-01-01 00:00:00+00": str(date.min),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one expectation; *by_gx* is only asked where SQL judged."""

    expectation: Expectation
    left: str | None
    by_sql: ExpectationResult | None
    by_gx: ExpectationResult | None
    failing: tuple[Counter[str], Counter[str]] | None

    @property
    def disagreement(self) -> str | None:
        """How the two differ; ``None`` where they agree, or where SQL leaves it to the other."""
        if self.by_sql is None or self.by_gx is None:
            return None
        if self.by_gx.exception is not None:
            written = isinstance(self.expectation.kwargs.get("row_condition"), str)
            if _BREAKS.search(self.by_gx.exception):
                return None
            if _CANNOT_READ.search(self.by_gx.exception) and not written:
                return None
            return f"only SQL judged it: {self.by_gx.exception}"
        ours, theirs = (result.as_ledger() for result in (self.by_sql, self.by_gx))
        for name in ("success", "result"):
            if _without_samples(ours[name]) != _without_samples(theirs[name]):
                return f"{name}: SQL {ours[name]}, Great Expectations {theirs[name]}"
        return self._odd_samples()

    def _odd_samples(self) -> str | None:
        assert self.by_sql is not None
        assert self.by_gx is not None
        ours, theirs = self.by_sql.partial_unexpected_list, self.by_gx.partial_unexpected_list
        if len(ours) != len(theirs):
            return f"SQL shows {ours}, Great Expectations {theirs}"
        if self.failing is None:
            return None
        values, texts = self.failing
        if values.total() != (self.by_sql.unexpected_count or 0):
            return f"failing_rows finds {values}, not {self.by_sql.unexpected_count}"
        for shown in (ours, theirs):
            found = Counter(map(_canonical, shown))
            if found - values and found - texts:
                return f"{shown} are not among {values}"
        return None


def _without_samples(found: Any) -> Any:
    if not isinstance(found, dict):
        return found
    return {key: value for key, value in found.items() if not key.endswith("_list")}


def run(endpoint: Endpoint, table: TableName, expectations: Sequence[Expectation]) -> list[Outcome]:
    """Judge *table* with both; what SQL leaves is not asked of the other."""
    with connect(endpoint) as connection:
        found = catalog.read_table(connection, table, label="test")
        columns = {column.column.name: column.column.type for column in found.columns}
        judged = judge(connection, table, expectations, columns)
        failing = {
            number: _failing(connection, table, expectations[number], columns)
            for number in judged.results
        }
    asked = sorted(judged.results)
    auditor = GreatExpectationsAuditor(endpoint.parameters(), "etl:differential")

    def ask(numbers: Sequence[int]) -> dict[int, ExpectationResult]:
        suite = Suite("differential", tuple(expectations[number] for number in numbers))
        report = auditor.audit(table.schema, table.name, suite, load_id="1")
        assert report.rows == judged.rows
        return dict(zip(numbers, report.results, strict=True))

    theirs = ask(asked) if asked else {}
    outcomes = [
        Outcome(
            expectation,
            judged.left.get(number),
            judged.results.get(number),
            theirs.get(number),
            failing.get(number),
        )
        for number, expectation in enumerate(expectations)
    ]
    # Expectations of a suite share what Great Expectations measures, at times with those that mean something else.
    return [
        outcome if outcome.disagreement is None else replace(outcome, by_gx=ask([number])[number])
        for number, outcome in enumerate(outcomes)
    ]


def _failing(
    connection: psycopg.Connection[Any],
    table: TableName,
    expectation: Expectation,
    columns: dict[str, str],
) -> tuple[Counter[str], Counter[str]] | None:
    """How often each value is there in all rows that the expectation finds unexpected; as it is read, and as text."""
    condition = failing_rows(expectation, columns, table)
    if condition is None:
        return None
    named = [
        name
        for key in ("column", "column_A", "column_B", "column_list")
        for name in _listed(expectation.kwargs.get(key))
    ]
    cursor = connection.cursor()
    for kind in ("date", "time", "timetz", "timestamp", "timestamptz"):
        cursor.adapters.register_loader(kind, TextLoader)
    shown = [sql.Identifier("t", name) for name in named]
    rows = cursor.execute(
        sql.SQL("SELECT ({}) IS NULL, {}, {} FROM {} AS t WHERE ({}) IS NOT FALSE").format(
            condition,
            sql.SQL(", ").join(shown),
            sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in shown),
            sql.Identifier(table.schema, table.name),
            condition,
        )
    ).fetchall()
    assert not any(row[0] for row in rows), "a condition on a row is never NULL"
    width = len(named)
    return tuple(  # type: ignore[return-value]
        Counter(_canonical(part[0] if width == 1 else part) for part in parts)
        for parts in ([row[1 : width + 1] for row in rows], [row[width + 1 :] for row in rows])
    )


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _canonical(value: Any) -> str:
    """The same text for the same value, whichever driver read it."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return str([_canonical(item) for item in value])
    if isinstance(value, memoryview):
        return str(bytes(value))
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    text = re.sub(r"([+-]\d\d):00$", r"\1", str(value))
    text = re.sub(r"(:\d\d\.\d*?[1-9])0+(?=$|[+-])", r"\1", text)
    return _INFINITE.get(text, text)


def differences(outcomes: Iterable[Outcome]) -> list[str]:
    """One line for each disagreement."""
    return [
        f"{outcome.expectation.type} {dict(outcome.expectation.kwargs)}: {outcome.disagreement}"
        for outcome in outcomes
        if outcome.disagreement is not None
    ]


def left(outcomes: Iterable[Outcome]) -> list[str]:
    """One line for each expectation that SQL leaves to Great Expectations."""
    return [
        f"{outcome.expectation.type} {dict(outcome.expectation.kwargs)}: {outcome.left}"
        for outcome in outcomes
        if outcome.left is not None
    ]

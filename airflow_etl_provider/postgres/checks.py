"""Checks of a suite on PostgreSQL: one scan for all that is counted, one anti-join for each reference, and the
unique index that stands there for what is unique.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres.catalog import scalar
from airflow_etl_provider.postgres.predicates import (
    column_of,
    condition,
    duplicated,
    literal,
    unexpected,
    where,
)
from airflow_etl_provider.postgres.proven import never_null, proven_unique
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident, qualified
from airflow_etl_provider.quality.compiler import check_of
from airflow_etl_provider.quality.plan import (
    Always,
    Check,
    DistinctCheck,
    Function,
    Known,
    MeasureCheck,
    Missing,
    Not,
    Predicate,
    ReferenceCheck,
    RowCheck,
    UniqueCheck,
    every,
    present,
    regexes_of,
    simplified,
)
from airflow_etl_provider.quality.report import ExpectationResult, Judged
from airflow_etl_provider.quality.suite import Expectation

#: What the server says of a statement that could not be evaluated on these rows: bad values, types that do not
#: compare, columns and tables that are not there. Great Expectations then says so in its own words.
_UNANSWERABLE = (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError)
#: More aggregates than these go into a further scan; the server takes 1,664 columns.
_AT_ONCE = 1_000
#: Below so many rows, counting duplicates costs less than an index.
INDEX_ROWS = 100_000


def failing_rows(
    expectation: Expectation, columns: Mapping[str, str], table: TableName
) -> sql.Composed | None:
    """A condition on a row of *table*, called ``t``: whether the expectation finds it unexpected; never NULL.

    ``None`` where the expectation says nothing of single rows, or only Great Expectations can tell.
    """
    check = check_of(expectation, columns)
    if isinstance(check, RowCheck | UniqueCheck | ReferenceCheck):
        return sql.SQL("({}) IS TRUE").format(unexpected(check, ident(table)))
    return None


def judge(
    connection: psycopg.Connection[Any],
    table: TableName,
    expectations: Sequence[Expectation],
    columns: Mapping[str, str],
    *,
    keys: Sequence[str] = (),
    samples: int = 3,
    make_unique: Callable[[tuple[str, ...]], bool] | None = None,
) -> Judged:
    """Judge the rows of *table* in one snapshot, exactly as Great Expectations would.

    :param columns: of the table, in order, each with its type as ``format_type`` prints it.
    :param keys: columns that tell which rows are shown of a failed expectation.
    :param samples: how many unexpected values are shown; 0 shows none.
    :param make_unique: makes a unique index on some columns of a large table; false if they are not unique.
    :raises CatalogError: the table cannot be read as a whole.
    """
    checks: dict[int, Check] = {}
    left: dict[int, str] = {}
    for number, expectation in enumerate(expectations):
        check = check_of(expectation, columns)
        if check is None:
            left[number] = "SQL alone cannot say exactly what it means"
        else:
            checks[number] = check
    proven = proven_unique(connection, table, checks.values(), make_unique)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Operators of extensions are looked up where the role finds them, as Great Expectations does.
        connection.execute(queries("checks")["own_search_path"])
        judging = _Judging(connection, table, columns, never_null(connection, table), proven)
        answers = judging.answers(checks, left)
        rows: int = answers.value(_COUNT)
        results = {}
        for number, check in checks.items():
            if number in left:
                continue
            try:
                with connection.transaction():
                    results[number] = judging.result(
                        expectations[number], check, answers, keys, samples
                    )
            except (TypeError, *_UNANSWERABLE) as error:
                left[number] = _reason(error)
    return Judged(rows, results, left)


# -- asking ---------------------------------------------------------------------------------------

_COUNT = sql.SQL("count(*)")


class _Answers:
    """What single statements and aggregates answered, by their text."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def value(self, asked: sql.Composable) -> Any:
        return self._values[asked.as_string(None)]

    def put(self, asked: sql.Composable, answer: Any) -> None:
        self._values[asked.as_string(None)] = answer


@dataclass(frozen=True, slots=True)
class _Questions:
    """What a check asks: aggregates of the table, which share a scan, and statements of their own."""

    aggregates: Sequence[sql.Composable] = ()
    statements: Sequence[sql.Composable] = ()


@dataclass(frozen=True, slots=True)
class _Judging:
    connection: psycopg.Connection[Any]
    table: TableName
    columns: Mapping[str, str]
    not_null: Collection[str]
    proven: Collection[frozenset[str]] = field(default=())

    def answers(self, checks: Mapping[int, Check], left: dict[int, str]) -> _Answers:
        """Ask everything, each thing once; what cannot be answered is *left*, with its reason."""
        asked = {number: self._questions(check) for number, check in checks.items()}
        answers = _Answers()
        try:
            with self.connection.transaction():
                self._scan(
                    [q for questions in asked.values() for q in questions.aggregates], answers
                )
        except _UNANSWERABLE:
            self._scan([], answers)
            self._one_by_one(asked, answers, left)
        for number, questions in asked.items():
            if number in left:
                continue
            try:
                for statement in questions.statements:
                    with self.connection.transaction():
                        answers.put(statement, scalar(self.connection, statement))
            except _UNANSWERABLE as error:
                left[number] = _reason(error)
        return answers

    def _one_by_one(
        self, asked: Mapping[int, _Questions], answers: _Answers, left: dict[int, str]
    ) -> None:
        """Find what spoils the scan: first without rows, where most shows, then with all of them."""
        good: list[int] = []
        for number, questions in asked.items():
            try:
                with self.connection.transaction():
                    self._scan(questions.aggregates, _Answers(), dry=True)
                good.append(number)
            except _UNANSWERABLE as error:
                left[number] = _reason(error)
        try:
            with self.connection.transaction():
                self._scan([q for number in good for q in asked[number].aggregates], answers)
        except _UNANSWERABLE:
            for number in good:
                try:
                    with self.connection.transaction():
                        self._scan(asked[number].aggregates, answers)
                except _UNANSWERABLE as error:
                    left[number] = _reason(error)

    def _scan(
        self,
        aggregates: Sequence[sql.Composable],
        answers: _Answers,
        *,
        dry: bool = False,
    ) -> None:
        """Ask all *aggregates* at once; *dry* has them parsed, and run over no rows."""
        different = {aggregate.as_string(None): aggregate for aggregate in (_COUNT, *aggregates)}
        asked = list(different.values())
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]
            statement = sql.SQL("SELECT {} FROM {} AS t WHERE {}").format(
                sql.SQL(", ").join(some), ident(self.table), sql.SQL("false" if dry else "true")
            )
            found = self.connection.execute(statement).fetchone() or ()
            for aggregate, answer in zip(some, found, strict=True):
                answers.put(aggregate, answer)

    # -- what each check asks, and what its answers mean ------------------------------------------

    def _questions(self, check: Check) -> _Questions:
        match check:
            case RowCheck():
                return _Questions([*_asked(*self._counts(check)), *_valid_regexes(check)])
            case UniqueCheck():
                statements = [] if self._is_proven(check) else [self._duplicates(check)]
                counts = (self._count(check.within), self._count(every(check.within, check.judged)))
                return _Questions(_asked(*counts), statements)
            case ReferenceCheck():
                counts = (self._count(check.within), self._count(every(check.within, check.judged)))
                return _Questions(_asked(*counts), [self._orphans(check)])
            case MeasureCheck():
                return self._measured(check)
            case DistinctCheck():
                return _Questions((), list(self._distinct(check)))
        return _Questions()

    def _count(self, predicate: Predicate | None) -> sql.Composable | None:
        """How many rows; ``None`` where the columns that are never NULL say that there are none."""
        kept = simplified(predicate, self.not_null)
        if kept is None:
            return _COUNT
        if kept == Always(False):
            return None
        if isinstance(kept, Not) and isinstance(kept.of, Missing):
            return sql.SQL("count({})").format(column_of(kept.of.column))
        return sql.SQL("count(*) FILTER (WHERE {})").format(condition(kept))

    def _counts(self, check: RowCheck) -> tuple[sql.Composable | None, ...]:
        return (
            self._count(check.within),
            self._count(every(check.within, check.judged)),
            self._count(every(check.within, check.unexpected)),
        )

    def _is_proven(self, check: UniqueCheck) -> bool:
        return any(unique <= set(check.columns) for unique in self.proven)

    def _duplicates(self, check: UniqueCheck) -> sql.Composed:
        return sql.SQL("SELECT coalesce(sum(n), 0)::bigint FROM ({}) AS twice").format(
            duplicated(check, ident(self.table))
        )

    def _orphans(self, check: ReferenceCheck) -> sql.Composed:
        return sql.SQL("SELECT count(*) FROM {} AS t WHERE {}").format(
            ident(self.table), unexpected(check, ident(self.table))
        )

    def _values(self, column: str, within: Predicate | None) -> sql.Composed:
        """The distinct values of a column."""
        return sql.SQL("SELECT DISTINCT {} AS v FROM {} AS t WHERE {}").format(
            column_of(column), ident(self.table), where(every(present(column), within))
        )

    def _distinct_count(self, check: MeasureCheck) -> sql.Composed:
        values = self._values(check.column or "", check.within)
        return sql.SQL("SELECT count(*) FROM ({}) AS d").format(values)

    def _distinct(self, check: DistinctCheck) -> tuple[sql.Composed, sql.Composed]:
        """How many distinct values are outside the set, and how many inside."""
        values = self._values(check.column, check.within)
        inner = sql.SQL(", ").join(map(literal, check.values))
        outside = sql.SQL("SELECT count(*) FROM ({}) AS d WHERE v NOT IN ({})")
        inside = sql.SQL("SELECT count(*) FROM ({}) AS d WHERE v IN ({})")
        return outside.format(values, inner), inside.format(values, inner)

    def _measured(self, check: MeasureCheck) -> _Questions:
        count = self._count(check.within)
        if check.function is Function.ROWS:
            return _Questions(_asked(count))
        some = self._count(every(check.within, present(check.column or "")))
        match check.function:
            case Function.DISTINCT:
                return _Questions((), [self._distinct_count(check)])
            case Function.SHARE_PRESENT:
                return _Questions(_asked(count, some))
            case Function.SHARE_DISTINCT:
                return _Questions(_asked(count, some), [self._distinct_count(check)])
        return _Questions([self._aggregate(check)])

    def _aggregate(self, check: MeasureCheck) -> sql.Composed:
        column = column_of(check.column or "")
        made = {
            Function.MIN: sql.SQL("min({})"),
            Function.MAX: sql.SQL("max({})"),
            Function.MEAN: sql.SQL("avg(1.0 * {})"),
            Function.SUM: sql.SQL("sum({})"),
            Function.STDEV: sql.SQL("stddev_samp({})"),
        }[check.function].format(column)
        kept = simplified(check.within, self.not_null)
        return (
            made if kept is None else sql.SQL("{} FILTER (WHERE {})").format(made, condition(kept))
        )

    def result(
        self,
        expectation: Expectation,
        check: Check,
        answers: _Answers,
        keys: Sequence[str],
        samples: int,
    ) -> ExpectationResult:
        """:raises TypeError: what was observed cannot be compared with the bounds."""
        if isinstance(check, RowCheck | UniqueCheck | ReferenceCheck):
            return self._result_of_rows(expectation, check, answers, keys, samples)
        if isinstance(check, Known):
            return _result(expectation, check.success, observed_value=check.observed)
        if isinstance(check, MeasureCheck):
            observed = _plain(self._observed(check, answers))
            success = observed is not None and check.bounds.hold(_comparable(observed, check))
            return _result(expectation, success, observed_value=observed)
        outside, inside = (answers.value(asked) for asked in self._distinct(check))
        missing = len(check.values) - inside
        return _result(
            expectation,
            not ((check.no_others and outside) or (check.whole and missing)),
            unexpected_count=outside if check.no_others else None,
            missing_count=missing if check.whole else None,
            partial_unexpected_list=self._others(check, samples)
            if check.no_others and outside
            else (),
        )

    def _result_of_rows(
        self,
        expectation: Expectation,
        check: RowCheck | UniqueCheck | ReferenceCheck,
        answers: _Answers,
        keys: Sequence[str],
        samples: int,
    ) -> ExpectationResult:
        total = _number(answers, self._count(check.within))
        judged = (
            total
            if check.judged is None
            else _number(answers, self._count(every(check.within, check.judged)))
        )
        wrong = self._number_of_unexpected(check, answers)
        shown, shown_keys = self._shown(expectation, check, keys, samples if wrong else 0)
        return _result(
            expectation,
            # As Great Expectations computes it, to the last bit.
            total == 0
            or judged == 0
            or (float(judged) - float(wrong)) / float(judged) >= check.mostly,
            element_count=total,
            # Great Expectations adds up the unexpected rows of a single column, and a sum of none is no number.
            unexpected_count=None if total == 0 and _is_of_one_column(check) else wrong,
            unexpected_percent=wrong / judged * 100 if judged else None,
            missing_count=None if check.judged is None else total - judged,
            partial_unexpected_list=shown,
            unexpected_index_list=shown_keys,
        )

    def _number_of_unexpected(
        self, check: RowCheck | UniqueCheck | ReferenceCheck, answers: _Answers
    ) -> int:
        if isinstance(check, RowCheck):
            return _number(answers, self._counts(check)[2])
        if isinstance(check, UniqueCheck):
            return 0 if self._is_proven(check) else _number(answers, self._duplicates(check))
        return _number(answers, self._orphans(check))

    def _shown(
        self,
        expectation: Expectation,
        check: RowCheck | UniqueCheck | ReferenceCheck,
        keys: Sequence[str],
        samples: int,
    ) -> tuple[tuple[Any, ...], tuple[Mapping[str, Any], ...]]:
        """A few unexpected values, and the keys of their rows."""
        if samples == 0:
            return (), ()
        known = [key for key in keys if key in self.columns]
        rows = self._fetch(
            [*check.columns, *known],
            sql.SQL("FROM {} AS t WHERE ({}) IS TRUE LIMIT {}").format(
                ident(self.table), unexpected(check, ident(self.table)), sql.Literal(samples)
            ),
        )
        width = len(check.columns)
        values = tuple(_shape(expectation, row[:width]) for row in rows)
        return values, tuple(
            dict(zip(known, row[width:], strict=True)) for row in rows
        ) if known else ()

    def _others(self, check: DistinctCheck, samples: int) -> tuple[Any, ...]:
        if samples == 0:
            return ()
        inner = sql.SQL(", ").join(map(literal, check.values))
        rows = self._fetch(
            [check.column],
            sql.SQL(
                "FROM (SELECT v AS {} FROM ({}) AS d WHERE v NOT IN ({}) LIMIT {}) AS t"
            ).format(
                sql.Identifier(check.column),
                self._values(check.column, check.within),
                inner,
                sql.Literal(samples),
            ),
        )
        return tuple(row[0] for row in rows)

    def _fetch(self, columns: Sequence[str], rest: sql.Composable) -> list[tuple[Any, ...]]:
        """Rows to be shown; as text where Python has no such value (the year 0 BC, infinity)."""
        try:
            with self.connection.transaction():
                plain = sql.SQL("SELECT {} ").format(qualified("t", columns)) + rest
                return self.connection.execute(plain).fetchall()
        except psycopg.DataError:
            as_text = sql.SQL(", ").join(
                sql.SQL("{}::text").format(column_of(column)) for column in columns
            )
            return self.connection.execute(sql.SQL("SELECT {} ").format(as_text) + rest).fetchall()

    def _observed(self, check: MeasureCheck, answers: _Answers) -> Any:
        if check.function is Function.DISTINCT:
            return answers.value(self._distinct_count(check))
        if check.function not in (Function.ROWS, Function.SHARE_PRESENT, Function.SHARE_DISTINCT):
            return answers.value(self._aggregate(check))
        count = _number(answers, self._count(check.within))
        if check.function is Function.ROWS:
            return count
        some = _number(answers, self._count(every(check.within, present(check.column or ""))))
        if check.function is Function.SHARE_PRESENT:
            return some / count if count else 0
        return answers.value(self._distinct_count(check)) / some if some else 0


def _valid_regexes(check: RowCheck) -> list[sql.Composable]:
    """Has regexes compiled even where no row is matched with them: a broken one is never left unnoticed."""
    return [
        sql.SQL("bool_or('' ~ {})").format(literal(regex))
        for regex in sorted(regexes_of(check.unexpected))
    ]


def _is_of_one_column(check: Check) -> bool:
    return isinstance(check, RowCheck) and len(check.columns) == 1


def _asked(*counts: sql.Composable | None) -> list[sql.Composable]:
    return [count for count in counts if count is not None]


def _number(answers: _Answers, asked: sql.Composable | None) -> int:
    return 0 if asked is None else int(answers.value(asked))


def _shape(expectation: Expectation, values: tuple[Any, ...]) -> Any:
    """Unexpected values as Great Expectations shows them: one, a pair, or several by the names of their columns."""
    if len(values) == 1:
        return values[0]
    if expectation.type.startswith("expect_column_pair_"):
        return values
    return dict(zip(expectation.columns(), values, strict=False))


def _plain(observed: Any) -> Any:
    """An aggregate as Great Expectations hands it on."""
    if isinstance(observed, Decimal):
        observed = float(observed)
    if isinstance(observed, float) and math.isnan(observed):
        return None
    if isinstance(observed, date | time):
        return observed.isoformat()
    return observed


def _comparable(observed: Any, check: MeasureCheck) -> Any:
    dates = any(isinstance(bound, date) for bound in (check.bounds.low, check.bounds.high))
    return date.fromisoformat(observed) if dates else observed


def _result(expectation: Expectation, success: bool, **found: Any) -> ExpectationResult:
    return ExpectationResult(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        success=bool(success),
        column=", ".join(expectation.columns()) or None,
        **found,
    )


def _reason(error: Exception) -> str:
    """Why, without the server's words, which may hold values."""
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f' (SQLSTATE {state})' if state else ''}"

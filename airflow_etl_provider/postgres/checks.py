"""Checks of a suite on PostgreSQL: one scan for all that is counted, one anti-join for each reference, and the
unique index that stands there for what is unique.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres.asking import COUNT, Asking, Questions, Unanswerable
from airflow_etl_provider.postgres.counting import Counting, asked, outcome
from airflow_etl_provider.postgres.measuring import Measuring
from airflow_etl_provider.postgres.predicates import unexpected
from airflow_etl_provider.postgres.proven import column_types, never_null, proven_unique
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import ident
from airflow_etl_provider.quality.compiler import check_of
from airflow_etl_provider.quality.plan import (
    Check,
    DeviationCheck,
    Known,
    QueryCheck,
    ReferenceCheck,
    RowCheck,
    SameCountCheck,
    TypeCheck,
    UniqueCheck,
)
from airflow_etl_provider.quality.report import ExpectationResult, Judged
from airflow_etl_provider.quality.suite import Expectation

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
        not_null = never_null(connection, table)
        asking = Asking(connection, table)
        judging = _Judging(Counting(asking, columns, not_null, proven, keys, samples))
        judging.ask(checks, left)
        results = {}
        for number, check in checks.items():
            if number in left:
                continue
            try:
                with asking.attempt():
                    results[number] = judging.result(expectations[number], check)
            except Unanswerable as error:
                left[number] = str(error)
            except (TypeError, ArithmeticError) as error:  # what was observed does not compare
                left[number] = type(error).__name__
        return Judged(asking.answer(COUNT), results, left)


@dataclass(frozen=True, slots=True)
class _Judging:
    """What each check asks, and what its answers mean."""

    counting: Counting

    @property
    def asking(self) -> Asking:
        return self.counting.asking

    @property
    def measuring(self) -> Measuring:
        return Measuring(self.counting)

    def ask(self, checks: dict[int, Check], left: dict[int, str]) -> None:
        """Ask everything; checks that wait for numbers become checks of rows, which are asked then."""
        self.asking.ask({number: self._questions(check) for number, check in checks.items()}, left)
        settled = {
            number: self.measuring.settled(check)
            for number, check in checks.items()
            if isinstance(check, DeviationCheck) and number not in left
        }
        if settled:
            checks.update(settled)
            self.asking.ask(
                {number: self.counting.questions(check) for number, check in settled.items()}, left
            )

    def result(self, expectation: Expectation, check: Check) -> ExpectationResult:
        """:raises TypeError: what was observed cannot be compared with the bounds.
        :raises Unanswerable: only Great Expectations can tell.
        """
        match check:
            case Known(success, observed):
                return outcome(expectation, success, observed_value=observed)
            case RowCheck() | UniqueCheck() | ReferenceCheck():
                return self.counting.result(expectation, check)
            case TypeCheck(column, names):
                return self._result_of_type(expectation, column, names)
            case SameCountCheck():
                own = self.asking.number(self.counting.count(check.within))
                other = self.asking.number(self._other_count(check))
                both = {"self": own, "other": other}
                return outcome(expectation, own == other, observed_value=both)
            case QueryCheck():
                rows = self.asking.number(self._found(check))
                return outcome(expectation, rows == 0, unexpected_count=rows, observed_value=rows)
        return self.measuring.result(expectation, check)

    def _questions(self, check: Check) -> Questions:
        match check:
            case Known() | TypeCheck():
                return Questions()
            case RowCheck() | UniqueCheck() | ReferenceCheck():
                return self.counting.questions(check)
            case SameCountCheck(within):
                return Questions(asked(self.counting.count(within)), [self._other_count(check)])
            case QueryCheck():
                return Questions((), [self._found(check)])
        return self.measuring.questions(check)

    def _other_count(self, check: SameCountCheck) -> sql.Composed:
        other = sql.Identifier(self.asking.table.schema, check.table)
        return sql.SQL("SELECT count(*) FROM {}").format(other)

    def _found(self, check: QueryCheck) -> sql.Composed:
        """How many rows the query finds; each is made in full, as it is when somebody looks at it."""
        name = sql.SQL(" AS subselect" if check.named else "")
        batch = sql.SQL("(SELECT * \nFROM {}){}").format(ident(self.asking.table), name)
        # The user's own statement, as they wrote it.
        first, *others = map(sql.SQL, check.parts)
        query = sql.Composed([first, *(part for other in others for part in (batch, other))])
        row = sql.Identifier("row of the query")
        return sql.SQL("SELECT count({}) FROM ({}) AS {}").format(row, query, row)

    def _result_of_type(
        self, expectation: Expectation, column: str, names: Sequence[str]
    ) -> ExpectationResult:
        observed = column_types(self.asking.connection, self.asking.table).get(column)
        if observed is None:
            raise Unanswerable("how Great Expectations calls the type is not certain")
        accepted = {name.casefold() for name in names}
        return outcome(expectation, observed.casefold() in accepted, observed_value=observed)

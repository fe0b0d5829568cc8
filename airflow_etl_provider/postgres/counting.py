"""Checks of single rows: how many are judged, how many of them are unexpected, and what a few of these hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import sql

from airflow_etl_provider.postgres.asking import COUNT, Asking, Questions
from airflow_etl_provider.postgres.predicates import (
    column_of,
    condition,
    duplicates,
    literal,
    unexpected,
)
from airflow_etl_provider.postgres.statements import ident, qualified
from airflow_etl_provider.quality.plan import (
    Always,
    Check,
    Missing,
    Not,
    Predicate,
    ReferenceCheck,
    RowCheck,
    UniqueCheck,
    every,
    regexes_of,
    simplified,
)
from airflow_etl_provider.quality.report import ExpectationResult
from airflow_etl_provider.quality.suite import Expectation


@dataclass(frozen=True, slots=True)
class Counting:
    """Counts rows of the table that *asking* asks.

    :param columns: of the table.
    :param not_null: columns that hold no NULL.
    :param proven: sets of columns that the catalog proves unique.
    :param keys: columns that tell which rows are shown of a failed expectation.
    :param samples: how many unexpected values are shown.
    """

    asking: Asking
    columns: Mapping[str, str]
    not_null: Collection[str] = ()
    proven: Collection[frozenset[str]] = field(default=())
    keys: Sequence[str] = ()
    samples: int = 0

    def questions(self, check: RowCheck | UniqueCheck | ReferenceCheck) -> Questions:
        match check:
            case RowCheck():
                counts = [*self._totals(check), self._unexpected(check)]
                return Questions([*asked(*counts), *_valid_regexes(check)])
            case UniqueCheck():
                return Questions(asked(*self._totals(check)), [self._duplicates(check)])
            case ReferenceCheck():
                return Questions(asked(*self._totals(check)), [self._orphans(check)])

    def count(
        self, within: Predicate | None, own: Predicate | None = None
    ) -> sql.Composable | None:
        """How many rows *within* are as the check's *own* predicate says; ``None`` where columns that are never
        NULL say that there are none."""
        own = simplified(own, self.not_null)
        if own == Always(False):
            return None
        kept = every(within, own)
        if kept is None:
            return COUNT
        if isinstance(kept, Not) and isinstance(kept.of, Missing):
            return sql.SQL("count({})").format(column_of(kept.of.column))
        return sql.SQL("count(*) FILTER (WHERE {})").format(condition(kept))

    def result(
        self, expectation: Expectation, check: RowCheck | UniqueCheck | ReferenceCheck
    ) -> ExpectationResult:
        total, judged = map(self.asking.number, self._totals(check))
        wrong = self._number_of_unexpected(check)
        shown, keys = self._shown(expectation, check) if wrong and self.samples else ((), ())
        return outcome(
            expectation,
            # As Great Expectations computes it, to the last bit.
            total == 0
            or judged == 0
            or (float(judged) - float(wrong)) / float(judged) >= check.mostly,
            element_count=total,
            # It adds up the unexpected rows of a single column, and a sum of none is no number.
            unexpected_count=None if total == 0 and _is_of_one_column(check) else wrong,
            unexpected_percent=wrong / judged * 100 if judged else None,
            missing_count=None if check.judged is None else total - judged,
            partial_unexpected_list=shown,
            unexpected_index_list=keys,
        )

    def fetch(self, columns: Sequence[str], rest: sql.Composable) -> list[tuple[Any, ...]]:
        """Rows to be shown; as text where Python has no such value (the year 0 BC, infinity)."""
        connection = self.asking.connection
        try:
            with connection.transaction():
                plain = sql.SQL("SELECT {} ").format(qualified("t", columns)) + rest
                return connection.execute(plain).fetchall()
        except psycopg.DataError:
            as_text = sql.SQL(", ").join(
                sql.SQL("{}::text").format(column_of(column)) for column in columns
            )
            return connection.execute(sql.SQL("SELECT {} ").format(as_text) + rest).fetchall()

    def _totals(
        self, check: RowCheck | UniqueCheck | ReferenceCheck
    ) -> tuple[sql.Composable | None, sql.Composable | None]:
        return self.count(check.within), self.count(check.within, check.judged)

    def _unexpected(self, check: RowCheck) -> sql.Composable | None:
        return self.count(check.within, check.unexpected)

    def _duplicates(self, check: UniqueCheck) -> sql.Composed:
        """How many rows share their columns; where none can, nothing is read to say so."""
        proven = any(unique <= set(check.columns) for unique in self.proven)
        within = every(check.within, Always(False)) if proven else check.within
        return duplicates(replace(check, within=within), ident(self.asking.table))

    def _orphans(self, check: ReferenceCheck) -> sql.Composed:
        table = ident(self.asking.table)
        return sql.SQL("SELECT count(*) FROM {} AS t WHERE {}").format(
            table, unexpected(check, table)
        )

    def _number_of_unexpected(self, check: RowCheck | UniqueCheck | ReferenceCheck) -> int:
        match check:
            case RowCheck():
                return self.asking.number(self._unexpected(check))
            case UniqueCheck():
                return self.asking.number(self._duplicates(check))
            case ReferenceCheck():
                return self.asking.number(self._orphans(check))

    def _shown(
        self, expectation: Expectation, check: RowCheck | UniqueCheck | ReferenceCheck
    ) -> tuple[tuple[Any, ...], tuple[Mapping[str, Any], ...]]:
        """A few unexpected values, and the keys of their rows."""
        known = [key for key in self.keys if key in self.columns]
        table = ident(self.asking.table)
        rows = self.fetch(
            [*check.columns, *known],
            sql.SQL("FROM {} AS t WHERE ({}) IS TRUE LIMIT {}").format(
                table, unexpected(check, table), sql.Literal(self.samples)
            ),
        )
        width = len(check.columns)
        values = tuple(_shape(expectation, row[:width]) for row in rows)
        keys = (dict(zip(known, row[width:], strict=True)) for row in rows) if known else ()
        return values, tuple(keys)


def outcome(expectation: Expectation, success: bool, **found: Any) -> ExpectationResult:
    return ExpectationResult(
        type=expectation.type,
        kwargs=expectation.kwargs,
        severity=expectation.severity,
        success=bool(success),
        column=", ".join(expectation.columns()) or None,
        **found,
    )


def asked(*counts: sql.Composable | None) -> list[sql.Composable]:
    return [count for count in counts if count is not None]


def _valid_regexes(check: RowCheck) -> list[sql.Composable]:
    """Has regexes compiled even where no row is matched with them: a broken one is never left unnoticed."""
    return [
        sql.SQL("bool_or('' ~ {})").format(literal(regex))
        for regex in sorted(regexes_of(check.unexpected))
    ]


def _is_of_one_column(check: Check) -> bool:
    return isinstance(check, RowCheck) and len(check.columns) == 1


def _shape(expectation: Expectation, values: tuple[Any, ...]) -> Any:
    """Unexpected values as Great Expectations shows them: one, a pair, or several by the names of their columns."""
    if len(values) == 1:
        return values[0]
    if expectation.type.startswith("expect_column_pair_"):
        return values
    return dict(zip(expectation.columns(), values, strict=False))

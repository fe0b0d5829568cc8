"""Checks of a column's values, or of the rows, taken together: what is measured, and what it means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from psycopg import sql

from airflow_etl_provider.postgres.asking import Asking, Questions, Unanswerable
from airflow_etl_provider.postgres.counting import Counting, asked, outcome
from airflow_etl_provider.postgres.predicates import column_of, condition, literal, where
from airflow_etl_provider.postgres.statements import ident
from airflow_etl_provider.quality.plan import (
    Bounds,
    DeviationCheck,
    DistinctCheck,
    Function,
    MeasureCheck,
    MedianCheck,
    MostCommonCheck,
    Predicate,
    QuantilesCheck,
    RowCheck,
    Spread,
    every,
    present,
)
from airflow_etl_provider.quality.report import ExpectationResult
from airflow_etl_provider.quality.suite import Expectation

#: Of more values that are equally common, only Great Expectations tells which of them are in a set.
_MOST_TIES = 1_000

_ONE_NUMBER = {
    Function.MIN: sql.SQL("min({})"),
    Function.MAX: sql.SQL("max({})"),
    Function.MEAN: sql.SQL("avg(1.0 * {})"),
    Function.SUM: sql.SQL("sum({})"),
    Function.STDEV: sql.SQL("stddev_samp({})"),
}
_MIDDLE = (
    sql.SQL("percentile_disc(0.5) WITHIN GROUP (ORDER BY {})"),
    sql.SQL("percentile_disc(0.5) WITHIN GROUP (ORDER BY {} DESC)"),
)
_QUANTILE = sql.SQL("percentile_disc({}) WITHIN GROUP (ORDER BY {})")
_SPREAD = {
    Spread.Z_SCORE: (_ONE_NUMBER[Function.MEAN], _ONE_NUMBER[Function.STDEV]),
    Spread.QUARTILES: (
        sql.SQL("percentile_cont(0.25) WITHIN GROUP (ORDER BY {})"),
        sql.SQL("percentile_cont(0.75) WITHIN GROUP (ORDER BY {})"),
    ),
    Spread.STDEV: (
        sql.SQL("avg(CAST({} AS double precision))"),
        sql.SQL("stddev_samp(CAST({} AS double precision))"),
    ),
}

Measured = (
    MeasureCheck | DistinctCheck | MedianCheck | QuantilesCheck | MostCommonCheck | DeviationCheck
)


@dataclass(frozen=True, slots=True)
class Measuring:
    """Measures the table whose rows *counting* counts."""

    counting: Counting

    @property
    def asking(self) -> Asking:
        return self.counting.asking

    def questions(self, check: Measured) -> Questions:
        match check:
            case MeasureCheck():
                return self._of_one_number(check)
            case DistinctCheck():
                return Questions((), self._distinct(check))
            case MedianCheck():
                return Questions([*self._middle(check), self._present(check)])
            case QuantilesCheck():
                return Questions(self._quantiles(check))
            case DeviationCheck():
                return Questions(self._spread(check))
        return Questions()

    def settled(self, check: DeviationCheck) -> RowCheck:
        """The check of rows that the answers make of it."""
        first, second = (_number(self.asking.answer(question)) for question in self._spread(check))
        return check.settled(first, second)

    def result(self, expectation: Expectation, check: Measured) -> ExpectationResult:
        """:raises TypeError: what was observed cannot be compared with the bounds.
        :raises Unanswerable: only Great Expectations can tell.
        """
        match check:
            case MeasureCheck():
                return _within_bounds(expectation, _number(self._observed(check)), check.bounds)
            case MedianCheck():
                return _within_bounds(expectation, self._median(check), check.bounds)
            case QuantilesCheck():
                return self._result_of_quantiles(expectation, check)
            case MostCommonCheck():
                return self._result_of_most_common(expectation, check)
            case DistinctCheck():
                return self._result_of_distinct(expectation, check)
        raise TypeError(f"{expectation.type} is a check of rows")

    # -- one number -------------------------------------------------------------------------------

    def _aggregate(
        self, function: sql.SQL, check: Measured, *values: sql.Composable
    ) -> sql.Composed:
        made = function.format(*values, column_of(check.column or ""))
        if check.within is None:
            return made
        return sql.SQL("{} FILTER (WHERE {})").format(made, condition(check.within))

    def _present(self, check: Measured) -> sql.Composable:
        """How many values there are."""
        return sql.SQL("count(*) FILTER (WHERE {})").format(
            where(every(check.within, present(check.column or "")))
        )

    def _of_one_number(self, check: MeasureCheck) -> Questions:
        if check.function in _ONE_NUMBER:
            return Questions([self._aggregate(_ONE_NUMBER[check.function], check)])
        count = asked(self.counting.count(check.within))
        match check.function:
            case Function.ROWS:
                return Questions(count)
            case Function.SHARE_PRESENT:
                return Questions([*count, self._present(check)])
            case Function.SHARE_DISTINCT:
                return Questions([self._present(check)], [self._distinct_count(check)])
        return Questions((), [self._distinct_count(check)])

    def _observed(self, check: MeasureCheck) -> Any:
        if check.function in _ONE_NUMBER:
            return self.asking.answer(self._aggregate(_ONE_NUMBER[check.function], check))
        match check.function:
            case Function.ROWS:
                return self.asking.number(self.counting.count(check.within))
            case Function.SHARE_PRESENT:
                count = self.asking.number(self.counting.count(check.within))
                return self.asking.number(self._present(check)) / count if count else 0
            case Function.SHARE_DISTINCT:
                some = self.asking.number(self._present(check))
                return self.asking.answer(self._distinct_count(check)) / some if some else 0
        return self.asking.answer(self._distinct_count(check))

    # -- distinct values --------------------------------------------------------------------------

    def _values(self, column: str, within: Predicate | None) -> sql.Composed:
        return sql.SQL("SELECT DISTINCT {} AS v FROM {} AS t WHERE {}").format(
            column_of(column), ident(self.asking.table), where(every(present(column), within))
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

    def _result_of_distinct(
        self, expectation: Expectation, check: DistinctCheck
    ) -> ExpectationResult:
        outside, inside = map(self.asking.number, self._distinct(check))
        missing = len(check.values) - inside
        show = check.no_others and outside and self.counting.samples
        return outcome(
            expectation,
            not ((check.no_others and outside) or (check.whole and missing)),
            unexpected_count=outside if check.no_others else None,
            missing_count=missing if check.whole else None,
            partial_unexpected_list=self._others(check) if show else (),
        )

    def _others(self, check: DistinctCheck) -> tuple[Any, ...]:
        """A few distinct values that are not in the set."""
        shown = sql.SQL("FROM (SELECT v AS {} FROM ({}) AS d WHERE v NOT IN ({}) LIMIT {}) AS t")
        rows = self.counting.fetch(
            [check.column],
            shown.format(
                sql.Identifier(check.column),
                self._values(check.column, check.within),
                sql.SQL(", ").join(map(literal, check.values)),
                sql.Literal(self.counting.samples),
            ),
        )
        return tuple(row[0] for row in rows)

    # -- values in order --------------------------------------------------------------------------

    def _middle(self, check: MedianCheck) -> list[sql.Composable]:
        """The middle from below and from above, which are two values where their number is even."""
        return [self._aggregate(middle, check) for middle in _MIDDLE]

    def _median(self, check: MedianCheck) -> Any:
        count = self.asking.number(self._present(check))
        low, high = map(self.asking.answer, self._middle(check))
        # As Great Expectations computes it, in Python: the value itself, or a float.
        return float(low + high) / 2.0 if count and count % 2 == 0 else low

    def _quantiles(self, check: QuantilesCheck) -> list[sql.Composable]:
        return [
            self._aggregate(_QUANTILE, check, literal(quantile)) for quantile in check.quantiles
        ]

    def _result_of_quantiles(
        self, expectation: Expectation, check: QuantilesCheck
    ) -> ExpectationResult:
        values = list(map(self.asking.answer, self._quantiles(check)))
        held = [_reaches(value, ends) for value, ends in zip(values, check.ranges, strict=True)]
        observed = {"quantiles": list(check.quantiles), "values": values}
        return outcome(expectation, all(held), observed_value=observed)

    def _spread(self, check: DeviationCheck) -> list[sql.Composable]:
        return [self._aggregate(function, check) for function in _SPREAD[check.spread]]

    # -- how common values are --------------------------------------------------------------------

    def _result_of_most_common(
        self, expectation: Expectation, check: MostCommonCheck
    ) -> ExpectationResult:
        common = self._most_common(check)
        if len(common) > _MOST_TIES and check.ties_okay:
            raise Unanswerable(f"more than {_MOST_TIES} values are equally common")
        found = len(check.values.intersection(common))
        success = found > 0 if check.ties_okay else len(common) == 1 and found == 1
        return outcome(expectation, success, observed_value=common)

    def _most_common(self, check: MostCommonCheck) -> Sequence[Any]:
        """The most common values, in order; never many more than are ever looked at."""
        statement = sql.SQL(
            "SELECT v FROM (SELECT {} AS v, rank() OVER (ORDER BY count(*) DESC) AS place"
            " FROM {} AS t WHERE {} GROUP BY 1) AS ranked WHERE place = 1 ORDER BY v LIMIT {}"
        ).format(
            column_of(check.column),
            ident(self.asking.table),
            where(every(present(check.column), check.within)),
            sql.Literal(_MOST_TIES + 1),
        )
        return [value for (value,) in self.asking.connection.execute(statement).fetchall()]


def _reaches(value: Any, ends: tuple[float | None, float | None]) -> bool:
    """Whether a quantile is in its range, or closer to one of its ends than a ten-thousandth of it."""
    if value is None:
        return False
    low, high = (
        -math.inf if ends[0] is None else ends[0],
        math.inf if ends[1] is None else ends[1],
    )
    return _is_close(value, low) or _is_close(value, high) or low <= value <= high


def _is_close(value: Any, end: float) -> bool:
    """As numpy tells it, with the tolerances of Great Expectations."""
    a, b = float(value), float(end)
    return a == b or (math.isfinite(b) and abs(a - b) <= 1e-8 + 1e-4 * abs(b))


def _number(observed: Any) -> Any:
    """An aggregate as Great Expectations hands it on."""
    return float(observed) if isinstance(observed, Decimal) else observed


def _within_bounds(expectation: Expectation, observed: Any, bounds: Bounds) -> ExpectationResult:
    if isinstance(observed, float | Decimal) and math.isnan(observed):
        observed = None
    if observed is None:
        return outcome(expectation, False)
    observed = _as_compared(observed, bounds)
    return outcome(expectation, bounds.hold(observed), observed_value=observed)


def _as_compared(observed: Any, bounds: Bounds) -> Any:
    """Dates and moments become what their bounds are."""
    if any(isinstance(end, datetime) for end in bounds.ends):
        if not isinstance(observed, datetime):
            return datetime.combine(observed, time())
    elif any(isinstance(end, date) for end in bounds.ends) and isinstance(observed, datetime):
        return observed.date()
    return observed

"""What a suite asks, in terms that a database can answer for all expectations in one scan; pure, without SQL."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from airflow_etl_provider.core.names import TableName

Value = str | int | float | bool | date | None


# -- predicates over the columns of one row -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Constant:
    value: Value


@dataclass(frozen=True, slots=True)
class Field:
    column: str


@dataclass(frozen=True, slots=True)
class Length:
    column: str


@dataclass(frozen=True, slots=True)
class Total:
    """The columns added up, from the left."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the column is above *center*, in units of *spread* where there is one; *absolute*: or below."""

    column: str
    center: float
    spread: float | None
    absolute: bool


Term = Constant | Field | Length | Total | Deviation


@dataclass(frozen=True, slots=True)
class Comparison:
    """*operator* is one of ``= <> < <= > >= ~ !~``."""

    left: Term
    operator: str
    right: Term


@dataclass(frozen=True, slots=True)
class Like:
    column: str
    pattern: str
    escape: str | None


@dataclass(frozen=True, slots=True)
class Membership:
    column: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """The column is NULL."""

    column: str


@dataclass(frozen=True, slots=True)
class Not:
    of: Predicate


@dataclass(frozen=True, slots=True)
class Every:
    of: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Either:
    of: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Always:
    truth: bool


Predicate = Comparison | Like | Membership | Missing | Not | Every | Either | Always


def present(*columns: str) -> Predicate:
    """All of *columns* have a value."""
    kept = tuple(Not(Missing(column)) for column in columns)
    return kept[0] if len(kept) == 1 else Every(kept)


def every(*predicates: Predicate | None) -> Predicate | None:
    """All of those that are not ``None``, which is always true."""
    kept = tuple(predicate for predicate in predicates if predicate is not None)
    return None if not kept else kept[0] if len(kept) == 1 else Every(kept)


# -- what is asked of the rows together -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowCheck:
    """Rows one by one: of those *within*, the *judged* ones, and how many of them are *unexpected*.

    :param columns: whose values are shown of unexpected rows.
    :param judged: ``None`` is all of them; where some are not, they are reported as missing.
    """

    columns: tuple[str, ...]
    within: Predicate | None
    judged: Predicate | None
    unexpected: Predicate
    mostly: float


@dataclass(frozen=True, slots=True)
class UniqueCheck:
    """Rows whose *columns*, all of them present, are those of another row *within* too are unexpected."""

    columns: tuple[str, ...]
    within: Predicate | None
    judged: Predicate | None
    mostly: float


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """Rows whose *columns*, all of them present, are found in no row of another table are unexpected."""

    columns: tuple[str, ...]
    within: Predicate | None
    judged: Predicate
    table: TableName
    other_columns: tuple[str, ...]
    mostly: float


class Function(StrEnum):
    """What one number is made of a column, or of the rows."""

    MIN = "min"
    MAX = "max"
    MEAN = "mean"
    SUM = "sum"
    STDEV = "stdev"
    ROWS = "rows"
    DISTINCT = "distinct"
    SHARE_PRESENT = "share_present"
    SHARE_DISTINCT = "share_distinct"


@dataclass(frozen=True, slots=True)
class MeasureCheck:
    """One number, or date, which lies between bounds."""

    function: Function
    column: str | None
    within: Predicate | None
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class Bounds:
    low: Value = None
    high: Value = None
    above_low: bool = False
    below_high: bool = False

    @property
    def ends(self) -> tuple[Value, Value]:
        return self.low, self.high

    def hold(self, observed: Any) -> bool:
        """:raises TypeError: it cannot be compared with them."""
        if self.low is not None and not (
            observed > self.low if self.above_low else observed >= self.low
        ):
            return False
        return self.high is None or bool(
            observed < self.high if self.below_high else observed <= self.high
        )


@dataclass(frozen=True, slots=True)
class DistinctCheck:
    """The distinct values of a column against a set.

    :param no_others: whether values outside the set are unexpected.
    :param whole: whether all values of the set must be there.
    """

    column: str
    within: Predicate | None
    values: tuple[Value, ...]
    no_others: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class MedianCheck:
    """The value in the middle of a column, or the mean of the two that are, lies between bounds."""

    column: str
    within: Predicate | None
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class QuantilesCheck:
    """Values of a column that reach its *quantiles* lie within *ranges*, or close to their ends."""

    column: str
    within: Predicate | None
    quantiles: tuple[float, ...]
    ranges: tuple[tuple[float | None, float | None], ...]


@dataclass(frozen=True, slots=True)
class MostCommonCheck:
    """The most common value of a column is one of *values*; of several at least one, if *ties_okay*."""

    column: str
    within: Predicate | None
    values: frozenset[Value]
    ties_okay: bool


class Spread(StrEnum):
    """What tells how far a value is from the others."""

    Z_SCORE = "z_score"
    QUARTILES = "quartiles"
    STDEV = "stdev"


@dataclass(frozen=True, slots=True)
class DeviationCheck:
    """Values of a column, by how far they are from its other values; a ``RowCheck`` once two numbers are known.

    :param limit: the z-score, or the multiple of the spread, from which on a value is unexpected.
    :param absolute: of z-scores: whether those far below count too.
    """

    column: str
    within: Predicate | None
    spread: Spread
    limit: float
    absolute: bool
    mostly: float

    def settled(self, first: float | None, second: float | None) -> RowCheck:
        """:param first: the mean, or the first quartile.
        :param second: the standard deviation, or the third quartile.
        """
        expected: Predicate = Always(True)
        first, second = _finite(first), _finite(second)
        if self.spread is not Spread.Z_SCORE:
            expected = self._near(first, second)
        elif first is not None and second:
            term = Deviation(self.column, first, second, self.absolute)
            expected = Comparison(term, "<", Constant(self.limit))
        judged = present(self.column)
        unexpected = Every((judged, Not(expected)))
        return RowCheck((self.column,), self.within, judged, unexpected, self.mostly)

    def _near(self, first: float | None, second: float | None) -> Predicate:
        if first is None or second is None:
            return Always(True)
        field = Field(self.column)
        if self.spread is Spread.QUARTILES:
            reach = self.limit * (second - first)
            return Every(
                (
                    Comparison(field, ">=", Constant(first - reach)),
                    Comparison(field, "<=", Constant(second + reach)),
                )
            )
        reach = self.limit * second
        if reach <= 0:
            return Comparison(field, "=", Constant(first))
        return Comparison(Deviation(self.column, first, None, True), "<", Constant(reach))


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class TypeCheck:
    """The type of a column, as Great Expectations calls it, is one of *names*, whatever their case."""

    column: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SameCountCheck:
    """There are as many rows *within* as another table of the same schema has."""

    within: Predicate | None
    table: str


@dataclass(frozen=True, slots=True)
class QueryCheck:
    """A query of the suite's own finds no row.

    :param parts: its text before, between and after the places that the rows stand in.
    :param named: whether the rows need a name there.
    """

    parts: tuple[str, ...]
    named: bool


@dataclass(frozen=True, slots=True)
class Known:
    """The columns alone decide it."""

    success: bool
    observed: Any


Check = (
    RowCheck
    | UniqueCheck
    | ReferenceCheck
    | MeasureCheck
    | DistinctCheck
    | MedianCheck
    | QuantilesCheck
    | MostCommonCheck
    | DeviationCheck
    | TypeCheck
    | SameCountCheck
    | QueryCheck
    | Known
)


def regexes_of(predicate: Predicate) -> frozenset[str]:
    """The regular expressions that values are matched with."""
    match predicate:
        case Comparison(_, "~" | "!~", Constant(str(regex))):
            return frozenset((regex,))
        case Not(of):
            return regexes_of(of)
        case Every(of) | Either(of):
            return frozenset().union(*map(regexes_of, of))
    return frozenset()


def simplified(predicate: Predicate | None, not_null: Collection[str]) -> Predicate | None:
    """*predicate* without what the columns that are never NULL have decided already; ``None`` is always true."""
    found = Always(True) if predicate is None else _simple(predicate, not_null)
    return None if found == Always(True) else found


def _simple(predicate: Predicate, not_null: Collection[str]) -> Predicate:
    match predicate:
        case Missing(column) if column in not_null:
            return Always(False)
        case Not(of):
            inner = _simple(of, not_null)
            return Always(not inner.truth) if isinstance(inner, Always) else Not(inner)
        case Every(of):
            return _joined(of, not_null, Every, neutral=True)
        case Either(of):
            return _joined(of, not_null, Either, neutral=False)
    return predicate


def _may_be_invalid(predicate: Predicate) -> bool:
    match predicate:
        case Missing() | Always():
            return False
        case Not(of):
            return _may_be_invalid(of)
        case Every(of) | Either(of):
            return any(map(_may_be_invalid, of))
    return True


def _joined(
    of: tuple[Predicate, ...],
    not_null: Collection[str],
    kind: type[Every] | type[Either],
    *,
    neutral: bool,
) -> Predicate:
    parts = [_simple(part, not_null) for part in of]
    # What may not be valid for its column is kept, so that it is noticed whatever the other parts say.
    if Always(not neutral) in parts and not any(map(_may_be_invalid, parts)):
        return Always(not neutral)
    kept = tuple(part for part in parts if part != Always(neutral))
    if not kept:
        return Always(neutral)
    return kept[0] if len(kept) == 1 else kind(kept)

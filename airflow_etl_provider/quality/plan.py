"""What a suite asks, in terms that a database can answer for all expectations in one scan; pure, without SQL."""

from __future__ import annotations

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


Term = Constant | Field | Length | Total


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
class Known:
    """The columns alone decide it."""

    success: bool
    observed: Any


Check = RowCheck | UniqueCheck | ReferenceCheck | MeasureCheck | DistinctCheck | Known


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


def _joined(
    of: tuple[Predicate, ...],
    not_null: Collection[str],
    kind: type[Every] | type[Either],
    *,
    neutral: bool,
) -> Predicate:
    parts = [_simple(part, not_null) for part in of]
    if Always(not neutral) in parts:
        return Always(not neutral)
    kept = tuple(part for part in parts if part != Always(neutral))
    if not kept:
        return Always(neutral)
    return kept[0] if len(kept) == 1 else kind(kept)

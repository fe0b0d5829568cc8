"""What a suite asks, in terms that a database can answer for all expectations in one scan; pure, without SQL.

An expectation has a check only where SQL can say exactly what Great Expectations says on PostgreSQL, down to
NULLs, empty tables and the types of its literals. Whatever has none is left to Great Expectations itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.quality.suite import Expectation

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


def check_of(expectation: Expectation, columns: Mapping[str, str]) -> Check | None:
    """The check that says exactly what the expectation says; ``None`` leaves it to Great Expectations.

    :param columns: of the table, in order, each with its type as ``format_type`` prints it.
    """
    compiler = _COMPILERS.get(expectation.type)
    if compiler is None:
        return None
    kwargs = {key: value for key, value in expectation.kwargs.items() if value is not None}
    with suppress(_NotExact):
        return compiler(kwargs, columns)
    return None


def tells_rows(kind: str) -> bool:
    """Whether expectations of the type *kind* have a check that tells which rows fail it."""
    return kind in _COMPILERS and not kind.startswith(_OF_ALL_ROWS)


def compiles(kind: str) -> bool:
    """Whether expectations of the type *kind* have a check, as long as columns and kwargs allow it."""
    return kind in _COMPILERS


#: How the types begin that say something of all rows, or of the columns.
_OF_ALL_ROWS = (
    "expect_table_",
    "expect_column_to_",
    *(
        f"expect_column_{what}_"
        for what in (
            "distinct",
            "max",
            "mean",
            "min",
            "proportion",
            "stdev",
            "sum",
            "unique_value_count",
        )
    ),
)


class _NotExact(Exception):
    """Great Expectations means something else than SQL would, or refuses it."""


_Kwargs = Mapping[str, Any]
_Columns = Mapping[str, str]


# -- literals -------------------------------------------------------------------------------------

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}(:?\d{2})?)?"
)


def _bound(value: Any) -> Value:
    """A bound as Great Expectations reads it: a number, else a date, else a moment."""
    if isinstance(value, bool):
        raise _NotExact
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        if _DATE.fullmatch(value):
            with suppress(ValueError):
                return date.fromisoformat(value)
        elif _MOMENT.fullmatch(value):
            with suppress(ValueError):
                return datetime.fromisoformat(value)
    raise _NotExact


def _scalars(values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list):
        raise _NotExact
    return tuple(_scalar(value) for value in values)


def _scalar(value: Any) -> Value:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise _NotExact


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _NotExact
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise _NotExact
    return tuple(_text(value) for value in values)


def _flag(kwargs: _Kwargs, name: str) -> bool:
    value = kwargs.get(name, False)
    if not isinstance(value, bool):
        raise _NotExact
    return value


def _present(*columns: str) -> Predicate:
    kept = tuple(Not(Missing(column)) for column in columns)
    return kept[0] if len(kept) == 1 else Every(kept)


# -- row conditions -------------------------------------------------------------------------------

_OPERATORS = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
#: The one-line form of older suites, as far as it says the same to everybody.
_CONDITION = re.compile(
    r'col\("(?P<column>[^"\\]+)"\)(?:(?P<present>\.notnull\(\))'
    r"|(?P<operator>==|!=|<=|>=|<|>)(?P<number>\d{1,15})"
    r"|(?P<text_operator>==|!=|<=|>=|<|>)(?P<quote>[\"'])(?P<text>[A-Za-z0-9_-]+)(?P=quote))"
)


def _within(kwargs: _Kwargs, columns: _Columns) -> Predicate | None:
    condition = kwargs.get("row_condition")
    if condition is None:
        if "condition_parser" in kwargs:
            raise _NotExact
        return None
    if isinstance(condition, str):
        return _condition_text(condition, kwargs.get("condition_parser"), columns)
    return _condition(condition, columns)


def _condition_text(text: str, parser: Any, columns: _Columns) -> Predicate:
    found = _CONDITION.fullmatch(text.replace(" ", ""))
    if parser not in ("great_expectations", "great_expectations__experimental__") or not found:
        raise _NotExact
    column = _known(found["column"], columns)
    if " " in text and (found["quote"] or " " in column):
        raise _NotExact
    if found["present"]:
        return _present(column)
    value: Value = found["text"] if found["quote"] else int(found["number"])
    operator = found["operator"] or found["text_operator"]
    return Comparison(Field(column), _OPERATORS[operator], Constant(value))


def _condition(condition: Any, columns: _Columns) -> Predicate:
    """The JSON form of a condition object."""
    if not isinstance(condition, Mapping):
        raise _NotExact
    match condition.get("type"):
        case "comparison":
            return _compared(condition, columns)
        case "nullity":
            missing = Missing(_condition_column(condition, columns))
            return missing if condition.get("is_null") is True else Not(missing)
        case "and":
            return Every(_conditions(condition, columns, alone=("or",)))
        case "or":
            return Either(_conditions(condition, columns, alone=("and", "or")))
    raise _NotExact


def _conditions(
    condition: Mapping[str, Any], columns: _Columns, *, alone: Sequence[str]
) -> tuple[Predicate, ...]:
    parts = condition.get("conditions")
    if not isinstance(parts, list) or not 0 < len(parts) <= 20:
        raise _NotExact
    if any(isinstance(part, Mapping) and part.get("type") in alone for part in parts):
        raise _NotExact
    return tuple(_condition(part, columns) for part in parts)


def _compared(condition: Mapping[str, Any], columns: _Columns) -> Predicate:
    column = _condition_column(condition, columns)
    operator, value = condition.get("operator"), condition.get("parameter")
    if operator in _OPERATORS and value is not None:
        return Comparison(Field(column), _OPERATORS[operator], Constant(_scalar(value)))
    if operator in ("IN", "NOT_IN"):
        values = _scalars(value)
        if not values or len({isinstance(item, str) for item in values}) > 1:
            raise _NotExact
        if any(item is None or isinstance(item, bool) for item in values):
            raise _NotExact
        found = Membership(column, values)
        return found if operator == "IN" else Not(found)
    raise _NotExact


def _condition_column(condition: Mapping[str, Any], columns: _Columns) -> str:
    column = condition.get("column")
    if not isinstance(column, Mapping):
        raise _NotExact
    return _known(column.get("name"), columns)


def _known(name: Any, columns: _Columns) -> str:
    if name not in columns:
        raise _NotExact
    return str(name)


# -- rows one by one ------------------------------------------------------------------------------

_Compile = Callable[[_Kwargs, _Columns], Check]


def _by_value(expected: Callable[[str, _Kwargs, _Columns], Predicate]) -> _Compile:
    """Values of one column that are there must be as *expected*."""

    def compile_one(kwargs: _Kwargs, columns: _Columns) -> Check:
        column = _known(kwargs["column"], columns)
        present = _present(column)
        return RowCheck(
            columns=(column,),
            within=_within(kwargs, columns),
            judged=present,
            unexpected=Every((present, Not(expected(column, kwargs, columns)))),
            mostly=kwargs.get("mostly", 1),
        )

    return compile_one


def _nullness(*, null: bool) -> _Compile:
    def compile_one(kwargs: _Kwargs, columns: _Columns) -> Check:
        column = _known(kwargs["column"], columns)
        unexpected: Predicate = _present(column) if null else Missing(column)
        within = _within(kwargs, columns)
        return RowCheck((column,), within, None, unexpected, kwargs.get("mostly", 1))

    return compile_one


def _in_set(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    values = tuple(value for value in _scalars(kwargs["value_set"]) if value is not None)
    return Membership(column, values) if values else Always(False)


def _not_in_set(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    values = _scalars(kwargs["value_set"])
    return Not(Membership(column, values)) if values else Always(True)


#: What Great Expectations compares with a bound: it refuses texts and truth values.
_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision")
_TIMES = ("date", "timestamp without time zone", "timestamp with time zone")


def _base(type_name: str) -> str:
    return re.sub(r"\(.*?\)", "", type_name)


def _bounds(kwargs: _Kwargs) -> Bounds:
    bounds = Bounds(
        None if "min_value" not in kwargs else _bound(kwargs["min_value"]),
        None if "max_value" not in kwargs else _bound(kwargs["max_value"]),
        _flag(kwargs, "strict_min"),
        _flag(kwargs, "strict_max"),
    )
    if bounds.low is None and bounds.high is None:
        raise _NotExact
    if (
        bounds.low is not None
        and bounds.high is not None
        and type(bounds.low) is not type(bounds.high)
    ):
        raise _NotExact
    return bounds


def _between(column: str, kwargs: _Kwargs, columns: _Columns) -> Predicate:
    bounds = _bounds(kwargs)
    numbers = all(value is None or isinstance(value, float) for value in (bounds.low, bounds.high))
    if _base(columns[column]) not in (_NUMBERS if numbers else _TIMES):
        raise _NotExact
    with suppress(TypeError):
        if bounds.low is None or bounds.high is None or bounds.low <= bounds.high:  # type: ignore[operator]
            return _enclosed(Field(column), bounds)
    raise _NotExact


def _enclosed(term: Term, bounds: Bounds) -> Predicate:
    parts: list[Predicate] = []
    if bounds.low is not None:
        parts.append(Comparison(term, ">" if bounds.above_low else ">=", Constant(bounds.low)))
    if bounds.high is not None:
        parts.append(Comparison(term, "<" if bounds.below_high else "<=", Constant(bounds.high)))
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _lengths(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    bounds = _bounds(kwargs)
    for value in (bounds.low, bounds.high):
        if value is not None and not (isinstance(value, float) and value.is_integer()):
            raise _NotExact
    return _enclosed(Length(column), bounds)


def _length(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    value = kwargs["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _NotExact
    return Comparison(Length(column), "=", Constant(value))


def _matches(*, positive: bool) -> Callable[[str, _Kwargs, _Columns], Predicate]:
    def expected(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
        pattern = Constant(_text(kwargs["regex"]))
        return Comparison(Field(column), "~" if positive else "!~", pattern)

    return expected


def _matches_list(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    parts = tuple(
        Comparison(Field(column), "~", Constant(regex)) for regex in _texts(kwargs["regex_list"])
    )
    return Every(parts) if _all_of(kwargs) else Either(parts)


def _matches_none(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    return Every(
        tuple(
            Comparison(Field(column), "!~", Constant(regex))
            for regex in _texts(kwargs["regex_list"])
        )
    )


def _all_of(kwargs: _Kwargs) -> bool:
    match_on = kwargs.get("match_on", "any")
    if match_on not in ("any", "all"):
        raise _NotExact
    return bool(match_on == "all")


def _like(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    return Like(column, _text(kwargs["like_pattern"]), _escape(kwargs))


def _unlike(column: str, kwargs: _Kwargs, columns: _Columns) -> Predicate:
    return Not(_like(column, kwargs, columns))


def _like_list(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    escape = _escape(kwargs)
    parts = tuple(Like(column, pattern, escape) for pattern in _texts(kwargs["like_pattern_list"]))
    return Every(parts) if _all_of(kwargs) else Either(parts)


def _like_none(column: str, kwargs: _Kwargs, _: _Columns) -> Predicate:
    escape = _escape(kwargs)
    patterns = _texts(kwargs["like_pattern_list"])
    return Every(tuple(Not(Like(column, pattern, escape)) for pattern in patterns))


def _escape(kwargs: _Kwargs) -> str | None:
    escape = kwargs.get("escape")
    if escape is not None and (not isinstance(escape, str) or len(escape) != 1):
        raise _NotExact
    return escape


# -- two and more columns of one row --------------------------------------------------------------


def _by_pair(expected: Callable[[str, str, _Kwargs], Predicate]) -> _Compile:
    def compile_one(kwargs: _Kwargs, columns: _Columns) -> Check:
        a, b = _known(kwargs["column_A"], columns), _known(kwargs["column_B"], columns)
        judged: Predicate | None
        match kwargs.get("ignore_row_if", "both_values_are_missing"):
            case "both_values_are_missing":
                judged = Not(Every((Missing(a), Missing(b))))
            case "either_value_is_missing":
                judged = Not(Either((Missing(a), Missing(b))))
            case "neither":
                judged = Always(True)
            case _:
                raise _NotExact
        return RowCheck(
            columns=(a, b),
            within=_within(kwargs, columns),
            judged=judged,
            unexpected=Every((judged, Not(expected(a, b, kwargs)))),
            mostly=kwargs.get("mostly", 1),
        )

    return compile_one


def _equal(a: str, b: str, _: _Kwargs) -> Predicate:
    return Every((Comparison(Field(a), "=", Field(b)), _present(a, b)))


def _greater(a: str, b: str, kwargs: _Kwargs) -> Predicate:
    if not _flag(kwargs, "or_equal"):
        return Comparison(Field(a), ">", Field(b))
    return Either((Comparison(Field(a), ">=", Field(b)), Every((Missing(a), Missing(b)))))


def _pair_in_set(a: str, b: str, kwargs: _Kwargs) -> Predicate:
    pairs = kwargs["value_pairs_set"]
    if not isinstance(pairs, list) or not pairs:
        raise _NotExact
    found: list[Predicate] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _NotExact
        found.append(Every((_is(a, _scalar(pair[0])), _is(b, _scalar(pair[1])))))
    return Either(tuple(found))


def _is(column: str, value: Value) -> Predicate:
    return Missing(column) if value is None else Comparison(Field(column), "=", Constant(value))


def _ignored(kwargs: _Kwargs, chosen: tuple[str, ...]) -> Predicate:
    missing = tuple(Missing(column) for column in chosen)
    match kwargs.get("ignore_row_if", "all_values_are_missing"):
        case "all_values_are_missing":
            return Not(Every(missing))
        case "any_value_is_missing":
            return Not(Either(missing))
        case "never":
            return Always(True)
    raise _NotExact


def _chosen(kwargs: _Kwargs, columns: _Columns) -> tuple[str, ...]:
    chosen = tuple(_known(column, columns) for column in kwargs["column_list"])
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise _NotExact
    return chosen


def _by_columns(expected: Callable[[tuple[str, ...], _Kwargs], Predicate]) -> _Compile:
    def compile_one(kwargs: _Kwargs, columns: _Columns) -> Check:
        chosen = _chosen(kwargs, columns)
        judged = _ignored(kwargs, chosen)
        return RowCheck(
            columns=chosen,
            within=_within(kwargs, columns),
            judged=judged,
            unexpected=Every((judged, Not(expected(chosen, kwargs)))),
            mostly=kwargs.get("mostly", 1),
        )

    return compile_one


def _sums_to(chosen: tuple[str, ...], kwargs: _Kwargs) -> Predicate:
    total = kwargs["sum_total"]
    if isinstance(total, bool) or not isinstance(total, int | float):
        raise _NotExact
    return Comparison(Total(chosen), "=", Constant(total))


def _all_equal(chosen: tuple[str, ...], _: _Kwargs) -> Predicate:
    first, *others = chosen
    return Every(
        tuple(
            Either((Every((Missing(first), Missing(other))), _equal(first, other, {})))
            for other in others
        )
    )


def _all_different(chosen: tuple[str, ...], _: _Kwargs) -> Predicate:
    alike = [
        Either((Comparison(Field(a), "=", Field(b)), Every((Missing(a), Missing(b)))))
        for number, a in enumerate(chosen)
        for b in chosen[number + 1 :]
    ]
    return Not(Either(tuple(alike)))


# -- all rows together ----------------------------------------------------------------------------


def _unique(kwargs: _Kwargs, columns: _Columns) -> Check:
    column = _known(kwargs["column"], columns)
    within = _within(kwargs, columns)
    return UniqueCheck((column,), within, _present(column), kwargs.get("mostly", 1))


def _compound_unique(kwargs: _Kwargs, columns: _Columns) -> Check:
    chosen = _chosen(kwargs, columns)
    within = _within(kwargs, columns)
    return UniqueCheck(chosen, within, _ignored(kwargs, chosen), kwargs.get("mostly", 1))


def _reference(kwargs: _Kwargs, columns: _Columns) -> Check:
    column = _known(kwargs["column"], columns)
    other = kwargs.get("other_column", column)
    return _referring((column,), (other,), kwargs, columns)


def _compound_reference(kwargs: _Kwargs, columns: _Columns) -> Check:
    chosen = _chosen(kwargs, columns)
    return _referring(chosen, tuple(kwargs.get("other_columns", chosen)), kwargs, columns)


def _referring(
    chosen: tuple[str, ...], others: tuple[str, ...], kwargs: _Kwargs, columns: _Columns
) -> Check:
    return ReferenceCheck(
        columns=chosen,
        within=_within(kwargs, columns),
        judged=_present(*chosen),
        table=TableName.parse(kwargs["other_table"]),
        other_columns=others,
        mostly=kwargs.get("mostly", 1),
    )


def _measure(function: Function, types: Sequence[str] | None) -> _Compile:
    """A number made of a column of one of *types* (of any, where ``None``)."""

    def compile_one(kwargs: _Kwargs, columns: _Columns) -> Check:
        column = _known(kwargs["column"], columns)
        bounds = _bounds(kwargs)
        # Only dates are compared with dates, and only numbers with numbers, by everybody in the same way.
        wanted = date if types is not None and columns[column] == "date" else float
        if types is not None and _base(columns[column]) not in types:
            raise _NotExact
        if any(type(value) not in (wanted, type(None)) for value in (bounds.low, bounds.high)):
            raise _NotExact
        return MeasureCheck(function, column, _within(kwargs, columns), bounds)

    return compile_one


def _row_count(kwargs: _Kwargs, columns: _Columns) -> Check:
    return MeasureCheck(Function.ROWS, None, _within(kwargs, columns), _bounds(kwargs))


def _row_count_is(kwargs: _Kwargs, columns: _Columns) -> Check:
    value = kwargs["value"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _NotExact
    return MeasureCheck(Function.ROWS, None, _within(kwargs, columns), Bounds(value, value))


def _distinct(*, no_others: bool, whole: bool) -> _Compile:
    def compile_one(kwargs: _Kwargs, columns: _Columns) -> Check:
        column = _known(kwargs["column"], columns)
        values = tuple(_day(value) for value in _scalars(kwargs["value_set"]))
        if not values or None in values or len(set(map(repr, values))) != len(values):
            raise _NotExact
        return DistinctCheck(column, _within(kwargs, columns), values, no_others, whole)

    return compile_one


def _day(value: Value) -> Value:
    if isinstance(value, str) and _DATE.fullmatch(value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    return value


# -- the columns themselves -----------------------------------------------------------------------


def _exists(kwargs: _Kwargs, columns: _Columns) -> Check:
    names, index = list(columns), kwargs.get("column_index")
    if not index:
        return Known(kwargs["column"] in names, None)
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise _NotExact
    return Known(index < len(names) and names[index] == kwargs["column"], None)


def _column_count(kwargs: _Kwargs, columns: _Columns) -> Check:
    bounds = Bounds(kwargs["value"], kwargs["value"]) if "value" in kwargs else _bounds(kwargs)
    if isinstance(bounds.low, str | bool):
        raise _NotExact
    return Known(bounds.hold(len(columns)), len(columns))


def _ordered(kwargs: _Kwargs, columns: _Columns) -> Check:
    expected = kwargs.get("column_list")
    return Known(expected is None or expected == list(columns), list(columns))


def _measures_of_numbers(function: Function) -> _Compile:
    return _measure(function, _NUMBERS)


_COMPILERS: Mapping[str, _Compile] = {
    "expect_column_distinct_values_to_be_in_set": _distinct(no_others=True, whole=False),
    "expect_column_distinct_values_to_contain_set": _distinct(no_others=False, whole=True),
    "expect_column_distinct_values_to_equal_set": _distinct(no_others=True, whole=True),
    "expect_column_max_to_be_between": _measure(Function.MAX, (*_NUMBERS, "date")),
    "expect_column_mean_to_be_between": _measures_of_numbers(Function.MEAN),
    "expect_column_min_to_be_between": _measure(Function.MIN, (*_NUMBERS, "date")),
    "expect_column_pair_values_a_to_be_greater_than_b": _by_pair(_greater),
    "expect_column_pair_values_to_be_equal": _by_pair(_equal),
    "expect_column_pair_values_to_be_in_set": _by_pair(_pair_in_set),
    "expect_column_proportion_of_non_null_values_to_be_between": _measure(
        Function.SHARE_PRESENT, None
    ),
    "expect_column_proportion_of_unique_values_to_be_between": _measure(
        Function.SHARE_DISTINCT, None
    ),
    "expect_column_stdev_to_be_between": _measures_of_numbers(Function.STDEV),
    "expect_column_sum_to_be_between": _measures_of_numbers(Function.SUM),
    "expect_column_to_exist": _exists,
    "expect_column_unique_value_count_to_be_between": _measure(Function.DISTINCT, None),
    "expect_column_value_lengths_to_be_between": _by_value(_lengths),
    "expect_column_value_lengths_to_equal": _by_value(_length),
    "expect_column_values_to_be_between": _by_value(_between),
    "expect_column_values_to_be_in_set": _by_value(_in_set),
    "expect_column_values_to_be_in_table": _reference,
    "expect_compound_columns_to_be_in_table": _compound_reference,
    "expect_column_values_to_be_null": _nullness(null=True),
    "expect_column_values_to_be_unique": _unique,
    "expect_column_values_to_match_like_pattern": _by_value(_like),
    "expect_column_values_to_match_like_pattern_list": _by_value(_like_list),
    "expect_column_values_to_match_regex": _by_value(_matches(positive=True)),
    "expect_column_values_to_match_regex_list": _by_value(_matches_list),
    "expect_column_values_to_not_be_in_set": _by_value(_not_in_set),
    "expect_column_values_to_not_be_null": _nullness(null=False),
    "expect_column_values_to_not_match_like_pattern": _by_value(_unlike),
    "expect_column_values_to_not_match_like_pattern_list": _by_value(_like_none),
    "expect_column_values_to_not_match_regex": _by_value(_matches(positive=False)),
    "expect_column_values_to_not_match_regex_list": _by_value(_matches_none),
    "expect_compound_columns_to_be_unique": _compound_unique,
    "expect_multicolumn_sum_to_equal": _by_columns(_sums_to),
    "expect_multicolumn_values_to_be_equal": _by_columns(_all_equal),
    "expect_select_column_values_to_be_unique_within_record": _by_columns(_all_different),
    "expect_table_column_count_to_be_between": _column_count,
    "expect_table_column_count_to_equal": _column_count,
    "expect_table_columns_to_match_ordered_list": _ordered,
    "expect_table_row_count_to_be_between": _row_count,
    "expect_table_row_count_to_equal": _row_count_is,
}

"""Literals and row conditions of an expectation, as Great Expectations reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from typing import Any

from airflow_etl_provider.quality.plan import (
    Bounds,
    Check,
    Comparison,
    Constant,
    Either,
    Every,
    Field,
    Membership,
    Missing,
    Not,
    Predicate,
    Value,
    present,
)


class NotExact(Exception):
    """Great Expectations means something else than SQL would, or refuses it."""


Kwargs = Mapping[str, Any]
Columns = Mapping[str, str]
#: Raises ``NotExact`` where there is no check that says exactly the same.
Compile = Callable[[Kwargs, Columns], Check]


# -- literals -------------------------------------------------------------------------------------

DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOMENT = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}(:?\d{2})?)?"
)


def bound(value: Any) -> Value:
    """A bound as Great Expectations reads it: a number, else a date, else a moment."""
    if isinstance(value, bool):
        raise NotExact
    if isinstance(value, int | float):
        with suppress(OverflowError):
            return float(value)
    if isinstance(value, str):
        if DATE.fullmatch(value):
            with suppress(ValueError):
                return date.fromisoformat(value)
        elif _MOMENT.fullmatch(value):
            with suppress(ValueError):
                return datetime.fromisoformat(value)
    raise NotExact


def scalars(values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list):
        raise NotExact
    return tuple(scalar(value) for value in values)


def members(values: Any) -> tuple[Value, ...]:
    """The values of a set; SQLAlchemy takes all for truth values where one is."""
    found = scalars(values)
    given = [isinstance(value, bool) for value in found if value is not None]
    if any(given) and not all(given):
        raise NotExact
    return found


def scalar(value: Any) -> Value:
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, int | float | bool):
        return value
    raise NotExact


def text(value: Any) -> str:
    # PostgreSQL has no text with these.
    if (
        not isinstance(value, str)
        or "\x00" in value
        or (not value.isascii() and _SURROGATE.search(value))
    ):
        raise NotExact
    return value


def texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise NotExact
    return tuple(text(value) for value in values)


def flag(kwargs: Kwargs, name: str) -> bool:
    value = kwargs.get(name, False)
    if not isinstance(value, bool):
        raise NotExact
    return value


# -- bounds ---------------------------------------------------------------------------------------

#: What Great Expectations compares with a bound: it refuses texts and truth values.
NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision")
TIMES = ("date", "timestamp without time zone", "timestamp with time zone")


def base(type_name: str) -> str:
    return re.sub(r"\(.*?\)", "", type_name)


def bounds_of(kwargs: Kwargs) -> Bounds:
    bounds = Bounds(
        None if "min_value" not in kwargs else bound(kwargs["min_value"]),
        None if "max_value" not in kwargs else bound(kwargs["max_value"]),
        flag(kwargs, "strict_min"),
        flag(kwargs, "strict_max"),
    )
    if bounds.low is None and bounds.high is None:
        raise NotExact
    if bounds.low is not None and bounds.high is not None:
        if type(bounds.low) is not type(bounds.high):
            raise NotExact
        try:
            ordered = bounds.low <= bounds.high  # type: ignore[operator]
        except TypeError:  # moments with and without a zone
            raise NotExact from None
        if not ordered:
            raise NotExact
    return bounds


# -- row conditions -------------------------------------------------------------------------------

_OPERATORS = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
#: The one-line form of older suites, as far as it says the same to everybody.
_CONDITION = re.compile(
    r'col\("(?P<column>[^"\\\r\n]+)"\)(?:(?P<present>\.notnull\(\))'
    r"|(?P<operator>==|!=|<=|>=|<|>)(?P<number>\d{1,15})"
    r"|(?P<text_operator>==|!=|<=|>=|<|>)(?P<quote>[\"'])(?P<text>[A-Za-z0-9_-]+)(?P=quote))"
)


def row_condition(kwargs: Kwargs, columns: Columns) -> Predicate | None:
    condition = kwargs.get("row_condition")
    if condition is None:
        if "condition_parser" in kwargs:
            raise NotExact
        return None
    if isinstance(condition, str):
        return _condition_text(condition, kwargs.get("condition_parser"), columns)
    return _condition(condition, columns)


def _condition_text(text: str, parser: Any, columns: Columns) -> Predicate:
    found = _CONDITION.fullmatch(text.replace(" ", ""))
    if parser not in ("great_expectations", "great_expectations__experimental__") or not found:
        raise NotExact
    column = known(found["column"], columns)
    if " " in text and (found["quote"] or " " in column):
        raise NotExact
    if found["present"]:
        return present(column)
    value: Value = found["text"] if found["quote"] else int(found["number"])
    operator = found["operator"] or found["text_operator"]
    return Comparison(Field(column), _OPERATORS[operator], Constant(value))


def _condition(condition: Any, columns: Columns) -> Predicate:
    """The JSON form of a condition object."""
    if not isinstance(condition, Mapping):
        raise NotExact
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
    raise NotExact


def _conditions(
    condition: Mapping[str, Any], columns: Columns, *, alone: Sequence[str]
) -> tuple[Predicate, ...]:
    parts = condition.get("conditions")
    if not isinstance(parts, list) or not 0 < len(parts) <= 20:
        raise NotExact
    if any(isinstance(part, Mapping) and part.get("type") in alone for part in parts):
        raise NotExact
    return tuple(_condition(part, columns) for part in parts)


def _compared(condition: Mapping[str, Any], columns: Columns) -> Predicate:
    column = _condition_column(condition, columns)
    operator, value = condition.get("operator"), condition.get("parameter")
    if operator in _OPERATORS and value is not None:
        return Comparison(Field(column), _OPERATORS[operator], Constant(scalar(value)))
    if operator in ("IN", "NOT_IN"):
        values = scalars(value)
        if not values or len({isinstance(item, str) for item in values}) > 1:
            raise NotExact
        if any(item is None or isinstance(item, bool) for item in values):
            raise NotExact
        found = Membership(column, values)
        return found if operator == "IN" else Not(found)
    raise NotExact


def _condition_column(condition: Mapping[str, Any], columns: Columns) -> str:
    column = condition.get("column")
    if not isinstance(column, Mapping):
        raise NotExact
    return known(column.get("name"), columns)


def known(name: Any, columns: Columns) -> str:
    if name not in columns:
        raise NotExact
    # Great Expectations tells columns apart that differ in case only, but not always.
    if sum(column.casefold() == name.casefold() for column in columns) > 1:
        raise NotExact
    return str(name)

"""Compilers of what is expected of the columns themselves, of other tables, and of queries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from string import Formatter

from airflow_etl_provider.quality.kwargs import (
    Columns,
    Compile,
    Kwargs,
    NotExact,
    bounds_of,
    known,
    row_condition,
    text,
    texts,
)
from airflow_etl_provider.quality.plan import (
    Bounds,
    Check,
    Known,
    QueryCheck,
    SameCountCheck,
    TypeCheck,
)

_TYPE = re.compile(
    r"(?P<name>[a-z ]+?)(?P<modifiers>\(\d+(?:,\d+)?\))?(?P<rest> with(?:out)? time zone)?"
)
_JOIN = re.compile(r"\bJOIN\b", re.IGNORECASE)
_QUOTED = re.compile(r"['\"`\[]|--|/\*")
_PARAMETER = re.compile(r"\\:|(?<![:\w]):\w+(?!:)")


def _exists(kwargs: Kwargs, columns: Columns) -> Check:
    names, index = _folded(columns), kwargs.get("column_index")
    (wanted,) = _folded([kwargs["column"]])
    if not index:
        return Known(wanted in names, None)
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise NotExact
    return Known(index < len(names) and names[index] == wanted, None)


def _folded(names: Iterable[str]) -> list[str]:
    """As Great Expectations compares names of columns, whatever PostgreSQL does."""
    names = list(names)
    if any(name.startswith('"') for name in names):
        raise NotExact
    return [name.casefold() for name in names]


def _column_count(kwargs: Kwargs, columns: Columns) -> Check:
    bounds = Bounds(kwargs["value"], kwargs["value"]) if "value" in kwargs else bounds_of(kwargs)
    if isinstance(bounds.low, str | bool):
        raise NotExact
    return Known(bounds.hold(len(columns)), len(columns))


def _ordered(kwargs: Kwargs, columns: Columns) -> Check:
    expected = kwargs.get("column_list")
    holds = expected is None or _folded(expected) == _folded(columns)
    return Known(holds, list(columns))


def _columns_are(kwargs: Kwargs, columns: Columns) -> Check:
    expected, actual = set(_folded(kwargs["column_set"])), set(_folded(columns))
    if len(actual) != len(columns) or len(expected) != len(set(kwargs["column_set"])):
        raise NotExact
    exact = kwargs.get("exact_match", True)
    if not isinstance(exact, bool):
        raise NotExact
    return Known(expected == actual if exact else expected <= actual, sorted(columns))


def _type(kwargs: Kwargs, columns: Columns) -> Check:
    return _type_among((text(kwargs["type_"]),), kwargs, columns)


def _type_list(kwargs: Kwargs, columns: Columns) -> Check:
    return _type_among(texts(kwargs["type_list"]), kwargs, columns)


def _type_among(names: tuple[str, ...], kwargs: Kwargs, columns: Columns) -> Check:
    if "row_condition" in kwargs:
        raise NotExact
    return TypeCheck(known(kwargs["column"], columns), names)


_NAMES = {
    **dict.fromkeys(
        [
            "smallint",
            "integer",
            "bigint",
            "real",
            "boolean",
            "text",
            "date",
            "uuid",
            "bytea",
            "json",
            "jsonb",
            "inet",
            "cidr",
            "macaddr",
            "money",
            "oid",
        ]
    ),
    "double precision": None,
    "interval": None,
    "numeric": None,
    "character varying": "VARCHAR",
    "character": "CHAR",
    "timestamp without time zone": None,
    "timestamp with time zone": None,
    "time without time zone": None,
    "time with time zone": None,
}


def type_as_observed(name: str) -> str | None:
    """A type that ``format_type`` calls *name*, as Great Expectations calls it; ``None`` where that is not certain."""
    array = "[]" if name.endswith("[]") else ""
    found = _TYPE.fullmatch(name.removesuffix("[]"))
    if found is None:
        return None
    plain = found["name"] + (found["rest"] or "")
    if plain not in _NAMES:
        return None
    modifiers = (found["modifiers"] or "").replace(",", ", ")
    spelt = (_NAMES[plain] or found["name"].upper()) + modifiers + (found["rest"] or "").upper()
    return None if plain == "interval" and modifiers else spelt + array


def _same_count(kwargs: Kwargs, columns: Columns) -> Check:
    return SameCountCheck(row_condition(kwargs, columns), text(kwargs["other_table_name"]))


def _query(kwargs: Kwargs, _: Columns) -> Check:
    query = text(kwargs["unexpected_rows_query"]).rstrip("; \t\r\n\v\f")
    joins = _JOIN.search(query) is not None
    # What SQLAlchemy takes for a parameter, and a JOIN that may be a part of a text or a comment.
    if _PARAMETER.search(query) or (joins and _QUOTED.search(query)):
        raise NotExact
    parts = [""]
    try:
        for literal, name, form, conversion in Formatter().parse(query):
            parts[-1] += literal
            if name is not None:
                if name != "batch" or form or conversion:
                    raise NotExact
                parts.append("")
    except ValueError:
        raise NotExact from None
    return QueryCheck(tuple(parts), named=not joins)


STRUCTURE: Mapping[str, Compile] = {
    "expect_column_to_exist": _exists,
    "expect_column_type_to_be": _type,
    "expect_column_values_to_be_in_type_list": _type_list,
    "expect_column_values_to_be_of_type": _type,
    "expect_table_column_count_to_be_between": _column_count,
    "expect_table_column_count_to_equal": _column_count,
    "expect_table_columns_to_match_ordered_list": _ordered,
    "expect_table_columns_to_match_set": _columns_are,
    "expect_table_row_count_to_equal_other_table": _same_count,
    "unexpected_rows_expectation": _query,
}

"""Compilers of what is expected of the columns themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from airflow_etl_provider.quality.kwargs import (
    Columns,
    Compile,
    Kwargs,
    NotExact,
    bounds_of,
)
from airflow_etl_provider.quality.plan import (
    Bounds,
    Check,
    Known,
)


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


STRUCTURE: Mapping[str, Compile] = {
    "expect_column_to_exist": _exists,
    "expect_table_column_count_to_be_between": _column_count,
    "expect_table_column_count_to_equal": _column_count,
    "expect_table_columns_to_match_ordered_list": _ordered,
}

"""Compilers of what is expected of the values of a column, or of the rows, taken together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date

from airflow_etl_provider.quality.kwargs import (
    DATE,
    NUMBERS,
    Columns,
    Compile,
    Kwargs,
    NotExact,
    base,
    bounds_of,
    known,
    row_condition,
    scalars,
)
from airflow_etl_provider.quality.plan import (
    Bounds,
    Check,
    DistinctCheck,
    Function,
    MeasureCheck,
    Value,
)


def _measure(function: Function, types: Sequence[str] | None) -> Compile:
    """A number made of a column of one of *types* (of any, where ``None``)."""

    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        column = known(kwargs["column"], columns)
        bounds = bounds_of(kwargs)
        # Only dates are compared with dates, and only numbers with numbers, by everybody in the same way.
        wanted = date if types is not None and columns[column] == "date" else float
        if types is not None and base(columns[column]) not in types:
            raise NotExact
        if any(type(value) not in (wanted, type(None)) for value in (bounds.low, bounds.high)):
            raise NotExact
        return MeasureCheck(function, column, row_condition(kwargs, columns), bounds)

    return compile_one


def _row_count(kwargs: Kwargs, columns: Columns) -> Check:
    return MeasureCheck(Function.ROWS, None, row_condition(kwargs, columns), bounds_of(kwargs))


def _row_count_is(kwargs: Kwargs, columns: Columns) -> Check:
    value = kwargs["value"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise NotExact
    return MeasureCheck(Function.ROWS, None, row_condition(kwargs, columns), Bounds(value, value))


def _distinct(*, no_others: bool, whole: bool) -> Compile:
    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        column = known(kwargs["column"], columns)
        values = tuple(_day(value) for value in scalars(kwargs["value_set"]))
        # Great Expectations looks for what is missing in a set of Python, which takes neither lists nor mappings.
        if whole and (columns[column] == "jsonb" or columns[column].endswith("[]")):
            raise NotExact
        if not values or None in values or len(set(map(repr, values))) != len(values):
            raise NotExact
        return DistinctCheck(column, row_condition(kwargs, columns), values, no_others, whole)

    return compile_one


def _day(value: Value) -> Value:
    if isinstance(value, str) and DATE.fullmatch(value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    return value


def _measures_of_numbers(function: Function) -> Compile:
    return _measure(function, NUMBERS)


MEASURES: Mapping[str, Compile] = {
    "expect_column_distinct_values_to_be_in_set": _distinct(no_others=True, whole=False),
    "expect_column_distinct_values_to_contain_set": _distinct(no_others=False, whole=True),
    "expect_column_distinct_values_to_equal_set": _distinct(no_others=True, whole=True),
    "expect_column_max_to_be_between": _measure(Function.MAX, (*NUMBERS, "date")),
    "expect_column_mean_to_be_between": _measures_of_numbers(Function.MEAN),
    "expect_column_min_to_be_between": _measure(Function.MIN, (*NUMBERS, "date")),
    "expect_column_proportion_of_non_null_values_to_be_between": _measure(
        Function.SHARE_PRESENT, None
    ),
    "expect_column_proportion_of_unique_values_to_be_between": _measure(
        Function.SHARE_DISTINCT, None
    ),
    "expect_column_stdev_to_be_between": _measures_of_numbers(Function.STDEV),
    "expect_column_sum_to_be_between": _measures_of_numbers(Function.SUM),
    "expect_column_unique_value_count_to_be_between": _measure(Function.DISTINCT, None),
    "expect_table_row_count_to_be_between": _row_count,
    "expect_table_row_count_to_equal": _row_count_is,
}

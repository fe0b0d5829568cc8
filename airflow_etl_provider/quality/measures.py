"""Compilers of what is expected of the values of a column, or of the rows, taken together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import Any

from airflow_etl_provider.quality.kwargs import (
    DATE,
    NUMBERS,
    TIMES,
    Columns,
    Compile,
    Kwargs,
    NotExact,
    base,
    bounds_of,
    flag,
    known,
    members,
    row_condition,
    scalars,
)
from airflow_etl_provider.quality.plan import (
    Bounds,
    Check,
    DeviationCheck,
    DistinctCheck,
    Function,
    MeasureCheck,
    MedianCheck,
    MostCommonCheck,
    QuantilesCheck,
    Spread,
    Value,
)


def _measure(function: Function, types: Sequence[str] | None) -> Compile:
    """A number made of a column of one of *types* (of any, where ``None``)."""

    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        column = known(kwargs["column"], columns)
        if types is not None and base(columns[column]) not in types:
            raise NotExact
        bounds = _numbers(bounds_of(kwargs))
        return MeasureCheck(function, column, row_condition(kwargs, columns), bounds)

    return compile_one


def _numbers(bounds: Bounds) -> Bounds:
    if any(value is not None and not isinstance(value, float) for value in bounds.ends):
        raise NotExact
    return bounds


def _extreme(function: Function) -> Compile:
    """The least or the greatest number, date or moment."""

    def compile_one(kwargs: Kwargs, columns: Columns) -> Check:
        column = known(kwargs["column"], columns)
        bounds = bounds_of(kwargs)
        if base(columns[column]) in NUMBERS:
            _numbers(bounds)
        elif base(columns[column]) not in TIMES or any(type(end) is float for end in bounds.ends):
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
        values = tuple(_day(value) for value in members(kwargs["value_set"]))
        # Great Expectations looks for what is missing in a set of Python, which takes neither lists nor mappings.
        if whole and (columns[column] == "jsonb" or columns[column].endswith("[]")):
            raise NotExact
        if not values or None in values or len(set(map(repr, values))) != len(values):
            raise NotExact
        return DistinctCheck(column, row_condition(kwargs, columns), values, no_others, whole)

    return compile_one


def _median(kwargs: Kwargs, columns: Columns) -> Check:
    column = _number_column(kwargs, columns)
    return MedianCheck(column, row_condition(kwargs, columns), _numbers(bounds_of(kwargs)))


def _number_column(kwargs: Kwargs, columns: Columns) -> str:
    column = known(kwargs["column"], columns)
    if base(columns[column]) not in NUMBERS:
        raise NotExact
    return column


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotExact
    return value


def _quantiles(kwargs: Kwargs, columns: Columns) -> Check:
    asked = kwargs["quantile_ranges"]
    if not isinstance(asked, Mapping) or set(asked) != {"quantiles", "value_ranges"}:
        raise NotExact
    if not isinstance(kwargs.get("allow_relative_error", False), bool):
        raise NotExact
    quantiles, ranges = asked["quantiles"], asked["value_ranges"]
    if not isinstance(quantiles, list) or not isinstance(ranges, list) or not quantiles:
        raise NotExact
    if len(quantiles) != len(ranges):
        raise NotExact
    return QuantilesCheck(
        _number_column(kwargs, columns),
        row_condition(kwargs, columns),
        tuple(map(_number, quantiles)),
        tuple(map(_range, ranges)),
    )


def _range(ends: Any) -> tuple[float | None, float | None]:
    if not isinstance(ends, list) or len(ends) != 2:
        raise NotExact
    low, high = (None if end is None else _number(end) for end in ends)
    if low is not None and high is not None and low > high:
        raise NotExact
    return low, high


#: Types whose values are the same in Python, in pandas and in JSON.
_PLAIN = ("smallint", "integer", "bigint", "text", "character varying")


def _most_common(kwargs: Kwargs, columns: Columns) -> Check:
    column = known(kwargs["column"], columns)
    if base(columns[column]) not in _PLAIN:
        raise NotExact
    values = frozenset(scalars(kwargs["value_set"]))
    return MostCommonCheck(
        column, row_condition(kwargs, columns), values, flag(kwargs, "ties_okay")
    )


def _z_scores(kwargs: Kwargs, columns: Columns) -> Check:
    absolute, threshold = flag(kwargs, "double_sided"), float(_number(kwargs["threshold"]))
    return DeviationCheck(
        column=_number_column(kwargs, columns),
        within=row_condition(kwargs, columns),
        spread=Spread.Z_SCORE,
        limit=abs(threshold) if absolute else threshold,
        absolute=absolute,
        mostly=kwargs.get("mostly", 1),
    )


def _outliers(kwargs: Kwargs, columns: Columns) -> Check:
    method, multiplier = kwargs.get("method", "iqr"), _number(kwargs.get("multiplier", 1.5))
    if method not in ("iqr", "std") or multiplier < 0:
        raise NotExact
    return DeviationCheck(
        column=_number_column(kwargs, columns),
        within=row_condition(kwargs, columns),
        spread=Spread.QUARTILES if method == "iqr" else Spread.STDEV,
        limit=multiplier,
        absolute=True,
        mostly=kwargs.get("mostly", 1),
    )


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
    "expect_column_max_to_be_between": _extreme(Function.MAX),
    "expect_column_mean_to_be_between": _measures_of_numbers(Function.MEAN),
    "expect_column_median_to_be_between": _median,
    "expect_column_min_to_be_between": _extreme(Function.MIN),
    "expect_column_most_common_value_to_be_in_set": _most_common,
    "expect_column_proportion_of_non_null_values_to_be_between": _measure(
        Function.SHARE_PRESENT, None
    ),
    "expect_column_proportion_of_unique_values_to_be_between": _measure(
        Function.SHARE_DISTINCT, None
    ),
    "expect_column_quantile_values_to_be_between": _quantiles,
    "expect_column_stdev_to_be_between": _measures_of_numbers(Function.STDEV),
    "expect_column_sum_to_be_between": _measures_of_numbers(Function.SUM),
    "expect_column_unique_value_count_to_be_between": _measure(Function.DISTINCT, None),
    "expect_column_value_z_scores_to_be_less_than": _z_scores,
    "expect_column_values_to_not_be_outliers": _outliers,
    "expect_table_row_count_to_be_between": _row_count,
    "expect_table_row_count_to_equal": _row_count_is,
}

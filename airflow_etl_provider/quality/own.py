"""Expectations of this package: what they take, checked when a suite is read.

Most judge a staged batch by what surrounds it: the published loads of its stream, its source, its target.
So they need a load and cannot be used on a table alone; references to other tables can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.history import DEVIATIONS, Season
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.suggest import nearest

ROW_COUNT = "expect_batch_row_count_to_match_history"
FRESH = "expect_batch_to_be_fresh"
SOURCE = "expect_batch_to_match_source"
TARGET = "expect_table_to_match_target"
REFERENCE = "expect_column_values_to_be_in_table"
COMPOUND_REFERENCE = "expect_compound_columns_to_be_in_table"

#: Those that need the load: its stream, its window, its source and its target.
NEED_A_LOAD = (ROW_COUNT, FRESH, SOURCE, TARGET)

_LOADS, _MIN_LOADS = 30, 7
_DURATION = TypeAdapter(timedelta)


@dataclass(frozen=True, slots=True)
class HistoryOptions:
    """With which published loads of its stream a batch is compared, and how strictly.

    ``deviations`` is how far from the median is too far; ``loads`` how many windows are looked at, those
    nearest to the batch's own first; with fewer than ``min_loads`` there is nothing to judge by yet.
    """

    deviations: float = DEVIATIONS
    loads: int = _LOADS
    min_loads: int = _MIN_LOADS
    season: Season | None = None

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> HistoryOptions:
        """:raises ConfigurationError: a value that is none."""
        loads = _whole(kwargs, "loads", _LOADS)
        min_loads = _whole(kwargs, "min_loads", min(_MIN_LOADS, loads))
        if min_loads > loads:
            raise ConfigurationError(
                f"min_loads is {min_loads}, more than the {loads} loads that are looked at",
                remedy="raise loads, or lower min_loads",
            )
        return cls(_positive(kwargs, "deviations", DEVIATIONS), loads, min_loads, _season(kwargs))


@dataclass(frozen=True, slots=True)
class FreshnessOptions:
    """How old the newest row may be: ``max_age``, or without it what the stream's history says."""

    column: str | None
    max_age: timedelta | None
    history: HistoryOptions

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> FreshnessOptions:
        """:raises ConfigurationError: a value that is none, or a limit given twice."""
        max_age = _duration(kwargs.get("max_age"))
        twice = [name for name in _HISTORY if max_age is not None and name in kwargs]
        if twice:
            raise ConfigurationError(
                f"max_age stands beside {', '.join(twice)}, which ask the stream's history",
                remedy="give max_age, or leave it out to compare with earlier loads",
            )
        return cls(kwargs.get("column"), max_age, HistoryOptions.of(kwargs))


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What is compared with the source beside the number of rows, by the columns of the target.

    ``tolerance`` is the share by which rows and sums may differ.
    """

    sums: tuple[str, ...]
    least: tuple[str, ...]
    greatest: tuple[str, ...]
    checksum: tuple[str, ...]
    tolerance: float

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> SourceOptions:
        """:raises ConfigurationError: a tolerance that is none, or that a checksum cannot have."""
        tolerance = kwargs.get("tolerance", 0)
        if not _is_number(tolerance) or not 0 <= tolerance < 1:
            raise ConfigurationError(f"tolerance is {tolerance!r}, not a share from 0 to below 1")
        checksum = tuple(kwargs.get("checksum") or ())
        if tolerance and checksum:
            raise ConfigurationError(
                "tolerance stands beside checksum, which is equal or not and never close",
                remedy="leave one of the two out, or compare sums",
            )
        return cls(
            tuple(kwargs.get("sum") or ()),
            tuple(kwargs.get("min") or ()),
            tuple(kwargs.get("max") or ()),
            checksum,
            float(tolerance),
        )


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """``filled_by_publish``: columns that the target needs and publish fills, so that no batch has them."""

    filled_by_publish: tuple[str, ...]

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> TargetOptions:
        """:raises ConfigurationError: not a list of names."""
        names = kwargs.get("filled_by_publish", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(f"filled_by_publish is {names!r}, not a list of column names")
        return cls(tuple(names))


_HISTORY = ("deviations", "loads", "min_loads", "season")


@dataclass(frozen=True, slots=True)
class ReferenceOptions:
    """The table in which values must be found, and how it calls the columns."""

    table: TableName
    columns: tuple[str, ...]

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> ReferenceOptions:
        """:raises ConfigurationError: a value that is none."""
        name = kwargs.get("other_table")
        if not isinstance(name, str):
            raise ConfigurationError(
                f"other_table is {name!r}, not a table", remedy="write schema.table"
            )
        own = kwargs.get("column_list", [kwargs.get("column")])
        others = kwargs.get("other_columns", [kwargs.get("other_column", own[0])])
        if "column_list" in kwargs and "other_columns" not in kwargs:
            others = own
        if (
            not isinstance(others, list)
            or len(others) != len(own)
            or not all(isinstance(column, str) and column for column in others)
        ):
            raise ConfigurationError(
                f"the columns of {name} are {others!r}, not one for each of {own!r}",
                remedy="name as many columns there, in the same order",
            )
        return cls(TableName.parse(name), tuple(others))


_OPTIONS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    ROW_COUNT: HistoryOptions.of,
    FRESH: FreshnessOptions.of,
    SOURCE: SourceOptions.of,
    TARGET: TargetOptions.of,
    REFERENCE: ReferenceOptions.of,
    COMPOUND_REFERENCE: ReferenceOptions.of,
}


def check_own_kwargs(type_: str, kwargs: Mapping[str, Any]) -> None:
    """:raises ConfigurationError: a value that the expectation, if it is one of ours, cannot take."""
    if type_ in _OPTIONS:
        _OPTIONS[type_](kwargs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(kwargs: Mapping[str, Any], name: str, default: float) -> float:
    value = kwargs.get(name, default)
    if not _is_number(value) or value <= 0:
        raise ConfigurationError(f"{name} is {value!r}, not a number above 0")
    return float(value)


def _whole(kwargs: Mapping[str, Any], name: str, default: int) -> int:
    value = kwargs.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name} is {value!r}, not a whole number from 1 on")
    return value


def _season(kwargs: Mapping[str, Any]) -> Season | None:
    value = kwargs.get("season")
    if value is None:
        return None
    try:
        return Season(value)
    except ValueError:
        raise ConfigurationError(
            f"season is {value!r}{nearest(str(value), [each.value for each in Season])}",
            remedy=f"use one of {', '.join(Season)}, or leave it out",
        ) from None


def _duration(value: Any) -> timedelta | None:
    if value is None:
        return None
    try:
        # A bare number would be taken for seconds.
        if isinstance(value, str) and value.startswith("P"):
            found = _DURATION.validate_python(value)
            if found > timedelta(0):
                return found
    except ValidationError:
        pass
    raise ConfigurationError(
        f"max_age is {value!r}, not a duration",
        remedy="write it as ISO 8601 does: PT30M, PT6H, P2D",
    )

"""Partitions by time: which ones a window covers, their bounds and their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import shortened

_MOST = 10_000
_QUARTER = re.compile(r"(\d{4})-Q([1-4])")
_WEEK = re.compile(r" \(W\d\d\)$")


class Every(StrEnum):
    """How much time one partition holds."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


@dataclass(frozen=True, slots=True)
class Period:
    """One partition's range ``[start, end)`` as instants, and the suffix that names it."""

    start: datetime
    end: datetime
    label: str


@dataclass(frozen=True, slots=True)
class PartitionSpec:
    """Partitions of *column*, one for *every* hour, day, …, year of *timezone*'s wall clock."""

    column: str
    every: Every
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"no time zone is called {self.timezone!r}",
                remedy="use an IANA name such as America/New_York",
            ) from error

    def as_json(self) -> dict[str, str]:
        return {"column": self.column, "every": self.every.value, "timezone": self.timezone}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Self:
        return cls(data["column"], Every(data["every"]), data["timezone"])

    def periods(self, start: datetime, end: datetime) -> list[Period]:
        """The partitions that ``[start, end)`` touches, in order.

        :raises ConfigurationError: too many, or beyond the years 1 to 9999.
        """
        try:
            return self._periods(start.astimezone(UTC), end.astimezone(UTC))
        except (OverflowError, ValueError) as error:
            raise ConfigurationError(
                f"{start.isoformat()} to {end.isoformat()} lies beyond the calendar in {self.timezone}",
                remedy="choose a window between the years 1 and 9999",
            ) from error

    def _periods(self, start: datetime, end: datetime) -> list[Period]:
        found: list[Period] = []
        current = self._floor(start)
        while self._instant(self._next(current)) <= start:
            # A day that was lived twice: the first one ended before the start.
            current = self._next(current)
        while True:
            following = self._next(current)
            period = Period(self._instant(current), self._instant(following), self._label(current))
            if period.start >= end:
                return found
            if period.end > period.start:
                found.append(period)
            if len(found) > _MOST:
                raise ConfigurationError(
                    f"{start.isoformat()} to {end.isoformat()} touches more than {_MOST} partitions of one {self.every}",
                    remedy="choose longer partitions or a shorter window",
                )
            current = following

    def period_holding(self, moment: datetime) -> Period:
        """The partition that holds an instant."""
        return self.periods(moment, moment + timedelta(microseconds=1))[0]

    def period_of_key(self, key: str) -> Period:
        """The partition that an Airflow partition key names, on the wall clock of *timezone*.

        Keys are what Airflow's timetables and mappers write: ``2026-11-16T05:00:00`` (or with an offset),
        ``2026-11-16T05``, ``2026-11-16``, ``2026-11-16 (W47)``, ``2026-11``, ``2026-Q4`` and ``2026``.

        :raises ConfigurationError: none of these.
        """
        wall = _key_moment(key)
        if wall is None:
            raise ConfigurationError(
                f"partition key {key!r} names no time, so no partition by {self.column!r} belongs to it",
                remedy="use keys such as 2026-11-16, 2026-11 or 2026-11-16T05:00:00, or give the params window_low "
                "and window_high",
            )
        if wall.tzinfo is None:
            wall = wall.replace(tzinfo=ZoneInfo(self.timezone))
        return self.period_holding(wall)

    def covers_whole(self, start: datetime, end: datetime) -> bool:
        """Whether ``[start, end)`` is made of whole partitions."""
        start, end = start.astimezone(UTC), end.astimezone(UTC)
        periods = self.periods(start, end)
        return bool(periods) and periods[0].start == start and periods[-1].end == end

    def partition_name(self, table: str, period: Period) -> str:
        return shortened(f"{table}_{period.label}")

    def _floor(self, moment: datetime) -> datetime:
        """Start of the period that holds *moment*, in wall time; hours are counted in UTC."""
        if self.every is Every.HOUR:
            return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        day = moment.astimezone(ZoneInfo(self.timezone)).date()
        match self.every:
            case Every.WEEK:
                day -= timedelta(days=day.weekday())
            case Every.MONTH:
                day = day.replace(day=1)
            case Every.QUARTER:
                day = day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
            case Every.YEAR:
                day = day.replace(month=1, day=1)
        return datetime(day.year, day.month, day.day)  # noqa: DTZ001  (wall time, zoned by _instant)

    def _next(self, start: datetime) -> datetime:
        match self.every:
            case Every.HOUR:
                return start + timedelta(hours=1)
            case Every.DAY:
                return start + timedelta(days=1)
            case Every.WEEK:
                return start + timedelta(days=7)
            case Every.MONTH:
                return plus_months(start, 1)
            case Every.QUARTER:
                return plus_months(start, 3)
            case Every.YEAR:
                return plus_months(start, 12)

    def _instant(self, wall: datetime) -> datetime:
        if wall.tzinfo is not None:
            return wall
        return wall.replace(tzinfo=ZoneInfo(self.timezone)).astimezone(UTC)

    def _label(self, start: datetime) -> str:
        match self.every:
            case Every.HOUR:
                return f"{start.year:04d}_{start:%m_%d_%H}"
            case Every.DAY:
                return f"{start.year:04d}_{start:%m_%d}"
            case Every.WEEK:
                year, week, _ = date(start.year, start.month, start.day).isocalendar()
                return f"{year:04d}_w{week:02d}"
            case Every.MONTH:
                return f"{start.year:04d}_{start:%m}"
            case Every.QUARTER:
                return f"{start.year:04d}_q{(start.month - 1) // 3 + 1}"
            case Every.YEAR:
                return f"{start.year:04d}"


def _key_moment(key: str) -> datetime | None:
    """The start of what a partition key names; naive where it has no offset."""
    quarter = _QUARTER.fullmatch(key)
    if quarter is not None:
        key = f"{quarter[1]}-{int(quarter[2]) * 3 - 2:02d}"
    text = _WEEK.sub("", key)
    text += {len("2026"): "-01-01", len("2026-11"): "-01"}.get(len(text), "")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def plus_months(moment: datetime, months: int) -> datetime:
    """*moment*, which is the first of a month, so many months later."""
    years, month = divmod(moment.month - 1 + months, 12)
    return moment.replace(year=moment.year + years, month=month + 1)

"""Windows: which part of a source one load covers, and how that is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow_etl_provider.core.errors import ConfigurationError

#: Cursor types an ``interval`` window can bound, as PostgreSQL's ``format_type`` without precision.
TIME_TYPES = ("timestamp with time zone", "timestamp without time zone", "date")


class Nulls(StrEnum):
    """What a window does with rows that have no cursor value, which lie in no range."""

    EXCLUDE = "exclude"
    INCLUDE = "include"
    ONLY = "only"


@dataclass(frozen=True, slots=True)
class Window:
    """Half-open range ``[low, high)`` of the cursor, in PostgreSQL's own text of *type*.

    ``None`` is unbounded; a window without a type is the whole source, of whatever order. *nulls* adds
    the rows without a cursor value, or makes them the whole window.
    """

    low: str | None = None
    high: str | None = None
    type: str | None = None
    bounds: str = "[)"
    nulls: Nulls = Nulls.EXCLUDE

    def __post_init__(self) -> None:
        object.__setattr__(self, "nulls", Nulls(self.nulls))
        for text in (self.low, self.high, self.type):
            if not (text is None or isinstance(text, str)):
                raise ConfigurationError(f"a window's bounds and type are text, not {text!r}")
        if self.bounds not in ("[)", "(]"):
            raise ConfigurationError(f"{self.bounds!r} is neither '[)' nor '(]'")

    @property
    def is_full(self) -> bool:
        return self.type is None

    @property
    def is_range(self) -> bool:
        """Whether it covers a range of the cursor, and so counts in coverage and watermark."""
        return self.type is not None and self.nulls is not Nulls.ONLY

    def __str__(self) -> str:
        if self.is_full:
            return "everything"
        if self.nulls is Nulls.ONLY:
            return "rows without a cursor value"
        also = " and rows without a value" if self.nulls is Nulls.INCLUDE else ""
        return f"{self.bounds[0]}{self.low or 'start'}, {self.high}{self.bounds[1]}{also}"


FULL = Window()


@dataclass(frozen=True, slots=True)
class Interval:
    """Half-open range of instants ``[start, end)``, with where it came from.

    ``moves_watermark`` is false for backfills and for windows given by hand: they write coverage only.
    """

    start: datetime
    end: datetime
    origin: str
    moves_watermark: bool

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ConfigurationError(
                f"the window {self.start} to {self.end} has no time zone",
                remedy="give both ends with an offset, such as 2013-01-01T00:00:00-05:00",
            )
        # Two times of one zone are compared by their wall clock, which an hour in autumn shows twice.
        object.__setattr__(self, "start", self.start.astimezone(UTC))
        object.__setattr__(self, "end", self.end.astimezone(UTC))
        if self.start >= self.end:
            raise ConfigurationError(
                f"the {self.origin} {self.start.isoformat()} to {self.end.isoformat()} holds no time",
                remedy="cron strings give zero-length intervals in Airflow 3; schedule the DAG with "
                "CronDataIntervalTimetable(cron, timezone=...) or give the params window_low and window_high",
            )


def choose_interval(
    *,
    param_low: datetime | None,
    param_high: datetime | None,
    partition: Interval | None,
    interval_start: datetime | None,
    interval_end: datetime | None,
    backfill: bool,
) -> Interval:
    """Pick the interval of a run: explicit params win over its partition, and that over its data interval.

    :raises ConfigurationError: only one param given, none of the three, or a zero-length one.
    """
    if (param_low is None) != (param_high is None):
        given = "window_low" if param_high is None else "window_high"
        raise ConfigurationError(
            f"only {given} was given; a window has two ends",
            remedy="give both window_low and window_high, or neither",
        )
    if param_low is not None and param_high is not None:
        return Interval(param_low, param_high, "window of the run's params", moves_watermark=False)
    if partition is not None:
        return partition
    if interval_start is None or interval_end is None:
        raise ConfigurationError(
            "this run has no data interval, so window='interval' has nothing to load",
            remedy="trigger it with a logical date, or with the params window_low and window_high",
        )
    return Interval(interval_start, interval_end, "data interval", moves_watermark=not backfill)


def refuse_future(interval: Interval, now: datetime) -> None:
    """:raises ConfigurationError: the window ends after *now*, so rows are still to come."""
    if interval.end > now:
        raise ConfigurationError(
            f"the {interval.origin} ends at {interval.end.isoformat()}, which is "
            f"{str(interval.end - now).split('.')[0]} from now: rows are still to come",
            remedy="end the window at or before the present",
        )


def bound_text(moment: datetime, cursor_type: str, timezone: str) -> str:
    """*moment* as a bound of *cursor_type*: zoned types keep the instant, others take wall time.

    :param timezone: IANA zone whose wall clock a column without time zone holds.
    :raises ConfigurationError: a type that an interval cannot bound, a moment that the type cannot
        hold (a date bound that is not midnight in *timezone*).
    """
    base = cursor_type.split("(")[0].strip() if cursor_type.startswith("timestamp") else cursor_type
    if cursor_type.startswith("timestamp"):
        base = (
            "timestamp with time zone"
            if cursor_type.endswith("with time zone")
            else ("timestamp without time zone")
        )
    try:
        if base == "timestamp with time zone":
            return _iso(moment.astimezone(UTC)) + "+00"
        local = moment.astimezone(_zone(timezone)).replace(tzinfo=None)
    except OverflowError:
        raise ConfigurationError(
            f"{moment.isoformat()} lies beyond the calendar in {timezone}",
            remedy="choose a window between the years 1 and 9999",
        ) from None
    if base == "timestamp without time zone":
        return _iso(local)
    if base == "date":
        if local.time() != local.time().min:
            raise ConfigurationError(
                f"{moment.isoformat()} is not midnight in {timezone}, so it cannot bound a date column",
                remedy="align the schedule with days of that zone, or name the zone of the dates",
            )
        return local.date().isoformat()
    raise ConfigurationError(
        f"a cursor of type {cursor_type} cannot be bounded by an interval of time",
        remedy="name a date or timestamp column as the cursor, or use window='full'",
    )


def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(
            f"no time zone is called {timezone!r}",
            remedy="use an IANA name such as America/New_York",
        ) from None


def parse_moment(value: object, name: str) -> datetime:
    """An instant written as ISO 8601, offset included.

    :raises ConfigurationError: not one, or without an offset, which nobody should have to guess.
    """
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigurationError(
            f"{name} is {value!r}, not a date and time",
            remedy="write it as 2013-01-01T00:00:00-05:00",
        ) from None
    if moment.tzinfo is None:
        raise ConfigurationError(
            f"{name} is {value!r}, without a time zone",
            remedy="add the offset, as in 2013-01-01T00:00:00-05:00 or …Z",
        )
    return moment


def _iso(moment: datetime) -> str:
    return moment.isoformat(sep=" ")[: 26 if moment.microsecond else 19]


def humane(duration: timedelta) -> str:
    """``1.5 s``, ``2 min 3 s``, ``30 days``: a duration as a person reads it, in days from two of them on."""
    seconds = duration.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"

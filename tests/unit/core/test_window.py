"""Windows hold time, in the text of the cursor's type, with every microsecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.window import (
    Interval,
    bound_text,
    choose_interval,
    humane,
    refuse_future,
)

NY = ZoneInfo("America/New_York")
NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)
TZ, TS = "timestamp with time zone", "timestamp without time zone"


def interval(start, end):
    return Interval(start, end, "data interval", moves_watermark=True)


@pytest.mark.parametrize("length", [timedelta(0), timedelta(microseconds=-1), timedelta(days=-1)])
def test_a_window_without_time_is_refused_with_the_reason(length):
    """Cron strings make zero-length intervals in Airflow 3: the hint says what to do."""
    with pytest.raises(ConfigurationError, match="CronDataIntervalTimetable"):
        interval(NOON, NOON + length)


def test_a_microsecond_is_time():
    interval(NOON, NOON + timedelta(microseconds=1))


def test_a_naive_end_is_refused():
    for pair in ((NOON.replace(tzinfo=None), NOON), (NOON, NOON.replace(tzinfo=None, day=2))):
        with pytest.raises(ConfigurationError, match="no time zone"):
            interval(*pair)


def test_the_hour_that_is_repeated_is_time():
    """1:30 summer time to 1:30 winter time is one hour, though the wall shows none."""
    first = datetime(2013, 11, 3, 1, 30, tzinfo=NY)
    interval(first, first.replace(fold=1))
    interval(first, first.replace(fold=1, minute=15))


def test_the_hour_that_is_repeated_has_an_order():
    """1:15 winter time comes after 1:30 summer time."""
    first = datetime(2013, 11, 3, 1, 30, tzinfo=NY)
    with pytest.raises(ConfigurationError):
        interval(first.replace(fold=1, minute=15), first)


def test_the_same_instant_in_two_zones_is_no_time():
    with pytest.raises(ConfigurationError):
        interval(NOON, NOON.astimezone(NY))


@pytest.mark.parametrize(
    ("kind", "moment", "zone", "text"),
    [
        (TZ, NOON, "UTC", "2013-01-01 12:00:00+00"),
        (TZ, NOON.replace(microsecond=1), "America/New_York", "2013-01-01 12:00:00.000001+00"),
        (TZ, datetime(2013, 7, 1, tzinfo=NY), "UTC", "2013-07-01 04:00:00+00"),
        (TS, NOON, "America/New_York", "2013-01-01 07:00:00"),
        (TS, NOON.replace(microsecond=999999), "UTC", "2013-01-01 12:00:00.999999"),
        ("timestamp(3) without time zone", NOON, "UTC", "2013-01-01 12:00:00"),
        ("timestamp(0) with time zone", NOON, "UTC", "2013-01-01 12:00:00+00"),
        ("date", datetime(2013, 3, 10, tzinfo=NY), "America/New_York", "2013-03-10"),
        ("date", datetime(2013, 11, 3, 4, tzinfo=UTC), "America/New_York", "2013-11-03"),
        (TZ, datetime(2013, 11, 3, 1, 30, tzinfo=NY, fold=1), "UTC", "2013-11-03 06:30:00+00"),
        (TZ, datetime(2013, 11, 3, 1, 30, tzinfo=NY, fold=0), "UTC", "2013-11-03 05:30:00+00"),
        (TS, datetime(1, 1, 1, tzinfo=UTC), "UTC", "0001-01-01 00:00:00"),
        (
            TZ,
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            "UTC",
            "9999-12-31 23:59:59.999999+00",
        ),
    ],
)
def test_bounds_in_the_text_of_the_type(kind, moment, zone, text):
    assert bound_text(moment, kind, zone) == text


@pytest.mark.parametrize(
    "kind", ["text", "integer", "numeric", "uuid", "time without time zone", "interval"]
)
def test_types_that_time_cannot_bound_are_refused(kind):
    with pytest.raises(ConfigurationError, match="cannot be bounded"):
        bound_text(NOON, kind, "UTC")


def test_a_date_is_bounded_by_midnight_of_its_zone_only():
    with pytest.raises(ConfigurationError, match="not midnight"):
        bound_text(datetime(2013, 1, 1, tzinfo=UTC), "date", "America/New_York")


@pytest.mark.parametrize(
    ("moment", "kind", "zone"),
    [
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))), TZ, "UTC"),
        (datetime(1, 1, 1, tzinfo=UTC), TS, "America/New_York"),
        (datetime(9999, 12, 31, 23, tzinfo=UTC), TS, "Asia/Tokyo"),
    ],
)
def test_moments_beyond_the_calendar_are_refused_clearly(moment, kind, zone):
    """Python's year 0 and 10000 are a clear error, never an OverflowError."""
    with pytest.raises(ConfigurationError):
        bound_text(moment, kind, zone)


@given(
    st.datetimes(
        datetime.fromisoformat("0002-01-01"),
        datetime.fromisoformat("9998-01-01"),
        timezones=st.just(UTC),
    ),
    st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Apia"]),
)
def test_zoned_bounds_keep_the_instant(moment, zone):
    """Whatever zone is named, the text of a zoned type is the same instant."""
    assert (
        datetime.fromisoformat(bound_text(moment.astimezone(ZoneInfo(zone)), TZ, zone) + ":00")
        == moment
    )


@pytest.mark.parametrize(
    ("params", "data", "expected"),
    [
        ((None, None), (0, 1), (0, 1, True)),
        ((2, 3), (0, 1), (2, 3, False)),
        ((2, 3), (None, None), (2, 3, False)),
    ],
)
def test_params_win_over_the_interval_and_never_move_the_watermark(params, data, expected):
    at = lambda hour: None if hour is None else NOON + timedelta(hours=hour)  # noqa: E731
    for backfill in (False, True):
        found = choose_interval(
            param_low=at(params[0]),
            param_high=at(params[1]),
            partition=None,
            interval_start=at(data[0]),
            interval_end=at(data[1]),
            backfill=backfill,
        )
        assert (found.start, found.end) == (at(expected[0]), at(expected[1]))
        assert found.moves_watermark == (expected[2] and not backfill)


def test_a_partition_wins_over_the_interval_and_params_over_it():
    day = Interval(NOON, NOON + timedelta(days=1), "partition '2013-01-01'", True)
    given_ = {
        "partition": day,
        "interval_start": NOON - timedelta(days=9),
        "interval_end": NOON,
        "backfill": False,
    }
    assert choose_interval(param_low=None, param_high=None, **given_) == day
    by_hand = choose_interval(param_low=NOON, param_high=NOON + timedelta(hours=1), **given_)
    assert (by_hand.end, by_hand.moves_watermark) == (NOON + timedelta(hours=1), False)


@pytest.mark.parametrize(
    "given_",
    [
        {"param_low": NOON},
        {"param_high": NOON},
        {},
        {"interval_start": NOON},
        {"interval_end": NOON},
    ],
)
def test_half_a_window_or_none_is_refused(given_):
    empty = dict.fromkeys(
        ("param_low", "param_high", "partition", "interval_start", "interval_end")
    )
    with pytest.raises(ConfigurationError):
        choose_interval(**{**empty, **given_}, backfill=False)


def test_a_window_may_end_now_but_not_later():
    window = interval(NOON, NOON + timedelta(hours=1))
    refuse_future(window, window.end)
    with pytest.raises(ConfigurationError, match="still to come"):
        refuse_future(window, window.end - timedelta(microseconds=1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.96, "60.0 s"),
        (60, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (7265, "2 h 1 min"),
        (2 * 86400 - 60, "47 h 59 min"),
        (2 * 86400, "2 days"),
        (30 * 86400 + 7200, "30 days 2 h"),
    ],
)
def test_durations_as_people_read_them(seconds, text):
    assert humane(timedelta(seconds=seconds)) == text

"""Periods tile time: every instant is in exactly one, in every zone, on every odd day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.partition import Every, PartitionSpec

ZONES = [
    "UTC",
    "America/New_York",
    "America/Sao_Paulo",  # summer time begins at midnight: 00:00 does not exist
    "America/Havana",  # it ends at 01:00: 00:00 happens twice
    "America/St_Johns",  # it ended at 00:01: a midnight happens twice, across days
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Pacific/Apia",  # 30 December 2011 did not happen
    "Asia/Beirut",
    "Africa/Monrovia",
]
moments = st.datetimes(
    datetime.fromisoformat("1902-01-01"),
    datetime.fromisoformat("2036-01-01"),
    timezones=st.just(UTC),
)
lengths = st.timedeltas(timedelta(microseconds=1), timedelta(days=40))


@settings(max_examples=150, deadline=None)
@given(moments, lengths, st.sampled_from(list(Every)), st.sampled_from(ZONES))
@example(datetime(2006, 10, 29, 3, tzinfo=UTC), timedelta(minutes=5), Every.DAY, "America/St_Johns")
def test_periods_tile_time(start, length, every, zone):
    """In order, without gap or overlap, none empty, none before or after what was asked for."""
    end = start + length
    periods = PartitionSpec("ts", every, zone).periods(start, end)
    assert periods[0].start <= start < periods[0].end
    assert periods[-1].start < end <= periods[-1].end
    for period in periods:
        assert period.start < period.end
    for one, two in pairwise(periods):
        assert one.end == two.start
    assert len({period.label for period in periods}) == len(periods)


@settings(max_examples=100, deadline=None)
@given(moments, lengths, st.sampled_from(list(Every)), st.sampled_from(ZONES))
def test_what_periods_cover_is_whole(start, length, every, zone):
    """The periods' own ends are whole; a microsecond off is not."""
    spec = PartitionSpec("ts", every, zone)
    periods = spec.periods(start, start + length)
    low, high = periods[0].start, periods[-1].end
    tick = timedelta(microseconds=1)
    assert spec.covers_whole(low, high)
    assert not spec.covers_whole(low + tick, high)
    assert not spec.covers_whole(low, high + tick)
    assert not spec.covers_whole(low - tick, high)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/New_York", datetime.fromisoformat("2013-03-10"), 23),
        ("America/New_York", datetime.fromisoformat("2013-11-03"), 25),
        ("America/Sao_Paulo", datetime.fromisoformat("2013-10-20"), 23),
        ("America/Havana", datetime.fromisoformat("2013-11-03"), 25),
        ("Australia/Lord_Howe", datetime.fromisoformat("2013-04-07"), 24.5),
        ("UTC", datetime.fromisoformat("2013-03-10"), 24),
    ],
)
def test_a_day_is_as_long_as_it_was(zone, day, hours):
    """Given in the zone's own wall time, the day is one whole partition."""
    low = day.replace(tzinfo=ZoneInfo(zone))
    high = (day + timedelta(days=1)).replace(tzinfo=ZoneInfo(zone))
    spec = PartitionSpec("ts", Every.DAY, zone)
    (period,) = spec.periods(low, high)
    assert (period.end - period.start) == timedelta(hours=hours)
    assert spec.covers_whole(low, high)
    assert spec.covers_whole(low.astimezone(UTC), high.astimezone(UTC))


def test_an_hour_that_happens_twice_is_two_partitions():
    """Both are whole, have names of their own, and are found from wall time too."""
    spec = PartitionSpec("ts", Every.HOUR, "America/New_York")
    zone = ZoneInfo("America/New_York")
    one, two = (datetime(2013, 11, 3, 1, tzinfo=zone, fold=fold) for fold in (0, 1))
    periods = spec.periods(
        one.astimezone(UTC), datetime(2013, 11, 3, 2, tzinfo=zone).astimezone(UTC)
    )
    assert len(periods) == len({period.label for period in periods}) == 2
    assert spec.covers_whole(one.astimezone(UTC), two.astimezone(UTC))
    assert spec.covers_whole(one, two)


@pytest.mark.parametrize(
    ("every", "label", "length"),
    [
        (Every.HOUR, "2012_12_31_05", None),
        (Every.DAY, "2012_12_31", timedelta(days=1)),
        (Every.WEEK, "2013_w01", timedelta(days=7)),
        (Every.MONTH, "2012_12", timedelta(days=31)),
        (Every.QUARTER, "2012_q4", timedelta(days=92)),
        (Every.YEAR, "2012", timedelta(days=366)),
    ],
)
def test_labels_say_which_period_it_is(every, label, length):
    """The last day of 2012 is in the first ISO week of 2013."""
    moment = datetime(2012, 12, 31, 5, 30, tzinfo=UTC)
    (period,) = PartitionSpec("ts", every).periods(moment, moment + timedelta(microseconds=1))
    assert period.label == label
    assert length is None or period.end - period.start == length


def test_flights_of_new_years_eve_belong_to_december_in_new_york():
    spec = PartitionSpec("ts", Every.MONTH, "America/New_York")
    moment = datetime(2014, 1, 1, 4, 59, tzinfo=UTC)
    (period,) = spec.periods(moment, moment + timedelta(minutes=1))
    assert period.label == "2013_12"
    assert period.end == datetime(2014, 1, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1, 1, 3, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
@pytest.mark.parametrize("every", list(Every))
def test_the_ends_of_the_calendar_are_answered_or_refused_clearly(every, moment, zone):
    """Years 1 and 9999: a tiling or a ConfigurationError, never an OverflowError."""
    spec = PartitionSpec("ts", every, zone)
    try:
        periods = spec.periods(moment, moment + timedelta(hours=1))
    except ConfigurationError:
        return
    assert periods[0].start <= moment < periods[0].end


def test_too_many_partitions_are_refused():
    spec = PartitionSpec("ts", Every.HOUR)
    start = datetime(2013, 1, 1, tzinfo=UTC)
    assert len(spec.periods(start, start + timedelta(hours=10_000))) == 10_000
    with pytest.raises(ConfigurationError, match="10000"):
        spec.periods(start, start + timedelta(hours=10_001))


@pytest.mark.parametrize(
    "zone", ["", "New York", "../etc/passwd", "/etc/localtime", "UTC\x00", "America"]
)
def test_a_zone_that_does_not_exist_is_refused(zone):
    with pytest.raises(ConfigurationError, match="time zone"):
        PartitionSpec("ts", Every.DAY, zone)


def test_names_of_long_tables_fit_and_differ():
    spec = PartitionSpec("ts", Every.DAY)
    start = datetime(2013, 1, 1, tzinfo=UTC)
    names = {
        spec.partition_name("ü" * 31, period)
        for period in spec.periods(start, start + timedelta(days=30))
    }
    assert len(names) == 30
    assert all(len(name.encode()) <= 63 for name in names)

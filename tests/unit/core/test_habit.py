"""New partitions are named as the table names those that it has."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from airflow_etl_provider.core.habit import Example, Habit
from airflow_etl_provider.core.partition import Every, PartitionSpec

AHEAD = {
    Every.MONTH: [datetime(2024, month, 1, tzinfo=UTC) for month in (1, 2, 3, 11, 12)],
    Every.DAY: [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 9, 30, 31)],
    Every.HOUR: [datetime(2024, 2, 29, hour, tzinfo=UTC) for hour in (0, 1, 22, 23)],
    Every.WEEK: [datetime(2024, 12, day, tzinfo=UTC) for day in (9, 16, 23, 30)],
    Every.QUARTER: [datetime(2024, month, 1, tzinfo=UTC) for month in (1, 4, 7, 10)],
    Every.YEAR: [datetime(year, 1, 1, tzinfo=UTC) for year in (2021, 2022, 2023)],
}


def named(every, names, *, table="t", zone="UTC"):
    """The name of the period after those that have *names*."""
    spec = PartitionSpec("ts", every, zone)
    examples = [
        Example(name, start) for name, start in zip(names, AHEAD[every][-len(names) :], strict=True)
    ]
    following = spec.period_holding(spec.period_holding(examples[-1].start).end)
    return Habit.of(spec, table, examples).name(following)


@pytest.mark.parametrize(
    ("every", "names", "expected"),
    [
        (Every.MONTH, ["t_2024_11", "t_2024_12"], "t_2025_01"),
        (Every.MONTH, ["t_p2024_12"], "t_p2025_01"),
        (Every.MONTH, ["t_202411", "t_202412"], "t_202501"),
        (Every.MONTH, ["t_y2024m12"], "t_y2025m01"),
        (Every.MONTH, ["t_y2024m3", "t_y2024m11", "t_y2024m12"], "t_y2025m1"),
        (Every.MONTH, ["old_24_11", "old_24_12"], "old_25_01"),
        (Every.MONTH, ["part-12/2024 x"], "part-01/2025 x"),
        (Every.MONTH, ["t_p2024_11_01", "t_p2024_12_01"], "t_p2025_01_01"),
        (Every.DAY, ["t_2024_01_30", "t_2024_01_31"], "t_2024_02_01"),
        (Every.DAY, ["t_20240131"], "t_20240201"),
        (Every.DAY, ["t_2024_031"], "t_2024_032"),
        (Every.HOUR, ["t_2024_02_29_22", "t_2024_02_29_23"], "t_2024_03_01_00"),
        (Every.HOUR, ["t_20240229t23"], "t_20240301t00"),
        (Every.WEEK, ["t_2024_w51", "t_2024_w52", "t_2025_w01"][-1:], "t_2025_w02"),
        (Every.WEEK, ["t_2024w50", "t_2024w51", "t_2024w52", "t_2025w01"], "t_2025w02"),
        (Every.QUARTER, ["t_2024_q3", "t_2024_q4"], "t_2025_q1"),
        (Every.QUARTER, ["t_20243", "t_20244"], "t_20251"),
        (Every.YEAR, ["t_2022", "t_2023"], "t_2024"),
        (Every.YEAR, ["t_y23"], "t_y24"),
    ],
)  # fmt: skip
def test_the_habit_is_kept(every, names, expected):
    assert named(every, names) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "t_2025_01"),
        (["winter", "summer"], "t_2025_01"),
        (["t_2024_11", "other_2024_12"], "t_2025_01"),
        (["t_1", "t_2"], "t_2025_01"),
        (["t_11", "t_12"], "t_2025_01"),
        (["t_2024_11", "t_2024"], "t_2025_01"),
    ],
    ids=["none", "words", "two habits", "numbers", "months alone", "years alone"],
)
def test_what_is_no_habit_or_would_come_again_is_not_kept(names, expected):
    """A name without the year would be that of next year's partition too."""
    spec = PartitionSpec("ts", Every.MONTH, "UTC")
    examples = [
        Example(name, start) for name, start in zip(names, AHEAD[Every.MONTH][-2:], strict=False)
    ]
    period = spec.period_holding(datetime(2025, 1, 15, tzinfo=UTC))
    assert Habit.of(spec, "t", examples).name(period) == expected


def test_digits_of_the_tables_name_say_nothing():
    assert named(Every.MONTH, ["m12_2024_12"], table="m12") == "m12_2025_01"
    assert named(Every.DAY, ["log2024_2024_01_31"], table="log2024") == "log2024_2024_02_01"


def test_a_first_of_january_is_not_taken_for_a_month_twice():
    """One example of 2024_01_01 could mean anything; the names of the days after it must differ."""
    spec = PartitionSpec("ts", Every.DAY, "UTC")
    habit = Habit.of(spec, "t", [Example("d2024_01_01", datetime(2024, 1, 1, tzinfo=UTC))])
    for day in (2, 28):
        period = spec.period_holding(datetime(2024, 1, day, tzinfo=UTC))
        assert habit.name(period) == f"d2024_01_{day:02d}"
    period = spec.period_holding(datetime(2025, 2, 1, tzinfo=UTC))
    assert habit.name(period) == "d2025_02_01"


def test_the_clock_is_the_partitions_own():
    """Midnight in New York is another date in UTC."""
    spec = PartitionSpec("ts", Every.DAY, "America/New_York")
    habit = Habit.of(spec, "t", [Example("t_p20240131", datetime(2024, 1, 31, 5, tzinfo=UTC))])
    assert habit.name(spec.period_holding(datetime(2024, 7, 4, 12, tzinfo=UTC))) == "t_p20240704"


def test_names_stay_within_what_an_identifier_holds():
    spec = PartitionSpec("ts", Every.MONTH, "UTC")
    table = "x" * 60
    period = spec.period_holding(datetime(2024, 1, 1, tzinfo=UTC))
    assert len(Habit.of(spec, table, []).name(period).encode()) <= 63


def test_the_end_of_the_calendar_is_no_error():
    spec = PartitionSpec("ts", Every.YEAR, "UTC")
    habit = Habit.of(spec, "t", [Example("t_9990", datetime(9990, 1, 1, tzinfo=UTC))])
    assert habit.name(spec.period_holding(datetime(9991, 5, 1, tzinfo=UTC))) == "t_9991"

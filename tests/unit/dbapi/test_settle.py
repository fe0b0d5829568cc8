"""The settled bound of a source that has nothing but a clock."""

from datetime import UTC, datetime, timedelta

import pytest

from airflow_etl_provider.dbapi.settle import as_text, parsed, settled_moment, shown

HOUR = timedelta(hours=1)
NAIVE = "timestamp(3) without time zone"
BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("timestamp with time zone", "2024-07-01 11:30:00+00"),
        (NAIVE, "2024-07-01 13:30:00"),
        ("date", "2024-07-01"),
    ],
)
def test_the_bound_has_the_form_of_its_type(type_, text):
    noon = datetime(2024, 7, 1, 12, 30, tzinfo=UTC)
    moment = settled_moment(noon, HOUR, type_, BERLIN)
    assert as_text(moment, type_) == text
    assert parsed(text) == moment


def test_a_date_is_settled_when_its_wall_clock_day_is_over_and_the_delay_has_passed():
    before = datetime(2024, 7, 1, 22, 59, tzinfo=UTC)
    assert as_text(settled_moment(before, HOUR, "date", BERLIN), "date") == "2024-07-01"
    after = before + timedelta(minutes=1)
    assert as_text(settled_moment(after, HOUR, "date", BERLIN), "date") == "2024-07-02"


def test_no_bound_lies_above_a_wall_time_that_is_still_to_come():
    """When clocks are set back, an hour comes twice; rows of its second run are not skipped."""
    start = datetime(2024, 10, 26, 22, tzinfo=UTC)
    instants = [start + timedelta(minutes=5 * step) for step in range(12 * 6)]
    bounds = [settled_moment(instant, timedelta(0), NAIVE, BERLIN) for instant in instants]
    walls = [shown(instant, NAIVE, BERLIN) for instant in instants]
    for number, bound in enumerate(bounds):
        assert bound <= min(walls[number:])
    assert bounds[-1] == walls[-1]

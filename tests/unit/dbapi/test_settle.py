"""The settled bound of a source that has nothing but a clock."""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from airflow_etl_provider.core.errors import ConfigurationError, NotSettled
from airflow_etl_provider.core.settle import SettleOptions, StillSettling, Wait
from airflow_etl_provider.dbapi.settle import Settling, as_text, parsed, settled_moment, shown
from airflow_etl_provider.testing import RecordedEvents

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


# -- waiting ------------------------------------------------------------------------------------------


class Clock:
    """A source's clock that only :meth:`pause` moves."""

    def __init__(self):
        self.moment = datetime(2024, 7, 1, 12, tzinfo=UTC)

    def now(self):
        return self.moment

    def pause(self, seconds):
        self.moment += timedelta(minutes=1)


def settling(clock, type_="bigint", greatest=None, earlier=None, stop=None, **options):
    return Settling(
        name="t",
        label="shop",
        cursor="n",
        type=type_,
        timezone="UTC",
        options=SettleOptions(**options),
        now=clock.now,
        greatest=greatest,
        earlier=earlier,
        stop=stop or threading.Event(),
        log=RecordedEvents(),
        pause=clock.pause,
    )


PATIENT = {"delay": timedelta(minutes=5), "patience": timedelta(0)}


def test_a_number_waits_in_one_process_after_another():
    """The second goes on with the bound and the start of the first, whatever came in between."""
    clock = Clock()
    with pytest.raises(StillSettling) as caught:
        settling(clock, greatest=41, **PATIENT).run(None)
    wait = Wait.from_json(caught.value.wait.as_json())
    assert (wait.high, wait.bounds, wait.since) == ("42", "[)", clock.moment)
    clock.moment += timedelta(minutes=4)
    with pytest.raises(StillSettling) as caught:
        settling(clock, greatest=99, earlier=wait, **PATIENT).run(None)
    assert caught.value.wait == wait
    clock.moment += timedelta(minutes=1)
    found = settling(clock, earlier=wait, **PATIENT).run(None)
    assert (found.high, found.bounds) == ("42", "[)")


def test_a_moment_waits_in_one_process_after_another():
    clock = Clock()
    high, type_ = "2024-07-01 12:00:00", "timestamp without time zone"
    with pytest.raises(StillSettling) as caught:
        settling(clock, type_, **PATIENT).run(high)
    clock.moment += timedelta(minutes=5)
    found = settling(clock, type_, earlier=caught.value.wait, **PATIENT).run(high)
    assert found.high == high


def test_the_timeout_counts_from_the_start_of_the_first_process():
    clock = Clock()
    high, type_ = "2024-07-01 12:00:00", "timestamp without time zone"
    earlier = Wait(since=clock.moment - timedelta(minutes=8))
    with pytest.raises(NotSettled, match="is not settled") as caught:
        settling(clock, type_, earlier=earlier, delay=timedelta(minutes=5)).run(high)
    assert not isinstance(caught.value, StillSettling)
    assert settling(clock, type_, delay=timedelta(minutes=5)).run(high).high == high


def test_patience_outlasts_a_short_wait():
    clock = Clock()
    patience = timedelta(minutes=1)
    found = settling(clock, greatest=1, delay=timedelta(minutes=3), patience=patience).run(None)
    assert (found.high, clock.moment.minute) == ("2", 3)


@pytest.mark.parametrize(
    ("type_", "greatest", "high", "bounds"),
    [
        ("numeric(20,0)", Decimal("9" * 20), "1" + "0" * 20, "[)"),
        ("numeric(65,0)", Decimal("9" * 65), "1" + "0" * 65, "[)"),
        ("numeric(6,2)", Decimal("1.50"), "1.50", "(]"),
        ("numeric(6,2)", 1.1, "1.1", "(]"),
        ("numeric", Decimal("1E+3"), "1000", "(]"),
        ("bigint", None, None, "[)"),
    ],
)
def test_between_two_fractions_there_is_always_another(type_, greatest, high, bounds):
    """So a bound above the greatest fraction would be too high, and the greatest itself is the bound."""
    found = settling(Clock(), type_, greatest, delay=timedelta(0)).run(None)
    assert (found.high, found.bounds) == (high, bounds)


@pytest.mark.parametrize("greatest", [float("inf"), Decimal("NaN"), "secret"])
def test_what_is_no_finite_number_bounds_nothing(greatest):
    with pytest.raises(ConfigurationError, match="no finite number") as caught:
        settling(Clock(), "numeric", greatest, delay=timedelta(0)).run(None)
    assert "secret" not in str(caught.value)


def test_text_is_not_settled():
    """Collations order it, and not as PostgreSQL does."""
    with pytest.raises(ConfigurationError, match="nothing says how it orders there"):
        settling(Clock(), "text").run(None)

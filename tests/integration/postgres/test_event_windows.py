"""Windows of events that end in the middle of a partition: late rows, open intervals, empty ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_etl_provider.core.errors import ConfigurationError, ContractError, DataError
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.request import OnEmpty, OpenWindow, WindowMode
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple

NOW = SettleOptions(origin=CursorOrigin.APPLICATION, delay=timedelta(0), margin=timedelta(0))


def live(source, warehouse, every=Every.DAY, **more) -> Pipeline:
    """Events up to now, loaded from the watermark on, into a partition for each day."""
    return simple(
        source,
        warehouse,
        mode=WindowMode.WATERMARK,
        settle=NOW,
        partition=PartitionSpec("ts", every, "UTC"),
        **more,
    )


def add(source, first, *agos):
    """One event for each time before now."""
    for number, ago in enumerate(agos):
        source.run(
            "INSERT INTO t VALUES (%s, clock_timestamp() - %s, 'row')", (first + number, ago)
        )


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def test_lookback_widens_to_whole_partitions(source, warehouse):
    """From the start of the day that the lookback reaches: the swap replaces days that were read whole."""
    pipe = live(source, warehouse, lookback=hours(30))
    add(source, 1, hours(80), hours(50), hours(26), hours(2))
    first = pipe.load()
    assert first.strategy.value == "delete_insert"
    add(source, 10, hours(25), hours(1))
    source.run(
        "INSERT INTO t SELECT 99, min(ts) + interval '1 minute', 'too late' FROM t WHERE id = 2"
    )
    manifest = pipe.extract()
    low = datetime.fromisoformat(manifest.window.low or "")
    assert (low.hour, low.minute, low.microsecond) == (0, 0, 0)
    assert hours(30) <= datetime.now(UTC) - low < hours(54)
    published = pipe.publish(pipe.waive(manifest))
    assert published.strategy.value == "swap"
    late = low <= datetime.now(UTC) - hours(50) - timedelta(minutes=1)
    expected = (
        pipe.source_rows() if late else [r for r in pipe.source_rows() if "too late" not in r[0]]
    )
    assert pipe.rows() == expected


def test_a_deleted_event_goes_with_its_partition(source18, warehouse18):
    """What is read again whole is also true about what is gone."""
    pipe = live(source18, warehouse18, lookback=hours(1))
    add(source18, 1, timedelta(seconds=20), timedelta(seconds=10))
    pipe.load()
    source18.run("DELETE FROM t WHERE id = 1")
    pipe.load(options={"max_shrink": 1.0})
    assert pipe.rows() == pipe.source_rows()


def test_a_partition_that_holds_more_than_was_read_is_not_swapped(source18, warehouse18):
    """Rows of the target above the window, put there by somebody else, stay."""
    pipe = live(source18, warehouse18, lookback=hours(1))
    add(source18, 1, timedelta(seconds=20), timedelta(seconds=10))
    pipe.load()
    warehouse18.run("INSERT INTO a.t VALUES (77, clock_timestamp() + interval '1 s', 'foreign')")
    if warehouse18.value("SELECT extract(hour FROM now() AT TIME ZONE 'UTC')") == 23:
        pytest.skip("the foreign row might belong to the next day")
    published = pipe.load()
    assert published.strategy.value == "delete_insert"
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE id = 77") == 1


def test_rows_that_came_above_the_window_stop_a_swap(source18, warehouse18):
    """Planned as a swap, and before the publish somebody adds rows that it would lose."""
    pipe = live(source18, warehouse18, lookback=hours(1))
    add(source18, 1, timedelta(seconds=20), timedelta(seconds=10))
    pipe.load()
    planned = pipe.staged()
    assert planned.partitions
    warehouse18.run("INSERT INTO a.t VALUES (77, clock_timestamp(), 'foreign')")
    before = pipe.rows()
    with pytest.raises(ContractError, match="1 rows above"):
        pipe.publish(planned)
    assert pipe.rows() == before


def test_an_interval_that_has_not_ended_is_refused_or_clamped(source18, warehouse18):
    """Clamped, it covers no more than what is settled, and the next run takes the rest."""
    pipe = simple(
        source18,
        warehouse18,
        settle=NOW,
        partition=PartitionSpec("ts", Every.DAY, "UTC"),
    )
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow = today + timedelta(days=1)
    source18.run("INSERT INTO t VALUES (1, %s, 'midnight'), (2, %s, 'tomorrow')", (today, tomorrow))
    with pytest.raises(ConfigurationError, match="rows are still to come"):
        pipe.extract(today, tomorrow)
    pipe.options = {"open_window": OpenWindow.CLAMP}
    pipe.load(today, tomorrow)
    ((low, high, _),) = pipe.coverage()
    assert datetime.fromisoformat(low) == today
    assert datetime.fromisoformat(high) <= datetime.now(UTC)
    source18.run("INSERT INTO t VALUES (3, clock_timestamp(), 'now')")
    pipe.load(today, tomorrow)
    assert warehouse18.run("SELECT id FROM a.t ORDER BY 1") == [(1,), (3,)]
    assert pipe.position() == pipe.coverage()[-1][1]


def test_a_clamped_interval_that_has_just_begun_is_nothing(source18, warehouse18):
    pipe = simple(
        source18,
        warehouse18,
        settle=SettleOptions(origin=CursorOrigin.APPLICATION, delay=hours(30)),
    )
    now = datetime.now(UTC)
    manifest = pipe.extract(now - hours(1), now + hours(1), open_window=OpenWindow.CLAMP)
    assert manifest.nothing


@pytest.mark.parametrize("on_empty", list(OnEmpty))
def test_an_empty_window(source18, warehouse18, on_empty):
    """Published like any other, recorded and left, or an error; only the last leaves a gap."""
    pipe = simple(source18, warehouse18, options={"on_empty": on_empty})
    fill(source18, FEBRUARY, MARCH, 10)
    if on_empty is OnEmpty.FAIL:
        with pytest.raises(DataError, match="holds no row"):
            pipe.extract(JANUARY, FEBRUARY)
        assert pipe.coverage() == []
        assert warehouse18.value("SELECT state FROM etl.loads") == "abandoned"
        return
    manifest = pipe.extract(JANUARY, FEBRUARY)
    if on_empty is OnEmpty.PUBLISH:
        pipe.publish(pipe.waive(manifest))
    assert pipe.state(manifest.load_id) == "published"
    assert pipe.position() == "2013-02-01 00:00:00+00"
    pipe.load(FEBRUARY, MARCH)
    assert pipe.rows() == pipe.source_rows()
    assert pipe.left_in_staging() == set()
    assert pipe.position() == "2013-03-01 00:00:00+00"


def test_the_watermark_variable_follows_a_skipped_window(source18, warehouse18):
    """The next load brings the store in line, as after any crash between ledger and store."""
    pipe = simple(source18, warehouse18, options={"on_empty": OnEmpty.SKIP})
    pipe.extract(JANUARY, FEBRUARY)
    pipe.extract(FEBRUARY, MARCH)
    stored = pipe.store.read("t")
    assert stored is not None
    assert stored.value == "2013-02-01 00:00:00+00"

"""Rule A4 for events: a batch that was read earlier never takes the place of rows that were read later."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_etl_provider.core.errors import FenceConflict, StateError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple

DELETE_INSERT, SWAP, SWAP_MERGE = Strategy.DELETE_INSERT, Strategy.SWAP, Strategy.SWAP_MERGE
LATE = "INSERT INTO t VALUES (500, '2013-01-08 12:00Z', 'late')"


def day(number: int) -> datetime:
    return JANUARY + timedelta(days=number - 1)


def loaded(source, warehouse, **changes: Any) -> Pipeline:
    pipe = simple(source, warehouse, **changes)
    fill(source, JANUARY, FEBRUARY, 31)
    pipe.load(JANUARY, FEBRUARY)
    return pipe


@pytest.mark.parametrize("strategy", [DELETE_INSERT, SWAP_MERGE])
def test_rows_that_were_read_later_stay(source18, warehouse18, strategy):
    """A backfill read a week, the live run reads its last days again and publishes first: its late row stays."""
    pipe = loaded(source18, warehouse18)
    older = pipe.staged(day(1), day(10))
    source18.run(LATE)
    source18.run("UPDATE t SET v = 'seen by neither' WHERE id = 20")
    newer = pipe.staged(day(5), day(15))
    pipe.publish(newer, strategy=strategy)
    done = pipe.publish(older, strategy=strategy)
    assert warehouse18.value("SELECT v FROM a.t WHERE id = 500") == "late"
    assert (done.rows_inserted, done.rows_stale) == (4, 5)
    assert [(low[8:10], high[8:10], load) for low, high, load in pipe.coverage()][:3] == [
        ("01", "05", older.load_id),
        ("05", "15", newer.load_id),
        ("15", "01", pipe.coverage()[2][2]),
    ]


def test_a_partition_that_was_partly_read_later_is_not_swapped(source18, warehouse18):
    """``auto`` writes around those rows; ``swap`` by name is refused, and nothing is changed."""
    pipe = loaded(source18, warehouse18)
    older = pipe.staged(JANUARY, FEBRUARY)
    source18.run(LATE)
    pipe.load(day(5), day(15))
    before = pipe.picture()
    with pytest.raises(StateError, match="read later"):
        pipe.publish(older, strategy=SWAP)
    assert pipe.picture() == before
    assert pipe.state(older.load_id) == "validated"
    assert pipe.publish(older).strategy is DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()


def test_a_later_reading_is_published_between_the_choice_and_the_swap(source18, warehouse18):
    """The swap looks again under the stream's lock; the retry then chooses another way."""
    pipe = loaded(source18, warehouse18)
    older = pipe.staged(JANUARY, FEBRUARY)
    source18.run(LATE)
    newer = pipe.staged(day(5), day(15))

    class Meanwhile:
        done = False

        def is_set(self) -> bool:
            if not self.done:
                self.done = True
                pipe.publish(newer)
            return False

    with pytest.raises(FenceConflict):
        pipe.publish(older, stop=Meanwhile())
    pipe.publish(older)
    assert pipe.rows() == pipe.source_rows()


def test_a_later_reading_is_published_while_partitions_are_built(
    source18, warehouse18, monkeypatch
):
    """swap_merge begins anew, without the rows that were read later."""
    pipe = loaded(source18, warehouse18)
    older = pipe.staged(day(1), day(10))
    source18.run("DELETE FROM t WHERE ts >= '2013-01-05Z' AND ts < '2013-01-08Z'")
    newer = pipe.staged(day(5), day(8))
    from airflow_etl_provider.postgres import swap_merge

    once = [newer]

    def waited(*args: Any, **kwargs: Any) -> None:
        if once:
            pipe.publish(once.pop(), strategy=DELETE_INSERT, max_shrink=1.0)

    monkeypatch.setattr(swap_merge, "wait_out", waited)
    pipe.publish(older, strategy=SWAP_MERGE)
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("strategy", [DELETE_INSERT, Strategy.REPLACE])
def test_a_whole_batch_does_not_undo_a_window_that_was_read_later(source18, warehouse18, strategy):
    """Everything was read, then a window; whoever replaces everything would lose what the window brought."""
    source18.run(
        "CREATE TABLE t (id int PRIMARY KEY, ts timestamptz, v text);"
        "INSERT INTO t SELECT i, timestamptz '2013-01-01Z' + i * interval '1 h', 'old' FROM generate_series(1, 9) AS i"
    )
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, ts timestamptz, v text)"
    )
    pipe = Pipeline(source18, warehouse18, kind=Kind.ENTITIES, keys=("id",), partition=None)
    everything = pipe.staged(mode=WindowMode.FULL)
    source18.run("UPDATE t SET v = 'new', ts = '2013-01-02Z' WHERE id = 3")
    pipe.load(day(2), day(3))
    with pytest.raises(StateError, match="clear extract and downstream"):
        pipe.publish(everything, strategy=strategy, max_shrink=1.0)
    assert warehouse18.value("SELECT v FROM a.t WHERE id = 3") == "new"


def test_appended_rows_that_were_read_later_stay(source18, warehouse18):
    """With the load's id in each row a window replaces what earlier loads brought, not what later ones did."""
    pipe = simple(source18, warehouse18, options={"filled_by_publish": ("load_id",)})
    warehouse18.run(
        "DROP TABLE a.t; CREATE TABLE a.t (id bigint, ts timestamptz, v text, load_id uuid)"
    )
    pipe.partition = None
    fill(source18, JANUARY, FEBRUARY, 31)
    told: dict[str, Any] = {"strategy": Strategy.APPEND, "load_id_column": "load_id"}
    older = pipe.staged(day(1), day(10))
    source18.run(LATE)
    pipe.load(day(5), day(9), options=told)
    with pytest.raises(StateError, match="read later"):
        pipe.publish(older, **told)
    assert warehouse18.value("SELECT count(*) FROM a.t WHERE v = 'late'") == 1


def test_a_load_whose_window_was_read_later_as_a_whole_is_done(source18, warehouse18):
    """Whichever of them began first: what was read later is there already."""
    source18.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)")
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    slow = pipe.request()
    area = pipe.staging()
    area.bind(slow)
    quick = pipe.staged(load_id=slow.load_id)
    other = pipe.staged()
    # As if the first had begun before the second, and been read after it.
    warehouse18.run(
        "UPDATE etl.loads SET snapshot_at = snapshot_at + interval '1 h', read_until = NULL WHERE load_id = %s",
        (quick.load_id,),
    )
    pipe.publish(quick)
    assert pipe.publish(other).overtaken_by == quick.load_id


READINGS = st.lists(
    st.tuples(
        st.integers(0, 58), st.integers(1, 40), st.sampled_from([None, DELETE_INSERT, SWAP_MERGE])
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(readings=READINGS, order=st.randoms(use_true_random=False))
def test_whatever_order_batches_are_published_in(source18, warehouse18, readings, order):
    """Each day holds what the last reading of it saw."""
    for database in (source18, warehouse18):
        database.run(
            "DROP SCHEMA IF EXISTS a CASCADE; DROP TABLE IF EXISTS t;"
            "DROP SCHEMA IF EXISTS etl CASCADE; DROP SCHEMA IF EXISTS etl_staging CASCADE"
        )
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 59)
    expected: dict[int, str] = {}
    batches = []
    for number, (first, days, strategy) in enumerate(readings):
        source18.run("UPDATE t SET v = %s", (f"reading {number}",))
        last = min(first + days, 59)
        low, high = JANUARY + timedelta(days=first), JANUARY + timedelta(days=last)
        batches.append((pipe.staged(low, high), {} if strategy is None else {"strategy": strategy}))
        expected |= dict.fromkeys(range(first, last), f"reading {number}")
    order.shuffle(batches)
    for batch, told in batches:
        pipe.publish(batch, max_shrink=1.0, **told)
    found = warehouse18.run("SELECT (ts - '2013-01-01Z'::timestamptz)::text, v FROM a.t")
    assert {int(since.split()[0]) if "day" in since else 0: v for since, v in found} == expected
    assert len(found) == len(expected)

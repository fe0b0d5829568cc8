"""Rows without a cursor value: never lost in silence, whatever the stream is told to do with them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_etl_provider.core.errors import ConfigurationError, DataError
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.request import NullCursor, WindowMode
from airflow_etl_provider.core.settle import SettleOptions
from tests.builders import FEBRUARY, JANUARY, Pipeline

NOW = SettleOptions(delay=timedelta(0), margin=timedelta(0))


def entities(source, warehouse, null_cursor, mode=WindowMode.WATERMARK, **more):
    """Rows that change; some have never been given a time of change."""
    source.run("CREATE TABLE t (id int PRIMARY KEY, v text, ts timestamptz DEFAULT now())")
    warehouse.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text, ts timestamptz)")
    source.run(
        "INSERT INTO t VALUES (1, 'dated', DEFAULT), (2, 'undated', NULL), (3, 'undated', NULL)"
    )
    return Pipeline(
        source,
        warehouse,
        kind=Kind.ENTITIES,
        keys=("id",),
        partition=None,
        mode=mode,
        settle=NOW,
        options={"null_cursor": null_cursor},
        **more,
    )


def reported(pipe):
    return [
        (fields["rows"], fields["in_this_load"])
        for event, fields in pipe.log.events
        if event == "rows without a cursor value"
    ]


def test_fail_names_how_many(source18, warehouse18):
    """Any such row fails the load, also one that no window would have read."""
    pipe = entities(source18, warehouse18, NullCursor.FAIL)
    with pytest.raises(DataError, match="2 rows of public"):
        pipe.extract()
    assert pipe.left_in_staging() == set()


def test_include_sends_them_with_every_window(source, warehouse):
    """Merged by key, again and again: a change of one of them arrives with the next load."""
    pipe = entities(source, warehouse, NullCursor.INCLUDE)
    assert pipe.load().rows_inserted == 3
    source.run("UPDATE t SET v = 'changed' WHERE id = 2")
    source.run("INSERT INTO t VALUES (4, 'new')")
    published = pipe.load()
    assert (published.rows_inserted, published.rows_updated, published.rows_unchanged) == (1, 1, 1)
    assert pipe.rows() == pipe.source_rows()
    assert reported(pipe) == [(2, True), (2, True)]


def test_a_row_that_gets_a_value_or_loses_it(source18, warehouse18):
    """Both ways the target follows, and the row is there once."""
    pipe = entities(source18, warehouse18, NullCursor.INCLUDE)
    pipe.load()
    source18.run("UPDATE t SET ts = now() WHERE id = 2")
    source18.run("UPDATE t SET ts = NULL, v = 'lost' WHERE id = 1")
    pipe.load()
    assert pipe.rows() == pipe.source_rows()


def test_a_backfill_leaves_them_alone(source18, warehouse18):
    """Only the rows of its interval: their number is reported all the same."""
    pipe = entities(source18, warehouse18, NullCursor.INCLUDE, mode=None)
    source18.run("INSERT INTO t VALUES (9, 'old', '2013-01-05')")
    pipe.load(JANUARY, FEBRUARY, run_type="backfill")
    assert warehouse18.run("SELECT id FROM a.t") == [(9,)]
    assert reported(pipe) == [(2, False)]
    pipe.load(JANUARY, FEBRUARY)
    assert warehouse18.run("SELECT id FROM a.t ORDER BY 1") == [(2,), (3,), (9,)]


def test_sweep_is_a_load_of_its_own(source, warehouse):
    """It compares all of them by key and moves neither watermark nor coverage."""
    pipe = entities(source, warehouse, NullCursor.SWEEP)
    pipe.load()
    assert warehouse.run("SELECT id FROM a.t") == [(1,)]
    at, covered = pipe.position(), pipe.coverage()
    sweep = {"mode": WindowMode.NULLS}
    published = pipe.publish(pipe.staged(**sweep))
    assert (published.strategy.value, published.rows_inserted) == ("merge", 2)
    assert (pipe.position(), pipe.coverage()) == (at, covered)
    source.run("UPDATE t SET v = 'changed' WHERE id = 3")
    published = pipe.publish(pipe.staged(**sweep))
    assert (published.rows_updated, published.rows_unchanged) == (1, 1)
    assert pipe.rows() == pipe.source_rows()
    assert warehouse.run("SELECT DISTINCT bounds FROM etl.loads ORDER BY 1") == [
        ("[)",),
        ("nulls",),
    ]


def test_an_older_sweep_does_not_undo_a_newer_load(source18, warehouse18):
    """The sweep read the row without a value; before it is published the row got one and was loaded."""
    pipe = entities(source18, warehouse18, NullCursor.SWEEP)
    slow = pipe.staged(mode=WindowMode.NULLS)
    source18.run("UPDATE t SET ts = now(), v = 'dated now' WHERE id = 2")
    pipe.load()
    published = pipe.publish(slow)
    assert published.rows_stale == 1
    assert warehouse18.value("SELECT v FROM a.t WHERE id = 2") == "dated now"


def test_a_sweep_that_was_overtaken_by_a_newer_one_is_abandoned(source18, warehouse18):
    pipe = entities(source18, warehouse18, NullCursor.SWEEP)
    slow = pipe.staged(mode=WindowMode.NULLS)
    source18.run("UPDATE t SET v = 'newer' WHERE id = 2")
    newer = pipe.publish(pipe.staged(mode=WindowMode.NULLS))
    assert pipe.publish(slow).overtaken_by == newer.load_id
    assert warehouse18.value("SELECT v FROM a.t WHERE id = 2") == "newer"


def test_a_load_that_read_later_wins_at_the_same_moment(source18, warehouse18):
    """Rule A4: at equal cursors the later source snapshot wins, whichever is published last."""
    pipe = entities(source18, warehouse18, NullCursor.SWEEP, mode=None)
    source18.run("UPDATE t SET ts = '2013-01-05' WHERE id = 1")
    slow = pipe.staged(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET v = 'same moment, later' WHERE id = 1")
    day = JANUARY.replace(day=6)
    newer = pipe.staged(JANUARY, day)
    pipe.publish(newer)
    published = pipe.publish(slow)
    assert published.rows_stale == 1
    assert warehouse18.value("SELECT v FROM a.t WHERE id = 1") == "same moment, later"


@pytest.mark.parametrize("null_cursor", [NullCursor.INCLUDE, NullCursor.SWEEP])
@pytest.mark.parametrize(
    ("changes", "says"),
    [({"kind": Kind.EVENTS}, "of events"), ({"keys": ()}, "needs keys")],
)
def test_without_a_key_they_cannot_travel(source18, warehouse18, null_cursor, changes, says):
    pipe = entities(source18, warehouse18, null_cursor)
    for name, value in changes.items():
        setattr(pipe, name, value)
    with pytest.raises(ConfigurationError, match=says):
        pipe.extract()


def test_a_query_with_bounds_cannot_include_them(source18, warehouse18):
    """Its own condition leaves them out, and nobody would know."""
    pipe = entities(
        source18,
        warehouse18,
        NullCursor.INCLUDE,
        query="SELECT * FROM t WHERE ts >= :low AND ts < :high",
    )
    with pytest.raises(ConfigurationError, match="leave them out of the query"):
        pipe.extract()
    pipe.query = "SELECT * FROM t"
    assert pipe.load().rows_inserted >= 2

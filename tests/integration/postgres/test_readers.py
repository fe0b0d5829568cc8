"""Readers see the old partition or the new one, and wait for nobody longer than the budget."""

from __future__ import annotations

import threading
from datetime import timedelta

import psycopg
import pytest

from airflow_etl_provider.core.errors import LockBudgetExceeded
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    reader,
    simple,
    wait_until,
)

SHORT = {"lock_budget": timedelta(milliseconds=100), "lock_deadline": timedelta(milliseconds=300)}


def _loaded(source, warehouse, **changes):
    pipe = simple(source, warehouse, **changes)
    fill(source, JANUARY, FEBRUARY, 50)
    pipe.load(JANUARY, FEBRUARY)
    source.run("UPDATE t SET v = 'newer'")
    return pipe


def _blocked(pipe, manifest, *words):
    before = pipe.warehouse.run("SELECT relname, relnamespace, oid FROM pg_class ORDER BY oid")
    with pytest.raises(LockBudgetExceeded) as raised:
        pipe.publish(manifest, **SHORT)
    for word in words:
        assert word in str(raised.value), str(raised.value)
    assert pipe.state(manifest.load_id) == "validated"
    assert len(pipe.coverage()) == 1
    return before


@pytest.mark.parametrize("name", ["a.t", "a.t_2013_01"])
def test_a_long_reader_keeps_its_partition(source, warehouse, name):
    """Blocked: named with pid and application, nothing changed, still validated; published when it ends."""
    pipe = _loaded(source, warehouse)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    before = pipe.rows()
    with reader(warehouse, f"SELECT count(*) FROM {name}") as session:
        _blocked(pipe, manifest, f"pid {session.info.backend_pid}", "slow report")
        assert pipe.rows() == before
    assert not pipe.publish(manifest, **SHORT).already
    assert pipe.rows() == pipe.source_rows()


def test_a_reader_of_a_dimension_is_named(source18, warehouse18):
    """ATTACH locks the tables that foreign keys reference: a reader there is in the way, and is named."""
    pipe = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x');"
        "ALTER TABLE a.t ADD FOREIGN KEY (v) REFERENCES a.dim"
    )
    fill(source18, JANUARY, FEBRUARY, 10)
    source18.run("UPDATE t SET v = 'x'")
    pipe.load(JANUARY, FEBRUARY)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with reader(warehouse18, "SELECT count(*) FROM a.dim") as session:
        _blocked(pipe, manifest, f"pid {session.info.backend_pid}", "slow report")
    pipe.publish(manifest)


def test_a_reader_of_the_default_partition_is_named(source18, warehouse18):
    """DEFAULT is locked too."""
    pipe = simple(source18, warehouse18)
    warehouse18.run("CREATE TABLE a.rest PARTITION OF a.t DEFAULT")
    fill(source18, JANUARY, FEBRUARY, 10)
    pipe.load(JANUARY, FEBRUARY)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with reader(warehouse18, "SELECT count(*) FROM a.rest") as session:
        _blocked(pipe, manifest, f"pid {session.info.backend_pid}", "slow report")
    pipe.publish(manifest)


def test_a_reader_of_another_partition_is_not_in_the_way_of_a_new_one(source18, warehouse18):
    """Making a missing partition needs no lock that readers hold: they may read on for hours."""
    pipe = _loaded(source18, warehouse18)
    fill(source18, FEBRUARY, MARCH, 5, first=1000)
    with reader(warehouse18, "SELECT count(*) FROM a.t"):
        pipe.publish(pipe.staged(FEBRUARY, MARCH), **SHORT)
        assert warehouse18.value("SELECT count(*) FROM a.t") == 55


def test_a_writer_into_the_partition_is_named(source18, warehouse18):
    pipe = _loaded(source18, warehouse18)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with reader(warehouse18, "UPDATE a.t SET v = '' WHERE id = 1", "by hand") as session:
        _blocked(pipe, manifest, f"pid {session.info.backend_pid}", "by hand")


def test_a_stop_while_waiting_for_locks_ends_the_publish(source18, warehouse18):
    """Told to stop between attempts, it stops, and frees everything."""
    from airflow_etl_provider.core.errors import Stopped

    pipe = _loaded(source18, warehouse18)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    stop = threading.Event()
    with reader(warehouse18, "SELECT count(*) FROM a.t"):
        with pytest.raises(Stopped):
            pipe.publish(
                manifest,
                stop=stop,
                log=lambda event, **_: stop.set() if event == "waiting for locks" else None,
            )
        assert (
            warehouse18.value(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test' AND datname = current_database()"
            )
            == 0
        )
    pipe.publish(manifest)


def test_tidying_does_not_wait_for_a_reader_of_an_old_version(source18, warehouse18):
    """Whoever reads a replaced version must not hold up publishes: it goes with the next one."""
    pipe = _loaded(source18, warehouse18)
    old = pipe.load(JANUARY, FEBRUARY).partitions[0].previous
    with reader(warehouse18, f"SELECT count(*) FROM {old}") as session:
        with in_background(lambda: pipe.load(JANUARY, FEBRUARY)) as publishing:

            def done_or_waiting():
                if publishing.done():
                    return "done"
                found = warehouse18.value(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test' AND wait_event_type = 'Lock'"
                    " AND datname = current_database() AND clock_timestamp() - query_start > '5 s'"
                )
                return "waiting" if found else None

            outcome = wait_until(done_or_waiting, "publish ends or waits")
            session.rollback()
        assert publishing.result().changed
    assert outcome == "done"


@pytest.mark.parametrize("shape", ["direct", "filled"])
def test_a_snapshot_older_than_the_fill_finds_no_hole(source, warehouse, shape):
    """Rule 6: a REPEATABLE READ reader that looks for the first time after the swap sees rows, not an empty partition."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, MARCH, 100)
    bounds = (JANUARY, FEBRUARY) if shape == "direct" else (JANUARY, MARCH)
    pipe.load(*bounds)
    count = warehouse.value("SELECT count(*) FROM a.t")
    source.run("UPDATE t SET v = 'newer'")
    with psycopg.connect(warehouse.conninfo) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM pg_class")  # takes the snapshot, locks nothing of ours
        pipe.load(*bounds)
        for setting in ("SET LOCAL enable_seqscan = off", "SET LOCAL enable_indexscan = off"):
            old.execute(setting)
            assert old.execute(
                "SELECT count(*), count(DISTINCT v) FROM a.t WHERE id > 0"
            ).fetchone() in [
                (count, 1),
                (count, count),
            ]


def test_readers_of_replace_never_wait_and_see_whole_versions(source18, warehouse18):
    """The difference is applied in one transaction: old or new, and no reader queues."""
    from airflow_etl_provider.core.load import Kind

    source18.run(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, '0' FROM generate_series(1, 200) AS i"
    )
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)")
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    pipe.load()
    with reader(warehouse18, "SELECT count(*) FROM a.t"):
        source18.run("UPDATE t SET v = '1'")
        assert pipe.load().rows_updated == 200


def test_replace_waits_for_a_writer_and_then_takes_its_rows_into_account(source18, warehouse18):
    """A writer that commits while we wait: its row is not in the source, so it goes."""
    from airflow_etl_provider.core.load import Kind

    source18.run(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')"
    )
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, v text)")
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    pipe.load()
    source18.run("UPDATE t SET v = 'c'")
    manifest = pipe.staged()
    with (
        reader(warehouse18, "INSERT INTO a.t VALUES (3, 'theirs')") as writer,
        in_background(lambda: pipe.publish(manifest)) as publishing,
    ):
        wait_until(
            lambda: warehouse18.value(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test' AND wait_event_type = 'Lock'"
            ),
            "replace waits",
        )
        writer.commit()
    assert publishing.result().rows_deleted == 1
    assert pipe.rows() == pipe.source_rows()

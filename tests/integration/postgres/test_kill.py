"""Kill anything at any moment: nothing is left behind, and a retry converges."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import psycopg
import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import (
    ConnectionLost,
    DataError,
    EtlError,
    Stopped,
    TransientError,
)
from airflow_etl_provider.core.names import TableName
from demo.embedded import EmbeddedPostgres
from tests.builders import FEBRUARY, JANUARY, fill, in_background, simple, wait_until

#: A source that never ends by itself: each row takes a moment.
ENDLESS = (
    "CREATE VIEW slow AS SELECT id, ts, CASE WHEN pg_sleep(0.01) IS NOT NULL THEN v END AS v FROM t"
)


def endless(source, warehouse):
    pipe = simple(source, warehouse, table=TableName("public", "slow"))
    fill(source, JANUARY, FEBRUARY, 20_000)
    source.run(ENDLESS)
    return pipe


def sessions(database, application="etl:test"):
    return database.run(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
        " AND query LIKE 'COPY%%'",
        (application,),
    )


def wait_for_copy(*databases):
    for database in databases:
        wait_until(lambda database=database: sessions(database), f"COPY on {database.name}")


def assert_nothing_left(pipe):
    for database in (pipe.source, pipe.warehouse):
        wait_until(lambda database=database: not sessions(database), f"no COPY on {database.name}")
    assert pipe.left_in_staging() == set()
    assert pipe.rows() == []
    assert pipe.coverage() == []


@pytest.mark.parametrize("side", ["source", "warehouse"])
def test_a_backend_killed_in_the_middle_of_copy(source, warehouse, side):
    """Either end dies: transient, nothing stays, the ledger says failed, the retry of the same load succeeds."""
    pipe = endless(source, warehouse)
    load_id = str(uuid7())
    victim = source if side == "source" else warehouse
    with in_background(lambda: pipe.extract(JANUARY, FEBRUARY, load_id=load_id)) as extracting:
        wait_for_copy(source, warehouse)
        for (pid,) in sessions(victim):
            victim.run("SELECT pg_terminate_backend(%s)", (pid,))
        try:
            # Long before the source would have come to its end.
            wait_until(extracting.done, "the death of one side ends the other")
        finally:
            for (pid,) in sessions(source):
                source.run("SELECT pg_terminate_backend(%s)", (pid,))
    error = extracting.exception()
    assert isinstance(error, TransientError), error
    assert_nothing_left(pipe)
    assert pipe.state(load_id) == "failed"
    pipe.table = TableName("public", "t")
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_a_stop_in_the_middle_of_copy_ends_both_statements(source, warehouse):
    """Promise 9: the flag is set, both statements end on their servers, nothing is kept."""
    pipe = endless(source, warehouse)
    stop = threading.Event()
    load_id = str(uuid7())
    with in_background(
        lambda: pipe.extract(JANUARY, FEBRUARY, load_id=load_id, stop=stop)
    ) as extracting:
        wait_for_copy(source, warehouse)
        stop.set()
    assert isinstance(extracting.exception(), Stopped)
    assert_nothing_left(pipe)
    assert pipe.state(load_id) == "failed"


def test_an_exception_in_the_waiting_thread_ends_both_statements(source18, warehouse18):
    """A signal's exception (execution_timeout) passes through: no statement outlives the call."""
    pipe = endless(source18, warehouse18)

    class Alarm:
        def is_set(self):
            if sessions(source18) and sessions(warehouse18):
                raise TimeoutError("as a signal handler raises it")
            return False

    with pytest.raises(TimeoutError):
        pipe.extract(JANUARY, FEBRUARY, stop=Alarm())
    assert_nothing_left(pipe)


@pytest.mark.parametrize("transport", ["binary", "text"])
def test_a_source_error_after_many_rows_keeps_nothing(source, warehouse, transport):
    """Division by zero in row 30,000: what was sent before is not taken for the whole."""
    pipe = simple(source, warehouse, table=TableName("public", "broken"))
    fill(source, JANUARY, FEBRUARY, 40_000)
    source.run(
        "CREATE VIEW broken AS SELECT id, ts, CASE WHEN 1 / (id - 30000) = 0 THEN v ELSE v END AS v FROM t"
    )
    if transport == "text":
        warehouse.run("ALTER TABLE a.t ALTER id TYPE numeric")
    load_id = str(uuid7())
    with pytest.raises(DataError, match="division by zero"):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id)
    assert_nothing_left(pipe)
    assert pipe.state(load_id) == "failed"
    assert "division by zero" in warehouse.value("SELECT error FROM etl.loads")


def test_a_target_error_after_many_rows_ends_the_source_too(source18, warehouse18):
    """A value that is too long in row 30,000: the reading statement does not go on."""
    pipe = simple(source18, warehouse18)
    source18.run("ALTER TABLE t ALTER v TYPE varchar(90)")
    warehouse18.run("ALTER TABLE a.t ALTER v TYPE varchar(12)")
    fill(source18, JANUARY, FEBRUARY, 100_000)
    source18.run("UPDATE t SET v = 'much too long' WHERE id = 30000")
    with pytest.raises(DataError, match=r"column v.*22001|row \d+"):
        pipe.extract(JANUARY, FEBRUARY)
    assert_nothing_left(pipe)


@pytest.mark.parametrize("strategy", ["swap", "fill"])
def test_publish_killed_while_it_prepares(source18, warehouse18, strategy):
    """The publish session dies before its locks: transient, nothing shown, the retry publishes."""
    pipe = simple(source18, warehouse18)
    from tests.builders import MARCH

    fill(source18, JANUARY, MARCH, 100)
    bounds = (JANUARY, FEBRUARY) if strategy == "swap" else (JANUARY, MARCH)
    if strategy == "swap":
        source18.run("DELETE FROM t WHERE ts >= %s", (FEBRUARY,))
    manifest = pipe.staged(*bounds)
    before = pipe.picture()

    class Killer:
        done = False

        def is_set(self):
            if not self.done:
                self.done = True
                warehouse18.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'etl:test' AND datname = current_database()"
                )
            return False

    with pytest.raises(TransientError):
        pipe.publish(manifest, stop=Killer())
    assert pipe.picture() == before
    assert pipe.state(manifest.load_id) == "validated"
    pipe.publish(manifest)
    assert pipe.rows() == pipe.source_rows()
    assert pipe.left_in_staging() == set()


@pytest.mark.parametrize("moment", ["RENAME", "ATTACH", "INSERT INTO etl.load_partitions"])
def test_publish_killed_under_its_locks(source18, warehouse18, moment):
    """The session dies at a statement of the swap itself: readers see the old rows, the retry publishes."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 50)
    pipe.load(JANUARY, FEBRUARY)
    source18.run("UPDATE t SET v = 'newer'")
    manifest = pipe.staged(JANUARY, FEBRUARY)
    before = pipe.picture()
    if moment.startswith("INSERT"):
        warehouse18.run(
            "CREATE FUNCTION public.die() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;"
            "CREATE TRIGGER die BEFORE INSERT ON etl.load_partitions FOR EACH ROW EXECUTE FUNCTION public.die()"
        )
    else:
        warehouse18.run(
            "CREATE FUNCTION public.die() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF current_query() LIKE '%DETACH PARTITION%' THEN PERFORM pg_terminate_backend(pg_backend_pid());"
            " END IF; END $$;"
            f"CREATE EVENT TRIGGER die ON {'ddl_command_start' if moment == 'RENAME' else 'ddl_command_end'}"
            " EXECUTE FUNCTION public.die()"
        )
    with pytest.raises(TransientError):
        pipe.publish(manifest)
    warehouse18.run("DROP FUNCTION public.die CASCADE")
    assert pipe.picture() == before
    assert pipe.state(manifest.load_id) == "validated"
    pipe.publish(manifest)
    assert pipe.rows() == pipe.source_rows()


def test_an_answer_of_commit_that_is_lost(source18, warehouse18):
    """COMMIT succeeded but the client never heard: the retry finds the load published and changes nothing."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 50)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    # The first statement after the commit records the lock time: it dies there.
    warehouse18.run(
        "CREATE FUNCTION public.die() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$;"
        "CREATE TRIGGER die BEFORE UPDATE ON etl.load_partitions FOR EACH ROW EXECUTE FUNCTION public.die()"
    )
    with pytest.raises(TransientError):
        pipe.publish(manifest)
    warehouse18.run("DROP FUNCTION public.die CASCADE")
    assert pipe.state(manifest.load_id) == "published"
    assert pipe.rows() == pipe.source_rows()
    done = pipe.publish(manifest)
    assert done.already
    assert done.rows_inserted == 50
    assert pipe.store.read("t").value == "2013-02-01 00:00:00+00"
    assert pipe.left_in_staging() == set()


def test_a_server_that_crashes_between_staged_and_publish(tmp_path, source18):
    """Rule 2: an immediate stop loses nothing that was validated: staging is logged from its creation."""
    with EmbeddedPostgres(tmp_path / "data") as server:
        server.create_database("warehouse")
        warehouse = replace(source18, server=server, name="warehouse")
        pipe = simple(source18, warehouse)
        fill(source18, JANUARY, FEBRUARY, 1000)
        manifest = pipe.staged(JANUARY, FEBRUARY)
        assert (
            warehouse.value(
                "SELECT relpersistence::text FROM pg_class WHERE oid = %s::regclass",
                (str(manifest.staging),),
            )
            == "p"
        )
        server.stop("immediate")
        with pytest.raises(ConnectionLost):
            pipe.publish(manifest)
        server.start()
        assert pipe.publish(manifest).rows_inserted == 1000
        assert pipe.rows() == pipe.source_rows()
        server.stop("immediate")
        server.start()
        assert pipe.rows() == pipe.source_rows()


def test_a_source_that_crashes_in_the_middle_of_copy(tmp_path, warehouse18):
    """The same for the source: transient, nothing kept, the retry reads everything anew."""
    with EmbeddedPostgres(tmp_path / "data", settings={"fsync": "off"}) as server:
        server.create_database("source")
        source = replace(warehouse18, server=server, name="source")
        pipe = endless(source, warehouse18)
        with in_background(lambda: pipe.extract(JANUARY, FEBRUARY)) as extracting:
            wait_for_copy(source, warehouse18)
            server.stop("immediate")
        assert isinstance(extracting.exception(), TransientError)
        assert pipe.left_in_staging() == set()
        server.start()
        pipe.table = TableName("public", "t")
        pipe.load(JANUARY, FEBRUARY)
        assert pipe.rows() == pipe.source_rows()


def test_an_unlogged_batch_is_never_published(source18, warehouse18):
    """Rule 2: somebody made the batch unlogged: it would be empty after a crash, so it is refused."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    warehouse18.run(f"ALTER TABLE {manifest.staging} SET UNLOGGED")
    with pytest.raises(EtlError, match="logged"):
        pipe.publish(manifest)
    assert pipe.rows() == []


def test_threads_end_with_their_transfer(source18, warehouse18):
    """Neither success nor failure leaves a thread or a session behind."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    before = threading.active_count()
    pipe.load(JANUARY, FEBRUARY)
    source18.run("ALTER TABLE t DROP CONSTRAINT t_pkey; UPDATE t SET id = 1, ts = '2013-01-05'")
    with pytest.raises(EtlError):
        pipe.load(JANUARY, FEBRUARY)
    assert threading.active_count() == before
    for database in (source18, warehouse18):
        assert (
            database.value(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test' AND datname = current_database()"
            )
            == 0
        )


def test_memory_is_flat(source18, warehouse18):
    """Promise 7: the sink sees blocks; no more than a few of them are ever in the process."""
    import tracemalloc

    pipe = simple(source18, warehouse18)
    source18.run(
        "INSERT INTO t SELECT i, '2013-01-01Z'::timestamptz + i * '1 s'::interval, repeat('x', 1000) FROM generate_series(1, 40000) AS i"
    )
    pipe.load(FEBRUARY, FEBRUARY.replace(month=3))
    tracemalloc.start()
    try:
        pipe.extract(JANUARY, FEBRUARY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * io.DEFAULT_BUFFER_SIZE * 1024 / 8


def test_the_session_says_who_it_is(source18, warehouse18):
    """pg_stat_activity shows the load's application name on both servers while it copies."""
    pipe = endless(source18, warehouse18)
    pipe.application = "etl:abc"
    stop = threading.Event()
    with in_background(lambda: pipe.extract(JANUARY, FEBRUARY, stop=stop)) as extracting:
        try:
            for database in (source18, warehouse18):
                wait_until(
                    lambda database=database: sessions(database, "etl:abc"), "a named session"
                )
        finally:
            stop.set()
    assert isinstance(extracting.exception(), Stopped)
    with pytest.raises(psycopg.errors.UndefinedTable):
        warehouse18.run("SELECT * FROM etl_staging.nothing")

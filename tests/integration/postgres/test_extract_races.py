"""What goes on at the same time as an extraction, or between two tries of it, and must not lose or double a row."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.columns import Selection, Treatment
from airflow_etl_provider.core.errors import (
    ConnectionLost,
    ContractError,
    DataError,
    Stopped,
)
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Session
from airflow_etl_provider.core.request import OnEmpty, WindowMode
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.postgres.exchange import Exchange
from airflow_etl_provider.postgres.session import connect, connect_for_copy, end_sessions
from airflow_etl_provider.postgres.snapshot import PostgresSender
from airflow_etl_provider.postgres.source import PostgresSource
from airflow_etl_provider.postgres.staging import PostgresStaging
from tests.builders import (
    FEBRUARY,
    JANUARY,
    MARCH,
    Pipeline,
    fill,
    in_background,
    simple,
    wait_until,
)

ROWS = 20_000
FAST = SettleOptions(delay=timedelta(0), margin=timedelta(0), timeout=timedelta(seconds=20))


class StopAfter:
    """Stops a load once so many of its slices are staged."""

    def __init__(self, pipe: Pipeline, count: int) -> None:
        self._pipe, self._count = pipe, count

    def is_set(self) -> bool:
        staged = sum(event == "slice staged" for event, _ in self._pipe.log.events)  # type: ignore[attr-defined]
        return staged >= self._count


def sliced(source: Any, warehouse: Any, **more: Any) -> Pipeline:
    pipe = simple(source, warehouse, options={"slice_rows": 5_000}, **more)
    fill(source, JANUARY, FEBRUARY, ROWS)
    source.run("CREATE INDEX ON t (ts)")
    source.run("VACUUM ANALYZE t")
    return pipe


def entities(source: Any, warehouse: Any, **more: Any) -> Pipeline:
    source.run("CREATE TABLE t (id int PRIMARY KEY, ts timestamptz NOT NULL DEFAULT now(), v text)")
    warehouse.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, ts timestamptz, v text)")
    return Pipeline(
        source,
        warehouse,
        kind=Kind.ENTITIES,
        keys=("id",),
        partition=None,
        settle=FAST,
        **more,
    )


def test_a_publish_of_ours_holds_the_bound_like_any_writer(warehouse18: Any) -> None:
    """Stream B reads what stream A publishes: A's open transaction is not one of our harmless extracts."""
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), v text);"
        " CREATE TABLE a.mart (id int PRIMARY KEY, at timestamptz, v text)"
    )
    pipe = Pipeline(
        warehouse18,
        warehouse18,
        stream="b",
        kind=Kind.ENTITIES,
        keys=("id",),
        partition=None,
        table=TableName("a", "t"),
        target=TableName("a", "mart"),
        cursor="at",
        mode=WindowMode.WATERMARK,
        settle=FAST,
    )
    name = "etl:0123456789ab publish dag.publish"
    with psycopg.connect(warehouse18.conninfo, application_name=name) as publishing:
        publishing.execute("INSERT INTO a.t (id, v) VALUES (1, 'published late')")
        warehouse18.run("INSERT INTO a.t (id, v) VALUES (2, 'x')")
        pipe.load()
    pipe.load()
    assert warehouse18.run("SELECT id FROM a.mart ORDER BY 1") == [(1,), (2,)]


def test_a_table_that_a_stream_publishes_into_is_settled_by_the_clock(
    source18: Any, warehouse18: Any
) -> None:
    """Defaults of its rows were drawn when they were staged, long before they became visible."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run("ALTER TABLE a.t ALTER ts SET DEFAULT now()")
    next_ = Pipeline(warehouse18, warehouse18, table=TableName("a", "t"))
    settled = next_.reader().settle(
        "ts", None, SettleOptions(), earlier=None, stop=threading.Event(), log=pipe.log
    )
    assert "loaded by a stream" in settled.evidence


def test_a_transaction_that_is_prepared_during_the_wait_is_waited_for_too(
    source18: Any, warehouse18: Any
) -> None:
    """After PREPARE nobody sees when it began: no clamp may pass it."""
    pipe = entities(source18, warehouse18, mode=WindowMode.WATERMARK)
    with source18.connect() as first, source18.connect() as second:
        first.execute("BEGIN; INSERT INTO t (id) VALUES (1)")
        first.execute("PREPARE TRANSACTION 'first parcel'")
        second.execute("BEGIN; INSERT INTO t (id) VALUES (2)")
        source18.run("INSERT INTO t (id) VALUES (3)")
        with in_background(pipe.load) as loading:
            wait_until(lambda: "first parcel" in str(pipe.log.events), "the wait for the first")  # type: ignore[attr-defined]
            second.execute("PREPARE TRANSACTION 'second parcel'")
            first.execute("COMMIT PREPARED 'first parcel'")
            wait_until(lambda: "second parcel" in str(pipe.log.events), "the wait for the second")  # type: ignore[attr-defined]
            second.execute("COMMIT PREPARED 'second parcel'")
        loading.result()
    pipe.load()
    assert pipe.rows() == pipe.source_rows()
    assert len(pipe.rows()) == 3


def test_slices_survive_a_source_that_is_lost_before_they_go_on(
    source18: Any, warehouse18: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table that was taken over is the one that the ledger knows."""
    pipe = sliced(source18, warehouse18)
    load_id = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, stop=StopAfter(pipe, 3))

    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionLost("the source went away")

    with monkeypatch.context() as patch:
        patch.setattr(PostgresSource, "open", lost)
        with pytest.raises(ConnectionLost):
            pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    pipe.log.events.clear()  # type: ignore[attr-defined]
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=3)
    assert sum(event == "slice staged" for event, _ in pipe.log.events) == 1  # type: ignore[attr-defined]
    assert pipe.left_in_staging() == {manifest.staging.name}


def test_the_window_of_the_ledger_is_the_last_tries(source18: Any, warehouse18: Any) -> None:
    """A retry that plans its window anew records it: rewinds and later loads go by that record."""
    pipe = simple(source18, warehouse18, mode=WindowMode.WATERMARK, settle=FAST)
    fill(source18, JANUARY, FEBRUARY, 100)
    load_id = str(uuid7())

    class AtOnce:
        def is_set(self) -> bool:
            return any(event == "extract started" for event, _ in pipe.log.events)  # type: ignore[attr-defined]

    with pytest.raises(Stopped):
        pipe.extract(load_id=load_id, stop=AtOnce())
    first = warehouse18.value("SELECT window_high FROM etl.loads")
    pipe.extract(load_id=load_id, try_number=2)
    (row,) = warehouse18.run("SELECT window_high, manifest -> 'window' ->> 'high' FROM etl.loads")
    assert row[0] == row[1] != first


def test_a_sliced_batch_that_is_gone_is_read_again(source18: Any, warehouse18: Any) -> None:
    pipe = sliced(source18, warehouse18)
    load_id = str(uuid7())
    lost = pipe.extract(JANUARY, FEBRUARY, load_id=load_id).staging
    warehouse18.run(f'DROP TABLE {lost.schema}."{lost.name}"')
    manifest = pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
    pipe.publish(pipe.waive(manifest))
    assert pipe.rows() == pipe.source_rows()


def test_no_personal_value_becomes_a_bound(source18: Any, warehouse18: Any) -> None:
    """Nothing else tells the rows apart, so such a table is read in one piece."""
    source18.run("CREATE TABLE t (email text PRIMARY KEY, v int)")
    source18.run(
        "INSERT INTO t SELECT 'person' || i || '@example.org', i FROM generate_series(1, 9000) i"
    )
    source18.run("VACUUM ANALYZE t")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (email text PRIMARY KEY, v int)")
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.SNAPSHOTS,
        cursor=None,
        keys=("email",),
        partition=None,
        hash_key="secret",
        selection=Selection(personal={"email": Treatment.HASH}),
        options={"shards": 3},
    )
    assert pipe.extract().slices == 1


def test_a_load_of_the_first_release_is_still_read(source18: Any, warehouse18: Any) -> None:
    """Its manifest lacks what came later; cleared tasks and batches in flight go on."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 10)
    load_id = str(uuid7())
    batch = pipe.staged(JANUARY, FEBRUARY, load_id=load_id)
    old = {
        key: value
        for key, value in batch.as_json().items()
        if key not in ("null_rows", "slices", "read_until", "source_datasets")
    } | {"version": 1, "source_dataset": ["postgres://x:1", "y.z"]}
    warehouse18.run("UPDATE etl.loads SET manifest = %s", (psycopg.types.json.Jsonb(old),))
    assert pipe.staging().state(load_id) == "validated"
    assert pipe.publish(type(batch).from_json(old)).rows_inserted == 10


@pytest.mark.parametrize("on_empty", [OnEmpty.SKIP, OnEmpty.FAIL])
def test_what_an_empty_window_means_is_not_forgotten_by_a_retry(
    source18: Any, warehouse18: Any, monkeypatch: pytest.MonkeyPatch, on_empty: OnEmpty
) -> None:
    pipe = simple(source18, warehouse18, options={"on_empty": on_empty})
    load_id = str(uuid7())

    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionLost("the warehouse restarts")

    with monkeypatch.context() as patch:
        for name in ("cover_empty", "discard"):
            patch.setattr(PostgresStaging, name, lost)
        with pytest.raises(ConnectionLost):
            pipe.extract(JANUARY, FEBRUARY, load_id=load_id)
    if on_empty is OnEmpty.FAIL:
        with pytest.raises(DataError, match="holds no row"):
            pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
        assert pipe.coverage() == []
    else:
        pipe.extract(JANUARY, FEBRUARY, load_id=load_id, try_number=2)
        assert len(pipe.coverage()) == 1


def test_a_load_that_publishes_above_the_tail_of_a_swap_stops_it(
    source18: Any, warehouse18: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch was all there was of its last partition when it was looked at, and no longer is."""
    pipe = simple(
        source18,
        warehouse18,
        mode=WindowMode.WATERMARK,
        settle=FAST,
        lookback=timedelta(minutes=1),
    )
    source18.run("INSERT INTO t VALUES (1, clock_timestamp() - interval '1 s', 'a')")
    pipe.load()
    source18.run("INSERT INTO t VALUES (2, clock_timestamp(), 'b')")
    swap = pipe.staged()
    if not swap.partitions:
        pytest.skip("the month has just begun")
    low = datetime.fromisoformat(swap.window.high or "")
    source18.run("INSERT INTO t VALUES (3, clock_timestamp(), 'c')")
    apply, done = Exchange.apply, []

    def meanwhile(self: Exchange, *args: Any, **given: Any) -> Any:
        if not done:
            done.append(True)
            other = Pipeline(source18, warehouse18, settle=FAST, store=pipe.store)
            now = datetime.now(UTC)
            wait_until(lambda: datetime.now(UTC) > now + timedelta(milliseconds=20), "the clock")
            other.load(low, now, moves=False)
        return apply(self, *args, **given)

    monkeypatch.setattr(Exchange, "apply", meanwhile)
    with pytest.raises(ContractError, match="1 rows above"):
        pipe.publish(swap)
    pipe.load()
    assert pipe.rows() == pipe.source_rows()


def test_a_batch_of_two_snapshots_counts_as_read_by_its_later_one(
    source18: Any, warehouse18: Any
) -> None:
    """A load that read between the two does not put its older version over the newer one."""
    pipe = entities(source18, warehouse18, options={"slice_rows": 5_000})
    source18.run(
        "INSERT INTO t SELECT i, timestamptz '2013-01-01' + i * interval '1 s', 'old' FROM generate_series(1, 20000) i"
    )
    source18.run("CREATE INDEX ON t (ts)")
    source18.run("VACUUM ANALYZE t")
    resumed = str(uuid7())
    with pytest.raises(Stopped):
        pipe.extract(JANUARY, MARCH, load_id=resumed, stop=StopAfter(pipe, 2))
    between = pipe.staged(JANUARY, MARCH, slice_rows=None, run_type="backfill")
    source18.run("UPDATE t SET v = 'new' WHERE id = 19999")
    pipe.publish(pipe.waive(pipe.extract(JANUARY, MARCH, load_id=resumed, try_number=2)))
    pipe.publish(between)
    assert warehouse18.value("SELECT v FROM a.t WHERE id = 19999") == "new"


def test_without_a_cursor_in_the_batch_the_later_reader_wins(
    source18: Any, warehouse18: Any
) -> None:
    """Nothing in the rows says which version is newer."""
    pipe = entities(source18, warehouse18)
    pipe.columns = ("id", "v")
    source18.run("INSERT INTO t VALUES (1, '2013-01-05', 'old')")
    slow = pipe.staged(JANUARY, MARCH, run_type="backfill")
    source18.run("UPDATE t SET v = 'new', ts = '2013-02-05'")
    pipe.load(FEBRUARY, MARCH)
    assert pipe.publish(slow).rows_stale == 1
    assert warehouse18.value("SELECT v FROM a.t") == "new"


def test_a_signal_is_served_while_the_source_counts(source18: Any, warehouse18: Any) -> None:
    """A timeout in the middle of a long count ends the statement and the wait for it (rule A5)."""
    source18.run(
        "CREATE TABLE few AS SELECT i AS id, timestamptz '2013-01-05' AS ts FROM generate_series(1, 900) i"
    )
    source18.run(
        "CREATE FUNCTION slow(timestamptz) RETURNS timestamptz LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_sleep(0.1); RETURN $1; END'"
    )
    source18.run("CREATE VIEW t AS SELECT id, slow(ts) AS ts FROM few")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int, ts timestamptz)")
    pipe = Pipeline(source18, warehouse18, partition=None)

    class Rings(Exception):
        pass

    def ring(*_: Any) -> None:
        raise Rings

    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'etl:test'"
        " AND datname = current_database() AND state = 'active'"
    )
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(Rings):
            pipe.extract(JANUARY, FEBRUARY)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wait_until(lambda: source18.value(running) == 0, "the count has ended")


def test_a_session_that_serves_somebody_else_by_now_is_left_alone(source18: Any) -> None:
    """A pooler hands the same server process on; pid and start alone do not tell."""
    with source18.connect(application_name="etl:bbbbbbbbbbbb publish other.dag") as other:
        (pid, started) = other.execute(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).fetchone()
        with connect(source18.endpoint()) as connection:
            assert end_sessions(connection, [Session("target", pid, started)]) == []
        assert other.execute("SELECT 1").fetchone() == (1,)


def test_nothing_shows_the_key_of_hashes(source18: Any) -> None:
    """Not even what a debugger or an error report prints of the session."""
    endpoint = replace(source18.endpoint(), secrets={"etl.hash_inner": "c0ffee"})
    with connect_for_copy(endpoint, read_only=True) as connection:
        sender = PostgresSender(connection=connection, statement="x")
        for thing in (endpoint, connection, sender):
            assert "c0ffee" not in repr(thing)

"""Tables that are kept aside hold no rows that they refer to, and nobody waits long for that."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from airflow_etl_provider.core.errors import LockBudgetExceeded
from airflow_etl_provider.core.load import Strategy
from airflow_etl_provider.postgres.clean import CleanOptions, clean
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import FEBRUARY, JANUARY, MARCH, fill, reader, simple
from tests.integration.postgres.test_retention import SHORT, maintained, restored
from tests.integration.postgres.test_rollback import rolled_back

RECORDED = (
    "SELECT array_agg(key ORDER BY key) FROM {} CROSS JOIN jsonb_each(rebuild -> 'foreign_keys')"
)
BOTH = ["first", "second"]


@pytest.fixture
def pipe(source18, warehouse18):
    """Rows that refer to two dimensions."""
    made = simple(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.one (v text PRIMARY KEY); CREATE TABLE a.two (v text PRIMARY KEY);"
        "INSERT INTO a.one VALUES ('x'), ('y'); INSERT INTO a.two VALUES ('x'), ('y');"
        "ALTER TABLE a.t ADD CONSTRAINT first FOREIGN KEY (v) REFERENCES a.one,"
        " ADD CONSTRAINT second FOREIGN KEY (v) REFERENCES a.two"
    )
    fill(source18, JANUARY, MARCH, 60)
    source18.run("UPDATE t SET v = 'x'")
    made.load(JANUARY, FEBRUARY)
    return made


class Reads(RecordedEvents):
    """Reads the second dimension from the moment on that *event* is logged."""

    def __init__(self, session, event):
        super().__init__()
        self.session, self.event = session, event

    def __call__(self, event, **fields):
        super().__call__(event, **fields)
        if event == self.event:
            self.session.execute("SELECT count(*) FROM a.two")


def cleaned(database, *, dry_run=False, log=None, **options):
    with connect(database.endpoint()) as connection:
        return clean(
            connection,
            CleanOptions(**options),
            stop=threading.Event(),
            log=log or RecordedEvents(),
            dry_run=dry_run,
        )


def keys(database, table):
    return [
        name
        for (name,) in database.run(
            "SELECT conname::text FROM pg_constraint WHERE contype = 'f' AND convalidated"
            " AND conrelid = %s::regclass ORDER BY 1",
            (table,),
        )
    ]


def replaced(pipe):
    """January again, with a reader of the second dimension while its old version is let go of: that, and the load."""
    pipe.source.run("UPDATE t SET v = 'y' WHERE ts < '2013-02-01Z'")
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with reader(pipe.warehouse, "SELECT 1") as session:
        load = pipe.publish(
            manifest,
            log=Reads(session, "published"),
            keep_versions=2,
            lock_budget=timedelta(milliseconds=100),
        )
    return load.partitions[0].previous, load


def retired(pipe):
    """January retired, with such a reader: where it is kept."""
    pipe.load(FEBRUARY, MARCH)
    with reader(pipe.warehouse, "SELECT 1") as session:
        log = Reads(session, "partition retired")
        done = maintained(
            pipe.warehouse, keep=timedelta(days=1), log=log, **SHORT | {"keep_detached": timedelta(days=7)}
        )  # fmt: skip
    return str(done.retired[0].kept)


def test_a_version_is_let_go_of_key_by_key(pipe, warehouse18):
    """Nothing that it refers to is locked while the next is waited for; what is dropped is recorded."""
    previous, _ = replaced(pipe)
    assert keys(warehouse18, previous) == ["second"]
    assert warehouse18.value(RECORDED.format("etl.load_partitions")) == ["first"]


def test_a_retired_partition_is_let_go_of_key_by_key(pipe, warehouse18):
    kept = retired(pipe)
    assert keys(warehouse18, kept) == ["second"]
    assert warehouse18.value(RECORDED.format("etl.retired_partitions")) == ["first"]


class TestTheJanitor:
    """What a reader held up is made up for, and what is at work is left alone."""

    def test_a_version(self, pipe, warehouse18):
        previous, load = replaced(pipe)
        log = RecordedEvents()
        assert cleaned(warehouse18, log=log).dropped == ()
        assert "foreign keys of a kept table dropped" in log.names()
        assert keys(warehouse18, previous) == []
        assert warehouse18.value(RECORDED.format("etl.load_partitions")) == BOTH
        warehouse18.run("UPDATE a.t SET v = 'y'; DELETE FROM a.two WHERE v = 'x'")
        warehouse18.run("INSERT INTO a.two VALUES ('x')")
        rolled_back(pipe, load, discard_changes=True)
        assert keys(warehouse18, "a.t_2013_01") == BOTH

    def test_a_retired_partition(self, pipe, warehouse18):
        kept = retired(pipe)
        cleaned(warehouse18)
        assert keys(warehouse18, kept) == []
        assert warehouse18.value(RECORDED.format("etl.retired_partitions")) == BOTH
        restored(warehouse18, "a.t_2013_01")
        assert keys(warehouse18, "a.t_2013_01") == BOTH
        assert pipe.rows() == pipe.source_rows()

    def test_a_reader_is_let_through_again(self, pipe, warehouse18):
        """Said, and no reason to fail; the next time it goes."""
        previous, _ = replaced(pipe)
        with reader(warehouse18, "SELECT count(*) FROM a.two"):
            log = RecordedEvents()
            cleaned(warehouse18, log=log)
            assert "foreign keys of a kept table stay" in log.names()
        cleaned(warehouse18)
        assert keys(warehouse18, previous) == []

    def test_a_reader_of_one_dimension_does_not_hold_up_the_others(self, pipe, warehouse18):
        """Who reads it all day long would keep the rows of all that come after it."""
        pipe.load(FEBRUARY, MARCH)
        done = maintained(warehouse18, keep=timedelta(days=1), log=RecordedEvents())
        kept = str(done.retired[0].kept)
        warehouse18.run(
            f"ALTER TABLE {kept} ADD CONSTRAINT first FOREIGN KEY (v) REFERENCES a.one,"
            " ADD CONSTRAINT second FOREIGN KEY (v) REFERENCES a.two"
        )
        with reader(warehouse18, "SELECT count(*) FROM a.one"):
            log = RecordedEvents()
            cleaned(warehouse18, log=log)
        assert keys(warehouse18, kept) == ["first"]
        assert "foreign keys of a kept table stay" in log.names()

    def test_before_a_table_goes(self, pipe, warehouse18):
        """A drop would lock everything that it refers to at once."""
        previous, _ = replaced(pipe)
        with reader(warehouse18, "SELECT count(*) FROM a.two"):
            (stays,) = cleaned(warehouse18, keep_versions=0).busy
        assert stays.stays == "it is in use"
        assert [str(one.table) for one in cleaned(warehouse18, keep_versions=0).dropped] == [
            previous
        ]

    def test_looking_changes_nothing(self, pipe, warehouse18):
        previous, _ = replaced(pipe)
        cleaned(warehouse18, dry_run=True)
        assert keys(warehouse18, previous) == ["second"]

    def test_not_of_a_load_that_is_not_finished(self, pipe, warehouse18):
        """It goes on with the table that is ready to be exchanged."""
        manifest = pipe.staged(JANUARY, FEBRUARY)
        with (
            reader(warehouse18, "SELECT count(*) FROM a.t"),
            pytest.raises(LockBudgetExceeded),
        ):
            pipe.publish(manifest, strategy=Strategy.SWAP, **SHORT)
        cleaned(warehouse18)
        assert keys(warehouse18, str(manifest.staging)) == BOTH

    def test_after_a_publish(self, pipe, warehouse18):
        """Where no janitor runs, the next publish into the table makes it up."""
        previous, _ = replaced(pipe)
        pipe.load(FEBRUARY, MARCH)
        assert keys(warehouse18, previous) == []

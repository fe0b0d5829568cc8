"""What a table has dropped or replaced since does not come back with a version, nor with a retired partition."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from airflow_etl_provider.core.errors import ContractError
from airflow_etl_provider.core.maintenance import MaintenanceOptions
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres import rollback as rollback_module
from airflow_etl_provider.postgres.maintenance import maintain
from airflow_etl_provider.postgres.restore import _Restore, restore
from airflow_etl_provider.postgres.session import connect
from airflow_etl_provider.testing import RecordedEvents
from tests.builders import FEBRUARY, JANUARY, MARCH, SOURCE_TABLE, Pipeline, fill
from tests.integration.postgres.test_rollback import rolled_back, twice

TARGET = """CREATE SCHEMA a; CREATE TABLE a.t (
    id bigint, ts timestamptz NOT NULL, v text NOT NULL DEFAULT 'dflt',
    CONSTRAINT told CHECK (v <> 'never'), CONSTRAINT once UNIQUE (ts, v), PRIMARY KEY (id, ts)
) PARTITION BY RANGE (ts); CREATE INDEX ix ON a.t (v)"""
TRIGGER = """CREATE FUNCTION a.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER told AFTER INSERT ON {} FOR EACH ROW EXECUTE FUNCTION a.f()"""

#: What is done to the table, and what must work in January then.
DROPPED = {
    "not null": (
        "ALTER TABLE a.t ALTER v DROP NOT NULL",
        "INSERT INTO a.t VALUES (777, '2013-01-05Z', NULL)",
    ),
    "check": (
        "ALTER TABLE a.t DROP CONSTRAINT told",
        "INSERT INTO a.t VALUES (777, '2013-01-05Z', 'never')",
    ),
    "check renamed": (
        "ALTER TABLE a.t RENAME CONSTRAINT told TO said; ALTER TABLE a.t DROP CONSTRAINT said",
        "INSERT INTO a.t VALUES (777, '2013-01-05Z', 'never')",
    ),
    "check redefined": (
        "ALTER TABLE a.t DROP CONSTRAINT told, ADD CONSTRAINT told CHECK (v <> 'ever')",
        "INSERT INTO a.t VALUES (777, '2013-01-05Z', 'never')",
    ),
    "unique": (
        "ALTER TABLE a.t DROP CONSTRAINT once",
        "INSERT INTO a.t SELECT id + 1000, ts, v FROM a.t WHERE ts < '2013-02-01Z' LIMIT 1",
    ),
    "primary key": (
        "ALTER TABLE a.t DROP CONSTRAINT t_pkey",
        "INSERT INTO a.t SELECT id, ts, v || '!' FROM a.t WHERE ts < '2013-02-01Z' LIMIT 1",
    ),
    "primary key replaced": (
        "ALTER TABLE a.t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (ts, id)",
        "SELECT",
    ),
}  # fmt: skip
CONSTRAINTS = (
    "SELECT conname::text, contype::text, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE conrelid = 'a.t_2013_01'::regclass ORDER BY 1, 2"
)
INDEXES = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'a.t_2013_01'::regclass ORDER BY 1"


@pytest.fixture
def pipe(source18, warehouse18):
    return made(source18, warehouse18)


def made(source, warehouse):
    source.run(SOURCE_TABLE)
    warehouse.run(TARGET)
    fill(source, JANUARY, MARCH, 60)
    pipe = Pipeline(source, warehouse)
    pipe.load(FEBRUARY, MARCH)
    return pipe


def retired(database):
    with connect(database.endpoint()) as connection:
        maintain(
            connection,
            TableName("a", "t"),
            MaintenanceOptions(keep=timedelta(days=1), keep_partitions=1),
            "ada",
            stop=threading.Event(),
            log=RecordedEvents(),
        )


def restored(database, *, log=None):
    with connect(database.endpoint()) as connection:
        restore(
            connection,
            TableName("a", "t_2013_01"),
            MaintenanceOptions(),
            stop=threading.Event(),
            log=log or RecordedEvents(),
        )


class TestRollback:
    @pytest.mark.parametrize("case", DROPPED)
    def test_what_was_dropped_does_not_come_back(self, source, warehouse, case):
        """The partition is as it was before the rollback; only its rows are others."""
        pipe = made(source, warehouse)
        before, load = twice(pipe)
        statements, probe = DROPPED[case]
        warehouse.run(statements)
        catalog = warehouse.run(CONSTRAINTS), warehouse.run(INDEXES)
        rolled_back(pipe, load)
        assert pipe.rows() == before
        assert (warehouse.run(CONSTRAINTS), warehouse.run(INDEXES)) == catalog
        warehouse.run(probe)

    def test_it_is_logged(self, pipe):
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t DROP CONSTRAINT told; DROP INDEX a.ix")
        log = RecordedEvents()
        rolled_back(pipe, load, log=log)
        ((_, told),) = [one for one in log.events if one[0].startswith("what the table no longer")]
        assert told["table"] == "a.t"
        assert [name.split()[0] for name in told["gone"]] == ["index", "constraint"]
        assert pipe.warehouse.run(INDEXES) == [("a.t_2013_01_once",), ("a.t_2013_01_pkey",)]

    def test_a_check_that_has_another_name(self, pipe):
        """Once, not twice."""
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t RENAME CONSTRAINT told TO said")
        catalog = pipe.warehouse.run(CONSTRAINTS)
        rolled_back(pipe, load)
        assert pipe.warehouse.run(CONSTRAINTS) == catalog

    def test_a_foreign_key(self, pipe, warehouse18):
        pipe.source.run("UPDATE t SET v = 'x'")
        warehouse18.run(
            "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim VALUES ('x'); UPDATE a.t SET v = 'x';"
            "ALTER TABLE a.t ADD CONSTRAINT dims FOREIGN KEY (v) REFERENCES a.dim"
        )
        pipe.load(JANUARY, FEBRUARY)
        load = pipe.load(JANUARY, FEBRUARY)
        warehouse18.run("ALTER TABLE a.t DROP CONSTRAINT dims")
        log = RecordedEvents()
        rolled_back(pipe, load, log=log)
        assert "a foreign key that the target no longer has was not given back" in log.names()
        warehouse18.run("INSERT INTO a.t VALUES (777, '2013-01-05Z', 'not there')")

    def test_a_trigger_that_the_table_has_now(self, pipe, warehouse18):
        """Under the name that one of the partition's own had."""
        pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(TRIGGER.format("a.t_2013_01"))
        load = pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(
            "DROP TRIGGER told ON a.t_2013_01;"
            "CREATE TRIGGER told AFTER INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.f()"
        )
        rolled_back(pipe, load)
        assert warehouse18.run(
            "SELECT tgname::text, tgparentid <> 0 FROM pg_trigger"
            " WHERE tgrelid = 'a.t_2013_01'::regclass AND NOT tgisinternal"
        ) == [("told", True)]

    def test_a_column_that_comes_at_the_last_moment(self, pipe, monkeypatch):
        """It is looked at again, and given to the version too."""
        _, load = twice(pipe)
        exchange, altered = rollback_module._Rollback._exchange, []

        def later(self, *args, **options):
            if not altered:
                altered.append(pipe.warehouse.run("ALTER TABLE a.t ADD w int DEFAULT 7"))
            return exchange(self, *args, **options)

        monkeypatch.setattr(rollback_module._Rollback, "_exchange", later)
        rolled_back(pipe, load)
        assert pipe.warehouse.run(
            "SELECT DISTINCT w FROM a.t WHERE ts < '2013-02-01Z' AND v NOT LIKE '% wrong'"
        ) == [(7,)]

    def test_a_check_of_the_partition_itself(self, pipe):
        """What it has got alone since, the version must fit, too."""
        _, load = twice(pipe)
        pipe.warehouse.run("ALTER TABLE a.t_2013_01 ADD CONSTRAINT mine CHECK (v LIKE '% wrong')")
        with pytest.raises(ContractError, match="mine"):
            rolled_back(pipe, load)
        pipe.warehouse.run(
            "ALTER TABLE a.t_2013_01 DROP CONSTRAINT mine, ADD CONSTRAINT mine CHECK (id > 0)"
        )
        rolled_back(pipe, load)
        assert ("mine", "c", "CHECK ((id > 0))") in pipe.warehouse.run(CONSTRAINTS)


class TestRestore:
    @pytest.mark.parametrize("case", DROPPED)
    def test_what_was_dropped_does_not_come_back(self, source, warehouse, case):
        pipe = made(source, warehouse)
        pipe.load(JANUARY, FEBRUARY)
        rows = pipe.rows()
        retired(warehouse)
        statements, probe = DROPPED[case]
        warehouse.run(statements)
        restored(warehouse)
        assert pipe.rows() == rows
        warehouse.run(probe)

    def test_an_index_of_its_own_stays(self, pipe, warehouse18):
        """It keeps no row out; a CHECK of its own could be one that the table has dropped, and is logged."""
        pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(
            "CREATE INDEX own ON a.t_2013_01 (lower(v)); ALTER TABLE a.t_2013_01 ADD CONSTRAINT mine CHECK (id > 0)"
        )
        retired(warehouse18)
        log = RecordedEvents()
        restored(warehouse18, log=log)
        assert ("a.own",) in warehouse18.run(INDEXES)
        ((_, told),) = [one for one in log.events if one[0].startswith("what the table no longer")]
        assert told["gone"] == ["constraint mine"]

    def test_a_trigger_that_the_table_has_now(self, pipe, warehouse18):
        pipe.load(JANUARY, FEBRUARY)
        warehouse18.run(TRIGGER.format("a.t_2013_01"))
        retired(warehouse18)
        warehouse18.run(
            "CREATE TRIGGER told AFTER INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.f()"
        )
        restored(warehouse18)

    def test_a_column_that_comes_at_the_last_moment(self, pipe, monkeypatch):
        pipe.load(JANUARY, FEBRUARY)
        retired(pipe.warehouse)
        attach, altered = _Restore._attach, []

        def later(self, place):
            if not altered:
                altered.append(pipe.warehouse.run("ALTER TABLE a.t ADD w int DEFAULT 7"))
            return attach(self, place)

        monkeypatch.setattr(_Restore, "_attach", later)
        restored(pipe.warehouse)
        assert pipe.warehouse.run("SELECT DISTINCT w FROM a.t") == [(7,)]

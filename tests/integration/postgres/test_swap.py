"""Swap: one window becomes one partition, exactly."""

from datetime import timedelta

import pytest

from airflow_etl_provider.core.errors import LockBudgetExceeded
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres.catalog import read_table
from airflow_etl_provider.postgres.leaves import read_leaves
from airflow_etl_provider.postgres.locking import in_order
from airflow_etl_provider.postgres.session import connect
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple


def test_a_month_arrives_row_by_row(source, warehouse):
    """What readers see afterwards is exactly what the source held, no more and no less."""
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 1000)
    done = pipe.load(JANUARY, FEBRUARY)
    assert (done.rows_inserted, done.already) == (1000, False)
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
def test_an_index_that_is_being_made_partition_by_partition(source18, warehouse18, strategy):
    """ON ONLY the parent first, which is not valid until all partitions have it: nothing is built under the locks."""
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, MARCH, 50)
    pipe.load(JANUARY, FEBRUARY)
    pipe.load(FEBRUARY, MARCH)
    warehouse18.run(
        "CREATE INDEX pi ON ONLY a.t (lower(v), id); CREATE INDEX january ON a.t_2013_01 (lower(v), id);"
        "ALTER INDEX a.pi ATTACH PARTITION a.january"
    )
    before = (
        "SELECT i.indexrelid::regclass::text, h.inhparent::regclass::text FROM pg_index AS i"
        " LEFT JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid WHERE i.indrelid = 'a.t_2013_01'::regclass ORDER BY 1"
    )
    indexes = warehouse18.run(before)
    # What ATTACH builds itself it names itself.
    pipe.load(JANUARY, FEBRUARY, options={"strategy": strategy})
    assert warehouse18.run(before) == indexes
    pipe.load(FEBRUARY, MARCH, options={"strategy": strategy})
    assert warehouse18.value("SELECT to_regclass('a.t_2013_02_pi') IS NOT NULL")


def test_work_that_takes_longer_than_the_budget_is_not_said_to_wait(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 50)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(
        """
        CREATE FUNCTION a.slow() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN
            IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'a.t') THEN
                PERFORM pg_sleep(3);
            END IF;
        END$$;
        CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION a.slow()
        """
    )
    manifest = pipe.staged(JANUARY, FEBRUARY)
    with pytest.raises(LockBudgetExceeded, match="took longer than lock_budget") as e:
        pipe.publish(manifest, strategy=Strategy.SWAP, lock_deadline=timedelta(seconds=0.4))
    assert "gone meanwhile" not in str(e.value)
    assert "raise lock_budget" in (e.value.remedy or "")


def test_a_default_that_is_partitioned_itself_is_not_scanned_under_the_locks(
    server, source18, warehouse18
):
    options = {"options": "-c log_min_messages=debug1"}
    pipe = simple(source18, warehouse18, warehouse_role=options)
    warehouse18.run(
        "CREATE TABLE a.other PARTITION OF a.t DEFAULT PARTITION BY RANGE (id);"
        "CREATE TABLE a.rest PARTITION OF a.other DEFAULT;"
        "INSERT INTO a.t SELECT i, '2020-01-01Z', 'x' FROM generate_series(1001, 1100) AS i"
    )
    fill(source18, JANUARY, FEBRUARY, 10)
    manifest = pipe.staged(JANUARY, FEBRUARY)
    before = len(server.log.read_text(errors="replace"))
    assert pipe.publish(manifest).strategy is Strategy.SWAP
    log = server.log.read_text(errors="replace")[before:]
    assert 'constraint for default partition "other" is implied' in log
    # Its own partition is exchanged as well, with the CHECK that it has by now.
    source18.run("INSERT INTO t VALUES (5000, '2020-01-01Z', 'late')")
    by_key = Pipeline(
        source18,
        warehouse18,
        stream="by_key",
        kind=Kind.ENTITIES,
        keys=("id", "ts"),
        mode=WindowMode.FULL,
        partition=None,
    )
    done = by_key.load(options={"strategy": Strategy.SWAP_MERGE})
    assert {part.name for part in done.partitions} == {"a.rest", "a.t_2013_01"}
    assert warehouse18.value("SELECT count(*) FROM a.t") == 111


def test_what_a_partition_that_is_partitioned_refers_to_is_among_its_locks(warehouse18):
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.dim (id bigint PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE a.dim_1 PARTITION OF a.dim DEFAULT;"
        "CREATE TABLE a.t (id bigint REFERENCES a.dim, ts timestamptz NOT NULL, v text) PARTITION BY RANGE (ts);"
        "CREATE TABLE a.jan PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z') PARTITION BY LIST (v);"
        "CREATE TABLE a.x PARTITION OF a.jan FOR VALUES IN ('x')"
    )
    with connect(warehouse18.endpoint()) as connection:
        table = read_table(connection, TableName("a", "t"), label="warehouse")
        (leaf,) = read_leaves(connection, table)
        locks = in_order(
            connection,
            [(leaf.place.parent, "ACCESS EXCLUSIVE")],
            replaced=[leaf.partition.table],
            new=[],
            dimensions_first=True,
        )
    assert [str(name) for name, _ in locks] == ["a.dim", "a.jan", "a.x"]

"""Tables that somebody else staged: publish alone, by swap and by replace."""

from __future__ import annotations

import pytest
from uuid6 import uuid7

from airflow_etl_provider.core.errors import ConfigurationError, ContractError, EtlError
from airflow_etl_provider.core.load import Kind
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.window import Interval
from tests.builders import FEBRUARY, JANUARY, MONTHLY, run_info, simple

STAGED = TableName("work", "batch")


def register(pipe, *, load_id=None, interval=True, target=None, kind=Kind.EVENTS, staged=STAGED):
    load_id = load_id or str(uuid7())
    return pipe.audits().register(
        load_id=load_id,
        run=run_info(load_id),
        stream=pipe.stream,
        kind=kind,
        staged=staged,
        target=target or pipe.target,
        target_conn_id="warehouse",
        interval=Interval(JANUARY, FEBRUARY, "data interval", moves_watermark=True)
        if interval
        else None,
        partition=MONTHLY if interval else None,
        keys=(),
        timezone="UTC",
        store="memory",
        audited_rows=None,
    )


def staged(source, warehouse, columns="id bigint, ts timestamptz, v text"):
    pipe = simple(source, warehouse)
    warehouse.run(f"CREATE SCHEMA work; CREATE TABLE work.batch ({columns})")
    return pipe


def test_a_table_staged_by_others_is_swapped_in(source, warehouse):
    """Its rows appear, itself stays where its maker put it, and the window is covered."""
    pipe = staged(source, warehouse)
    warehouse.run("INSERT INTO work.batch VALUES (1, '2013-01-01', 'a'), (2, '2013-01-31', 'b')")
    done = pipe.publish(pipe.waive(register(pipe)))
    assert done.rows_inserted == 2
    assert warehouse.run("SELECT id FROM a.t_2013_01 ORDER BY 1") == [(1,), (2,)]
    assert warehouse.value("SELECT count(*) FROM work.batch") == 2
    assert pipe.position() == "2013-02-01 00:00:00+00"
    assert pipe.left_in_staging() == set()


@pytest.mark.parametrize("report", [None, {"verdict": "passed"}])
def test_a_view_is_published_like_a_table(source18, warehouse18, report):
    """It has no rows of its own that could be told from others."""
    pipe = staged(source18, warehouse18)
    warehouse18.run(
        "INSERT INTO work.batch VALUES (1, '2013-01-01', 'a'); CREATE VIEW work.seen AS SELECT * FROM work.batch"
    )
    manifest = register(pipe, staged=TableName("work", "seen"))
    manifest = pipe.waive(manifest) if report is None else pipe.audits().accept(manifest, report)
    assert pipe.publish(manifest).rows_inserted == 1
    assert pipe.rows() == [('(1,"2013-01-01 00:00:00+00",a)',)]


def test_a_table_among_staged_batches_is_refused(source18, warehouse18):
    """It would be dropped after the publish, like every batch."""
    pipe = staged(source18, warehouse18)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run("ALTER TABLE work.batch SET SCHEMA etl_staging")
    with pytest.raises(ConfigurationError, match="dropped once they are published") as caught:
        register(pipe, staged=TableName("etl_staging", "batch"))
    assert "ALTER TABLE etl_staging.batch SET SCHEMA" in str(caught.value)
    assert pipe.left_in_staging() == {"batch"}


def test_registering_twice_is_one_load(source18, warehouse18):
    pipe = staged(source18, warehouse18)
    load_id = str(uuid7())
    assert register(pipe, load_id=load_id) == register(pipe, load_id=load_id)


def test_rows_outside_the_window_are_refused(source18, warehouse18):
    """A batch with a row of another month is not published without it."""
    pipe = staged(source18, warehouse18)
    warehouse18.run("INSERT INTO work.batch VALUES (1, '2013-01-01', 'a'), (2, '2013-02-01', 'b')")
    with pytest.raises(ContractError):
        pipe.publish(pipe.waive(register(pipe)))
    assert pipe.rows() == []


def test_a_row_without_the_partition_column_is_refused(source18, warehouse18):
    pipe = staged(source18, warehouse18)
    warehouse18.run("INSERT INTO work.batch VALUES (1, '2013-01-01', 'a'), (2, NULL, 'b')")
    with pytest.raises(EtlError):
        pipe.publish(pipe.waive(register(pipe)))
    assert pipe.rows() == []


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("id double precision, ts timestamptz, v text", "7, '2013-01-05', 'a'"),
        ("id bigint, ts timestamp, v text", "7, '2013-01-05', 'a'"),
        ("id timestamp, ts timestamptz, v text", "'2013-01-01', '2013-01-05', 'a'"),
        ("id bigint, ts timestamptz, v bytea", "7, '2013-01-05', '\\x41'"),
    ],
)
def test_columns_of_other_types_are_refused_or_right(source18, warehouse18, columns, values):
    """Bytes of one type are never taken for another type's: refused by name, or equal to what SQL would store."""
    pipe = staged(source18, warehouse18, columns)
    warehouse18.run(f"INSERT INTO work.batch VALUES ({values})")
    try:
        pipe.publish(pipe.waive(register(pipe)))
    except EtlError as error:
        assert isinstance(error, ContractError), error  # noqa: PT017
    else:
        assert warehouse18.run("SELECT id::text, ts::text, v::text FROM a.t") == warehouse18.run(
            "SELECT id::text, (ts AT TIME ZONE 'UTC' AT TIME ZONE 'UTC')::timestamptz::text, v::text FROM work.batch"
        )


def test_a_snapshot_staged_by_others_is_applied(source18, warehouse18):
    pipe = staged(source18, warehouse18, "id int, v text")
    warehouse18.run(
        "CREATE TABLE a.plain (id int PRIMARY KEY, v text); INSERT INTO a.plain VALUES (1, 'old'), (2, 'gone')"
    )
    warehouse18.run("INSERT INTO work.batch VALUES (1, 'new'), (3, 'more')")
    manifest = register(pipe, interval=False, target=TableName("a", "plain"), kind=Kind.SNAPSHOTS)
    done = pipe.publish(pipe.waive(manifest))
    assert (done.rows_inserted, done.rows_updated, done.rows_deleted) == (1, 1, 1)
    assert warehouse18.run("SELECT id, v FROM a.plain ORDER BY 1") == [(1, "new"), (3, "more")]

"""What the server refuses while a batch is published: who is to do what, and no row's content."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest

from airflow_etl_provider.core.errors import CatalogError, DataError, EtlError, TerminalError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from airflow_etl_provider.postgres.errors import translate
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, simple

COLUMNS = "id int, v text"
SECRET = "us-secret"
TRIGGER = (
    "CREATE OR REPLACE FUNCTION a.note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {}; RETURN NEW; END$$;"
    "DROP TRIGGER IF EXISTS note ON a.t;"
    "CREATE TRIGGER note BEFORE INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.note()"
)


def entities(source, warehouse, target=f"CREATE TABLE a.t ({COLUMNS})") -> Pipeline:
    """``public.t``, with one row, by key into ``a.t``."""
    source.run(f"CREATE TABLE t ({COLUMNS}); INSERT INTO t VALUES (1, '{SECRET}')")
    warehouse.run(f"CREATE SCHEMA a; {target}")
    return Pipeline(
        source,
        warehouse,
        kind=Kind.ENTITIES,
        keys=("id",),
        cursor=None,
        mode=WindowMode.FULL,
        partition=None,
    )


def refused(pipe: Pipeline, kind: type[EtlError], match: str, **options) -> str:
    """What to do when a load of *pipe* is refused."""
    with pytest.raises(kind, match=match) as caught:
        pipe.load(options=options)
    assert type(caught.value) is kind
    assert SECRET not in str(caught.value)
    return caught.value.remedy or ""


@pytest.mark.parametrize(
    ("body", "kind", "match"),
    [
        ("INSERT INTO a.gone VALUES (NEW.v)", CatalogError, '"a.gone" does not exist'),
        ("INSERT INTO a.log (gone) VALUES (NEW.v)", CatalogError, 'column "gone"'),
        ("INSERT INTO a.log SELECT true", CatalogError, "42804"),
        ("CREATE TABLE a.log (x int)", CatalogError, "42P07"),
        ("EXECUTE format('INSERT INTO a.gone VALUES (%L)', NEW.v)", CatalogError, "42P01"),
        ("PERFORM NEW.v::int", DataError, "22P02"),
        ("RAISE 'bad: %', NEW.v", TerminalError, "P0001"),
        ("RAISE 'bad: %', NEW.v USING ERRCODE = 'check_violation'", DataError, "23514"),
        ("RAISE 'bad: %', NEW.v USING ERRCODE = 'undefined_table'", CatalogError, "42P01"),
    ],
)  # fmt: skip
def test_what_a_function_of_the_target_does_wrong(source18, warehouse18, body, kind, match):
    """It fails every try, and is neither a race between two tries nor a table that was altered."""
    pipe = entities(source18, warehouse18)
    warehouse18.run("CREATE TABLE a.log (x int)")
    warehouse18.run(TRIGGER.format(body))
    remedy = refused(pipe, kind, f"(?s)in function a.note: .*{match}")
    assert "look into that function" in remedy


def test_a_function_in_a_default(source18, warehouse18):
    pipe = entities(source18, warehouse18)
    warehouse18.run(
        "SET check_function_bodies = off;"
        "CREATE FUNCTION a.next() RETURNS int LANGUAGE sql AS 'SELECT x FROM a.gone';"
        "ALTER TABLE a.t ADD COLUMN n int; ALTER TABLE a.t ALTER n SET DEFAULT a.next()"
    )
    assert "look into that function" in refused(pipe, CatalogError, "in function next: ")


def test_a_published_table_without_an_identity(source, warehouse):
    pipe = entities(source, warehouse)
    pipe.load()
    warehouse.run("CREATE PUBLICATION changes FOR TABLE a.t")
    source.run("UPDATE t SET v = v || '!'")
    remedy = refused(pipe, CatalogError, 'table "t" because it does not have a replica identity')
    assert "ALTER TABLE ... REPLICA IDENTITY" in remedy


def test_rows_without_a_partition(source, warehouse):
    pipe = entities(source, warehouse, f"CREATE TABLE a.t ({COLUMNS}) PARTITION BY RANGE (id)")
    remedy = refused(pipe, DataError, 'no partition of relation "t"')
    assert "DEFAULT partition" in remedy


def test_a_check_of_the_target(source18, warehouse18):
    pipe = entities(source18, warehouse18, f"CREATE TABLE a.t ({COLUMNS}, CHECK (id > 5))")
    remedy = refused(pipe, DataError, 'check constraint "t_id_check"')
    assert "partition" not in remedy


def test_rows_that_refer_to_none(source18, warehouse18):
    pipe = entities(
        source18,
        warehouse18,
        f"CREATE TABLE a.other (id int PRIMARY KEY); CREATE TABLE a.t ({COLUMNS}, FOREIGN KEY (id) REFERENCES a.other)",
    )
    remedy = refused(pipe, DataError, 'foreign key constraint "t_id_fkey"')
    assert "load the rows that are referred to first" in remedy


def test_rows_that_others_refer_to(source18, warehouse18):
    pipe = entities(source18, warehouse18, f"CREATE TABLE a.t ({COLUMNS}, PRIMARY KEY (id))")
    pipe.kind = Kind.SNAPSHOTS
    pipe.load()
    warehouse18.run("CREATE TABLE a.child (id int REFERENCES a.t); INSERT INTO a.child VALUES (1)")
    source18.run(f"TRUNCATE t; INSERT INTO t VALUES (2, '{SECRET}')")
    remedy = refused(
        pipe,
        DataError,
        'foreign key constraint "child_id_fkey" on table "child"',
        strategy=Strategy.REPLACE,
        max_shrink=1.0,
    )
    assert "ON DELETE" in remedy


def test_a_key_of_the_target_that_is_not_the_batch_s(source18, warehouse18):
    pipe = entities(source18, warehouse18, f"CREATE TABLE a.t ({COLUMNS}, UNIQUE (v))")
    source18.run(f"INSERT INTO t VALUES (2, '{SECRET}')")
    remedy = refused(pipe, DataError, 'unique constraint "t_v_key"')
    assert "keys" in remedy


def test_a_foreign_table_that_takes_no_rows(source, warehouse):
    pipe = entities(source, warehouse, f"CREATE TABLE a.t ({COLUMNS}) PARTITION BY RANGE (id)")
    if not warehouse.run("SELECT FROM pg_available_extensions WHERE name = 'file_fdw'"):
        pytest.skip("file_fdw is not installed")
    warehouse.run(
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE a.cold PARTITION OF a.t FOR VALUES FROM (0) TO (9) SERVER files"
        " OPTIONS (filename '/nowhere')"
    )
    try:
        assert "leave them out" in refused(pipe, CatalogError, "foreign table")
    finally:
        warehouse.run("DROP EXTENSION file_fdw CASCADE")


def test_a_value_does_not_pass_for_a_function(warehouse):
    """The context of COPY shows it as it is, with its line breaks."""
    warehouse.run("CREATE TABLE public.n (id int)")
    with (
        warehouse.connect() as connection,
        pytest.raises(psycopg.Error) as caught,
        connection.cursor().copy("COPY public.n FROM STDIN") as copy,
    ):
        copy.write("x\\nPL/pgSQL function s3cret(\n")
    error = translate(caught.value, "copying")
    assert error.function is None
    assert "s3cret" not in str(error)


def doubles(source, warehouse, **changes) -> Pipeline:
    pipe = simple(source, warehouse, **changes)
    warehouse.run('ALTER TABLE a.t RENAME CONSTRAINT t_pkey TO "The Key"')
    source.run("ALTER TABLE t DROP CONSTRAINT t_pkey")
    source.run(f"INSERT INTO t VALUES (1, '2013-01-02Z', 'a'), (1, '2013-01-02Z', '{SECRET}')")
    return pipe


@pytest.mark.parametrize("strategy", [Strategy.SWAP, Strategy.SWAP_MERGE])
@pytest.mark.parametrize("end", [FEBRUARY, MARCH])
def test_a_key_that_stands_double_in_the_batch(source, warehouse, strategy, end):
    """It is called as the target calls it, not as the index is that was to become a partition's."""
    pipe = doubles(source, warehouse)
    with pytest.raises(DataError) as caught:
        pipe.load(JANUARY, end, options={"strategy": strategy})
    said = caught.value.what
    assert 'constraint "The Key" of a.t, PRIMARY KEY (id, ts) (23505)' in said
    assert "a.t_2013_01" in said
    assert "double in the batch" in said
    assert SECRET not in str(caught.value)
    assert "keys=['id', 'ts']" in caught.value.remedy
    assert "source" in caught.value.remedy
    assert caught.value.sqlstate == "23505"


def test_a_key_of_the_batch_that_a_row_has_which_stays(source18, warehouse18):
    pipe = doubles(source18, warehouse18)
    warehouse18.run(
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
        'CREATE UNIQUE INDEX "Its own" ON a.t_2013_01 (v)'
    )
    source18.run("DELETE FROM t WHERE v = 'a'")
    warehouse18.run(f"INSERT INTO a.t VALUES (9, '2013-01-30Z', '{SECRET}')")
    with pytest.raises(DataError) as caught:
        pipe.load(
            JANUARY, datetime(2013, 1, 20, tzinfo=UTC), options={"strategy": Strategy.SWAP_MERGE}
        )
    assert 'unique index "Its own" of a.t_2013_01, USING btree (v)' in caught.value.what
    assert "meet rows of the target that stay" in caught.value.what
    assert "keys=['v']" in caught.value.remedy
    assert SECRET not in str(caught.value)

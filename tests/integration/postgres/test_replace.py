"""Replace: afterwards the table holds exactly the rows of the batch, and only differences were written."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from airflow_etl_provider.core.errors import (
    CatalogError,
    ConfigurationError,
    DataError,
    ShrinkBrake,
)
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill


def snapshots(source, warehouse, columns, *, target_columns=None, keys=(), **changes):
    source.run(f"CREATE TABLE t ({columns})")
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t ({target_columns or columns})")
    return Pipeline(
        source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None, keys=keys, **changes
    )


def counts(done):
    return done.rows_inserted, done.rows_updated, done.rows_deleted, done.rows_unchanged


def versions(database):
    """Each row of the target as the server stores it: place and writing transaction."""
    return set(database.run("SELECT ctid::text, xmin::text, id FROM a.t"))


def test_differences_are_counted_and_the_rest_is_not_written(source, warehouse):
    """Inserted, updated, deleted, unchanged: each row is one of them, unchanged rows keep their version."""
    pipe = snapshots(source, warehouse, "id int PRIMARY KEY, v text")
    source.run("INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 10) AS i")
    assert counts(pipe.load()) == (10, 0, 0, 0)
    before = versions(warehouse)
    source.run(
        "DELETE FROM t WHERE id <= 2; UPDATE t SET v = 'x' WHERE id IN (3, 4, 5); INSERT INTO t VALUES (11, NULL)"
    )
    assert counts(pipe.load()) == (1, 3, 2, 5)
    assert pipe.rows() == pipe.source_rows()
    assert len(versions(warehouse) - before) == 4
    before = versions(warehouse)
    again = pipe.load()
    assert counts(again) == (0, 0, 0, 9)
    assert not again.changed
    assert versions(warehouse) == before
    assert pipe.left_in_staging() == set()


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("numeric", "1.0", "1.00"),
        ("interval", "1 day", "24 hours"),
        ("double precision", "0", "-0"),
        ("jsonb", "1.0", "1.00"),
        ("json", '{"a":1}', '{"a": 1}'),
        ("timestamptz[]", "{NULL}", "{}"),
        ("text", "", None),
        ("point", "(0,0)", "(-0,0)"),
        ("character varying", "a", "a "),
    ],
)
@pytest.mark.parametrize("keyed", [True, False])
def test_rows_are_compared_by_image(source18, warehouse18, kind, before, after, keyed):
    """What = calls equal but a reader can tell apart is a change."""
    pipe = snapshots(source18, warehouse18, f"id int {'PRIMARY KEY' if keyed else ''}, v {kind}")
    source18.run("INSERT INTO t VALUES (1, %s)", (before,))
    pipe.load()
    source18.run("UPDATE t SET v = %s", (after,))
    done = pipe.load()
    assert counts(done) == ((0, 1, 0, 0) if keyed else (1, 0, 1, 0))
    assert pipe.rows() == pipe.source_rows()


def test_a_collation_that_ignores_case_does_not_hide_a_change(source, warehouse):
    """Nondeterministic collations compare equal; the bytes differ."""
    try:
        warehouse.run(
            "CREATE COLLATION public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without ICU")
    pipe = snapshots(
        source,
        warehouse,
        "id int PRIMARY KEY, v text",
        target_columns="id int PRIMARY KEY, v text COLLATE public.ci",
    )
    source.run("INSERT INTO t VALUES (1, 'a')")
    pipe.load()
    source.run("UPDATE t SET v = 'A'")
    assert counts(pipe.load()) == (0, 1, 0, 0)
    assert pipe.rows() == pipe.source_rows()


def test_rows_without_a_key_are_a_multiset(source, warehouse):
    """Duplicates count: as many copies as the source has, no more written than needed."""
    pipe = snapshots(source, warehouse, "a int, b text")
    source.run("INSERT INTO t VALUES (1, 'x'), (1, 'x'), (1, 'x'), (2, NULL), (2, NULL), (3, '')")
    assert counts(pipe.load()) == (6, 0, 0, 0)
    source.run(
        "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE a = 1);"
        "INSERT INTO t VALUES (2, NULL), (4, 'n')"
    )
    assert counts(pipe.load()) == (2, 0, 1, 5)
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("row", ["(1, 'b')", "(NULL, 'b')"])
def test_keys_that_are_null_or_stand_twice_are_refused(source18, warehouse18, row):
    """A key must tell rows apart; the error counts and shows no value, and nothing is changed."""
    pipe = snapshots(source18, warehouse18, "id int, v text", keys=("id",))
    source18.run(f"INSERT INTO t VALUES (1, 'a'), {row}")
    with pytest.raises(DataError, match=r"\(id\)"):
        pipe.load()
    assert pipe.rows() == []


def test_keys_that_stand_twice_in_the_target_do_not_survive(source18, warehouse18):
    """The table holds exactly the batch's rows afterwards, also if it held a key twice before."""
    pipe = snapshots(source18, warehouse18, "id int, v text", keys=("id",))
    source18.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    warehouse18.run("INSERT INTO a.t VALUES (1, 'a'), (1, 'a'), (1, 'old'), (NULL, 'x'), (3, 'c')")
    pipe.load(options={"max_shrink": 1.0})
    assert pipe.rows() == pipe.source_rows()


def test_an_empty_source_is_braked(source, warehouse):
    """Nothing is deleted by an empty source unless told so; told so, it is."""
    pipe = snapshots(source, warehouse, "id int PRIMARY KEY, v text")
    source.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    pipe.load()
    source.run("DELETE FROM t")
    manifest = pipe.staged()
    with pytest.raises(ShrinkBrake, match="2 of 2 rows"):
        pipe.publish(manifest)
    assert len(pipe.rows()) == 2
    assert pipe.state(manifest.load_id) == "validated"
    assert counts(pipe.publish(manifest, max_shrink=1.0)) == (0, 0, 2, 0)


def test_an_empty_source_into_an_empty_table_is_a_success(source18, warehouse18):
    pipe = snapshots(source18, warehouse18, "id int PRIMARY KEY, v text")
    assert counts(pipe.load()) == (0, 0, 0, 0)


def test_keys_that_swap_their_unique_values(source18, warehouse18):
    """Values of a second unique column may change places between rows."""
    pipe = snapshots(source18, warehouse18, "id int PRIMARY KEY, code text UNIQUE")
    source18.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')")
    pipe.load()
    source18.run("DELETE FROM t WHERE id IN (1, 2, 3)")
    source18.run("INSERT INTO t VALUES (1, 'b'), (2, 'a'), (5, 'c')")
    pipe.load()
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("identity", ["ALWAYS", "BY DEFAULT"])
@pytest.mark.parametrize("key", ["id", "code"])
def test_identity_columns_take_the_source_value(source18, warehouse18, identity, key):
    """Whether the identity is the key or not, the target shows what the source shows."""
    pipe = snapshots(
        source18,
        warehouse18,
        "id int, code text, v text",
        target_columns=f"id int GENERATED {identity} AS IDENTITY, code text, v text",
        keys=(key,),
    )
    source18.run("INSERT INTO t VALUES (70, 'a', '1'), (80, 'b', '2')")
    pipe.load()
    assert pipe.rows() == pipe.source_rows()
    source18.run("UPDATE t SET v = '3' WHERE id = 70")
    source18.run("UPDATE t SET id = 81, v = '4' WHERE id = 80")
    pipe.load()
    assert pipe.rows() == pipe.source_rows()


def test_generated_columns_are_computed_by_the_target(source, warehouse):
    """The source's value of a generated column is left out; the target computes its own."""
    pipe = snapshots(
        source, warehouse, "id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED"
    )
    source.run("INSERT INTO t VALUES (1, 1), (2, 2)")
    pipe.load()
    source.run("UPDATE t SET n = 5 WHERE id = 1")
    assert counts(pipe.load()) == (0, 1, 0, 1)
    assert pipe.rows() == pipe.source_rows()


def test_columns_only_the_target_has_keep_their_values(source18, warehouse18):
    """Replace writes what the batch holds; a column of the warehouse's own is not reset."""
    pipe = snapshots(
        source18,
        warehouse18,
        "id int PRIMARY KEY, v text",
        target_columns="own text DEFAULT 'new', v text, id int PRIMARY KEY",
    )
    source18.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    pipe.load()
    warehouse18.run("UPDATE a.t SET own = 'kept'")
    source18.run("UPDATE t SET v = 'c' WHERE id = 1; INSERT INTO t VALUES (3, 'd')")
    assert counts(pipe.load()) == (1, 1, 0, 1)
    assert warehouse18.run("SELECT id, v, own FROM a.t ORDER BY id") == [
        (1, "c", "kept"),
        (2, "b", "kept"),
        (3, "d", "new"),
    ]


def test_triggers_of_the_target_work_as_for_everybody(source18, warehouse18):
    """A trigger that names its audit table without a schema finds it: sessions keep the user's search path."""
    pipe = snapshots(source18, warehouse18, "id int PRIMARY KEY, v text")
    warehouse18.run("CREATE TABLE public.history (id int)")
    warehouse18.run(
        "CREATE FUNCTION a.remember() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO history VALUES (NEW.id); RETURN NEW; END $$"
    )
    warehouse18.run(
        "CREATE TRIGGER r AFTER INSERT ON a.t FOR EACH ROW EXECUTE FUNCTION a.remember()"
    )
    source18.run("INSERT INTO t VALUES (1, 'a')")
    pipe.load()
    assert warehouse18.run("SELECT id FROM public.history") == [(1,)]


def test_an_error_of_the_middle_leaves_the_table_as_it_was(source18, warehouse18):
    """All or nothing: a CHECK that fails on the last row undoes the deletes and updates before it."""
    pipe = snapshots(
        source18,
        warehouse18,
        "id int PRIMARY KEY, v text",
        target_columns="id int PRIMARY KEY, v text CHECK (v <> 'topsecret')",
    )
    source18.run("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    pipe.load()
    before = pipe.picture()
    source18.run("DELETE FROM t WHERE id = 1; UPDATE t SET v = 'x' WHERE id = 2")
    source18.run("INSERT INTO t VALUES (4, 'topsecret')")
    with pytest.raises(DataError) as raised:
        pipe.load()
    assert "topsecret" not in str(raised.value)
    assert "t_v_check" in str(raised.value)
    assert pipe.picture() == before


def test_children_by_inheritance_are_not_touched(source18, warehouse18):
    """Rows of a table that inherits from the target are not the target's."""
    pipe = snapshots(source18, warehouse18, "a int, b text")
    warehouse18.run("CREATE TABLE a.child () INHERITS (a.t)")
    source18.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    pipe.load()
    warehouse18.run("INSERT INTO a.child VALUES (7, 'mine'), (8, 'mine')")
    source18.run("DELETE FROM t WHERE a = 1")
    pipe.load(options={"max_shrink": 1.0})
    assert warehouse18.run("SELECT a FROM ONLY a.t") == [(2,)]
    assert warehouse18.run("SELECT a FROM a.child ORDER BY 1") == [(7,), (8,)]


@pytest.mark.parametrize("kind", ["partitioned", "view", "materialized view"])
def test_what_is_no_plain_table_is_refused(source18, warehouse18, kind):
    """The kind is known before any row moves; the target stays as it was."""
    source18.run(
        "CREATE TABLE t (id int PRIMARY KEY, ts timestamptz); INSERT INTO t VALUES (1, '2013-01-01')"
    )
    warehouse18.run("CREATE SCHEMA a")
    warehouse18.run(
        {
            "partitioned": "CREATE TABLE a.t (id int, ts timestamptz) PARTITION BY RANGE (ts)",
            "view": "CREATE VIEW a.t AS SELECT 1 AS id, now() AS ts",
            "materialized view": "CREATE MATERIALIZED VIEW a.t AS SELECT 1 AS id, now() AS ts",
        }[kind]
    )
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    with pytest.raises(CatalogError, match=r"a\.t") as refused:
        pipe.load(options={"strategy": Strategy.REPLACE})
    assert kind != "partitioned" or "strategy='delete_insert'" in (refused.value.remedy or "")


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("kind", [Kind.EVENTS, Kind.SNAPSHOTS])
@pytest.mark.parametrize("how", ["RANGE (ts)", "LIST (v)"])
def test_a_partitioned_table_becomes_what_was_read(source, warehouse, how, kind, keyed):
    """``auto`` knows how: what is gone from the source goes, and an emptied source is braked."""
    columns = "id bigint, ts timestamptz NOT NULL, v text"
    source.run(f"CREATE TABLE t ({columns})")
    by_range = how.startswith("RANGE")
    month = "FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z')"
    one = "FOR VALUES IN ('row 1')"
    key = f", PRIMARY KEY (id, {'ts' if by_range else 'v'})" if keyed else ""
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t ({columns}{key}) PARTITION BY {how};"
        f"CREATE TABLE a.p PARTITION OF a.t {month if by_range else one};"
        "CREATE TABLE a.rest PARTITION OF a.t DEFAULT"
    )
    pipe = Pipeline(
        source,
        warehouse,
        kind=kind,
        cursor="ts" if kind is Kind.EVENTS else None,
        mode=WindowMode.FULL,
        partition=None,
        keys=("id",) if keyed else (),
    )
    fill(source, JANUARY, MARCH, 40)
    if not keyed:
        source.run("INSERT INTO t SELECT * FROM t WHERE id = 3")
    assert pipe.load().strategy is Strategy.DELETE_INSERT
    assert pipe.rows() == pipe.source_rows()
    source.run("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET v = 'row 1' WHERE id = 4")
    for _ in range(2):
        assert pipe.load().strategy is Strategy.DELETE_INSERT
        assert pipe.rows() == pipe.source_rows()
    source.run("DELETE FROM t WHERE id > 4")
    before = pipe.picture()
    with pytest.raises(ShrinkBrake):
        pipe.load()
    assert pipe.picture() == before
    pipe.load(options={"max_shrink": 1.0})
    assert pipe.rows() == pipe.source_rows()


def test_a_large_batch_with_keys_is_fast_enough_to_finish(source18, warehouse18):
    """Comparing is a join, not a loop over rows: 100,000 rows against 100,000 rows end in this test's time."""
    pipe = snapshots(source18, warehouse18, "a int, b text")
    source18.run("INSERT INTO t SELECT i / 2, 'v' FROM generate_series(1, 100000) AS i")
    pipe.load()
    source18.run("UPDATE t SET b = 'w' WHERE a % 10 = 0")
    done = pipe.load()
    assert done.rows_inserted == done.rows_deleted == 10_001 or done.rows_inserted == 10_000
    assert warehouse18.value("SELECT count(*) FROM a.t") == 100_000


def test_hostile_names_of_a_plain_table(source18, warehouse18):
    """Names with quotes, percents, braces, newlines and emoji are only names."""
    columns = [
        'a"b',
        "100%",
        "%s%(x)s",
        "{}",
        "line\nbreak",
        "select",
        "etl_image",
        "copies",
        "t",
        "s",
        "👩",
        "Ä" * 31,
    ]
    source18.run('CREATE SCHEMA "Sch%s ""ma"')
    warehouse18.run('CREATE SCHEMA "from {}"')
    defined = sql.SQL(", ").join(
        sql.SQL("{} text").format(sql.Identifier(column)) for column in columns
    )
    from airflow_etl_provider.core.names import TableName

    one = TableName('Sch%s "ma', 'tab\'le\n{x} "👩" %(y)s')
    two = TableName("from {}", "select")
    source18.run(
        sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(one.schema, one.name), defined)
    )
    warehouse18.run(
        sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(two.schema, two.name), defined)
    )
    for keys in (("100%", 'a"b'), ()):
        pipe = Pipeline(
            source18,
            warehouse18,
            stream="s",
            kind=Kind.SNAPSHOTS,
            table=one,
            target=two,
            cursor=None,
            partition=None,
            keys=keys,
        )
        for version in ("x", "y"):
            source18.run(sql.SQL("DELETE FROM {}").format(sql.Identifier(one.schema, one.name)))
            source18.run(
                sql.SQL("INSERT INTO {} VALUES ({})").format(
                    sql.Identifier(one.schema, one.name),
                    sql.SQL(", ").join(sql.Literal(f"{version}{c}%s") for c in columns),
                )
            )
            pipe.load(options={"max_shrink": 1.0})
            assert pipe.rows() == pipe.source_rows()


def test_a_window_of_a_snapshot_never_replaces_the_whole_table(source18, warehouse18):
    """Promise 4: rows outside the window were not read, so nobody may take them away."""
    source18.run("CREATE TABLE t (id int PRIMARY KEY, ts timestamptz)")
    warehouse18.run("CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, ts timestamptz)")
    source18.run("INSERT INTO t VALUES (1, '2013-01-05'), (2, '2013-02-05')")
    warehouse18.run("INSERT INTO a.t VALUES (1, '2013-01-05'), (2, '2013-02-05')")
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, partition=None)
    with pytest.raises(ConfigurationError):
        pipe.load(JANUARY, FEBRUARY)
    assert pipe.rows() == pipe.source_rows()

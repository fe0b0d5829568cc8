"""Tables that others refer to by foreign key: a load that brings a row again does not take along what refers to it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_etl_provider.core.errors import CatalogError, DataError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from tests.builders import FEBRUARY, JANUARY, Pipeline, fill, simple

CHILD = (
    "CREATE TABLE a.child (id bigint, ts timestamptz, FOREIGN KEY (id, ts) REFERENCES a.t{});"
    "INSERT INTO a.child SELECT id, ts FROM a.t"
)


def children(pipe: Pipeline) -> list[Any]:
    return [n for (n,) in pipe.warehouse.run("SELECT id FROM a.child ORDER BY id")]


@pytest.mark.parametrize("action", ["", " ON DELETE CASCADE", " ON DELETE SET NULL"])
def test_a_window_that_is_loaded_again(source, warehouse, action):
    pipe = simple(source, warehouse)
    fill(source, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    warehouse.run(CHILD.format(action))
    source.run("UPDATE t SET v = 'other' WHERE id = 2")
    fill(source, JANUARY, FEBRUARY - timedelta(days=1), 1, first=9)
    again = pipe.load(JANUARY, FEBRUARY)
    assert again.strategy is Strategy.DELETE_INSERT
    assert (again.rows_inserted, again.rows_updated, again.rows_deleted) == (1, 1, 0)
    assert again.rows_unchanged == 2
    assert pipe.rows() == pipe.source_rows()
    assert children(pipe) == [1, 2, 3]


def test_a_key_that_stands_twice_in_the_batch_is_refused(source, warehouse):
    """By deleting and inserting the key of the table would say so: no one of the two is picked in silence."""
    source.run("CREATE TABLE t (id bigint, ts timestamptz NOT NULL, v text)")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text)"
    )
    pipe = Pipeline(source, warehouse, partition=None)
    fill(source, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    warehouse.run(
        "CREATE TABLE a.child (id bigint REFERENCES a.t); INSERT INTO a.child SELECT id FROM a.t"
    )
    source.run("INSERT INTO t VALUES (1, '2013-01-05Z', 'another')")
    before = pipe.picture()
    with pytest.raises(DataError, match=r"1 keys \(id\) stand more than once"):
        pipe.load(JANUARY, FEBRUARY)
    assert pipe.picture() == before


def test_a_deferred_key_is_deleted_and_inserted_again(source18, warehouse18):
    """Nothing follows, and whatever refers to a row finds it again by the end."""
    source18.run("CREATE TABLE t (id bigint, ts timestamptz NOT NULL, v text)")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (own int DEFAULT 1 UNIQUE, id bigint, ts timestamptz, v text)"
    )
    pipe = Pipeline(source18, warehouse18, partition=None)
    fill(source18, JANUARY, FEBRUARY, 1)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(
        "CREATE TABLE a.child (own int REFERENCES a.t (own) DEFERRABLE INITIALLY DEFERRED); INSERT INTO a.child VALUES (1)"
    )
    source18.run("UPDATE t SET v = 'b'")
    done = pipe.load(JANUARY, FEBRUARY)
    assert (done.rows_deleted, done.rows_inserted) == (1, 1)


def test_a_row_that_is_gone_takes_along_what_refers_to_it(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(CHILD.format(" ON DELETE CASCADE"))
    source18.run("DELETE FROM t WHERE id = 2")
    assert pipe.load(JANUARY, FEBRUARY).rows_deleted == 1
    assert pipe.rows() == pipe.source_rows()
    assert children(pipe) == [1, 3]


def test_one_that_may_not_go_says_what_refers_to_it(source18, warehouse18):
    pipe = simple(source18, warehouse18)
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(CHILD.format(""))
    source18.run("DELETE FROM t WHERE id = 2")
    before = pipe.picture()
    with pytest.raises(DataError, match=r"a\.child|\"child\""):
        pipe.load(JANUARY, FEBRUARY)
    assert pipe.picture() == before


def test_nothing_says_which_rows_stay(source18, warehouse18):
    """What is referred to is not loaded, and the table has no other key."""
    source18.run("CREATE TABLE t (id bigint, ts timestamptz NOT NULL, v text)")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (own int GENERATED ALWAYS AS IDENTITY UNIQUE, id bigint, ts timestamptz, v text)"
    )
    pipe = Pipeline(source18, warehouse18, partition=None)
    fill(source18, JANUARY, FEBRUARY, 3)
    pipe.load(JANUARY, FEBRUARY)
    warehouse18.run(
        "CREATE TABLE a.child (own int REFERENCES a.t (own) ON DELETE CASCADE);"
        "INSERT INTO a.child SELECT own FROM a.t"
    )
    with pytest.raises(CatalogError, match=r"a\.child refer to them by foreign key"):
        pipe.load(JANUARY, FEBRUARY)
    assert warehouse18.value("SELECT count(*) FROM a.child") == 3


@pytest.mark.parametrize("key", ["UNIQUE", "PRIMARY KEY"])
def test_a_snapshot(source18, warehouse18, key):
    source18.run("CREATE TABLE t (id int NOT NULL, v text)")
    warehouse18.run(f"CREATE SCHEMA a; CREATE TABLE a.t (id int NOT NULL {key}, v text)")
    pipe = Pipeline(source18, warehouse18, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    source18.run("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 3) AS i")
    pipe.load()
    warehouse18.run(
        "CREATE TABLE a.child (id int REFERENCES a.t (id) ON DELETE CASCADE); INSERT INTO a.child SELECT id FROM a.t"
    )
    source18.run("UPDATE t SET v = 'b' WHERE id = 2; DELETE FROM t WHERE id = 3")
    done = pipe.load()
    assert (done.rows_updated, done.rows_deleted, done.rows_unchanged) == (1, 1, 1)
    assert pipe.rows() == pipe.source_rows()
    assert children(pipe) == [1, 2]


def test_a_snapshot_with_a_key_twice_is_refused(source, warehouse):
    source.run("CREATE TABLE t (id int NOT NULL, v text)")
    warehouse.run("CREATE SCHEMA a; CREATE TABLE a.t (id int NOT NULL UNIQUE, v text)")
    pipe = Pipeline(source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    source.run("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 3) AS i")
    pipe.load()
    warehouse.run(
        "CREATE TABLE a.child (id int REFERENCES a.t (id)); INSERT INTO a.child SELECT id FROM a.t"
    )
    source.run("INSERT INTO t VALUES (1, 'b')")
    with pytest.raises(DataError, match=r"1 keys \(id\) stand more than once"):
        pipe.load()


def test_rows_that_were_appended_are_not_replaced(source18, warehouse18):
    source18.run("CREATE TABLE t (id bigint, ts timestamptz NOT NULL, v text)")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz, v text, load uuid);"
    )
    pipe = Pipeline(source18, warehouse18, partition=None)
    fill(source18, JANUARY, FEBRUARY, 3)
    options = {"strategy": Strategy.APPEND, "load_id_column": "load"}
    pipe.load(JANUARY, FEBRUARY, options=options)
    warehouse18.run(
        "CREATE TABLE a.child (id bigint REFERENCES a.t ON DELETE CASCADE); INSERT INTO a.child SELECT id FROM a.t"
    )
    with pytest.raises(CatalogError, match=r"what refers to them in a\.child would go"):
        pipe.load(JANUARY, FEBRUARY, options=options)
    assert children(pipe) == [1, 2, 3]


ENTITIES: dict[str, Any] = {
    "kind": Kind.ENTITIES, "keys": ("id",), "cursor": None, "mode": WindowMode.FULL, "partition": None,
}  # fmt: skip


def test_a_partition_that_is_referred_to_by_itself(source18, warehouse18):
    """Its rows swap values of a unique column, for which they would have to be deleted."""
    source18.run("CREATE TABLE t (id int, code int, v text)")
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int, code int, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE a.p1 PARTITION OF a.t (PRIMARY KEY (id), UNIQUE (code)) DEFAULT"
    )
    pipe = Pipeline(source18, warehouse18, **ENTITIES)
    source18.run("INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b')")
    pipe.load()
    warehouse18.run(
        "CREATE TABLE a.child (id int REFERENCES a.p1 ON DELETE CASCADE); INSERT INTO a.child VALUES (1), (2)"
    )
    source18.run("UPDATE t SET code = 3 - code")
    with pytest.raises(DataError, match=r"swap values of a unique column.*a\.child"):
        pipe.load()
    assert children(pipe) == [1, 2]


@pytest.mark.parametrize("strategy", [Strategy.MERGE, Strategy.REPLACE])
def test_what_only_the_target_has_survives_a_swap_of_unique_values(source, warehouse, strategy):
    columns = "id int PRIMARY KEY, code int UNIQUE, v text"
    source.run(f"CREATE TABLE t ({columns})")
    warehouse.run(f"CREATE SCHEMA a; CREATE TABLE a.t (note text DEFAULT 'new', {columns})")
    kind = Kind.ENTITIES if strategy is Strategy.MERGE else Kind.SNAPSHOTS
    pipe = Pipeline(source, warehouse, **{**ENTITIES, "kind": kind})
    source.run("INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')")
    pipe.load(options={"strategy": strategy})
    warehouse.run("UPDATE a.t SET note = 'kept ' || id")
    source.run(
        "DELETE FROM t WHERE id < 3; INSERT INTO t VALUES (1, 2, 'A'), (2, 1, 'B'), (4, 4, 'd');"
        "UPDATE t SET v = 'C' WHERE id = 3"
    )
    done = pipe.load(options={"strategy": strategy})
    assert (done.rows_updated, done.rows_inserted) == (3, 1)
    assert warehouse.run("SELECT id, code, v, note FROM a.t ORDER BY id") == [
        (1, 2, "A", "kept 1"), (2, 1, "B", "kept 2"), (3, 3, "C", "kept 3"), (4, 4, "d", "new"),
    ]  # fmt: skip


def test_an_identity_column_that_stays_the_same_is_no_reason_to_delete(source, warehouse):
    columns = "id int PRIMARY KEY, number int, v text"
    source.run(f"CREATE TABLE t ({columns})")
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int PRIMARY KEY, number int GENERATED ALWAYS AS IDENTITY, v text, note text)"
    )
    pipe = Pipeline(source, warehouse, **ENTITIES)
    source.run("INSERT INTO t VALUES (1, 11, 'a'), (2, 12, 'b')")
    pipe.load()
    warehouse.run(
        "UPDATE a.t SET note = 'kept ' || id; CREATE TABLE a.child (id int REFERENCES a.t ON DELETE CASCADE);"
        "INSERT INTO a.child VALUES (1), (2)"
    )
    source.run("UPDATE t SET v = 'A' WHERE id = 1")
    assert pipe.load().rows_updated == 1
    source.run("UPDATE t SET number = 13 WHERE id = 2")
    with pytest.raises(DataError, match=r"change an identity column.*a\.child"):
        pipe.load()
    warehouse.run("DROP TABLE a.child")
    assert pipe.load().rows_updated == 1
    assert warehouse.run("SELECT id, number, v, note FROM a.t ORDER BY id") == [
        (1, 11, "A", "kept 1"), (2, 13, "b", "kept 2"),
    ]  # fmt: skip

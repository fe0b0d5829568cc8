"""Rows that go by key: which columns that takes, which of several versions counts, and what is not written."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_etl_provider.core.errors import DataError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import NullCursor, WindowMode
from tests.builders import Pipeline
from tests.integration.postgres.test_swap_merge import NOW, PARTITIONINGS, day, entities, put

MERGE, SWAP_MERGE = Strategy.MERGE, Strategy.SWAP_MERGE
COLUMNS = "region text, id int, ts timestamptz NOT NULL, changed timestamptz, v {}"


def regions(source, warehouse, kind: str = "text", **changes: Any) -> Pipeline:
    """Rows of two key columns, by month."""
    source.run(f"CREATE TABLE t ({COLUMNS.format(kind)})")
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t ({COLUMNS.format(kind)}) PARTITION BY RANGE (ts);"
        "CREATE TABLE a.t_2013_01 PARTITION OF a.t FOR VALUES FROM ('2013-01-01Z') TO ('2013-02-01Z');"
        "CREATE TABLE a.t_2013_02 PARTITION OF a.t FOR VALUES FROM ('2013-02-01Z') TO ('2013-03-01Z');"
        "CREATE INDEX ON a.t (region, id)"
    )
    fields: dict[str, Any] = {
        "kind": Kind.ENTITIES, "keys": ("region", "id"), "cursor": "changed", "mode": WindowMode.FULL,
        "partition": None, "settle": NOW,
    }  # fmt: skip
    return Pipeline(source, warehouse, **fields | changes)


def insert(database, *rows: tuple[Any, ...], table: str = "t") -> None:
    with database.connect() as connection:
        connection.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s, %s, %s, %s)", rows)


def versions(database) -> set[Any]:
    return set(database.run("SELECT tableoid::bigint, ctid::text, xmin::text FROM a.t"))


@pytest.mark.parametrize("strategy", [MERGE, SWAP_MERGE])
class TestTwoColumns:
    def test_the_same_number_in_two_regions_is_two_rows(self, source18, warehouse18, strategy):
        pipe = regions(source18, warehouse18)
        insert(
            source18,
            *[(r, n, day(n), day(1), "first") for r in ("north", "south") for n in range(1, 9)],
        )
        pipe.load(options={"strategy": strategy})
        source18.run(
            "UPDATE t SET v = 'changed', changed = changed + interval '1 h', ts = ts + interval '1 month'"
            " WHERE region = 'south' AND id < 4"
        )
        done = pipe.load(options={"strategy": strategy})
        assert done.rows_inserted == 0
        assert pipe.rows() == pipe.source_rows()

    def test_no_value_in_one_of_them_is_refused(self, source18, warehouse18, strategy):
        pipe = regions(source18, warehouse18)
        insert(source18, ("north", 1, day(1), day(1), "x"), (None, 2, day(2), day(1), "y"))
        before = pipe.rows()
        with pytest.raises(DataError, match=r"1 rows of the batch .* no value in a key column"):
            pipe.load(options={"strategy": strategy})
        assert pipe.rows() == before

    def test_older_versions_may_be_equally_old(self, source18, warehouse18, strategy):
        """One that is later than both settles it, and so does one with a time at all; two last ones are refused."""
        pipe = regions(source18, warehouse18)
        insert(
            source18,
            ("n", 1, day(1), day(1), "a"),
            ("n", 1, day(1), day(1), "b"),
            ("n", 1, day(1), day(2), "c"),
            ("n", 2, day(1), None, "a"),
            ("n", 2, day(1), None, "b"),
            ("n", 2, day(1), day(1), "c"),
        )
        pipe.load(null_cursor=NullCursor.INCLUDE, options={"strategy": strategy})
        assert warehouse18.run("SELECT id, v FROM a.t ORDER BY 1") == [(1, "c"), (2, "c")]
        insert(source18, ("n", 1, day(1), day(2), "d"))
        with pytest.raises(DataError, match=r"1 keys .* with different rows at the same changed"):
            pipe.load(null_cursor=NullCursor.INCLUDE, options={"strategy": strategy})

    def test_of_several_versions_the_last_counts(self, source18, warehouse18, strategy):
        """By the cursor; the same row twice is one, and two that differ at one moment are refused."""
        pipe = regions(source18, warehouse18)
        insert(
            source18,
            ("north", 1, day(1), day(3), "last"),
            ("north", 1, day(1), day(2), "earlier"),
            ("south", 1, day(1), day(2), "twice"),
            ("south", 1, day(1), day(2), "twice"),
        )
        pipe.load(options={"strategy": strategy})
        assert warehouse18.run("SELECT region, v FROM a.t ORDER BY 1") == [
            ("north", "last"),
            ("south", "twice"),
        ]
        insert(source18, ("south", 1, day(1), day(2), "otherwise"))
        with pytest.raises(DataError, match=r"1 keys .* more than once"):
            pipe.load(options={"strategy": strategy})
        assert warehouse18.value("SELECT v FROM a.t WHERE region = 'south'") == "twice"


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("numeric", "1.0", "1.00"),
        ("interval", "1 day", "24 hours"),
        ("json", '{"a":1}', '{"a": 1}'),
        ("text", "", None),
    ],
)
def test_what_is_the_same_is_what_looks_the_same(source18, warehouse18, kind, before, after):
    """Rule 19: by image, not by ``=``, which calls these equal or cannot compare them; the rest is not written."""
    pipe = regions(source18, warehouse18, kind)
    insert(source18, *[("north", n, day(n), day(1), before) for n in range(1, 6)])
    pipe.load()
    written = versions(warehouse18)
    again = pipe.load()
    assert (again.rows_updated, again.rows_unchanged, again.changed) == (0, 5, False)
    assert versions(warehouse18) == written
    source18.run("UPDATE t SET v = %s WHERE id = 2", (after,))
    assert pipe.load().rows_updated == 1
    assert pipe.rows() == pipe.source_rows()
    assert len(written - versions(warehouse18)) == 1


@pytest.mark.parametrize("how", PARTITIONINGS)
def test_merge_however_the_table_is_partitioned(source18, warehouse18, how):
    """A row whose place changes leaves the partition it was in (rule 16)."""
    by, partitions = PARTITIONINGS[how].split("|")
    pipe = entities(
        source18,
        warehouse18,
        "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, changed timestamptz NOT NULL, v text) "
        + by,
    )
    warehouse18.run(partitions + "; CREATE INDEX ON a.t (id)")
    values = ["a", "b'%", None, "other"]
    put(source18, *[(n, day(n), day(1), values[n % 4]) for n in range(1, 20)])
    pipe.load(options={"strategy": MERGE})
    assert pipe.rows() == pipe.source_rows()
    source18.run(
        "UPDATE t SET v = CASE WHEN id % 2 = 0 THEN 'a' ELSE 'moved' END, ts = ts + interval '2 days',"
        " changed = changed + interval '1 s' WHERE id < 9"
    )
    done = pipe.load(options={"strategy": MERGE})
    assert (done.rows_inserted, done.rows_updated, done.rows_unchanged) == (0, 8, 11)
    assert pipe.rows() == pipe.source_rows()

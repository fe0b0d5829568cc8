"""Rows that the source calls deleted, by merge, swap_merge and scd2."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from airflow_etl_provider.core.errors import ConfigurationError, ContractError, ShrinkBrake
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.publish import Deletes
from airflow_etl_provider.core.request import WindowMode
from tests.builders import Pipeline, in_background, wait_until

AT = datetime(2024, 1, 1, tzinfo=UTC)
MERGES = [Strategy.MERGE, Strategy.SWAP_MERGE]


def people(source, warehouse, flag: str = "boolean", **changes: Any) -> Pipeline:
    """Six people; a row is (id, day of its last change, name, flag)."""
    source.run(f"CREATE TABLE t (id int, changed timestamptz, v text, gone {flag})")
    warehouse.run(
        f"CREATE SCHEMA a; CREATE TABLE a.t (id int, changed timestamptz, v text, gone {flag}) PARTITION BY RANGE (id);"
        "CREATE TABLE a.low PARTITION OF a.t FOR VALUES FROM (0) TO (4);"
        "CREATE TABLE a.high PARTITION OF a.t DEFAULT; CREATE UNIQUE INDEX ON a.t (id)"
    )
    source.run("INSERT INTO t SELECT i, '2024-01-01Z', 'v' || i FROM generate_series(1, 6) AS i")
    fields: dict[str, Any] = {
        "kind": Kind.ENTITIES,
        "keys": ("id",),
        "cursor": "changed",
        "mode": WindowMode.FULL,
    }
    pipe = Pipeline(source, warehouse, partition=None, **fields | changes)
    pipe.load()
    return pipe


def ids(pipe) -> list[int]:
    return [n for (n,) in pipe.warehouse.run("SELECT id FROM a.t ORDER BY id")]


@pytest.mark.parametrize("strategy", MERGES)
@pytest.mark.parametrize(
    ("flag", "value", "values"),
    [
        ("boolean", True, ()),
        ("timestamptz", AT, ()),
        ("date", AT.date(), ()),
        ("text", "D", ("D", "x")),
        ("int", 7, ("7",)),
    ],
)
def test_deleted_rows_go(source, warehouse, strategy, flag, value, values):
    pipe = people(source, warehouse, flag)
    source.run(
        "UPDATE t SET gone = %s, changed = changed + interval '1 h' WHERE id IN (2, 5)", (value,)
    )
    source.run("UPDATE t SET v = 'changed', changed = changed + interval '1 h' WHERE id = 3")
    source.run(
        "INSERT INTO t VALUES (7, '2024-01-02Z', 'new', NULL), (8, '2024-01-02Z', 'never seen', %s)",
        (value,),
    )
    options = {"strategy": strategy, "delete_flag": "gone", "delete_values": values}
    done = pipe.load(options=options)
    assert ids(pipe) == [1, 3, 4, 6, 7]
    assert (done.rows_inserted, done.rows_deleted) == (1, 2)
    assert done.rows_updated == (1 if strategy is Strategy.MERGE else 4)
    again = pipe.load(options=options)
    assert again.rows_deleted == 0
    assert ids(pipe) == [1, 3, 4, 6, 7]
    source.run("UPDATE t SET gone = NULL, changed = changed + interval '2 h' WHERE id = 2")
    pipe.load(options=options)
    assert ids(pipe) == [1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("strategy", MERGES)
def test_softly_deleted_rows_stay_with_their_flag(source, warehouse, strategy):
    pipe = people(source, warehouse)
    source.run("UPDATE t SET gone = true, changed = changed + interval '1 h' WHERE id = 2")
    pipe.load(options={"strategy": strategy, "delete_flag": "gone", "deletes": Deletes.SOFT})
    assert pipe.rows() == pipe.source_rows()


@pytest.mark.parametrize("strategy", MERGES)
def test_a_newer_row_is_not_deleted(source18, warehouse18, strategy):
    pipe = people(source18, warehouse18)
    source18.run("UPDATE t SET gone = true, changed = changed + interval '1 h' WHERE id IN (2, 5)")
    warehouse18.run("UPDATE a.t SET changed = changed + interval '1 day' WHERE id = 2")
    done = pipe.load(options={"strategy": strategy, "delete_flag": "gone"})
    assert ids(pipe) == [1, 2, 3, 4, 6]
    assert done.rows_deleted == 1


def test_the_brake_trusts_no_statistics(source18, warehouse18):
    """The server believes in a large target, of which these were a few: most rows went since it has counted."""
    pipe = people(source18, warehouse18)
    warehouse18.run(
        "UPDATE pg_class SET reltuples = 1e9 WHERE oid IN ('a.t'::regclass, 'a.low'::regclass, 'a.high'::regclass)"
    )
    source18.run("UPDATE t SET gone = true, changed = changed + interval '1 h' WHERE id < 5")
    before = pipe.picture()
    with pytest.raises(ShrinkBrake, match=r"3 of 3 rows .* from a\.low"):
        pipe.load(options={"strategy": Strategy.MERGE, "delete_flag": "gone"})
    assert pipe.picture() == before


@pytest.mark.parametrize(
    ("max_shrink", "stops"), [(0.0, True), (0.1, True), (0.66, True), (0.67, False), (1.0, False)]
)
def test_the_brake_of_two_deletes_among_three(source18, warehouse18, max_shrink, stops):
    pipe = people(source18, warehouse18)
    source18.run("UPDATE t SET gone = true, changed = changed + interval '1 h' WHERE id < 3")
    options = {"strategy": Strategy.MERGE, "delete_flag": "gone", "max_shrink": max_shrink}
    with (
        pytest.raises(ShrinkBrake, match=r"2 of 3 rows .* from a\.low") if stops else nullcontext()
    ):
        assert pipe.load(options=options).rows_deleted == 2


@pytest.mark.parametrize("strategy", MERGES)
def test_many_deletes_stop_at_the_brake(source18, warehouse18, strategy):
    pipe = people(source18, warehouse18)
    source18.run("UPDATE t SET gone = true, changed = changed + interval '1 h' WHERE id < 5")
    before = pipe.picture()
    with pytest.raises(ShrinkBrake, match=r"[34] of [36] rows"):
        pipe.load(options={"strategy": strategy, "delete_flag": "gone"})
    assert pipe.picture() == before
    pipe.load(options={"strategy": strategy, "delete_flag": "gone", "max_shrink": 1.0})
    assert ids(pipe) == [5, 6]


def test_many_deletes_stop_at_the_brake_whatever_comes_in_their_place(source18, warehouse18):
    """Of each partition: what other partitions gain, or it gains itself, is not what it lost."""
    pipe = people(source18, warehouse18)
    source18.run("UPDATE t SET gone = true, changed = changed + interval '1 h' WHERE id < 4")
    source18.run("INSERT INTO t SELECT i, '2024-01-02Z', 'new' FROM generate_series(7, 30) AS i")
    before = pipe.picture()
    options = {"strategy": Strategy.SWAP_MERGE, "delete_flag": "gone"}
    with pytest.raises(ShrinkBrake, match=r"3 of 3 rows .* partition a\.low"):
        pipe.load(options=options)
    assert pipe.picture() == before
    source18.run("INSERT INTO t VALUES (0, '2024-01-02Z', 'new')")
    with pytest.raises(ShrinkBrake, match=r"3 of 3 rows .* partition a\.low"):
        pipe.load(options=options)
    done = pipe.load(options=options | {"max_shrink": 1.0})
    assert (done.rows_deleted, ids(pipe)[:2]) == (3, [0, 4])


def test_rows_that_move_to_another_partition_are_not_lost(source18, warehouse18):
    """All of January's rows are February's by now."""
    source18.run(
        "CREATE TABLE t (id int, month date, changed timestamptz, gone boolean);"
        "INSERT INTO t SELECT i, '2024-01-05', '2024-01-05Z', false FROM generate_series(1, 6) AS i"
    )
    warehouse18.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int, month date, changed timestamptz, gone boolean)"
        " PARTITION BY RANGE (month);"
        "CREATE TABLE a.january PARTITION OF a.t FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');"
        "CREATE TABLE a.february PARTITION OF a.t FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');"
        "CREATE INDEX ON a.t (id)"
    )
    pipe = Pipeline(
        source18,
        warehouse18,
        kind=Kind.ENTITIES,
        keys=("id",),
        cursor="changed",
        mode=WindowMode.FULL,
        partition=None,
    )
    options = {"strategy": Strategy.SWAP_MERGE, "delete_flag": "gone"}
    pipe.load(options=options)
    source18.run("UPDATE t SET month = '2024-02-05', changed = '2024-02-05Z', gone = id = 1")
    assert pipe.load(options=options).rows_deleted == 1
    assert warehouse18.value("SELECT count(*) FROM a.february") == 5


@pytest.mark.parametrize("strategy", MERGES)
def test_a_flag_that_says_nothing_is_refused(source18, warehouse18, strategy):
    pipe = people(source18, warehouse18, "text")
    with pytest.raises(ContractError, match="did you mean 'gone'"):
        pipe.load(options={"strategy": strategy, "delete_flag": "gonne"})
    with pytest.raises(ConfigurationError, match="delete_values"):
        pipe.load(options={"strategy": strategy, "delete_flag": "gone"})


def test_a_key_that_a_foreign_writer_inserts_meanwhile(source18, warehouse18):
    """Rule 19: it is there to be updated then; the publish is done over, not failed."""
    pipe = people(source18, warehouse18)
    source18.run("INSERT INTO t VALUES (9, '2024-01-02Z', 'ours', NULL)")
    manifest = pipe.staged()
    with psycopg.connect(warehouse18.conninfo) as foreign, warehouse18.connect() as looking:
        foreign.execute("INSERT INTO a.t VALUES (9, '2023-01-02Z', 'theirs', NULL)")
        with in_background(lambda: pipe.publish(manifest, strategy=Strategy.MERGE)) as publishing:
            wait_until(
                lambda: looking.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                ).fetchone(),
                "the publish waits for the foreign row",
            )
            foreign.commit()
    assert publishing.result().rows_updated == 1
    assert warehouse18.value("SELECT v FROM a.t WHERE id = 9") == "ours"

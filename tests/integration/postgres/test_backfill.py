"""A backfill of 24 partitions, eight runs at once, beside the live schedule of the same stream."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import TransientError
from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.postgres.queries import queries
from tests.builders import Pipeline
from tests.integration.postgres.test_swap_merge import NOW

SWAP, SWAP_MERGE, MERGE = Strategy.SWAP, Strategy.SWAP_MERGE, Strategy.MERGE
MONTHS = [datetime(2011 + month // 12, month % 12 + 1, 1, tzinfo=UTC) for month in range(31)]
BACKFILL, LIVE = MONTHS[:25], MONTHS[24:]


def stream(strategy: Strategy, source: Any, warehouse: Any) -> Pipeline:
    """A row a day; entities belong to a month that is not that of their change."""
    source.run(
        "CREATE TABLE t (id int PRIMARY KEY, ts timestamptz NOT NULL, changed timestamptz NOT NULL, v text);"
        "INSERT INTO t SELECT i, timestamptz '2011-01-01Z' + (CASE WHEN i % 3 = 0 THEN (i * 7) % 900 ELSE i END) * interval '1 day',"
        " timestamptz '2011-01-01Z' + i * interval '1 day', 'first' FROM generate_series(0, 911) AS i;"
        + ("UPDATE t SET ts = changed" if strategy is not MERGE else "")
    )
    warehouse.run(
        "CREATE SCHEMA a; CREATE TABLE a.t (id int, ts timestamptz NOT NULL, changed timestamptz, v text, PRIMARY KEY (id, ts))"
        " PARTITION BY RANGE (ts); CREATE INDEX ON a.t (id)"
    )
    return Pipeline(
        source,
        warehouse,
        kind=Kind.ENTITIES if strategy is MERGE else Kind.EVENTS,
        cursor="changed" if strategy is MERGE else "ts",
        keys=("id",) if strategy is MERGE else (),
        partition=PartitionSpec("ts", Every.MONTH, "UTC"),
        settle=NOW,
        origin=LIVE[0],
    )


def run(pipe: Pipeline, strategy: Strategy, low: datetime, high: datetime, run_type: str) -> int:
    """A run with its retries; how many of those there were."""
    manifest = pipe.staged(low, high, run_type=run_type)
    for tries in range(20):
        try:
            pipe.publish(manifest, strategy=strategy)
        except TransientError:
            continue
        return tries
    raise AssertionError(f"{low} does not get through")


@pytest.mark.parametrize("strategy", [SWAP, SWAP_MERGE, MERGE])
def test_beside_the_live_schedule(source18: Any, warehouse18: Any, strategy: Strategy) -> None:
    """Target and source agree, all is covered, the watermark is the live schedule's, and nothing is left behind.

    Windows that are not those of partitions make two runs touch one partition at the same time.
    """
    pipe = stream(strategy, source18, warehouse18)
    shift = timedelta(days=9) if strategy is SWAP_MERGE else timedelta(0)
    past = [(low + shift, high + shift) for low, high in pairwise(BACKFILL)]
    if shift:
        past[0], past[-1] = (BACKFILL[0], past[0][1]), (past[-1][0], BACKFILL[-1])

    def live() -> int:
        return sum(run(pipe, strategy, low, high, "scheduled") for low, high in pairwise(LIVE))

    with ThreadPoolExecutor(9) as pool:
        schedule = pool.submit(live)
        with ThreadPoolExecutor(8) as backfill:
            runs: list[Future[int]] = [
                backfill.submit(run, pipe, strategy, low, high, "backfill") for low, high in past
            ]
        tries = sum(one.result() for one in runs) + schedule.result()
    assert len(runs) == 24
    assert pipe.rows() == pipe.source_rows()
    assert tries == 0
    ends = [(low, high) for low, high, _ in pipe.coverage()]
    assert (ends[0][0], ends[-1][1]) == ("2011-01-01 00:00:00+00", "2013-07-01 00:00:00+00")
    assert all(high == low for (_, high), (low, _) in pairwise(ends))
    stored = pipe.store.read("t")
    assert stored is not None
    assert pipe.position() == stored.value == "2013-07-01 00:00:00+00"
    kept = {
        name.split(".")[1]
        for (name,) in warehouse18.run(
            "SELECT previous FROM etl.load_partitions WHERE previous IS NOT NULL"
        )
    }
    assert pipe.left_in_staging() <= kept
    assert warehouse18.value("SELECT count(*) FROM etl.loads WHERE state <> 'published'") == 0


def test_a_partition_that_is_exchanged_while_partitions_are_listed_is_among_them(
    source18: Any, warehouse18: Any
) -> None:
    """As it was when the statement began, also where its successor is younger than that."""
    pipe = stream(SWAP, source18, warehouse18)
    run(pipe, SWAP, *MONTHS[:2], "backfill")
    run(pipe, SWAP, *MONTHS[1:3], "backfill")
    oid = warehouse18.value("SELECT 'a.t'::regclass::oid::bigint")

    def listed() -> list[set[int]]:
        """Oids of the partitions, as either statement lists them."""
        found = []
        for file, name in (("leaves", "leaves"), ("retention", "tree")):
            cursor.execute(queries(file)[name], {"oid": oid})
            found.append({row["oid"] for row in cursor if row["name"] != "t"})
        return found

    with warehouse18.connect(row_factory=dict_row) as connection, connection.cursor() as cursor:
        before = listed()
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT")
        run(pipe, SWAP, *MONTHS[:2], "backfill")
        assert listed() == before
        assert [len(oids) for oids in before] == [2, 2]
        connection.execute("ROLLBACK")
        assert listed() != before

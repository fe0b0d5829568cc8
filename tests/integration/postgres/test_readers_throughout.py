"""Readers of every kind beside publishes of every kind: each result is complete, and nobody is shot.

The summary of the run says how long the longest of them waited.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from airflow_etl_provider.core.load import Kind, Strategy
from airflow_etl_provider.core.request import WindowMode
from tests.builders import FEBRUARY, JANUARY, MARCH, Pipeline, fill, simple, wait_until
from tests.conftest import reads_beside
from tests.integration.postgres.test_swap_merge import NOW, day

SWAP, SWAP_MERGE, MERGE = Strategy.SWAP, Strategy.SWAP_MERGE, Strategy.MERGE
DELETE_INSERT, REPLACE = Strategy.DELETE_INSERT, Strategy.REPLACE

PLAIN = "SELECT count(*), min(v), max(v) FROM a.t WHERE ts < '2013-01-20Z'"
STAR = "SELECT count(*), min(d.v), max(d.v) FROM a.dim AS d JOIN a.t AS f ON f.v = d.v WHERE f.ts < '2013-01-20Z'"
#: What a transaction reads, statement by statement; the results of those that count rows must be whole.
READERS = {
    "READ COMMITTED": ("READ COMMITTED", [PLAIN, PLAIN]),
    "REPEATABLE READ": ("REPEATABLE READ", [PLAIN, PLAIN]),
    "SERIALIZABLE": ("SERIALIZABLE", [PLAIN, PLAIN]),
    "dimension first": ("READ COMMITTED", ["SELECT FROM a.dim LIMIT 1", STAR]),
    "fact first": ("READ COMMITTED", ["SELECT FROM a.t LIMIT 1", STAR]),
    # Its snapshot is older than whatever is swapped before it looks.
    "older snapshot": (
        "REPEATABLE READ",
        ["SELECT FROM pg_class LIMIT 1", "SELECT pg_sleep(0.2)", PLAIN],
    ),
}


@dataclass
class Reader:
    """Reads again and again, with a breath in between, and remembers what was not whole."""

    database: Any
    isolation: str
    statements: list[str]
    rows: int
    versions: set[str]
    over: threading.Event = field(default_factory=threading.Event)
    waits: list[float] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)

    def __call__(self) -> None:
        with psycopg.connect(self.database.conninfo, autocommit=True) as connection:
            while not self.over.wait(0.02):
                try:
                    self._read(connection)
                except psycopg.Error as error:
                    self.wrong.append(repr(error))

    def _read(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            connection.execute(f"SET TRANSACTION ISOLATION LEVEL {self.isolation}")
            seen = set()
            for statement in self.statements:
                began = time.monotonic()
                row = connection.execute(statement).fetchone()
                if "count(" not in statement:
                    continue
                self.waits.append(time.monotonic() - began)
                count, low, high = row or (None, None, None)
                if (count, low) != (self.rows, high) or low not in self.versions:
                    self.wrong.append(row)
                seen.add(row)
        if len(seen) > 1 and self.isolation != "READ COMMITTED":
            self.wrong.append(seen)


@contextmanager
def readers(database: Any, what: str, rows: int, versions: set[str]) -> Iterator[list[Reader]]:
    """Readers of every kind at work; afterwards none may have seen anything but whole versions."""
    found = [Reader(database, *how, rows, versions) for how in READERS.values()]
    threads = [threading.Thread(target=one) for one in found]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        for one in found:
            one.over.set()
        for thread in threads:
            thread.join()
    reads_beside(what, [wait for one in found for wait in one.waits])
    for kind, one in zip(READERS, found, strict=True):
        assert one.wrong == [], f"{kind}: {one.wrong[:5]}"


def warehouse_of(strategy: Strategy, source: Any, warehouse: Any) -> Pipeline:
    """19 of 59 rows are what is read; a dimension has every version that they will have."""
    if strategy is REPLACE:
        source.run("CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text)")
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text)"
        )
        pipe = Pipeline(source, warehouse, kind=Kind.SNAPSHOTS, cursor=None, partition=None)
    elif strategy is MERGE:
        source.run(
            "CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text, changed timestamptz DEFAULT now())"
        )
        warehouse.run(
            "CREATE SCHEMA a; CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text, changed timestamptz,"
            " PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts)"
        )
        pipe = Pipeline(
            source,
            warehouse,
            kind=Kind.ENTITIES,
            keys=("id",),
            cursor="changed",
            mode=WindowMode.FULL,
            settle=NOW,
        )
    else:
        pipe = simple(source, warehouse)
    warehouse.run(
        "CREATE TABLE a.dim (v text PRIMARY KEY); INSERT INTO a.dim SELECT i::text FROM generate_series(0, 9) AS i;"
        "ALTER TABLE a.t ADD FOREIGN KEY (v) REFERENCES a.dim"
    )
    if strategy is MERGE:
        source.run(
            "INSERT INTO t SELECT i + 1, timestamptz '2013-01-01Z' + i * interval '1 day', '0' FROM generate_series(0, 58) AS i"
        )
    else:
        fill(source, JANUARY, MARCH, 59)
        source.run("UPDATE t SET v = '0'")
    return pipe


def change(pipe: Pipeline, version: str) -> None:
    changed = ", changed = clock_timestamp()" if pipe.cursor == "changed" else ""
    pipe.source.run(f"UPDATE t SET v = %s{changed} WHERE ts < '2013-01-20Z'", (version,))


@pytest.mark.parametrize("strategy", [SWAP, SWAP_MERGE])
def test_beside_exchanges(source: Any, warehouse: Any, strategy: Strategy) -> None:
    """Their locks stop readers for an instant, and never make one the victim of a deadlock."""
    _publish_beside_readers(strategy, source, warehouse)


@pytest.mark.parametrize("strategy", [MERGE, DELETE_INSERT, REPLACE])
def test_beside_writes_in_place(source18: Any, warehouse18: Any, strategy: Strategy) -> None:
    """Nobody waits for them."""
    _publish_beside_readers(strategy, source18, warehouse18)


def _publish_beside_readers(strategy: Strategy, source: Any, warehouse: Any) -> None:
    pipe = warehouse_of(strategy, source, warehouse)
    window: tuple[Any, ...] = {
        SWAP: (JANUARY, FEBRUARY),
        SWAP_MERGE: (day(1), day(25)),
        DELETE_INSERT: (day(1), day(25)),
    }.get(strategy, ())
    if window:
        pipe.load(JANUARY, MARCH)
    else:
        pipe.load()
    versions = {"0"}
    with readers(warehouse, strategy.value, 19, versions) as reading:
        for version in "123":
            change(pipe, version)
            manifest = pipe.staged(*window)
            versions.add(version)
            known = [len(one.waits) for one in reading]
            pipe.publish(manifest, strategy=strategy, lock_deadline=timedelta(minutes=2))
            wait_until(
                lambda known=known: all(
                    len(one.waits) > n for one, n in zip(reading, known, strict=True)
                ),
                "reads between two publishes",
            )
    assert pipe.rows() == pipe.source_rows()

"""Extraction from SQLite and MariaDB against loops over the same drivers: ``python -m benchmarks.dbapi``.

All runs of a round follow each other, so that what else the machine does meets them alike; medians are shown.
Ours is the whole use case, ledger and settled bound included; the loops only move rows, and only the first
of them is correct for every value.
"""

from __future__ import annotations

import argparse
import csv
import io
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import uuid6
from psycopg.conninfo import conninfo_to_dict

from airflow_etl_provider.core.extract import extract
from airflow_etl_provider.core.load import Kind, RunInfo
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.request import ExtractRequest, WindowMode
from airflow_etl_provider.core.window import Interval
from airflow_etl_provider.dbapi.driver import Connection
from airflow_etl_provider.dbapi.flavour import Flavour
from airflow_etl_provider.dbapi.mysql import MySql
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.sqlite import Sqlite
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.postgres.staging import PostgresStaging
from airflow_etl_provider.testing import MemoryWatermarkStore
from benchmarks.lineitem import make_target
from demo.embedded import EmbeddedPostgres

#: Rows of one fetch of the loops: more made none of them faster.
_MANY = 1000
_READ = "SELECT * FROM lineitem"
_SQLITE_TABLE = """
CREATE TABLE lineitem (
    orderkey BIGINT NOT NULL, linenumber INTEGER NOT NULL, partkey BIGINT NOT NULL, suppkey BIGINT NOT NULL,
    quantity DECIMAL(15,2) NOT NULL, extendedprice DECIMAL(15,2) NOT NULL, discount DECIMAL(15,2) NOT NULL,
    tax DECIMAL(15,2) NOT NULL, returnflag TEXT NOT NULL, linestatus TEXT NOT NULL, shipdate DATE NOT NULL,
    commitdate DATE NOT NULL, receiptdate DATE NOT NULL, shipinstruct TEXT NOT NULL, comment TEXT,
    updated_at TIMESTAMPTZ NOT NULL
)
"""
_SQLITE_FILL = """
WITH RECURSIVE s(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i < :rows - 1)
INSERT INTO lineitem
SELECT i / 4, i % 4, i * 7919 % 200000, i * 104729 % 10000, i % 50 + 1, i % 90000 + 1000.5, (i % 11) / 100.0,
       (i % 9) / 100.0, substr('ANR', i % 3 + 1, 1), substr('OF', i % 2 + 1, 1),
       date('2024-01-01', '+' || (i % 366) || ' days'), date('2024-01-01', '+' || (i % 300) || ' days'),
       date('2024-01-01', '+' || (i % 330) || ' days'),
       CASE i % 4 WHEN 0 THEN 'DELIVER IN PERSON' WHEN 1 THEN 'COLLECT COD' WHEN 2 THEN 'NONE'
                  ELSE 'TAKE BACK RETURN' END,
       'line comment ' || lower(hex(randomblob(16))),
       strftime('%Y-%m-%d %H:%M:%f', 1704067200 + i * (366 * 86400.0 / :rows), 'unixepoch') || '+00:00'
FROM s
"""
_MARIADB_TABLE = """
CREATE TABLE lineitem (
    orderkey bigint NOT NULL, linenumber int NOT NULL, partkey bigint NOT NULL, suppkey bigint NOT NULL,
    quantity decimal(15,2) NOT NULL, extendedprice decimal(15,2) NOT NULL, discount decimal(15,2) NOT NULL,
    tax decimal(15,2) NOT NULL, returnflag varchar(1) NOT NULL, linestatus varchar(1) NOT NULL,
    shipdate date NOT NULL, commitdate date NOT NULL, receiptdate date NOT NULL,
    shipinstruct varchar(25) NOT NULL, comment varchar(100), updated_at timestamp(6) NOT NULL
) ENGINE=InnoDB
"""
_MARIADB_FILL = """
INSERT INTO lineitem
SELECT seq DIV 4, seq % 4, seq * 7919 % 200000, seq * 104729 % 10000, seq % 50 + 1, seq % 90000 + 1000.5,
       (seq % 11) / 100, (seq % 9) / 100, SUBSTR('ANR', seq % 3 + 1, 1), SUBSTR('OF', seq % 2 + 1, 1),
       '2024-01-01' + INTERVAL seq % 366 DAY, '2024-01-01' + INTERVAL seq % 300 DAY,
       '2024-01-01' + INTERVAL seq % 330 DAY,
       ELT(seq % 4 + 1, 'DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'),
       CONCAT('line comment ', MD5(seq)), '2024-01-01 00:00:00' + INTERVAL seq * (366 * 86400 / {rows}) SECOND
FROM seq_0_to_{last}
"""

Rows = Iterator[Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Origin:
    """A filled source database.

    :param blocks: its rows as a careful user of its driver fetches them, without holding all at once.
    """

    name: str
    connect: Callable[[], Connection]
    flavour: Flavour
    cursor: Callable[[Any], Any]
    types: Mapping[str, str] = field(default_factory=dict)

    def blocks(self) -> Rows:
        with closing(self.connect()) as connection:
            cursor = self.cursor(connection)
            cursor.execute(_READ)
            while rows := cursor.fetchmany(_MANY):
                yield rows


# -- the loops ----------------------------------------------------------------------------------------


def write_row(origin: Origin, copy: psycopg.Copy) -> None:
    """psycopg turns every value."""
    for rows in origin.blocks():
        for row in rows:
            copy.write_row(row)


def str_join(origin: Origin, copy: psycopg.Copy) -> None:
    """``str`` of every value; wrong for backslashes, tabs, line ends, NULL and bytes."""
    for rows in origin.blocks():
        copy.write("".join(["\t".join(map(str, row)) + "\n" for row in rows]))


def csv_writer(origin: Origin, copy: psycopg.Copy) -> None:
    """The csv module; wrong for bytes, and NULL is what empty text is."""
    for rows in origin.blocks():
        buffer = io.StringIO()
        csv.writer(buffer).writerows(rows)
        copy.write(buffer.getvalue())


LOOPS: dict[str, tuple[Callable[[Origin, psycopg.Copy], None], LiteralString]] = {
    "fetchmany + copy.write_row": (write_row, "COPY piped FROM STDIN"),
    "fetchmany + str join": (str_join, "COPY piped FROM STDIN"),
    "fetchmany + csv.writer": (csv_writer, "COPY piped FROM STDIN (FORMAT csv)"),
}


def by_loop(
    origin: Origin,
    target: str,
    loop: Callable[[Origin, psycopg.Copy], None],
    statement: LiteralString,
) -> int:
    with psycopg.connect(target) as connection, connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            loop(origin, copy)
        return cursor.rowcount


# -- ours ---------------------------------------------------------------------------------------------


def by_extract(origin: Origin, target: str) -> int:
    """The whole use case, up to the staged batch."""
    load_id = str(uuid6.uuid7())
    year = datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    request = ExtractRequest(
        load_id=load_id,
        run=RunInfo("bench", "extract", load_id, "manual", -1, 1, 0),
        stream="lineitem",
        kind=Kind.EVENTS,
        source="lineitem",
        source_conn_id="source",
        target=TableName("public", "lineitem"),
        target_conn_id="target",
        cursor="updated_at",
        keys=(),
        mode=WindowMode.INTERVAL,
        interval=Interval(*year, "benchmark", moves_watermark=True),
        partition=PartitionSpec("updated_at", Every.YEAR),
        timezone="UTC",
        origin=None,
        checksum=False,
        store="variable",
    )
    manifest = extract(
        request,
        source=DbApiSource(
            origin.connect, origin.flavour, "lineitem", None, origin.name, origin.types
        ),
        area=PostgresStaging(Endpoint(conninfo_to_dict(target), "target", "etl:bench")),
        store=MemoryWatermarkStore(),
        now=datetime.now(UTC),
        stop=threading.Event(),
        log=lambda *_, **__: None,
    )
    return manifest.rows


# -- sources ------------------------------------------------------------------------------------------


@contextmanager
def sqlite(folder: Path, rows: int) -> Iterator[Origin]:
    path = folder / "lineitem.db"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, check_same_thread=False)

    with closing(connect()) as connection:
        connection.execute(_SQLITE_TABLE)
        connection.execute(_SQLITE_FILL, {"rows": rows})
        connection.commit()
    yield Origin(
        f"SQLite {sqlite3.sqlite_version}",
        connect,
        Sqlite(),
        lambda connection: connection.cursor(),
        # SQLite has one size of integers.
        {"linenumber": "integer"},
    )


@contextmanager
def mariadb(folder: Path, rows: int) -> Iterator[Origin]:
    """Where the server and PyMySQL are installed."""
    import pymysql

    from benchmarks.dbapi_mariadb import MariaDb

    server = MariaDb(folder / "mariadb")
    try:
        server.start()
        database = server.new_database()
        database.run("SET time_zone = '+00:00'", _MARIADB_TABLE)
        connection = database.connect_by("pymysql")()
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SET time_zone = '+00:00'")
            cursor.execute(_MARIADB_FILL.format(rows=rows, last=rows - 1))
            connection.commit()
        yield Origin(
            "MariaDB by PyMySQL",
            database.connect_by("pymysql"),
            MySql("mysql://bench"),
            lambda connection: connection.cursor(pymysql.cursors.SSCursor),
        )
    finally:
        server.stop()


def mariadb_is_there() -> bool:
    try:
        from benchmarks.dbapi_mariadb import server_program
    except ImportError:
        return False
    return server_program() is not None


# -- side by side -------------------------------------------------------------------------------------


def compare(origin: Origin, target: str, rows: int, rounds: int) -> None:
    def loop(name: str) -> Callable[[], int]:
        return lambda: by_loop(origin, target, *LOOPS[name])

    ways = {name: loop(name) for name in LOOPS}
    ways["extract into staging"] = lambda: by_extract(origin, target)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with psycopg.connect(target, autocommit=True) as connection:
                make_target(connection)
                connection.execute("CHECKPOINT")
            started = time.perf_counter()
            moved = way()
            taken[name].append(time.perf_counter() - started)
            assert moved == rows, f"{name} moved {moved:,} rows"
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    fastest = min(medians[name] for name in LOOPS)
    print(f"\n{origin.name}: {rows:,} rows of 16 columns, medians of {rounds} interleaved rounds")
    for name, median in medians.items():
        spread = f"{min(taken[name]):.2f} to {max(taken[name]):.2f}"
        print(
            f"  {name:30} {median:7.2f} s   {median / fastest:.2f} of the fastest loop   ({spread})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dbapi", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sources = [sqlite, mariadb] if mariadb_is_there() else [sqlite]
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        # The servers run under an account of its own, which must be able to enter the folder.
        folder.chmod(0o755)
        settings = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
        server = stack.enter_context(EmbeddedPostgres(folder / "data", settings=settings))
        server.create_database("bench")
        target = server.conninfo("bench")
        for source in sources:
            with source(folder, options.rows) as origin:
                compare(origin, target, options.rows, options.rounds)
    if len(sources) == 1:
        print("\nMariaDB is not installed: apt-get install mariadb-server-core")


if __name__ == "__main__":
    main()

"""Publication: time under the locks, readers meanwhile, swap_merge and merge against statements by hand."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString
from unittest.mock import patch

import psycopg
import uuid6
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from airflow_etl_provider.core.extract import extract
from airflow_etl_provider.core.load import Kind, Manifest, Published, RunInfo, Strategy
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog
from airflow_etl_provider.core.publish import PublishOptions, publish
from airflow_etl_provider.core.request import ExtractRequest, WindowMode
from airflow_etl_provider.core.settle import CursorOrigin, SettleOptions
from airflow_etl_provider.core.window import Interval
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.postgres.publish import PostgresPublisher
from airflow_etl_provider.postgres.relation import Relation
from airflow_etl_provider.postgres.session import Endpoint
from airflow_etl_provider.postgres.source import PostgresSource
from airflow_etl_provider.postgres.staging import PostgresStaging
from airflow_etl_provider.postgres.upsert import Upsert, Written
from airflow_etl_provider.testing import MemoryWatermarkStore
from demo.embedded import EmbeddedPostgres, bin_directory

_COLUMNS: LiteralString = (
    "id bigint NOT NULL, ts timestamptz NOT NULL, changed timestamptz NOT NULL, customer int NOT NULL,"
    " amount numeric(12,2) NOT NULL, status text NOT NULL, note text"
)
_ROWS: LiteralString = (
    "SELECT i, %(low)s::timestamptz + i * (%(high)s::timestamptz - %(low)s::timestamptz) / %(rows)s,"
    " timestamptz '2024-01-01Z', (i * 7919 %% 100000)::int, (i %% 90000) / 100.0, 'open', 'note ' || md5(i::text)"
    " FROM generate_series(0::bigint, %(rows)s - 1) AS i"
)
_FIRST = datetime(2013, 1, 1, tzinfo=UTC)


def _quiet(event: str, **fields: Any) -> None:
    """An event log that keeps nothing."""


class Lab:
    """One source table ``t`` and one partitioned target ``a.t`` on one server."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        for name in ("lab_source", "lab_target"):
            server.create_database(name)
        self.source, self.target = server.conninfo("lab_source"), server.conninfo("lab_target")
        self.kind, self.cursor = Kind.EVENTS, "ts"
        self.keys: tuple[str, ...] = ()

    def run(self, where: str, query: LiteralString, params: Any = None) -> list[Any]:
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = connection.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def prepare(self, rows: int, partitions: int, *, entities: bool = False) -> None:
        """*rows* rows of one day in the source and, of the first of *partitions* days, in the target."""
        self.kind, self.cursor = (Kind.ENTITIES, "changed") if entities else (Kind.EVENTS, "ts")
        self.keys = ("id",) if entities else ()
        self.run(self.source, f"DROP TABLE IF EXISTS t; CREATE TABLE t ({_COLUMNS})")
        bounds = {"low": _FIRST, "high": _FIRST + timedelta(days=1), "rows": rows}
        self.run(self.source, "INSERT INTO t " + _ROWS, bounds)
        self.run(self.source, "CREATE INDEX ON t (changed)")
        self.run(self.source, "ANALYZE t")
        self.run(
            self.target,
            "DROP SCHEMA IF EXISTS etl CASCADE; DROP SCHEMA IF EXISTS etl_staging CASCADE;"
            "DROP SCHEMA IF EXISTS a CASCADE; CREATE SCHEMA a;"
            f"CREATE TABLE a.t ({_COLUMNS}, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts);"
            "CREATE INDEX ON a.t (customer); CREATE INDEX ON a.t (ts)",
        )
        self.run(
            self.target,
            "DO $$ BEGIN FOR i IN 0 .. "
            + str(partitions - 1)
            + " LOOP EXECUTE format('CREATE TABLE a.t_%s PARTITION OF a.t FOR VALUES FROM (%L) TO (%L)', i,"
            " timestamptz '2013-01-01Z' + i * interval '1 day', timestamptz '2013-01-01Z' + (i + 1) * interval '1 day');"
            " END LOOP; END $$",
        )
        self.run(self.target, "INSERT INTO a.t " + _ROWS, bounds)
        self.run(self.target, "VACUUM ANALYZE a.t")
        self.run(self.target, "CHECKPOINT")

    def staged(self, low: datetime, high: datetime) -> Manifest:
        load_id = str(uuid6.uuid7())
        endpoint = Endpoint(conninfo_to_dict(self.target), "target", "etl:bench")
        request = ExtractRequest(
            load_id=load_id,
            run=RunInfo("bench", "extract", load_id, "manual", -1, 1, 0),
            stream="t",
            kind=self.kind,
            source="public.t",
            source_conn_id="source",
            target=TableName("a", "t"),
            target_conn_id="target",
            cursor=self.cursor,
            keys=self.keys,
            mode=WindowMode.INTERVAL,
            interval=Interval(low, high, "benchmark", moves_watermark=True),
            partition=None,
            timezone="UTC",
            origin=None,
            checksum=False,
            store="memory",
            settle=SettleOptions(
                origin=CursorOrigin.APPLICATION, delay=timedelta(0), margin=timedelta(0)
            ),
        )
        source = Endpoint(conninfo_to_dict(self.source), "source", "etl:bench")
        manifest = extract(
            request,
            source=PostgresSource(source, Relation(TableName("public", "t")), timezone="UTC"),
            area=PostgresStaging(endpoint),
            store=MemoryWatermarkStore(),
            now=datetime.now(UTC),
            stop=threading.Event(),
            log=_quiet,
        )
        PostgresAuditArea(endpoint).waive(load_id, "benchmark")
        return manifest

    def publish(
        self, manifest: Manifest, log: EventLog = _quiet, **options: Any
    ) -> tuple[Published, float]:
        endpoint = Endpoint(conninfo_to_dict(self.target), "target", "etl:bench")
        started = time.perf_counter()
        with PostgresPublisher(endpoint) as publisher:
            done = publish(
                manifest,
                PublishOptions(**options),
                run=RunInfo("bench", "publish", manifest.load_id, "manual", -1, 1, 0),
                publisher=publisher,
                store=MemoryWatermarkStore(),
                stop=threading.Event(),
                log=log,
            )
        return done, time.perf_counter() - started

    def timed(self, statements: list[LiteralString]) -> float:
        """Seconds of *statements*, in one transaction."""
        started = time.perf_counter()
        with psycopg.connect(self.target) as connection:
            for statement in statements:
                connection.execute(statement)
        return time.perf_counter() - started

    def megabytes(self) -> float:
        (row,) = self.run(
            self.target,
            "SELECT sum(pg_total_relation_size(relid)) / 1048576.0 FROM pg_partition_tree('a.t')",
        )
        return float(row[0])


@contextmanager
def readers(lab: Lab, count: int, seconds: list[float]) -> Iterator[None]:
    """*count* sessions that read a customer of one partition over and over, and note how long each took."""
    stop = threading.Event()

    def read() -> None:
        with psycopg.connect(lab.target, autocommit=True) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                started = time.perf_counter()
                connection.execute(
                    "SELECT count(*) FROM a.t WHERE customer = %s", (number % 100000,)
                ).fetchone()
                seconds.append(time.perf_counter() - started)
                stop.wait(0.002)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] * 1000 if values else 0.0


def locks(lab: Lab, sizes: list[int], partitions: list[int], rounds: int) -> None:
    print("\ntime under the locks of a swap, ms: median and worst")
    for rows in sizes:
        for count in partitions:
            lab.prepare(rows, count)
            found = []
            for _ in range(rounds):
                done, _s = lab.publish(
                    lab.staged(_FIRST, _FIRST + timedelta(days=1)), strategy=Strategy.SWAP
                )
                found.append(done.lock_ms)
            print(
                f"  {rows:>9,} rows, {count:>3} partitions {statistics.median(found):7.1f} {max(found):7.1f}"
            )


def reading(lab: Lab, rows: int, rounds: int) -> None:
    print(f"\nfour readers while a partition of {rows:,} rows is swapped, ms: p99 and worst")
    lab.prepare(rows, 10)
    window = (_FIRST, _FIRST + timedelta(days=1))
    at_rest: list[float] = []
    with readers(lab, 4, at_rest):
        time.sleep(3)
    print(
        f"  at rest                                {p99(at_rest):7.1f} {max(at_rest) * 1000:7.1f}"
    )
    during: list[float] = []
    for _ in range(rounds):
        manifest = lab.staged(*window)
        seconds: list[float] = []
        with readers(lab, 4, seconds):
            lab.publish(manifest, strategy=Strategy.SWAP)
        during += seconds
    print(f"  during build and swap                  {p99(during):7.1f} {max(during) * 1000:7.1f}")
    blocked: list[float] = []
    manifest = lab.staged(*window)
    with psycopg.connect(lab.target) as report:
        report.execute("SELECT count(*) FROM a.t")
        with readers(lab, 4, blocked):
            ends = threading.Timer(3, report.rollback)
            ends.start()
            lab.publish(manifest, strategy=Strategy.SWAP)
            ends.join()
    print(
        f"  with a reader of 3 s in the way        {p99(blocked):7.1f} {max(blocked) * 1000:7.1f}"
    )


def _by_hand(staging: str) -> list[LiteralString]:
    """What a good engineer would write for the same partition: anti-join, batch, the same indexes, ANALYZE."""
    return [
        "CREATE TABLE a.by_hand (LIKE a.t INCLUDING DEFAULTS)",
        f"INSERT INTO a.by_hand SELECT * FROM a.t_0 AS t WHERE NOT EXISTS (SELECT FROM {staging} AS s WHERE s.id = t.id)",
        f"INSERT INTO a.by_hand SELECT * FROM {staging}",
        "ALTER TABLE a.by_hand ADD PRIMARY KEY (id, ts)",
        "CREATE INDEX ON a.by_hand (customer)",
        "CREATE INDEX ON a.by_hand (ts)",
        "ALTER TABLE a.by_hand ADD CHECK (ts IS NOT NULL AND ts >= '2013-01-01Z' AND ts < '2013-01-02Z')",
        "ANALYZE a.by_hand",
    ]


def _change(lab: Lab, share: float, number: int) -> tuple[datetime, datetime]:
    """Change a share of the source's rows; returns the window of the change."""
    low = datetime(2024, 2, 1, tzinfo=UTC) + timedelta(days=number)
    lab.run(
        lab.source,
        "UPDATE t SET amount = amount + 1, changed = %(at)s WHERE id %% 1000 < %(part)s",
        {"at": low, "part": round(share * 1000)},
    )
    return low, low + timedelta(days=1)


def rebuilding(lab: Lab, rows: int, rounds: int) -> None:
    print(
        f"\nswap_merge of 30 % into a partition of {rows:,} rows, s: ours against the build by hand"
    )
    lab.prepare(rows, 10, entities=True)
    ours, builds, theirs = [], [], []
    for number in range(rounds):
        manifest = lab.staged(*_change(lab, 0.3, number))
        theirs.append(lab.timed(_by_hand(str(manifest.staging))))
        lab.run(lab.target, "DROP TABLE a.by_hand")
        lab.run(lab.target, "CHECKPOINT")
        built: list[float] = []
        started = time.perf_counter()

        def log(
            event: str, *, since: float = started, to: list[float] = built, **fields: Any
        ) -> None:
            if event == "partitions built anew":
                to.append(time.perf_counter() - since)

        _, seconds = lab.publish(manifest, log, strategy=Strategy.SWAP_MERGE)
        builds += built
        ours.append(seconds)
        lab.run(lab.target, "CHECKPOINT")
    _ratio("by hand: INSERT .. SELECT, indexes, CHECK, ANALYZE", theirs, theirs)
    _ratio("swap_merge, build: from its start to the exchange", builds, theirs)
    _ratio("swap_merge, whole publish", ours, theirs)


@contextmanager
def writes_timed(seconds: list[float]) -> Iterator[None]:
    """Note how long the statements of each upsert took that find and write rows."""
    write = Upsert.write

    def timed(self: Upsert, batch: sql.Composable, rows: int) -> Written:
        started = time.perf_counter()
        found = write(self, batch, rows)
        seconds.append(time.perf_counter() - started)
        return found

    with patch.object(Upsert, "write", timed):
        yield


def merging(lab: Lab, rows: int, rounds: int, shares: list[float]) -> None:
    for share in shares:
        print(f"\nmerge of {share:.0%} into a partition of {rows:,} rows, s")
        lab.prepare(rows, 10, entities=True)
        ways: dict[str, Callable[[str], list[Any]]] = {
            "MERGE": lambda s: [
                (
                    f"MERGE INTO a.t AS t USING {s} AS s ON t.id = s.id AND t.ts = s.ts WHEN MATCHED AND"
                    " (t.changed, t.customer, t.amount, t.status, t.note) IS DISTINCT FROM"
                    " (s.changed, s.customer, s.amount, s.status, s.note) THEN UPDATE SET changed = s.changed,"
                    " customer = s.customer, amount = s.amount, status = s.status, note = s.note WHEN NOT MATCHED THEN"
                    " INSERT VALUES (s.id, s.ts, s.changed, s.customer, s.amount, s.status, s.note)"
                )
            ],
            "ON CONFLICT": lambda s: [
                (
                    f"INSERT INTO a.t AS t SELECT * FROM {s} ON CONFLICT (id, ts) DO UPDATE SET changed = excluded.changed,"
                    " customer = excluded.customer, amount = excluded.amount, status = excluded.status, note = excluded.note"
                    " WHERE (t.changed, t.customer, t.amount, t.status, t.note) IS DISTINCT FROM"
                    " (excluded.changed, excluded.customer, excluded.amount, excluded.status, excluded.note)"
                )
            ],
            "DELETE + INSERT": lambda s: [
                f"DELETE FROM a.t AS t USING {s} AS s WHERE t.id = s.id AND t.ts = s.ts",
                f"INSERT INTO a.t SELECT * FROM {s}",
            ],
        }
        ours = {"merge, by primary key": ("id", "ts"), "merge, by id alone": ("id",)}
        found: dict[str, list[float]] = {name: [] for name in [*ways, *ours]}
        writes: dict[str, list[float]] = {name: [] for name in ours}
        number = 0
        for _ in range(rounds):
            for name in found:
                number += 1
                lab.keys = ours.get(name, ("id", "ts"))
                manifest = lab.staged(*_change(lab, share, number))
                if name in ways:
                    lab.run(lab.target, "ANALYZE " + str(manifest.staging))
                    found[name].append(lab.timed(ways[name](str(manifest.staging))))
                else:
                    with writes_timed(writes[name]):
                        found[name].append(lab.publish(manifest, strategy=Strategy.MERGE)[1])
                lab.run(lab.target, "VACUUM a.t")
        best = min((found[name] for name in ways), key=statistics.median)
        for name, seconds in found.items():
            _ratio(name, seconds, best)
            if name in writes:
                _ratio("  of it what finds and writes the rows", writes[name], best)
        before = lab.megabytes()
        manifest = lab.staged(*_change(lab, share, number))
        lab.publish(manifest, strategy=Strategy.MERGE)
        lab.run(lab.target, "VACUUM a.t")
        between = lab.megabytes()
        for _ in range(3):
            lab.run(lab.target, "UPDATE etl.loads SET state = 'failed' WHERE state = 'validated'")
            low = datetime(2024, 2, 1, tzinfo=UTC) + timedelta(days=number)
            lab.publish(lab.staged(low, low + timedelta(days=1)), strategy=Strategy.MERGE)
        print(
            f"  table: {before:.0f} MB, {between:.0f} MB, and {lab.megabytes():.0f} MB after three unchanged reloads"
        )


def _ratio(name: str, seconds: list[float], base: list[float]) -> None:
    middle = statistics.median(seconds)
    print(f"  {name:<52} {middle:7.2f}   {middle / statistics.median(base):.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publication", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 5_000_000])
    parser.add_argument("--partitions", type=int, nargs="*", default=[10, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["locks", "reading", "rebuilding", "merging"])
    parser.add_argument("--server", type=int, default=18, help="major version of PostgreSQL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as folder:
        Path(folder).chmod(0o755)
        settings = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
        bin_dir = bin_directory(options.server)
        with EmbeddedPostgres(Path(folder) / "data", bin_dir=bin_dir, settings=settings) as server:
            lab = Lab(server)
            if "locks" in options.only:
                locks(lab, options.sizes, options.partitions, options.rounds)
            if "reading" in options.only:
                reading(lab, options.rows, options.rounds)
            if "rebuilding" in options.only:
                rebuilding(lab, options.rows, options.rounds)
            if "merging" in options.only:
                merging(lab, options.rows, options.rounds, [0.01, 0.3])
                merging(lab, options.rows * 5, options.rounds, [0.01])


if __name__ == "__main__":
    main()

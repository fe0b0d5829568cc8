"""Drives extract -> audit waived -> publish in one call, on real databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import sql
from uuid6 import uuid7

from airflow_etl_provider.core.columns import Selection
from airflow_etl_provider.core.dead_letters import DeadLimits, Fault
from airflow_etl_provider.core.extract import extract
from airflow_etl_provider.core.load import Kind, Manifest, Published, RunInfo
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.partition import Every, PartitionSpec
from airflow_etl_provider.core.ports import EventLog, Stop, WatermarkStore
from airflow_etl_provider.core.publish import PublishOptions, publish
from airflow_etl_provider.core.replay import Replayed, ReplayRequest
from airflow_etl_provider.core.request import ExtractRequest, WindowMode
from airflow_etl_provider.core.settle import SettleOptions
from airflow_etl_provider.core.transform import ByCallable, BySql, TransformRequest, transform
from airflow_etl_provider.core.validate import Engine, Quarantine, validate
from airflow_etl_provider.core.window import Interval
from airflow_etl_provider.postgres.audit import PostgresAuditArea
from airflow_etl_provider.postgres.publish import PostgresPublisher
from airflow_etl_provider.postgres.relation import Relation
from airflow_etl_provider.postgres.replay import replay_letters
from airflow_etl_provider.postgres.source import PostgresSource
from airflow_etl_provider.postgres.staging import PostgresStaging
from airflow_etl_provider.postgres.transform import PostgresTransforms
from airflow_etl_provider.quality.engine import audit
from airflow_etl_provider.quality.quarantine import combined, failed, quarantined
from airflow_etl_provider.quality.report import Report, raise_if_rejected
from airflow_etl_provider.quality.suite import Suite, parse_suite
from airflow_etl_provider.testing import MemoryWatermarkStore, RecordedEvents

if TYPE_CHECKING:
    from tests.conftest import Database

NEW_YORK = ZoneInfo("America/New_York")
JANUARY = datetime(2013, 1, 1, tzinfo=UTC)
FEBRUARY = datetime(2013, 2, 1, tzinfo=UTC)
MARCH = datetime(2013, 3, 1, tzinfo=UTC)
APRIL = datetime(2013, 4, 1, tzinfo=UTC)
MONTHLY = PartitionSpec("ts", Every.MONTH, "UTC")
#: However many rows are bad, they may be set aside.
EVERY_ROW = DeadLimits(max_share=1.0)

#: What every simple test loads: events with a key, an instant and some text.
SOURCE_TABLE = "CREATE TABLE t (id bigint PRIMARY KEY, ts timestamptz NOT NULL, v text)"
TARGET_TABLE = """
    CREATE SCHEMA a;
    CREATE TABLE a.t (id bigint, ts timestamptz NOT NULL, v text, PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts)
"""


def run_info(
    run_id: str, run_type: str = "scheduled", try_number: int = 1, task_id: str = "extract"
) -> RunInfo:
    return RunInfo(
        dag_id="dag",
        task_id=task_id,
        run_id=run_id,
        run_type=run_type,
        map_index=-1,
        try_number=try_number,
        clear_number=0,
    )


@dataclass
class Pipeline:
    """One stream between two databases; every call is a run of its own."""

    source: Database
    warehouse: Database
    stream: str = "t"
    kind: Kind = Kind.EVENTS
    table: TableName = field(default_factory=lambda: TableName("public", "t"))
    target: TableName = field(default_factory=lambda: TableName("a", "t"))
    cursor: str | None = "ts"
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    partition: PartitionSpec | None = MONTHLY
    timezone: str = "UTC"
    origin: datetime | None = None
    store: WatermarkStore = field(default_factory=MemoryWatermarkStore)
    log: EventLog = field(default_factory=RecordedEvents)
    source_role: dict[str, str] = field(default_factory=dict)
    warehouse_role: dict[str, str] = field(default_factory=dict)
    application: str = "etl:test"
    mode: WindowMode | None = None
    query: str | None = None
    hash_key: str | None = None
    row_security: bool = False
    selection: Selection | None = None
    settle: SettleOptions = field(default_factory=SettleOptions)
    lookback: timedelta | int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def request(
        self,
        low: datetime | None = None,
        high: datetime | None = None,
        *,
        load_id: str | None = None,
        run_type: str = "scheduled",
        run_id: str | None = None,
        try_number: int = 1,
        moves: bool | None = None,
        **changes: Any,
    ) -> ExtractRequest:
        """The request of one run; *changes* are fields of it that are not the pipeline's own."""
        load_id = load_id or str(uuid7())
        moves = run_type != "backfill" if moves is None else moves
        mode = self.mode or (WindowMode.FULL if low is None else WindowMode.INTERVAL)
        fields: dict[str, Any] = {
            "load_id": load_id,
            "run": run_info(run_id or f"{run_type}__{load_id}", run_type, try_number),
            "stream": self.stream,
            "kind": self.kind,
            "source": "the query" if self.query else str(self.table),
            "source_conn_id": "source",
            "target": self.target,
            "target_conn_id": "warehouse",
            "cursor": self.cursor,
            "keys": self.keys,
            "selection": self.selection or Selection(self.columns),
            "mode": mode,
            "interval": None
            if low is None or high is None
            else Interval(low, high, "data interval", moves),
            "partition": self.partition,
            "timezone": self.timezone,
            "origin": self.origin,
            "checksum": False,
            "store": "memory",
            "settle": self.settle,
            "lookback": self.lookback,
        }
        return ExtractRequest(**fields | self.options | changes)

    def reader(self) -> PostgresSource:
        relation = Relation(query=self.query) if self.query else Relation(self.table)
        return PostgresSource(
            self.source.endpoint(self.application, **self.source_role),
            relation,
            timezone=self.timezone,
            hash_key=self.hash_key,
            row_security=self.row_security,
        )

    def extract(
        self,
        low: datetime | None = None,
        high: datetime | None = None,
        *,
        stop: Stop | None = None,
        **request: Any,
    ) -> Manifest:
        return extract(
            self.request(low, high, **request),
            source=self.reader(),
            area=self.staging(),
            store=self.store,
            now=datetime.now(UTC),
            stop=stop or threading.Event(),
            log=self.log,
        )

    def transform(
        self,
        manifest: Manifest,
        how: str | Callable[[Any], Any],
        *,
        try_number: int = 1,
        clear_number: int = 0,
        task_id: str = "transform",
        parameters: dict[str, Any] | None = None,
        filled_by_publish: tuple[str, ...] = (),
        stop: Stop | None = None,
        application: str | None = None,
        **options: Any,
    ) -> Manifest:
        """The batch made anew by a SELECT or a callable, whose options are those of ``ByCallable``."""
        run = run_info(f"scheduled__{manifest.load_id}", try_number=try_number, task_id=task_id)
        by = (
            BySql(how, parameters or {})
            if isinstance(how, str)
            else ByCallable(how, getattr(how, "__name__", "callable"), **options)
        )
        endpoint = self.warehouse.endpoint(application or self.application, **self.warehouse_role)
        made = transform(
            TransformRequest(
                manifest.load_id, replace(run, clear_number=clear_number), by, filled_by_publish
            ),
            area=PostgresTransforms(endpoint),
            stop=stop or threading.Event(),
            log=self.log,
        )
        # As Airflow does: through JSON.
        return Manifest.from_json(made.as_json())

    def staging(self) -> PostgresStaging:
        return PostgresStaging(self.warehouse.endpoint(self.application, **self.warehouse_role))

    def audits(self) -> PostgresAuditArea:
        return PostgresAuditArea(self.warehouse.endpoint(self.application, **self.warehouse_role))

    def waive(self, manifest: Manifest) -> Manifest:
        self.audits().waive(manifest.load_id, "test")
        # As Airflow does: through JSON.
        return Manifest.from_json(manifest.as_json())

    def audit(
        self,
        manifest: Manifest,
        expectations: Sequence[dict[str, Any]],
        limits: DeadLimits = EVERY_ROW,
        *,
        area: PostgresAuditArea | None = None,
    ) -> Manifest:
        """Audited by SQL; what has ``on_fail: quarantine`` sets rows aside."""
        area, suite = area or self.audits(), parse_suite(expectations)
        numbers = quarantined(suite)

        def judge(table: TableName, load_id: str) -> Report:
            columns = area.columns(table)
            return audit(
                suite,
                Engine.SQL,
                load_id=load_id,
                table=str(table),
                by_sql=lambda some: area.judge(table, some, columns, manifest=manifest),
                by_gx=lambda rest: pytest.fail(f"left to Great Expectations: {rest}"),
            )

        def faults(report: Any, table: TableName) -> list[Fault]:
            bad = [suite.expectations[number] for number in failed(report, numbers)]
            return area.faults(table, bad, area.columns(table))

        done = validate(
            manifest.load_id,
            area=area,
            audit=judge,
            reject=lambda report, table: raise_if_rejected(report, staging=str(table)),  # type: ignore[arg-type]
            log=self.log,
            quarantine=Quarantine(
                faults,
                lambda first, rest: combined(first, rest, failed(first, numbers)),  # type: ignore[arg-type]
                limits,
            ),
        )
        return Manifest.from_json(done.manifest.as_json())

    def replay(
        self,
        ids: Sequence[int] | None = None,
        *,
        values: dict[str, str | None] | None = None,
        corrections: dict[int, dict[str, str | None]] | None = None,
        suite: Sequence[dict[str, Any]] | None = None,
        stop: Stop | None = None,
        new_id: Callable[[], str] = lambda: str(uuid7()),
        by_gx: Callable[[TableName, Suite, str], Report] | None = None,
    ) -> Replayed:
        """Replay letters; all that are pending unless *ids* says which."""
        request = ReplayRequest(
            self.stream,
            run_info("replay", "manual", task_id="replay"),
            None if ids is None else tuple(ids),
            values or {},
            corrections or {},
        )
        done = replay_letters(
            self.warehouse.endpoint(self.application, **self.warehouse_role),
            request,
            None if suite is None else parse_suite(suite),
            by_gx=by_gx or (lambda *left: pytest.fail(f"left to Great Expectations: {left}")),
            new_id=new_id,
            stop=stop or threading.Event(),
            log=self.log,
        )
        done.raise_refused()
        return done

    def letters(self, columns: str = "record, reason, status") -> list[tuple[Any, ...]]:
        """Dead letters of the warehouse, in the order in which they were written."""
        return self.warehouse.run(f"SELECT {columns} FROM etl.dead_letters ORDER BY id")

    def publish(
        self,
        manifest: Manifest,
        *,
        stop: Stop | None = None,
        log: EventLog | None = None,
        **options: Any,
    ) -> Published:
        endpoint = self.warehouse.endpoint(self.application, **self.warehouse_role)
        with PostgresPublisher(endpoint) as publisher:
            return publish(
                manifest,
                PublishOptions(**options),
                run=run_info(f"scheduled__{manifest.load_id}"),
                publisher=publisher,
                store=self.store,
                stop=stop or threading.Event(),
                log=log or self.log,
            )

    def staged(self, *args: Any, **request: Any) -> Manifest:
        """Extracted and audited, ready to publish."""
        return self.waive(self.extract(*args, **request))

    def load(
        self,
        low: datetime | None = None,
        high: datetime | None = None,
        *,
        options: dict[str, Any] | None = None,
        **request: Any,
    ) -> Published:
        """Extract, waive the audit, publish."""
        return self.publish(self.staged(low, high, **request), **(options or {}))

    # -- what can be seen from outside ------------------------------------------------------------

    def rows(self) -> list[tuple[Any, ...]]:
        return table_rows(self.warehouse, self.target)

    def source_rows(self) -> list[tuple[Any, ...]]:
        return table_rows(self.source, self.table)

    def position(self) -> str | None:
        found: str | None = self.warehouse.value(
            "SELECT position FROM etl.streams WHERE stream = %s", (self.stream,)
        )
        return found

    def state(self, load_id: str) -> str:
        found: str = self.warehouse.value(
            "SELECT state FROM etl.loads WHERE load_id = %s", (load_id,)
        )
        return found

    def coverage(self) -> list[tuple[str, str, str]]:
        return self.warehouse.run(
            "SELECT low, high, load_id::text FROM etl.coverage WHERE stream = %s ORDER BY low",
            (self.stream,),
        )

    def left_in_staging(self) -> set[str]:
        """Tables that stand in the staging schema."""
        return {
            row[0]
            for row in self.warehouse.run(
                "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('etl_staging')"
                " AND relkind IN ('r', 'p')"
            )
        }

    def picture(self) -> tuple[Any, ...]:
        """Everything a failed publish must leave as it was: rows, tables, coverage and position."""
        tables = self.warehouse.run(
            "SELECT relnamespace::regnamespace::text, relname::text, relkind::text, relispartition, oid::bigint"
            " FROM pg_class WHERE relnamespace = to_regnamespace(%s) ORDER BY 1, 2",
            (sql.Identifier(self.target.schema).as_string(None),),
        )
        return (self.rows(), tables, self.coverage(), self.position())


def simple(source: Database, warehouse: Database, **changes: Any) -> Pipeline:
    """The plain case: ``public.t`` into ``a.t``, partitioned by month of UTC, both empty."""
    source.run(SOURCE_TABLE)
    warehouse.run(TARGET_TABLE)
    return Pipeline(source, warehouse, **changes)


def fill(database: Database, start: datetime, end: datetime, rows: int, *, first: int = 1) -> None:
    """Put *rows* rows spread evenly over ``[start, end)`` into ``t``; microseconds everywhere."""
    database.run(
        "INSERT INTO t SELECT %(first)s + i, %(start)s::timestamptz + i * (%(end)s::timestamptz - %(start)s)"
        " / %(rows)s, 'row ' || i FROM generate_series(0, %(rows)s - 1) AS i",
        {"first": first, "start": start, "end": end, "rows": rows},
    )


def table_rows(database: Database, table: TableName) -> list[tuple[Any, ...]]:
    """Every row as text, in order of that text."""
    return database.run(
        sql.SQL('SELECT t::text COLLATE "C" FROM {} AS t ORDER BY 1').format(
            sql.Identifier(table.schema, table.name)
        )
    )


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until *condition* is true and return it; a condition that never holds hangs no test."""
    pause = threading.Event()
    give_up = time.monotonic() + 15
    while time.monotonic() < give_up:
        found = condition()
        if found:
            return found
        pause.wait(0.01)
    raise AssertionError(f"never happened: {what}")


@contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Run *work* in a thread; the block ends when it has."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


@contextmanager
def reader(database: Database, query: Any, application: str = "slow report") -> Iterator[Any]:
    """A session that has run *query* and stays in its transaction."""
    with psycopg.connect(database.conninfo, application_name=application) as connection:
        connection.execute(query)
        yield connection


@contextmanager
def login(database, *grants):
    """A role with a password and nothing but *grants*, gone afterwards."""
    name = f"r_{uuid7().hex[-12:]}"
    database.run(f"CREATE ROLE {name} LOGIN PASSWORD 'pw-of-role'")
    for grant in grants:
        database.run(sql.SQL(grant).format(role=sql.Identifier(name)))
    try:
        yield {"user": name, "password": "pw-of-role"}
    finally:
        database.run(f"DROP OWNED BY {name} CASCADE")
        database.run(f"DROP ROLE {name}")


@contextmanager
def group_and_member(database):
    """A role that may own a target, and a login that belongs to it and loads."""
    create = "GRANT CREATE ON DATABASE " + database.name + " TO {role}"
    with login(database) as group, login(database, create) as member:
        database.run(f"GRANT {group['user']} TO {member['user']}")
        yield group["user"], member

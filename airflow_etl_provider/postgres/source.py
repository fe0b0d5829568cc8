"""A PostgreSQL table as a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

import psycopg2

from airflow_etl_provider.core.errors import CatalogError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog, Session, SourceColumn, SourceShape, Stop
from airflow_etl_provider.core.settle import Settled, SettleOptions
from airflow_etl_provider.core.window import Window
from airflow_etl_provider.postgres import catalog, statements
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.session import (
    Endpoint,
    connect,
    connect_for_copy,
    dataset_of,
    end_sessions,
    session_of,
)
from airflow_etl_provider.postgres.settle import Settling


@dataclass(slots=True)
class PostgresSender:
    """One repeatable-read snapshot, sent by ``COPY … TO STDOUT``."""

    connection: psycopg2.extensions.connection
    statement: str
    snapshot_at: datetime
    null_cursors: int
    checksum: str | None
    estimated_rows: int | None = None
    session: Session | None = None

    def send(self, sink: BinaryIO) -> int:
        with self.connection.cursor() as cursor:
            cursor.copy_expert(self.statement, sink)
            return cursor.rowcount

    def cancel(self) -> None:
        with suppress(psycopg2.Error):
            self.connection.cancel()


@dataclass(frozen=True, slots=True)
class PostgresSource:
    """Reads *table* over *endpoint*; the connection is direct, not through a transaction pooler.

    :param timezone: wall clock that a cursor without time zone shows.
    """

    endpoint: Endpoint
    table: TableName
    timezone: str = "UTC"

    def describe(self) -> SourceShape:
        with connect(self.endpoint) as connection:
            table = catalog.read_table(connection, self.table, label=self.endpoint.label)
            missing = catalog.missing_privileges(connection, table, ("SELECT",))
            if missing:
                raise CatalogError(
                    f"role {connection.info.user} may not read {self.table} on {self.endpoint.label}",
                    remedy=f"GRANT SELECT ON {self.table} TO {connection.info.user}",
                )
            return SourceShape(
                name=str(self.table),
                columns=tuple(as_offered(column) for column in table.columns),
                dataset=dataset_of(connection, self.table),
            )

    def end(self, sessions: Sequence[Session]) -> None:
        with connect(self.endpoint) as connection, translated_errors("ending an earlier try"):
            end_sessions(connection, sessions)

    def settle(
        self, cursor: str, high: str | None, options: SettleOptions, *, stop: Stop, log: EventLog
    ) -> Settled:
        with connect(self.endpoint) as connection, translated_errors(f"settling {self.table}"):
            table = catalog.read_table(connection, self.table, label=self.endpoint.label)
            settling = Settling(
                connection, table, cursor, options, timezone=self.timezone, stop=stop, log=log
            )
            return settling.run(high)

    @contextmanager
    def open(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[str],
        binary: bool,
        checksum: bool,
    ) -> Iterator[PostgresSender]:
        query = statements.window_query(self.table, columns, cursor, window)
        with connect_for_copy(self.endpoint, read_only=True) as connection:
            with (
                translated_errors(f"reading {self.table} on {self.endpoint.label}"),
                connection.cursor() as run,
            ):
                # Names of objects (regclass) are written with their schema. A view's functions may rely
                # on the role's own search path, so a view keeps it.
                run.execute(statements.hide_schemas(self.table).as_string(None))
                run.execute("SELECT clock_timestamp()")
                (snapshot_at,) = run.fetchone() or (None,)
                nulls = 0
                if cursor is not None:
                    run.execute(statements.null_cursors(self.table, cursor).as_string(None))
                    (nulls,) = run.fetchone() or (0,)
                digest = None
                if checksum:
                    run.execute(statements.checksum(query, columns).as_string(None))
                    (digest,) = run.fetchone() or (None,)
                run.execute(statements.explain(query).as_string(None))
                ((explained,),) = run.fetchall()
                session = session_of(connection, "source")
            yield PostgresSender(
                connection=connection,
                statement=statements.copy_out(query, binary=binary).as_string(None),
                snapshot_at=snapshot_at,
                null_cursors=nulls,
                checksum=digest,
                estimated_rows=round(explained[0]["Plan"]["Plan Rows"]),
                session=session,
            )


def as_offered(column: catalog.CatalogColumn) -> SourceColumn:
    """A column of a table as a source offers it."""
    return SourceColumn(
        name=column.name,
        type=column.type,
        not_null=column.not_null,
        portable=column.builtin and not column.refers_by_oid,
        definition=column.definition,
    )

"""A PostgreSQL table or query as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import psycopg2
from psycopg import sql

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError
from airflow_etl_provider.core.names import quoted
from airflow_etl_provider.core.ports import (
    EventLog,
    Figure,
    Measured,
    Session,
    SourceColumn,
    SourceShape,
    Stop,
)
from airflow_etl_provider.core.settle import Settled, SettleOptions, Wait
from airflow_etl_provider.core.window import Nulls, Window
from airflow_etl_provider.postgres import catalog, statements
from airflow_etl_provider.postgres.catalog import Table
from airflow_etl_provider.postgres.cursors import CursorKind, casts, cursor_kind
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.figures import measure, measuring
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.relation import Relation
from airflow_etl_provider.postgres.session import (
    Endpoint,
    connect,
    connect_for_copy,
    dataset_of,
    end_sessions,
    run_patiently,
    session_of,
)
from airflow_etl_provider.postgres.settle import Settling
from airflow_etl_provider.postgres.snapshot import PostgresSnapshot, Reading, canonical_names

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class PostgresSource:
    """Reads *relation* over *endpoint*; the connection is direct, not through a transaction pooler.

    :param timezone: wall clock that a cursor without time zone shows.
    :param hash_key: the key of columns that are hashed; equal keys give equal hashes everywhere.
    :param row_security: whether the policies of row security may hide rows; else they are an error.
    """

    endpoint: Endpoint
    relation: Relation
    timezone: str = "UTC"
    hash_key: str | None = field(default=None, repr=False)
    row_security: bool = False

    def describe(self) -> SourceShape:
        with connect(self._endpoint()) as connection:
            table = self._read(connection)
            if table.kind != catalog.QUERY and catalog.missing_privileges(
                connection, table, ("SELECT",)
            ):
                raise CatalogError(
                    f"role {connection.info.user} may not read {self.relation} on {self.endpoint.label}",
                    remedy=f"GRANT SELECT ON {self.relation} TO {quoted(connection.info.user)}",
                )
            return SourceShape(
                name=self._name,
                columns=tuple(as_offered(column) for column in table.columns),
                datasets=tuple(dataset_of(connection, name) for name in table.reads),
                is_query=table.kind == catalog.QUERY,
            )

    def end(self, sessions: Sequence[Session]) -> None:
        with connect(self.endpoint) as connection, translated_errors("ending an earlier try"):
            end_sessions(connection, sessions)

    def settle(
        self,
        cursor: str,
        high: str | None,
        options: SettleOptions,
        *,
        earlier: Wait | None,
        stop: Stop,
        log: EventLog,
    ) -> Settled:
        with connect(self._endpoint()) as connection, translated_errors(f"settling {self._name}"):
            settling = Settling(
                connection,
                self.relation,
                self._read(connection),
                cursor,
                options,
                timezone=self.timezone,
                earlier=earlier,
                stop=stop,
                log=log,
            )
            return settling.run(high)

    @contextmanager
    def open(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[Selected],
        binary: bool,
        checksum: bool,
        judged: Collection[str] = (),
    ) -> Iterator[PostgresSnapshot]:
        """Take one snapshot and make the rows of *window* ready to send.

        :raises ConfigurationError: a column is to be hashed and there is no key, or the query's bounds do
            not fit the window.
        """
        endpoint = self._endpoint(columns)
        with connect(endpoint) as connection:
            table = self._read(connection)
        rows = self.relation.rows(window)
        with connect_for_copy(endpoint, read_only=True) as session:
            reading = Reading(
                endpoint, self.relation, table, window, cursor, columns, binary, checksum, judged
            )
            with translated_errors(reading.what), session.cursor() as run:
                canonical_names(session, table)
                run.execute("SELECT pg_catalog.clock_timestamp()")
                (snapshot_at,) = run.fetchone() or (None,)
                nulls, unreachable = 0, None
                if cursor is not None and window.nulls is not Nulls.ONLY:
                    nulls, unreachable = self._outside(session, rows, table, cursor)
                snapshot = PostgresSnapshot(
                    reading,
                    session,
                    session_of(session, "source"),
                    snapshot_at,
                    nulls,
                    unreachable,
                )
            yield snapshot

    def measure(
        self,
        window: Window,
        *,
        cursor: str | None,
        columns: Sequence[Selected],
        figures: Sequence[Figure],
        checksum: Sequence[str],
    ) -> Measured:
        what = f"measuring {self._name} on {self.endpoint.label}"
        with connect(self._endpoint()) as connection, translated_errors(what):
            table = self._read(connection)
            if table.kind == "v":
                # Its functions may rely on the role's own search path, as when it was read.
                connection.execute("RESET search_path")
            rows = statements.selection(
                self.relation.rows(window), columns, cursor, window, part=None
            )
            return measure(connection, measuring(sql.SQL("({})").format(rows), figures, checksum))

    @property
    def _name(self) -> str:
        if self.relation.table is not None:
            return str(self.relation.table)
        return f"the query on {self.endpoint.label}"

    def _read(self, connection: psycopg.Connection[Any]) -> Table:
        """The table, or what the query returns."""
        table = self.relation.table
        if table is not None:
            found = catalog.read_table(connection, table, label=self.endpoint.label)
            self._refuse_hidden_rows(connection, found)
            return replace(found, reads=(table,))
        # The names in a query are looked up as the role would; the session keeps that.
        connection.execute("RESET search_path")
        return self._read_query(connection)

    def _read_query(self, connection: psycopg.Connection[Any]) -> Table:
        """What the query returns: where its bounds only fit one type, the types of cursors are tried."""
        bounds: list[sql.Composable] = [sql.SQL("NULL")]
        if self.relation.is_bounded:
            bounds += [sql.SQL("NULL::{}").format(cast) for cast in casts()]
        errors = []
        for bound in bounds:
            try:
                return catalog.read_query(
                    connection, self.relation.without_rows(bound), label=self.endpoint.label
                )
            except CatalogError as error:
                errors.append(error)
        raise errors[0]

    def _refuse_hidden_rows(self, connection: psycopg.Connection[Any], table: Table) -> None:
        if self.row_security or not catalog.scalar(
            connection, queries("catalog")["row_security_active"], {"oid": table.oid}
        ):
            return
        user = connection.info.user
        raise CatalogError(
            f"row security on {table.name} may hide rows from role {user}, and they would be missing in silence",
            remedy=f"read as a role with BYPASSRLS, or say row_security='apply' if the rows that {user} sees are "
            "the ones that are meant",
        )

    def _endpoint(self, columns: Sequence[Selected] = ()) -> Endpoint:
        """How to reach the source, with what its sessions must know.

        :raises ConfigurationError: a column is to be hashed, and there is no key.
        """
        settings = {} if self.row_security else {"row_security": "off"}
        hashed = [column.source for column in columns if column.treatment is Treatment.HASH]
        if hashed and not self.hash_key:
            raise ConfigurationError(
                f"{', '.join(hashed)} of {self._name} are to be hashed, but there is no key",
                remedy="name a connection whose password is the key with hash_conn_id=...; without a key anybody "
                "could find the values again by trying",
            )
        secrets = hash_settings(self.hash_key or "") if hashed else {}
        return replace(self.endpoint, settings=settings, secrets=secrets)

    def _outside(
        self,
        session: psycopg2.extensions.connection,
        rows: sql.Composable,
        table: Table,
        cursor: str,
    ) -> tuple[int, int | None]:
        """How many rows have no cursor value, and how many one that lies ahead of the clock.

        The second is counted where that is cheap: where an index orders the cursor, or the first needs a
        look at all rows anyway.
        """
        column = table.column(cursor, use="the cursor")
        # A query may leave out itself what lies above its bounds.
        ahead = None if self.relation.is_bounded else self._ahead(column)
        cheap = not column.not_null
        if ahead is not None and not cheap:
            ((cheap,),) = run_patiently(
                session, queries("catalog")["orders_by_index"], {"oid": table.oid, "column": cursor}
            )
        if not cheap:
            return 0, None
        statement = sql.SQL(
            "SELECT count(*) FILTER (WHERE {c} IS NULL), count(*) FILTER (WHERE {ahead})"
            " FROM {rows} WHERE {c} IS NULL OR {ahead}"
        ).format(c=sql.Identifier(cursor), ahead=ahead or sql.SQL("false"), rows=rows)
        ((nulls, unreachable),) = run_patiently(session, statement)
        return nulls, None if ahead is None else unreachable

    def _ahead(self, column: catalog.CatalogColumn) -> sql.Composable | None:
        """Whether a value lies where no window can reach yet; ``None`` where there is no such place."""
        name = sql.Identifier(column.name)
        if column.type.split("(")[0] == "numeric":
            return sql.SQL("{} >= 'Infinity'").format(name)
        if cursor_kind(column.type) is not CursorKind.TIME:
            return None
        # Of the transaction, not of the clock: only what does not change can be looked up in an index.
        now: sql.Composable = sql.SQL("pg_catalog.transaction_timestamp()")
        if not column.type.endswith("with time zone"):
            now = sql.SQL("({} AT TIME ZONE {})").format(now, sql.Literal(self.timezone))
        return sql.SQL("{} > {}").format(name, now)


def hash_settings(key: str) -> dict[str, str]:
    """The two pads of an HMAC-SHA-256 key (RFC 2104), which the session's settings hold."""
    raw = key.encode()
    if len(raw) > _BLOCK:
        raw = hashlib.sha256(raw).digest()
    padded = raw.ljust(_BLOCK, b"\0")
    return {
        statements.HASH_INNER: bytes(byte ^ 0x36 for byte in padded).hex(),
        statements.HASH_OUTER: bytes(byte ^ 0x5C for byte in padded).hex(),
    }


def as_offered(column: catalog.CatalogColumn) -> SourceColumn:
    """A column of a table as a source offers it."""
    return SourceColumn(
        name=column.name,
        type=column.type,
        not_null=column.not_null,
        portable=column.builtin and not column.refers_by_oid,
        definition=column.definition,
    )

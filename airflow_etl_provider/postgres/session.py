"""Connections as this package needs them: named, watched by the server, with canonical text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import psycopg2
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Session
from airflow_etl_provider.postgres.errors import sqlstate_of, translated_errors

log = structlog.get_logger(__name__)

_open: set[psycopg.Connection[Any]] = set()

#: Text form of every value is the same in all our sessions, whatever the server's defaults are.
_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "array_nulls": "on",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
_KEEPALIVE = {
    "connect_timeout": "15",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach one database: libpq parameters, and the name that ``pg_stat_activity`` shows.

    :param conninfo: libpq keywords and values; never printed.
    :param label: how logs and errors call it, such as ``connection etl_source``.
    :param application_name: at most 63 bytes.
    :param settings: of the session, given when it is opened, so that no statement shows their values.
    """

    conninfo: Mapping[str, Any] = field(repr=False)
    label: str
    application_name: str
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    def parameters(self) -> dict[str, str]:
        """The libpq keywords and values, with our defaults where the connection says nothing."""
        given = {key: str(value) for key, value in self.conninfo.items() if value not in (None, "")}
        # One encoding on every wire: the servers convert from and to their own.
        fixed = {"application_name": self.application_name, "client_encoding": "UTF8"}
        options = [given["options"]] if "options" in given else []
        options += [f"-c {name}={value}" for name, value in self.settings.items()]
        if options:
            fixed["options"] = " ".join(options)
        return {**_KEEPALIVE, **given, **fixed}

    def dsn(self) -> str:
        """The libpq connection string."""
        return make_conninfo("", **self.parameters())


@contextmanager
def connect(endpoint: Endpoint) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection for statements; transactions are opened where they matter.

    :raises ConnectionLost: the server cannot be reached.
    """
    with translated_errors(f"connecting to {endpoint.label}"):
        connection = psycopg.connect(_dsn(endpoint), autocommit=True, prepare_threshold=None)
    with connection:
        with translated_errors(f"preparing a session on {endpoint.label}"):
            _prepare(connection)
            connection.execute("SELECT set_config('search_path', 'pg_catalog', false)")
        _open.add(connection)
        try:
            yield connection
        finally:
            _open.discard(connection)


def cancel_open_sessions() -> None:
    """Cancel what the sessions of :func:`connect` are running; safe in a signal handler, any number of times."""
    for connection in tuple(_open):
        with suppress(psycopg.Error):
            connection.cancel()


@contextmanager
def connect_for_copy(
    endpoint: Endpoint, *, read_only: bool
) -> Iterator[psycopg2.extensions.connection]:
    """A psycopg2 connection, in a transaction from its first statement, for whole-block COPY.

    ``read_only`` gives one repeatable-read snapshot for everything it reads. What is not committed by
    the block is rolled back.
    """
    with translated_errors(f"connecting to {endpoint.label}"):
        connection = psycopg2.connect(_dsn(endpoint))
    try:
        with translated_errors(f"preparing a session on {endpoint.label}"):
            connection.set_session(autocommit=True)
            _prepare(connection)
            if read_only:
                connection.set_session(
                    isolation_level="REPEATABLE READ", readonly=True, autocommit=False
                )
            else:
                # Names of objects (regclass) are read as they were written, with their schema.
                with connection.cursor() as cursor:
                    cursor.execute("SET search_path = pg_catalog")
                connection.set_session(isolation_level="READ COMMITTED", autocommit=False)
        yield connection
    finally:
        connection.close()


def _dsn(endpoint: Endpoint) -> str:
    try:
        return endpoint.dsn()
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"{endpoint.label} is no libpq connection: {str(error).splitlines()[0]}",
            remedy="look at the connection's extra: every key in it must be a libpq keyword",
        ) from None


def _prepare(connection: psycopg.Connection[Any] | psycopg2.extensions.connection) -> None:
    cursor = connection.cursor()
    pairs = [
        sql.SQL("set_config({}, {}, false)").format(sql.Literal(name), sql.Literal(value))
        for name, value in _SETTINGS.items()
    ]
    cursor.execute((sql.SQL("SELECT ") + sql.SQL(", ").join(pairs)).as_string(None))
    try:
        cursor.execute("SET client_connection_check_interval = '1s'")
    except (psycopg.Error, psycopg2.Error) as error:
        log.warning(
            "the server cannot watch for lost clients: a statement may outlive its killed task",
            setting="client_connection_check_interval",
            sqlstate=sqlstate_of(error),
        )
    cursor.close()


def dataset_of(connection: psycopg.Connection[Any], table: TableName) -> tuple[str, str]:
    """The OpenLineage namespace and name of a table, after OpenLineage's naming rules for PostgreSQL."""
    info = connection.info
    return f"postgres://{info.host}:{info.port}", f"{info.dbname}.{table.schema}.{table.name}"


def session_of(connection: psycopg2.extensions.connection, side: str) -> Session:
    """The server process behind *connection*."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"
        )
        pid, started = cursor.fetchone() or (0, None)
    return Session(side, pid, started)


def end_sessions(connection: psycopg.Connection[Any], sessions: Sequence[Session]) -> list[int]:
    """End those of *sessions* that still run, and wait until they are gone; returns their pids."""
    ended = []
    for session in sessions:
        params = {"pid": session.pid, "started": session.backend_start}
        # The wait is the server's own: pg_terminate_backend with a timeout returns when the process is gone.
        found = connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE pid = %(pid)s AND backend_start = %(started)s",
            params,
        ).fetchone()
        if found is not None:
            ended.append(session.pid)
    return ended

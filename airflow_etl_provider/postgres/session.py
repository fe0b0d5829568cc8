"""Connections as this package needs them: named, watched by the server, with canonical text."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
import psycopg2
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import Row

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import Session
from airflow_etl_provider.postgres import pooler
from airflow_etl_provider.postgres.errors import sqlstate_of, translate, translated_errors

log = structlog.get_logger(__name__)

_open: set[psycopg.Connection[Any] | psycopg2.extensions.connection] = set()

#: How long either end waits for an answer on the wire. What asks only every ten seconds (keepalive, progress)
#: notices a silent host after 25, and half a minute is promised.
_SILENCE_MS = "15000"
#: Text form of every value, and what a transaction sees, is the same in all our sessions, whatever the defaults
#: of the server, the database and the role are.
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
    "quote_all_identifiers": "off",
    # Whoever waits for another publish must see what that has written. One snapshot for all that is read is
    # asked for where it is wanted.
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # How soon the server gives up a client whose host fell silent; the client's half is below.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": _SILENCE_MS,
}
#: The first version that knows ``transaction_timeout``.
_WITH_TRANSACTION_TIMEOUT = 170000
_KEEPALIVE = {
    "connect_timeout": "15",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": _SILENCE_MS,
}
_ANSWERS_WITHIN = 2.0
_STEP = 0.1


class _CopyConnection(psycopg2.extensions.connection):
    """A connection whose ``cancel`` waits for no silent host."""

    label = ""

    def cancel(self) -> None:
        if _answers(self):
            super().cancel()

    def __repr__(self) -> str:
        """Without the connection string, which may hold secrets."""
        return f"<connection to {self.label}>"


class _CopyCursor(psycopg2.extensions.cursor):
    """A cursor that knows a lost connection when it happens.

    The other end of a COPY then fails too, for want of the rest: it must not look as if its data were bad.
    """

    connection: _CopyConnection

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        try:
            super().copy_expert(sql, file, size)
        except psycopg2.Error as error:
            if sqlstate_of(error) is None and self.connection.closed:
                raise translate(error, f"COPY on {self.connection.label}") from None
            raise


def text_of(statement: sql.Composable, params: Any) -> str:
    """The text of *statement*, for either driver.

    With parameters both look for placeholders in all of a text, names and literals that were composed into
    it included: there a ``%`` is doubled, so that it stays one.
    """
    if params is None:
        return statement.as_string(None)
    if isinstance(statement, sql.Composed):
        return "".join(text_of(part, params) for part in statement)
    text = statement.as_string(None)
    return text.replace("%", "%%") if isinstance(statement, sql.Identifier | sql.Literal) else text


class _Cursor(psycopg.Cursor[Row]):
    """A cursor for which a name or literal holds no placeholder."""

    def execute(self, query: Any, params: Any = None, **how: Any) -> Self:
        if isinstance(query, sql.Composable):
            query = text_of(query, params).encode()
        return super().execute(query, params, **how)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach one database: libpq parameters, and the name that ``pg_stat_activity`` shows.

    :param conninfo: libpq keywords and values; never printed.
    :param label: how logs and errors call it, such as ``connection etl_source``.
    :param application_name: at most 63 bytes.
    :param settings: of the session, beside those that all sessions have.
    :param secrets: settings that are given when the session is opened, so that no statement shows them.
    """

    conninfo: Mapping[str, Any] = field(repr=False)
    label: str
    application_name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def parameters(self) -> dict[str, str]:
        """The libpq keywords and values, with our defaults where the connection says nothing."""
        given = {key: str(value) for key, value in self.conninfo.items() if value not in (None, "")}
        # One encoding on every wire: the servers convert from and to their own.
        fixed = {"application_name": self.application_name, "client_encoding": "UTF8"}
        options = [given["options"]] if "options" in given else []
        options += [f"-c {name}={value}" for name, value in self.secrets.items()]
        if options:
            fixed["options"] = " ".join(options)
        return {**_KEEPALIVE, **given, **fixed}

    def dsn(self) -> str:
        """The libpq connection string."""
        return make_conninfo("", **self.parameters())


@contextmanager
def connect(endpoint: Endpoint, *, pooled: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection for statements; transactions are opened where they matter.

    :param pooled: a pooler in transaction mode may be in between: then nothing is set for the session.
    :raises ConnectionLost: the server cannot be reached.
    :raises ConfigurationError: there is such a pooler, and nobody said that it may be.
    """
    with translated_errors(f"connecting to {endpoint.label}"):
        connection = psycopg.connect(
            _dsn(endpoint), autocommit=True, prepare_threshold=None, cursor_factory=_Cursor
        )
    with connection:
        with translated_errors(f"preparing a session on {endpoint.label}"):
            if _prepare(connection, endpoint, pooled=pooled):
                connection.execute("SELECT set_config('search_path', 'pg_catalog', false)")
        _open.add(connection)
        try:
            # Whatever a statement's own block does not name, such as a connection lost between two.
            with translated_errors(f"a session on {endpoint.label}"):
                yield connection
        finally:
            _open.discard(connection)


class KeptSession:
    """One session on *endpoint* for several pieces of work, opened at the first and anew when it was lost.

    It is in autocommit between them, and keeps what was set for a session.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: psycopg.Connection[Any] | None = None
        self._block = ExitStack()

    @contextmanager
    def use(self) -> Iterator[psycopg.Connection[Any]]:
        """The session, for one piece of work.

        :raises ConnectionLost: the server cannot be reached.
        """
        if self._connection is not None and not _lives(self._connection):
            self.close()
        if self._connection is None:
            self._connection = self._block.enter_context(connect(self._endpoint))
        connection = self._connection
        try:
            with translated_errors(f"a session on {self._endpoint.label}"):
                yield connection
        except BaseException:
            # Whatever it was at work on, nothing of it is left for the next piece of work.
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                connection.close()
            raise
        finally:
            if connection.closed:
                self.close()

    def close(self) -> None:
        """Close the session, if there is one; it may be used again."""
        self._connection = None
        self._block.close()


def _lives(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server still has the session: one that was ended shows it only when it is asked."""
    try:
        connection.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def cancel_open_sessions() -> None:
    """Cancel what our sessions are running; safe in a signal handler, any number of times."""
    for connection in tuple(_open):
        with suppress(psycopg.Error, psycopg2.Error):
            if _answers(connection):
                connection.cancel()


def _answers(connection: psycopg.Connection[Any] | psycopg2.extensions.connection) -> bool:
    """Whether the server takes connections now.

    A request to cancel is a connection of its own, for which libpq waits more than two minutes and serves
    no signal meanwhile. A host that fell silent ends the statement by itself, sooner than that.
    """
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as own:
            family, server = own.family, own.getpeername()
        if family not in (socket.AF_INET, socket.AF_INET6):
            return True
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(_ANSWERS_WITHIN)
            probe.connect(server)
    except (OSError, psycopg.Error, psycopg2.Error):
        return False
    return True


@contextmanager
def connect_for_copy(
    endpoint: Endpoint, *, read_only: bool
) -> Iterator[psycopg2.extensions.connection]:
    """A psycopg2 connection, in a transaction from its first statement, for whole-block COPY.

    ``read_only`` gives one repeatable-read snapshot for everything it reads. What is not committed by
    the block is rolled back.
    """
    with translated_errors(f"connecting to {endpoint.label}"):
        connection = psycopg2.connect(
            _dsn(endpoint), connection_factory=_CopyConnection, cursor_factory=_CopyCursor
        )
        connection.label = endpoint.label
    try:
        with translated_errors(f"preparing a session on {endpoint.label}"):
            connection.set_session(autocommit=True)
            _prepare(connection, endpoint)
            if read_only:
                connection.set_session(
                    isolation_level="REPEATABLE READ", readonly=True, autocommit=False
                )
            else:
                # Names of objects (regclass) are read as they were written, with their schema.
                with connection.cursor() as cursor:
                    cursor.execute("SET search_path = pg_catalog")
                connection.set_session(isolation_level="READ COMMITTED", autocommit=False)
        _open.add(connection)
        with translated_errors(f"a session on {endpoint.label}"):
            yield connection
    finally:
        _open.discard(connection)
        connection.close()


def run_patiently(
    connection: psycopg2.extensions.connection,
    statement: sql.Composable,
    params: Mapping[str, Any] | None = None,
) -> list[tuple[Any, ...]]:
    """The rows of *statement*, run in a thread of its own while this one waits in short steps.

    psycopg2 serves no signal while a statement runs; whatever ends the waiting early cancels it.
    """
    return _patiently(connection, statement, params)[0]


def execute_patiently(connection: psycopg2.extensions.connection, statement: sql.Composable) -> int:
    """How many rows *statement*, which returns none, has written; run as :func:`run_patiently` does."""
    return _patiently(connection, statement, None)[1]


def _patiently(
    connection: psycopg2.extensions.connection,
    statement: sql.Composable,
    params: Mapping[str, Any] | None,
) -> tuple[list[tuple[Any, ...]], int]:
    rows: list[tuple[Any, ...]] = []
    count = 0
    errors: list[Exception] = []
    # Not the thread's own word: a signal's exception inside join leaves it marked as ended.
    done = threading.Event()

    def run() -> None:
        nonlocal count
        try:
            with connection.cursor() as cursor:
                cursor.execute(text_of(statement, params), params)
                count = cursor.rowcount
                if cursor.description is not None:
                    rows.extend(cursor.fetchall())
        except Exception as error:  # noqa: BLE001  (a thread hands every error to its caller)
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="etl-statement", daemon=True).start()
    try:
        while not done.wait(_STEP):
            pass
    finally:
        while not done.is_set():
            with suppress(psycopg2.Error):
                connection.cancel()
            done.wait(_STEP)
    if errors:
        raise errors[0]
    return rows, count


def _dsn(endpoint: Endpoint) -> str:
    try:
        return endpoint.dsn()
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"{endpoint.label} is no libpq connection: {str(error).splitlines()[0]}",
            remedy="look at the connection's extra: every key in it must be a libpq keyword",
        ) from None


def _prepare(
    connection: psycopg.Connection[Any] | psycopg2.extensions.connection,
    endpoint: Endpoint,
    *,
    pooled: bool = False,
) -> bool:
    """Set what all our sessions have; not where strangers would get it, which the answer says."""
    cursor = connection.cursor()
    wanted = {**_SETTINGS, **endpoint.settings}
    if connection.info.server_version >= _WITH_TRANSACTION_TIMEOUT:
        wanted["transaction_timeout"] = "0"
    pairs = [
        sql.SQL("pg_catalog.set_config({}, {}, false)").format(
            sql.Literal(name), sql.Literal(value)
        )
        for name, value in wanted.items()
    ]
    settings = sql.SQL("SELECT ") + sql.SQL(", ").join(pairs)
    # A pooler gives its clients numbers of its own: whoever meets another process than the one he was told
    # has a pooler before him.
    direct = sql.SQL(" WHERE pg_catalog.pg_backend_pid() = {}").format(
        sql.Literal(connection.info.backend_pid)
    )
    cursor.execute((settings + direct).as_string(None))
    if not cursor.rowcount:
        if pooler.pools_transactions(lambda: _backend(cursor), _dsn(endpoint)):
            cursor.close()
            if pooled:
                return False
            raise pooler.refuse(endpoint.label)
        cursor.execute(settings.as_string(None))
    try:
        cursor.execute("SET client_connection_check_interval = '1s'")
    except (psycopg.Error, psycopg2.Error) as error:
        log.warning(
            "the server cannot watch for lost clients: a statement may outlive its killed task",
            setting="client_connection_check_interval",
            sqlstate=sqlstate_of(error),
        )
    cursor.close()
    return True


def _backend(cursor: psycopg.Cursor[Any] | psycopg2.extensions.cursor) -> str:
    cursor.execute(pooler.BACKEND.as_string(None))
    return str((cursor.fetchone() or ("",))[0])


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
            " WHERE pid = %(pid)s AND backend_start = %(started)s"
            # In a pooler's hands the same server process may by then serve somebody else.
            " AND application_name = current_setting('application_name')",
            params,
        ).fetchone()
        if found is not None:
            ended.append(session.pid)
    return ended

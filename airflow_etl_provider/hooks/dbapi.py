"""The Airflow connection of any ``DbApiHook`` as a source that :mod:`airflow_etl_provider.dbapi` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow.providers.common.sql.hooks.sql import DbApiHook
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_etl_provider.core.errors import ConfigurationError, TransientError
from airflow_etl_provider.dbapi.flavour import Flavour
from airflow_etl_provider.dbapi.generic import Generic
from airflow_etl_provider.dbapi.mysql import MySql
from airflow_etl_provider.dbapi.source import DbApiSource
from airflow_etl_provider.dbapi.sqlite import Sqlite
from airflow_etl_provider.dbapi.statements import Dialect

if TYPE_CHECKING:
    from airflow.sdk import Connection

_POSTGRES_TYPES = ("postgres", "postgresql")
_PROVIDERS = {
    "mssql": "apache-airflow-providers-microsoft-mssql",
    "mysql": "apache-airflow-providers-mysql",
    "odbc": "apache-airflow-providers-odbc",
    "oracle": "apache-airflow-providers-oracle",
    "snowflake": "apache-airflow-providers-snowflake",
    "sqlite": "apache-airflow-providers-sqlite",
    "trino": "apache-airflow-providers-trino",
}
_PARAMSTYLES = {"?": "qmark", "%s": "format"}
_MYSQL_PORT = 3306


def dbapi_source(
    conn_id: str,
    *,
    table: str | None = None,
    query: str | None = None,
    types: Mapping[str, str] | None = None,
    timezone: str = "UTC",
    zero_dates: str = "fail",
    hash_key: str | None = None,
) -> DbApiSource:
    """A table or query behind the Airflow connection *conn_id*, whatever database it leads to.

    MySQL and MariaDB, and SQLite, are read by their catalogs; other databases by what their driver says.

    :param types: PostgreSQL types of columns that are better known than the source can tell.
    :param timezone: wall clock that a cursor without time zone shows.
    :param hash_key: the key of columns that are hashed.
    :param zero_dates: ``fail`` or ``null``: what becomes of MySQL's ``0000-00-00``.
    :raises ConfigurationError: no such connection, no provider for its type, or no database that DB-API
        reads.
    """
    connection, hook = _hook(conn_id)
    if connection.conn_type == "sqlite":
        _require_file(conn_id, connection)
    return DbApiSource(
        connect=hook.get_conn,
        flavour=_flavour(connection, hook, zero_dates),
        table=table,
        query=query,
        label=f"connection {conn_id}",
        types=dict(types or {}),
        timezone=timezone,
        hash_key=hash_key,
    )


def is_postgres(conn_id: str) -> bool:
    """Whether *conn_id* leads to PostgreSQL, which is read by COPY and not by DB-API.

    :raises TransientError: there is no such connection, or Airflow did not give it.
    """
    return _connection(conn_id).conn_type in _POSTGRES_TYPES


def hash_key(conn_id: str | None) -> str | None:
    """The key of hashed columns: the password of the Airflow connection *conn_id*.

    :raises ConfigurationError: the connection has no password.
    :raises TransientError: there is no such connection, or Airflow did not give it.
    """
    if conn_id is None:
        return None
    password = _connection(conn_id).password
    if not password:
        raise ConfigurationError(
            f"connection {conn_id!r} has no password, which is to be the key of hashed columns",
            remedy="put a long random text into its password field",
        )
    return password


def _connection(conn_id: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        # Airflow gives the same answer when its API fails, and has no list of connections to ask.
        raise TransientError(
            f"Airflow has no connection {conn_id!r}, or did not give it",
            remedy=f"create it: airflow connections add {conn_id} --conn-uri …, or set "
            f"AIRFLOW_CONN_{conn_id.upper()}; a passing fault of Airflow is retried",
        ) from None


def _hook(conn_id: str) -> tuple[Connection, DbApiHook]:
    connection = _connection(conn_id)
    kind = connection.conn_type or ""
    if kind in _POSTGRES_TYPES:
        raise ConfigurationError(
            f"connection {conn_id!r} leads to PostgreSQL, which is read by COPY",
            remedy="use PostgresSource with EtlPostgresHook",
        )
    try:
        hook = connection.get_hook()  # type: ignore[no-untyped-call]
    except (AirflowException, ImportError):
        package = _PROVIDERS.get(kind, "the Airflow provider for it")
        raise ConfigurationError(
            f"connection {conn_id!r} is of type {kind!r}, and no hook for that is installed",
            remedy=f"pip install {package}" if kind in _PROVIDERS else f"install {package}",
        ) from None
    if not isinstance(hook, DbApiHook):
        raise ConfigurationError(
            f"connection {conn_id!r} is of type {kind!r}, which is no database that DB-API reads",
            remedy="name a connection whose hook is a DbApiHook",
        )
    return connection, hook


def _flavour(connection: Connection, hook: Any, zero_dates: str) -> Flavour:
    kind = connection.conn_type or ""
    host = connection.host or "localhost"
    if kind == "mysql":
        return MySql(f"mysql://{host}:{connection.port or _MYSQL_PORT}", zero_dates)
    if kind == "sqlite":
        return Sqlite()
    port = f":{connection.port}" if connection.port else ""
    return Generic(
        dialect=_dialect(kind, hook),
        namespace=f"{kind}://{host}{port}",
        database=connection.schema or "",
        begin_statements=("BEGIN TRANSACTION",) if kind == "duckdb" else (),
    )


def _dialect(kind: str, hook: DbApiHook) -> Dialect:
    if kind == "mssql":
        return Dialect(quotes="[]", paramstyle="format")
    if kind == "duckdb":
        return Dialect()
    shape = hook.escape_word_format.partition("{}")
    quotes = shape[0] + shape[2] if len(shape[0]) == len(shape[2]) == 1 else '""'
    placeholder = hook.placeholder
    style = "numeric" if placeholder.startswith(":") else _PARAMSTYLES.get(placeholder, "format")
    return Dialect(quotes=quotes, paramstyle=style)


def _require_file(conn_id: str, connection: Connection) -> None:
    """SQLite would make a missing file, which then has no tables."""
    path = unquote(connection.host or "")
    if path != ":memory:" and not Path(path).is_file():
        raise ConfigurationError(
            f"connection {conn_id!r} names no file that is on this worker: {path!r}",
            remedy="put the absolute path into the host field of the connection, and the file on the workers",
        )

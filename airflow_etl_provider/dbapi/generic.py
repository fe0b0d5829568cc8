"""Any other DB-API 2.0 database: MSSQL, DuckDB, Oracle, ClickHouse and so on.

Columns are known only by what the driver says of a query without rows. The mapping, in this order:
Python types that some drivers give as type codes (``int`` is ``bigint``, ``float`` is ``double precision``,
``Decimal`` is ``numeric``, with precision and scale where they are given, ``str`` is ``text``, ``bytes`` is
``bytea``, ``datetime`` is ``timestamp without time zone``, ``date``, ``time``, ``timedelta``, ``bool`` and ``UUID``
are what they say); names of SQL types that other drivers give; the type objects of PEP 249 (``STRING`` is
``text``, ``BINARY`` is ``bytea``, ``NUMBER`` is ``numeric``, ``DATETIME`` is ``timestamp without time zone``);
else ``text``. None of that is a proof, so every value is checked against it, and ``types`` declares what is
known better, such as ``{"id": "bigint"}``.

Personal columns can be sent as NULL, but not hashed: there is no SQL for that which all have.

The snapshot is the transaction that the driver begins by itself, at the isolation that the connection
has: a database that does not keep a snapshot in it may count NULL cursors a moment before it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from airflow_etl_provider.core.columns import Selected, Treatment
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, EtlError
from airflow_etl_provider.core.ports import Figure, SourceColumn
from airflow_etl_provider.dbapi.copytext import RowEncoder, base_of
from airflow_etl_provider.dbapi.driver import Connection, first_row, module_of, run
from airflow_etl_provider.dbapi.errors import by_kind
from airflow_etl_provider.dbapi.fetching import STEP, SizedFetch, widths_in
from airflow_etl_provider.dbapi.figures import expressions
from airflow_etl_provider.dbapi.flavour import (
    MOST_ROWS,
    Connect,
    Reading,
    Request,
    declared_type,
    refuse_unknown,
)
from airflow_etl_provider.dbapi.statements import (
    Dialect,
    Sql,
    Value,
    no_rows,
    outside,
    select,
    sql,
)

_PYTHON: Mapping[type, str] = {
    bool: "boolean",
    int: "bigint",
    float: "double precision",
    str: "text",
    bytes: "bytea",
    bytearray: "bytea",
    datetime: "timestamp without time zone",
    date: "date",
    time: "time without time zone",
    timedelta: "interval",
    UUID: "uuid",
}
_NAMES: Mapping[str, str] = {
    "BOOLEAN": "boolean",
    "TINYINT": "smallint",
    "SMALLINT": "smallint",
    "INTEGER": "integer",
    "BIGINT": "bigint",
    "UTINYINT": "smallint",
    "USMALLINT": "integer",
    "UINTEGER": "bigint",
    "UBIGINT": "numeric(20,0)",
    "HUGEINT": "numeric",
    "UHUGEINT": "numeric",
    "FLOAT": "real",
    "DOUBLE": "double precision",
    "VARCHAR": "text",
    "BLOB": "bytea",
    "DATE": "date",
    "TIME": "time without time zone",
    "TIMESTAMP": "timestamp without time zone",
    "TIMESTAMP_S": "timestamp without time zone",
    "TIMESTAMP_MS": "timestamp without time zone",
    "TIMESTAMP WITH TIME ZONE": "timestamp with time zone",
    "INTERVAL": "interval",
    "UUID": "uuid",
    "JSON": "json",
}
_OBJECTS = (
    ("STRING", "text"),
    ("BINARY", "bytea"),
    ("NUMBER", "numeric"),
    ("DATETIME", "timestamp without time zone"),
)
_NARROW = (
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
    "time without time zone",
    "interval",
    "uuid",
)


@dataclass(frozen=True, slots=True)
class Generic:
    """A database that is known only through its driver.

    :param dialect: how it writes names and values.
    :param namespace: of the OpenLineage dataset, such as ``mssql://host:1433``.
    :param database: what stands before the table's name in the dataset.
    :param begin_statements: what starts a snapshot where the driver's own transaction does not.
    :param translator: our errors for its driver's; by PEP 249's classes unless given.
    """

    dialect: Dialect
    namespace: str
    database: str = ""
    begin_statements: tuple[str, ...] = ()
    translator: Callable[[Exception, str], EtlError] = field(default=by_kind)

    def describe(
        self, connection: Connection, request: Request
    ) -> tuple[tuple[SourceColumn, ...], tuple[str, str]]:
        table = ".".join(request.relation.table) or "query"
        name = f"{self.database}.{table}" if self.database else table
        return self._columns(connection, request), (self.namespace, name)

    def begin(self, connection: Connection) -> datetime:
        for statement in self.begin_statements:
            cursor = connection.cursor()
            cursor.execute(statement)
            cursor.close()
        return datetime.now(UTC)

    def read(self, connection: Connection, request: Request) -> Reading:
        types = {column.name: column.type for column in self._columns(connection, request)}
        cursor_type = None if request.cursor is None else types[request.cursor]
        low, high = (
            None if text is None else self.bound(text, cursor_type or "")
            for text in request.ends(self.dialect, cursor_type)
        )
        expressions = [self._expression(column) for column in request.columns]
        rows = request.relation.source(self.dialect, low, high)
        nulls, unreachable = 0, None
        if request.looks_outside:
            nulls, unreachable = self._outside(connection, request, rows, cursor_type or "")
        statement, values = select(
            self.dialect,
            rows,
            expressions,
            cursor=request.cursor,
            window=request.window,
            low=low,
            high=high,
        ).render(self.dialect.paramstyle)
        wide = [
            place
            for place, column in enumerate(request.columns)
            if base_of(types[column.source])[0] not in _NARROW
        ]
        cursor = connection.cursor()
        # Some drivers take it as the number of rows that one message carries.
        with suppress(AttributeError, TypeError):
            cursor.arraysize = STEP if wide else MOST_ROWS
        run(cursor, statement, values)
        return Reading(
            close=cursor.close,
            fetch=SizedFetch(cursor.fetchmany, widths_in(wide)) if wide else cursor.fetchmany,
            encode=RowEncoder(
                [(column.source, types[column.source]) for column in request.columns],
                remarks=request.remarks,
            ).encode,
            null_cursors=nulls,
            unreachable=unreachable,
            most_rows=MOST_ROWS,
        )

    def measure(
        self, connection: Connection, request: Request, figures: Sequence[Figure]
    ) -> Sequence[Any]:
        types = {column.name: column.type for column in self._columns(connection, request)}
        cursor_type = None if request.cursor is None else types[request.cursor]
        low, high = (
            None if text is None else self.bound(text, cursor_type or "")
            for text in request.ends(self.dialect, cursor_type)
        )
        statement, values = select(
            self.dialect,
            request.relation.source(self.dialect, low, high),
            expressions(self.dialect, figures),
            cursor=request.cursor,
            window=request.window,
            low=low,
            high=high,
        ).render(self.dialect.paramstyle)
        row: Sequence[Any] = first_row(connection, statement, values)
        return row

    def bound(self, text: str, type_: str) -> Any:
        """As the Python value of the type, which every driver can bind."""
        base = base_of(type_)[0]
        if base in ("smallint", "integer", "bigint"):
            return int(text)
        if base == "numeric":
            return Decimal(text)
        if base.startswith("timestamp"):
            return datetime.fromisoformat(text)
        if base == "date":
            return date.fromisoformat(text)
        return UUID(text) if base == "uuid" else text

    def interrupter(self, connection: Connection, connect: Connect) -> Callable[[], None]:
        for method in ("interrupt", "cancel"):
            found: Callable[[], None] | None = getattr(connection, method, None)
            if found is not None:
                return found
        return connection.close

    def translate(self, error: Exception, what: str) -> EtlError:
        return self.translator(error, what)

    def _expression(self, column: Selected) -> Sql:
        """:raises ConfigurationError: it is to be hashed."""
        match column.treatment:
            case Treatment.NULL:
                return sql("NULL")
            case Treatment.HASH:
                raise ConfigurationError(
                    f"column {column.source} is to be hashed, which is not possible in this kind of database",
                    remedy="make a view in the source that hashes it, or use personal='null' or 'drop'",
                )
        return self.dialect.name(column.source)

    def _outside(
        self, connection: Connection, request: Request, rows: Sql, type_: str
    ) -> tuple[int, int | None]:
        cursor = self.dialect.name(request.cursor or "")
        ahead = None
        if request.clock is not None:
            ahead = sql(cursor, " > ", Value(self.bound(request.clock, type_)))
        statement, values = outside(rows, sql(cursor, " IS NULL"), ahead).render(
            self.dialect.paramstyle
        )
        nulls, later = first_row(connection, statement, values)
        return int(nulls), None if ahead is None else int(later)

    def _columns(self, connection: Connection, request: Request) -> tuple[SourceColumn, ...]:
        cursor = connection.cursor()
        statement, values = no_rows(self.dialect, request.relation).render(self.dialect.paramstyle)
        run(cursor, statement, values)
        described = [tuple(column) for column in cursor.description or ()]
        cursor.close()
        names = [column[0] for column in described]
        if len(set(names)) != len(names):
            raise CatalogError(
                "the source has two columns of one name", remedy="rename one of them in the query"
            )
        refuse_unknown(request.types, names, "the source")
        driver = module_of(connection)
        return tuple(
            SourceColumn(
                name=column[0],
                type=declared_type(column[0], request.types, described_type(column, driver)),
                not_null=len(column) > 6 and column[6] is False,
                portable=False,
            )
            for column in described
        )


def described_type(column: tuple[Any, ...], driver: Any) -> str:
    """The PostgreSQL type for one entry of a cursor's description."""
    code = column[1]
    precision, scale = (*column, None, None, None, None)[4:6]
    if isinstance(code, type):
        if issubclass(code, Decimal):
            known = (
                isinstance(precision, int) and isinstance(scale, int) and precision >= scale >= 0
            )
            return f"numeric({precision},{scale})" if known and precision else "numeric"
        return next((name for kind, name in _PYTHON.items() if issubclass(code, kind)), "text")
    name = str(code).upper()
    if name in _NAMES:
        return _NAMES[name]
    if name.startswith("DECIMAL("):
        return name.replace("DECIMAL", "numeric").replace(" ", "")
    for attribute, type_ in _OBJECTS:
        if code is not None and getattr(driver, attribute, None) == code:
            return type_
    return "text"

"""MySQL and MariaDB, over mysqlclient, PyMySQL or mysql-connector-python.

The server itself writes each row as COPY text, in one expression, so a driver hands over one value per
row instead of one per column: two to three times faster than fetching columns, and nothing passes
through a driver's conversions, some of which make NULL of a zero date. Columns that can be larger than
the server allows a computed value to be travel as they are.

Types: integers as the smallest PostgreSQL integer that holds them (``bigint unsigned`` is
``numeric(20,0)``), ``tinyint(1)`` is ``boolean`` and a value beside 0 and 1 is refused, ``timestamp`` is an
instant, ``datetime`` has no zone, ``time`` is an ``interval`` since it counts to 838 hours, ``bit(n)`` is
``bit(n)``, ``enum`` and ``set`` are text, ``year`` is ``smallint``. ``types`` may declare ``smallint`` for
``tinyint(1)``, another integer type for an integer, ``time without time zone`` for ``time``, ``uuid`` for
``binary(16)``, and for text whatever reads exactly from text: ``uuid``, ``json``, ``jsonb``, ``inet`` and
others. The server of the target checks each value. Geometry is refused.

Personal columns are hashed by the server, whose two pads of the key are variables of the session, so that
the statement that reads shows no key. One ``SET`` does, which a general query log would keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from airflow_etl_provider.core.columns import Treatment
from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, EtlError
from airflow_etl_provider.core.ports import Figure, SourceColumn
from airflow_etl_provider.dbapi.copytext import base_of
from airflow_etl_provider.dbapi.driver import Connection, first_row, run
from airflow_etl_provider.dbapi.fetching import SizedFetch, widths_in
from airflow_etl_provider.dbapi.figures import expressions
from airflow_etl_provider.dbapi.flavour import MOST_ROWS, Connect, Reading, Request, text_of
from airflow_etl_provider.dbapi.hashing import pads
from airflow_etl_provider.dbapi.mysql_columns import DATES, Column, columns_of
from airflow_etl_provider.dbapi.mysql_rows import HASH_INNER, HASH_OUTER, RowPlan
from airflow_etl_provider.dbapi.mysql_session import (
    close,
    streaming,
    translate,
    use_utf8,
    with_variables,
)
from airflow_etl_provider.dbapi.statements import Dialect, Sql, Value, lowest, outside, select, sql

_SESSION = (
    "SET SESSION time_zone = '+00:00'",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    # A target that is slow for a while must not look like a dead client.
    "SET SESSION net_write_timeout = 3600",
)


@dataclass(frozen=True, slots=True)
class MySql:
    """MySQL 8.0 or newer, MariaDB 10.5 or newer.

    :param namespace: of the OpenLineage dataset, ``mysql://host:port``.
    :param zero_dates: ``fail`` refuses a date with a zero day or month by row and column; ``null`` stores
        NULL instead, by the user's explicit choice.
    """

    namespace: str
    zero_dates: str = "fail"

    def __post_init__(self) -> None:
        if self.zero_dates not in ("fail", "null"):
            raise ConfigurationError(f"zero_dates={self.zero_dates!r}: use 'fail' or 'null'")

    @property
    def dialect(self) -> Dialect:
        return Dialect(quotes="``", paramstyle="format", backslash=True)

    def describe(
        self, connection: Connection, request: Request
    ) -> tuple[tuple[SourceColumn, ...], tuple[str, str]]:
        use_utf8(connection)
        columns, name = columns_of(connection, self.dialect, request)
        return tuple(column.source for column in columns), (self.namespace, name)

    def begin(self, connection: Connection) -> datetime:
        use_utf8(connection)
        cursor = connection.cursor()
        for statement in _SESSION:
            cursor.execute(statement)
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        cursor.close()
        (now,) = first_row(connection, "SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)")
        return datetime.fromisoformat(text_of(now)).replace(tzinfo=UTC)

    def read(self, connection: Connection, request: Request) -> Reading:
        found, _ = columns_of(connection, self.dialect, request)
        by_name = {column.source.name: column for column in found}
        columns = [(by_name[column.source], column.treatment) for column in request.columns]
        for column, treatment in columns:
            if column.form is None and treatment is not Treatment.NULL:
                raise CatalogError(
                    f"column {column.source.name} of type {column.kind} cannot be carried to PostgreSQL",
                    remedy="leave it out with columns=[...], or read a query that makes text of it: "
                    "ST_AsText(...)",
                )
        (packet,) = first_row(connection, "SELECT @@max_allowed_packet")
        plan = RowPlan.of(columns, int(packet) // 2)
        by = None if request.cursor is None else by_name[request.cursor]
        low, high = (
            None if text is None or by is None else self.bound(text, by.source.type)
            for text in request.ends(self.dialect, None if by is None else _bounded_type(by))
        )
        rows = request.relation.source(self.dialect, low, high)
        missing = None if by is None else self._missing(by)
        nulls, unreachable = 0, None
        if by is not None and request.looks_outside:
            nulls, unreachable = self._outside(connection, request, rows, by, missing)
        statement = with_variables(
            connection,
            select(
                self.dialect,
                rows,
                plan.expressions(self.dialect, zero_dates=self.zero_dates),
                cursor=request.cursor,
                window=request.window,
                low=low,
                high=high,
                missing=missing,
            ),
        )
        if request.hash_key is not None:
            _set_pads(connection, request.hash_key)
        cursor = streaming(connection)
        run(cursor, statement)
        return Reading(
            close=lambda: close(cursor),
            fetch=SizedFetch(cursor.fetchmany, widths_in(range(len(plan.runs))))
            if plan.wide
            else cursor.fetchmany,
            encode=plan.encode_all if request.remarks else plan.encode,
            null_cursors=nulls,
            unreachable=unreachable,
            most_rows=MOST_ROWS,
        )

    def measure(
        self, connection: Connection, request: Request, figures: Sequence[Figure]
    ) -> Sequence[Any]:
        found, _ = columns_of(connection, self.dialect, request)
        by = next((column for column in found if column.source.name == request.cursor), None)
        low, high = (
            None if text is None or by is None else self.bound(text, by.source.type)
            for text in request.ends(self.dialect, None if by is None else _bounded_type(by))
        )
        statement = with_variables(
            connection,
            select(
                self.dialect,
                request.relation.source(self.dialect, low, high),
                expressions(self.dialect, figures),
                cursor=request.cursor,
                window=request.window,
                low=low,
                high=high,
                missing=None if by is None else self._missing(by),
            ),
        )
        row: Sequence[Any] = first_row(connection, statement)
        return row

    def bound(self, text: str, type_: str) -> Any:
        base = base_of(type_)[0]
        if base == "timestamp with time zone":
            moment = datetime.fromisoformat(text).astimezone(UTC)
            return moment.replace(tzinfo=None).isoformat(" ", "microseconds")
        if base in ("smallint", "integer", "bigint"):
            return int(text)
        # As text the server would compare it as a double.
        return Decimal(text) if base == "numeric" else text

    def interrupter(self, connection: Connection, connect: Connect) -> Callable[[], None]:
        # Asked now: while a statement runs, a driver may refuse every other call.
        (number,) = first_row(connection, "SELECT CONNECTION_ID()")

        def kill() -> None:
            killer = connect()
            try:
                cursor = killer.cursor()
                # A number of the server's own; KILL takes no parameters everywhere.
                cursor.execute(f"KILL QUERY {int(number)}")
                cursor.close()
            finally:
                killer.close()

        return kill

    def translate(self, error: Exception, what: str) -> EtlError:
        return translate(error, what)

    def _missing(self, column: Column) -> Sql | None:
        """When a row has no value that a window could hold: zero dates sort before everything."""
        if column.kind not in DATES:
            return None
        name = self.dialect.name(column.source.name)
        first = Value(self.bound(lowest(column.source.type) or "", column.source.type))
        return sql(name, " IS NULL OR ", name, " < ", first)

    def _outside(
        self,
        connection: Connection,
        request: Request,
        rows: Sql,
        column: Column,
        missing: Sql | None,
    ) -> tuple[int, int | None]:
        """Rows without a usable cursor value, and those ahead of the clock; counted in one statement."""
        name, ahead = self.dialect.name(column.source.name), None
        if missing is None:
            if column.source.not_null:
                return 0, None
            missing = sql(name, " IS NULL")
        if request.clock is not None:
            ahead = sql(name, " > ", Value(self.bound(request.clock, column.source.type)))
        statement = with_variables(connection, outside(rows, missing, ahead))
        nulls, later = first_row(connection, statement)
        return int(nulls), None if ahead is None else int(later)


def _bounded_type(column: Column) -> str:
    """The type whose lowest value lies below all of the column: no driver tells every precision."""
    return "numeric(65,0)" if column.source.type == "numeric" else column.source.type


def _set_pads(connection: Connection, key: str) -> None:
    inner, outer = pads(key)
    cursor = connection.cursor()
    cursor.execute(
        f"SET {HASH_INNER} = UNHEX(%s), {HASH_OUTER} = UNHEX(%s)", (inner.hex(), outer.hex())
    )
    cursor.close()

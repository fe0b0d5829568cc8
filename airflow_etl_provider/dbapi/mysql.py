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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from airflow_etl_provider.core.errors import CatalogError, ConfigurationError, EtlError
from airflow_etl_provider.core.ports import SourceColumn
from airflow_etl_provider.dbapi.copytext import base_of
from airflow_etl_provider.dbapi.driver import Connection, first_row, run
from airflow_etl_provider.dbapi.flavour import Connect, Reading, Request, text_of
from airflow_etl_provider.dbapi.mysql_columns import DATES, Column, columns_of
from airflow_etl_provider.dbapi.mysql_rows import RowPlan
from airflow_etl_provider.dbapi.mysql_session import (
    close,
    streaming,
    translate,
    use_utf8,
    with_variables,
)
from airflow_etl_provider.dbapi.statements import Dialect, Value, select, sql

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
        columns = [by_name[name] for name in request.columns]
        for column in columns:
            if column.form is None:
                raise CatalogError(
                    f"column {column.source.name} of type {column.kind} cannot be carried to PostgreSQL",
                    remedy="leave it out with columns=[...], or read a query that makes text of it: "
                    "ST_AsText(...)",
                )
        (packet,) = first_row(connection, "SELECT @@max_allowed_packet")
        plan = RowPlan.of(columns, int(packet) // 2)
        low, high = _bounds(request, by_name)
        nulls = self._null_cursors(connection, request, by_name, low, high)
        statement = with_variables(
            connection,
            select(
                self.dialect,
                request.relation,
                plan.expressions(self.dialect, zero_dates=self.zero_dates),
                cursor=request.cursor,
                window=request.window,
                low=low,
                high=high,
            ),
        )
        cursor = streaming(connection)
        run(cursor, statement)
        return Reading(
            close=lambda: close(cursor),
            fetch=cursor.fetchmany,
            encode=plan.encode,
            null_cursors=nulls,
            most_rows=plan.most_rows,
        )

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

    def _null_cursors(
        self,
        connection: Connection,
        request: Request,
        columns: dict[str, Column],
        low: Any,
        high: Any,
    ) -> int:
        if request.cursor is None:
            return 0
        cursor = self.dialect.name(request.cursor)
        where = sql(cursor, " IS NULL")
        if columns[request.cursor].kind in DATES:
            # Zero dates sort before everything, so no window would hold them either.
            where = sql(where, " OR ", cursor, " < ", Value("0001-01-01"))
        query = sql(
            "SELECT count(*) FROM ",
            request.relation.source(self.dialect, low, high),
            " WHERE ",
            where,
        )
        (count,) = first_row(connection, with_variables(connection, query))
        return int(count)


def _bounds(request: Request, columns: dict[str, Column]) -> tuple[Any, Any]:
    if request.cursor is None:
        return None, None
    type_ = columns[request.cursor].source.type
    return _bound(request.window.low, type_), _bound(request.window.high, type_)


def _bound(text: str | None, type_: str) -> Any:
    if text is None:
        return None
    if type_ == "timestamp with time zone":
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    if (
        base_of(type_)[0] in ("smallint", "integer", "bigint", "numeric")
        and text.lstrip("-").isdigit()
    ):
        return int(text)
    return text

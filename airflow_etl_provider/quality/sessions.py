"""The sessions of an audit on PostgreSQL: opened by us, limited, cancellable, all closed."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_etl_provider.core.errors import CatalogError, ConnectionLost, EtlError, Stopped
from airflow_etl_provider.core.names import TableName, quoted
from airflow_etl_provider.quality.report import printable

if TYPE_CHECKING:
    import sqlalchemy as sa

LONGEST_REASON = 300

# How the reason of a statement that took too long begins.
TIMED_OUT = "QueryCanceled: "

# Literals are read as in all our sessions: a bound without a zone is UTC.
_LIMITS = """
SELECT set_config('TimeZone', 'UTC', true),
       set_config('DateStyle', 'ISO, YMD', true),
       set_config('IntervalStyle', 'postgres', true),
       set_config('extra_float_digits', '1', true),
       set_config('statement_timeout', %(statement_timeout)s, true),
       set_config('client_connection_check_interval', '1s', true),
       set_config('tcp_keepalives_idle', '10', true),
       set_config('tcp_keepalives_interval', '5', true),
       set_config('tcp_keepalives_count', '3', true),
       set_config('tcp_user_timeout', '15000', true)
"""

# Compared as text: a cast to `name` would cut a long name and find another table.
_TABLE = """
SELECT c.oid IS NOT NULL AS found,
       has_schema_privilege(n.oid, 'USAGE') AS usage,
       has_table_privilege(c.oid, 'SELECT') AS readable,
       row_security_active(c.oid) AS filtered,
       current_user AS role
FROM pg_catalog.pg_namespace AS n
LEFT JOIN pg_catalog.pg_class AS c
       ON c.relnamespace = n.oid
      AND c.relname = %(table)s::text
      AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
WHERE n.nspname = %(schema)s::text
"""


class AuditSessions:
    """The sessions of one audit and the engine that opens them."""

    def __init__(
        self,
        conninfo: Mapping[str, Any],
        statement_timeout: timedelta | None,
        stopping: threading.Event,
    ) -> None:
        import sqlalchemy as sa

        self._conninfo = conninfo
        self._timeout = f"{_milliseconds(statement_timeout)}ms"
        self._stopping = stopping
        self._open: list[Any] = []
        self._lost = False
        self.engine = sa.create_engine(
            "postgresql+psycopg2://",
            creator=self._connect,
            hide_parameters=True,
            # SQLAlchemy shortens a label within 6 of this; a column name may have all 63.
            max_identifier_length=63 + 6,
        )
        sa.event.listen(self.engine, "begin", self._limit)
        sa.event.listen(self.engine, "handle_error", self._notice)

    def require_unbroken(self) -> None:
        """Raise ``Stopped`` once the audit was cancelled, ``ConnectionLost`` after a lost session.

        Great Expectations takes both for failures of the suite and would go on.
        """
        self.require_running()
        if self._lost:
            raise ConnectionLost("the server ended a session of the audit; nothing was decided")

    def require_running(self) -> None:
        """Raise ``Stopped`` once the audit was cancelled."""
        if self._stopping.is_set():
            raise Stopped("the audit was told to stop; its statements were cancelled")

    def cancel(self) -> None:
        """Cancel what the server runs for this audit now."""
        import psycopg2

        for connection in tuple(self._open):
            with suppress(psycopg2.Error):
                connection.cancel()

    def close(self) -> None:
        """End every session, whatever state it is in."""
        import psycopg2

        self.engine.dispose()
        for connection in self._open:
            with suppress(psycopg2.Error):
                connection.close()

    def _connect(self) -> Any:
        import psycopg2

        self.require_unbroken()
        connection = psycopg2.connect(**self._conninfo)
        self._open.append(connection)
        connection.set_session(readonly=True)
        return connection

    def _limit(self, connection: sa.Connection) -> None:
        # Set in each transaction, never for the session: a pooler hands sessions on to others.
        self.require_unbroken()
        connection.exec_driver_sql(_LIMITS, {"statement_timeout": self._timeout})

    def _notice(self, context: sa.ExceptionContext) -> None:
        self._lost = self._lost or context.is_disconnect


def require_readable(sessions: AuditSessions, schema: str, table: str) -> None:
    """Refuse a table that is missing, or of which the role cannot read every row."""
    import sqlalchemy as sa

    name = f"{printable(schema)}.{printable(table)}"
    try:
        with sessions.engine.connect() as connection:
            facts = connection.exec_driver_sql(_TABLE, {"schema": schema, "table": table}).first()
    except sa.exc.DBAPIError as error:
        sessions.require_running()
        raise _unreachable(name, error) from None
    if facts is None or not facts.found:
        missing = f"schema {printable(schema)}" if facts is None else f"table {name}"
        raise CatalogError(
            f"the audit finds no {missing}",
            remedy="stage the load again; a staged table that was cleaned up is gone.",
        )
    if not (facts.usage and facts.readable):
        role = printable(quoted(facts.role))
        within = (
            "" if facts.usage else f"GRANT USAGE ON SCHEMA {printable(quoted(schema))} TO {role}; "
        )
        raise CatalogError(
            f"role {printable(facts.role)} may not read {name}",
            remedy=f"{within}GRANT SELECT ON {printable(str(TableName(schema, table)))} TO {role}",
        )
    if facts.filtered:
        raise CatalogError(
            f"row security hides rows of {name} from role {printable(facts.role)}, "
            "so an audit would judge only a part",
            remedy="audit as the table's owner or as a role with BYPASSRLS.",
        )


def _unreachable(name: str, error: sa.exc.DBAPIError) -> EtlError:
    import psycopg2

    reason = reason_of(str(error))
    if isinstance(error.orig, psycopg2.OperationalError | psycopg2.InterfaceError):
        return ConnectionLost(f"the audit of {name} cannot reach the server: {reason}")
    return CatalogError(f"the audit cannot look up {name}: {reason}")


def reason_of(message: str) -> str:
    """The first line of a message, free of anything that was read from a row.

    A server quotes values in messages about data, in its own language and between that language's marks,
    and anything in those that user code raises; DETAIL, CONTEXT, the statement and its parameters stand on
    later lines.
    """
    import psycopg2
    from psycopg2 import errors

    line = next(iter(message.strip().splitlines()), "")
    server = re.search(r"\(psycopg2\.(?:errors\.)?(\w+)\) ?(.*)", line)
    if server is None:
        return re.sub(r": '.*", ": '…'", line)[:LONGEST_REASON]
    name, text = server.groups()
    kind = getattr(errors, name, psycopg2.OperationalError)
    if issubclass(kind, errors.RaiseException | psycopg2.IntegrityError):
        return name
    if issubclass(kind, psycopg2.DataError) and kind is not errors.InvalidRegularExpression:
        return name
    return f"{name}: {text}"[:LONGEST_REASON]


def _milliseconds(duration: timedelta | None) -> int:
    return 0 if duration is None else max(1, int(duration.total_seconds() * 1000))

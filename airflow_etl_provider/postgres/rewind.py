"""What people do with a stream from outside its loads: look at it, move its watermark, name its store.

Whatever changes goes through the stream's row, which every publish locks first, so it is put in order
with the loads that are at work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import ConfigurationError
from airflow_etl_provider.core.load import StreamPosition
from airflow_etl_provider.core.suggest import nearest
from airflow_etl_provider.postgres import dead_letters, ledger
from airflow_etl_provider.postgres.catalog import scalar
from airflow_etl_provider.postgres.cursors import (
    CursorKind,
    cursor_kind,
    cursor_type_sql,
    plain_type,
)
from airflow_etl_provider.postgres.errors import translated_errors
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.session import Endpoint, connect

log = structlog.get_logger(__name__)

Connection = psycopg.Connection[Any]

_UNREACHABLE = ("infinity", "-infinity", "Infinity", "-Infinity", "NaN")
_TEXTS = ("text", "character varying")


def endpoint_of_dsn(dsn: str, application_name: str) -> Endpoint:
    """The database that a libpq connection string leads to.

    :raises ConfigurationError: libpq cannot read it; its own message, which repeats parts of the string
        and so perhaps the password, is dropped.
    """
    try:
        conninfo = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "the connection string cannot be read",
            remedy="write postgresql://user@host:5432/database, or host=… dbname=… user=…",
        ) from None
    return Endpoint(
        conninfo, f"database {conninfo.get('dbname', 'of the environment')}", application_name
    )


def rows(
    connection: Connection, name: str, params: Mapping[str, Any], *, cast: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a statement of ``rewind.sql``.

    :param cast: the cursor type that its values have, where the statement compares them.
    """
    statement: sql.SQL | sql.Composed = queries("rewind")[name]
    if cast is not None:
        statement = queries("rewind")[name].format(t=cursor_type_sql(cast))
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, params).fetchall()


def rewind(
    connection: Connection,
    stream: str,
    to: str | None,
    reason: str,
    actor: str,
    *,
    allow_forward: bool = False,
) -> StreamPosition:
    """Set the position of *stream* back to *to*, so that everything from there on is loaded again.

    In one transaction that waits for a publish at work: the position moves, the fence rises, coverage
    above *to* is cut, loads that reach above it and are not published are abandoned, and the move is
    recorded with *reason* and *actor*. The target's rows stay as they are until they are loaded again;
    the stored watermark follows with the next run, which finds an older fence there.

    :param connection: from :func:`~airflow_etl_provider.postgres.session.connect`.
    :param to: a value of the stream's cursor type, at or below the position; ``None`` resets the stream,
        as if it had never loaded (its rows in the target stay).
    :param allow_forward: also take a value above the position: rows in between are never loaded.
    :raises ConfigurationError: no such stream, no reason, or a value that is not of the cursor's type,
        not below the position, or (with respect to time zones) ambiguous.
    """
    _require(reason, "reason", "say why, for those who wonder later what happened")
    _require(actor, "actor", "say who moves the watermark")
    with translated_errors(f"moving the watermark of stream {stream}"), connection.transaction():
        row = lock_stream(connection, stream)
        goal, forward = (None, False) if to is None else _goal(connection, row, to)
        if forward and not allow_forward:
            raise ConfigurationError(
                f"{goal} is above the position of stream {stream}, {row['position']}: the rows in between would "
                "never be loaded",
                remedy="name a value at or below the position, or say explicitly that the stream skips them "
                "(--allow-forward)",
            )
        abandoned = [] if forward else _undo_above(connection, row, goal)
        moved = move_position(connection, row, goal, reason.strip(), actor.strip())
    log.info(
        "watermark reset" if goal is None else "watermark rewound",
        stream=stream,
        position_from=row["position"],
        position_to=goal,
        fence=moved.fence,
        abandoned=abandoned,
    )
    return moved


def _require(text: str, name: str, remedy: str) -> None:
    if not text.strip():
        raise ConfigurationError(f"a rewind needs a {name}", remedy=remedy)


def lock_stream(connection: Connection, stream: str) -> dict[str, Any]:
    """Lock the row of *stream*, which every publish locks first, to the end of the transaction."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(queries("rewind")["lock"], {"stream": stream}).fetchone()
    if row is None:
        raise unknown_stream(connection, stream)
    return row


def unknown_stream(connection: Connection, stream: str) -> ConfigurationError:
    """The error for a stream that the ledger does not know, with the name that was probably meant."""
    known = [name for (name,) in connection.execute(queries("rewind")["names"])]
    return ConfigurationError(
        f"the ledger knows no stream {stream!r}{nearest(stream, known)}",
        remedy="airflow-etl status lists the streams of this warehouse",
    )


def _goal(connection: Connection, row: Mapping[str, Any], to: str) -> tuple[str, bool]:
    """*to* as the server writes it, and whether it lies above the position."""
    cursor_type = row["position_type"]
    if cursor_type is None or row["position"] is None:
        raise ConfigurationError(
            f"stream {row['stream']} has no position yet, so there is nothing to rewind",
            remedy="its first load begins at the origin of the extract task, or at the lowest window",
        )
    kind = cursor_kind(cursor_type)
    try:
        answer = connection.execute(
            queries("rewind")["compare"].format(t=cursor_type_sql(cursor_type)),
            {"to": to, "position": row["position"]},
        ).fetchone()
        instant = kind is CursorKind.TIME and _is_instant(connection, to)
    except psycopg.DataError:
        raise ConfigurationError(
            f"{to!r} is not a value of type {cursor_type}, which orders stream {row['stream']}",
            remedy=f"write it as the server does; the position is {row['position']}",
        ) from None
    goal, forward = answer or (to, False)
    if goal in _UNREACHABLE and plain_type(cursor_type) not in _TEXTS:
        raise ConfigurationError(
            f"{goal} is no position that a stream can stand at",
            remedy="to load everything again, reset the stream",
        )
    zoned = cursor_type.endswith("with time zone")
    if kind is CursorKind.TIME and zoned is not instant:
        raise ConfigurationError(
            f"{to!r} {'has no time zone' if zoned else 'names a time zone'}, but stream {row['stream']} is "
            f"ordered by {cursor_type}",
            remedy=f"write it {'with its offset' if zoned else 'without one'}, like {row['position']}",
        )
    return goal, forward


def _is_instant(connection: Connection, to: str) -> bool:
    """Whether *to* means the same instant in every time zone, so that it carries its own."""
    here = scalar(connection, queries("rewind")["instant"], {"to": to})
    with connection.transaction(force_rollback=True):
        connection.execute(queries("rewind")["elsewhere"])
        there = scalar(connection, queries("rewind")["instant"], {"to": to})
    return bool(here == there)


def _undo_above(connection: Connection, row: Mapping[str, Any], goal: str | None) -> list[str]:
    """Cut coverage above *goal* and abandon what was read for it; returns the abandoned loads."""
    named = queries("rewind")
    params = {
        "stream": row["stream"],
        "to": goal,
        "type": row["position_type"],
        "why": f"the stream was {'reset' if goal is None else f'rewound to {goal}'} after this load was planned",
    }
    if goal is None:
        connection.execute(named["drop_all_coverage"], params)
        found = connection.execute(named["abandon_all"], params)
    else:
        cast = cursor_type_sql(row["position_type"])
        connection.execute(named["drop_coverage"].format(t=cast), params)
        connection.execute(named["cut_coverage"].format(t=cast), params)
        found = connection.execute(named["abandon_above"].format(t=cast), params)
    abandoned = [load_id for (load_id,) in found]
    dead_letters.end(connection, abandoned, params["why"])
    return abandoned


def move_position(
    connection: Connection,
    row: Mapping[str, Any],
    goal: str | None,
    reason: str,
    actor: str,
) -> StreamPosition:
    """Set the position of a locked stream to *goal*, raise its fence and record the move."""
    named = queries("rewind")
    with connection.cursor(row_factory=dict_row) as cursor:
        moved = cursor.execute(
            named["move"],
            {
                "stream": row["stream"],
                "to": goal,
                "type": None if goal is None else row["position_type"],
            },
        ).fetchone()
    position = StreamPosition(**(moved or {}))
    connection.execute(
        named["record"],
        {
            "stream": row["stream"],
            "from": row["position"],
            "to": goal,
            "fence": position.fence,
            "reason": reason,
            "actor": actor,
        },
    )
    return position


@dataclass(frozen=True, slots=True)
class PostgresStoreBinding:
    """Which store shows a stream, according to the ledger over *endpoint*."""

    endpoint: Endpoint

    def bound_store(self, stream: str) -> str | None:
        """The name of the stream's store; ``None`` if it never loaded."""
        with connect(self.endpoint) as connection, translated_errors(f"reading stream {stream}"):
            if not scalar(connection, queries("ledger")["ledger_exists"], {}):
                return None
            row = connection.execute(queries("rewind")["store"], {"stream": stream}).fetchone()
            return None if row is None else row[0]

    def bind_store(self, stream: str, store: str) -> None:
        """Name another store, under the lock that publishes and rewinds take."""
        with (
            connect(self.endpoint) as connection,
            translated_errors(f"binding stream {stream} to store {store}"),
            connection.transaction(),
        ):
            lock_stream(connection, stream)
            connection.execute(queries("rewind")["bind_store"], {"stream": stream, "store": store})

    def position(self, stream: str) -> StreamPosition | None:
        """Where the stream stands; ``None`` if it never loaded."""
        with connect(self.endpoint) as connection, translated_errors(f"reading stream {stream}"):
            if not scalar(connection, queries("ledger")["ledger_exists"], {}):
                return None
            return ledger.position(connection, stream)

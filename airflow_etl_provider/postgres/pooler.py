"""Recognizing a pooler that hands server processes from one transaction to the next.

Whatever is set for a session leaks to strangers there, or is lost; a process id that was noted may serve
somebody else by the time it is ended (rule 21). So such a connection is refused, with the way out.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import closing

import psycopg
from psycopg import sql

from airflow_etl_provider.core.errors import ConfigurationError

#: Which server process answers.
BACKEND = sql.SQL(
    "SELECT pid::text || ' ' || backend_start::text FROM pg_catalog.pg_stat_activity"
    " WHERE pid = pg_catalog.pg_backend_pid()"
)
_PATIENCE = 2.0
_ASKED = 3


def refuse(label: str) -> ConfigurationError:
    return ConfigurationError(
        f"{label} leads through a pooler in transaction mode: the transactions of one session meet different server "
        "processes",
        remedy="connect to the server itself (often another port), or let the pooler pool by session for this user and "
        "database",
    )


def pools_transactions(backend: Callable[[], str], dsn: str) -> bool:
    """Whether the transactions of one session meet different server processes.

    A pooler hands out the process that was used last, so that a session alone meets the same one every
    time: another one holds a process meanwhile.

    :param backend: which process answers the session, outside of a transaction.
    """
    first = backend()
    with closing(psycopg.connect(dsn, autocommit=True, prepare_threshold=None)) as other:
        held = _held(other)
        if held is None:
            # Processes have run out, since each session keeps its own.
            return False
        return held == first or any(backend() != first for _ in range(_ASKED))


def _held(other: psycopg.Connection[tuple[object, ...]]) -> str | None:
    """The process that a transaction of *other* holds from now on; ``None`` where it gets none in time."""
    pgconn = other.pgconn
    pgconn.send_query(b"BEGIN; " + BACKEND.as_bytes(None))
    until = time.monotonic() + _PATIENCE
    found: str | None = None
    while True:
        while pgconn.is_busy():
            remaining = until - time.monotonic()
            if remaining <= 0 or not select.select([pgconn.socket], [], [], remaining)[0]:
                return None
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return found
        value = result.get_value(0, 0) if result.ntuples else None
        found = found if value is None else value.decode()

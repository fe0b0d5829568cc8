"""Locks that readers hardly notice: one budget for an attempt, then everybody is let through.

A budget bounds the waiting and the work of an attempt together, so that readers queue behind it no longer
than that; attempts go on, with pauses, until a deadline.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import ConfigurationError, LockBudgetExceeded, Stopped
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import PublishOptions
from airflow_etl_provider.postgres.catalog import Relation, scalar
from airflow_etl_provider.postgres.queries import queries
from airflow_etl_provider.postgres.statements import lock, lock_all

_PAUSE_LEAST, _PAUSE_MOST = 0.05, 2.0
_REPORT_EVERY = 30.0

Result = TypeVar("Result")
#: Runs an attempt, which is told its number, until it gets its locks.
Attempts = Callable[[Callable[[int], None]], None]


class Deadline:
    """A moment up to which several pieces of work may go on."""

    def __init__(self, length: timedelta) -> None:
        self._until = time.monotonic() + length.total_seconds()

    def left(self) -> timedelta:
        """How long that still is, zero at least."""
        return timedelta(seconds=max(self._until - time.monotonic(), 0.0))


class PartitionMoved(Exception):
    """A partition is no longer the one that an attempt was made for."""


class WorkTooLong(Exception):
    """An attempt had its locks, and its own work did not end within the budget."""


@contextmanager
def own_work() -> Iterator[None]:
    """What is done once all locks are held: nobody else is to blame for its length.

    :raises WorkTooLong: the budget ended it.
    """
    try:
        yield
    except psycopg.errors.QueryCanceled:
        raise WorkTooLong("the work under the locks took longer than lock_budget") from None


def require_budget(connection: psycopg.Connection[Any], budget: timedelta) -> None:
    """:raises ConfigurationError: a budget as long as the server's ``deadlock_timeout``."""
    patience = scalar(
        connection,
        "SELECT setting::int / 1000.0 FROM pg_settings WHERE name = 'deadlock_timeout'",
    )
    if budget.total_seconds() >= patience:
        raise ConfigurationError(
            f"lock_budget ({budget.total_seconds():g} s) must stay below the server's "
            f"deadlock_timeout ({patience:g} s), or readers are shot in deadlocks with us",
            remedy="lower lock_budget",
        )


def in_attempts(
    attempt: Callable[[int], Result],
    blockers: Callable[[], str],
    *,
    what: str,
    table: TableName,
    deadline: timedelta,
    remedy: str,
    stop: Stop,
    log: EventLog,
) -> Result:
    """What *attempt* returns, which is told its number from 1 on, once it gets its locks.

    :param blockers: names who was in the way, when an attempt has failed.
    :param what: is done: ``publishing load …``.
    :param remedy: for when the deadline has passed.
    :raises LockBudgetExceeded: the locks were not granted up to *deadline*.
    :raises Stopped: it was told to stop between two attempts.
    """
    until = time.monotonic() + deadline.total_seconds()
    reported = time.monotonic()
    number = 0
    while True:
        if stop.is_set():
            raise Stopped(f"{what} was stopped; nothing was changed")
        number += 1
        try:
            return attempt(number)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
            blocked_by = blockers()
        except psycopg.errors.DeadlockDetected:
            blocked_by = "a deadlock, which the server resolved at our expense"
        except PartitionMoved as moved:
            blocked_by = str(moved)
        except WorkTooLong as slow:
            blocked_by = str(slow)
            if time.monotonic() >= until:
                raise LockBudgetExceeded(
                    f"{what} got its locks on {table}, but {slow} in the last of {number} attempts",
                    remedy="raise lock_budget, or publish when the server has less to do; the load stays validated",
                ) from None
        now = time.monotonic()
        if now >= until:
            raise LockBudgetExceeded(
                f"{what} could not get its locks on {table} in {number} attempts; blocked by {blocked_by}",
                remedy=remedy,
            )
        if number == 1 or now - reported >= _REPORT_EVERY:
            reported = now
            log("waiting for locks", table=str(table), attempt=number, blocked_by=blocked_by)
        time.sleep(
            min(random.uniform(_PAUSE_LEAST, _PAUSE_LEAST * 2 ** min(number, 6)), _PAUSE_MOST)
        )


def once(attempt: Callable[[int], None]) -> None:
    """For a caller who tries again himself."""
    attempt(1)


def patiently(
    connection: psycopg.Connection[Any],
    target: Relation,
    options: PublishOptions,
    *,
    what: str,
    stop: Stop,
    log: EventLog,
) -> Attempts:
    """Runs an attempt that needs a lock of an instant, as often as others stand in its way up to the deadline.

    :param what: is done: ``adding …``.
    """

    def run(attempt: Callable[[int], None]) -> None:
        def polite(number: int) -> None:
            ask_autovacuum_to_leave(connection, target, [])
            attempt(number)

        in_attempts(
            polite,
            lambda: blockers(connection, target, []),
            what=what,
            table=target.name,
            deadline=options.lock_deadline,
            remedy="the load stays validated: end the session that blocks, then retry",
            stop=stop,
            log=log,
        )

    return run


def wait_at_most(connection: psycopg.Connection[Any], deadline: timedelta) -> None:
    """No lock that the transaction asks for is waited for any longer."""
    connection.execute(
        "SELECT set_config('lock_timeout', %s, true)",
        (str(round(deadline.total_seconds() * 1000)),),
    )


def limit(connection: psycopg.Connection[Any], until: float) -> None:
    """Give the next statements of the transaction what remains of the budget that ends at *until*."""
    remaining = max(round((until - time.monotonic()) * 1000), 1)
    connection.execute(
        "SELECT set_config('lock_timeout', %(ms)s, true), set_config('statement_timeout', %(ms)s, true)",
        {"ms": str(remaining)},
    )


def take(
    connection: psycopg.Connection[Any], locks: Sequence[tuple[TableName, str]], until: float
) -> float | None:
    """Take *locks* within the budget that ends at *until*; returns when the first of them was granted, about.

    Those of one mode go in one statement, which the budget bounds as a whole: a distant server costs one
    journey, not one for each table.
    """
    began = None
    for mode, some in groupby(locks, key=lambda one: one[1]):
        limit(connection, until)
        asked = time.monotonic()
        connection.execute(lock_all([table for table, _ in some], mode))
        began = began or asked
    return began


def probe(
    connection: psycopg.Connection[Any], locks: Sequence[tuple[TableName, str]], budget: timedelta
) -> None:
    """Take *locks* within *budget* and let them go: a reader in the way is met before writers are held off."""
    with connection.transaction():
        take(connection, locks, time.monotonic() + budget.total_seconds())


def in_order(
    connection: psycopg.Connection[Any],
    parents: Sequence[tuple[Relation, str]],
    *,
    replaced: Sequence[TableName],
    new: Sequence[TableName],
    dimensions_first: bool,
) -> list[tuple[TableName, str]]:
    """All locks: *parents* (each with its mode), *replaced* partitions, DEFAULT, *new*, and what foreign keys
    refer to.

    Those come before the others or after them, by turns: readers lock in the order of their own FROM,
    so no one order always works.
    """
    locks = [(parent.name, mode) for parent, mode in parents]
    locks += [(table, "ACCESS EXCLUSIVE") for table in replaced]
    locks += [
        (table, "ACCESS EXCLUSIVE")
        for parent, _ in parents
        for table, _ in _defaults(connection, parent.oid)
        if table not in replaced
    ]
    locks += [(table, "ACCESS EXCLUSIVE") for table in new]
    dimensions = {
        table: "ACCESS EXCLUSIVE"
        for parent, _ in parents
        for table, _ in _dimensions(connection, parent)
    }
    known = sorted(dimensions.items(), key=lambda lock: str(lock[0]))
    return [*known, *locks] if dimensions_first else [*locks, *known]


def _defaults(connection: psycopg.Connection[Any], oid: int) -> list[tuple[TableName, int]]:
    """The DEFAULT partition of a parent; one query, however many partitions there are."""
    rows = connection.execute(queries("catalog")["default_partition"], {"oid": oid}).fetchall()
    return [(TableName(schema, name), found) for schema, name, found in rows]


def _dimensions(
    connection: psycopg.Connection[Any], target: Relation
) -> list[tuple[TableName, int]]:
    """The tables that the target's foreign keys refer to; ATTACH locks them."""
    rows = connection.execute(
        queries("catalog")["referenced_tables"], {"oid": target.oid}
    ).fetchall()
    return [(TableName(schema, name), oid) for schema, name, oid in rows]


def _oids(
    connection: psycopg.Connection[Any], target: Relation, tables: Sequence[int]
) -> list[int]:
    """Whatever an exchange of *tables* (oids) locks."""
    return [
        target.oid,
        *tables,
        *(oid for _, oid in _defaults(connection, target.oid)),
        *(oid for _, oid in _dimensions(connection, target)),
    ]


def ask_autovacuum_to_leave(
    connection: psycopg.Connection[Any], target: Relation, tables: Sequence[int]
) -> None:
    """Make autovacuum workers on these tables give way, which they do only after ``deadlock_timeout``.

    They would outlast every attempt whose budget is shorter. The lock asked for stops neither readers nor
    writers, and is let go at once; a vacuum against wraparound does not yield, and is named as a blocker.
    """
    found = connection.execute(
        queries("catalog")["autovacuumed"], {"oids": _oids(connection, target, tables)}
    ).fetchall()
    for schema, name in found:
        with suppress(psycopg.errors.LockNotAvailable), connection.transaction():
            connection.execute(
                "SELECT set_config('lock_timeout', (setting::int + 2000)::text, true)"
                " FROM pg_settings WHERE name = 'deadlock_timeout'"
            )
            connection.execute(lock(TableName(schema, name), "SHARE UPDATE EXCLUSIVE"))


def blockers(
    connection: psycopg.Connection[Any],
    target: Relation,
    tables: Sequence[int],
    *,
    writers: bool = False,
) -> str:
    """Who holds locks on *target* and *tables* (oids), as a person would tell a colleague.

    :param writers: leave out those who only read.
    """
    params = {"oids": _oids(connection, target, tables), "writers": writers}
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(queries("catalog")["blockers"], params).fetchall()
    return (
        "; ".join(
            f"pid {row['pid']} (user {row['user']}, application {row['application'] or 'unnamed'!s}, "
            f"{row['state']}, for {row['age_s'] or 0:.0f} s, {row['mode']} on {row['relation']})"
            for row in rows
        )
        or "sessions that have gone meanwhile"
    )

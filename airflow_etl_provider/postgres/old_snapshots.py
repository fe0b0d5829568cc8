"""Waiting for readers whose snapshot is older than a table that was filled.

Such a reader sees the bounds of partitions as they are now, and rows as of its snapshot: a new partition
that was filled after it would be empty for it. Only COPY FREEZE in the creating transaction is seen by
all; what INSERT has filled is exchanged once those readers are gone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row

from airflow_etl_provider.core.errors import LockBudgetExceeded, Stopped
from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.core.ports import EventLog, Stop
from airflow_etl_provider.core.publish import OnOldSnapshot, PublishOptions
from airflow_etl_provider.postgres.queries import queries

_STEP, _REPORT_EVERY = 0.1, 30.0


def wait_out(
    connection: psycopg.Connection[Any],
    table: TableName,
    oids: Sequence[int],
    options: PublishOptions,
    *,
    what: str,
    stop: Stop,
    log: EventLog,
) -> None:
    """Return when every transaction that is open now has ended.

    :param oids: the partitions that will be replaced: a session of ours that has locked one reads it.
    :raises LockBudgetExceeded: one is still open at the deadline, with ``on_old_snapshot="fail"``.
    :raises Stopped: it was told to stop.
    """
    noted = {row["number"]: row for row in _open(connection, oids)}
    until = time.monotonic() + options.old_snapshot_deadline.total_seconds()
    reported = 0.0
    while noted:
        if stop.is_set():
            raise Stopped(f"{what} was stopped; nothing was changed")
        now = time.monotonic()
        held_by = "; ".join(_named(row) for row in list(noted.values())[:3])
        if now >= until:
            if options.on_old_snapshot is OnOldSnapshot.PUBLISH:
                log(
                    "published although older snapshots are open, as told: they find the new partitions empty",
                    table=str(table),
                    held_by=held_by,
                )
                return
            raise LockBudgetExceeded(
                f"{what} has waited {options.old_snapshot_deadline} for transactions that began before the new "
                f"partitions of {table} were filled, and would find them empty: {held_by}",
                remedy="the load stays validated: end those transactions, raise old_snapshot_deadline, or say "
                "on_old_snapshot='publish'; strategy='merge' or 'delete_insert' needs no such wait",
            )
        if now - reported >= _REPORT_EVERY:
            reported = now
            log("waiting for older snapshots", table=str(table), held_by=held_by)
        time.sleep(_STEP)
        still = {row["number"]: row for row in _open(connection, oids)}
        noted = {number: still[number] for number in noted if number in still}


def _open(connection: psycopg.Connection[Any], oids: Sequence[int]) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(queries("leaves")["old_snapshots"], {"oids": list(oids)}).fetchall()


def _named(row: dict[str, Any]) -> str:
    return (
        f"pid {row['pid']} (user {row['user']}, application {row['application'] or 'unnamed'}, "
        f"{row['state'] or 'state unknown'}, for {row['age_s'] or 0:.0f} s)"
    )

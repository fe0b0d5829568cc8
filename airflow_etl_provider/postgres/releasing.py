"""Letting go of the rows that detached tables refer to: versions that were replaced, and retired partitions.

Their foreign keys would keep those rows from being deleted for as long as the tables are kept. What they were is
recorded, for the day that a table comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from airflow_etl_provider.core.names import TableName
from airflow_etl_provider.postgres import ledger, locking, statements
from airflow_etl_provider.postgres.queries import queries

Connection = psycopg.Connection[Any]


def foreign_keys_in(rebuild: Mapping[str, Any] | None) -> dict[str, str]:
    """What was recorded of a table that was let go of: definitions by name."""
    return dict((rebuild or {}).get("foreign_keys", {}))


def release_version(
    connection: Connection, version: TableName, load_id: str, partition: str, *, budget: timedelta
) -> int:
    """Drop the foreign keys of a replaced *version* of *partition*, as :func:`_release` does; recorded with the load."""
    return _release(
        connection,
        version,
        lambda keys: ledger.record_rebuild(connection, load_id, partition, keys),
        budget,
    )


def release_retired(
    connection: Connection, kept: TableName, retirement_id: str, *, budget: timedelta
) -> int:
    """Drop the foreign keys of a retired partition, as :func:`_release` does; recorded with its retirement."""
    ids = {"ids": [retirement_id]}

    def record(keys: Mapping[str, str]) -> None:
        connection.execute(queries("retention")["hold_retired"], ids)
        with connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(queries("retention")["retired"], ids).fetchone()
        known = foreign_keys_in(row["rebuild"] if row else None)
        connection.execute(
            queries("retention")["set_rebuild"],
            {
                "retirement_id": retirement_id,
                "rebuild": Jsonb({"foreign_keys": {**known, **keys}}),
            },
        )

    return _release(connection, kept, record, budget)


def _release(
    connection: Connection,
    table: TableName,
    record: Callable[[Mapping[str, str]], None],
    budget: timedelta,
) -> int:
    """Drop the foreign keys of a detached *table*, each in a transaction of its own with its record.

    In one for all, the tables referred to first would be locked for as long as the others are waited for. Each has
    *budget* for all locks of that one key, and a table that has come back meanwhile keeps its keys.

    :returns: how many were dropped.
    :raises psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected: somebody
        held the table, or one that it refers to; all other keys are dropped.
    """
    keys = connection.execute(
        queries("catalog")["foreign_keys_of"], {"schema": table.schema, "name": table.name}
    ).fetchall()
    held = None
    for number, (name, definition) in enumerate(keys):
        try:
            with connection.transaction():
                locking.limit(connection, time.monotonic() + budget.total_seconds())
                # The ledger before the tables, as rollback, restoration and the janitor lock them.
                record({name: definition})
                connection.execute(statements.drop_constraint(table, name))
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedObject):
            return number
        except (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.QueryCanceled,
            psycopg.errors.DeadlockDetected,
        ) as error:
            # Who reads one of them all day long shall not keep the rows of the others.
            held = held or error
    if held is not None:
        raise held
    return len(keys)
